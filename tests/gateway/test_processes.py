"""`processes = 2`: one port, several gateways; what one does alone, and what all do together."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from formats.protos import torchserve_pb2 as pb
from tests.bundles import publish_tiny
from tests.gateway.live import LiveGateway, eventually, serving
from tests.gateway.test_drain import DRAIN_TIMEOUT_S, TOP, grpc_client, rest_client
from tests.gateway.test_server import serve_and_fail

POOL = '[pools.cpu]\ndevice = "cpu"\nworkers = 1\n'
TWO = f"processes = 2\n{TOP}"
SLOW = {"name": "rounds", "datatype": "INT64", "shape": [1], "data": [6000]}


@pytest.fixture(scope="module")
def run_dir() -> Iterator[Path]:
    """Short: the sockets in it have a limit."""
    path = Path(tempfile.mkdtemp(prefix="penstock-test-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def two(zoo: Path, run_dir: Path) -> Iterator[LiveGateway]:
    with serving(zoo, POOL, top=f'{TWO}run_dir = "{run_dir}"\n') as gateway:
        yield gateway


def table(gateway: LiveGateway) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = gateway.admin("/processes")
    return rows


def all_ready(gateway: LiveGateway) -> bool:
    return all(row["ready"] and row["listens"] for row in table(gateway))


def pids(gateway: LiveGateway) -> list[int]:
    return [row["pid"] for row in table(gateway)]


def parsed(text: str) -> Counter[tuple[str, frozenset[tuple[str, str]]]]:
    return Counter(
        {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    )


def answered(text: str, protocol: str) -> float:
    return sum(
        value
        for (name, labels), value in parsed(text).items()
        if name == "penstock_request_seconds_count" and ("protocol", protocol) in labels
    )


def scrape(gateway: LiveGateway) -> str:
    return httpx.get(f"{gateway.admin_url}/metrics", timeout=30).text


def scrape_each(run_dir: Path) -> list[str]:
    """What each process says for itself, on its own socket."""
    texts = []
    for index in range(2):
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(run_dir / f"process-{index}" / "admin.sock"))) as own:
            texts.append(own.get("http://process/metrics").text)
    return texts


def post(gateway: LiveGateway, png: bytes) -> httpx.Response:
    """On a connection of its own."""
    return httpx.post(f"{gateway.url}/invocations", content=png, headers={"content-type": "image/png"}, timeout=30)


def test_both_answer_over_http_and_the_metrics_are_their_sum(two: LiveGateway, run_dir: Path, png: bytes) -> None:
    before, before_each = scrape(two), scrape_each(run_dir)

    assert {post(two, png).status_code for _ in range(40)} == {200}

    each = [
        answered(after, "container") - answered(first, "container")
        for after, first in zip(scrape_each(run_dir), before_each, strict=True)
    ]
    assert min(each) > 0
    assert sum(each) == answered(scrape(two), "container") - answered(before, "container") == 40


def test_both_answer_over_grpc(two: LiveGateway, run_dir: Path, png: bytes) -> None:
    before = scrape_each(run_dir)
    request = pb.PredictionsRequest(model_name="tiny", input={"data": png})

    for _ in range(30):
        with grpc.insecure_channel(two.grpc_target, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            predict = channel.unary_unary(
                "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
                request_serializer=pb.PredictionsRequest.SerializeToString,
                response_deserializer=pb.PredictionResponse.FromString,
            )
            predict(request, timeout=30)

    each = [
        answered(after, "torchserve-grpc") - answered(first, "torchserve-grpc")
        for after, first in zip(scrape_each(run_dir), before, strict=True)
    ]
    assert min(each) > 0
    assert sum(each) == 30


def test_every_sample_is_the_sum_or_the_worst_of_the_processes(two: LiveGateway, run_dir: Path) -> None:
    one, other = map(parsed, scrape_each(run_dir))
    merged = parsed(scrape(two))

    own = {key for key in merged if key[0].startswith("penstock_process_")}
    assert set(merged) - own == set(one) | set(other)
    for key in set(merged) - own:
        worst = key[0].endswith(("_ready", "_healthy", "_created"))
        known = [found[key] for found in (one, other) if key in found]
        assert merged[key] == pytest.approx(min(known) if worst else sum(known)), key
    assert merged["penstock_process_up", frozenset({("process", "0")})] == 1
    assert merged["penstock_process_up", frozenset({("process", "1")})] == 1


def test_pools_and_models_are_told_once(two: LiveGateway) -> None:
    (pool,) = two.admin("/pools")
    models = two.admin("/models")

    assert (pool["capacity"], pool["healthy"]) == (2, True)
    assert pool["processes"]["0"]["capacity"] == pool["processes"]["1"]["capacity"] == 1
    assert len(models) == len({(model["name"], model["version"]) for model in models})
    assert two.models()["tiny", "2"]["ready"]


def test_the_banner_comes_once_and_every_line_of_a_process_says_which(two: LiveGateway) -> None:
    lines = [line for line in two.log.splitlines() if re.match(r"\d{4}-", line) and " worker " not in line]

    assert two.log.count("penstock serves") == 1
    assert all(re.search(r" (process [01] penstock\.|penstock\.supervisor)", line) for line in lines), lines
    assert {match[1] for line in lines if (match := re.search(r"process (\d) penstock", line))} == {"0", "1"}


def test_a_process_that_hangs_is_told_within_seconds_and_its_counts_stay(two: LiveGateway, png: bytes) -> None:
    post(two, png)
    before = scrape(two)
    os.kill(pids(two)[0], signal.SIGSTOP)
    try:
        began = time.monotonic()
        text = scrape(two)
        took_s = time.monotonic() - began
        ready = httpx.get(f"{two.admin_url}/readyz", timeout=30).status_code
    finally:
        os.kill(psutil.Process(two.process.pid).children()[0].pid, signal.SIGCONT)

    assert took_s < 6
    assert parsed(text)["penstock_process_up", frozenset({("process", "0")})] == 0
    assert parsed(text)["penstock_process_up", frozenset({("process", "1")})] == 1
    assert answered(text, "container") == answered(before, "container")
    assert ready == 503  # it listens, so it gets its share of the connections
    eventually(lambda: httpx.get(f"{two.admin_url}/readyz", timeout=30).status_code == 200)


class Client(threading.Thread):
    """Keeps one connection; opens another when that breaks, and remembers the local port of the broken one."""

    def __init__(self, gateway: LiveGateway, png: bytes, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.gateway, self.png, self.stop = gateway, png, stop
        self.answers: Counter[int] = Counter()
        self.broken: list[int] = []
        self.answered_since_break = 0

    def run(self) -> None:
        connection, port = self.connect()
        while not self.stop.is_set():
            try:
                connection.request("POST", "/invocations", self.png, {"Content-Type": "image/png"})
                answer = connection.getresponse()
                answer.read()
            except OSError:
                connection.close()
                self.broken.append(port)
                connection, port = self.connect()
                continue
            self.answers[answer.status] += 1
            self.answered_since_break += bool(self.broken)
        connection.close()

    def connect(self) -> tuple[HTTPConnection, int]:
        connection = HTTPConnection("127.0.0.1", self.gateway.http_port, timeout=30)
        connection.connect()
        return connection, connection.sock.getsockname()[1]


def test_a_killed_process_breaks_its_own_connections_only_and_comes_back(zoo: Path, png: bytes) -> None:
    stop = threading.Event()
    with serving(zoo, POOL, top=TWO) as gateway:
        clients = [Client(gateway, png, stop) for _ in range(10)]
        for client in clients:
            client.start()
        eventually(lambda: min(client.answers[200] for client in clients) > 5)
        victim = psutil.Process(pids(gateway)[0])
        workers = victim.children()
        its_own = {
            each.raddr.port
            for each in victim.net_connections("tcp")
            if each.status == psutil.CONN_ESTABLISHED and each.laddr.port == gateway.http_port
        }
        before = answered(scrape(gateway), "container")
        victim.kill()
        eventually(lambda: {port for client in clients for port in client.broken} == its_own)
        eventually(lambda: all(client.answered_since_break > 20 for client in clients if client.broken))
        assert answered(scrape(gateway), "container") > before  # no sum falls because a process died
        eventually(lambda: all_ready(gateway))
        newcomer = table(gateway)[0]
        eventually(lambda: post(gateway, png).status_code == 200 and connections_of(newcomer["pid"], gateway) > 0)
        stop.set()
        for client in clients:
            client.join(30)

        assert {status for client in clients for status in client.answers} == {200}
        assert sorted(port for client in clients for port in client.broken) == sorted(its_own)
        assert (newcomer["restarts"], newcomer["pid"] != victim.pid) == (1, True)
        assert psutil.wait_procs(workers, timeout=5)[1] == []
        assert "gateway process 0" in gateway.log
        assert "ended with status -9" in gateway.log


def connections_of(pid: int, gateway: LiveGateway) -> int:
    """HTTP connections that a process has or just had; opens some more, for the kernel deals them by chance."""
    opened = [socket.create_connection(("127.0.0.1", gateway.http_port)) for _ in range(16)]
    time.sleep(0.05)
    found = [c for c in psutil.Process(pid).net_connections("tcp") if c.laddr.port == gateway.http_port and c.raddr]
    for each in opened:
        each.close()
    return len(found)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_accepted_request_is_lost_when_all_end_under_load(zoo: Path, png: bytes, number: signal.Signals) -> None:
    """The signal reaches the whole group, as a terminal's Ctrl-C or a service manager's stop does."""
    stop = threading.Event()
    kinds = [rest_client] * 6 + [grpc_client] * 3
    with serving(zoo, POOL, top=TWO) as gateway, ThreadPoolExecutor(len(kinds)) as clients:
        children = psutil.Process(gateway.process.pid).children(recursive=True)
        running = [clients.submit(kind, gateway, png, stop) for kind in kinds]
        time.sleep(0.7)
        began = time.monotonic()
        gateway.signal(number)
        for child in psutil.Process(gateway.process.pid).children():
            child.send_signal(number)
        status = gateway.wait()
        took_s = time.monotonic() - began
        stop.set()
        tallies = [client.result(60) for client in running]

        assert status == 0, gateway.log
        assert took_s < DRAIN_TIMEOUT_S
        assert [tally.lost for tally in tallies if tally.lost] == []
        assert min(tally.answered for tally in tallies) > 5
        assert not any(child.is_running() for child in children)
        assert "Traceback" not in gateway.log


def ask_slowly(gateway: LiveGateway) -> httpx.Response:
    body = json.dumps({"inputs": [SLOW]}).encode()
    return httpx.post(f"{gateway.url}/v2/models/slow/infer", content=body, timeout=60)


def test_a_signal_to_everybody_counts_once_and_a_second_one_to_the_supervisor_hurries(zoo: Path) -> None:
    with serving(zoo, POOL, top=TWO) as gateway, ThreadPoolExecutor(1) as clients:
        long = clients.submit(ask_slowly, gateway)
        eventually(lambda: gateway.admin("/pools")[0]["in_flight"] == 1)
        everybody = [gateway.process.pid, *pids(gateway)]
        for pid in [*everybody, *everybody[1:]]:
            os.kill(pid, signal.SIGINT)

        assert long.result(60).status_code == 200
        assert gateway.wait() == 0

    with serving(zoo, POOL, top=TWO) as gateway, ThreadPoolExecutor(1) as clients:
        body = json.dumps({"inputs": [SLOW | {"data": [10_000_000]}]}).encode()
        endless = clients.submit(httpx.post, f"{gateway.url}/v2/models/slow/infer", content=body, timeout=60)
        eventually(lambda: gateway.admin("/pools")[0]["in_flight"] == 1)
        gateway.signal(signal.SIGTERM)
        eventually(lambda: gateway.log.count("draining") == 2)
        began = time.monotonic()
        gateway.signal(signal.SIGTERM)

        assert gateway.wait() == 0
        assert time.monotonic() - began < 3
        with pytest.raises(httpx.HTTPError):
            endless.result(60)


def test_nothing_outlives_a_killed_supervisor_and_what_was_accepted_is_answered(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="penstock-test-") as temporary:
        monkeypatch.setenv("TMPDIR", temporary)
        with serving(zoo, POOL, top=TWO) as gateway, ThreadPoolExecutor(1) as clients:
            children = psutil.Process(gateway.process.pid).children(recursive=True)
            long = clients.submit(ask_slowly, gateway)
            eventually(lambda: gateway.admin("/pools")[0]["in_flight"] == 1)
            gateway.signal(signal.SIGKILL)
            gateway.wait()

            assert long.result(60).status_code == 200
            assert psutil.wait_procs(children, timeout=DRAIN_TIMEOUT_S)[1] == []
            assert gateway.log.count("the supervisor is gone: draining") == 2
            assert list(Path(temporary).iterdir()) == []


def test_an_operator_can_replace_one_process_and_lose_nothing(zoo: Path, png: bytes) -> None:
    stop = threading.Event()
    with serving(zoo, POOL, top=TWO) as gateway, ThreadPoolExecutor(6) as clients:
        old = pids(gateway)[1]
        running = [clients.submit(rest_client, gateway, png, stop) for _ in range(6)]
        time.sleep(0.3)
        os.kill(old, signal.SIGTERM)
        eventually(lambda: pids(gateway)[1] not in (old, None) and all_ready(gateway))
        stop.set()
        tallies = [client.result(60) for client in running]

    assert [tally.lost for tally in tallies if tally.lost] == []
    assert [tally.refused for tally in tallies] == [0] * 6


def test_a_new_version_is_taken_up_by_every_process(tmp_path: Path, png: bytes) -> None:
    store = tmp_path / "store"
    publish_tiny(store, num_classes=3)
    with serving(store, POOL, top=f"store_poll_s = 0.2\n{TWO}") as gateway:
        publish_tiny(store, num_classes=4)
        eventually(lambda: gateway.models().get(("tiny", "2"), {}).get("ready"))

        assert {len(post(gateway, png).json()) for _ in range(20)} == {4}


@pytest.mark.parametrize("taken", ["http_port", "grpc_port", "admin_port"])
@pytest.mark.parametrize("shareable", [False, True])
def test_a_taken_port_is_one_clear_line_and_status_1(zoo: Path, tmp_path: Path, taken: str, *, shareable: bool) -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shareable))
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        ports = {"http_port": 0, "grpc_port": 0, "admin_port": 0, taken: port}
        lines = "\n".join(f"{name} = {number}" for name, number in ports.items())
        done = serve_and_fail(zoo, tmp_path, f"processes = 2\n{lines}")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"penstock: cannot listen on 127.0.0.1:{port}")
    assert "Traceback" not in done.stderr


def test_a_second_one_on_the_same_ports_is_refused(two: LiveGateway, zoo: Path, tmp_path: Path) -> None:
    ports = f"http_port = {two.http_port}\ngrpc_port = {two.grpc_port}\nadmin_port = 0"

    for processes in (1, 2):
        done = serve_and_fail(zoo, tmp_path, f"processes = {processes}\n{ports}")
        assert (done.returncode, f"cannot listen on 127.0.0.1:{two.http_port}" in done.stderr) == (1, True)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes")
@pytest.mark.parametrize(("workers", "bound"), [(1, "handlers.host"), (0, "gateway.process")])
def test_processors_are_dealt_out_across_the_processes(zoo: Path, workers: int, bound: str) -> None:
    there = sorted(os.sched_getaffinity(0))[:2]
    pool = f'[pools.cpu]\ndevice = "cpu"\nworkers = {workers}\ncpus = {there}\n'

    with serving(zoo, pool, top=TWO) as gateway:
        family = psutil.Process(gateway.process.pid).children(recursive=True)
        found = [each.cpu_affinity() for each in family if bound in each.cmdline()]

    assert sorted(found) == [[there[0]], [there[-1]]]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ('[pools.cpu]\ndevice = "cpu"\nbackend = "none"', "backend 'none' is not installed"),
        (
            '[pools.cpu]\ndevice = "cpu"\nworkers = 1\nstartup_timeout_s = 0.01',
            "pool cpu: workers did not start within",
        ),
    ],
)
def test_what_keeps_a_process_from_starting_ends_the_whole_with_its_reason(
    zoo: Path, tmp_path: Path, config: str, text: str
) -> None:
    done = serve_and_fail(zoo, tmp_path, f"processes = 2\n{config}")

    assert done.returncode == 1
    assert re.match(rf"penstock: gateway process [01]: {text}", done.stderr.splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr
