"""Any bytes whatever: nothing raises, nothing hangs, nothing is left behind, and other connections do not notice."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import BufferingHandler

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.grpc.frames import PREFACE, ErrorCode, Flag, Kind, frame, reset, window_update
from gateway.grpc.frames import settings as settings_frame
from gateway.grpc.headers import encode_headers
from tests.gateway.grpc.peer import HEADERS, Peer, Server, message

BLOCK = encode_headers(*((name.encode(), value.encode()) for name, value in HEADERS.items()))
BLOCKS = [BLOCK, BLOCK.replace(b"Echo", b"Hold"), BLOCK.replace(b"Echo", b"Chat"), b"", b"\x82\x86", b"\x20"]
STREAMS = st.sampled_from([0, 1, 1, 1, 3, 3, 5, 7, 2, 2**31 - 1])
FLAGS = st.sampled_from([0, 0, 1, 4, 4, 5, 5, 8, 0x20, 0x2D, 0xFF])
PAYLOADS = st.one_of(
    st.sampled_from([*BLOCKS, message(), message() * 2, message(length=9999), bytes(4), bytes(8), b"\0\0\0\1"]),
    st.binary(max_size=40),
    st.integers(0, 16_384).map(bytes),
)
FRAMES = st.one_of(
    st.builds(frame, st.integers(0, 11), FLAGS, STREAMS, PAYLOADS),
    st.builds(window_update, STREAMS, st.integers(0, 2**31 - 1)),
    st.builds(reset, STREAMS, st.sampled_from(ErrorCode)),
    st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2**32 - 1)), max_size=3).map(
        lambda all_: settings_frame(*all_)
    ),
    STREAMS.map(lambda number: frame(Kind.HEADERS, Flag.END_HEADERS, number, BLOCK)),
    STREAMS.map(lambda number: frame(Kind.DATA, Flag.END_STREAM, number, message())),
)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner() as runner:
        yield runner.get_loop()


@contextmanager
def a_witness(loop: asyncio.AbstractEventLoop) -> Iterator[tuple[Server, Peer]]:
    """A server and a connection to be mistreated, while another connection has a call in flight."""
    log, handler = logging.getLogger("penstock.grpc"), BufferingHandler(1000)
    log.addHandler(handler)
    server = Server(loop)
    other = server.connect()
    other.feed(other.request(1, "Hold"))
    try:
        yield server, server.connect(greet=False)
    finally:
        log.removeHandler(handler)
    assert handler.buffer == []
    server.held[0].reply(b"as ever")
    assert (other.answer(1).body, other.call(3).status, other.said) == (message(b"as ever"), "OK", other.said[:3])


def leaves_nothing(server: Server, peer: Peer) -> None:
    peer.lose()
    assert len(server.application.connections) == 1
    assert server.in_flight == 1  # the witness's
    connection = peer.connection
    assert (connection.streams, connection.room._granted, connection.room.held_back) == ({}, 0, {})
    assert (connection.outgoing.unsent, connection.outgoing._waiting) == (0, {})


@given(data=st.binary(max_size=400))
@settings(max_examples=150, deadline=2000)
def test_any_bytes_after_the_preface_harm_nobody(loop: asyncio.AbstractEventLoop, data: bytes) -> None:
    with a_witness(loop) as (server, peer):
        peer.feed(PREFACE, settings_frame(), data)
        leaves_nothing(server, peer)


@given(frames=st.lists(FRAMES, max_size=20), cut=st.integers(0, 500))
@settings(max_examples=400, deadline=2000)
def test_any_frames_harm_nobody(loop: asyncio.AbstractEventLoop, frames: list[bytes], cut: int) -> None:
    with a_witness(loop) as (server, peer):
        data = PREFACE + settings_frame() + b"".join(frames)
        peer.feed(data[:cut])
        peer.feed(data[cut:])
        leaves_nothing(server, peer)


@given(
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=5),
    removed=st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 30)),
)
@settings(max_examples=300, deadline=2000)
def test_a_conversation_with_wrong_bytes_harms_nobody(
    loop: asyncio.AbstractEventLoop, places: list[tuple[float, int]], removed: tuple[float, int]
) -> None:
    with a_witness(loop) as (server, peer):
        data = bytearray(conversation(peer))
        for place, byte in places:
            data[24 + int(place * (len(data) - 24))] = byte
        at = 24 + int(removed[0] * (len(data) - 24))
        del data[at : at + removed[1]]
        peer.feed(bytes(data))
        leaves_nothing(server, peer)


def conversation(peer: Peer) -> bytes:
    """A little of everything, and all of it right."""
    frames = [
        PREFACE + settings_frame((4, 100)),
        peer.request(1),
        peer.request(3, "Hold"),
        peer.begin(5, "Chat") + peer.data(5, message(), end=False),
        peer.request(7, payload=bytes(200)),
        window_update(7, 50) + window_update(0, 10),
        frame(Kind.PING, 0, 0, bytes(8)),
        reset(3, ErrorCode.CANCEL),
        settings_frame((4, 1000)),
        peer.data(5, message()),
        peer.request(9, "Count", b"2"),
        peer.begin(11) + peer.data(11, message(bytes(30_000))[:100], end=False),
    ]
    return b"".join(frames)


def test_the_conversation_is_right(loop: asyncio.AbstractEventLoop) -> None:
    with a_witness(loop) as (server, peer):
        peer.feed(conversation(peer))
        assert [peer.answer(number).ended for number in (1, 5, 7)] == [True] * 3
        assert peer.goodbye is None
        leaves_nothing(server, peer)
