"""HTTP/1.1 byte by byte, over raw sockets: what no client library would send, and what some do."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.bundles import image_png, publish_tiny
from tests.gateway.live import LiveGateway, eventually, serving
from tests.gateway.rest.wire import PING, POOL, Wire, assert_right, head, picture, post

HEADER_TIMEOUT_S = 1.0
BODY_TIMEOUT_S = 0.6
IDLE_TIMEOUT_S = 1.5
TOP = f"""
header_timeout_s = {HEADER_TIMEOUT_S}
body_timeout_s = {BODY_TIMEOUT_S}
idle_timeout_s = {IDLE_TIMEOUT_S}
max_header_bytes = 4096
max_body_bytes = 100_000
"""


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    """A gateway with short time-outs and narrow limits over the tiny classifier."""
    store = tmp_path_factory.mktemp("door") / "store"
    publish_tiny(store)
    with serving(store, POOL, top=TOP) as gateway:
        yield gateway


# what must work


def test_connections_are_kept_alive(wire: Wire) -> None:
    for shade in (0, 100, 200):
        wire.send(post(shade))
        assert_right(wire.answer(), shade)


def test_a_chunked_body_is_one_body(wire: Wire) -> None:
    body = image_png(picture(9))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in (body[:1], body[1:20], body[20:]))

    wire.send(head("/invocations", "Transfer-Encoding: chunked") + chunks + b"0\r\nTrailer: ignored\r\n\r\n")

    assert_right(wire.answer(), 9)


def test_expect_100_continue_is_answered_before_the_body_comes(wire: Wire) -> None:
    body = image_png(picture(9))
    wire.send(head("/invocations", f"Content-Length: {len(body)}", "Expect: 100-continue"))
    assert wire.answer().status == 100

    wire.send(body)

    assert_right(wire.answer(), 9)


def test_a_pipelined_expectation_is_answered_when_its_turn_has_come(wire: Wire) -> None:
    body = image_png(picture(9))
    wire.send(post(1) + head("/invocations", f"Content-Length: {len(body)}", "Expect: 100-continue"))
    assert_right(wire.answer(), 1)
    assert wire.answer().status == 100

    wire.send(body)

    assert_right(wire.answer(), 9)


UPGRADES = {
    "h2c": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA"],
    "websocket": ["Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"],
}


@pytest.mark.parametrize("lines", UPGRADES.values(), ids=UPGRADES)
def test_an_offer_to_speak_another_protocol_is_ignored(wire: Wire, lines: list[str]) -> None:
    """RFC 9110, section 7.8; curl's --http2 and Java's HttpClient offer h2c with their first request."""
    upgrade = "\r\n".join(["", *lines, "", ""]).encode()
    ping = PING.replace(b"\r\n\r\n", upgrade)

    wire.send(post(5, *lines) + ping + post(6, *lines) + post(7))

    assert_right(wire.answer(), 5)
    assert wire.answer().status == 200
    assert_right(wire.answer(), 6)
    assert_right(wire.answer(), 7)


@pytest.mark.parametrize("lines", UPGRADES.values(), ids=UPGRADES)
def test_a_chunked_body_behind_an_ignored_offer_may_come_byte_by_byte(wire: Wire, lines: list[str]) -> None:
    body = image_png(picture(9))
    request = head("/invocations", "Transfer-Encoding: chunked", *lines)
    wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in request + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body):
        wire.send(bytes([byte]))

    assert_right(wire.answer(), 9)


def test_a_client_that_wants_its_connection_closed_gets_that_though_it_offers_another_protocol(wire: Wire) -> None:
    wire.send(post(5, "Connection: Upgrade, close", "Upgrade: h2c"))

    assert_right(wire.answer(), 5)
    assert wire.is_closed()


def test_garbage_behind_an_ignored_offer_is_refused(wire: Wire) -> None:
    wire.send(post(5, *UPGRADES["h2c"]) + b"garbage\r\n\r\n")

    assert_right(wire.answer(), 5)
    assert wire.answer().status == 400


def test_curl_may_offer_http_2(door: LiveGateway) -> None:
    command = ["curl", "-sS", "--http2", "-H", "Content-Type: image/png", "--data-binary", "@-"]
    said = subprocess.run(
        [*command, "-w", "%{http_version} %{response_code}", "-o", "/dev/null", f"{door.url}/invocations"],
        input=image_png(picture(5)),
        check=True,
        capture_output=True,
        timeout=60,
    )

    assert said.stdout == b"1.1 200"


def test_pipelined_predictions_are_answered_in_order(wire: Wire) -> None:
    shades = list(range(0, 250, 10))

    wire.send(b"".join(post(shade) for shade in shades))

    for shade in shades:
        assert_right(wire.answer(), shade)


def test_pipelined_predictions_and_pings_are_answered_in_order(wire: Wire) -> None:
    wire.send(PING + post(1) + PING + PING + post(2) + post(3) + PING)

    for shade in (None, 1, None, None, 2, 3, None):
        answer = wire.answer()
        if shade is None:
            assert (answer.status, answer.body) == (200, b"")
        else:
            assert_right(answer, shade)


@pytest.mark.parametrize("lines", [[], UPGRADES["h2c"]], ids=["plain", "upgrade"])
def test_what_a_prediction_is_sent_behind_is_not_taken_for_one_the_next_time(
    connect: Callable[[], Wire], lines: list[str]
) -> None:
    """A head that is remembered is the prediction's own, with as many lines or not."""
    wire = connect()
    for extra in range(8):
        more = "".join(f"X-{number}: y\r\n" for number in range(extra)).encode()
        ping = PING.replace(b"\r\n\r\n", b"\r\n" + more + b"\r\n")
        wire.send(ping + head("/invocations", "Content-Length: 0", *lines))
        assert [wire.answer().status for _ in range(2)] == [200, 400]

        wire.send(ping)
        assert (wire.answer().status, extra) == (200, extra)


def test_more_pipelined_than_one_read_holds(wire: Wire) -> None:
    wire.send(post(7) * 1500)

    for _ in range(1500):
        assert_right(wire.answer(), 7)


def test_a_request_split_at_every_byte_is_understood(connect: Callable[[], Wire]) -> None:
    request = post(33)
    wires = [connect() for _ in range(0, len(request), 4)]
    for at, wire in zip(range(0, len(request), 4), wires, strict=True):
        wire.send(request[:at])
    time.sleep(0.05)
    for at, wire in zip(range(0, len(request), 4), wires, strict=True):
        wire.send(request[at:])

    for wire in wires:
        assert_right(wire.answer(), 33)


def test_a_request_may_come_byte_by_byte(wire: Wire) -> None:
    wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in post(33):
        wire.send(bytes([byte]))

    assert_right(wire.answer(), 33)


@pytest.mark.parametrize("lines", [["Connection: close"], []], ids=["close", "http-1.0"])
def test_a_client_that_wants_the_connection_closed_gets_that(wire: Wire, lines: list[str]) -> None:
    wire.send(post(5, *lines, version="1.1" if lines else "1.0"))
    answer = wire.answer()

    assert_right(answer, 5)
    assert answer.headers["connection"] == "close"
    assert wire.is_closed()


def test_the_query_is_no_part_of_the_path(wire: Wire) -> None:
    wire.send(post(5).replace(b"/invocations", b"/invocations?x=/v2/models/y/infer", 1))

    assert_right(wire.answer(), 5)


def test_a_target_in_absolute_form_is_understood(wire: Wire) -> None:
    wire.send(post(5).replace(b"/invocations", b"http://x/invocations", 1))

    assert_right(wire.answer(), 5)


# what must be refused


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 5, 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /ping\r\n\r\n", 400),
        (b"POST /invocations HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
        (b"GET /ping HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (head("/invocations", "Content-Length: 1", "Content-Length: 2") + b"x", 400),
        (head("/invocations", "Content-Length: -1"), 400),
        (head("/invocations", "Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (head("/invocations", "Transfer-Encoding: chunked") + b"zz\r\n", 400),
        (head("/invocations", "Bad Name: x"), 400),
        (head("/invocations", "X: a\0b"), 400),
        (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT /ping HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 400),
        (head("/invocations", "X: " + "a" * 5000, "Content-Length: 0"), 431),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        (b"POST /invocations HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 5000, 431),
        (head("/invocations", *(f"X-{n}: y" for n in range(101)), "Content-Length: 0"), 431),
        (head("/invocations", "Content-Length: 100001"), 413),
        (head("/invocations", "Content-Length: 100001", "Expect: 100-continue"), 413),
        (head("/invocations", "Transfer-Encoding: chunked") + b"186a1\r\n" + bytes(100_001), 413),
        (head("/ping", "Content-Length: 100001"), 413),
        (head("/invocations", "Content-Length: " + "9" * 30), 400),
    ],
    ids=[
        *("garbage", "tls", "http2", "http-0.9", "no-host", "two-hosts", "two-lengths", "negative-length"),
        *(
            "length-and-chunks",
            "bad-chunk",
            "bad-name",
            "nul",
            "connect",
            "connect-upgrade",
            "long-header",
            "long-path",
        ),
        *("endless-headers", "many-headers", "too-large", "too-large-expect", "too-large-chunk", "too-large-app"),
        "overflowing-length",
    ],
)
def test_a_bad_request_is_refused(wire: Wire, request_: bytes, status: int) -> None:
    wire.send(request_)
    answer = wire.answer()

    assert answer.status == status
    assert answer.headers["connection"] == "close"


def test_a_refusal_waits_for_the_answers_before_it(wire: Wire) -> None:
    wire.send(post(1) + post(2) + PING + b"garbage\r\n\r\n")

    assert_right(wire.answer(), 1)
    assert_right(wire.answer(), 2)
    assert [wire.answer().status for _ in range(2)] == [200, 400]


def test_a_body_too_large_waits_for_the_answers_before_it(wire: Wire) -> None:
    wire.send(post(1) + head("/invocations", "Transfer-Encoding: chunked") + b"186a1\r\n" + bytes(100_001))

    assert_right(wire.answer(), 1)
    assert wire.answer().status == 413


def test_nothing_behind_a_refusal_is_answered(wire: Wire) -> None:
    too_large = head("/invocations", "Transfer-Encoding: chunked") + b"186a1\r\n" + bytes(100_001) + b"\r\n0\r\n\r\n"
    wire.send(post(1) + too_large + post(2) + PING)

    assert_right(wire.answer(), 1)
    assert wire.answer().status == 413
    assert wire.is_closed()


def test_a_client_can_read_the_refusal_while_it_still_sends(wire: Wire) -> None:
    wire.send(head("/invocations", "Content-Length: 10000000"))
    for _ in range(100):
        wire.send(bytes(20_000))

    assert wire.answer().status == 413


# time


@pytest.mark.parametrize("dripping", [False, True])
def test_slow_headers_are_cut(wire: Wire, dripping: bool) -> None:
    began = time.monotonic()
    wire.send(b"POST /invocations HTTP/1.1\r\n")
    if dripping:
        for _ in range(15):
            time.sleep(HEADER_TIMEOUT_S / 10)
            wire.send(b"X: y\r\n")

    assert wire.answer().status == 408
    assert time.monotonic() - began < HEADER_TIMEOUT_S + 5


def test_a_slow_body_is_cut(wire: Wire) -> None:
    wire.send(head("/invocations", "Content-Length: 1000") + b"some")

    assert wire.answer().status == 408
    assert wire.is_closed()


def test_a_body_may_take_longer_than_the_limit_on_its_pauses(wire: Wire) -> None:
    request = post(1)
    for start in range(0, len(request), 40):
        wire.send(request[start : start + 40])
        time.sleep(BODY_TIMEOUT_S / 4)

    assert_right(wire.answer(), 1)


@pytest.mark.parametrize("first", [b"", post(1)], ids=["fresh", "used"])
def test_an_idle_connection_is_closed_without_a_word(wire: Wire, first: bytes) -> None:
    wire.send(first)
    if first:
        wire.answer()

    assert wire.is_closed(IDLE_TIMEOUT_S + 2)


# clients that go away


def test_clients_that_disconnect_harm_nobody(door: LiveGateway, connect: Callable[[], Wire]) -> None:
    for _ in range(20):
        middle = connect()
        middle.send(post(1)[:-10])
        middle.close()
        waiting = connect()
        waiting.send(post(1))
        waiting.close()

    wire = connect()
    wire.send(post(2))
    assert_right(wire.answer(), 2)
    eventually(lambda: httpx.get(f"{door.admin_url}/pools").json()[0]["in_flight"] == 0)
    assert "Traceback" not in door.log


def test_a_client_that_never_reads_its_answers_is_cut(door: LiveGateway, wire: Wire) -> None:
    """The gateway stops reading from it, so that the answers do not pile up, and then gives up."""
    wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    wire.socket.settimeout(20)
    request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 2000

    def flood() -> None:
        for _ in range(200):
            wire.send(request)

    with pytest.raises((ConnectionError, TimeoutError)):
        flood()

    assert httpx.get(f"{door.url}/ping").status_code == 200
    assert "Traceback" not in door.log
