"""gRPC's own rules on top of HTTP/2: messages, compression, time-outs, statuses, and who answers what."""

import gzip
import logging
import time
import urllib.parse
import zlib
from collections.abc import Callable
from math import inf

import pytest

from gateway.grpc.calls import _percent_encoded, _seconds
from gateway.grpc.frames import ErrorCode, Flag, Kind, frame
from gateway.grpc.messages import ACCEPTED
from tests.gateway.grpc.peer import Answer, Peer, Server, message

MOST = 50_000
"""Bytes of a message that `Server` takes."""


def ask(peer: Peer, *data: bytes, encoding: str = "identity") -> Answer:
    """One call of which the data are these frames."""
    last = len(data) - 1
    frames = [peer.data(1, each, end=at == last) for at, each in enumerate(data)]
    peer.feed(peer.begin(1, grpc_encoding=encoding), *frames)
    return peer.answer(1)


def said(answer: Answer) -> str:
    return urllib.parse.unquote(answer.headers.get("grpc-message", ""))


# messages


def test_an_answer_is_headers_a_message_and_trailers(peer: Peer) -> None:
    assert peer.call(1, payload=b"hello") == Answer(
        {
            ":status": "200",
            "content-type": "application/grpc",
            "grpc-accept-encoding": "identity,deflate,gzip",
            "grpc-status": "0",
        },
        message(b"hello"),
        ended=True,
    )


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, MOST])
def test_messages_of_any_size_go_both_ways(server: Server, size: int) -> None:
    peer = server.connect(greet={4: 2**20})

    assert peer.call(1, payload=b"x" * size).body == message(b"x" * size)


def test_a_message_may_come_byte_by_byte(peer: Peer) -> None:
    assert ask(peer, *(bytes((byte,)) for byte in message()), b"").body == message()


BAD: dict[str, tuple[list[bytes], str, str]] = {
    "too-large": ([message(b"", length=MOST + 1)], "RESOURCE_EXHAUSTED", "larger than max (50001 vs. 50000)"),
    "nothing": ([b""], "INTERNAL", "0 bytes"),
    "no-prefix": ([b"\0\0\0"], "INTERNAL", "3 bytes"),
    "cut": ([message()[:-1]], "INTERNAL", "9 bytes"),
    "two-in-one": ([message() + message()], "INTERNAL", "more came"),
    "two": ([message(), message()], "INTERNAL", "more came"),
    "one-byte-more": ([message() + b"x"], "INTERNAL", "more came"),
    "flag": ([message(flag=2)], "INTERNAL", "not 2"),
}


@pytest.mark.parametrize(("data", "status", "text"), BAD.values(), ids=BAD.keys())
def test_what_is_not_one_message_is_refused(peer: Peer, data: list[bytes], status: str, text: str) -> None:
    answer = ask(peer, *data)

    assert (answer.status, answer.ended) == (status, True)
    assert text in said(answer)
    assert peer.call(3).status == "OK"


@pytest.mark.parametrize("length", [MOST + 1, 2**32 - 1])
def test_a_message_that_will_be_too_large_is_refused_at_once(server: Server, peer: Peer, length: int) -> None:
    peer.feed(peer.begin(1), peer.data(1, message(b"", length=length), end=False))

    assert (peer.answer(1).status, peer.answer(1).reset) == ("RESOURCE_EXHAUSTED", ErrorCode.NO_ERROR)
    assert server.in_flight == 0


# compression

COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize("size", [0, 7, MOST])
def test_compressed_messages_are_read(server: Server, encoding: str, size: int) -> None:
    peer = server.connect(greet={4: 2**20})
    payload = b"x" * size

    answer = ask(peer, message(COMPRESS[encoding](payload), 1), encoding=encoding)

    assert answer.body == message(payload)


def test_a_message_may_be_plain_although_compression_was_announced(peer: Peer) -> None:
    assert ask(peer, message(), encoding="gzip").body == message()


WHOLE = gzip.compress(b"hello" * 100)
BAD_COMPRESSION = {
    "bomb": ("gzip", gzip.compress(bytes(10_000_000)), "RESOURCE_EXHAUSTED", "once decompressed"),
    "bomb-deflate": ("deflate", zlib.compress(bytes(10_000_000)), "RESOURCE_EXHAUSTED", "once decompressed"),
    "one-too-many": ("gzip", gzip.compress(bytes(MOST + 1)), "RESOURCE_EXHAUSTED", "once decompressed"),
    "garbage": ("gzip", b"nothing of the kind", "INTERNAL", "not gzip"),
    "empty": ("gzip", b"", "INTERNAL", "not one whole"),
    "cut": ("gzip", WHOLE[:-9], "INTERNAL", "not one whole"),
    "checksum": ("gzip", WHOLE[:-8] + bytes(8), "INTERNAL", "not gzip"),
    "two": ("gzip", WHOLE * 2, "INTERNAL", "not one whole"),
    "other-kind": ("deflate", WHOLE, "INTERNAL", "not deflate"),
    "unknown": ("snappy", b"x", "UNIMPLEMENTED", "'snappy'"),
    "identity": ("identity", b"x", "INTERNAL", "no grpc-encoding"),
}


@pytest.mark.parametrize(("encoding", "data", "status", "text"), BAD_COMPRESSION.values(), ids=BAD_COMPRESSION.keys())
def test_bad_compression_is_refused(peer: Peer, encoding: str, data: bytes, status: str, text: str) -> None:
    answer = ask(peer, message(data, 1), encoding=encoding)

    assert answer.status == status
    assert text in said(answer)
    assert answer.headers["grpc-accept-encoding"] == ACCEPTED.decode()


def test_compression_that_was_not_announced_is_refused(peer: Peer) -> None:
    answer = peer.call(1)
    peer.feed(peer.begin(3), peer.data(3, message(WHOLE, 1)))

    assert (answer.status, peer.answer(3).status) == ("OK", "INTERNAL")


# time-outs

TIMEOUTS = {
    "1H": 3600.0,
    "2M": 120.0,
    "3S": 3.0,
    "400m": 0.4,
    "5u": 5e-6,
    "6n": 6e-9,
    "0n": 0.0,
    "99999999H": 99999999 * 3600.0,
    "100000000n": inf,
    "": inf,
    "S": inf,
    "5": inf,
    "5s": inf,
    "5 S": inf,
    "-5S": inf,
    "+5S": inf,
    "1.5S": inf,
    "1_0S": inf,
    "\u0665S": inf,  # a digit, but not one of ours
}


@pytest.mark.parametrize(("text", "seconds"), TIMEOUTS.items())
def test_time_outs_are_read(text: str, seconds: float) -> None:
    assert _seconds(text.encode()) == pytest.approx(seconds)


def test_a_time_out_counts_from_the_headers(server: Server, peer: Peer) -> None:
    peer.feed(peer.begin(1, "Hold", grpc_timeout="10S"))
    before = time.monotonic()
    peer.feed(peer.data(1, message()))

    assert server.held[0].deadline - 10 <= before
    remaining = server.held[0].time_remaining()
    assert remaining is not None
    assert 9 < remaining <= 10


def test_a_coroutine_past_its_deadline_is_stopped(server: Server, peer: Peer) -> None:
    peer.feed(peer.begin(1, "Chat", grpc_timeout="5S"))

    server.enforce(4)
    assert not peer.answer(1).ended
    server.enforce(6)
    peer.wait(0)

    assert (peer.answer(1).status, server.in_flight) == ("DEADLINE_EXCEEDED", 0)


# which method


def test_an_unknown_method_is_unimplemented(peer: Peer) -> None:
    answer = peer.call(1, "N\u00f6")

    assert (answer.status, answer.ended) == ("UNIMPLEMENTED", True)


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({":method": "GET"}, "405"),
        ({":method": "OPTIONS", "content-type": None}, "405"),
        ({"content-type": None}, "415"),
        ({"content-type": "application/json"}, "415"),
        ({"content-type": "application/grpc-web"}, "415"),
        ({"content-type": "application/grpcish"}, "415"),
        ({"content-type": "application/grpc+json"}, "415"),
        ({"content-type": "application/grpc+proto"}, "200"),
        ({"content-type": "Application/gRPC; charset=utf-8"}, "200"),
        ({"te": None}, "200"),
    ],
)
def test_what_is_no_call_is_refused_in_the_words_of_http(
    peer: Peer, changed: dict[str, str | None], status: str
) -> None:
    peer.feed(frame(Kind.HEADERS, Flag.END_HEADERS, 1, peer.block(changed)), peer.data(1, message()))

    answer = peer.answer(1)
    assert (answer.headers[":status"], answer.ended) == (status, True)
    assert ("allow" in answer.headers) == (status == "405")
    assert peer.call(3).status == "OK"


def test_metadata_over_the_limit_is_refused_and_the_connection_goes_on(peer: Peer) -> None:
    answer = peer.call(1, x="y" * 1000)

    assert (answer.status, peer.call(3).status) == ("RESOURCE_EXHAUSTED", "OK")
    assert "exceeds 1000" in said(answer)


def test_a_failure_of_a_method_is_internal_and_leaks_nothing(peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "penstock.grpc"):
        answer = peer.call(1, "Break")

    assert (answer.status, "division" in said(answer).lower()) == ("INTERNAL", False)
    assert "ZeroDivisionError" in caplog.text
    assert peer.call(3).status == "OK"


def test_a_call_is_answered_once(server: Server, peer: Peer) -> None:
    peer.feed(peer.request(1, "Hold"))
    call = server.held[0]

    call.reply(b"first")
    call.reply(b"second")
    call.cancel()

    assert (peer.answer(1).body, server.cancelled, server.in_flight) == (message(b"first"), [], 0)


# texts


TEXTS = {
    "plain": ("plain ASCII, ~ and %", b"plain ASCII, ~ and %25"),
    "lines": ("a\nb\r\x00\x7f", b"a%0Ab%0D%00%7F"),
    "utf-8": ("gr\u00fcn \U0001f600", b"gr%C3%BCn %F0%9F%98%80"),
    "no-text": ("\udcff", b"\\udcff"),
}


@pytest.mark.parametrize(("text", "encoded"), TEXTS.values(), ids=TEXTS.keys())
def test_texts_are_percent_encoded(text: str, encoded: bytes) -> None:
    assert _percent_encoded(text) == encoded


@pytest.mark.parametrize("text", ["x" * 8000, "\u00fc" * 4096, "\U0001f600" * 4096, "a\u20ac" * 3000])
def test_long_texts_are_cut_between_characters(text: str) -> None:
    encoded = _percent_encoded(text)

    assert 6900 < len(encoded) <= 7000
    assert text.startswith(urllib.parse.unquote(encoded.decode(), errors="strict"))


def test_what_a_coroutine_says_in_giving_up_arrives(peer: Peer) -> None:
    answer = peer.call(1, "Strict")

    assert (answer.status, said(answer)) == ("FAILED_PRECONDITION", "100 % gr\u00fcn\n")


# streams of messages


def test_a_conversation_goes_back_and_forth(server: Server, peer: Peer) -> None:
    peer.feed(peer.begin(1, "Chat"))
    for number in range(3):
        peer.feed(peer.data(1, message(b"%d" % number), end=False))
        assert peer.answer(1).body == b"".join(message(b"%d" % each) for each in range(number + 1))
    peer.feed(peer.data(1, b""))

    assert (peer.answer(1).status, peer.answer(1).ended, server.in_flight) == ("OK", True, 0)


def test_messages_longer_than_the_window_are_let_in(server: Server) -> None:
    peer = server.connect(greet={4: 2**20})
    peer.widen(0, 2**20)
    peer.feed(peer.begin(1, "Chat"))

    for _ in range(5):
        long = message(bytes(MOST))
        peer.feed(peer.data(1, long[:10_000], end=False))
        peer.feed(peer.data(1, long[10_000:], end=False))

    assert (len(server.seen), peer.answer(1).reset) == (5, None)
    assert peer.connection.room._granted == 0


def test_a_client_that_does_not_listen_is_not_listened_to(server: Server) -> None:
    peer = server.connect(greet={4: 10})
    peer.feed(peer.begin(1, "Chat"))

    for _ in range(18):
        peer.feed(peer.data(1, message(bytes(995)), end=False))

    assert len(server.seen) == 1  # the second waits for its coroutine, all others for the window
    assert peer.granted(1) == 0
    peer.widen(1, 10**6)
    assert len(server.seen) == 18
    assert peer.granted(1) > 0


def test_a_stream_of_answers_waits_for_the_client(server: Server) -> None:
    peer = server.connect(greet={4: 1500})

    answer = peer.call(1, "Count", b"100")
    assert len(server.seen) == 2
    peer.widen(1, 100_000)
    peer.widen(0, 100_000)

    assert (len(server.seen), len(answer.body), answer.status) == (100, 100 * 1005, "OK")


BAD_STREAM = {
    "cut": (message()[:-1], True, "INTERNAL"),
    "no-prefix": (b"\0", True, "INTERNAL"),
    "too-large": (message(b"", length=MOST + 1), False, "RESOURCE_EXHAUSTED"),
    "compression": (message(flag=1), False, "INTERNAL"),
    "flag": (message(flag=9), False, "INTERNAL"),
}


@pytest.mark.parametrize(("data", "end", "status"), BAD_STREAM.values(), ids=BAD_STREAM.keys())
@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_bad_message_ends_the_conversation(
    server: Server, peer: Peer, data: bytes, end: bool, status: str, before: int
) -> None:
    peer.feed(peer.begin(1, "Chat"), peer.data(1, message() * before + data, end=end))

    assert (peer.answer(1).status, peer.answer(1).ended) == (status, True)
    assert (peer.answer(1).body, server.in_flight) == (message() * before, 0)


@pytest.mark.parametrize("method", ["Chat", "Count"])
def test_a_cancelled_conversation_leaves_nothing(server: Server, method: str) -> None:
    peer = server.connect(greet={4: 10})
    peer.feed(peer.begin(1, method), peer.data(1, message(b"5"), end=method == "Count"))
    assert server.in_flight == 1

    peer.cancel(1)
    peer.wait(0)

    assert (server.in_flight, peer.connection.streams, peer.connection.outgoing.unsent) == (0, {}, 0)


def test_a_shutdown_ends_conversations_with_a_status(server: Server, peer: Peer) -> None:
    peer.feed(peer.begin(1, "Chat"), peer.request(3, "Hold"))

    peer._run(server.application.end_tasks)

    assert (peer.answer(1).status, server.in_flight) == ("UNAVAILABLE", 1)


@pytest.mark.parametrize("method", ["Chat", "Count"])
def test_many_conversations_end_without_a_trace(server: Server, peer: Peer, method: str) -> None:
    for number in range(1, 101, 2):
        peer.call(number, method, b"1")

    assert (server.in_flight, peer.connection.streams) == (0, {})
