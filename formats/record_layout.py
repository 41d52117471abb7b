"""The layout of a protobuf record: what is the same in many records, and where between it their numbers lie."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "DTYPES",
    "FEATURES",
    "LABEL",
    "LONGEST_HEAD",
    "Field",
    "Head",
    "Layout",
    "Length",
    "TensorLayout",
    "fields_of",
    "learn",
]

FEATURES, LABEL = 1, 2
"""The field numbers of a record's two maps."""
DTYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<f4"), 3: np.dtype("<f8"), 7: np.dtype("<i4")}
"""Of the values of a tensor, by its field number in `Value`."""
LONGEST_HEAD = 256
"""Most bytes between two bodies."""

_VALUES, _KEYS, _SHAPE = 1, 2, 3
# of a tensor's fields: dense, sparse with and without values, a dense one that tells its shape, an empty one
_USUAL = {(), (_VALUES,), (_VALUES, _KEYS), (_VALUES, _KEYS, _SHAPE), (_VALUES, _SHAPE), (_SHAPE,)}
_MOST_TENSORS = 16


class TensorLayout(NamedTuple):
    side: int
    """FEATURES or LABEL."""
    name: bytes
    kind: int
    """A key of DTYPES."""
    values: int | None
    """Which of the layout's bodies; None when the tensor has no such field."""
    keys: int | None
    shape: tuple[int, ...]
    """The same in all records of the layout; empty when there is none."""


class Head(NamedTuple):
    """The bytes before a body, or behind the last; those under the masks are the same in all records."""

    size: int
    words: tuple[tuple[np.uint64, np.uint64], ...]
    """(mask, template) of each 8 bytes."""


class Length(NamedTuple):
    """A length field that varies: where it stands, and where what it measures ends, as (head, offset)."""

    head: int
    offset: int
    width: int
    end_head: int
    end_offset: int


class Layout(NamedTuple):
    tensors: tuple[TensorLayout, ...]
    heads: tuple[Head, ...]
    """One more than there are bodies."""
    lengths: tuple[Length, ...]


class Field(NamedTuple):
    number: int
    length_at: int
    start: int
    stop: int


def learn(payload: bytes) -> Layout | None:
    """The layout of a record that holds packed tensors, each named once, and nothing else; None for any other."""
    try:
        return _learned(payload)
    except (ValueError, IndexError):
        return None


def _learned(payload: bytes) -> Layout:
    outer: list[Field] = []
    bodies: list[Field] = []
    tensors = []
    for entry in fields_of(payload, 0, len(payload)):
        name, value = fields_of(payload, entry.start, entry.stop)
        (tensor,) = fields_of(payload, value.start, value.stop)
        if (
            entry.number not in (FEATURES, LABEL)
            or (name.number, value.number) != (1, 2)
            or tensor.number not in DTYPES
        ):
            raise ValueError("not a map of tensors")
        parts = fields_of(payload, tensor.start, tensor.stop)
        if [part.number for part in parts] not in (
            [],
            [_VALUES],
            [_VALUES, _KEYS],
            [_VALUES, _KEYS, _SHAPE],
            [_VALUES, _SHAPE],
            [_SHAPE],
        ):
            raise ValueError("not a usual tensor")
        places: dict[int, int] = {}
        shape: tuple[int, ...] = ()
        for part in parts:
            if part.number == _SHAPE:
                shape = _varints(payload[part.start : part.stop])
            else:
                places[part.number] = len(bodies)
                bodies.append(part)
        if places:
            outer += [entry, value, tensor]
        text = payload[name.start : name.stop]
        text.decode()  # a UnicodeDecodeError is a ValueError
        tensors.append(TensorLayout(entry.number, text, tensor.number, places.get(_VALUES), places.get(_KEYS), shape))
    if len({(tensor.side, tensor.name) for tensor in tensors}) < len(tensors):
        raise ValueError("a name comes twice")
    return _laid_out(payload, tuple(tensors), outer, bodies)


def _laid_out(payload: bytes, tensors: tuple[TensorLayout, ...], outer: list[Field], bodies: list[Field]) -> Layout:
    begins = [0, *(body.stop for body in bodies)]
    ends = [*(body.start for body in bodies), len(payload)]
    fixed = bytearray(b"\xff" * len(payload))
    lengths = []
    for field in (*outer, *bodies):
        width = field.start - field.length_at
        if width > 4:
            raise ValueError("a length of more than four bytes")
        # of a length only its width is the same in all records
        fixed[field.length_at : field.start] = b"\x80" * width
        head, end = (bisect_right(begins, at) - 1 for at in (field.length_at, field.stop))
        lengths.append(Length(head, field.length_at - begins[head], width, end, field.stop - begins[end]))
    lengths.sort()
    heads = []
    for begin, end in zip(begins, ends, strict=True):
        if end - begin > LONGEST_HEAD:
            raise ValueError("too much between two bodies")
        masks, templates = (
            np.frombuffer(piece.ljust(-(-len(piece) // 8) * 8, b"\0"), np.uint64)
            for piece in (bytes(fixed[begin:end]), payload[begin:end])
        )
        heads.append(Head(end - begin, tuple(zip(masks, templates & masks, strict=True))))
    return Layout(tensors, tuple(heads), tuple(lengths))


def fields_of(data: bytes, at: int, end: int) -> list[Field]:
    """The few fields of a message of length-delimited ones; ValueError for any other."""
    found: list[Field] = []
    while at < end:
        tag = data[at]
        if tag & 0x87 != 2:  # one byte long, wire type 2
            raise ValueError("not a length-delimited field")
        length_at = at = at + 1
        length = shift = 0
        while True:
            byte = data[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 28:
                raise ValueError("a length of more than 2**28")
        found.append(Field(tag >> 3, length_at, at, at + length))
        at += length
        if at > end or len(found) > _MOST_TENSORS:
            raise ValueError("fields end past their message, or are too many")
    return found


def _varints(data: bytes) -> tuple[int, ...]:
    if len(data) > LONGEST_HEAD:
        raise ValueError("a shape of too many axes")
    found, number, shift = [], 0, 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            found.append(number)
            number = shift = 0
        elif shift > 56:
            raise ValueError("an axis of more than 2**56")
    if shift:
        raise ValueError("a number is cut off")
    return tuple(found)
