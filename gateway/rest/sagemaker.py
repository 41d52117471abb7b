"""SageMaker runtime (`/endpoints/NAME/invocations`) and the hosting-container contract (`/invocations`).

Facts: hosting contract, sections 2 and 3. The runtime hides what the container answers behind a ModelError; the
container form lets it through.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import orjson

from formats.envelope import Outcome, Prediction
from formats.errors import InvalidRequest, NotFound, NotReady, Overloaded, PenstockError, RequestError
from gateway.rest.exchange import Reply, Request, Response, request_id
from gateway.router import Endpoint, Router
from gateway.status import RETRY_AFTER_S, http_status
from gateway.timing import Timing

__all__ = ["container_error", "invocations", "mode_in", "runtime_error", "runtime_invocations"]

_ENDPOINT_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
_MODE_ATTRIBUTE = re.compile(r"(?:^|[,; ])INFERENCE_PREFERRED_MODE=([A-Za-z0-9_]+)")
_ACCOUNT = "local"
_MAX_MESSAGE = 2048


class _Asked(NamedTuple):
    """What path and headers say."""

    name: str
    """Of the endpoint; empty where the path has none."""
    target_model: str
    variant: str
    content_type: str
    accept: str
    mode: str
    parameters: Mapping[str, str]
    traceparent: str


def _asked(request: Request) -> _Asked:
    """Read once for all requests that repeat them."""
    asked: _Asked | None = request.head.asked
    if asked is None:
        attributes = request.header(b"x-amzn-sagemaker-custom-attributes")
        parts = request.path.split("/")
        asked = request.head.asked = _Asked(
            name=parts[2] if len(parts) > 2 else "",
            target_model=request.header(b"x-amzn-sagemaker-target-model"),
            variant=request.header(b"x-amzn-sagemaker-target-variant"),
            content_type=request.header(b"content-type"),
            accept=request.header(b"accept"),
            mode=mode_in(attributes),
            parameters={"custom_attributes": attributes} if attributes else {},
            traceparent=request.header(b"traceparent"),
        )
    return asked


def runtime_invocations(request: Request, router: Router, timeout_s: float, reply: Reply) -> None:
    """`POST /endpoints/{name}/invocations`, as an unmodified boto3 client sends it."""
    asked = _asked(request)
    name = asked.name
    try:
        endpoint = router.endpoint(name)
    except NotFound as error:
        if not _ENDPOINT_NAME.fullmatch(name) or len(name) > 63:
            text = f"endpoint name '{name[:63]}' must be up to 63 letters, digits and inner hyphens"
            raise InvalidRequest(text) from error
        raise NotFound(f"Endpoint {name} of account {_ACCOUNT} not found.") from error
    if asked.target_model:
        text = f"Endpoint {name} is not a multi-model endpoint and does not support target model header."
        raise InvalidRequest(text)
    _invoke(request, router, endpoint, timeout_s, reply, runtime=True)


def invocations(request: Request, router: Router, timeout_s: float, reply: Reply) -> None:
    """`POST /invocations`, as the platform calls a container."""
    endpoint = router.default_endpoint()
    _invoke(request, router, endpoint, timeout_s, reply, runtime=False)


def _invoke(
    request: Request, router: Router, endpoint: Endpoint, timeout_s: float, reply: Reply, *, runtime: bool
) -> None:
    asked = _asked(request)
    variant = endpoint.pick(asked.variant)
    request.endpoint = endpoint.name
    identifier = request_id(request)
    deployment = router.in_mode(variant.deployment, asked.mode)
    manifest = deployment.manifest
    prediction = Prediction(
        model=manifest.name,
        version=manifest.version,
        body=request.body,
        content_type=asked.content_type,
        accept=asked.accept,
        mode=deployment.mode,
        parameters=asked.parameters,
        deadline=request.received + timeout_s,
        request_id=identifier,
        traceparent=asked.traceparent,
    )
    always = [
        (b"x-amzn-requestid", identifier.encode()),
        (b"x-amzn-invoked-production-variant", variant.name.encode()),
    ]

    def deliver(outcome: Outcome, timing: Timing | None) -> None:
        if outcome.ok:
            headers = [(b"content-type", outcome.content_type.encode()), *always]
            reply(Response(200, headers, outcome.body), timing)
        elif runtime:
            reply(_model_error(outcome.error(), endpoint.name, always), timing)
        else:
            reply(container_error(outcome.error()), timing)

    deployment.submit(prediction, deliver)


def mode_in(attributes: str) -> str:
    """The mode that custom attributes ask for, `INFERENCE_PREFERRED_MODE=embedding` among others or alone."""
    found = _MODE_ATTRIBUTE.search(attributes) if attributes else None
    return found[1] if found else ""


def container_error(error: PenstockError) -> Response:
    """What a container answers: the plain status, the text as JSON."""
    status = http_status(error)
    return Response(status, [(b"content-type", b"application/json"), *_retry(status)], _json({"error": str(error)}))


def runtime_error(error: PenstockError) -> Response:
    """An error of the runtime itself, before any container saw the request (section 3.5)."""
    status = http_status(error)
    if status == 413:
        return _coded(413, "413", {"Message": str(error)})
    if isinstance(error, RequestError):
        return _coded(400, "ValidationError", {"Message": str(error)})
    return _unavailable(error) if status == 503 else _coded(500, "InternalFailure", {"Message": str(error)})


def _model_error(error: PenstockError, endpoint: str, always: list[tuple[bytes, bytes]]) -> Response:
    """What the client of the runtime sees when the container's answer was an error, or there was none."""
    status = http_status(error)
    if status == 503:
        return _unavailable(error)
    kind = "client error" if status < 500 else "server error"
    text = str(error)
    message = f'Received {kind} ({status}) from primary with message "{text}". See the logs of endpoint {endpoint}.'
    body = {
        "Message": message,
        "OriginalStatusCode": status,
        "OriginalMessage": text,
        "LogStreamArn": f"arn:aws:logs:{_ACCOUNT}:0:log-group:/aws/sagemaker/Endpoints/{endpoint}",
    }
    return _coded(424, "ModelError", body, always)


def _unavailable(error: PenstockError) -> Response:
    if isinstance(error, NotReady):
        return _coded(429, "ModelNotReadyException", {"Message": str(error)})
    text = str(error) if isinstance(error, Overloaded) else f"no healthy instance: {error}"
    return _coded(503, "ServiceUnavailable", {"Message": text})


def _coded(
    status: int, code: str, body: dict[str, object], always: list[tuple[bytes, bytes]] | None = None
) -> Response:
    cut = {key: value[:_MAX_MESSAGE] if isinstance(value, str) else value for key, value in body.items()}
    headers = [(b"content-type", b"application/json"), (b"x-amzn-errortype", code.encode()), *_retry(status)]
    return Response(status, headers + (always or []), _json(cut))


def _retry(status: int) -> list[tuple[bytes, bytes]]:
    return [(b"retry-after", b"%d" % RETRY_AFTER_S)] if status == 503 else []


def _json(value: object) -> bytes:
    return orjson.dumps(value)
