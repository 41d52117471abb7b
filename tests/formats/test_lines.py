from __future__ import annotations

import gzip
import io
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.errors import InvalidBody
from formats.lines import read_lines


@given(st.binary(max_size=300))
def test_lines_are_those_of_the_text(data: bytes) -> None:
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()

    found = list(read_lines(io.BytesIO(data), "x")) if data[:2] != b"\x1f\x8b" else []

    if data[:2] != b"\x1f\x8b":
        assert found == [(n, line.removesuffix(b"\r")) for n, line in enumerate(expected, 1)]


def test_lines_across_blocks_are_whole() -> None:
    lines = [bytes([65 + n % 26]) * (n * 7919 % 300_000) for n in range(12)]

    assert [line for _, line in read_lines(io.BytesIO(b"\n".join(lines)), "x")] == lines


def test_gzip_is_recognised_by_its_bytes() -> None:
    assert list(read_lines(io.BytesIO(gzip.compress(b"a\nb")), "x")) == [(1, b"a"), (2, b"b")]


@pytest.mark.parametrize("data", [b"a\nb\n", gzip.compress(b"a\nb\n")])
def test_a_pipe_is_read_plain_and_gzip(data: bytes) -> None:
    reading, writing = os.pipe()

    def feed() -> None:
        with open(writing, "wb") as stream:
            stream.write(data)

    writer = threading.Thread(target=feed)
    writer.start()

    with open(reading, "rb") as stream:
        found = [line for _, line in read_lines(stream, "pipe")]
    writer.join()

    assert found == [b"a", b"b"]


@pytest.mark.parametrize("cut", [5, 15, -1, -6])
def test_damaged_gzip_is_named(cut: int) -> None:
    with pytest.raises(InvalidBody, match=r"x.gz: gzip data is truncated or damaged"):
        list(read_lines(io.BytesIO(gzip.compress(b"a\n" * 1000)[:cut]), "x.gz"))


def test_a_file_without_line_ends_is_refused_before_it_is_held() -> None:
    bomb = gzip.compress(bytes(4_000_000))

    with pytest.raises(InvalidBody, match=r"x, line 1: longer than 1000000 bytes"):
        list(read_lines(io.BytesIO(bomb), "x", max_line=1_000_000))
