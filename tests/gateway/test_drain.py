"""SIGTERM and SIGINT: what was accepted is answered, and the process ends with status 0."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from formats.protos import torchserve_pb2 as pb
from tests.gateway.live import LiveGateway, eventually, serving

DRAIN_TIMEOUT_S = 8
TOP = f'default_endpoint = "tiny"\ndrain_timeout_s = {DRAIN_TIMEOUT_S}\ndrain_linger_s = 0.4\n'


@dataclass
class Tally:
    answered: int = 0
    refused: int = 0
    """Turned away before being accepted: the connection could not be opened."""
    lost: list[str] = field(default_factory=list)


def rest_client(gateway: LiveGateway, png: bytes, stop: threading.Event) -> Tally:
    """Keeps its connection until an answer says `Connection: close`, as a well-behaved client does."""
    tally = Tally()
    connection: HTTPConnection | None = None
    while not stop.is_set():
        if connection is None:
            connection = HTTPConnection("127.0.0.1", gateway.http_port, timeout=30)
            try:
                connection.connect()
            except ConnectionRefusedError:
                tally.refused += 1
                break
        try:
            connection.request("POST", "/invocations", png, {"Content-Type": "image/png"})
            answer = connection.getresponse()
            body = answer.read()
        except OSError as error:
            tally.lost.append(repr(error))
            break
        if answer.status == 200 and body.startswith(b"["):
            tally.answered += 1
        else:
            tally.lost.append(f"{answer.status} {body[:80]!r}")
        if answer.will_close:
            connection.close()
            connection = None
    if connection is not None:
        connection.close()
    return tally


def grpc_client(gateway: LiveGateway, png: bytes, stop: threading.Event) -> Tally:
    """UNAVAILABLE means that the call was not accepted: another gateway would be asked."""
    tally = Tally()
    request = pb.PredictionsRequest(model_name="tiny", input={"data": png})
    with grpc.insecure_channel(gateway.grpc_target) as channel:
        predict = channel.unary_unary(
            "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
            request_serializer=pb.PredictionsRequest.SerializeToString,
            response_deserializer=pb.PredictionResponse.FromString,
        )
        while not stop.is_set():
            try:
                predict(request, timeout=30)
            except grpc.RpcError as error:
                if error.code() != grpc.StatusCode.UNAVAILABLE:
                    tally.lost.append(repr(error))
                tally.refused += 1
                break
            tally.answered += 1
    return tally


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_accepted_request_is_lost_when_the_gateway_ends_under_load(
    zoo: Path, png: bytes, number: signal.Signals
) -> None:
    stop = threading.Event()
    kinds: Sequence[Callable[[LiveGateway, bytes, threading.Event], Tally]] = [rest_client] * 6 + [grpc_client] * 3
    with serving(zoo, top=TOP) as gateway, ThreadPoolExecutor(len(kinds)) as clients:
        children = psutil.Process(gateway.process.pid).children(recursive=True)
        running = [clients.submit(kind, gateway, png, stop) for kind in kinds]
        time.sleep(0.7)
        began = time.monotonic()
        gateway.signal(number)
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


def test_a_long_request_is_awaited_while_new_connections_are_refused(zoo: Path) -> None:
    tensor = {"name": "rounds", "datatype": "INT64", "shape": [1], "data": [6000]}
    body = json.dumps({"inputs": [tensor]}).encode()
    with serving(zoo, top=TOP) as gateway, ThreadPoolExecutor(1) as clients:
        url = f"{gateway.url}/v2/models/slow/infer"
        long = clients.submit(httpx.post, url, content=body, timeout=60)
        eventually(lambda: gateway.admin("/pools")[0]["in_flight"] == 1)
        gateway.signal(signal.SIGTERM)
        eventually(lambda: not can_connect(gateway))
        waiting = not long.done()
        answer = long.result(60)

        assert waiting
        assert (answer.status_code, answer.json()["outputs"][0]["data"]) == (200, [6000.0])
        assert answer.headers["connection"] == "close"
        assert gateway.wait() == 0


def test_the_drain_ends_at_its_limit(zoo: Path) -> None:
    tensor = {"name": "rounds", "datatype": "INT64", "shape": [1], "data": [10_000_000]}
    body = json.dumps({"inputs": [tensor]}).encode()
    top = TOP.replace(f"drain_timeout_s = {DRAIN_TIMEOUT_S}", "drain_timeout_s = 1")
    with serving(zoo, top=top) as gateway, ThreadPoolExecutor(1) as clients:
        endless = clients.submit(httpx.post, f"{gateway.url}/v2/models/slow/infer", content=body, timeout=60)
        eventually(lambda: gateway.admin("/pools")[0]["in_flight"] == 1)
        children = psutil.Process(gateway.process.pid).children(recursive=True)
        began = time.monotonic()
        gateway.signal(signal.SIGTERM)

        assert gateway.wait() == 0
        assert time.monotonic() - began < 1 + 3
        with pytest.raises(httpx.HTTPError):
            endless.result(60)
        assert "drain limit of 1 s reached with 1 in flight" in gateway.log
        assert psutil.wait_procs(children, timeout=1)[1] == []


def test_health_says_not_ready_as_soon_as_the_drain_begins(zoo: Path) -> None:
    with serving(zoo, top=TOP.replace("0.4", "1.5")) as gateway, httpx.Client(base_url=gateway.url) as client:
        assert client.get("/ping").status_code == 200
        gateway.signal(signal.SIGTERM)
        eventually(lambda: "draining" in gateway.log)

        assert client.get("/ping").status_code == 503
        assert gateway.wait() == 0


def can_connect(gateway: LiveGateway) -> bool:
    connection = HTTPConnection("127.0.0.1", gateway.http_port, timeout=5)
    try:
        connection.connect()
    except ConnectionRefusedError:
        return False
    connection.close()
    return True
