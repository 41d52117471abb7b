"""Protobuf records as matrices, in bulk: one row of features and one label per record.

Files of dense float records, by far the most common, repeat one byte layout: only the numbers differ. The layout of
one record is learned, then whole blocks are compared with it and cut at once. Records of varying size (sparse rows,
whole numbers) are walked through (`formats.record_walk`), and whatever is odd goes through the ordinary decoder, so the
result never depends on which way was taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats.errors import InvalidBody
from formats.record import Record, decode, dense, tensor_in
from formats.record_layout import fields_of
from formats.record_rows import NUM_SLOTS, slots_of, values_in
from formats.record_walk import Walker
from formats.recordio import MAX_RECORD, BadRecord, Window, encode_record, next_record

__all__ = ["Rows", "read_matrix"]

FloatType = np.dtype[np.float32] | np.dtype[np.float64]

_BLOCK = 1 << 20
_DENSE = 1 << 22
_DTYPES: dict[int, FloatType] = {2: np.dtype("<f4"), 3: np.dtype("<f8")}


class Rows(NamedTuple):
    features: NDArray[np.float32]
    """(N, D) float32, whatever the file held."""
    labels: NDArray[np.float32] | None
    """(N,) float32; None when the records have no label."""


class _Span(NamedTuple):
    """Where the numbers of one tensor lie in a framed record."""

    start: int
    stop: int
    dtype: FloatType


class _Layout(NamedTuple):
    size: int
    """Of the framed record in bytes."""
    fixed: tuple[tuple[int, NDArray[np.uint8]], ...]
    """(offset, bytes) of all that is not numbers."""
    features: _Span
    label: _Span | None


def read_matrix(
    stream: BinaryIO,
    name: str = "stream",
    *,
    feature: str = "values",
    label: str = "values",
    max_features: int = 1 << 22,
) -> Iterator[Rows]:
    """Yield the rows of a stream of records in blocks of about a megabyte, in order.

    Args:
        stream: read to its end, never closed here.
        name: of the file, for error texts.
        feature: which of each record's features.
        label: which of each record's labels; records without any label are fine if all are without.
        max_features: widest accepted row, which bounds what a sparse record may claim.

    Raises:
        InvalidBody: damage, an absent feature, or a row that differs in length from the first; names record and byte.
    """
    reader = _Reader(Window(stream, 0, None), name, feature, label, max_features)
    yield from reader.blocks()
    if reader.number == 0:
        raise InvalidBody(f"{name}: no records (0 bytes)")


class _Reader:
    def __init__(self, window: Window, name: str, feature: str, label: str, max_features: int) -> None:
        self.number = 0
        self._window = window
        self._name = name
        self._feature = feature
        self._label = label
        self._max_features = max_features
        self._width: int | None = None
        self._labelled: bool | None = None
        self._walker = Walker(lambda found: slots_of(found, feature, label), NUM_SLOTS)

    def blocks(self) -> Iterator[Rows]:
        pause, rest = 0, 0
        singles: list[tuple[NDArray[np.float32], float | None]] = []
        while (single := self._next()) is not None:
            row, value, layout = single
            singles.append((row, value))
            bulk = None
            if rest == 0:
                bulk = self._bulk(layout)
                # files of changing layouts should not pay for a comparison at every record
                pause = min(2 * pause + 1, 1024) if bulk is None else 0
            rest = pause if rest == 0 else rest - 1
            if bulk is not None or len(singles) * (self._width or 1) * 4 >= _BLOCK:
                yield self._joined(singles)
                singles = []
            while bulk is not None:
                yield bulk
                bulk = self._bulk(layout)
        if singles:
            yield self._joined(singles)

    def _joined(self, singles: list[tuple[NDArray[np.float32], float | None]]) -> Rows:
        labels = np.array([value for _, value in singles], np.float32) if self._labelled else None
        return Rows(np.stack([row for row, _ in singles]), labels)

    def _next(self) -> tuple[NDArray[np.float32], float | None, _Layout | None] | None:
        """One record by the ordinary decoder: its row, its label, and its layout if that may repeat."""
        offset = self._window.offset
        try:
            framed = next_record(self._window, MAX_RECORD)
            if framed is None:
                return None
            offset, payload = framed
            record = decode(payload)
            row = self._row(record)
            value = self._value(record)
        except BadRecord as bad:
            raise InvalidBody(f"{self._name}: record {self.number} at byte {bad.offset}: {bad}") from None
        except InvalidBody as error:
            raise InvalidBody(f"{self._name}: record {self.number} at byte {offset}: {error}") from error
        self.number += 1
        plain = len(record.features) == 1 and len(record.label) <= 1
        return row, value, _layout(payload, self._label in record.label) if plain else None

    def _row(self, record: Record) -> NDArray[np.float32]:
        tensor = tensor_in(record.features, self._feature)
        row = dense(tensor, max_elements=self._max_features).ravel()
        if self._width is None:
            self._width = len(row)
        if len(row) != self._width:
            raise InvalidBody(f"feature '{self._feature}' has {len(row)} values, the first record has {self._width}")
        return _as_float32(row)

    def _value(self, record: Record) -> float | None:
        labelled = bool(record.label)
        if self._labelled is None:
            self._labelled = labelled
        if labelled != self._labelled:
            raise InvalidBody(f"{'has a' if labelled else 'has no'} label, unlike the first record")
        if not labelled:
            return None
        values = tensor_in(record.label, self._label, "labels").values
        if len(values) != 1:
            raise InvalidBody(f"label '{self._label}' has {len(values)} values, expected 1")
        return float(_as_float32(values)[0])

    def _bulk(self, layout: _Layout | None) -> Rows | None:
        return self._walked() if layout is None else self._cut(layout)

    def _walked(self) -> Rows | None:
        """The following rows of varying size: sparse ones, whole numbers; None when the next record is no such row."""
        spans = self._walker.spans(self._window) if self._window.fill(1) else None
        if spans is None or self._width is None:
            return None
        # a sparse row takes far fewer bytes than its numbers will
        found = values_in(spans.up_to(max(1, _DENSE // (4 * self._width + 4))), self._width)
        if found is not None and self._labelled != (found.labels is not None):
            found = None
        count = 0 if found is None else len(found.offsets) - 1
        self._walker.consume(self._window, spans, count)
        if found is None:
            return None
        self.number += count
        labels = None if found.labels is None else _as_float32(found.labels)
        values = _as_float32(found.values)
        if found.keys is None:
            return Rows(values.reshape(count, self._width), labels)
        rows = np.zeros((count, self._width), np.float32)
        # of a key given twice the last value stays, as in `dense`
        rows[np.repeat(np.arange(count), np.diff(found.offsets)), found.keys] = values
        return Rows(rows, labels)

    def _cut(self, layout: _Layout) -> Rows | None:
        """All following records of the layout within one block; None when the next one is not of it."""
        window, size = self._window, layout.size
        window.fill(max(_BLOCK, size))
        count = window.available // size
        if count == 0:
            return None
        rows = np.frombuffer(window.data, np.uint8, count * size, window.at).reshape(count, size)
        same = np.ones(count, np.bool_)
        for at, template in layout.fixed:
            same &= (rows[:, at : at + len(template)] == template).all(axis=1)
        if not same.all():
            count = int(same.argmin())
            if count == 0:
                return None
            rows = rows[:count]
        window.at += count * size
        self.number += count
        features = _numbers(rows, layout.features)
        return Rows(features, None if layout.label is None else _numbers(rows, layout.label)[:, 0])


def _numbers(rows: NDArray[np.uint8], span: _Span) -> NDArray[np.float32]:
    numbers: NDArray[np.float32] = np.ascontiguousarray(rows[:, span.start : span.stop]).view(span.dtype)
    return _as_float32(numbers)


def _as_float32(numbers: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):  # what float32 cannot hold becomes infinite
        return numbers.astype(np.float32, copy=False)


def _layout(payload: bytes, labelled: bool) -> _Layout | None:
    """The layout of a record that holds one packed float feature, perhaps one such label, and nothing else."""
    framed = encode_record(payload, split=False)
    spans = {}
    try:
        for number, _, start, stop in fields_of(framed, 8, 8 + len(payload)):
            if number not in (1, 2) or number in spans:
                return None
            spans[number] = _numbers_of_entry(framed, start, stop)
    except (ValueError, IndexError):
        return None
    features, label = spans.get(1), spans.get(2)
    if features is None or labelled != (label is not None):
        return None
    fixed, at = [], 0
    for span in sorted((s for s in (features, label) if s is not None), key=lambda s: s.start):
        fixed.append((at, np.frombuffer(framed[at : span.start], np.uint8)))
        at = span.stop
    if at < len(framed):
        fixed.append((at, np.frombuffer(framed[at:], np.uint8)))
    return _Layout(len(framed), tuple(fixed), features, label)


def _numbers_of_entry(data: bytes, start: int, stop: int) -> _Span:
    """Map entry -> Value -> tensor -> its packed numbers; ValueError for any other structure."""
    _, value = fields_of(data, start, stop)
    (tensor,) = fields_of(data, value.start, value.stop)
    (values,) = fields_of(data, tensor.start, tensor.stop)
    dtype = _DTYPES.get(tensor.number)
    if value.number != 2 or values.number != 1 or dtype is None or (values.stop - values.start) % dtype.itemsize:
        raise ValueError("not a dense float tensor")
    return _Span(values.start, values.stop, dtype)
