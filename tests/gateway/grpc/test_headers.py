"""Header blocks: what is remembered stays right, what is malformed is refused, and bombs do not go off."""

from contextlib import suppress

import hpack
import pytest
from hpack import NeverIndexedHeaderTuple
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.grpc.frames import ConnectionFault, ErrorCode, Flag, Kind, frame
from gateway.grpc.headers import Block, BlockReader, encode_headers
from tests.gateway.grpc.peer import HEADERS, Peer, Server, message

PROTOCOL = ErrorCode.PROTOCOL_ERROR
END = Flag.END_HEADERS | Flag.END_STREAM


def read(reader: BlockReader, block: bytes) -> Block:
    """As connections do it."""
    return reader.remembered.get(block) or reader.decode(block)


# what is remembered

NAMES = st.sampled_from([":path", ":authority", "user-agent", "x", "grpc-timeout", "authorization"])
VALUES = st.sampled_from(["", "a", "b", "/test/Echo", "y" * 1500])
HEADER_LISTS = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=6)
STEPS = st.lists(st.one_of(HEADER_LISTS, st.sampled_from([0, 100, 4096])), max_size=40)


@given(steps=STEPS, huffman=st.booleans())
@settings(max_examples=300, deadline=None)
def test_blocks_mean_the_same_through_the_memory(steps: list[object], huffman: bool) -> None:
    encoder, reader = hpack.Encoder(), BlockReader(64_000)
    for step in steps:
        if isinstance(step, int):
            if encoder.header_table_size != step:  # hpack's encoder forgets a change that is made twice
                encoder.header_table_size = step
            continue
        assert isinstance(step, list)
        for _ in range(2):  # most often the second time is nothing but references
            expected = {name.encode(): value.encode() for name, value, _ in step}
            block = encoder.encode(step, huffman=huffman)

            decoded = read(reader, block)

            assert decoded.headers == expected
            assert decoded.size == sum(len(name) + len(value) + 32 for name, value, _ in step)


def test_a_repeated_block_is_decoded_once() -> None:
    encoder, reader = hpack.Encoder(), BlockReader(64_000)
    for _ in range(2):
        block = encoder.encode(HEADERS.items())
        read(reader, block)

    assert reader.remembered == {block: read(reader, block)}


def test_what_is_remembered_is_forgotten_when_the_table_changes() -> None:
    encoder, reader = hpack.Encoder(), BlockReader(64_000)
    read(reader, encoder.encode([("x", "first")]))
    block = encoder.encode([("x", "first")])
    assert read(reader, block).headers == {b"x": b"first"}

    read(reader, encoder.encode([("x", "second")]))

    assert read(reader, block).headers == {b"x": b"second"}


def test_what_is_remembered_is_bounded() -> None:
    encoder, reader = hpack.Encoder(), BlockReader(64_000)
    names = [f"x{number}" for number in range(10)]
    read(reader, encoder.encode([(name, "") for name in names]))
    for first in names:
        for second in names:
            read(reader, encoder.encode([(first, ""), (second, "")]))

    assert len(reader.remembered) == 64


def test_headers_that_are_never_indexed_are_read() -> None:
    encoder, reader = hpack.Encoder(), BlockReader(64_000)
    secret = NeverIndexedHeaderTuple("authorization", "secret")
    for _ in range(3):
        assert read(reader, encoder.encode([secret])).headers == {b"authorization": b"secret"}
    assert reader.remembered == {}


# what we send


@given(st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=20_000)), max_size=4))
@settings(max_examples=50, deadline=None)
def test_what_is_encoded_is_what_is_decoded(headers: list[tuple[bytes, bytes]]) -> None:
    decoder = hpack.Decoder(max_header_list_size=10**6)

    assert list(decoder.decode(encode_headers(*headers), raw=True)) == headers
    assert len(decoder.header_table.dynamic_entries) == 0


# what is malformed (RFC 9113, section 8)

MALFORMED: dict[str, list[tuple[str, str]]] = {
    "empty": [],
    "upper-case": [*HEADERS.items(), ("X-Custom", "y")],
    "space-in-name": [*HEADERS.items(), ("x y", "z")],
    "no-name": [*HEADERS.items(), ("", "z")],
    "colon-in-name": [*HEADERS.items(), ("x:y", "z")],
    "not-ascii-name": [*HEADERS.items(), ("gr\u00fcn", "z")],
    "line-in-value": [*HEADERS.items(), ("x", "a\r\nb: c")],
    "nul-in-value": [*HEADERS.items(), ("x", "a\0b")],
    "pseudo-last": [("x", "y"), *HEADERS.items()],
    "pseudo-twice": [(":path", "/other"), *HEADERS.items()],
    "pseudo-unknown": [(":protocol", "websocket"), *HEADERS.items()],
    "pseudo-of-answers": [(":status", "200"), *HEADERS.items()],
    "connection": [*HEADERS.items(), ("connection", "close")],
    "transfer-encoding": [*HEADERS.items(), ("transfer-encoding", "chunked")],
    "te": [*((name, value) for name, value in HEADERS.items() if name != "te"), ("te", "gzip")],
    "no-path": [(name, value) for name, value in HEADERS.items() if name != ":path"],
    "empty-path": [(name, "" if name == ":path" else value) for name, value in HEADERS.items()],
    "no-method": [(name, value) for name, value in HEADERS.items() if name != ":method"],
    "no-scheme": [(name, value) for name, value in HEADERS.items() if name != ":scheme"],
    "connect": [(":method", "CONNECT"), (":authority", "elsewhere:80")],
}


@pytest.mark.parametrize("headers", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_ends_its_stream_alone_each_time(
    server: Server, peer: Peer, headers: list[tuple[str, str]]
) -> None:
    for number in (1, 3, 5):  # the third time from memory
        block = peer._encoder.encode(headers)
        peer.feed(frame(Kind.HEADERS, Flag.END_HEADERS, number, block), peer.data(number, message()))
        assert peer.answer(number).reset == PROTOCOL

    assert (peer.call(7).status, server.in_flight) == ("OK", 0)


def test_a_malformed_trailer_ends_its_stream(peer: Peer) -> None:
    trailers = frame(Kind.HEADERS, END, 1, encode_headers((b"X", b"y")))

    peer.feed(peer.begin(1), peer.data(1, message(), end=False), trailers)

    assert peer.answer(1).reset == PROTOCOL


def test_authority_may_be_missing(peer: Peer) -> None:
    peer.feed(frame(Kind.HEADERS, END, 1, peer.block({":authority": None})))

    assert peer.answer(1).headers[":status"] == "200"


# broken and dangerous blocks

BROKEN = {
    "cut-integer": b"\xff",
    "endless-integer": b"\xff" * 10_000,
    "cut-literal": b"\x40\x05ab",
    "cut-huffman": b"\x40\x85ab",
    "huffman-padding": b"\x40\x81\x00\x81\x00",
    "index-0": b"\x80",
    "index-beyond": b"\xfe",
    "name-beyond": b"\x7f\x80\x01\x01a",
    "table-too-large": b"\x3f\xe2\x1f",
    "table-size-late": b"\x82\x20",
}


@pytest.mark.parametrize("block", BROKEN.values(), ids=BROKEN.keys())
def test_a_block_that_cannot_be_decoded_ends_the_connection(peer: Peer, block: bytes) -> None:
    peer.feed(frame(Kind.HEADERS, END, 1, block))

    assert peer.goodbye == ErrorCode.COMPRESSION_ERROR


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_block_or_a_fault(block: bytes) -> None:
    with suppress(ConnectionFault):
        read(BlockReader(64_000), block)


def test_a_bomb_of_references_does_not_go_off(peer: Peer) -> None:
    entry = b"\x40\x01x" + b"\x7f\x80\x0f" + b"y" * 2047  # 2 KiB into the table
    bomb = entry + b"\xbe" * 14_000  # and 14,000 references to it: 28 MB

    peer.feed(frame(Kind.HEADERS, END, 1, bomb[:16_384]))

    assert peer.goodbye == ErrorCode.ENHANCE_YOUR_CALM


def test_the_table_stays_small(server: Server, peer: Peer) -> None:
    for number in range(1, 101, 2):
        peer.call(number, x=f"{number}" * 200)

    assert peer.connection._blocks._decoder.header_table._current_size <= 4096


def test_a_client_without_a_table_is_understood(server: Server) -> None:
    peer = server.connect()
    peer._encoder.header_table_size = 0

    assert [peer.call(number).status for number in (1, 3, 5)] == ["OK"] * 3
