"""The benchmark's own parts; the whole of it is `python -m loadtests.bench`."""

from __future__ import annotations

import asyncio
import http.server
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from loadtests.bench import client, load, results
from loadtests.bench.cases import CASES, Case, Wire
from loadtests.bench.lineup import PEERS, contestants
from loadtests.bench.peers import NotStarted, Sample, Server
from loadtests.bench.report import write_report
from loadtests.bench.requests import FRAME_SUFFIX, Request, ask
from loadtests.bench.results import Trial

SECONDS = 0.05


class Slow(http.server.BaseHTTPRequestHandler):
    """Doubles a number after a while; refuses 13."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in two packets would wait for an acknowledgement

    def do_POST(self) -> None:
        number = int(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(SECONDS)
        answer = str(2 * number).encode()
        self.send_response(418 if number == 13 else 200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def request(directory: Path, number: int, *, quick: bool = False) -> Request:
    body_file = directory / "body"
    body_file.write_text(str(number))
    read = lambda body, _: np.array([[float(body)]])  # noqa: E731
    return Request("/double", {"Content-Type": "text/plain"}, body_file, np.array([[42.0]]), read, 32 if quick else 0)


def test_the_client_counts_every_answer_that_it_asked_for(port: int) -> None:
    message = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n21"
    found = asyncio.run(client.run(f"http://127.0.0.1:{port}", 3, 2.5 * SECONDS, message))

    assert found["answers"] == 9  # three on each connection, the last of them after time was up
    assert found["errors"] == 0
    assert found["seconds"] >= 3 * SECONDS
    assert SECONDS <= found["p50_s"] <= found["p99_s"]


@pytest.mark.parametrize("quick", [True, False])
def test_a_burst_has_plausible_figures(port: int, tmp_path: Path, quick: bool) -> None:
    burst = load.send(port, request(tmp_path, 21, quick=quick), 2, 1)

    assert 10 <= burst.answers <= 2 * (1 / SECONDS + 1)
    assert SECONDS <= burst.p50_s <= burst.p99_s < 1


@pytest.mark.parametrize("quick", [True, False])
def test_a_refused_request_ends_the_measurement(port: int, tmp_path: Path, quick: bool) -> None:
    with pytest.raises(RuntimeError, match="at 1 connections failed"):
        load.send(port, request(tmp_path, 13, quick=quick), 1, 1)


def test_an_answer_with_other_numbers_is_noticed(port: int, tmp_path: Path) -> None:
    ask(port, request(tmp_path, 21))

    with pytest.raises(ValueError, match="expected"):
        ask(port, request(tmp_path, 22))


def call(directory: Path, message: bytes) -> Request:
    directory.mkdir(exist_ok=True)
    body_file = directory / "message"
    body_file.write_bytes(message)
    body_file.with_suffix(FRAME_SUFFIX).write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    return Request("/s/Double", {}, body_file, np.array([42.0]), lambda body, _: np.array([float(body)]), 32, True)


@pytest.fixture(scope="module")
def grpc_port() -> Iterator[int]:
    """Doubles a number too; aborts on 13."""

    def double(message: bytes, context: grpc.ServicerContext) -> bytes:
        if message == b"13":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "13")
        return str(2 * int(message)).encode()

    handler = grpc.method_handlers_generic_handler("s", {"Double": grpc.unary_unary_rpc_method_handler(double)})
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()


@pytest.mark.parametrize("tool", ["h2load", "own client"])
def test_a_failed_call_does_not_count(
    grpc_port: int, tmp_path: Path, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if tool == "own client":
        monkeypatch.setenv("PATH", "")
    elif not shutil.which("h2load"):
        pytest.skip("h2load is not installed")
    good, bad = call(tmp_path, b"21"), call(tmp_path / "bad", b"13")
    assert load.generator_name(good, 2) == tool

    burst = load.send(grpc_port, good, 2, 1, answer_bytes=ask(grpc_port, good))

    assert burst.answers > 10
    assert 0 < burst.p50_s <= burst.p99_s < 1
    with pytest.raises(RuntimeError, match="failed"):
        load.send(grpc_port, bad, 1, 1, answer_bytes=2)


def sample(rate: float, p50_s: float = 0.001) -> Sample:
    return Sample(rate, p50_s, 2 * p50_s, 0.1, 0.0, 0.5, 2**20)


def trial(case: str, connections: int, **rates: list[float]) -> Trial:
    samples = {PEERS[key.replace("_", "-")].name: [sample(rate) for rate in found] for key, found in rates.items()}
    return Trial(case, connections, "bench", 2, "wrk", 0.5, samples=samples)


def row(text: str, start: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {start} "))
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_the_page_states_ratios_within_rounds() -> None:
    found = trial("mlp-oip", 8, penstock=[200.0, 20.0], triton=[100.0, 20.0])

    text = write_report({("mlp-oip", 8): found})

    assert row(text, "mlp-oip: Penstock / Triton")[1:] == [">= 1.5", "1.50 at 8", "so far"]  # of 2 and 1; not 1, 32


@pytest.mark.parametrize(("rate", "met"), [(299.0, "no"), (301.0, "yes")])
def test_an_expectation_is_met_at_every_number_of_connections_or_not(rate: float, met: str) -> None:
    trials = [trial("mlp-json", c, penstock_torchserve=[r], torchserve=[100.0]) for c, r in ((8, 400.0), (32, rate))]

    text = write_report({("mlp-json", each.connections): each for each in trials})

    assert row(text, "mlp-json: Penstock before TorchServe / TorchServe")[3] == met


def test_added_latency_is_a_difference_within_rounds() -> None:
    found = trial("mlp-json", 1)
    found.samples["TorchServe"] = [sample(1, 0.001), sample(1, 0.010)]
    found.samples["Penstock before TorchServe"] = [sample(1, 0.0014), sample(1, 0.0106)]

    text = write_report({("mlp-json", 1): found})

    assert row(text, "mlp-json: p50 in ms that Penstock")[1:] == ["<= 0.5", "0.50 at 1", "yes"]


def test_a_peer_that_could_not_take_part_is_named_with_the_reason() -> None:
    found = trial("mlp-json", 8, penstock=[1.0])
    found.absent["TorchServe"] = "no java is on the PATH"

    text = write_report({("mlp-json", 8): found})

    assert "- Not measured at c=8: TorchServe, because no java is on the PATH" in text
    assert row(text, "mlp-json: Penstock / Triton")[2:] == ["-", "not measured"]


def test_what_is_kept_is_replaced_one_number_of_connections_at_a_time(tmp_path: Path) -> None:
    results.save(tmp_path, [trial("jpeg", 1, floor=[1.0]), trial("jpeg", 8, floor=[2.0])])
    newer = trial("jpeg", 8, floor=[3.0])

    results.save(tmp_path, [newer])
    kept = results.load(tmp_path)

    assert kept["jpeg", 1].samples["floor"] == [sample(1.0)]
    assert kept["jpeg", 8] == newer


@pytest.mark.parametrize("wire", ["json", "oip", "binary"])
def test_the_floor_answers_what_torch_computed(tmp_path: Path, wire: Wire) -> None:
    """So that every peer that is held against it does the same work."""
    model = "mean" if wire == "binary" else "mlp"
    done = subprocess.run([sys.executable, "-m", "loadtests.bench.models", str(tmp_path), model], check=False)
    assert done.returncode == 0
    case = Case("case", "", model, wire, quick_up_to=32)
    (floor,) = (peer.make(peer.name, tmp_path, case) for peer in PEERS.values() if peer.key == "floor-2")
    assert isinstance(floor, Server)

    floor.start()
    try:
        floor.wait_ready(30)
        measured = floor.measure(2, 1)
    finally:
        floor.begin_stop()
        floor.stop()

    assert measured.per_second > 10
    assert measured.memory_bytes > 2**20


def test_a_foreign_peer_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_BENCH_TRITON_PYTHON", str(tmp_path / "python"))

    with pytest.raises(NotStarted, match="make bench-peers"):
        PEERS["triton"].make("Triton", tmp_path, CASES["mlp-oip"])


def test_every_case_has_a_penstock_and_somebody_beside_it() -> None:
    for case in CASES.values():
        keys = [peer.key for peer in contestants(case, [])]

        assert keys[0] == "penstock"
        assert len(keys) > 3
