"""What Prometheus sees. One registry per gateway, passed down; nothing is registered on import."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

__all__ = ["Metrics", "Reading"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Reading = tuple[str, str, tuple[str, ...], tuple[str, ...], float]
"""A gauge read at scrape time: name, help, label names, label values, value."""


class Metrics:
    """Counters and histograms of one gateway process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "penstock_requests", "Predictions answered", ["protocol", "endpoint", "code"], registry=self.registry
        )
        self._seconds = Histogram(
            "penstock_request_seconds",
            "From the complete request to the answer handed to the socket",
            ["protocol", "endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._batch_size = Histogram(
            "penstock_batch_size",
            "Predictions per backend call",
            ["model", "version", "mode", "pool"],
            buckets=_SIZES,
            registry=self.registry,
        )
        self._queue_seconds = Histogram(
            "penstock_queue_seconds",
            "Wait of a batch's oldest prediction before its backend call",
            ["model", "version", "mode", "pool"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._events = Counter(
            "penstock_pool_events", "What happened in a pool's backend", ["pool", "event"], registry=self.registry
        )
        self._answered: dict[tuple[str, str, str], tuple[Callable[[], None], Callable[[float], None]]] = {}

    def answered(self, protocol: str, endpoint: str, code: str, seconds: float) -> None:
        """Count one prediction. `endpoint` must be a known name or empty, never what a client made up."""
        key = (protocol, endpoint, code)
        children = self._answered.get(key)
        if children is None:  # looking labels up costs more than counting: do it once
            children = (self._requests.labels(*key).inc, self._seconds.labels(protocol, endpoint).observe)
            self._answered[key] = children
        children[0]()
        children[1](seconds)

    def batch_observers(
        self, model: str, version: str, mode: str, pool: str
    ) -> tuple[Callable[[float], None], Callable[[float], None]]:
        """Observers of one batcher: size of a batch, seconds its oldest prediction waited."""
        labels = (model, version, mode, pool)
        return self._batch_size.labels(*labels).observe, self._queue_seconds.labels(*labels).observe

    def event(self, pool: str, event: str) -> None:
        self._events.labels(pool, event).inc()

    def add_readings(self, read: Callable[[], Iterable[Reading]]) -> None:
        """Register gauges that are read when scraped, so that keeping them costs nothing in between."""
        self.registry.register(_Readings(read))

    def exposition(self) -> bytes:
        """Prometheus text format."""
        return generate_latest(self.registry)


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
