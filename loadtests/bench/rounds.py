"""One case: its peers started side by side, measured in turns, stopped."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.cases import Case
from loadtests.bench.lineup import MANY, Contestant, contestants
from loadtests.bench.load import generator_name
from loadtests.bench.peers import FAILURES, NotStarted, RawLimit, Server
from loadtests.bench.results import Trial

__all__ = ["Plan", "run_case", "say"]

Peer = Server | RawLimit
_START_TIMEOUT_S = 90.0
_WARM_UP_CONNECTIONS = 8
_SLOWER = 3


@dataclass(frozen=True)
class Plan:
    command: str
    connections: Sequence[int]
    peers: list[str]
    """Keys; all of the case, if none is named."""
    num_rounds: int
    seconds: int
    """Of each measurement."""
    warm_up_s: int
    """Of each peer, before the first round."""
    limit_s: float
    """No round begins that might end after this."""
    load_before: float


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
        _warm_up(lineup, peers, plan.warm_up_s)
        for number in range(plan.num_rounds):
            began = time.monotonic()
            for turn, trial in enumerate(trials):
                _round(trial, _who(lineup, peers, trial.connections), turn + number, plan.seconds)
            say(f"{case.name}: round {number + 1} of {plan.num_rounds}: {time.monotonic() - began:.0f} s")
            if number + 1 < plan.num_rounds and 2 * time.monotonic() - began > give_up:
                say("stopping early: another round would take too long")
                break
        for name, peer in peers.items():
            try:
                peer.check()
            except FAILURES as error:
                for trial in trials:
                    _leave_out(trial, name, f"afterwards: {error}")
    return trials


def _trials(plan: Plan, case: Case, peers: dict[str, Peer], absent: dict[str, str]) -> list[Trial]:
    request = next(peer.request for peer in peers.values() if isinstance(peer, Server))
    # beyond the usual numbers of connections, the tiny model as JSON alone
    numbers = [c for c in plan.connections if c != MANY or case.name == "mlp-json"]
    common = (plan.command, plan.seconds)
    return [
        Trial(case.name, c, *common, generator_name(request, c), plan.load_before, absent=dict(absent)) for c in numbers
    ]


def _warm_up(lineup: Sequence[Contestant], peers: dict[str, Peer], seconds: int) -> None:
    for each in lineup:
        if each.name in peers:
            try:
                peers[each.name].measure(_WARM_UP_CONNECTIONS, seconds * (_SLOWER if each.warms_slowly else 1))
            except RuntimeError as error:
                say(f"{each.name} while warming up: {error}")


def _who(lineup: Sequence[Contestant], peers: dict[str, Peer], connections: int) -> dict[str, Peer]:
    names = [each.name for each in lineup if connections in each.connections or connections < MANY]
    return {name: peers[name] for name in names if name in peers}


def _round(trial: Trial, peers: dict[str, Peer], turn: int, seconds: int) -> None:
    """Everybody once; each time another begins, so that none is always measured after the same neighbour."""
    names = list(peers)
    first = turn % len(names)
    for name in [*names[first:], *names[:first]]:
        if name in trial.absent:
            continue
        try:
            sample = peers[name].measure(trial.connections, seconds)
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
            except NotStarted as error:
                absent[name] = str(error)
                peer.begin_stop()
                del peers[name]
        for name, reason in absent.items():
            say(f"left out: {name}: {reason}")
        if not any(isinstance(peer, Server) for peer in peers.values()):
            raise NotStarted(f"{case.name}: nobody could take part")
        yield peers, absent
