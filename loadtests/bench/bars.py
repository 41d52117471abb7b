"""What is expected of Penstock beside each peer, and what was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median

from loadtests.bench.cases import MANY
from loadtests.bench.lineup import PEERS
from loadtests.bench.results import Trial, paired
from loadtests.bench.scaling import busy, limit_ratio
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
    return [
        *_tiny(trials),
        *_tiny_grpc(trials),
        *_torchserve(trials),
        *_large(trials),
        *_crowds(trials),
        *_memory(trials),
        *_scaling(trials),
    ]


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


def _p99(trials: Trials, case: str, theirs: str, ours: str = "penstock") -> Bar:
    """No worse than theirs where eight ask at once."""
    names = PEERS[ours].name, PEERS[theirs].name
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
    for peer in ("litserve", "bentoml", "rayserve"):
        yield _rate(trials, "mlp-json", "penstock", peer, 5.0)


def _tiny_grpc(trials: Trials) -> Iterator[Bar]:
    yield _rate(trials, "mlp-grpc", "penstock-one", "grpc", 1.2)
    yield _rate(trials, "mlp-grpc", "penstock", "grpc-2", 1.2)
    yield _p99(trials, "mlp-grpc", "grpc-2")
    yield _p99(trials, "mlp-grpc", "grpc", "penstock-one")
    yield _rate(trials, "mlp-grpc", "penstock", "triton", 1.0)
    yield _p99(trials, "mlp-grpc", "triton")
    yield _rate(trials, "mlp-grpc", "penstock", "mlserver", 5.0)


def _torchserve(trials: Trials) -> Iterator[Bar]:
    yield _rate(trials, "mlp-json", "penstock-torchserve", "torchserve", 3.0, (8, 32))
    yield _rate(trials, "mlp-json", "penstock-torchserve", "torchserve-batching", 1.0, (32,))
    # a gateway that is none of ours, and a front that only passes bytes on
    yield _rate(trials, "mlp-json", "penstock-torchserve", "proxy-torchserve", 5.0)
    yield _rate(trials, "mlp-json", "penstock-torchserve", "nginx-torchserve", 1.0, (8, 32))
    before, direct = PEERS["penstock-torchserve"].name, PEERS["torchserve"].name
    added = None
    if (trial := trials.get(("mlp-json", 1))) and all(trial.samples.get(name) for name in (before, direct)):
        pairs = zip(trial.samples[before], trial.samples[direct], strict=True)
        added = median(ours.p50_s - theirs.p50_s for ours, theirs in pairs) * 1000
    yield Bar(f"mlp-json: p50 in ms that {before} adds to {direct}", 0.5, {"1": added}, at_most=True)


def _large(trials: Trials) -> Iterator[Bar]:
    yield _rate(trials, "jpeg", "penstock", "floor-2", 0.95)
    yield _rate(trials, "tensor-binary", "penstock", "floor-2", 0.6)
    # a floor that is slower than it was found elsewhere would make the ratio look better
    floor = trials["tensor-binary", 8].samples.get(PEERS["floor-2"].name) if ("tensor-binary", 8) in trials else None
    found = median(sample.per_second for sample in floor) if floor else None
    yield Bar(f"tensor-binary: answers/s of {PEERS['floor-2'].name} itself", 4800, {"8": found})
    yield _rate(trials, "tensor-binary", "penstock", "triton", 1.5)
    yield _rate(trials, "tensor-grpc", "penstock", "triton", 1.0)
    yield _rate(trials, "tensor-json", "penstock", "triton", 1.0)


def _crowds(trials: Trials) -> Iterator[Bar]:
    name = PEERS["penstock"].name
    few = trials.get(("mlp-json", 32))
    for connections in (256, MANY):
        many = trials.get(("mlp-json", connections))
        rates = paired(many, few, name) if many and few else None
        waits = paired(many, few, name, "p99_s") if many and few else None
        at = str(connections)
        yield Bar(f"mlp-json: {name} with {at} connections / with 32", 0.9, {at: rates})
        # twice: at 32 connections a part of p99 is no queue at all, but the noise of two cores
        growth = waits / (connections / 32) if waits is not None else None
        yield Bar(f"mlp-json: growth of p99 from 32 to {at} / growth of the queue", 2.0, {at: growth}, at_most=True)
    yield _rate(trials, "mlp-json", "penstock-idle", "penstock", 0.98)


def _memory(trials: Trials) -> Iterator[Bar]:
    """Against the first round with 32 connections, before there was a crowd: a process seldom gives memory back."""
    name = PEERS["penstock"].name
    ratios: dict[str, float | None] = {}
    per_connection: dict[str, float | None] = {}
    growth: dict[str, float | None] = {}
    for connections in (256, MANY):
        at = str(connections)
        ratios[at] = per_connection[at] = growth[at] = None
        few, many = trials.get(("mlp-json", 32)), trials.get(("mlp-json", connections))
        if few and many and paired(many, few, name, "memory_bytes"):
            before, crowd = few.samples[name][0].memory_bytes, [s.memory_bytes for s in many.samples[name]]
            ratios[at] = max(crowd) / before
            per_connection[at] = (max(crowd) - before) / 1024 / (connections - 32)
            growth[at] = crowd[-1] / crowd[0]
    yield Bar(f"mlp-json: memory of {name} with a crowd / with 32, first round", 1.5, ratios, at_most=True)
    # its buffers, its request in the queue, and what the allocator keeps of the largest crowd
    yield Bar(f"mlp-json: KiB that {name} takes for a connection more", 256, per_connection, at_most=True)
    yield Bar(f"mlp-json: memory of {name} with a crowd, last round / first", 1.1, growth, at_most=True)


def _scaling(trials: Trials) -> Iterator[Bar]:
    yield _rate(trials, "mlp-json", "penstock", "penstock-one", 1.0)
    for case in ("mlp-json", "mlp-grpc"):
        at_8_and_32 = {c: trials.get((case, c)) for c in (8, 32)}
        limits = {str(c): limit_ratio(t, "penstock", "penstock-one") if t else None for c, t in at_8_and_32.items()}
        yield Bar(f"{case}: limit of two processes / of one, clients elsewhere", 1.6, limits)
        yield _rate(trials, case, "penstock-core-2", "penstock-core", 0.9, (32,))
        used = {str(c): _busy_share(t) if t else None for c, t in at_8_and_32.items()}
        yield Bar(f"{case}: busy cores / all, {PEERS['penstock'].name} and its clients", 0.9, used)


def _busy_share(trial: Trial) -> float | None:
    samples = trial.samples.get(PEERS["penstock"].name)
    return median(busy(sample) for sample in samples) / trial.cores if samples else None
