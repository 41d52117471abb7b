"""What clients may not take from the front door: memory, connections and time beyond its limits."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator

import httpx
import pytest
from uvicorn.server import ServerState

from gateway.busy_poll import BusyPoll
from gateway.listening import asgi_config
from gateway.metrics import Metrics
from gateway.rest.front_door import Door, FrontDoor
from gateway.router import Router
from gateway.settings import Settings
from tests.bundles import image_png, publish_tiny
from tests.gateway.live import LiveGateway, eventually, serving
from tests.gateway.rest.wire import PING, POOL, Wire, assert_right, head, picture, post

HEADER_TIMEOUT_S = 1.0
BODY_TIMEOUT_S = 0.6
UPLOAD_TIMEOUT_S = 1.5
MAX_CONNECTIONS = 40
TOP = f"""
header_timeout_s = {HEADER_TIMEOUT_S}
body_timeout_s = {BODY_TIMEOUT_S}
upload_timeout_s = {UPLOAD_TIMEOUT_S}
max_header_bytes = 4096
max_body_bytes = 100_000
max_held_bytes = 250_000
max_connections = {MAX_CONNECTIONS}
"""
CHUNKED = head("/invocations", "Transfer-Encoding: chunked")


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """A gateway with narrow limits over the tiny classifier."""
    store = tmp_path_factory.mktemp("limits") / "store"
    publish_tiny(store)
    with serving(store, POOL, top=TOP) as gateway:
        yield gateway


def drip(wire: Wire, piece: bytes, *, seconds: float) -> bool:
    """Send a piece again and again, with pauses that are allowed; False once the other side has closed."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        try:
            wire.send(piece)
        except ConnectionError:
            return False
        time.sleep(BODY_TIMEOUT_S / 6)
    return True


# chunks and trailers


@pytest.mark.parametrize(
    "trailers",
    [
        b"".join(b"X-%d: y\r\n" % number for number in range(101)) + b"\r\n",
        b"X: " + b"a" * 4096 + b"\r\n\r\n",
        b"X: y\r\n" * 100_000,
        b"X: " + b"a" * 1_000_000,
    ],
    ids=["many", "long", "endless", "endless-line"],
)
@pytest.mark.parametrize("apart", [False, True])
def test_trailers_are_limited_as_headers_are(wire: Wire, trailers: bytes, apart: bool) -> None:
    body = image_png(picture(9))
    wire.send(CHUNKED + b"%x\r\n%b\r\n0\r\n" % (len(body), body) + (b"" if apart else trailers))
    if apart:
        time.sleep(0.1)
        wire.send(trailers)

    answer = wire.answer()

    assert answer.status == 431
    assert b"trailers" in answer.body
    assert wire.is_closed()


def test_an_endless_extension_of_a_chunk_is_refused(wire: Wire) -> None:
    wire.send(CHUNKED + b"4")
    time.sleep(0.1)
    wire.send(b";x=" + b"a" * 1_000_000)

    assert wire.answer().status == 431


def test_trailers_within_the_limits_are_ignored(wire: Wire) -> None:
    body = image_png(picture(9))
    wire.send(CHUNKED + b"%x\r\n%b\r\n0\r\n" % (len(body), body) + b"X: y\r\n" * 20 + b"\r\n" + post(3))

    assert_right(wire.answer(), 9)
    assert_right(wire.answer(), 3)


@pytest.mark.parametrize("path", ["/invocations", "/ping"])
def test_more_than_65536_chunks_are_refused(wire: Wire, path: str) -> None:
    wire.send(head(path, "Transfer-Encoding: chunked") + b"1\r\na\r\n" * 65_537 + b"0\r\n\r\n" + post(1))

    answer = wire.answer()

    assert answer.status == 405 if path == "/ping" else b"more than 65536 chunks" in answer.body
    assert wire.is_closed()


def test_as_many_chunks_as_are_allowed_are_one_body(wire: Wire) -> None:
    wire.send(CHUNKED + b"1\r\na\r\n" * 65_536 + b"0\r\n\r\n")

    answer = wire.answer()

    assert answer.status == 400
    assert b"image" in answer.body.lower()  # the model's own opinion of it


def test_a_body_for_the_application_is_limited_though_it_is_chunked(wire: Wire) -> None:
    wire.send(head("/v2/models", "Transfer-Encoding: chunked"))
    assert wire.answer().status == 405  # without a look at the body

    assert not drip(wire, b"10000\r\n" + bytes(0x10000) + b"\r\n", seconds=UPLOAD_TIMEOUT_S - 0.3)


# time


@pytest.mark.parametrize(
    ("request_", "piece"),
    [
        (head("/invocations", "Content-Length: 1000"), b"x"),
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED + b"1\r\na\r\n0\r\n", b"X: y\r\n"),
    ],
    ids=["length", "chunks", "trailers"],
)
def test_a_body_that_drips_in_steadily_is_cut(wire: Wire, request_: bytes, piece: bytes) -> None:
    wire.send(request_)

    drip(wire, piece, seconds=UPLOAD_TIMEOUT_S + 0.5)

    answer = wire.answer()
    assert answer.status == 408
    assert b"did not arrive within 1.5 s" in answer.body
    assert wire.is_closed()


def test_a_body_that_drips_in_behind_its_answer_is_cut(wire: Wire) -> None:
    wire.send(head("/v2/models", "Content-Length: 1000"))
    assert wire.answer().status == 405

    assert not drip(wire, b"x", seconds=UPLOAD_TIMEOUT_S + 3)


def test_empty_lines_between_requests_keep_no_connection_alive(wire: Wire) -> None:
    wire.send(CHUNKED + b"1\r\na\r\n0\r\n\r\n")
    assert wire.answer().status == 400

    assert not drip(wire, b"\r\n", seconds=5)


# memory


def half_sent(connect: Callable[[], Wire]) -> Wire:
    """A body of which 90,000 bytes are held, and no more come."""
    wire = connect()
    wire.send(head("/invocations", "Content-Length: 95000") + bytes(90_000))
    return wire


def test_bodies_beyond_what_may_be_held_are_turned_away(connect: Callable[[], Wire]) -> None:
    first, second, third = (half_sent(connect) for _ in range(3))

    statuses = sorted(wire.answer().status for wire in (first, second, third))

    assert statuses == [408, 408, 503]


def test_one_that_was_turned_away_is_told_to_come_again(connect: Callable[[], Wire]) -> None:
    half_sent(connect), half_sent(connect)
    time.sleep(0.1)

    wire = connect()
    wire.send(head("/invocations", "Content-Length: 95000") + bytes(90_000))
    answer = wire.answer()

    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert b"250000 bytes of request bodies are held" in answer.body


def test_every_body_that_ends_is_let_go(connect: Callable[[], Wire]) -> None:
    """Aborted, refused, answered, or pipelined behind one of these: none is counted for ever."""
    body = bytes(80_000)
    whole = head("/invocations", "Content-Length: 80000") + body
    for _ in range(8):
        aborted = half_sent(connect)
        aborted.close()
        gone = connect()
        gone.send(whole)
        gone.close()
        refused = connect()
        refused.send(CHUNKED + b"%x\r\n" % len(body) + body + b"\r\nzz\r\n")
        assert refused.answer().status in (400, 503)
        refused.close()
        pipelined = connect()
        pipelined.send(post(1) + whole + whole[:-10])
        pipelined.answer()
        pipelined.close()
        too_large = connect()
        too_large.send(CHUNKED + b"186a1\r\n" + bytes(100_001))
        assert too_large.answer().status in (413, 503)
        too_large.close()

    wires = [connect(), connect()]  # together more than the limit, if 90,000 bytes were still counted
    for wire in wires:
        wire.send(head("/invocations", "Content-Length: 85000"))
    eventually(lambda: all(_takes(wire) for wire in wires))


def _takes(wire: Wire) -> bool:
    wire.send(bytes(84_999))
    time.sleep(0.1)
    wire.send(b"x")
    return wire.answer().status == 400  # no picture


def test_what_waits_behind_an_unanswered_request_is_let_go_with_its_connection() -> None:
    async def never(_scope: object, _receive: object, _send: object) -> None:
        await asyncio.Event().wait()

    async def held() -> tuple[int, int]:
        loop = asyncio.get_running_loop()
        door = Door(Settings(), Router(), Metrics(), BusyPoll(loop, 0.0))
        connection = FrontDoor(asgi_config(never), ServerState(), door)
        ours, theirs = socket.socketpair()
        with theirs:
            await loop.connect_accepted_socket(lambda: connection, ours)
            theirs.sendall(PING + post(1) + post(1))
            while len(connection.pipeline) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            before = door.held_bytes
            connection.transport.abort()
            await asyncio.sleep(0.05)
        for task in connection.tasks:
            task.cancel()
        return before, door.held_bytes

    assert asyncio.run(asyncio.wait_for(held(), 10)) == (2 * len(image_png(picture(1))), 0)


# connections


def test_one_connection_too_many_is_told_so(door: LiveGateway, connect: Callable[[], Wire]) -> None:
    eventually(lambda: httpx.get(f"{door.url}/ping").status_code == 200)
    wires = [connect() for _ in range(MAX_CONNECTIONS)]
    for wire in wires:
        wire.send(PING)
        assert wire.answer().status == 200

    extra = connect()
    extra.send(post(1))
    answer = extra.answer()

    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert b"40 connections are open" in answer.body
    wires.pop().close()
    eventually(lambda: httpx.get(f"{door.url}/ping").status_code == 200)


def test_a_flood_of_connections_leaves_those_that_there_are_alone(
    door: LiveGateway, connect: Callable[[], Wire]
) -> None:
    wires = [connect() for _ in range(300)]
    eventually(lambda: sum(_is_served(wire) for wire in wires[:5]) == 5)

    for wire in wires:
        wire.close()
    eventually(lambda: httpx.get(f"{door.url}/ping").status_code == 200)
    assert "Traceback" not in door.log


def _is_served(wire: Wire) -> bool:
    wire.send(PING)
    return wire.answer().status == 200
