"""Several processes' metrics and tables as one."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from gateway.aggregate import Totals, exposition, merge_rows
from gateway.metrics import Metrics

Samples = dict[tuple[str, frozenset[str]], float]


def process(answers: int = 0, *, ready: float = 1, depth: float = 0, events: Mapping[str, int] | None = None) -> str:
    """What a gateway process that has answered so many predictions exposes."""
    metrics = Metrics()
    for number in range(answers):
        metrics.answered("container", "tiny", "200", 0.003 if number % 2 else 7)
    for event, times in (events or {}).items():
        for _ in range(times):
            metrics.event("cpu", event)
    metrics.add_readings(
        lambda: [
            ("penstock_model_ready", "", ("model",), ("tiny",), ready),
            ("penstock_queue_depth", "", ("model",), ("tiny",), depth),
        ]
    )
    return metrics.exposition().decode()


def samples(totals: Totals, texts: Mapping[int, str], alive: set[int]) -> Samples:
    """By name and label values, after a way through the text format."""
    text = exposition(totals.merge(texts, alive)).decode()
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(found: Samples, name: str, *labels: str) -> float:
    return found[f"penstock_{name}", frozenset(labels)]


def answered(found: Samples) -> float:
    return of(found, "request_seconds_count", "container", "tiny", "200")


def test_counters_and_histograms_are_summed() -> None:
    texts = {1: process(5, events={"worker_died": 2}), 2: process(4, events={"worker_died": 1, "worker_hung": 3})}

    found = samples(Totals(), texts, {1, 2})

    assert answered(found) == 9
    assert of(found, "request_seconds_sum", "container", "tiny", "200") == 5 * 7 + 4 * 0.003
    assert of(found, "request_seconds_bucket", "container", "tiny", "200", "0.005") == 4
    assert of(found, "request_seconds_bucket", "container", "tiny", "200", "+Inf") == 9
    assert of(found, "pool_events_total", "cpu", "worker_died") == 3
    assert of(found, "pool_events_total", "cpu", "worker_hung") == 3


def test_gauges_add_up_and_readiness_is_that_of_the_worst() -> None:
    found = samples(Totals(), {1: process(ready=1, depth=3), 2: process(ready=0, depth=4)}, {1, 2})

    assert of(found, "model_ready", "tiny") == 0
    assert of(found, "queue_depth", "tiny") == 7


def test_the_age_of_a_counter_is_not_added_up() -> None:
    one, other = process(events={"worker_died": 1}), process(events={"worker_died": 1})

    both, first = samples(Totals(), {1: one, 2: other}, {1, 2}), samples(Totals(), {1: one}, {1})
    labels = "pool_events_created", "cpu", "worker_died"
    assert of(both, *labels) == of(first, *labels)


def test_a_sum_does_not_fall_when_a_process_dies_and_its_successor_begins_at_zero() -> None:
    totals = Totals()
    samples(totals, {1: process(5), 2: process(4)}, {1, 2})

    found = [answered(samples(totals, {1: process(6)}, {1}))]
    found.append(answered(samples(totals, {1: process(6), 3: process()}, {1, 3})))
    found.append(answered(samples(totals, {1: process(6), 3: process(1)}, {1, 3})))

    assert found == [10, 10, 11]


def test_a_silent_process_keeps_its_counts_and_loses_its_gauges() -> None:
    totals = Totals()
    samples(totals, {1: process(5, depth=2), 2: process(4, depth=9)}, {1, 2})

    found = samples(totals, {1: process(5, depth=2)}, {1, 2})

    assert answered(found) == 9
    assert of(found, "queue_depth", "tiny") == 2
    assert answered(samples(totals, {1: process(5), 2: process(8)}, {1, 2})) == 13


def test_a_process_that_dies_while_it_is_read_is_counted_once() -> None:
    totals = Totals()
    samples(totals, {1: process(5)}, {1})

    assert answered(samples(totals, {1: process(6)}, set())) == 6
    assert answered(samples(totals, {}, set())) == 6
    assert answered(samples(totals, {}, set())) == 6


def test_what_one_process_exposes_comes_out_as_it_went_in() -> None:
    text = process(5, depth=2, events={"worker_died": 2})

    assert exposition(Totals().merge({1: text}, {1})).decode() == text


def model(*, ready: bool = True, state: str = "ready", version: str = "1") -> dict[str, object]:
    return {"name": "tiny", "version": version, "ready": ready, "pools": [{"name": "cpu", "state": state}]}


def test_rows_that_agree_are_one_row() -> None:
    assert merge_rows({0: [model()], 1: [model()]}, ("name", "version"), {"ready": all}) == [model()]


def test_a_row_that_differs_tells_the_worse_and_lists_both() -> None:
    (row,) = merge_rows({0: [model()], 1: [model(ready=False, state="loading")]}, ("name", "version"), {"ready": all})

    ready, loading = [{"name": "cpu", "state": "ready"}], [{"name": "cpu", "state": "loading"}]
    assert (row["ready"], row["pools"]) == (False, loading)
    assert row["processes"] == {"0": {"ready": True, "pools": ready}, "1": {"ready": False, "pools": loading}}


def test_a_version_that_one_process_does_not_know_yet_is_not_ready() -> None:
    old, new = merge_rows({0: [model(), model(version="2")], 1: [model()]}, ("name", "version"), {"ready": all})

    assert old == model()
    assert new["ready"] is False
    assert new["processes"] == {"0": {"ready": True}, "1": None}


def test_numbers_are_summed_and_listed() -> None:
    rows = {0: [{"name": "cpu", "capacity": 2, "in_flight": 0}], 1: [{"name": "cpu", "capacity": 2, "in_flight": 0}]}

    assert merge_rows(rows, ("name",), {"capacity": sum, "in_flight": sum}) == [
        {"name": "cpu", "capacity": 4, "in_flight": 0, "processes": {"0": {"capacity": 2}, "1": {"capacity": 2}}}
    ]
