"""TorchServe's gRPC inference API: Ping and Predictions (protocol contract, section 3.4)."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import orjson

from formats.envelope import Prediction
from formats.errors import InvalidBody, PenstockError
from formats.protos import torchserve_pb2 as pb
from gateway.grpc.service import Context, Predictor, unary
from gateway.readiness import Readiness
from gateway.rest.torchserve import undeclared

__all__ = ["SERVICE", "handlers"]

SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"


def handlers(predictor: Predictor, readiness: Readiness) -> dict[str, Any]:
    """The service's methods by name."""

    async def ping(_: pb.Empty, __: Context) -> pb.TorchServeHealthResponse:
        status = "Healthy" if readiness.ready else "Unhealthy"
        return pb.TorchServeHealthResponse(health=orjson.dumps({"status": status}).decode())

    async def predictions(request: pb.PredictionsRequest, context: Context) -> pb.PredictionResponse:
        return await _predict(request, context, predictor)

    return {"Ping": unary(pb.Empty, ping), "Predictions": unary(pb.PredictionsRequest, predictions)}


async def _predict(request: pb.PredictionsRequest, context: Context, predictor: Predictor) -> pb.PredictionResponse:
    received = time.monotonic()
    try:
        deployment = predictor.router.deployment(request.model_name, request.model_version)
        prediction = Prediction(
            model=deployment.manifest.name,
            version=deployment.manifest.version,
            body=_body(request.input),
            content_type=undeclared(_text(request.input, "content_type"), deployment.spec.content_types),
            accept=_text(request.input, "accept"),
            mode=deployment.mode,
            deadline=predictor.deadline(received, context),
            request_id="",
        )
    except PenstockError as error:
        predictor.rejected("torchserve-grpc", error)
        raise
    outcome = await predictor.predict(deployment, prediction, "torchserve-grpc", received, context)
    return pb.PredictionResponse(prediction=outcome.body)


def _body(entries: Mapping[str, bytes]) -> bytes:
    """The request's data: TorchServe's handlers look for `data`, then `body`."""
    for name in ("data", "body"):
        if name in entries:
            return entries[name]
    raise InvalidBody(f"input must have an entry 'data' or 'body'; got: {', '.join(sorted(entries)) or 'none'}")


def _text(entries: Mapping[str, bytes], name: str) -> str:
    """An extra of ours: the protocol itself carries no media types."""
    return entries.get(name, b"").decode("latin-1")
