"""MXNet's image records (`application/x-recordio`): a 24-byte header, labels, and an encoded image.

| offset | bytes | field |
|---|---|---|
| 0 | 4 | flag: 0 for one label in the header, n for n float32 labels after it |
| 4 | 4 | label, float32; written as 0 when labels follow |
| 8 | 8 | id: the index of the image list |
| 16 | 8 | second id, 0 |
| 24 | 4 * flag | labels, float32 |
| 24 + 4 * flag | rest | image file |

Format: MXNet `src/io/image_recordio.h`. A record here is what `formats.recordio` frames; parts are joined there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Unpack

import numpy as np
from numpy.typing import NDArray

from formats.errors import InvalidBody
from formats.recordio import Reading, RecordWriter, read_decoded
from formats.signatures import describe

__all__ = ["ImageRecord", "decode", "encode", "image_record", "looks_like_image", "read", "write"]

_HEADER = struct.Struct("<IfQQ")
# more labels than this mean that the file holds something else, protobuf for instance
_MAX_LABELS = 100_000
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG")


@dataclass(frozen=True, slots=True, eq=False)
class ImageRecord:
    id: int
    labels: NDArray[np.float32]
    """(1,) for one class, (num_classes,) multi-hot, or packed boxes (`formats.detection`)."""
    image: bytes
    """A JPEG or PNG file."""
    packed: bool = False
    """Whether the labels follow the header; always so when there is not exactly one."""
    id2: int = 0


def image_record(number: int, labels: float | Sequence[float], image: bytes) -> ImageRecord:
    """A record as MXNet's `pack` would make it: one number goes into the header, a sequence behind it."""
    if isinstance(labels, Sequence):
        return ImageRecord(number, np.asarray(labels, np.float32), image, packed=True)
    return ImageRecord(number, np.array([labels], np.float32), image)


def looks_like_image(data: bytes) -> bool:
    """Whether bytes start as JPEG or PNG do: such a record comes from a manifest and has no header."""
    return data.startswith(_IMAGE_STARTS)


def decode(payload: bytes) -> ImageRecord:
    """One record from its unframed bytes; the image stays encoded.

    Raises:
        InvalidBody: too short for its header or labels, labels that are not finite, or no image behind them.
    """
    if len(payload) < _HEADER.size:
        raise InvalidBody(f"{len(payload)} bytes, an image record has a header of {_HEADER.size}")
    if looks_like_image(payload):
        raise InvalidBody("starts with an image: this is a stream of manifest attributes, not of image records")
    flag, label, number, id2 = _HEADER.unpack_from(payload)
    if flag > _MAX_LABELS:
        raise InvalidBody(f"claims {flag} labels: this is not an image record; a protobuf Record, perhaps")
    start = _HEADER.size + 4 * flag
    if len(payload) < start:
        raise InvalidBody(f"{len(payload)} bytes, header and {flag} labels take {start}")
    labels: NDArray[Any] = np.frombuffer(payload, "<f4", flag, _HEADER.size) if flag else np.array([label], np.float32)
    if not np.isfinite(labels).all():
        raise InvalidBody(f"label {int(np.argmin(np.isfinite(labels)))} is {labels[~np.isfinite(labels)][0]}")
    image = payload[start:]
    if not looks_like_image(image):
        raise InvalidBody(f"no JPEG or PNG image after {flag} labels; found {describe(image)}")
    return ImageRecord(number, labels, image, flag > 0, id2)


def encode(record: ImageRecord) -> bytes:
    """The unframed bytes of a record.

    Raises:
        ValueError: no label at all.
    """
    labels = np.ascontiguousarray(record.labels, "<f4")
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels have shape {labels.shape}, expected one axis of at least 1")
    if record.packed or len(labels) > 1:
        return _HEADER.pack(len(labels), 0.0, record.id, record.id2) + labels.tobytes() + record.image
    return _HEADER.pack(0, labels[0], record.id, record.id2) + record.image


def read(stream: BinaryIO, name: str = "stream", **options: Unpack[Reading]) -> Iterator[ImageRecord]:
    """Yield the image records of a stream; options as in `formats.recordio.read_records`.

    Raises:
        InvalidBody: `record N at byte B: ...`.
    """
    return read_decoded(decode, stream, name, **options)


def write(stream: BinaryIO, records: Iterable[ImageRecord]) -> list[tuple[int, int]]:
    """Write framed records; returns (id, offset) of each, which is what `formats.recordio.write_index` takes."""
    writer = RecordWriter(stream)
    return [(record.id, writer.write(encode(record))) for record in records]
