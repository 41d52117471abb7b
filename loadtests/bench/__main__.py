"""Penstock beside its peers and the limit, in one interleaved run: `python -m loadtests.bench [--quick]`.

Takes up to 8 minutes, with `--quick` up to 2.5. Everything listens on free ports of loopback and is stopped at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.bench.lineup import make_models, missing_java, servers
from loadtests.bench.load import generator_name
from loadtests.bench.peers import ROOT, NotStarted, RawLimit, Server
from loadtests.bench.report import CONNECTIONS, Results, write_report
from loadtests.bench.requests import NAMES

__all__ = ["main"]

Peer = Server | RawLimit
_START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Plan:
    num_rounds: int
    seconds: int
    """Of each measurement."""
    warm_up_s: int
    """Of each peer and model, before the first round."""
    limit_s: float
    """No round begins that might end after this."""


FULL = Plan(num_rounds=5, seconds=2, warm_up_s=4, limit_s=475)
QUICK = Plan(num_rounds=2, seconds=1, warm_up_s=1, limit_s=140)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2 rounds of 1 s instead of 5 of 2 s.")
    parser.add_argument("--output", type=Path, help="Default: docs/benchmarks/serving.md; with --quick, none.")
    options = parser.parse_args(arguments)
    plan = QUICK if options.quick else FULL
    output = options.output or (None if options.quick else ROOT / "docs" / "benchmarks" / "serving.md")
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # both, for a shell starts what is in the background without the first
        signal.signal(number, signal.default_int_handler)
    command = "python -m loadtests.bench" + (" --quick" if options.quick else "")
    results = Results(command, plan.seconds, os.cpu_count() or 1, os.getloadavg()[0])
    try:
        _run(plan, results)
    except KeyboardInterrupt:
        _say("interrupted; everything is stopped")
        return 130
    except (NotStarted, RuntimeError, ValueError, OSError) as error:
        _say(f"failed: {error}")
        return 1
    text = write_report(results)
    print(text)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)
        _say(f"wrote {output}")
    return 0


def _run(plan: Plan, results: Results) -> None:
    give_up = time.monotonic() + plan.limit_s
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        directory = Path(name)
        _say("making the models")
        make_models(directory)
        lineup: list[Peer] = [*servers(directory, results.num_workers), RawLimit(directory, results.num_workers)]
        requests = next(peer.requests for peer in lineup if isinstance(peer, Server))
        results.generators = ", ".join(f"{generator_name(requests[model])} for {model}" for model in NAMES)
        with _started(lineup, results) as peers:
            for peer in peers:
                for model in NAMES:
                    peer.measure(model, CONNECTIONS[1], plan.warm_up_s)  # a JVM, for one, gets faster as it goes
            while results.num_rounds < plan.num_rounds:
                began = time.monotonic()
                _round(peers, plan, results)
                results.num_rounds += 1
                _say(f"round {results.num_rounds} of {plan.num_rounds}: {time.monotonic() - began:.0f} s")
                if results.num_rounds < plan.num_rounds and 2 * time.monotonic() - began > give_up:
                    _say("stopping early: another round would take too long")
                    break
            for peer in peers:
                peer.check()
            results.peak_rss_bytes = {peer.name: peer.peak_rss_bytes for peer in peers}


@contextlib.contextmanager
def _started(lineup: Sequence[Peer], results: Results) -> Iterator[list[Peer]]:
    """Those that take part, started side by side. Only Penstock itself has to."""
    absent: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        # last in, first out: all are asked to end before the first is waited for
        for peer in lineup:
            stack.callback(peer.stop)
        for peer in lineup:
            stack.callback(peer.begin_stop)
        for peer in lineup:
            if "TorchServe" in peer.name and (reason := missing_java()):
                absent[peer.name] = reason
                continue
            peer.start()
        for peer in lineup:
            if peer.name in absent:
                continue
            try:
                peer.wait_ready(_START_TIMEOUT_S)
                _say(f"ready: {peer.name}")
            except NotStarted as error:
                if peer is lineup[0]:
                    raise
                absent[peer.name] = str(error)
                peer.begin_stop()
        for name, reason in absent.items():
            _say(f"left out: {name}: {reason}")
        results.absent = absent
        yield [peer for peer in lineup if peer.name not in absent]


def _round(peers: Sequence[Peer], plan: Plan, results: Results) -> None:
    """Everything once; each time another peer begins, so that none is always measured after the same neighbour."""
    for turn, (model, connections) in enumerate((model, c) for model in NAMES for c in CONNECTIONS):
        first = (turn + results.num_rounds) % len(peers)
        found = {}
        for peer in [*peers[first:], *peers[:first]]:
            # the limit knows no connections, only one process or all of them
            again = isinstance(peer, RawLimit) and connections > CONNECTIONS[1]
            earlier = results.samples.get((peer.name, model, CONNECTIONS[1]), [])
            found[peer.name] = earlier[-1] if again else peer.measure(model, connections, plan.seconds)
        for peer in peers:
            results.samples.setdefault((peer.name, model, connections), []).append(found[peer.name])


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
