"""A head that was parsed once answers for all that repeat it, and for nothing else."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import numpy as np
import pytest

from gateway.rest.exchange import Head
from gateway.rest.heads import KnownHeads
from tests.bundles import image_png, publish_tiny, tiny_answer
from tests.gateway.live import LiveGateway, serving
from tests.gateway.rest.wire import POOL, Answer, Wire, picture

PLAIN = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 4\r\n\r\n"
HEADERS = {b"host": b"x", b"content-type": b"image/png", b"content-length": b"4"}


def parsed(headers: dict[bytes, bytes] = HEADERS, size: int = 4, *, keep_alive: bool = True) -> Head:
    return Head("/invocations", headers, None, size, keep_alive=keep_alive)


def remembering(data: bytes, head: Head) -> KnownHeads:
    heads = KnownHeads()
    heads.remember(data, head)
    return heads


def test_a_repeated_head_is_found_with_the_place_of_its_body() -> None:
    head = parsed()

    assert remembering(PLAIN + b"abcd", head).find(PLAIN + b"wxyz") == (head, len(PLAIN))


@pytest.mark.parametrize("body", [b"", b"abc", b"abcde", b"abcdPOST / HTTP/1.1\r\n"])
def test_a_body_that_is_not_all_there_or_has_something_behind_it_is_for_the_parser(body: bytes) -> None:
    assert remembering(PLAIN, parsed()).find(PLAIN + body) is None


def test_a_head_of_one_byte_more_is_another_one() -> None:
    assert remembering(PLAIN, parsed()).find(PLAIN.replace(b"image/png", b"image/pngs") + b"abcd") is None


def with_line(line: bytes) -> bytes:
    return PLAIN.replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "head"),
    [
        (b"\r\n\r\n" + PLAIN, parsed()),  # empty lines before a request are nothing to the parser
        (PLAIN.replace(b"\r\n\r\n", b"\n\nab\r\n\r\n"), parsed()),  # the first empty line is inside the body
        (with_line(b"Content-Type: image/jpeg"), parsed()),
        (with_line(b"X-Long: a\r\n folded"), parsed({**HEADERS, b"x-long": b"a folded"})),
        (with_line(b"Transfer-Encoding: chunked"), parsed({**HEADERS, b"transfer-encoding": b"chunked"})),
        (with_line(b"Expect: 100-continue"), parsed({**HEADERS, b"expect": b"100-continue"})),
        (with_line(b"Upgrade: h2c"), parsed({**HEADERS, b"upgrade": b"h2c"})),
        (with_line(b"Authorization: Bearer s3cret"), parsed({**HEADERS, b"authorization": b"Bearer s3cret"})),
        (with_line(b"Cookie: id=1"), parsed({**HEADERS, b"cookie": b"id=1"})),
        (with_line(b"Connection: close"), parsed({**HEADERS, b"connection": b"close"}, keep_alive=False)),
        (with_line(b"X-Long: " + b"a" * 2048), parsed({**HEADERS, b"x-long": b"a" * 2048})),
        (PLAIN.replace(b"Content-Length: 4\r\n", b""), parsed({b"host": b"x", b"content-type": b"image/png"}, 0)),
    ],
)
def test_what_asks_for_more_than_an_answer_or_may_be_read_in_two_ways_is_not_kept(data: bytes, head: Head) -> None:
    heads = remembering(data, head)

    assert heads.find(data[: data.find(b"\r\n\r\n") + 4] + b"abcd") is None
    assert not heads._heads


def test_the_memory_is_bounded() -> None:
    heads = KnownHeads()
    for number in range(5000):
        heads.remember(with_line(b"X-Number: %d" % number), parsed({**HEADERS, b"x-number": b"%d" % number}))

    assert 0 < len(heads._heads) <= 1024


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveGateway]:
    store = tmp_path_factory.mktemp("heads") / "store"
    publish_tiny(store)
    with serving(store, POOL, top="max_body_bytes = 100_000\n") as live:
        yield live


def answers(answer: Answer, shade: int) -> bool:
    """Is it the right one for that picture?"""
    return answer.status == 200 and bool(np.allclose(json.loads(answer.body), tiny_answer(picture(shade)), atol=1e-5))


def padded(shade: int, size: int = 400) -> bytes:
    """A picture in a body of a fixed size: decoders do not look behind its end."""
    return image_png(picture(shade)).ljust(size, b"\0")


def asking(body: bytes, *lines: str) -> bytes:
    head = ["POST /invocations HTTP/1.1", "Host: x", "Content-Type: image/png", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


def test_requests_that_share_a_head_get_the_answers_to_their_own_bodies(wire: Wire) -> None:
    for shade in (0, 90, 30, 255):
        wire.send(asking(padded(shade)))

        assert answers(wire.answer(), shade)


def test_a_body_may_look_like_the_head_of_another_request(wire: Wire) -> None:
    wire.send(asking(padded(5)))
    wire.answer()
    trick = asking(b"").ljust(400, b" ")
    wire.send(asking(trick))
    refused = wire.answer()
    wire.send(asking(padded(7)))

    assert refused.status == 400
    assert answers(wire.answer(), 7)


def test_known_and_new_heads_may_take_turns_on_a_connection_whole_in_pieces_and_pipelined(wire: Wire) -> None:
    wire.send(asking(padded(1)))
    assert answers(wire.answer(), 1)
    first = asking(padded(2))
    wire.send(first[:-10])
    wire.send(first[-10:])
    assert answers(wire.answer(), 2)
    wire.send(asking(padded(3)) + asking(padded(4)) + asking(padded(5), "X-More: 1"))

    assert all(answers(wire.answer(), shade) for shade in (3, 4, 5))


def test_a_known_head_behind_an_unanswered_request_waits_for_its_turn(wire: Wire) -> None:
    wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for shade in range(0, 200, 10):
        wire.send(asking(padded(shade)))

    for shade in range(0, 200, 10):
        assert answers(wire.answer(), shade)


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n" + asking(padded(9)),
        asking(padded(9)).replace(b"\r\n", b"\n"),
        asking(padded(9), "Content-Length: 4"),
        asking(padded(9), "Host: y"),
        asking(padded(9), "X-Folded: a\r\n b"),
        asking(padded(9), "Connection: close"),
        asking(padded(9)).replace(b"HTTP/1.1", b"HTTP/1.0"),
        asking(b"x" * 100_001),
        asking(b""),
    ],
)
def test_the_second_time_a_request_is_answered_as_the_first_time(door: LiveGateway, request_: bytes) -> None:
    """Whatever is odd about it: on connections of their own, for some of them end theirs."""
    statuses = []
    for _ in range(3):
        wire = Wire(door.http_port)
        wire.send(request_)
        answer = wire.answer()
        statuses.append((answer.status, answer.headers.get("connection"), answer.body))
        wire.close()

    assert statuses[1:] == statuses[:1] * 2
