"""Where a request's time went: what the client is told, and what the metrics keep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from formats.envelope import Stages
from gateway.timing import CallTiming, Timing, server_timing
from tests.gateway.live import LiveGateway, serving

PARTS = ["gateway", "queue", "batch", "pre", "graph", "post", "hop"]


def parsed(header: str) -> dict[str, float]:
    """As a browser reads it: milliseconds by name."""
    entries = [entry.strip().partition(";dur=") for entry in header.split(",")]
    return {name: float(duration) for name, _, duration in entries}


def test_the_parts_add_up_to_the_whole() -> None:
    call = CallTiming(launched=10.0, landed=10.004, stages=Stages(0.0005, 0.002, 0.0005))

    found = parsed(server_timing(0.0062, Timing(0.0012, call)).decode())

    assert found == pytest.approx(
        {"gateway": 1.0, "queue": 1.2, "batch": 4.0, "pre": 0.5, "graph": 2.0, "post": 0.5, "hop": 1.0}
    )


def test_a_backend_that_tells_no_stages_leaves_them_out() -> None:
    found = parsed(server_timing(0.005, Timing(0.001, CallTiming(1.0, 1.003, None))).decode())

    assert found == pytest.approx({"gateway": 1.0, "queue": 1.0, "batch": 3.0})


def test_clocks_that_disagree_give_no_negative_durations() -> None:
    found = parsed(server_timing(0.001, Timing(0.0, CallTiming(1.0, 1.002, Stages(0.001, 0.002, 0.001)))).decode())

    assert (found["gateway"], found["hop"]) == (0.0, 0.0)


def test_every_rest_protocol_says_where_the_time_went(live: LiveGateway, png: bytes) -> None:
    tensor = {"name": "a", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    infer = orjson.dumps({"inputs": [tensor, {**tensor, "name": "b"}]})
    with httpx.Client(base_url=live.url, timeout=60) as client:
        for path, body, kind in (
            ("/endpoints/tiny/invocations", png, "image/png"),
            ("/invocations", png, "image/png"),
            ("/predictions/tiny", png, "image/png"),
            ("/v2/models/arithmetic/infer", infer, "application/json"),
        ):
            answer = client.post(path, content=body, headers={"content-type": kind})
            found = parsed(answer.headers["server-timing"])

            assert list(found) == PARTS, path
            assert found["graph"] > 0, path
            inside = found["pre"] + found["graph"] + found["post"] + found["hop"]
            assert found["batch"] == pytest.approx(inside, abs=0.005), path
            assert found["gateway"] + found["queue"] + found["batch"] < answer.elapsed.total_seconds() * 1e3, path


def test_a_refused_request_has_no_times_to_tell(live: LiveGateway) -> None:
    answer = httpx.post(live.url + "/endpoints/nobody/invocations", content=b"x", timeout=60)

    assert "server-timing" not in answer.headers


def test_stages_and_reasons_are_counted(live: LiveGateway, png: bytes) -> None:
    httpx.post(live.url + "/invocations", content=png, headers={"content-type": "image/png"}, timeout=60)

    text = httpx.get(live.admin_url + "/metrics", timeout=60).text
    labels = r'\{mode="predict",model="tiny",pool="cpu",%s="(\w+)",version="2"\} (\S+)'
    counts = re.findall("penstock_stage_seconds_count" + labels % "stage", text)
    reasons = dict(re.findall("penstock_batches_total" + labels % "reason", text))

    assert {stage for stage, _ in counts} == set(PARTS)
    of_calls = {float(count) for stage, count in counts if stage in PARTS[2:]}
    assert len(of_calls) == 1
    assert set(reasons) == {"full", "idle", "deadline", "retry"}
    assert sum(map(float, reasons.values())) >= of_calls.pop()


@pytest.fixture(scope="module")
def silent(zoo: Path) -> Iterator[LiveGateway]:
    with serving(zoo, top='default_endpoint = "tiny"\nserver_timing = false') as gateway:
        yield gateway


def test_who_wants_to_keep_it_secret_can(silent: LiveGateway, png: bytes) -> None:
    answer = httpx.post(silent.url + "/invocations", content=png, headers={"content-type": "image/png"}, timeout=60)

    assert answer.status_code == 200
    assert "server-timing" not in answer.headers
