"""Protobuf records of sparse rows, in bulk: blocks of CSR arrays and one label per record.

A whole block of records is walked through at once (`formats.record_walk`); from the first record that looks unusual,
the ordinary decoder takes over, so the result never depends on which way was taken.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats.errors import InvalidBody
from formats.record import Record, Tensor, decode, tensor_in
from formats.record_numbers import Positions
from formats.record_rows import MAX_WIDTH, NUM_SLOTS, slots_of, values_in
from formats.record_walk import Spans, Walker
from formats.recordio import MAX_RECORD, BadRecord, Window, next_record

__all__ = ["SparseRows", "read_sparse"]

_SINGLES = 1024


class SparseRows(NamedTuple):
    """Rows in canonical CSR form, as `scipy.sparse.csr_matrix((data, indices, indptr), shape=(N, width))` takes them.

    Those of row i are `indices[indptr[i]:indptr[i + 1]]`, rising, and `data` beside them. Of a key that a record gives
    twice the last value counts, as in `formats.record.dense`.
    """

    indptr: NDArray[np.int64]
    """(N + 1), beginning with 0."""
    indices: NDArray[np.int64]
    """(nnz) flat row-major indices, below `width`."""
    data: NDArray[Any]
    """(nnz) float32, float64 or int32, as the records say; all records of a block say the same."""
    labels: NDArray[Any] | None
    """(N) of the labels' own dtype; None when the records have no label."""
    width: int
    """Number of elements of a dense row: the product of the records' shape."""


class _Row(NamedTuple):
    indices: NDArray[np.int64]
    data: NDArray[Any]
    label: NDArray[Any] | None


def read_sparse(
    stream: BinaryIO, name: str = "stream", *, feature: str = "values", label: str = "values"
) -> Iterator[SparseRows]:
    """Yield the rows of a stream of records in blocks of about a megabyte, in order.

    Args:
        stream: read to its end, never closed here.
        name: of the file, for error texts.
        feature: which of each record's features; a dense one counts as a row of which every element is there.
        label: which of each record's labels; records without any label are fine if all are without.

    Raises:
        InvalidBody: damage, an absent feature, a label that is not one number, or a row that differs in width from the
            first; names record and byte.
    """
    reader = _Reader(Window(stream, 0, None), name, feature, label)
    yield from reader.blocks()
    if reader.number == 0:
        raise InvalidBody(f"{name}: no records (0 bytes)")


class _Reader:
    def __init__(self, window: Window, name: str, feature: str, label: str) -> None:
        self.number = 0
        self._window = window
        self._name = name
        self._feature = feature
        self._label = label
        self._width: int | None = None
        self._labelled: bool | None = None
        self._walker = Walker(lambda layout: slots_of(layout, feature, label), NUM_SLOTS)

    def blocks(self) -> Iterator[SparseRows]:
        singles: list[_Row] = []
        while self._window.fill(1):
            spans = self._walker.spans(self._window)
            if spans is not None:
                found = self._bulk(spans)
                self._walker.consume(self._window, spans, 0 if found is None else len(found.indptr) - 1)
                if found is not None:
                    if singles:
                        yield self._stacked(singles)
                        singles = []
                    self.number += len(found.indptr) - 1
                    yield found
                    continue
            row = self._next()
            if singles and (len(singles) == _SINGLES or _dtypes(row) != _dtypes(singles[0])):
                yield self._stacked(singles)
                singles = []
            singles.append(row)
        if singles:
            yield self._stacked(singles)

    def _bulk(self, spans: Spans) -> SparseRows | None:
        """As many of the rows as are sound; None when the first is not."""
        found = values_in(spans, self._width)
        if found is None or self._labelled not in (None, found.labels is not None):
            return None
        self._width, self._labelled = found.width, found.labels is not None
        keys = found.keys
        if keys is None:
            keys = np.tile(np.arange(found.width), len(found.offsets) - 1)
        return SparseRows(*_canonical(found.offsets, keys, found.values), found.labels, found.width)

    def _next(self) -> _Row:
        """One record by the ordinary decoder."""
        offset = self._window.offset
        try:
            framed = next_record(self._window, MAX_RECORD)
            assert framed is not None
            offset, payload = framed
            record = decode(payload)
            indices, data = self._row(tensor_in(record.features, self._feature))
            row = _Row(indices, data, self._value(record))
        except BadRecord as bad:
            raise InvalidBody(f"{self._name}: record {self.number} at byte {bad.offset}: {bad}") from None
        except InvalidBody as error:
            raise InvalidBody(f"{self._name}: record {self.number} at byte {offset}: {error}") from error
        self.number += 1
        return row

    def _row(self, tensor: Tensor) -> tuple[NDArray[np.int64], NDArray[Any]]:
        width = math.prod(tensor.shape) if tensor.shape else len(tensor.values)
        if self._width is None and width > MAX_WIDTH:
            raise InvalidBody(
                f"sparse shape {list(tensor.shape)} has {width} elements; at most {MAX_WIDTH} are accepted"
            )
        if self._width is None:
            self._width = width
        if width != self._width:
            raise InvalidBody(f"feature '{self._feature}' has {width} elements, the first record has {self._width}")
        keys = np.arange(len(tensor.values)) if tensor.keys is None else tensor.keys.astype(np.int64)
        return keys, tensor.values

    def _value(self, record: Record) -> NDArray[Any] | None:
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
        return values

    def _stacked(self, rows: list[_Row]) -> SparseRows:
        assert self._width is not None
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row.indices) for row in rows], out=indptr[1:])
        indices, data = (np.concatenate([row[part] for row in rows]) for part in (0, 1))
        labels = [row.label for row in rows if row.label is not None]
        return SparseRows(*_canonical(indptr, indices, data), np.concatenate(labels) if labels else None, self._width)


def _dtypes(row: _Row) -> tuple[Any, Any]:
    return row.data.dtype, None if row.label is None else row.label.dtype


def _canonical(
    indptr: Positions, indices: NDArray[np.int64], data: NDArray[Any]
) -> tuple[Positions, NDArray[np.int64], NDArray[Any]]:
    """The same rows, each with rising indices; of equal ones the last stays."""
    rising = np.ones(len(indices) + 1, np.bool_)
    np.greater(indices[1:], indices[:-1], out=rising[1:-1])
    rising[indptr] = True  # the first of a row has none before it
    if rising.all():
        return indptr, indices, data
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    order = np.lexsort((indices, rows))  # stable: equal ones keep their order
    rows, indices, data = rows[order], indices[order], data[order]
    last = np.ones(len(rows), np.bool_)
    last[:-1] = (rows[1:] != rows[:-1]) | (indices[1:] != indices[:-1])
    return np.searchsorted(rows[last], np.arange(len(indptr))).astype(np.int64), indices[last], data[last]
