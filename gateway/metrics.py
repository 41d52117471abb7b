"""What Prometheus sees. One registry per gateway, passed down; nothing is registered on import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from math import inf
from typing import get_args

import numpy as np
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from formats.envelope import Stages
from gateway.batcher import Reason
from gateway.timing import CallTiming, Timing

__all__ = ["BatchObserver", "Metrics", "Reading"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_STAGE_SECONDS = (0.00001, 0.00002, 0.00005, 0.0001, 0.0002, *_SECONDS)
_MAX_UNSORTED = 500
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Reading = tuple[str, str, tuple[str, ...], tuple[str, ...], float]
"""A gauge read at scrape time: name, help, label names, label values, value."""


class _Distribution:
    """A histogram's numbers for one set of labels. The event loop is alone with it, so it needs no lock."""

    __slots__ = ("_bounds", "counts", "sum", "unsorted")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.unsorted: list[float] = []
        """Values that wait for `sort`: by hundreds, each takes a fraction of what it would take at once. Whoever
        appends sees to it that they do not become many more than that."""

    def sort(self) -> None:
        """Count what was put aside. A duration that clocks made negative is 0."""
        if not self.unsorted:
            return
        values = np.maximum(self.unsorted, 0.0)
        self.unsorted.clear()
        places = np.searchsorted(self._bounds, values)
        for place, count in enumerate(np.bincount(places)):
            self.counts[place] += int(count)
        self.sum += float(values.sum())

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by upper bound, as the text format wants them."""
        bounds = [str(floatToGoString(b)) for b in (*self._bounds, inf)]  # type: ignore[no-untyped-call]
        return list(zip(bounds, accumulate(self.counts), strict=True))


class _Distributions(Collector):
    """A family of histograms: prometheus_client's own takes a lock per bucket, which counts on the hot path."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        self._name, self._text, self._labels, self._bounds = name, text, labels, bounds
        self._cells: dict[tuple[str, ...], _Distribution] = {}

    def labels(self, *values: str) -> _Distribution:
        cell = self._cells.get(values)
        if cell is None:
            cell = self._cells[values] = _Distribution(self._bounds)
        return cell

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        for values, cell in self._cells.items():
            cell.sort()
            family.add_metric(values, cell.buckets(), cell.sum)
        yield family

    def describe(self) -> Iterator[Metric]:
        yield HistogramMetricFamily(self._name, self._text, labels=self._labels)


class _Count:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class _Counts(Collector):
    """A family of counters without locks, like `_Distributions`."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._cells: dict[tuple[str, ...], _Count] = {}

    def labels(self, *values: str) -> _Count:
        return self._cells.setdefault(values, _Count())

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, cell in self._cells.items():
            family.add_metric(values, cell.value)
        yield family

    def describe(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._text, labels=self._labels)


class Metrics:
    """Counters and histograms of one gateway process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._events = Counter(
            "penstock_pool_events", "What happened in a pool's backend", ["pool", "event"], registry=self.registry
        )
        self._seconds = _Distributions(
            "penstock_request_seconds",
            "From the complete request to the answer handed to the socket",
            ("protocol", "endpoint", "code"),
            _SECONDS,
        )
        of_batcher = ("model", "version", "mode", "pool")
        self.batch_size = _Distributions("penstock_batch_size", "Predictions per backend call", of_batcher, _SIZES)
        self.batches = _Counts(
            "penstock_batches", "Backend calls by why they held no more predictions", (*of_batcher, "reason")
        )
        self.queue_seconds = _Distributions(
            "penstock_queue_seconds", "Wait of a batch's oldest prediction before its call", of_batcher, _SECONDS
        )
        self.stage_seconds = _Distributions(
            "penstock_stage_seconds",
            "As in Server-Timing. Of each prediction: gateway, queue. Of each backend call: batch, of that pre, graph "
            "and post in the handler, hop for the rest",
            (*of_batcher, "stage"),
            _STAGE_SECONDS,
        )
        families: tuple[Collector, ...] = (self._seconds, self.batch_size, self.batches)
        for family in (*families, self.queue_seconds, self.stage_seconds):
            self.registry.register(family)

    def answered(self, protocol: str, endpoint: str, code: str, seconds: float, timing: Timing | None = None) -> None:
        """Count one prediction, and where its time went when it reached a backend.

        `endpoint` must be a known name or empty, never what a client made up.
        """
        cell = self._seconds.labels(protocol, endpoint, code)
        cell.unsorted.append(seconds)
        if len(cell.unsorted) > _MAX_UNSORTED:
            cell.sort()
        if timing is not None and (keeper := timing.call.keeper) is not None:
            keeper.answered(seconds, timing)

    def batch_observer(self, model: str, version: str, mode: str, pool: str) -> BatchObserver:
        """What one batcher tells of its batches."""
        return BatchObserver(self, (model, version, mode, pool))

    def event(self, pool: str, event: str) -> None:
        self._events.labels(pool, event).inc()

    def add_readings(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Register gauges that are read when scraped, so that keeping them costs nothing in between."""
        self.registry.register(_Readings(read))

    def exposition(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)


class BatchObserver:
    """See `gateway.batcher.Observer` and `gateway.timing.Keeper`: the histograms of one batcher, looked up once."""

    def __init__(self, metrics: Metrics, labels: tuple[str, ...]) -> None:
        self._size = metrics.batch_size.labels(*labels)
        self._reasons = {reason: metrics.batches.labels(*labels, reason) for reason in get_args(Reason)}
        self._oldest = metrics.queue_seconds.labels(*labels)
        stages = ("gateway", "queue", "batch", *Stages._fields, "hop")
        cells = [metrics.stage_seconds.labels(*labels, stage) for stage in stages]
        self._gateway, self._queue, self._batch, self._pre, self._graph, self._post, self._hop = cells
        self._cells = [self._size, self._oldest, *cells]

    def released(self, size: int, reason: Reason, waited_s: float) -> None:
        self._size.unsorted.append(size)
        self._reasons[reason].value += 1
        self._oldest.unsorted.append(waited_s)
        if len(self._oldest.unsorted) > _MAX_UNSORTED or len(self._queue.unsorted) > _MAX_UNSORTED:
            for cell in self._cells:
                cell.sort()

    def landed(self, call: CallTiming) -> None:
        self._batch.unsorted.append(call.landed - call.launched)
        if call.stages is None:
            return
        pre, graph, post = call.stages
        self._pre.unsorted.append(pre)
        self._graph.unsorted.append(graph)
        self._post.unsorted.append(post)
        self._hop.unsorted.append(call.hop)

    def answered(self, total_s: float, timing: Timing) -> None:
        """A prediction of one of these calls is answered."""
        queue_s, call = timing
        self._queue.unsorted.append(queue_s)
        self._gateway.unsorted.append(total_s - queue_s - (call.landed - call.launched))


class _Readings(Collector):
    def __init__(self, read: Callable[[], Iterable[Reading]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for name, text, label_names, label_values, value in self._read():
            family = families.setdefault(name, GaugeMetricFamily(name, text, labels=label_names))
            family.add_metric(label_values, value)
        yield from families.values()

    def describe(self) -> Iterator[Metric]:
        return iter(())
