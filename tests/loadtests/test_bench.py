"""The benchmark's own parts; the whole of it is `python -m loadtests.bench --quick`."""

from __future__ import annotations

import asyncio
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtests.bench import client, load
from loadtests.bench.lineup import NAIVE, PENSTOCK, TORCHSERVE
from loadtests.bench.peers import RawLimit, Sample
from loadtests.bench.report import CONNECTIONS, Results, write_report
from loadtests.bench.requests import NAMES, Request, ask

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
    return Request("/double", {"Content-Type": "text/plain"}, body_file, np.array([[42.0]]), read, quick)


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
    with pytest.raises(RuntimeError, match="failed at 1 connections"):
        load.send(port, request(tmp_path, 13, quick=quick), 1, 1)


def test_an_answer_with_other_numbers_is_noticed(port: int, tmp_path: Path) -> None:
    ask(port, request(tmp_path, 21))

    with pytest.raises(ValueError, match="expected"):
        ask(port, request(tmp_path, 22))


def results(*, with_torchserve: bool = True) -> Results:
    rates = {PENSTOCK: [200.0, 20.0], NAIVE: [100.0, 10.0], RawLimit.name: [400.0, 50.0]}
    if with_torchserve:
        rates[TORCHSERVE] = [50.0, 10.0]
    every = Results("bench", 2, 2, 0.5, num_rounds=2)
    for name, both in rates.items():
        for model in NAMES:
            for connections in CONNECTIONS:
                every.samples[name, model, connections] = [Sample(rate, 0.001, 0.002, 0.1, 0.0) for rate in both]
    return every


def test_the_report_states_ratios_within_rounds() -> None:
    text = write_report(results())

    (row,) = (line for line in text.splitlines() if line.startswith(f"| {PENSTOCK} / {TORCHSERVE} "))
    assert row.split("|")[2].strip() == "3.00"  # of 4 and 2
    (row,) = (line for line in text.splitlines() if line.startswith(f"| {PENSTOCK} / {RawLimit.name} "))
    assert row.split("|")[2].strip() == "0.45"


def test_a_peer_that_could_not_take_part_is_named_with_the_reason() -> None:
    found = results(with_torchserve=False)
    found.absent = {TORCHSERVE: "no java is on the PATH"}

    text = write_report(found)

    assert f"- Not measured: {TORCHSERVE}, because no java is on the PATH" in text
    assert f"{PENSTOCK} / {TORCHSERVE}" not in text
