"""The benchmark's own parts; the whole of it is `python -m loadtests.bench`."""

from __future__ import annotations

import asyncio
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import grpc
import numpy as np
import psutil
import pytest

from loadtests.bench import client, load, results
from loadtests.bench.answers import ask, ask_at_once
from loadtests.bench.bars import bars
from loadtests.bench.cases import CASES, Case, Wire
from loadtests.bench.lineup import PEERS, contestants
from loadtests.bench.load import Generator, Load
from loadtests.bench.peers import CORES, NotStarted, Sample, Server
from loadtests.bench.report import write_report
from loadtests.bench.requests import FRAME_SUFFIX, Request, _list_of
from loadtests.bench.results import Trial
from loadtests.bench.rounds import _leave_out_the_slow
from loadtests.bench.schedule import Plan, expected_s, numbers_of, warm_up_s, who

SECONDS = 0.05


class Slow(http.server.BaseHTTPRequestHandler):
    """Doubles a number after a while; refuses 13."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in two packets would wait for an acknowledgement
    seen: ClassVar[set[int]] = set()

    def do_POST(self) -> None:
        number = int(self.rfile.read(int(self.headers["content-length"])))
        self.seen.add(number)
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


def request(directory: Path, *numbers: int, quick: bool = False) -> Request:
    """Whoever answers as `Slow` does answers these rightly."""
    bodies = []
    for place, number in enumerate(numbers):
        bodies.append(directory / str(place))
        bodies[-1].write_text(str(number))
    expected = [np.array(2.0 * number) for number in numbers]
    return Request("/double", {"Content-Type": "text/plain"}, bodies, expected, _list_of, 32 if quick else 0)


def test_the_client_counts_every_answer_that_it_asked_for(port: int) -> None:
    message = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n21"
    found = asyncio.run(client.run(f"http://127.0.0.1:{port}", 3, 2.5 * SECONDS, [message]))

    assert found["answers"] == 9  # three on each connection, the last of them after time was up
    assert found["errors"] == 0
    assert found["seconds"] >= 3 * SECONDS
    assert SECONDS <= found["p50_s"] <= found["p99_s"]


@pytest.mark.parametrize("generator", ["auto", "own", "locust"])
def test_bodies_take_turns_in_what_is_measured(port: int, tmp_path: Path, generator: Generator) -> None:
    Slow.seen.clear()

    burst = load.send(port, request(tmp_path, 21, 22, 23, quick=True), Load(2, 1, generator))

    assert Slow.seen == {21, 22, 23}
    assert 10 <= burst.answers <= 2 * (1 / SECONDS + 1)


def test_locust_looks_into_every_answer(port: int, tmp_path: Path) -> None:
    wrong = request(tmp_path, 21)
    wrong.bodies[0].write_text("22")

    with pytest.raises(RuntimeError, match=r"failed: wrong answer: .*expected \[42"):
        load.send(port, wrong, Load(1, 1, "locust"))


@pytest.mark.parametrize("quick", [True, False])
def test_a_burst_has_plausible_figures(port: int, tmp_path: Path, quick: bool) -> None:
    burst = load.send(port, request(tmp_path, 21, quick=quick), Load(2, 1))

    assert 10 <= burst.answers <= 2 * (1 / SECONDS + 1)
    assert SECONDS <= burst.p50_s <= burst.p99_s < 1


@pytest.mark.parametrize("quick", [True, False])
def test_a_refused_request_ends_the_measurement(port: int, tmp_path: Path, quick: bool) -> None:
    with pytest.raises(RuntimeError, match="at 1 connections failed"):
        load.send(port, request(tmp_path, 13, quick=quick), Load(1, 1))


class Swapping(Slow):
    """Gives two that ask at the same time each other's answer, as a batcher with a wrong index would."""

    waiting: ClassVar[list[tuple[int, list[int], threading.Event]]] = []
    lock = threading.Lock()

    def do_POST(self) -> None:
        mine, theirs, came = int(self.rfile.read(int(self.headers["content-length"]))), list[int](), threading.Event()
        with self.lock:
            if self.waiting:
                other, to_them, tell = self.waiting.pop()
                to_them.append(mine)
                theirs.append(other)
                tell.set()
                came.set()
            else:
                self.waiting.append((mine, theirs, came))
        if not came.wait(4 * SECONDS):
            with self.lock:
                self.waiting.clear()
        answer = str(2 * (theirs or [mine])[0]).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def test_answers_that_were_mixed_up_show_where_many_ask_at_once(port: int, tmp_path: Path) -> None:
    asked = request(tmp_path, 21, 22, 23)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Swapping) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert ask(server.server_port, asked) == 2  # alone nothing is wrong
        with pytest.raises(ValueError, match=r"request \d was answered .*, the answer to request \d; expected"):
            ask_at_once(server.server_port, asked)
        server.shutdown()

    assert ask_at_once(port, asked) == 2


def test_an_answer_with_other_numbers_is_noticed(port: int, tmp_path: Path) -> None:
    asked = request(tmp_path, 21)
    ask(port, asked)
    asked.bodies[0].write_text("22")

    with pytest.raises(ValueError, match="expected"):
        ask(port, asked)


def call(directory: Path, message: bytes) -> Request:
    directory.mkdir(exist_ok=True)
    body_file = directory / "message"
    body_file.write_bytes(message)
    body_file.with_suffix(FRAME_SUFFIX).write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    return Request("/s/Double", {}, [body_file], [np.array(42.0)], _list_of, 32, True)


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

    burst = load.send(grpc_port, good, Load(2, 1), answer_bytes=ask_at_once(grpc_port, good))

    assert burst.answers > 10
    assert 0 < burst.p50_s <= burst.p99_s < 1
    with pytest.raises(RuntimeError, match="failed"):
        load.send(grpc_port, bad, Load(1, 1), answer_bytes=2)


def sample(rate: float, p50_s: float = 0.001, cpu_s_per_1000: float = 0.1, mib: int = 1) -> Sample:
    return Sample(rate, p50_s, 2 * p50_s, cpu_s_per_1000, 0.0, 0.5, mib * 2**20)


def trial(case: str, connections: int, **rates: list[float]) -> Trial:
    samples = {PEERS[key.replace("_", "-")].name: [sample(rate) for rate in found] for key, found in rates.items()}
    return Trial(case, connections, "bench", 2, "wrk", 0.5, "a run", samples=samples)


def crowds(few: list[Sample], many: list[Sample], *, same_run: bool = True) -> str:
    trials = [trial("mlp-json", 32), trial("mlp-json", 1024)]
    trials[1].run = trials[0].run if same_run else "another"
    for each, samples in zip(trials, (few, many), strict=True):
        each.samples["Penstock"] = samples
    return write_report({("mlp-json", each.connections): each for each in trials})


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


def test_a_crowd_is_compared_within_rounds() -> None:
    """The machine was ten times slower in the second round: medians of each side would say 0.5 and 1."""
    text = crowds([sample(1000.0), sample(100.0, 0.01)], [sample(900.0, 0.064), sample(90.0, 0.64)])

    assert row(text, "mlp-json: Penstock with 1024 connections")[1:] == [">= 0.9", "0.90 at 1024", "yes"]
    assert row(text, "mlp-json: growth of p99 from 32 to 1024")[1:] == ["<= 2", "2.00 at 1024", "yes"]


def test_a_crowd_of_another_run_is_not_compared() -> None:
    text = crowds([sample(1000.0)], [sample(900.0)], same_run=False)

    assert row(text, "mlp-json: Penstock with 1024 connections")[2:] == ["-", "not measured"]
    assert row(text, "mlp-json: KiB")[2:] == ["-", "not measured"]


def test_memory_of_a_crowd_is_held_against_the_time_before_it() -> None:
    few, many = [sample(1.0, mib=100), sample(1.0, mib=140)], [sample(1.0, mib=131), sample(1.0, mib=155)]

    text = crowds(few, many)

    assert row(text, "mlp-json: memory of Penstock with a crowd / with 32,")[2:] == ["1.55 at 1024", "no"]
    assert row(text, "mlp-json: KiB that Penstock takes")[2] == "56.77 at 1024"  # 55 MiB for 992 connections
    assert row(text, "mlp-json: memory of Penstock with a crowd, last round")[2:] == ["1.18 at 1024", "no"]


def test_scaling_is_what_two_processes_could_do_with_clients_elsewhere() -> None:
    """Though the clients took so much here that the second process gave nothing."""
    found = trial("mlp-json", 32)
    found.samples["Penstock, one process"] = [sample(10_000.0, cpu_s_per_1000=0.09)]
    found.samples["Penstock"] = [sample(10_000.0, cpu_s_per_1000=0.1)]

    text = write_report({("mlp-json", 32): found})

    assert row(text, "mlp-json: limit of two processes / of one,")[2:] == ["1.80 at 32", "so far"]
    table = text.partition("## One process and two")[2].partition("\n## ")[0]
    cores = f"of {CORES}"
    assert row(table, "Penstock")[1:] == ["32", "10000", "100.0", "50.0", f"1.50 {cores}", f"{min(2, CORES)}0000"]
    assert row(table, "Penstock, one process")[1:] == ["32", "10000", "90.0", "50.0", f"1.40 {cores}", "11111"]


def test_a_peer_that_would_hold_everybody_up_is_left_out_with_its_rate() -> None:
    trials = [trial("tensor-json", 8, mlserver=[4.0], triton=[100.0]), trial("tensor-json", 256)]

    _leave_out_the_slow(trials, trials[1], ["MLServer", "Triton"])

    assert trials[1].absent == {"MLServer": "at 4 answers/s one to everybody would take 64 s"}


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
        floor.verify()
        measured = floor.measure(Load(2, 1))
    finally:
        floor.begin_stop()
        floor.stop()

    assert measured.per_second > 10
    assert measured.memory_bytes > 2**20


@pytest.fixture
def floor(tmp_path: Path) -> Iterator[Server]:
    subprocess.run([sys.executable, "-m", "loadtests.bench.models", str(tmp_path), "mlp"], check=True)
    made = PEERS["floor"].make("floor", tmp_path, CASES["mlp-json"])
    assert isinstance(made, Server)
    yield made
    made.begin_stop()
    made.stop()


def is_still(server: Server) -> bool:
    assert server._process is not None
    give_up = time.monotonic() + 5  # a signal takes effect when the process is next scheduled
    while server._process.status() != psutil.STATUS_STOPPED and time.monotonic() < give_up:
        time.sleep(0.01)
    return bool(server._process.status() == psutil.STATUS_STOPPED)


def test_a_restless_peer_is_held_still_while_others_are_measured(floor: Server) -> None:
    floor.restless = True
    floor.start()
    floor.wait_ready(30)
    floor.hold()
    assert is_still(floor)

    floor.verify()

    assert floor.measure(Load(2, 1)).per_second > 10
    assert is_still(floor)
    assert floor._process is not None
    floor.begin_stop()
    assert floor._process.wait(5) is not None  # a stopped process would not hear it


@pytest.mark.skipif(CORES < 2, reason="one core leaves none for the clients")
def test_a_peer_of_one_core_leaves_the_others_to_its_clients(
    floor: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floor.cores = (0,)
    floor.start()
    floor.wait_ready(30)
    seen = tmp_path / "seen"
    (tmp_path / "wrk").write_text(f"#!/bin/sh\ntaskset -cp $$ >{seen}\nexec {shutil.which('false')}\n")
    (tmp_path / "wrk").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    with pytest.raises(RuntimeError, match="load generator failed"):
        floor.measure(Load(2, 1))

    assert floor._process is not None
    assert floor._process.cpu_affinity() == [0]
    clients = seen.read_text().rpartition(": ")[2].strip()
    assert clients == ",".join(map(str, range(1, CORES))) or clients == f"1-{CORES - 1}"


def test_a_foreign_peer_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_BENCH_TRITON_PYTHON", str(tmp_path / "python"))

    with pytest.raises(NotStarted, match="make bench-peers"):
        PEERS["triton"].make("Triton", tmp_path, CASES["mlp-oip"])


DEFAULT = Plan("bench", [], num_rounds=5, seconds=1, warm_up_s=2, limit_s=900, load_before=0.0)


def test_one_run_feeds_every_expectation() -> None:
    """No ratio has to be joined from two runs, and nobody has to know which calls belong to the page."""
    trials = {
        (case.name, c): trial(
            case.name, c, **{p.key: [1.0] for p in PEERS.values() if p.name in who(DEFAULT, lineup, c)}
        )
        for case in CASES.values()
        for lineup in [contestants(case, [])]
        for c in numbers_of(DEFAULT, case)
    }

    assert {bar.title: bar.met() for bar in bars(trials) if bar.met() in {"not measured", "so far"}} == {}


def test_the_whole_table_takes_about_forty_minutes_and_no_case_reaches_its_limit() -> None:
    """The estimate itself is held against real runs by hand; this keeps a new peer from making it an hour."""
    each_s = {case.name: expected_s(DEFAULT, case) for case in CASES.values()}

    assert sum(each_s.values()) < 42 * 60
    assert max(each_s.values()) < DEFAULT.limit_s


def test_a_jvm_warms_up_for_five_seconds_at_least() -> None:
    assert {warm_up_s(DEFAULT, peer) >= 5 for peer in PEERS.values() if "torchserve" in peer.key} == {True}


def test_numbers_of_connections_that_are_named_hold_for_everybody() -> None:
    plan = replace(DEFAULT, connections=(256,))
    lineup = contestants(CASES["mlp-json"], [])

    assert "floor" in who(plan, lineup, 256)
    assert "floor" not in who(DEFAULT, lineup, 256)
    assert numbers_of(plan, CASES["jpeg"]) == [256]
    assert numbers_of(replace(DEFAULT, connections=(8, 1024)), CASES["jpeg"]) == [8]
