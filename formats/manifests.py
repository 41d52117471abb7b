"""Augmented manifests (one JSON object per sample), and the plain manifest that lists objects under a prefix."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from formats import jsonlines
from formats.errors import InvalidBody

__all__ = [
    "ManifestRow",
    "Reference",
    "attribute_stream",
    "class_of",
    "classes_of",
    "decode_manifest_file",
    "encode_manifest_file",
    "grouped",
    "read",
    "write",
]

LabelFormat = Literal["multi-hot", "class-id"]


@dataclass(frozen=True, slots=True)
class Reference:
    """The value of an attribute whose name ends in `-ref`: where its bytes are."""

    uri: str


@dataclass(frozen=True, slots=True)
class ManifestRow:
    line: int
    """In the file, from 1."""
    values: tuple[Reference | str, ...]
    """In the order of the attribute names; text as the algorithm's stream would carry it."""


def read(stream: BinaryIO, attributes: Sequence[str], name: str = "manifest") -> Iterator[ManifestRow]:
    """Yield the rows of an augmented manifest.

    Args:
        stream: JSON Lines, plain or gzip.
        attributes: 1 to 16 names, in the order of the stream; others, `*-metadata` among them, are ignored.
        name: of the file, for error texts.

    Raises:
        ValueError: not 1 to 16 names.
        InvalidBody: an empty line, a byte order mark, broken JSON, or a missing attribute; names the line.
    """
    if not 1 <= len(attributes) <= 16:
        raise ValueError(f"{len(attributes)} attribute names, expected 1 to 16")
    for number, row in jsonlines.read(stream, name, strict=True):
        values: list[Reference | str] = []
        for attribute in attributes:
            value = row.get(attribute)
            if value is None:
                present = ", ".join(f"'{key}'" for key in sorted(row)[:16])
                raise InvalidBody(f"{name}, line {number}: attribute '{attribute}' is missing; present: {present}")
            if not attribute.endswith("-ref"):
                values.append(_text(value))
            elif isinstance(value, str) and value:
                values.append(Reference(value))
            else:
                fault = f"'{attribute}' is {str(value)[:60]!r}, expected a URI such as s3://bucket/key"
                raise InvalidBody(f"{name}, line {number}: {fault}")
        yield ManifestRow(number, tuple(values))


def write(stream: BinaryIO, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as they are given and return their number."""
    return jsonlines.write(stream, rows)


def attribute_stream(rows: Iterable[ManifestRow], fetch: Callable[[str], bytes]) -> Iterator[bytes]:
    """Yield the records that an algorithm reads: one per attribute, row by row.

    Args:
        rows: of the manifest.
        fetch: the bytes of a URI.
    """
    for row in rows:
        for value in row.values:
            yield fetch(value.uri) if isinstance(value, Reference) else value.encode()


def grouped(records: Iterable[bytes], size: int, name: str = "stream") -> Iterator[tuple[bytes, ...]]:
    """Yield the attribute records of one sample at a time.

    Raises:
        InvalidBody: the stream ends inside a sample.
    """
    group: list[bytes] = []
    samples = 0
    for record in records:
        group.append(record)
        if len(group) == size:
            yield tuple(group)
            group = []
            samples += 1
    if group:
        raise InvalidBody(f"{name}: truncated: sample {samples} has {len(group)} of its {size} attribute records")


def class_of(text: str | bytes, num_classes: int | None = None) -> int:
    """The class of a single-label attribute: `2`, `"2"` or `2.0`.

    Raises:
        InvalidBody: not a whole number, or out of range.
    """
    value = _json(text)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 0:
        raise InvalidBody(f"class is {str(value)[:40]!r}, expected a whole number of 0 or more")
    if num_classes is not None and value >= num_classes:
        raise InvalidBody(f"class is {int(value)}, expected a number below num_classes = {num_classes}")
    return int(value)


def classes_of(text: str | bytes, num_classes: int, label_format: LabelFormat = "multi-hot") -> NDArray[np.float32]:
    """The multi-hot vector of a multi-label attribute, (num_classes,) float32.

    Args:
        text: a JSON array, perhaps quoted: `[1, 0, 1]` multi-hot, `[0, 2]` as class ids.
        num_classes: length of the result.
        label_format: how to read the array.

    Raises:
        InvalidBody: not an array, of another length than `num_classes`, or with a value out of range.
    """
    value = _json(text)
    if not isinstance(value, list):
        raise InvalidBody(f"label is {str(value)[:40]!r}, expected an array ({label_format})")
    if label_format == "class-id":
        vector = np.zeros(num_classes, np.float32)
        vector[[class_of(json.dumps(item), num_classes) for item in value]] = 1
        return vector
    if len(value) != num_classes:
        raise InvalidBody(
            f"Mismatch between number of labels in the multi-label data ({len(value)}) and the num_classes parameter "
            f"({num_classes})."
        )
    if any(isinstance(item, bool) or item not in (0, 1) for item in value):
        raise InvalidBody(f"label is {str(value)[:80]}, expected zeros and ones (multi-hot)")
    return np.array(value, np.float32)


def decode_manifest_file(data: bytes, name: str = "manifest") -> list[str]:
    """The URIs of a `ManifestFile`: `[{"prefix": "s3://bucket/dir/"}, "a.rec", "b.rec"]`.

    Raises:
        InvalidBody: of another form; names the entry.
    """
    found = jsonlines.parse_json(data, name)
    if not isinstance(found, list) or not found or not isinstance(found[0], dict):
        raise InvalidBody(f"{name}: expected a JSON array that begins with an object of 'prefix'")
    prefix = found[0].get("prefix")
    if not isinstance(prefix, str):
        raise InvalidBody(f"{name}: 'prefix' is {str(prefix)[:40]!r}, expected a text")
    for at, suffix in enumerate(found[1:], 1):
        if not isinstance(suffix, str) or not suffix:
            raise InvalidBody(f"{name}: entry {at} is {str(suffix)[:40]!r}, expected a text behind the prefix")
    return [prefix + suffix for suffix in found[1:]]


def encode_manifest_file(prefix: str, suffixes: Iterable[str]) -> bytes:
    """A `ManifestFile` of the objects `prefix + suffix`."""
    return json.dumps([{"prefix": prefix}, *suffixes]).encode()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(text: str | bytes) -> Any:
    """JSON, perhaps quoted once more: `"[1, 0]"` in quotes is the array that it spells."""
    data = text if isinstance(text, bytes) else text.encode()
    value = jsonlines.parse_json(data, "label")
    return jsonlines.parse_json(value.encode(), "label") if isinstance(value, str) else value
