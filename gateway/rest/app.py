"""The public HTTP application: health and metadata, and the API description.

Predictions are answered by `gateway.rest.front_door`; the routes registered for them here make the description true,
answer wrong methods, and serve them under any other ASGI server.
"""

from __future__ import annotations

import asyncio
import re
import time
from http import HTTPStatus
from typing import Any

import fastapi
import orjson
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import Response as StarletteResponse
from starlette.types import Message, Receive, Scope, Send

from formats.errors import BodyTooLarge, PenstockError
from gateway.readiness import Readiness
from gateway.rest.exchange import Head, Request, Response, gateway_timing
from gateway.rest.oip import error_response
from gateway.rest.preparation import prepared
from gateway.rest.routes import ROUTES, PredictionRoute
from gateway.router import Router
from gateway.settings import Settings
from gateway.status import STATUS
from gateway.tensor_protocol import model_metadata, server_metadata, server_version
from gateway.timing import Timing, server_timing

__all__ = ["build_app"]

_SERVER_TIMING = b"server-timing"


class _TimedApp(FastAPI):
    """Tells with every answer how long it took, whoever gave it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.monotonic()

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if not any(name == _SERVER_TIMING for name, _ in headers):
                    headers.append((_SERVER_TIMING, gateway_timing(time.monotonic() - began)))
                message["headers"] = headers
            await send(message)

        await super().__call__(scope, receive, tell)


def error_statuses(route: PredictionRoute) -> dict[int | str, dict[str, Any]]:
    """Every error status that a prediction route may answer, by asking it."""
    statuses = {route.error(kind("")).status for kind in STATUS} | {route.model_error or 500}
    return {status: {"description": HTTPStatus(status).phrase} for status in sorted(statuses)}


def build_app(settings: Settings, router: Router, readiness: Readiness) -> FastAPI:
    """The application of the public port."""
    kind = _TimedApp if settings.server_timing else FastAPI
    app = kind(title="Penstock", version=server_version(), docs_url=None, redoc_url=None)
    app.add_exception_handler(PenstockError, _penstock_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _surprise)
    _add_health(app, readiness)
    _add_metadata(app, router)
    for route in ROUTES:
        for path in route.paths:
            _add_prediction(app, route, path, settings, router)
    return app


def _add_health(app: FastAPI, readiness: Readiness) -> None:
    @app.get("/ping", summary="SageMaker and TorchServe health check", responses={503: {"description": "Not ready"}})
    async def ping() -> fastapi.Response:
        return fastapi.Response(status_code=200 if readiness.ready else 503)

    @app.get("/v2/health/live", summary="The process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready", summary="Predictions would be answered", responses={503: {"description": "Not ready"}})
    async def ready() -> fastapi.Response:
        return _json(200 if readiness.ready else 503, {"ready": readiness.ready})


def _add_metadata(app: FastAPI, router: Router) -> None:
    @app.get("/v2", summary="Server metadata")
    @app.get("/v2/", include_in_schema=False)
    async def server() -> dict[str, Any]:
        return server_metadata()

    @app.get("/v2/models", summary="Names of the models served")
    async def models() -> dict[str, list[str]]:
        return {"models": sorted(router.endpoints)}

    not_found: dict[int | str, dict[str, Any]] = {404: {"description": "Unknown model or version"}}

    @app.get("/v2/models/{model}", summary="Model metadata", responses=not_found)
    @app.get("/v2/models/{model}/versions/{version}", summary="Model metadata", responses=not_found)
    async def model_(model: str, version: str = "") -> dict[str, Any]:
        return {**model_metadata(router.deployment(model, version), router), "name": model}

    unready = {**not_found, 503: {"description": "Known, but not ready"}}

    @app.get("/v2/models/{model}/ready", summary="Model readiness", responses=unready)
    @app.get("/v2/models/{model}/versions/{version}/ready", summary="Model readiness", responses=unready)
    async def model_ready(model: str, version: str = "") -> fastapi.Response:
        is_ready = router.deployment(model, version).ready
        return _json(200 if is_ready else 503, {"name": model, "ready": is_ready})


def _add_prediction(app: FastAPI, route: PredictionRoute, path: str, settings: Settings, router: Router) -> None:
    async def predict(request: fastapi.Request) -> fastapi.Response:
        return await _bridge(request, route, settings, router)

    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in ("endpoint", "model", "version")
        if f"{{{name}}}" in path
    ]
    body = {"required": True, "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}
    for method in route.methods:
        app.add_api_route(
            path,
            predict,
            methods=[method],
            summary=route.summary,
            operation_id=f"{method.lower()}_{route.protocol}_{re.sub(r'[^a-z]+', '_', path).strip('_')}",
            response_class=fastapi.Response,
            responses=error_statuses(route),
            openapi_extra={"parameters": parameters, "requestBody": body},
        )


async def _bridge(
    request: fastapi.Request, route: PredictionRoute, settings: Settings, router: Router
) -> fastapi.Response:
    """Answer a prediction that came through ASGI, with the same code as the fast path."""
    answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > settings.max_body_bytes:
            return _starlette(route.error(BodyTooLarge(f"body exceeds {settings.max_body_bytes} bytes")))
    plain = Request(Head(request.scope["path"], dict(request.headers.raw)), bytes(body), time.monotonic())
    route = prepared(route, plain.head.headers, settings, _uncounted)

    def reply(response: Response, timing: Timing | None) -> None:
        if timing is not None and settings.server_timing:
            shown = server_timing(time.monotonic() - plain.received, timing)
            response = response._replace(headers=[*response.headers, (_SERVER_TIMING, shown)])
        if not answer.done():  # the client may have gone
            answer.set_result(response)

    try:
        route.handle(plain, router, settings.request_timeout_s, reply)
    except PenstockError as error:
        reply(route.error(error), None)
    return _starlette(await answer)


def _uncounted(_num_bytes: int) -> None:
    """Under another server, which bodies it holds is its own concern."""


def _starlette(response: Response) -> fastapi.Response:
    answer = fastapi.Response(response.body, response.status)
    answer.raw_headers.extend(response.headers)
    return answer


def _json(status: int, value: object) -> fastapi.Response:
    return fastapi.Response(orjson.dumps(value), status, media_type="application/json")


async def _penstock_error(_: fastapi.Request, error: Exception) -> StarletteResponse:
    assert isinstance(error, PenstockError)
    return _starlette(error_response(error))


async def _http_error(_: fastapi.Request, error: Exception) -> StarletteResponse:
    # the Open Inference Protocol's form for all: tritonclient cannot read FastAPI's own
    assert isinstance(error, HTTPException)
    answer = _json(error.status_code, {"error": error.detail})
    answer.headers.update(error.headers or {})
    return answer


async def _surprise(_: fastapi.Request, __: Exception) -> StarletteResponse:
    return _json(500, {"error": "internal error of the gateway; see its log"})
