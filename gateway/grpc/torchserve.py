"""TorchServe's gRPC inference API: Ping and Predictions (protocol contract, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from formats.envelope import Outcome, Prediction
from formats.errors import InvalidBody
from formats.protos import torchserve_pb2 as pb
from gateway.grpc.service import Context, PredictionMethod, unary
from gateway.readiness import Readiness
from gateway.rest.torchserve import undeclared
from gateway.router import Deployment, Router

__all__ = ["SERVICE", "handlers", "prediction_methods"]

SERVICE = "org.pytorch.serve.grpc.inference.InferenceAPIsService"


def handlers(readiness: Readiness) -> dict[str, Any]:
    """The methods that do not predict, by name."""

    async def ping(_: pb.Empty, __: Context) -> pb.TorchServeHealthResponse:
        status = "Healthy" if readiness.ready else "Unhealthy"
        return pb.TorchServeHealthResponse(health=orjson.dumps({"status": status}).decode())

    return {"Ping": unary(pb.Empty, ping)}


def prediction_methods(router: Router) -> dict[str, PredictionMethod]:
    """The methods that predict, by name."""

    def prepare(request: pb.PredictionsRequest, received: float, limit_s: float) -> tuple[Deployment, Prediction]:
        deployment = router.deployment(request.model_name, request.model_version)
        prediction = Prediction(
            model=deployment.manifest.name,
            version=deployment.manifest.version,
            body=_body(request.input),
            content_type=undeclared(_text(request.input, "content_type"), deployment.spec.content_types),
            accept=_text(request.input, "accept"),
            mode=deployment.mode,
            deadline=received + limit_s,
        )
        return deployment, prediction

    def answer(_: pb.PredictionsRequest, __: Deployment, outcome: Outcome) -> bytes:
        return pb.PredictionResponse(prediction=outcome.body).SerializeToString()

    return {
        "Predictions": PredictionMethod(
            "torchserve-grpc", pb.PredictionsRequest, pb.PredictionsRequest.FromString, prepare, answer
        )
    }


def _body(entries: Mapping[str, bytes]) -> bytes:
    """The request's data: TorchServe's handlers look for `data`, then `body`."""
    for name in ("data", "body"):
        if name in entries:
            return entries[name]
    raise InvalidBody(f"input must have an entry 'data' or 'body'; got: {', '.join(sorted(entries)) or 'none'}")


def _text(entries: Mapping[str, bytes], name: str) -> str:
    """An extra of ours: the protocol itself carries no media types."""
    return entries.get(name, b"").decode("latin-1")
