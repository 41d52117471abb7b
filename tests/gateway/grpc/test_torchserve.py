"""TorchServe's gRPC inference API (protocol contract, section 3.4)."""

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import orjson
import pytest

from formats.protos import torchserve_pb2 as pb
from tests.bundles import tiny_answer

SERVICE = "/org.pytorch.serve.grpc.inference.InferenceAPIsService"
Predict = Callable[..., bytes]


@pytest.fixture
def predict(channel: grpc.Channel) -> Predict:
    method: Any = channel.unary_unary(
        f"{SERVICE}/Predictions",
        request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
        response_deserializer=pb.PredictionResponse.FromString,
    )

    def call(model: str = "tiny", version: str = "", raw: bytes | None = None, **entries: bytes) -> bytes:
        request = pb.PredictionsRequest(model_name=model, model_version=version, input=entries)
        answer: pb.PredictionResponse = method(raw if raw is not None else request, timeout=60)
        return answer.prediction

    return call


def refused(predict: Predict, code: grpc.StatusCode, **arguments: Any) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        predict(**arguments)
    assert caught.value.code() == code, caught.value
    return str(caught.value.details())


@pytest.mark.parametrize("entry", ["data", "body"])
def test_a_prediction_is_the_right_one(predict: Predict, png: bytes, image: np.ndarray[Any, Any], entry: str) -> None:
    np.testing.assert_allclose(orjson.loads(predict(**{entry: png})), tiny_answer(image, 4), atol=1e-5)


def test_a_version_can_be_addressed(predict: Predict, png: bytes, image: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(orjson.loads(predict(version="1", data=png)), tiny_answer(image, 3), atol=1e-5)


def test_accept_may_ride_beside_the_data(predict: Predict, png: bytes) -> None:
    assert b'"prediction"' in predict(data=png, accept=b"application/jsonlines")


def test_ping_says_healthy(channel: grpc.Channel) -> None:
    ping: Any = channel.unary_unary(f"{SERVICE}/Ping", response_deserializer=pb.TorchServeHealthResponse.FromString)

    assert orjson.loads(ping(b"", timeout=60).health) == {"status": "Healthy"}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ({"model": "nothing", "data": b"x"}, grpc.StatusCode.NOT_FOUND, "nothing"),
        ({"version": "9", "data": b"x"}, grpc.StatusCode.NOT_FOUND, "9"),
        ({}, grpc.StatusCode.INVALID_ARGUMENT, "'data' or 'body'"),
        ({"data": b""}, grpc.StatusCode.INVALID_ARGUMENT, ""),
        ({"data": b"x", "content_type": b"text/plain"}, grpc.StatusCode.INVALID_ARGUMENT, "text/plain"),
        ({"data": b"x", "accept": b"image/gif"}, grpc.StatusCode.INVALID_ARGUMENT, "image/gif"),
        ({"raw": b"\xff\xff"}, grpc.StatusCode.INVALID_ARGUMENT, "not a valid"),
    ],
    ids=["model", "version", "no-data", "empty", "content-type", "accept", "garbage"],
)
def test_a_bad_request_has_the_right_status(
    predict: Predict, arguments: dict[str, Any], code: grpc.StatusCode, text: str
) -> None:
    assert text in refused(predict, code, **arguments)
