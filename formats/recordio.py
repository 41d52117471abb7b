"""RecordIO framing: the container of image records (`application/x-recordio`) and of protobuf records.

Every physical record starts at an offset divisible by 4 and consists of

| bytes | field |
|---|---|
| 4 | magic `0xCED7230A`, little-endian like all numbers here |
| 4 | flag in the upper 3 bits, payload length in the lower 29 |
| length | payload |
| 0 to 3 | zeros up to a multiple of 4 |

Flag 0 is a whole record; 1, 2 and 3 are the first, middle and last part of one. dmlc's writer makes parts so that the
magic never stands inside a payload at an aligned offset: it cuts there, drops the 4 bytes, and readers put them back.
Some writers (the SageMaker SDK) do not split and some readers do not join; `encode_record(split=False)` is for those.
Format: dmlc-core `include/dmlc/recordio.h`.
"""

from __future__ import annotations

import io
import logging
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypedDict, TypeVar, Unpack

from formats.errors import InvalidBody
from formats.signatures import describe

__all__ = [
    "MAGIC",
    "MAX_RECORD",
    "RawRecord",
    "Reading",
    "RecordWriter",
    "build_index",
    "decode_records",
    "encode_record",
    "head_from",
    "read_at",
    "read_decoded",
    "read_index",
    "read_records",
    "shard_bounds",
    "write_index",
]

MAGIC = b"\x0a\x23\xd7\xce"
MAX_RECORD = 2**29 - 1
"""Longest record in bytes that is read; also the longest single part that the length field can say."""

OnBad = Callable[[int, int, str], None]
"""Told the number, the byte offset and the fault of each record that was skipped."""

T = TypeVar("T")

_MAGIC = 0xCED7230A
_HEAD = struct.Struct("<II")
_BLOCK = 1 << 20
_log = logging.getLogger("penstock.formats")


class RawRecord(NamedTuple):
    number: int
    """Counted from 0 in its file or shard."""
    offset: int
    """Of the record's magic, in bytes from the start of the file."""
    payload: bytes


class BadRecord(Exception):
    """Damage found at `offset`; becomes an InvalidBody, or a skipped record."""

    def __init__(self, offset: int, fault: str) -> None:
        super().__init__(fault)
        self.offset = offset


# ---- reading -----------------------------------------------------------------------------------------------------


def decode_records(data: bytes, name: str = "body") -> list[bytes]:
    """The payloads of a request body of framed records.

    Raises:
        InvalidBody: no records, or damage; the text holds the record's number and byte offset.
    """
    return [record.payload for record in read_records(io.BytesIO(data), name)]


class Reading(TypedDict, total=False):
    """The options of `read_records`, for the readers that stand on it."""

    start: int
    stop: int | None
    max_record: int
    skip_bad: bool
    on_bad: OnBad | None


def read_decoded(
    decode: Callable[[bytes], T], stream: BinaryIO, name: str = "stream", **options: Unpack[Reading]
) -> Iterator[T]:
    """Yield what `decode` makes of each logical record; options as in `read_records`.

    Raises:
        InvalidBody: `record N at byte B: ...`, unless `skip_bad`.
    """
    for raw in read_records(stream, name, **options):
        try:
            yield decode(raw.payload)
        except InvalidBody as error:
            if not options.get("skip_bad"):
                raise InvalidBody(f"{name}: record {raw.number} at byte {raw.offset}: {error}") from error
            on_bad = options.get("on_bad")
            if on_bad is not None:
                on_bad(raw.number, raw.offset, str(error))


def read_records(
    stream: BinaryIO,
    name: str = "stream",
    *,
    start: int = 0,
    stop: int | None = None,
    max_record: int = MAX_RECORD,
    skip_bad: bool = False,
    on_bad: OnBad | None = None,
) -> Iterator[RawRecord]:
    """Yield the logical records of a stream; memory is bounded by one block and one record, never by a claimed size.

    Args:
        stream: positioned at `start`; read, never closed here.
        name: of the file, for error texts.
        start: byte offset of the stream's position in its file.
        stop: offset at which to end, a record head or the end of the file; None for the end.
        max_record: longest accepted logical record in bytes.
        skip_bad: look for the next record head after damage instead of raising.
        on_bad: told of each skipped record.

    Raises:
        InvalidBody: damage, or no record at all in a whole file.
    """
    window = Window(stream, start, stop)
    number = 0
    whole = start == 0 and stop is None
    while True:
        try:
            for offset, payload in frames(window, max_record):
                yield RawRecord(number, offset, payload)
                number += 1
        except BadRecord as bad:
            if not skip_bad:
                raise InvalidBody(f"{name}: record {number} at byte {bad.offset}: {bad}") from None
            if on_bad is not None:
                on_bad(number, bad.offset, str(bad))
            number += 1
            if not window.seek_head(bad.offset + 4):
                return
        else:
            break
    if number == 0 and whole:
        raise InvalidBody(f"{name}: no records (0 bytes)")


class Window:
    """The bytes from `offset` on that have been read and not consumed."""

    def __init__(self, stream: BinaryIO, start: int, stop: int | None) -> None:
        self.data = b""
        self.at = 0
        self._stream = stream
        self._base = start
        self._left = stop - start if stop is not None else None
        self.warned = False

    @property
    def offset(self) -> int:
        return self._base + self.at

    @property
    def available(self) -> int:
        return len(self.data) - self.at

    def fill(self, size: int) -> bool:
        """Make `size` bytes available from `at` on; False when the stream ends before."""
        missing = size - self.available
        if missing <= 0:
            return True
        # pieces of one block each: a file object may allocate all that it is asked for, and sizes come from the file
        pieces = [self.data[self.at :]] if self.available else []
        self._base += self.at
        self.at = 0
        while missing > 0:
            piece = self._stream.read(_BLOCK if self._left is None else min(_BLOCK, self._left))
            if not piece:
                break
            if self._left is not None:
                self._left -= len(piece)
            pieces.append(piece)
            missing -= len(piece)
        # of a single piece, join makes no copy
        self.data = b"".join(pieces)
        return missing <= 0

    def seek_head(self, offset: int) -> bool:
        """Move to the first record head at or after `offset`; False when there is none."""
        self.at = max(self.at, min(offset - self._base, len(self.data)))
        while True:
            found = _find_head(self.data, self.at, self._base)
            if found is not None:
                self.at = found
                return True
            # a head may begin in the last 7 bytes and end in the next block
            self.at = max(self.at, len(self.data) - 7)
            if not self.fill(self.available + 1):
                return False


def _find_head(data: bytes, at: int, base: int) -> int | None:
    """Position of the first aligned magic whose next word has flag 0 or 1: dmlc's own rule."""
    while (at := data.find(MAGIC, at)) >= 0 and at + 8 <= len(data):
        if (base + at) % 4 == 0 and data[at + 7] >> 5 <= 1:
            return at
        at += 1
    return None


def frames(window: Window, max_record: int) -> Iterator[tuple[int, bytes]]:
    """(offset, payload) of each logical record until the end of the stream."""
    unpack = _HEAD.unpack_from
    while True:
        # the inner loop takes whole records out of the window without a call per field
        data, at, size = window.data, window.at, len(window.data)
        base = window.offset - at
        while size - at >= 8:
            magic, word = unpack(data, at)
            end = at + 8 + (word + 3 & ~3)
            if magic != _MAGIC or word > MAX_RECORD or word > max_record or end > size:
                break
            payload = data[at + 8 : at + 8 + word]
            if end != at + 8 + word:
                _check_padding(window, base + at, at + 8 + word, end)
            window.at = end
            yield base + at, payload
            at = end
        record = next_record(window, max_record)
        if record is None:
            return
        yield record


def next_record(window: Window, max_record: int) -> tuple[int, bytes] | None:
    """The record at the window's position, whatever its flag; None at the end of the stream."""
    parts: list[bytes] = []
    first, total = window.offset, 0
    while True:
        offset = window.offset
        if not window.fill(8):
            if window.available == 0 and not parts:
                return None
            what = f"ends inside a record of several parts, begun at byte {first}" if parts else "truncated header"
            raise BadRecord(first, f"{what}: {window.available} bytes left")
        magic, word = _HEAD.unpack_from(window.data, window.at)
        flag, length = word >> 29, word & MAX_RECORD
        if magic != _MAGIC:
            head = window.data[window.at : window.at + 64]
            raise BadRecord(offset, f"not RecordIO, or lost alignment: found {head[:4].hex(' ')}, {describe(head)}")
        if flag > 3:
            raise BadRecord(offset, f"corrupt: flag {flag}, expected 0 to 3")
        if (flag in (0, 1)) == bool(parts):
            raise BadRecord(offset, f"corrupt sequence: flag {flag} {'inside' if parts else 'outside'} a split record")
        total += length + 4 * bool(parts)
        if total > max_record:
            raise BadRecord(first, f"record of {total} bytes or more; at most {max_record} are accepted")
        padded = length + 3 & ~3
        if not window.fill(8 + padded):
            raise BadRecord(
                offset,
                f"truncated: {length} bytes of payload with padding to {padded}, {window.available - 8} are there",
            )
        begin = window.at + 8
        parts.append(window.data[begin : begin + length])
        _check_padding(window, offset, begin + length, begin + padded)
        window.at = begin + padded
        if flag in (0, 3):
            return first, MAGIC.join(parts)


def _check_padding(window: Window, offset: int, begin: int, end: int) -> None:
    if not window.warned and any(window.data[begin:end]):
        warn_padding(window, offset)


def warn_padding(window: Window, offset: int) -> None:
    window.warned = True
    _log.warning("record at byte %d: padding is not zero; tolerated, told once per file", offset)


# ---- writing -----------------------------------------------------------------------------------------------------


def encode_record(payload: bytes, *, split: bool = True) -> bytes:
    """One framed record.

    Args:
        payload: up to 2**29 - 1 bytes (per part when split).
        split: cut at aligned magics, as dmlc and MXNet do and expect; False for protobuf records, whose best-known
            reader, the SageMaker SDK, cannot join parts (an aligned magic in them is a matter of 1 in 2**32 per word).

    Raises:
        ValueError: the payload does not fit the length field.
    """
    if len(payload) > MAX_RECORD:
        raise ValueError(f"record of {len(payload)} bytes; RecordIO holds at most {MAX_RECORD}")
    if not split or MAGIC not in payload:
        return b"".join((_HEAD.pack(_MAGIC, len(payload)), payload, bytes(-len(payload) % 4)))
    pieces, begin, at = [], 0, 0
    while (at := payload.find(MAGIC, at)) >= 0:
        if at % 4:
            at += 1
            continue
        pieces.append(payload[begin:at])
        begin = at = at + 4
    pieces.append(payload[begin:])
    flags = [0] if len(pieces) == 1 else [1, *([2] * (len(pieces) - 2)), 3]
    return b"".join(
        _HEAD.pack(_MAGIC, flag << 29 | len(piece)) + piece + bytes(-len(piece) % 4)
        for flag, piece in zip(flags, pieces, strict=True)
    )


class RecordWriter:
    """Appends records to a stream and keeps the offsets that an index needs."""

    def __init__(self, stream: BinaryIO, *, split: bool = True) -> None:
        self._stream = stream
        self._split = split
        self.offset = 0
        """Bytes written so far: where the next record begins."""
        self.count = 0

    def write(self, payload: bytes) -> int:
        """Write one record and return its offset."""
        offset, framed = self.offset, encode_record(payload, split=self._split)
        self._stream.write(framed)
        self.offset += len(framed)
        self.count += 1
        return offset


# ---- index and shards --------------------------------------------------------------------------------------------


def read_index(path: str | Path) -> dict[int, int]:
    """Key to byte offset, from an `.idx` file of `key<TAB>offset` lines.

    Raises:
        InvalidBody: names file and line.
    """
    index: dict[int, int] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        key, tab, offset = line.partition("\t")
        if not (tab and key.isdecimal() and offset.isdecimal()):
            raise InvalidBody(f"{path}, line {number}: expected `key<TAB>offset`, two whole numbers; got {line[:80]!r}")
        if int(offset) % 4:
            raise InvalidBody(f"{path}, line {number}: offset {offset} is not a multiple of 4")
        index[int(key)] = int(offset)
    return index


def write_index(path: str | Path, entries: Iterable[tuple[int, int]]) -> None:
    """Write (key, offset) pairs as MXNet's `.idx`."""
    Path(path).write_text("".join(f"{key}\t{offset}\n" for key, offset in entries), encoding="utf-8")


def build_index(stream: BinaryIO, name: str = "stream") -> list[tuple[int, int]]:
    """(number, offset) of every record, by reading the whole stream."""
    return [(record.number, record.offset) for record in read_records(stream, name)]


def read_at(stream: BinaryIO, offset: int, name: str = "stream") -> bytes:
    """The payload of the record at a byte offset, as an index gives it."""
    stream.seek(offset)
    for record in read_records(stream, name, start=offset):
        return record.payload
    raise InvalidBody(f"{name}: byte {offset} lies at or past the end of the file")


def shard_bounds(stream: BinaryIO, size: int, rank: int, world_size: int) -> tuple[int, int]:
    """(start, stop) of one reader's part of a file: every record belongs to exactly one of `world_size` readers.

    dmlc's rule: equal parts rounded to 4 bytes, both ends moved forward to a record head. It relies on a writer that
    splits at the magic; a file from one that does not is cut wrongly when a payload holds an aligned magic at a cut.

    Args:
        stream: seekable; its position is changed.
        size: of the file in bytes.
        rank: of this reader, below world_size.
        world_size: number of readers.
    """
    step = (-(-size // world_size) + 3) & ~3
    start = head_from(stream, min(step * rank, size), size)
    stop = size if rank == world_size - 1 else head_from(stream, min(step * (rank + 1), size), size)
    return start, stop


def head_from(stream: BinaryIO, offset: int, size: int) -> int:
    """The first record head at or after a byte offset; `size`, the end of the file, when there is none."""
    if offset in (0, size):
        return offset
    stream.seek(offset)
    window = Window(stream, offset, size)
    return window.offset if window.seek_head(offset) else size
