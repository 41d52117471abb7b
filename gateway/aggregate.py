"""One view of several gateway processes: their metrics as one exposition, their tables as one table."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

__all__ = ["Totals", "exposition", "merge_rows"]

_GROWING = ("counter", "histogram")
_WORST = ("_ready", "_healthy", "_created")
"""Gauges of which the smallest is told: all must be well, and the oldest process has counted longest."""

Rows = list[dict[str, Any]]
_Key = tuple[str, tuple[tuple[str, str], ...]]


class Totals:
    """Adds up what processes expose, so that no sum ever falls because one of them died.

    A falling counter reads as a restart of everything, and rates leap. So what a process has counted stays in the sums
    when it is gone, as far as it had been read; so does that of one that did not answer this time.
    """

    def __init__(self) -> None:
        self._last: dict[int, list[Metric]] = {}
        self._gone: list[Metric] = []

    def merge(self, texts: Mapping[int, str], alive: Collection[int]) -> list[Metric]:
        """Sums over processes: counters and histograms of all there have been, gauges of those that answered now.

        Args:
            texts: Prometheus text formats by pid-like number, never used twice, of the processes that answered.
            alive: numbers of all that run, whether they answered or not.
        """
        self._last.update((life, list(text_string_to_metric_families(text))) for life, text in texts.items())
        ended = [self._last.pop(life) for life in self._last.keys() - alive - texts.keys()]
        self._gone = _merge([self._gone, *(_growing(families) for families in ended)])
        answered = [families if life in texts else _growing(families) for life, families in self._last.items()]
        return _merge([self._gone, *answered])


def exposition(families: Iterable[Metric]) -> bytes:
    """Prometheus text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(families))
    return generate_latest(registry)


def merge_rows(
    tables: Mapping[int, Rows], key: tuple[str, ...], combine: Mapping[str, Callable[[list[Any]], Any]]
) -> Rows:
    """One table of several processes' tables of the same things.

    A field in `combine` is computed of all values. Any other is that of the processes when they agree, and otherwise
    that of the first whose row is not ready. What differs or was combined is listed under `processes` by process; one
    that has no such row is listed as null, and the row counts as not ready.

    Args:
        tables: rows by process.
        key: fields that tell what a row is about.
        combine: of field values, in the order of the processes, the one to tell.
    """
    found: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    for process, rows in tables.items():
        for row in rows:
            found.setdefault(tuple(row[name] for name in key), {})[process] = row
    return [_merge_row(rows, list(tables), combine) for rows in found.values()]


def _merge_row(
    rows: Mapping[int, dict[str, Any]], processes: list[int], combine: Mapping[str, Callable[[list[Any]], Any]]
) -> dict[str, Any]:
    first = next((row for row in rows.values() if not row.get("ready", True)), next(iter(rows.values())))
    merged = dict(first)
    for name in merged.keys() & combine.keys():
        merged[name] = combine[name]([row[name] for row in rows.values() if name in row])
    absent = [process for process in processes if process not in rows]
    if absent and "ready" in merged:
        merged["ready"] = False
    told = [name for name in first if any(row.get(name) != merged[name] for row in rows.values())]
    if told or absent:
        merged["processes"] = {
            str(process): {name: rows[process].get(name) for name in told} if process in rows else None
            for process in processes
        }
    return merged


def _growing(families: Iterable[Metric]) -> list[Metric]:
    return [family for family in families if family.type in _GROWING]


def _merge(expositions: Iterable[Iterable[Metric]]) -> list[Metric]:
    merged: dict[str, Metric] = {}
    values: dict[str, dict[_Key, float]] = {}
    for families in expositions:
        for family in families:
            merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            worst = family.type == "gauge" and family.name.endswith(_WORST)
            of_family = values.setdefault(family.name, {})
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                known = of_family.get(key)
                if known is None:
                    of_family[key] = sample.value
                else:
                    of_family[key] = min(known, sample.value) if worst else known + sample.value
    for name, metric in merged.items():
        metric.samples = [Sample(sample, dict(labels), value) for (sample, labels), value in values[name].items()]
    return list(merged.values())


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families
