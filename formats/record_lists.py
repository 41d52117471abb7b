"""Protobuf records of int32 lists (seq2seq's sentence pairs), in bulk: values and offsets instead of objects.

A whole block of records is walked at once: each step below reads the same field of all its records with one NumPy
operation. The walk knows only the structure that writers produce for such records; from the first record in a block
that looks otherwise, the ordinary decoder takes over, so the result never depends on which way was taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats.errors import InvalidBody
from formats.record import decode, tensor_in
from formats.recordio import MAX_RECORD, BadRecord, Window, next_record

__all__ = ["Lists", "read_lists"]

_BLOCK = 1 << 18
_MAGIC = 0xCED7230A
_ENTRY, _KEY, _VALUE, _INT32, _VALUES = 0x0A, 0x0A, 0x12, 0x3A, 0x0A

Positions = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Lists(NamedTuple):
    """The lists of one feature: that of record i is `values[offsets[i]:offsets[i + 1]]`."""

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]
    """(N + 1), beginning with 0."""


def read_lists(
    stream: BinaryIO, name: str = "stream", *, features: Sequence[str] = ("source", "target")
) -> Iterator[tuple[Lists, ...]]:
    """Yield the named features of a stream of records in blocks of about half a megabyte, in order.

    Args:
        stream: read to its end, never closed here.
        name: of the file, for error texts.
        features: every record must have them, as dense int32 tensors; others are ignored.

    Raises:
        InvalidBody: damage, an absent feature, or another kind of tensor; names record and byte.
    """
    window = Window(stream, 0, None)
    keys = [feature.encode() for feature in features]
    number, pause = 0, 0
    while window.fill(1):
        window.fill(_BLOCK)
        # files of other structures should not pay for a walk at every record
        count, found = (0, None) if pause else _walk(window, keys)
        if found is not None:
            number += count
            yield found
            continue
        single = _single(window, f"{name}: record {number}", features)
        number += 1
        pause = pause - 1 if pause else 16
        yield single
    if number == 0:
        raise InvalidBody(f"{name}: no records (0 bytes)")


def _single(window: Window, where: str, features: Sequence[str]) -> tuple[Lists, ...]:
    """One record by the ordinary decoder."""
    offset = window.offset
    try:
        framed = next_record(window, MAX_RECORD)
        assert framed is not None
        offset, payload = framed
        record = decode(payload)
        tensors = [tensor_in(record.features, feature) for feature in features]
        for feature, tensor in zip(features, tensors, strict=True):
            if tensor.values.dtype != np.int32 or (tensor.keys is not None and len(tensor.keys)):
                kind = "sparse" if tensor.keys is not None else tensor.values.dtype
                raise InvalidBody(f"feature '{feature}' is {kind}, expected a dense int32 tensor")  # noqa: TRY301
    except BadRecord as bad:
        raise InvalidBody(f"{where} at byte {bad.offset}: {bad}") from None
    except InvalidBody as error:
        raise InvalidBody(f"{where} at byte {offset}: {error}") from error
    return tuple(Lists(t.values.astype(np.int32), np.array([0, len(t.values)], np.int64)) for t in tensors)


def _walk(window: Window, keys: list[bytes]) -> tuple[int, tuple[Lists, ...] | None]:
    """The records from the window's position on that have the usual structure; consumes them."""
    data = np.frombuffer(window.data, np.uint8, window.available, window.at)
    starts, ends = _frames(data)
    if len(starts) == 0:
        return 0, None
    walk = _Walk(data, starts, ends)
    spans = walk.features(keys)
    usual = walk.usual & (walk.at == ends)
    count = len(usual) if usual.all() else int(usual.argmin())
    if count == 0:
        return 0, None
    try:
        lists = tuple(_int32_lists(data, first[:count], last[:count]) for first, last in spans)
    except ValueError:
        return 0, None  # broken numbers: the ordinary decoder says where
    window.at += int(ends[count - 1] + 3 & ~3)
    return count, lists


def _frames(data: NDArray[np.uint8]) -> tuple[Positions, Positions]:
    """(start, end) of the payloads of the whole records from the beginning of the data on."""
    words = data[: len(data) & ~3].view("<u4").astype(np.int64)
    heads = np.flatnonzero(words[:-1] == _MAGIC)
    lengths = words[heads + 1]
    following = heads + 2 + (lengths + 3 >> 2)
    # flags make a length word huge, and a magic inside a payload breaks the chain
    whole = (lengths <= MAX_RECORD) & (following <= len(words))
    chained = np.ones(len(heads), np.bool_)
    chained[:1] = heads[:1] == 0
    chained[1:] = heads[1:] == following[:-1]
    good = whole & chained
    count = len(good) if good.all() else int(good.argmin())
    starts = 4 * (heads[:count] + 2)
    return starts, starts + lengths[:count]


class _Walk:
    """A position in each of many records, moved forward together; `usual` says which records still fit."""

    def __init__(self, data: NDArray[np.uint8], starts: Positions, ends: Positions) -> None:
        # reads go at most 16 bytes past a position that was checked against its end
        self._data = np.concatenate([data, np.zeros(64, np.uint8)])
        self.at = starts.copy()
        self._ends = ends
        self.usual: Flags = np.ones(len(starts), np.bool_)

    def features(self, keys: list[bytes]) -> list[tuple[Positions, Positions]]:
        """(first, last) byte of the packed values of each key; the entries may come in any order."""
        found = [(self.at.copy(), self.at.copy()) for _ in keys]
        seen = np.zeros((len(keys), len(self.at)), np.bool_)
        for _ in keys:
            self._tag(_ENTRY)
            entry_end = self._length()
            which = self._key(keys)
            self._tag(_VALUE)
            value_end = self._length()
            self._tag(_INT32)
            tensor_end = self._length()
            # an empty list is an empty tensor: no values field at all
            empty = self.at == tensor_end
            values_end = np.where(empty, self.at, 0)
            self._tag(_VALUES, empty)
            values_end = np.where(empty, values_end, self._length(empty))
            self._require((values_end == tensor_end) & (tensor_end == value_end) & (value_end == entry_end))
            for number, (first, last) in enumerate(found):
                mine = which == number
                first[mine], last[mine] = self.at[mine], values_end[mine]
                self._require(~(mine & seen[number]))
                seen[number] |= mine
            self.at = np.where(self.usual, values_end, self.at)
        self.usual &= seen.all(axis=0)
        return found

    def _require(self, fits: Flags) -> None:
        self.usual &= fits

    def _tag(self, tag: int, absent: Flags | None = None) -> None:
        fits = (self._data[self.at] == tag) & (self.at < self._ends)
        if absent is None:
            self._require(fits)
            self.at = self.at + self.usual
        else:
            self._require(fits | absent)
            self.at = self.at + (self.usual & ~absent)

    def _length(self, absent: Flags | None = None) -> Positions:
        """Read a length of up to three bytes; returns the end that it gives."""
        length, more, width = np.zeros_like(self.at), np.ones_like(self.usual), np.zeros_like(self.at)
        for number in range(3):
            byte = self._data[self.at + number].astype(np.int64)
            length += np.where(more, (byte & 0x7F) << (7 * number), 0)
            width += more
            more = more & (byte >= 0x80)
            if not more.any():
                break
        present = self.usual if absent is None else self.usual & ~absent
        self.at = self.at + np.where(present, width, 0)
        end = self.at + np.where(present, length, 0)
        self._require(~present | (~more & (end <= self._ends)))
        return end

    def _key(self, keys: list[bytes]) -> NDArray[np.int64]:
        """Which of the keys stands here; a record with another one is not usual."""
        self._tag(_KEY)
        which = np.full(len(self.at), -1, np.int64)
        size = np.zeros_like(self.at)
        lengths = self._data[self.at]
        for number, key in enumerate(keys):
            same = (lengths == len(key)) & (self.at + len(key) < self._ends)
            for place, byte in enumerate(key):
                same &= self._data[np.minimum(self.at + 1 + place, len(self._data) - 1)] == byte
            which[same], size[same] = number, 1 + len(key)
        self._require(which >= 0)
        self.at = self.at + size
        return which


def _int32_lists(data: NDArray[np.uint8], first: Positions, last: Positions) -> Lists:
    """Decode the varints of many spans at once.

    Raises:
        ValueError: a number is cut off or longer than ten bytes.
    """
    sizes = last - first
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    # the bytes of all spans, side by side: steps of 1 inside a span, and a jump where the next begins
    filled = sizes > 0
    starts, heads = first[filled], bounds[:-1][filled]
    steps = np.ones(bounds[-1], np.int32)
    steps[heads] = np.diff(starts - heads, prepend=0) + (heads > 0)
    raw: NDArray[Any] = data[np.cumsum(steps, out=steps)]
    final = raw < 0x80
    if not final[bounds[1:][filled] - 1].all():
        raise ValueError("a number is cut off")
    stops = np.flatnonzero(final)
    widths = np.diff(stops, prepend=-1)
    longest = int(widths.max(initial=0))
    if longest > 10:
        raise ValueError("a number is too long")
    # the low 32 bits are the number: negative ones are written with their sign extended to 64
    values = raw[stops].astype(np.uint32)
    if longest > 1:
        # one or two bytes hold most ids; longer ones are visited apart
        low = (raw[stops - 1] & 0x7F).astype(np.uint32)
        values = np.where(widths == 2, values << 7 | low, values)
        (long,) = np.nonzero(widths > 2)
        begins = stops[long] - (widths[long] - 1)
        parts = np.zeros(len(long), np.uint32)
        for number in range(min(5, longest)):
            inside = widths[long] > number
            byte = raw[np.where(inside, begins + number, begins)] & 0x7F
            parts |= np.where(inside, byte, 0).astype(np.uint32) << np.uint32(7 * number)
        values[long] = parts
    offsets = np.searchsorted(stops, bounds)
    return Lists(values.view(np.int32), offsets.astype(np.int64))
