"""What a file looks like, in words for error texts."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from formats.signatures import describe


@pytest.mark.parametrize(
    ("head", "phrase"),
    [
        (b"", "nothing (0 bytes)"),
        (b"hello, world", "text: 'hello, world'"),
        (b' {"a": 1}', "JSON text: ' {\"a\": 1}'"),
        (b"[1, 2]", "JSON text: '[1, 2]'"),
        (b"\x00\x01\x02\x03", "unknown binary data: 00 01 02 03"),
        (b"\xff" * 100, "unknown binary data: ff ff ff ff ff ff ff ff"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x1f\x8b\x08", "gzip data; decompress it first"),
        (b"\x0a\x23\xd7\xce", "RecordIO"),
        (b"PAR1", "a Parquet file"),
        (b"a\x00b", "unknown binary data: 61 00 62"),
        ("é".encode() * 40, f"text: '{'é' * 32}'"),
        (b"a" + "é".encode() * 40, f"text: 'a{'é' * 31}'"),  # cut within a character at 64 bytes
        (b"version https://git-lfs.github.com/spec/v1", "a git-LFS pointer; fetch the real file with `git lfs pull`"),
    ],
)
def test_a_file_is_named_by_its_first_bytes(head: bytes, phrase: str) -> None:
    assert describe(head) == phrase


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_pictures_are_told_apart(kind: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, kind)

    assert kind.lower() in describe(buffer.getvalue()).lower()
    assert describe(buffer.getvalue()).endswith(" image")


def test_an_array_file_is_named() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))

    assert describe(buffer.getvalue()) == "a NumPy array file"


@given(st.binary(max_size=80))
def test_any_bytes_give_one_short_printable_line(head: bytes) -> None:
    phrase = describe(head)

    assert phrase.isprintable()
    assert len(phrase) < 200
