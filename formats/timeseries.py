"""DeepAR's series: JSON Lines, requests and Parquet give the same `Series`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from formats import jsonlines, parquet
from formats.errors import InvalidBody

__all__ = ["Series", "parse_series", "read", "read_parquet", "row_of", "write", "write_parquet"]

_ALIASES = {"feat_static_cat": "cat", "feat_dynamic_real": "dynamic_feat"}
"""GluonTS's names of the same fields."""
_OPTIONAL = (*_ALIASES.values(), *_ALIASES)
_LARGEST = 1e30
"""Beyond it sums of squares and means of float32 would be infinite."""


@dataclass(frozen=True, slots=True, eq=False)
class Series:
    start: datetime
    """Of the first target; without a time zone."""
    target: NDArray[np.float64]
    """(T,); NaN where a value is missing; may be empty in a request."""
    cat: tuple[int, ...] | None = None
    dynamic_feat: NDArray[np.float64] | None = None
    """(num_features, T or T + prediction_length); no NaN."""
    file: str = ""
    """That it was read from, and `place`, such as `line 3`: for error texts."""
    place: str = ""


def read(stream: BinaryIO, name: str = "stream") -> Iterator[Series]:
    """Yield the series of a JSON Lines file, plain or gzip.

    Raises:
        InvalidBody: names file, line and field.
    """
    for number, row in jsonlines.read(stream, name):
        try:
            yield parse_series(row, name, f"line {number}")
        except InvalidBody as error:
            raise InvalidBody(f"{name}, line {number}: {error}") from error


def read_parquet(stream: BinaryIO, name: str = "stream") -> Iterator[Series]:
    """Yield the series of a Parquet file whose columns are named as the JSON fields; the stream must be seekable.

    Raises:
        InvalidBody: names file, row (from 0) and field.
    """
    for number, row in enumerate(parquet.read(stream, name, required=("start", "target"), optional=_OPTIONAL)):
        try:
            yield parse_series(row, name, f"row {number}")
        except InvalidBody as error:
            raise InvalidBody(f"{name}, row {number}: {error}") from error


def parse_series(row: Mapping[str, Any], file: str = "", place: str = "") -> Series:
    """One series from a JSON object, an instance of a request, or a Parquet row; other fields are ignored.

    GluonTS's names are taken where the fields' own are absent; an empty `cat` or `dynamic_feat` is as none.

    Raises:
        InvalidBody: names the field, its value, and what was expected.
    """
    for field in ("start", "target"):
        if row.get(field) is None:
            raise InvalidBody(f"'{field}' is missing; present: {', '.join(sorted(row)[:10]) or 'nothing'}")
    target = _numbers(row["target"], "target")
    row = {known: row.get(alias) for alias, known in _ALIASES.items()} | {
        name: value for name, value in row.items() if value is not None
    }
    features = _features(row["dynamic_feat"], len(target))
    return Series(_start(row["start"]), target, _categories(row["cat"]), features, file, place)


def write(stream: BinaryIO, series: Iterable[Series]) -> int:
    """Write JSON lines that every reader of DeepAR's format takes, and return their number."""
    return jsonlines.write(stream, map(row_of, series))


def write_parquet(stream: BinaryIO, series: Iterable[Series]) -> int:
    """Write a Parquet file of the same columns and return its number of rows."""
    rows = [row_of(each) for each in series]
    for row in rows:
        row["target"] = [float("nan") if value == "NaN" else value for value in row["target"]]
    return parquet.write(stream, rows)


def row_of(series: Series) -> dict[str, Any]:
    """The JSON object of a series: missing targets become the text "NaN", absent fields are left out."""
    target = series.target.tolist()
    row: dict[str, Any] = {
        "start": series.start.isoformat(" "),
        "target": target if np.isfinite(series.target).all() else [x if x == x else "NaN" for x in target],  # noqa: PLR0124
    }
    if series.cat is not None:
        row["cat"] = list(series.cat)
    if series.dynamic_feat is not None:
        row["dynamic_feat"] = series.dynamic_feat.tolist()
    return row


def _start(value: Any) -> datetime:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise InvalidBody(f"'start' is '{value[:40]}', expected a time such as '2024-03-01 00:00:00'") from None
    if type(value) is date:  # of a Parquet file
        value = datetime.combine(value, time())
    if not isinstance(value, datetime):
        raise InvalidBody(f"'start' is {str(value)[:40]!r}, expected a text such as '2024-03-01 00:00:00'")
    if value.tzinfo is not None:
        raise InvalidBody(f"'start' is '{value}', expected a time without a time zone")
    return value


def _numbers(values: Any, field: str, *, missing: bool = True) -> NDArray[np.float64]:
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        array = values.astype(np.float64)
    elif isinstance(values, list):
        # the set is cheap and usually says that NumPy may convert as it is: None becomes NaN, nothing else is let in
        if not set(map(type, values)) <= {int, float, type(None)}:
            values = [_number(value, f"'{field}'[{at}]") for at, value in enumerate(values)]
        try:
            array = np.array(values, np.float64)
        except OverflowError as error:
            raise InvalidBody(f"'{field}': {error}") from error
    else:
        raise InvalidBody(f"'{field}' is {str(values)[:40]!r}, expected an array of numbers")
    size = np.abs(array)
    bad = size > _LARGEST if missing else ~(size <= _LARGEST)
    if bad.any():
        at = int(bad.argmax())
        expected = f"a number from {-_LARGEST:g} to {_LARGEST:g}{' or null' if missing else ''}"
        raise InvalidBody(f"'{field}'[{at}] is {array[at]:g}, expected {expected}")
    return array


def _number(value: Any, where: str) -> float:
    if value is None or value == "NaN":
        return float("nan")
    if type(value) in (int, float):
        return float(value) if abs(value) < 1e308 else float("inf")
    raise InvalidBody(f'{where} is {str(value)[:40]!r}, expected a number, null or "NaN"')


def _categories(values: Any) -> tuple[int, ...] | None:
    if values is None:
        return None
    found: Sequence[Any] = values.tolist() if isinstance(values, np.ndarray) else values
    if not isinstance(found, list):
        raise InvalidBody(f"'cat' is {str(values)[:40]!r}, expected an array of integers")
    for at, value in enumerate(found):
        # tools that know columns of floats alone, where something is missing, write 2.0
        whole = type(value) is int or (type(value) is float and value.is_integer())
        if not whole or not 0 <= value < 2**31:
            raise InvalidBody(f"'cat'[{at}] is {str(value)[:40]!r}, expected an integer of 0 or more")
    return tuple(map(int, found)) or None


def _features(values: Any, length: int) -> NDArray[np.float64] | None:
    rows = list(values) if isinstance(values, np.ndarray) else values
    if rows is None or rows == []:
        return None
    if not isinstance(rows, list):
        raise InvalidBody(f"'dynamic_feat' is {str(values)[:40]!r}, expected an array of arrays")
    arrays = [_numbers(row, f"dynamic_feat[{at}]", missing=False) for at, row in enumerate(rows)]
    for at, array in enumerate(arrays):
        if len(array) != len(arrays[0]):
            raise InvalidBody(f"'dynamic_feat'[{at}] has {len(array)} values, 'dynamic_feat'[0] {len(arrays[0])}")
    if len(arrays[0]) < length:
        raise InvalidBody(f"'dynamic_feat' has {len(arrays[0])} values a row, fewer than the {length} of 'target'")
    return np.stack(arrays)
