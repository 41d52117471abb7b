"""A request and its answer between the HTTP parser and the protocols: nothing of any web framework."""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple

from gateway.timing import Timing

__all__ = ["Reply", "Request", "Response", "encode_response", "request_id"]

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_PREFIX = secrets.token_hex(8)
_COUNTER = itertools.count(1)
_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b" % (status, status.phrase.encode()) for status in HTTPStatus}


class Response(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


Reply = Callable[[Response, Timing | None], None]


@dataclass(slots=True)
class Request:
    """One complete request."""

    path: str
    """Percent-decoded, without the query."""
    headers: Mapping[bytes, bytes]
    """Names in lower case; of a repeated header, the last."""
    body: bytes
    received: float
    """Monotonic second at which its last byte came."""
    endpoint: str = ""
    """Set by the protocol once it is known to exist: what the metrics may name."""

    def header(self, name: bytes) -> str:
        """The value of a header, or the empty string; bytes beyond ASCII are kept as Latin-1."""
        value = self.headers.get(name)
        return "" if value is None else value.decode("latin-1")


def request_id(request: Request) -> str:
    """The client's own `x-request-id` where it is harmless, else a new one, unique across processes."""
    own = request.headers.get(b"x-request-id")
    if own is not None and _REQUEST_ID.fullmatch(own):
        return own.decode()
    return f"{_PREFIX}-{next(_COUNTER):08x}"


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
