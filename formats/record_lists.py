"""Protobuf records of int32 lists (seq2seq's sentence pairs), in bulk: values and offsets instead of objects.

A whole block of records is walked through at once (`formats.record_walk`); from the first record that looks unusual,
the ordinary decoder takes over, so the result never depends on which way was taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats.errors import InvalidBody
from formats.record import decode, tensor_in
from formats.record_layout import DTYPES, FEATURES, Layout
from formats.record_numbers import numbers_in
from formats.record_walk import Slots, Spans, Walker
from formats.recordio import MAX_RECORD, BadRecord, Window, next_record

__all__ = ["Lists", "read_lists"]

_INT32 = 7


class Lists(NamedTuple):
    """The lists of one feature: that of record i is `values[offsets[i]:offsets[i + 1]]`."""

    values: NDArray[np.int32]
    offsets: NDArray[np.int64]
    """(N + 1), beginning with 0."""


def read_lists(
    stream: BinaryIO, name: str = "stream", *, features: Sequence[str] = ("source", "target")
) -> Iterator[tuple[Lists, ...]]:
    """Yield the named features of a stream of records in blocks of about a megabyte, in order.

    Args:
        stream: read to its end, never closed here.
        name: of the file, for error texts.
        features: every record must have them, as dense int32 tensors; others are ignored.

    Raises:
        InvalidBody: damage, an absent feature, or another kind of tensor; names record and byte.
    """
    window = Window(stream, 0, None)
    keys = [feature.encode() for feature in features]
    walker = Walker(lambda layout: _slots(layout, keys), len(keys))
    number = 0
    while window.fill(1):
        spans = walker.spans(window)
        if spans is not None:
            found = _bulk(spans)
            count = spans.num_records if found is not None else 0
            walker.consume(window, spans, count)
            number += count
            if found is not None:
                yield found
                continue
        single = _single(window, f"{name}: record {number}", features)
        number += 1
        yield single
    if number == 0:
        raise InvalidBody(f"{name}: no records (0 bytes)")


def _slots(layout: Layout, keys: list[bytes]) -> Slots | None:
    """Those of a record that holds the lists and nothing else, in any order."""
    tensors = {tensor.name: tensor for tensor in layout.tensors if tensor.side == FEATURES and tensor.kind == _INT32}
    if len(tensors) < len(layout.tensors) or tensors.keys() != set(keys):
        return None
    if any(tensor.keys is not None or tensor.shape for tensor in tensors.values()):
        return None
    return Slots(tuple(tensors[key].values for key in keys))


def _bulk(spans: Spans) -> tuple[Lists, ...] | None:
    try:
        return tuple(
            Lists(*numbers_in(spans.data, first, last, DTYPES[_INT32]))
            for first, last in zip(spans.first, spans.last, strict=True)
        )
    except ValueError:
        return None  # broken numbers: the ordinary decoder says where


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
