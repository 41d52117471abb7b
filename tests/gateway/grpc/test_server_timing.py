"""Where the time went, as gRPC's clients are told: `server-timing` among the trailers, of errors too."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from formats.protos import open_inference_pb2 as oip
from formats.protos import torchserve_pb2 as torchserve
from tests.gateway.conftest import IN_PROCESS, TOP
from tests.gateway.live import LiveGateway, serving

PARTS = ["gateway", "queue", "batch", "pre", "graph", "post", "hop"]
Ask = Callable[[grpc.Channel], Any]


def ended(ask: Ask, channel: grpc.Channel) -> tuple[grpc.StatusCode, dict[str, float]]:
    """The status of a call and its times, in milliseconds by name."""
    call = ask(channel)
    trailers = dict(call.trailing_metadata())
    entries = re.findall(r"([a-z]+);dur=([0-9.]+)(?:, |$)", trailers.get("server-timing", ""))
    return call.code(), {name: float(milliseconds) for name, milliseconds in entries}


def predict(data: bytes) -> Ask:
    """TorchServe's Predictions of the image classifier."""

    def ask(channel: grpc.Channel) -> Any:
        method: Any = channel.unary_unary(
            "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions",
            request_serializer=torchserve.PredictionsRequest.SerializeToString,
        )
        return method.future(torchserve.PredictionsRequest(model_name="tiny", input={"data": data}), timeout=60)

    return ask


def infer(model: str, *inputs: dict[str, Any]) -> Ask:
    """The Open Inference Protocol's ModelInfer."""

    def ask(channel: grpc.Channel) -> Any:
        method: Any = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
        )
        return method.future(oip.ModelInferRequest(model_name=model, inputs=inputs), timeout=60)

    return ask


NUMBERS = {"datatype": "FP32", "shape": [1, 2], "contents": {"fp32_contents": [1, 2]}}
NO_TEXT = {"name": "text", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"\xff"]}}


def test_an_answer_tells_where_its_time_went(channel: grpc.Channel, png: bytes) -> None:
    for ask in (predict(png), infer("arithmetic", {"name": "a", **NUMBERS}, {"name": "b", **NUMBERS})):
        code, times = ended(ask, channel)

        assert (code, list(times)) == (grpc.StatusCode.OK, PARTS)
        assert times["batch"] == pytest.approx(sum(times[part] for part in PARTS[3:]), abs=0.005)


@pytest.mark.parametrize("ask", [predict(b"no picture"), infer("echo", NO_TEXT)], ids=["torchserve", "oip"])
def test_an_error_of_a_model_tells_where_its_time_went(channel: grpc.Channel, ask: Ask) -> None:
    code, times = ended(ask, channel)

    assert code == grpc.StatusCode.INVALID_ARGUMENT
    assert list(times)[:3] == PARTS[:3]
    assert times["batch"] > 0


def test_a_refused_call_has_no_times_to_tell(channel: grpc.Channel) -> None:
    assert ended(infer("nobody"), channel) == (grpc.StatusCode.NOT_FOUND, {})


@pytest.fixture(scope="module", params=["http2", "grpcio"])
def silent(request: pytest.FixtureRequest, zoo: Path) -> Iterator[LiveGateway]:
    top = f'{TOP}server_timing = false\ngrpc_server = "{request.param}"\n'
    with serving(zoo, IN_PROCESS, top=top) as gateway:
        yield gateway


def test_who_keeps_it_secret_tells_no_client_but_the_metrics(silent: LiveGateway, png: bytes) -> None:
    with grpc.insecure_channel(silent.grpc_target) as channel:
        answers = [ended(predict(data), channel) for data in (png, b"no picture")]

    assert answers == [(grpc.StatusCode.OK, {}), (grpc.StatusCode.INVALID_ARGUMENT, {})]
    text = httpx.get(silent.admin_url + "/metrics", timeout=60).text
    assert re.search(r'penstock_stage_seconds_count\{.*model="tiny".*stage="gateway".*\} 2', text)
