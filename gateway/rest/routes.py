"""The prediction routes: one table for the fast path, the ASGI fallback and the API description."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from formats.errors import PenstockError
from gateway.rest import oip, sagemaker, torchserve
from gateway.rest.exchange import Reply, Request, Response
from gateway.router import Router

__all__ = ["ROUTES", "PredictionRoute", "match", "resolve"]


class PredictionRoute(NamedTuple):
    protocol: str
    """Label in the metrics."""
    paths: tuple[str, ...]
    """As OpenAPI writes them."""
    summary: str
    handle: Callable[[Request, Router, float, Reply], None]
    """Request, router, seconds it may take, and where the one answer goes. Raises `PenstockError` before it queues."""
    error: Callable[[PenstockError], Response]
    methods: tuple[str, ...] = ("POST",)
    model_error: int | None = None
    """Status of what a model answers with an error, where it is not that of `error`."""


_RUNTIME = PredictionRoute(
    "sagemaker",
    ("/endpoints/{endpoint}/invocations",),
    "SageMaker runtime: InvokeEndpoint",
    sagemaker.runtime_invocations,
    sagemaker.runtime_error,
    model_error=424,
)
_CONTAINER = PredictionRoute(
    "container",
    ("/invocations",),
    "SageMaker hosting container: the default endpoint",
    sagemaker.invocations,
    sagemaker.container_error,
)
_TORCHSERVE = PredictionRoute(
    "torchserve",
    ("/predictions/{model}", "/predictions/{model}/{version}"),
    "TorchServe inference API",
    torchserve.predictions,
    torchserve.error_response,
    ("POST", "PUT"),  # TorchServe takes any verb, and its documentation's `curl -T` sends PUT
)
_OIP = PredictionRoute(
    "oip",
    ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"),
    "Open Inference Protocol v2, with the binary tensor extension",
    oip.infer,
    oip.error_response,
)
ROUTES = (_RUNTIME, _CONTAINER, _TORCHSERVE, _OIP)


def match(path: str) -> PredictionRoute | None:
    """The prediction route of a path (without its query), or None: by hand, since a regular expression costs more."""
    parts = path.split("/")
    match parts:
        case ["", "v2", "models", _, "infer"] | ["", "v2", "models", _, "versions", _, "infer"]:
            return _OIP
        case ["", "endpoints", _, "invocations"]:
            return _RUNTIME
        case ["", "predictions", _] | ["", "predictions", _, _]:
            return _TORCHSERVE
        case ["", "invocations"]:
            return _CONTAINER
    return None


@lru_cache(maxsize=1024)  # clients ask for the same few models for ever
def resolve(url: bytes) -> tuple[PredictionRoute | None, str]:
    """The prediction route of a request target, and its decoded path."""
    path = url.partition(b"?")[0].decode("latin-1")
    if path.startswith("http://"):  # in absolute form (RFC 9112, section 3.2.2)
        path = "/" + path[7:].partition("/")[2]
    route = match(path)
    # no name holds a slash: an encoded one must not turn into a separator behind the matching
    encoded = "%" in path and "%2f" not in path.lower()
    return route, urllib.parse.unquote(path) if encoded else path
