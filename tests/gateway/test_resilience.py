"""Workers that are killed while clients are served."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.gateway.live import LiveGateway, eventually, serving


@pytest.fixture(scope="module")
def gateway(zoo: Path) -> Iterator[LiveGateway]:
    """A gateway of its own: its workers are going to die."""
    with serving(zoo, top='default_endpoint = "tiny"') as gateway:
        yield gateway


def pool(gateway: LiveGateway) -> dict[str, object]:
    (found,) = gateway.admin("/pools")
    return dict(found)


def whole(gateway: LiveGateway) -> bool:
    return pool(gateway)["capacity"] == 2


def ask_for(gateway: LiveGateway, stop: threading.Event, png: bytes) -> list[int]:
    """One client: predictions one after another until told to stop; their statuses."""
    statuses = []
    with httpx.Client(base_url=gateway.url, timeout=60) as client:
        while not stop.is_set():
            statuses.append(client.post("/invocations", content=png, headers={"content-type": "image/png"}).status_code)
    return statuses


def slow_request(rounds: int) -> bytes:
    tensor = {"name": "rounds", "datatype": "INT64", "shape": [1], "data": [rounds]}
    return json.dumps({"inputs": [tensor]}).encode()


def busiest(workers: list[psutil.Process]) -> psutil.Process:
    """The worker that computes: the one whose CPU time grows most within a moment."""
    before = [sum(worker.cpu_times()[:2]) for worker in workers]
    time.sleep(0.3)
    grown = [sum(worker.cpu_times()[:2]) - was for worker, was in zip(workers, before, strict=True)]
    return workers[grown.index(max(grown))]


def test_no_request_fails_when_a_worker_is_killed_under_load(gateway: LiveGateway, png: bytes) -> None:
    """Two kills, eight clients, no failed request, and two workers again within five seconds."""
    stop = threading.Event()
    with ThreadPoolExecutor(8) as clients:
        running = [clients.submit(ask_for, gateway, stop, png) for _ in range(8)]
        for _ in range(2):
            time.sleep(0.3)
            killed = gateway.workers()[0]
            killed.send_signal(signal.SIGKILL)
            began = time.monotonic()
            eventually(lambda pid=killed.pid: whole(gateway) and pid not in [w.pid for w in gateway.workers()], 10)  # type: ignore[misc]
            healed_s = time.monotonic() - began
            assert healed_s < 5
        stop.set()
        statuses = [status for client in running for status in client.result()]

    assert len(statuses) > 100
    assert set(statuses) == {200}


def test_a_request_whose_worker_dies_twice_is_answered_with_an_error(gateway: LiveGateway, png: bytes) -> None:
    """It is not tried a third time, and small requests beside it are all answered."""
    eventually(lambda: whole(gateway))
    stop = threading.Event()
    deaths = 0
    with ThreadPoolExecutor(2) as clients:
        poison = clients.submit(
            httpx.post, f"{gateway.url}/v2/models/slow/infer", content=slow_request(400_000), timeout=90
        )
        for _ in range(2):
            time.sleep(0.2)
            busiest(gateway.workers()).kill()
            deaths += 1
            eventually(lambda: whole(gateway) or poison.done())
        neighbour = clients.submit(ask_for, gateway, stop, png)
        answer = poison.result(60)
        time.sleep(0.3)
        stop.set()
        statuses = neighbour.result(60)

    assert answer.status_code == 500
    assert answer.json() == {"error": "the backend died 2 times on this request; it will not be tried again"}
    assert set(statuses) == {200}
    eventually(lambda: whole(gateway) and pool(gateway)["in_flight"] == 0)


def test_deaths_are_counted(gateway: LiveGateway) -> None:
    metrics = httpx.get(f"{gateway.admin_url}/metrics").text

    assert 'penstock_pool_events_total{event="worker_died",pool="cpu"} 4.0' in metrics
    assert 'penstock_pool_events_total{event="worker_started",pool="cpu"} 6.0' in metrics


def test_a_hung_worker_is_replaced(zoo: Path) -> None:
    """SIGSTOP stands for a worker that computes for ever."""
    config = '[pools.cpu]\ndevice = "cpu"\nworkers = 1\nrun_timeout_s = 1\n'
    with serving(zoo, config, top='default_endpoint = "tiny"') as gateway:
        (worker,) = gateway.workers()
        worker.suspend()
        answer = httpx.post(f"{gateway.url}/v2/models/slow/infer", content=slow_request(1), timeout=60)

        assert answer.status_code == 200  # tried again on the worker that took its place
        assert worker.pid not in [w.pid for w in gateway.workers()]


def test_workers_end_when_the_gateway_is_killed(zoo: Path) -> None:
    with serving(zoo) as gateway:
        workers = gateway.workers()
        gateway.signal(signal.SIGKILL)

        assert psutil.wait_procs(workers, timeout=10)[1] == []
