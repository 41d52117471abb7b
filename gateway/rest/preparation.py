"""What headers ask of every prediction route alike: a body to be decompressed, and an earlier deadline.

Few requests carry such headers. Theirs are handled by a copy of the route that does as they ask first, so that the
others pay for a look at their names only.
"""

from __future__ import annotations

import asyncio
import logging
import math
import zlib
from collections.abc import Callable, Mapping
from functools import partial

from formats.errors import (
    BackendFailed,
    BodyTooLarge,
    InvalidBody,
    InvalidRequest,
    PenstockError,
    UnsupportedContentType,
)
from gateway.rest.exchange import Reply, Request, Response
from gateway.rest.routes import PredictionRoute
from gateway.router import Router
from gateway.settings import Settings
from gateway.timing import Timing

__all__ = ["Hold", "inflate", "prepared"]

_log = logging.getLogger("penstock.http")

_TIMEOUTS = (b"x-request-timeout", b"request-timeout")
_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
"""By content coding, as zlib wants them; `deflate` means the zlib container (RFC 9110, section 8.4.1.2)."""
_MAX_MEMBERS = 64
"""Of one gzip body: what follows a member is copied, so that many small ones would cost a lot."""

Hold = Callable[[int], None]
"""Told of bytes that a request holds from now on (above 0), or no longer (below). Raises `Overloaded` for too many."""


def prepared(route: PredictionRoute, headers: Mapping[bytes, bytes], settings: Settings, hold: Hold) -> PredictionRoute:
    """The route for a request with these headers: itself where they ask for nothing."""
    if b"content-encoding" in headers:
        route = route._replace(handle=partial(_handle_decoded, route, settings.max_body_bytes, hold))
    if any(name in headers for name in _TIMEOUTS):
        unit_s = 1e-3 if settings.request_timeout_unit == "ms" else 1.0
        route = route._replace(handle=partial(_handle_in_time, route.handle, unit_s))
    return route


def inflate(body: bytes, coding: str, limit: int) -> bytes:
    """The body behind a content coding that is known, of which no more than `limit` bytes are ever made.

    Raises:
        BodyTooLarge: there are more.
        InvalidBody: it is damaged, cut, has something behind it, or too many parts.
    """
    pieces: list[bytes] = []
    made, rest = 0, body
    while rest or not pieces:  # a gzip body may have several members (RFC 1952, section 2.2)
        decoder = zlib.decompressobj(_WINDOW_BITS[coding])
        try:
            pieces.append(decoder.decompress(rest, limit - made + 1))
        except zlib.error as error:
            raise InvalidBody(f"the body is not the {coding} that Content-Encoding says: {error}") from error
        made += len(pieces[-1])
        if made > limit:
            raise BodyTooLarge(f"HTTP content length exceeded {limit} bytes after decompression.")
        if not decoder.eof:
            raise InvalidBody(f"the {coding} body ends before its end")
        rest = decoder.unused_data
        if rest and (coding == "deflate" or len(pieces) == _MAX_MEMBERS):
            raise InvalidBody(f"{len(rest)} bytes follow the end of the {coding} body")
    return b"".join(pieces)


def _handle_in_time(
    handle: Callable[[Request, Router, float, Reply], None],
    unit_s: float,
    request: Request,
    router: Router,
    timeout_s: float,
    reply: Reply,
) -> None:
    """With the earliest of the gateway's own deadline and those that the headers name."""
    for name in _TIMEOUTS:
        if name in request.head.headers:
            timeout_s = min(timeout_s, _seconds(name, request.header(name), unit_s))
    handle(request, router, timeout_s, reply)


def _seconds(name: bytes, text: str, unit_s: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        unit = "seconds" if unit_s == 1.0 else "milliseconds"
        raise InvalidRequest(f"header '{name.decode()}' must be a number of {unit} above 0, got '{text[:40]}'")
    return value * unit_s


def _handle_decoded(
    route: PredictionRoute, limit: int, hold: Hold, request: Request, router: Router, timeout_s: float, reply: Reply
) -> None:
    """Decompress on a thread, where zlib holds nobody up; the answer's place on its connection is kept meanwhile."""
    coding = request.header(b"content-encoding").strip().lower()
    if coding in ("", "identity"):
        route.handle(request, router, timeout_s, reply)
        return
    if coding not in _WINDOW_BITS:
        reply(_unknown_coding(route, coding), None)
        return

    def go_on(inflated: asyncio.Future[bytes]) -> None:
        if inflated.cancelled():  # the process ends
            return
        failure = inflated.exception()  # raised, its traceback and this frame would keep each other, and the body
        if failure is None:
            request.body = inflated.result()
            _handle_held(route, hold, request, router, timeout_s, reply)
        else:
            reply(_failed(route, request, failure), None)

    inflating = asyncio.get_running_loop().run_in_executor(None, inflate, request.body, coding, limit)
    inflating.add_done_callback(go_on)


def _handle_held(
    route: PredictionRoute, hold: Hold, request: Request, router: Router, timeout_s: float, reply: Reply
) -> None:
    """With its body counted until the answer."""
    answer = reply
    try:
        hold(len(request.body))
        answer = partial(_let_go, reply, hold, len(request.body))
        route.handle(request, router, timeout_s, answer)
    except Exception as error:  # noqa: BLE001  as in the front door: one request's surprise stays its own
        answer(_failed(route, request, error), None)


def _failed(route: PredictionRoute, request: Request, error: BaseException) -> Response:
    if isinstance(error, PenstockError):
        return route.error(error)
    _log.error("%s request to %s", route.protocol, request.endpoint or "an unknown endpoint", exc_info=error)
    return route.error(BackendFailed("internal error of the gateway; see its log"))


def _let_go(reply: Reply, hold: Hold, num_bytes: int, response: Response, timing: Timing | None) -> None:
    hold(-num_bytes)
    reply(response, timing)


def _unknown_coding(route: PredictionRoute, coding: str) -> Response:
    text = f"Content-Encoding '{coding[:40]}' is not supported; send gzip, deflate or identity"
    response = route.error(UnsupportedContentType(text))
    return response._replace(headers=[*response.headers, (b"accept-encoding", b"gzip, deflate")])
