"""What is expected of Penstock beside each peer, and what was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from loadtests.bench.lineup import PEERS
from loadtests.bench.results import Trial
from loadtests.figures import markdown_table

__all__ = ["Bar", "bars", "bars_table"]

Trials = Mapping[tuple[str, int], Trial]


@dataclass(frozen=True)
class Bar:
    title: str
    limit: float
    figures: Mapping[str, float | None]
    """By number of connections; None where it was not measured."""
    at_most: bool = False

    def met(self) -> str:
        found = [value for value in self.figures.values() if value is not None]
        if not found:
            return "not measured"
        passed = [value <= self.limit if self.at_most else value >= self.limit for value in found]
        complete = len(found) == len(self.figures)
        return ("yes" if complete else "so far") if all(passed) else "no"


def bars(trials: Trials) -> list[Bar]:
    return [*_tiny(trials), *_tiny_grpc(trials), *_torchserve(trials), *_large(trials), *_crowds(trials)]


def bars_table(trials: Trials) -> str:
    rows = []
    for bar in bars(trials):
        figures = ", ".join(f"{value:.2f} at {at}" for at, value in bar.figures.items() if value is not None)
        rows.append([bar.title, f"{'<=' if bar.at_most else '>='} {bar.limit:g}", figures or "-", bar.met()])
    return markdown_table(
        ["ratio of answers/s, unless it says otherwise", "expected", "found at connections", "met"], rows
    )


_USUAL = (1, 8, 32)


def _rate(
    trials: Trials, case: str, ours: str, theirs: str, limit: float, connections: tuple[int, ...] = _USUAL
) -> Bar:
    names = PEERS[ours].name, PEERS[theirs].name
    found = {str(c): trials[case, c].ratio(*names) if (case, c) in trials else None for c in connections}
    return Bar(f"{case}: {names[0]} / {names[1]}", limit, found)


def _p99(trials: Trials, case: str, theirs: str) -> Bar:
    """No worse than theirs where eight ask at once."""
    names = PEERS["penstock"].name, PEERS[theirs].name
    found = trials[case, 8].ratio(*names, figure="p99_s") if (case, 8) in trials else None
    return Bar(f"{case}: p99 of {names[0]} / {names[1]}", 1.0, {"8": found}, at_most=True)


def _tiny(trials: Trials) -> Iterator[Bar]:
    for case in ("mlp-json", "mlp-oip"):
        yield _rate(trials, case, "penstock", "floor-2", 0.4)
        yield _rate(trials, case, "penstock-one", "floor", 0.4)
        yield _rate(trials, case, "penstock", "triton", 1.5)
        yield _p99(trials, case, "triton")
        yield _rate(trials, case, "penstock", "fastapi-2", 2.0)
        yield _p99(trials, case, "fastapi-2")
        yield _rate(trials, case, "penstock", "mlserver", 5.0)
    yield _rate(trials, "mlp-json", "penstock", "litserve", 5.0)


def _tiny_grpc(trials: Trials) -> Iterator[Bar]:
    yield _rate(trials, "mlp-grpc", "penstock-one", "grpc", 1.2)
    yield _rate(trials, "mlp-grpc", "penstock", "grpc-2", 1.2)
    yield _rate(trials, "mlp-grpc", "penstock", "triton", 1.0)
    yield _p99(trials, "mlp-grpc", "triton")
    yield _rate(trials, "mlp-grpc", "penstock", "mlserver", 5.0)


def _torchserve(trials: Trials) -> Iterator[Bar]:
    yield _rate(trials, "mlp-json", "penstock-torchserve", "torchserve", 3.0, (8, 32))
    yield _rate(trials, "mlp-json", "penstock-torchserve", "torchserve-batching", 1.0, (32,))
    before, direct = PEERS["penstock-torchserve"].name, PEERS["torchserve"].name
    added = None
    if (trial := trials.get(("mlp-json", 1))) and all(trial.samples.get(name) for name in (before, direct)):
        pairs = zip(trial.samples[before], trial.samples[direct], strict=True)
        added = median(ours.p50_s - theirs.p50_s for ours, theirs in pairs) * 1000
    yield Bar(f"mlp-json: p50 in ms that {before} adds to {direct}", 0.5, {"1": added}, at_most=True)


def _large(trials: Trials) -> Iterator[Bar]:
    yield _rate(trials, "jpeg", "penstock", "floor-2", 0.95)
    yield _rate(trials, "tensor-binary", "penstock", "floor-2", 0.6)
    yield _rate(trials, "tensor-binary", "penstock", "triton", 1.5)
    yield _rate(trials, "tensor-grpc", "penstock", "triton", 1.0)
    yield _rate(trials, "tensor-json", "penstock", "triton", 1.0)


def _crowds(trials: Trials) -> Iterator[Bar]:
    """Medians: these are not measured in the same rounds."""
    name = PEERS["penstock"].name
    usual = trials.get(("mlp-json", 32))
    for connections in (256, 1024):
        crowded = trials.get(("mlp-json", connections))
        rates: float | None = None
        waits: float | None = None
        if usual and crowded and usual.samples.get(name) and crowded.samples.get(name):
            few, many = usual.samples[name], crowded.samples[name]
            rates = median(s.per_second for s in many) / median(s.per_second for s in few)
            waits = median(s.p99_s for s in many) / median(s.p99_s for s in few) / (connections / 32)
        at = str(connections)
        yield Bar(f"mlp-json: {name} with {at} connections / with 32", 0.9, {at: rates})
        # twice: at 32 connections a part of p99 is no queue at all, but the noise of two cores
        yield Bar(f"mlp-json: growth of p99 from 32 to {at} / growth of the queue", 2.0, {at: waits}, at_most=True)
    yield _rate(trials, "mlp-json", "penstock-idle", "penstock", 0.98)
    yield _rate(trials, "mlp-json", "penstock", "penstock-one", 1.0)
