"""A request and its answer between the HTTP parser and the protocols: nothing of any web framework."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.timing import Timing

if TYPE_CHECKING:
    from gateway.rest.routes import PredictionRoute

__all__ = ["Head", "Reply", "Request", "Response", "encode_response", "gateway_timing", "request_id"]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_PREFIX = secrets.token_hex(8)
_COUNTER = itertools.count(1)
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b" % (status, status.phrase.encode()) for status in HTTPStatus}


class Response(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


Reply = Callable[[Response, Timing | None], None]


class Head:
    """What stands before a body: request line and headers. One serves all requests that repeat it."""

    __slots__ = ("asked", "headers", "keep_alive", "path", "route", "size")

    def __init__(
        self,
        path: str,
        headers: Mapping[bytes, bytes],
        route: PredictionRoute | None = None,
        size: int = 0,
        *,
        keep_alive: bool = True,
    ) -> None:
        self.path = path
        """Percent-decoded, without the query."""
        self.headers = headers
        """Names in lower case; of a repeated header, the last."""
        self.route = route
        self.size = size
        """Bytes of the body, by its Content-Length."""
        self.keep_alive = keep_alive
        self.asked: Any = None
        """What the route's protocol has read in it, kept for the requests that repeat it."""


class Request:
    """One complete request."""

    endpoint = ""
    """Set by the protocol once it is known to exist: what the metrics may name."""

    def __init__(self, head: Head, body: bytes = b"", received: float = 0.0) -> None:
        self.head = head
        self.body = body
        self.received = received
        """Monotonic second at which its last byte came."""

    @property
    def path(self) -> str:
        return self.head.path

    def header(self, name: bytes) -> str:
        """The value of a header, or the empty string; bytes beyond ASCII are kept as Latin-1."""
        value = self.head.headers.get(name)
        return "" if value is None else value.decode("latin-1")


def request_id(request: Request) -> str:
    """The client's own `x-request-id` where it is harmless, else a new one, unique across processes."""
    own = request.head.headers.get(b"x-request-id")
    if own is not None and _REQUEST_ID.fullmatch(own):
        return own.decode()
    return f"{_PREFIX}-{next(_COUNTER):08x}"


def gateway_timing(seconds: float) -> bytes:
    """Value of `Server-Timing` for an answer that no backend took part in."""
    return b"gateway;dur=%.3f" % (seconds * 1e3)


def encode_response(response: Response, *, close: bool, server_timing: bytes = b"") -> bytes:
    """The bytes on the wire (HTTP/1.1)."""
    status, headers, body = response
    lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status, *map(b": ".join, headers)]
    lines.append(b"content-length: %d" % len(body))
    if server_timing:
        lines.append(b"server-timing: %b" % server_timing)
    if close:
        lines.append(b"connection: close")
    lines += (b"", body)
    return b"\r\n".join(lines)
