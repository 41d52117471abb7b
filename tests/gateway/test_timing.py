"""Where a request's time went: what the client is told, and what the metrics keep."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import orjson
import pytest

from formats.envelope import Stages
from gateway.timing import CallTiming, Timing, server_timing
from tests.gateway.live import LiveGateway, serving
from tests.gateway.rest.wire import Wire

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


SLOW = orjson.dumps({"inputs": [{"name": "rounds", "datatype": "INT64", "shape": [1], "data": [4000]}]})


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", "/endpoints/nobody/invocations", b"x", {}, 400),
        ("POST", "/predictions/nobody", b"x", {}, 404),
        ("POST", "/v2/models/arithmetic/infer", b"no JSON", {}, 400),
        ("POST", "/v2/models/slow/infer", SLOW, {"x-request-timeout": "0.05"}, 504),
        ("POST", "/v2/models/slow/infer", SLOW, {"content-encoding": "br"}, 415),
        ("POST", "/invocations", bytes(1_048_577), {}, 413),
        ("POST", "/invocations", b"x", {"x": "y" * 20_000}, 431),
        ("GET", "/ping", b"", {}, 200),
        ("GET", "/v2", b"", {}, 200),
        ("GET", "/v2/models/arithmetic", b"", {}, 200),
        ("GET", "/v2/models/nobody", b"", {}, 404),
        ("GET", "/invocations", b"", {}, 405),
        ("GET", "/nothing", b"", {}, 404),
        ("GET", "/openapi.json", b"", {}, 200),
    ],
)
def test_every_other_answer_says_how_long_the_gateway_took(
    live: LiveGateway, method: str, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    answer = httpx.request(method, live.url + path, content=body, headers=headers, timeout=60)

    assert answer.status_code == status
    assert list(parsed(answer.headers["server-timing"])) == ["gateway"]
    assert parsed(answer.headers["server-timing"])["gateway"] < answer.elapsed.total_seconds() * 1e3


def test_a_refusal_that_waits_for_the_answers_before_it_says_how_long(live: LiveGateway) -> None:
    wire = Wire(live.http_port)
    request = b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(SLOW), SLOW)
    wire.send(request + b"garbage\r\n\r\n")

    first, refused = wire.answer(), wire.answer()
    wire.close()

    assert (first.status, refused.status) == (200, 400)
    assert 5 < parsed(refused.headers["server-timing"])["gateway"] < 60_000


def test_so_does_one_that_is_turned_away(zoo: Path) -> None:
    with serving(zoo, top='default_endpoint = "tiny"\nmax_queue = 1') as gateway, ThreadPoolExecutor(16) as clients:
        answers = list(
            clients.map(
                lambda _: httpx.post(gateway.url + "/v2/models/slow/infer", content=SLOW, timeout=60), range(16)
            )
        )

    overloaded = [answer for answer in answers if answer.status_code == 503]
    assert overloaded
    assert all(list(parsed(answer.headers["server-timing"])) == ["gateway"] for answer in overloaded)


def test_stages_and_reasons_are_counted(live: LiveGateway, png: bytes) -> None:
    httpx.post(live.url + "/invocations", content=png, headers={"content-type": "image/png"}, timeout=60)

    text = httpx.get(live.admin_url + "/metrics", timeout=60).text
    labels = r'\{mode="predict",model="tiny",pool="cpu",%s="(\w+)",version="2"\} (\S+)'
    counts = re.findall("penstock_stage_seconds_count" + labels % "stage", text)
    reasons = dict(re.findall("penstock_batches_total" + labels % "reason", text))

    assert {stage for stage, _ in counts} == set(PARTS)
    of_calls = {float(count) for stage, count in counts if stage in PARTS[2:]}
    assert len(of_calls) == 1
    assert set(reasons) == {"full", "idle", "awaited", "deadline", "retry"}
    assert sum(map(float, reasons.values())) >= of_calls.pop()


@pytest.fixture(scope="module")
def silent(zoo: Path) -> Iterator[LiveGateway]:
    with serving(zoo, top='default_endpoint = "tiny"\nserver_timing = false') as gateway:
        yield gateway


def test_who_wants_to_keep_it_secret_can(silent: LiveGateway, png: bytes) -> None:
    answer = httpx.post(silent.url + "/invocations", content=png, headers={"content-type": "image/png"}, timeout=60)

    refused = httpx.post(silent.url + "/invocations", content=b"x", headers={"x": "y" * 20_000}, timeout=60)
    pinged = httpx.get(silent.url + "/ping", timeout=60)

    assert [each.status_code for each in (answer, refused, pinged)] == [200, 431, 200]
    assert not any("server-timing" in each.headers for each in (answer, refused, pinged))
