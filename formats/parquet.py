"""Parquet files as rows of plain values, batch by batch.

A training format: no request body is read by this module. Arrow checks what it decodes, but run-length encoding packs
any number of equal values into a few bytes, and Arrow unpacks them; and the accessors of its column metadata end the
process on some damaged files (an exception of its C++ part that nobody catches), so none of them is asked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from formats.errors import InvalidBody

__all__ = ["read", "write"]

_ROWS = 256


def read(
    stream: BinaryIO,
    name: str = "stream",
    *,
    required: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file; lists of numbers come as NumPy arrays, nested lists as lists of arrays.

    Args:
        stream: seekable; never closed here.
        name: of the file, for error texts.
        required: columns that must be there.
        optional: further columns to read; without any names given, all are read.

    Raises:
        InvalidBody: damaged, or a column is missing.
    """
    import pyarrow as pa  # noqa: PLC0415  heavy, and only some channels are Parquet
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        file = pq.ParquetFile(stream)
        columns = _columns(file, name, required, optional)
        for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
            for row in range(batch.num_rows):
                yield {field: _plain(batch.column(at)[row]) for at, field in enumerate(batch.schema.names)}
    except (pa.ArrowException, OSError, EOFError, ValueError, OverflowError) as error:
        raise InvalidBody(f"{name}: not a readable Parquet file: {error}") from error


def write(stream: BinaryIO, rows: Sequence[Mapping[str, Any]]) -> int:
    """Write rows of the same fields and return their number.

    Raises:
        ValueError: no rows, or values of one field that have no common type.
    """
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    if not rows:
        raise ValueError("no rows to write: a Parquet file needs at least one to know its columns")
    names = list(dict.fromkeys(field for row in rows for field in row))
    try:
        table = pa.table({field: [row.get(field) for row in rows] for field in names})
    except pa.ArrowException as error:
        raise ValueError(f"rows have no common type: {error}") from error
    pq.write_table(table, stream)
    return len(rows)


def _columns(file: Any, name: str, required: Sequence[str], optional: Sequence[str]) -> list[str] | None:
    present = file.schema_arrow.names
    for column in required:
        if column not in present:
            raise InvalidBody(f"{name}: column '{column}' is missing; present: {', '.join(present[:20])}")
    wanted = [column for column in (*required, *optional) if column in present]
    return wanted or None


def _plain(scalar: Any) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        inner = scalar.type.value_type
        if pa.types.is_integer(inner) or pa.types.is_floating(inner):
            return np.asarray(scalar.values.to_numpy(zero_copy_only=False))
        return [_plain(item) for item in scalar.values]
    return scalar.as_py()
