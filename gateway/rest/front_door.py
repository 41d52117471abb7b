"""HTTP/1.1 close to the parser: predictions are answered here, every other route goes on to the ASGI application.

A subclass of uvicorn's httptools protocol, which is also the right place for what uvicorn leaves out: limits on
headers and bodies, time-outs of slow clients, and a drain that loses no accepted request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from formats.errors import BackendFailed, PenstockError
from gateway.rest.door import Door
from gateway.rest.exchange import Head, Request, Response, encode_response, gateway_timing
from gateway.rest.preparation import prepared
from gateway.rest.refusal import RefusingConnection
from gateway.rest.routes import ROUTES, PredictionRoute, resolve
from gateway.rest.upgrade import new_parser, without_upgrade
from gateway.rest.upload import MAX_CHUNKS, MAX_PIECES, Upload, merge
from gateway.timing import Timing, server_timing

__all__ = ["Door", "FrontDoor"]

_log = logging.getLogger("penstock.http")

_MAX_HEADERS = 100
_MAX_REMEMBERED = 256
_METHODS = frozenset(method.encode() for route in ROUTES for method in route.methods)
_NOT_COUNTED = 4096
"""Bytes of a body that came at once: the queues bound how many there are."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Cycle(Request):
    """One prediction on one connection. Stands where uvicorn expects its own request cycle, pipelining included."""

    size = 0
    complete = False
    """The whole request has arrived."""
    turn = False
    """Everything before it on this connection has been answered."""
    response_complete = False
    disconnected = False

    def __init__(self, protocol: FrontDoor, head: Head) -> None:
        self.protocol = protocol
        self.head = head
        self.pieces: list[bytes] = []
        """Of the body, as they arrive."""
        self.message_event = _NOBODY_WAITS

    @property
    def keep_alive(self) -> bool:
        return self.head.keep_alive

    @property
    def route(self) -> PredictionRoute:
        route = self.head.route
        assert route is not None, "only predictions become cycles of ours"
        return route

    async def run_asgi(self, _app: object) -> None:
        """Called by uvicorn when the answers before this one are out."""
        self.turn = True
        if self.complete:
            self.protocol.dispatch(self)
        elif self.head.headers.get(b"expect", b"").lower() == b"100-continue":
            self.protocol.transport.write(_CONTINUE)


class _NobodyWaits:
    def set(self) -> None:
        pass


_NOBODY_WAITS = _NobodyWaits()


class FrontDoor(RefusingConnection):
    """One connection."""

    def __init__(self, config: Config, server_state: ServerState, door: Door) -> None:
        super().__init__(config, server_state, door)
        self.url = b""
        self.headers = []
        self._speaking: RequestResponseCycle | None = None
        """The request whose answer is due, which need not be the newest."""
        self._offered = False
        """Deaf to the rest of this request, which offers to speak another protocol: it is read again without that."""
        self._upload: Upload | None = None
        """Of the request that is being read, if its body comes in several reads or in chunks."""
        self._app_bytes = 0
        """Of its body, where it is for the application."""
        self._unsent = 0
        self._opening = b""
        """What is being read, while its first request is: where a head worth remembering stands."""
        self._in_headers = False
        self._header_bytes = 0
        self._taken = 0
        """Bytes of header names and values so far, and of what separates them."""
        self._stage_began = time.monotonic()
        self._stage = "idle"

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # an answer goes out when it is written, and not at the end of the loop's turn, behind all that is kept of it
        transport.set_write_buffer_limits(high=0)
        if len(self.connections) > self._door.settings.max_connections:
            self._turn_away()

    def connection_lost(self, exc: Exception | None) -> None:
        self._door.turned_away -= self._excess
        for queued, _ in self.pipeline:
            self._drop(queued)
        if isinstance(self.cycle, _Cycle) and not self.cycle.complete:
            self._drop(self.cycle)
        if self._speaking is not None:
            self._speaking.disconnected = True
            self._speaking.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._speaking = cycle
        super()._start_asgi_task(cycle, app)

    # what the parser calls

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        door = self._door
        door.poll.heard(self)
        if self._stage == "idle":
            known = door.heads.find(data)
            if known is not None:
                head, begin = known
                cycle = _Cycle(self, head)
                if head.size > _NOT_COUNTED and not self._has_room(cycle):
                    return
                cycle.body, cycle.complete = data[begin:], True
                if self._enqueue(cycle):
                    self.dispatch(cycle)
                return
            self._opening = data
            self._stage, self._header_bytes, self._in_headers = "headers", 0, True
            self._stage_began = time.monotonic()
        elif self._stage == "body":
            self._stage_began = time.monotonic()  # headers as a whole have their time, however slowly they drip in
        if self._in_headers:
            self._header_bytes += len(data)
        self._parse(data)
        self._opening = b""
        if self._stage != "idle":
            self._check_unfinished(len(data))

    def _has_room(self, cycle: _Cycle) -> bool:
        """Count the bytes of a body that is there as a whole, or refuse its request."""
        door, size = self._door, cycle.head.size
        if door.held_bytes + size > door.max_held_bytes:
            self._refuse_prediction(cycle.route, door.full())
            return False
        door.held_bytes += size
        cycle.size = size
        return True

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._ignore_upgrade(memoryview(data)[offer.args[0] :])
        except httptools.HttpParserError:
            self._refuse_garbage()

    def _check_unfinished(self, num_bytes: int) -> None:
        """After a read that did not end its request."""
        if self._in_headers:
            self._check_headers(self._header_bytes)
            return
        if self._upload is None:
            self._upload = Upload(self._stage_began)
        self._check_headers(self._upload.read(num_bytes, self._body_bytes))

    def _ignore_upgrade(self, rest: memoryview) -> None:
        """The parser has stopped behind headers that offer another protocol: have it read them without the offer."""
        while self._offered:
            self._deaf = self._offered = False
            head = without_upgrade(self.parser.get_method(), self.url, self.parser.get_http_version(), self.headers)
            self.parser = new_parser(self)
            try:
                self.parser.feed_data(head)
                self.parser.feed_data(rest)
            except httptools.HttpParserUpgrade as offer:  # by a request in the rest: the head offers nothing any more
                rest = rest[offer.args[0] :]
            except httptools.HttpParserError:
                self._refuse_garbage()

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self._taken = 0
        self._upload = None
        self._stage, self._header_bytes, self._in_headers = "headers", 0, True

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))
        self._taken += len(name) + len(value) + 4

    def on_headers_complete(self) -> None:
        self._in_headers = False
        self._stage, self._stage_began = "body", time.monotonic()
        if not self._check_headers(0):
            return
        headers = dict(self.headers)
        hosts = 1 if len(headers) == len(self.headers) else sum(name == b"host" for name, _ in self.headers)
        if (hosts != 1 or b"host" not in headers) and (b"host" in headers or self.parser.get_http_version() != "1.0"):
            self._refuse(400, "a request needs exactly one Host header")
            return
        if b"upgrade" in headers and self.parser.should_upgrade():
            self._deaf = self._offered = True
            self._opening = b""
            return
        self.expect_100_continue = headers.get(b"expect", b"").lower() == b"100-continue"
        declared = int(headers.get(b"content-length", 0))
        route, path = self._prediction_route()
        if route is None:
            self._to_application(declared)
        else:
            self._begin(route, path, headers, declared)

    def _check_headers(self, read: int) -> bool:
        """Refuse what is too long: `read` counts whole reads, of which the parser may still hold a part back.

        What follows a chunked body, its trailers, counts as headers; `read` is then what was neither body nor chunks.
        """
        if self._deaf:
            return False
        limit = self._door.settings.max_header_bytes
        if max(len(self.url) + self._taken, read) <= limit and len(self.headers) <= _MAX_HEADERS:
            return True
        self._refuse(431, f"request line, headers and trailers exceed {limit} bytes or {_MAX_HEADERS} headers")
        return False

    def on_body(self, body: bytes) -> None:
        if self._deaf:
            return
        cycle = cast("_Cycle | RequestResponseCycle", self.cycle)
        if isinstance(cycle, RequestResponseCycle):
            self._on_application_body(body)
            return
        door, size = self._door, len(body)
        cycle.size += size
        door.held_bytes += size
        if cycle.size > door.settings.max_body_bytes:
            self._too_large(cycle.route)
        elif door.held_bytes > door.max_held_bytes:
            self._refuse_prediction(cycle.route, door.full())
        elif len(cycle.pieces) < MAX_PIECES:
            cycle.pieces.append(body)
        else:
            merge(cycle.pieces, body)

    def _on_application_body(self, body: bytes) -> None:
        self._app_bytes += len(body)
        if self._app_bytes > self._door.settings.max_body_bytes:
            self._refuse(413, f"body exceeds {self._door.settings.max_body_bytes} bytes")
        else:
            super().on_body(body)

    def on_chunk_header(self) -> None:
        if self._upload is None:
            self._upload = Upload(time.monotonic())
        self._upload.num_chunks += 1
        if self._upload.num_chunks > MAX_CHUNKS + 1:  # the last one is empty
            self._refuse(400, f"the body comes in more than {MAX_CHUNKS} chunks")

    def on_chunk_complete(self) -> None:
        self._check_headers(0)

    @property
    def _body_bytes(self) -> int:
        """Of the request that is being read, so far."""
        cycle = cast("object", self.cycle)
        return cycle.size if isinstance(cycle, _Cycle) else self._app_bytes

    def on_message_complete(self) -> None:
        self._stage, self._in_headers = "idle", False
        if self._deaf:
            return
        cycle = cast("_Cycle | RequestResponseCycle", self.cycle)
        if isinstance(cycle, RequestResponseCycle):
            cycle.more_body = False
            cycle.message_event.set()
            return
        cycle.complete = True
        cycle.body = cycle.pieces[0] if len(cycle.pieces) == 1 else b"".join(cycle.pieces)
        cycle.pieces = []
        if cycle.turn:
            self.dispatch(cycle)

    # predictions

    def dispatch(self, cycle: _Cycle) -> None:
        """Hand one complete request to its protocol; the answer comes back through `_reply`."""
        door = self._door
        cycle.received = time.monotonic()
        door.in_flight += 1
        route = cycle.route
        reply = partial(self._reply, cycle)
        try:
            route.handle(cycle, door.router, door.timeout_s, reply)
        except PenstockError as error:
            reply(route.error(error), None)
        except Exception:  # noqa: BLE001  one request's surprise must not reach its connection
            _log.exception("%s request to %s", route.protocol, cycle.endpoint or "an unknown endpoint")
            reply(route.error(BackendFailed("internal error of the gateway; see its log")), None)

    def _reply(self, cycle: _Cycle, response: Response, timing: Timing | None) -> None:
        door = self._door
        door.in_flight -= 1
        if cycle.size:
            door.held_bytes -= cycle.size
        seconds = time.monotonic() - cycle.received
        cycle.response_complete = True
        gone = cycle.disconnected or self.transport.is_closing()
        close = False
        if not gone:
            close = not cycle.head.keep_alive or (door.draining and not self._more_to_say)
            shown = b""
            if door.tells_timing:
                shown = gateway_timing(seconds) if timing is None else server_timing(seconds, timing)
            self.transport.write(encode_response(response, close=close, server_timing=shown))
            self._stage_began = time.monotonic()
            door.poll.spoke()
        code = "499" if cycle.disconnected else str(response.status)
        # behind the answer, for which the client need not wait
        door.metrics.answered(cycle.route.protocol, cycle.endpoint, code, seconds, timing)
        if close:
            self.transport.close()
        elif not gone and (self.pipeline or self._last_words is not None or self.flow.read_paused):
            self._advance()

    @property
    def _more_to_say(self) -> bool:
        return bool(self.pipeline) or self._last_words is not None

    def _advance(self) -> None:
        """An answer is out: on to what was pipelined behind it, and read on once none of that is left."""
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._last_words is not None:
            self._say_last(*self._last_words)
        if not self.pipeline and not self.flow.write_paused:
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        """The client does not take its answers: take no more of its requests."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.pipeline:
            self.flow.resume_reading()

    def _prediction_route(self) -> tuple[PredictionRoute | None, str]:
        method = self.parser.get_method()
        if method not in _METHODS:
            return None, ""
        url = self.url
        route, path = resolve(url) if len(url) <= _MAX_REMEMBERED else resolve.__wrapped__(url)
        if route is not None and method.decode() not in route.methods:
            return None, ""
        return route, path

    def _begin(self, route: PredictionRoute, path: str, headers: dict[bytes, bytes], declared: int) -> None:
        if declared > self._door.settings.max_body_bytes:
            self._too_large(route)
            return
        if b"content-encoding" in headers or b"x-request-timeout" in headers or b"request-timeout" in headers:
            route = prepared(route, headers, self._door.settings, self._door.hold)
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        head = Head(path, headers, route, declared, keep_alive=keep_alive)
        if self._opening:
            self._door.heads.remember(self._opening, head)
            self._opening = b""
        if self._enqueue(_Cycle(self, head)) and self.expect_100_continue:
            self.transport.write(_CONTINUE)

    def _enqueue(self, cycle: _Cycle) -> bool:
        """Put a request in line for its answer; true when its turn has come already."""
        previous, self.cycle = self.cycle, cycle  # type: ignore[assignment]
        if previous is None or previous.response_complete:
            cycle.turn = True
            return True
        self.flow.pause_reading()
        self.pipeline.appendleft((cycle, self.app))  # type: ignore[arg-type]
        return False

    # everything else

    def _to_application(self, declared: int) -> None:
        """Let uvicorn build its own request of what was parsed."""
        if declared > self._door.settings.max_body_bytes:
            self._refuse(413, f"body exceeds {self._door.settings.max_body_bytes} bytes")
            return
        if self.parser.should_upgrade():
            self._refuse(400, "CONNECT is not offered: this is no proxy")
            return
        self._app_bytes = 0
        self._opening = b""  # a prediction behind this request does not begin there
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        try:
            super().on_headers_complete()
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            self._refuse(400, "the request target is not a valid URL")
            return
        if self._door.draining:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        """Instead of uvicorn's timer per request: `enforce` looks at every connection now and then."""
        self._stage_began = time.monotonic()
        if self.transport.is_closing():
            return
        if self._door.draining and not self._more_to_say:
            self.transport.close()
        else:
            self._advance()

    # time

    def enforce(self, now: float) -> None:
        """Close a connection that has been silent for longer than its stage allows."""
        settings = self._door.settings
        unsent = self.transport.get_write_buffer_size()
        if unsent != self._unsent:  # the client reads, however slowly
            self._unsent, self._stage_began = unsent, now
        silent = now - self._stage_began
        if self.flow.write_paused and silent > settings.body_timeout_s:
            self.transport.abort()
        upload = self._upload
        if self.flow.read_paused:  # it is we who do not read
            if upload is not None:
                upload.began = now
            return
        cycle: Any = self.cycle
        busy = cycle is not None and not cycle.response_complete
        if self._stage == "headers" and silent > settings.header_timeout_s:
            self._refuse(408, f"headers did not arrive within {settings.header_timeout_s:g} s")
        elif self._stage == "body" and silent > settings.body_timeout_s:
            self._refuse(408, f"no more of the body arrived within {settings.body_timeout_s:g} s")
        elif self._stage == "body" and upload is not None and now - upload.began > settings.upload_timeout_s:
            self._refuse(408, f"the body did not arrive within {settings.upload_timeout_s:g} s")
        elif self._stage == "idle" and not busy and silent > settings.idle_timeout_s:
            self.transport.close()

    @property
    def quiet(self) -> bool:
        """Nothing is being read or answered."""
        cycle: Any = self.cycle
        return self._stage == "idle" and (cycle is None or cycle.response_complete)
