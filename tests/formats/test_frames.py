"""Frames come whole out of a stream, wherever it was cut."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.frames import HEADER, Frame, FrameParser, Kind, encode_frame

numbers = st.integers(0, 2**32 - 1)
frames = st.builds(Frame, st.sampled_from(list(Kind)).map(int), numbers, numbers, st.binary(max_size=200))


def encoded(sequence: list[Frame]) -> bytes:
    return b"".join(encode_frame(Kind(f.kind), f.call, f.slot, f.payload) for f in sequence)


@given(st.lists(frames, max_size=6), st.data())
def test_frames_survive_any_cut(sequence: list[Frame], data: st.DataObject) -> None:
    stream = encoded(sequence)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    parser = FrameParser()

    found = [f for start, end in pairwise([0, *cuts, len(stream)]) for f in parser.feed(stream[start:end])]

    assert found == sequence


def test_frames_survive_one_byte_at_a_time() -> None:
    sequence = [
        Frame(Kind.RUN, 1, 2, b"abc"),
        Frame(Kind.DONE, 2**32 - 1, 0, b""),
        Frame(Kind.FAILED, 0, 7, b"\0" * 40),
    ]
    parser = FrameParser()

    assert [f for byte in encoded(sequence) for f in parser.feed(bytes([byte]))] == sequence


def test_an_unfinished_frame_waits() -> None:
    parser = FrameParser()

    assert list(parser.feed(encode_frame(Kind.RUN, 1, 2, b"abc")[:-1])) == []
    assert list(parser.feed(b"c")) == [Frame(Kind.RUN, 1, 2, b"abc")]


def test_the_header_is_length_kind_call_slot_in_little_endian() -> None:
    assert encode_frame(Kind.RUN, 5, 7, b"xy") == bytes.fromhex("02000000030500000007000000") + b"xy"
    assert HEADER.size == 13


def test_a_kind_of_a_newer_gateway_is_handed_on() -> None:
    assert [f.kind for f in FrameParser().feed(HEADER.pack(0, 200, 1, 2))] == [200]


def test_a_payload_that_its_length_field_cannot_hold_is_refused() -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 2**32

    with pytest.raises(ValueError, match="4294967296 bytes does not fit a frame; send smaller batches"):
        encode_frame(Kind.RUN, 1, 2, Huge())


@pytest.mark.parametrize("number", [-1, 2**32])
def test_numbers_beyond_their_field_are_refused(number: int) -> None:
    with pytest.raises(struct.error):
        encode_frame(Kind.RUN, number, 0)
