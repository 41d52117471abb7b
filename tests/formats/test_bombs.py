"""Small inputs that claim to be huge: refused within 100 ms and 64 MiB, measured in a process of their own."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from formats.recordio import MAGIC, encode_record

MEASURE = """
import io, json, sys, time
from pathlib import Path
from formats import image_record, images, jsonlines, labelled_text, masks, record, timeseries
from formats.errors import InvalidBody
from formats.record_lists import read_lists
from formats.record_matrix import read_matrix
from formats.record_sparse import read_sparse
from formats.recordio import decode_records

READERS = {
    "records": decode_records,
    "protobuf": record.decode_body,
    "matrix": lambda data: list(read_matrix(io.BytesIO(data))),
    "sparse": lambda data: list(read_sparse(io.BytesIO(data))),
    "lists": lambda data: list(read_lists(io.BytesIO(data))),
    "stream": lambda data: list(record.read(io.BytesIO(data))),
    "image records": lambda data: list(image_record.read(io.BytesIO(data))),
    "image": images.decode,
    "mask": masks.decode_mask,
    "lines": jsonlines.decode,
    "series": lambda data: list(timeseries.read(io.BytesIO(data))),
    "texts": lambda data: list(labelled_text.read_texts(io.BytesIO(data))),
}

def peak():
    # of this process image; getrusage would also count its parent before the exec
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


READERS["lines"](b'{"a":1}')
data = Path(sys.argv[2]).read_bytes()
before = peak()
begin = time.perf_counter()
try:
    READERS[sys.argv[1]](data)
    verdict = "accepted"
except InvalidBody as error:
    verdict = str(error)
took = time.perf_counter() - begin
grown = peak() - before
print(json.dumps([verdict, took, grown]))
"""


def png(height: int, width: int, *chunks: tuple[bytes, bytes]) -> bytes:
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (head, *chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


def field(number: int, data: bytes) -> bytes:
    length, varint = len(data), b""
    while length > 0x7F:
        varint += bytes([length & 0x7F | 0x80])
        length >>= 7
    return bytes([number << 3 | 2]) + varint + bytes([length]) + data


def sparse(shape: int) -> bytes:
    varint = b""
    while shape > 0x7F:
        varint += bytes([shape & 0x7F | 0x80])
        shape >>= 7
    tensor = field(1, struct.pack("<f", 1)) + field(2, b"\0") + field(3, varint + bytes([shape]))
    return field(1, field(1, b"values") + field(2, field(2, tensor)))


def deep(levels: int) -> bytes:
    data = b""
    for _ in range(levels):
        data = b"\x7b" + data + b"\x7c"  # a group of unknown number 15
    return data


@cache
def zeros() -> bytes:
    return zlib.compress(bytes(50_000_000), 9)


# made when they are needed: some take a while, and collecting tests should not
BOMBS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a record of 512 MiB in 100 bytes": ("records", lambda: MAGIC + struct.pack("<I", 2**29 - 1) + bytes(92)),
    "a split record of 512 MiB": (
        "records",
        lambda: (MAGIC + struct.pack("<I", 1 << 29)) + MAGIC + b"\xff\xff\xff\x5f",
    ),
    "protobuf nested 10,000 deep": ("protobuf", lambda: encode_record(deep(10_000))),
    "a sparse row of 2**60": ("matrix", lambda: encode_record(sparse(2**60))),
    "a second sparse row of 2**60": ("matrix", lambda: encode_record(sparse(2)) + encode_record(sparse(2**60))),
    "a sparse row wider than int64": ("sparse", lambda: encode_record(sparse(2**63))),
    "a record of half a million tags": ("sparse", lambda: encode_record(b"\x0a" * 500_000)),
    "a length of half a million bytes": ("lists", lambda: encode_record(b"\x0a" + b"\xff" * 500_000)),
    "many records, each unlike the others": (
        "stream",
        lambda: b"".join(encode_record(field(1, field(1, b"a" * n) + field(2, b""))) for n in range(200)),
    ),
    "an image record of 2**32 labels": ("image records", lambda: encode_record(b"\xff" * 4 + bytes(40))),
    "a PNG of 30,000 x 30,000": ("image", lambda: png(30_000, 30_000, (b"IDAT", zeros()))),
    "a mask of 30,000 x 30,000": ("mask", lambda: png(30_000, 30_000, (b"IDAT", zeros()))),
    "a PNG with 50 MB of compressed text": (
        "image",
        lambda: png(10, 10, (b"zTXt", b"a\0\0" + zeros()), (b"IDAT", b"")),
    ),
    "a PNG with 50 MB of colour profile": ("image", lambda: png(10, 10, (b"iCCP", b"a\0\0" + zeros()), (b"IDAT", b""))),
    "a JPEG of 65,535 x 65,535": ("image", lambda: b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03" + bytes(60)),
    "gzip of zeros": ("lines", lambda: gzip.compress(bytes(50_000_000), 9)),
    "gzip of zeros as a series": ("series", lambda: gzip.compress(bytes(50_000_000), 9)),
    "gzip of one letter as a text": ("texts", lambda: gzip.compress(b"a" * 50_000_000, 9)),
    "JSON nested 10,000 deep": ("lines", lambda: b'{"a":' * 10_000),
    "a JSON number of a million digits": (
        "series",
        lambda: b'{"start":"2024-01-01","target":[' + b"9" * 1_000_000 + b"]}",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_quickly_and_in_little_memory(name: str, tmp_path: Path) -> None:
    reader, make = BOMBS[name]
    (tmp_path / "bomb").write_bytes(make())

    command = [sys.executable, "-W", "error", "-c", MEASURE, reader, str(tmp_path / "bomb")]
    out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    verdict, seconds, grown_kib = json.loads(out.stdout)

    assert verdict != "accepted"
    # four times the 0.1 s that a quiet core needs less than: this machine may be busy
    assert seconds < 0.4
    assert grown_kib < 64 * 1024
