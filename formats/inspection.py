"""What is in a file: its kind, its first records, and every malformed one by number and place."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from formats import image_record, images, jsonlines, parquet, record
from formats.errors import InvalidBody
from formats.image_record import ImageRecord
from formats.lines import gunzipped, read_lines
from formats.lst import parse_row
from formats.record import BytesValue, Record
from formats.recordio import MAGIC, read_records
from formats.signatures import describe

__all__ = ["InspectionReport", "inspect"]

_MAX_LABELS = 20


@dataclass(frozen=True, slots=True)
class InspectionReport:
    kind: str
    records: int
    malformed: int


class _Tally:
    """Counts what is read, shows the first records, and tells of each fault up to a limit."""

    def __init__(self, first: int, max_faults: int, write: Callable[[str], object]) -> None:
        self.records = 0
        self.malformed = 0
        self.labels: Counter[str] = Counter()
        self._first = first
        self._max_faults = max_faults
        self._write = write

    @property
    def shown(self) -> bool:
        """Whether the first records have all been shown."""
        return self.records >= self._first

    def good(self, where: str, text: Callable[[], str]) -> None:
        if not self.shown:
            self._write(f"{where}: {text()}")
        self.records += 1

    def bad(self, where: str, fault: str) -> None:
        self.malformed += 1
        if self.malformed <= self._max_faults:
            self._write(f"MALFORMED {where}: {fault}")
        elif self.malformed == self._max_faults + 1:
            self._write("MALFORMED ...: further ones are counted, not shown")

    def count_label(self, label: str) -> None:
        if label in self.labels or len(self.labels) < 10_000:
            self.labels[label] += 1


def inspect(
    path: Path, *, first: int = 3, max_faults: int = 100, write: Callable[[str], object] = print
) -> InspectionReport:
    """Read a file to its end and tell what it holds.

    Args:
        path: RecordIO (image records, protobuf records, manifest attributes), JSON Lines, `.lst`, Parquet, an image,
            or a JSON text; gzip is looked into.
        first: how many records to show.
        max_faults: how many malformed records to name; all are counted.
        write: told one line at a time.

    Raises:
        InvalidBody: the file is empty, or of no kind that is known here.
        OSError: it cannot be opened.
    """
    tally = _Tally(first, max_faults, write)
    with path.open("rb") as stream:
        kind, reader = _kind_of(path, stream)
        write(f"{path}: {kind}, {path.stat().st_size} bytes")
        reader(stream, str(path), tally)
    for label, count in tally.labels.most_common(_MAX_LABELS):
        write(f"label {label}: {count}")
    if len(tally.labels) > _MAX_LABELS:
        write(f"label ...: {len(tally.labels)} in all")
    write(f"{tally.records} good, {tally.malformed} malformed")
    return InspectionReport(kind, tally.records, tally.malformed)


_Reader = Callable[[BinaryIO, str, _Tally], None]


def _kind_of(path: Path, stream: BinaryIO) -> tuple[str, _Reader]:
    plain = gunzipped(stream)
    try:
        head = plain.read(64)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InvalidBody(f"{path}: gzip data is truncated or damaged: {error}") from error
    stream.seek(0)
    if not head:
        raise InvalidBody(f"{path}: empty (0 bytes)")
    if head.startswith(MAGIC):
        return _recordio_kind(stream)
    if image_record.looks_like_image(head):
        return "image", _image
    if head.startswith(b"PAR1"):
        return "Parquet", _parquet
    if path.name.removesuffix(".gz").endswith(".lst"):
        return "image list", _lst
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and _first_line_is_json(stream):
        return "JSON Lines", _jsonlines
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        return "JSON", _json
    raise InvalidBody(f"{path}: of no known kind; it looks like {describe(head)}")


def _recordio_kind(stream: BinaryIO) -> tuple[str, _Reader]:
    """By the first records that can be read; damaged ones must not hide the kind of the rest."""
    votes: Counter[str] = Counter()
    for number, raw in enumerate(read_records(stream, skip_bad=True)):
        if image_record.looks_like_image(raw.payload):
            votes["attributes"] += 1
        elif _succeeds(image_record.decode, raw.payload):
            votes["images"] += 1
        elif raw.payload and _succeeds(record.decode, raw.payload):
            votes["protobuf"] += 1
        if number >= 20:
            break
    stream.seek(0)
    kinds: dict[str, tuple[str, _Reader]] = {
        "attributes": ("RecordIO of manifest attributes", _attributes),
        "images": ("RecordIO of image records", _images),
        "protobuf": ("RecordIO of protobuf records", _protobuf),
    }
    # an attribute stream alternates with text records, which may pass for anything: one image decides
    kind = "attributes" if votes["attributes"] else max(kinds, key=lambda name: votes[name])
    return kinds[kind] if votes else ("RecordIO of unknown records", _attributes)


def _succeeds(decode: Callable[[bytes], object], payload: bytes) -> bool:
    try:
        decode(payload)
    except InvalidBody:
        return False
    return True


def _first_line_is_json(stream: BinaryIO) -> bool:
    try:
        _, line = next(read_lines(stream, "", max_line=1 << 20))
        jsonlines.parse_json(line)
    except (InvalidBody, StopIteration):
        return False
    finally:
        stream.seek(0)
    return True


def _images(stream: BinaryIO, name: str, tally: _Tally) -> None:
    def show(found: ImageRecord, size: tuple[int, int]) -> str:
        labels = ", ".join(f"{label:g}" for label in found.labels[:8].tolist())
        more = ", ..." if len(found.labels) > 8 else ""
        return f"id {found.id}, labels [{labels}{more}], image {size[0]} x {size[1]}, {len(found.image)} bytes"

    for number, offset, payload in _raw(stream, name, tally):
        where = f"record {number} at byte {offset}"
        try:
            found = image_record.decode(payload)
            size = images.decode(found.image).shape[:2]
        except InvalidBody as error:
            tally.bad(where, str(error))
            continue
        if not found.packed:
            tally.count_label(f"{found.labels[0]:g}")
        tally.good(where, lambda found=found, size=(size[0], size[1]): show(found, size))  # type: ignore[misc]


def _protobuf(stream: BinaryIO, name: str, tally: _Tally) -> None:
    number = offset = 0
    for number, offset, payload in _raw(stream, name, tally):
        if tally.shown:
            break
        where = f"record {number} at byte {offset}"
        try:
            _count_record(record.decode(payload), where, tally)
        except InvalidBody as error:
            tally.bad(where, str(error))
    else:
        return

    # nobody asks where the others are unless they are malformed: several times as fast by whole blocks
    def bad(rest: int, place: int, fault: str) -> None:
        tally.bad(f"record {number + rest} at byte {place}", fault)

    stream.seek(offset)
    for found in record.read(stream, name, start=offset, skip_bad=True, on_bad=bad):
        _count_record(found, "", tally)


def _count_record(found: Record, where: str, tally: _Tally) -> None:
    label = found.label.get("values")
    if isinstance(label, record.Tensor) and len(label.values) == 1:
        tally.count_label(f"{label.values[0]:g}")
    tally.good(where, lambda: _show_record(found))


def _show_record(found: Record) -> str:
    texts = []
    for side, features in (("features", found.features), ("label", found.label)):
        for name, feature in features.items():
            if isinstance(feature, BytesValue):
                texts.append(f"{side} '{name}' {sum(map(len, feature.values))} bytes")
                continue
            values = ", ".join(f"{value:g}" for value in feature.values[:6].tolist())
            sparse = f" sparse of shape {list(feature.shape)}" if feature.keys is not None else ""
            texts.append(f"{side} '{name}' {feature.values.dtype}[{len(feature.values)}]{sparse}: {values}")
    return "; ".join(texts) or "empty"


def _attributes(stream: BinaryIO, name: str, tally: _Tally) -> None:
    for number, offset, payload in _raw(stream, name, tally):
        where = f"record {number} at byte {offset}"
        try:
            if image_record.looks_like_image(payload):
                images.decode(payload)
        except InvalidBody as error:
            tally.bad(where, str(error))
        else:
            tally.good(where, lambda payload=payload: f"{len(payload)} bytes, {describe(payload)}")  # type: ignore[misc]


def _raw(stream: BinaryIO, name: str, tally: _Tally) -> Iterator[tuple[int, int, bytes]]:
    def bad(number: int, offset: int, fault: str) -> None:
        tally.bad(f"record {number} at byte {offset}", fault)

    for raw in read_records(stream, name, skip_bad=True, on_bad=bad):
        yield raw.number, raw.offset, raw.payload


def _jsonlines(stream: BinaryIO, name: str, tally: _Tally) -> None:
    def bad(number: int, fault: str) -> None:
        tally.bad(f"line {number}", fault)

    for number, value in jsonlines.read(stream, name, on_bad=bad):
        if isinstance(value.get("label"), int | float | str):
            tally.count_label(str(value["label"])[:40])
        tally.good(f"line {number}", lambda value=value: _short(value))  # type: ignore[misc]


def _lst(stream: BinaryIO, name: str, tally: _Tally) -> None:
    for number, line in read_lines(stream, name):
        if not line.strip():
            continue
        try:
            entry = parse_row(line.decode())
        except (InvalidBody, UnicodeDecodeError) as error:
            tally.bad(f"line {number}", str(error))
            continue
        if len(entry.labels) == 1:
            tally.count_label(f"{entry.labels[0]:g}")
        tally.good(f"line {number}", lambda entry=entry: _short(entry))  # type: ignore[misc]


def _parquet(stream: BinaryIO, name: str, tally: _Tally) -> None:
    try:
        for number, row in enumerate(parquet.read(stream, name)):
            tally.good(f"row {number}", lambda row=row: _short(row))  # type: ignore[misc]
    except InvalidBody as error:
        tally.bad(f"row {tally.records}", str(error))


def _image(stream: BinaryIO, name: str, tally: _Tally) -> None:  # noqa: ARG001  a reader like the others
    try:
        height, width, _ = images.decode(stream.read()).shape
    except InvalidBody as error:
        tally.bad("image", str(error))
    else:
        tally.good("image", lambda: f"{height} x {width} (height x width)")


def _json(stream: BinaryIO, name: str, tally: _Tally) -> None:
    try:
        value = jsonlines.parse_json(gunzipped(stream).read(1 << 28), name)
    except InvalidBody as error:
        tally.bad("text", str(error))
    else:
        tally.good("text", lambda: f"{type(value).__name__} of {len(value)} entries: {_short(value)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else text[:157] + "..."
