"""TorchServe's inference API: `POST /predictions/{model}[/{version}]`, so that its clients keep working.

Facts: protocol contract, section 3.2.
"""

from __future__ import annotations

from email.message import Message

import orjson

from formats.envelope import Outcome, Prediction
from formats.errors import InvalidBody, NotFound, PenstockError
from gateway.rest.exchange import Reply, Request, Response, request_id
from gateway.rest.sagemaker import mode_in
from gateway.router import Router
from gateway.status import RETRY_AFTER_S, http_status
from gateway.timing import Timing

__all__ = ["error_response", "predictions", "undeclared"]

_UNDECLARED = frozenset({"", "application/octet-stream", "application/x-www-form-urlencoded"})
"""TorchServe gives handlers no content type and its documentation's curl lines send these for any file."""


def predictions(request: Request, router: Router, timeout_s: float, reply: Reply) -> None:
    """`POST /predictions/{model}[/{version}]`."""
    parts = request.path.split("/")
    name, version = parts[2], parts[3] if len(parts) > 3 else ""
    deployment = router.deployment(name, version)
    request.endpoint = deployment.manifest.name
    # TorchServe has no word for a model's mode, so that SageMaker's is taken
    deployment = router.in_mode(deployment, mode_in(request.header(b"x-amzn-sagemaker-custom-attributes")))
    body, content_type = request.body, request.header(b"content-type")
    if content_type.startswith("multipart/"):
        body, content_type = _only_part(body, content_type)
    identifier = request_id(request)
    prediction = Prediction(
        model=deployment.manifest.name,
        version=deployment.manifest.version,
        body=body,
        content_type=undeclared(content_type, deployment.spec.content_types),
        accept=request.header(b"accept"),
        mode=deployment.mode,
        deadline=request.received + timeout_s,
        request_id=identifier,
        traceparent=request.header(b"traceparent"),
    )
    always = [(b"x-request-id", identifier.encode()), (b"cache-control", b"no-cache, no-store, private")]

    def deliver(outcome: Outcome, timing: Timing | None) -> None:
        if outcome.ok:
            headers = [(b"content-type", outcome.content_type.encode()), *always]
            reply(Response(200, headers, outcome.body), timing)
        else:
            reply(error_response(outcome.error()), timing)

    deployment.submit(prediction, deliver)


def undeclared(content_type: str, known: list[str]) -> str:
    """The model's first content type when the client declared none that means anything."""
    return known[0] if content_type.partition(";")[0].strip().lower() in _UNDECLARED else content_type


def error_response(error: PenstockError) -> Response:
    """TorchServe's error object."""
    status = http_status(error)
    kind = {404: "ModelNotFoundException", 503: "ServiceUnavailableException"}.get(
        status, "BadRequestException" if status < 500 else "InternalServerException"
    )
    if isinstance(error, NotFound) and "version" in str(error):
        kind = "ModelVersionNotFoundException"
    headers = [(b"content-type", b"application/json")]
    if status == 503:
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
    return Response(status, headers, orjson.dumps({"code": status, "type": kind, "message": str(error)}))


def _only_part(body: bytes, content_type: str) -> tuple[bytes, str]:
    """The single part of a form (`curl -F data=@file`): its bytes and its own content type (RFC 7578).

    By hand, because the standard library's mail parser is not made for arbitrary bytes.
    """
    declared = Message()
    declared["content-type"] = content_type
    boundary = declared.get_boundary()
    if not boundary:
        raise InvalidBody("multipart body without a boundary in its content type")
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1"))
    if len(pieces) != 3 or not pieces[2].startswith(b"--"):
        raise InvalidBody(f"multipart body has {max(len(pieces) - 2, 0)} complete parts; expected one")
    head, separator, payload = pieces[1].partition(b"\r\n\r\n")
    if not separator:
        raise InvalidBody("multipart body: its part has no end of headers")
    part_type = ""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-type":
            part_type = value.strip().decode("latin-1")
    return payload, part_type
