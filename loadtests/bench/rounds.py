"""One case: its peers started side by side, measured in turns, stopped."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from loadtests.bench.cases import Case
from loadtests.bench.lineup import Contestant, contestants
from loadtests.bench.load import Load, generator_name
from loadtests.bench.peers import FAILURES, NotStarted, RawLimit, Server
from loadtests.bench.results import Trial
from loadtests.bench.schedule import Plan, numbers_of, warm_up_s, who

__all__ = ["run_case", "say"]

Peer = Server | RawLimit
_START_TIMEOUT_S = 90.0
_WARM_UP_CONNECTIONS = 8
_LONGEST_TURN_S = 15.0
"""A peer that needs longer to answer everybody once is not measured with so many connections."""


def say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def run_case(plan: Plan, case: Case, directory: Path) -> list[Trial]:
    """A trial for each number of connections.

    Raises:
        NotStarted: nobody could take part.
    """
    give_up = time.monotonic() + plan.limit_s
    lineup = contestants(case, plan.peers)
    with _started(lineup, case, directory) as (peers, absent):
        trials = _trials(plan, case, peers, absent)
        _warm_up(plan, lineup, peers)
        _verify(peers, trials, "before")
        for number in range(plan.num_rounds):
            began = time.monotonic()
            for turn, trial in enumerate(trials):
                taking_part = who(plan, lineup, trial.connections)
                _leave_out_the_slow(trials, trial, taking_part)
                present = {name: peers[name] for name in taking_part if name in peers}
                _round(trial, present, turn + number, Load(trial.connections, plan.seconds, plan.generator))
            say(f"{case.name}: round {number + 1} of {plan.num_rounds}: {time.monotonic() - began:.0f} s")
            if number + 1 < plan.num_rounds and 2 * time.monotonic() - began > give_up:
                say("stopping early: another round would take too long")
                break
        _verify(peers, trials, "afterwards")
    return trials


def _trials(plan: Plan, case: Case, peers: Mapping[str, Peer], absent: Mapping[str, str]) -> list[Trial]:
    request = next(peer.request for peer in peers.values() if isinstance(peer, Server))
    run = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
    return [
        Trial(
            case.name,
            connections,
            plan.command,
            plan.seconds,
            generator_name(request, connections, plan.generator),
            plan.load_before,
            run,
            absent=dict(absent),
        )
        for connections in numbers_of(plan, case)
    ]


def _warm_up(plan: Plan, lineup: Sequence[Contestant], peers: Mapping[str, Peer]) -> None:
    for each in lineup:
        if each.name in peers:
            try:
                peers[each.name].measure(Load(_WARM_UP_CONNECTIONS, warm_up_s(plan, each)))
            except RuntimeError as error:
                say(f"{each.name} while warming up: {error}")


def _verify(peers: Mapping[str, Peer], trials: Sequence[Trial], when: str) -> None:
    """Whoever answers many different requests at once with wrong numbers, or another's, is not in the table."""
    for name, peer in peers.items():
        try:
            peer.verify()
        except FAILURES as error:
            for trial in trials:
                _leave_out(trial, name, f"{when}: {error}")


def _leave_out_the_slow(trials: Sequence[Trial], trial: Trial, names: Sequence[str]) -> None:
    """By the rate with fewer connections, so that one of them does not hold everybody up for minutes."""
    fewer = [each for each in trials if each.connections < trial.connections]
    for name in names:
        rates = [median(s.per_second for s in each.samples[name]) for each in fewer if each.samples.get(name)]
        if name not in trial.absent and rates and trial.connections / max(rates) > _LONGEST_TURN_S:
            turn_s = trial.connections / max(rates)
            _leave_out(trial, name, f"at {max(rates):.3g} answers/s one to everybody would take {turn_s:.0f} s")


def _round(trial: Trial, peers: Mapping[str, Peer], turn: int, load: Load) -> None:
    """Everybody once; each time another begins, so that none is always measured after the same neighbour."""
    names = list(peers)
    first = turn % len(names) if names else 0
    for name in [*names[first:], *names[:first]]:
        if name in trial.absent:
            continue
        try:
            sample = peers[name].measure(load)
        except RuntimeError as error:
            _leave_out(trial, name, str(error))
        else:
            trial.samples.setdefault(name, []).append(sample)


def _leave_out(trial: Trial, name: str, reason: str) -> None:
    say(f"left out at c={trial.connections}: {name}: {reason}")
    trial.absent[name] = reason
    trial.samples.pop(name, None)  # what is not there in every round pairs with nothing


@contextlib.contextmanager
def _started(
    lineup: Sequence[Contestant], case: Case, directory: Path
) -> Iterator[tuple[dict[str, Peer], dict[str, str]]]:
    """Those that take part, by name, started side by side; and why the others do not."""
    peers: dict[str, Peer] = {}
    absent: dict[str, str] = {}
    for each in lineup:
        try:
            peers[each.name] = each.make(each.name, directory, case)
        except NotStarted as error:
            absent[each.name] = str(error)
    with contextlib.ExitStack() as stack:
        # last in, first out: all are asked to end before the first is waited for
        for peer in peers.values():
            stack.callback(peer.stop)
        for peer in peers.values():
            stack.callback(peer.begin_stop)
        for peer in peers.values():
            peer.start()
        for name, peer in list(peers.items()):
            try:
                peer.wait_ready(_START_TIMEOUT_S)
                say(f"ready: {name}")
                peer.hold()
            except NotStarted as error:
                absent[name] = str(error)
                peer.begin_stop()
                del peers[name]
        for name, reason in absent.items():
            say(f"left out: {name}: {reason}")
        if not any(isinstance(peer, Server) for peer in peers.values()):
            raise NotStarted(f"{case.name}: nobody could take part")
        yield peers, absent
