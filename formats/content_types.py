"""One table from content type to decoder: a request body in, its instances out.

What the instances are depends on the type: objects for JSON and JSON Lines, rows of texts for CSV, pixels for images,
`formats.record.Record` and `formats.image_record.ImageRecord` for the two kinds of RecordIO.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any

from formats import image_record, images, jsonlines, record
from formats.errors import InvalidBody, UnsupportedContentType
from formats.recordio import decode_records

__all__ = ["DECODERS", "decode", "media_type_of"]


def decode(content_type: str, data: bytes) -> list[Any]:
    """The instances of a request body.

    Args:
        content_type: as sent, parameters included.
        data: the body.

    Raises:
        UnsupportedContentType: not in the table.
        InvalidBody: not of that type, or without any instance.
    """
    media_type, _ = media_type_of(content_type)
    decoder = DECODERS.get(media_type)
    if decoder is None:
        raise UnsupportedContentType(
            f"Content type {media_type or 'missing'}; expected one of: {', '.join(sorted(DECODERS))}"
        )
    return decoder(data)


def media_type_of(content_type: str) -> tuple[str, dict[str, str]]:
    """The bare media type and its parameters, both in lower case: `text/csv;label_size=0`, with or without blanks."""
    bare, *parameters = (piece.strip() for piece in content_type.lower().split(";"))
    pairs = (parameter.partition("=") for parameter in parameters if parameter)
    return bare, {name.strip(): value.strip().strip('"') for name, _, value in pairs}


def _json(data: bytes) -> list[Any]:
    found = jsonlines.parse_json(data)
    instances = found.get("instances") if isinstance(found, dict) else None
    if not isinstance(instances, list):
        # the original's words, and what they mean
        raise InvalidBody('unable to evaluate payload provided: expected {"instances": [...]}')
    if not instances:
        raise InvalidBody("'instances' is empty, expected at least one")
    return instances


def _csv(data: bytes) -> list[list[str]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True) if row]
    except UnicodeDecodeError as error:
        raise InvalidBody(f"CSV is not UTF-8 at byte {error.start}") from error
    except csv.Error as error:
        raise InvalidBody(f"CSV is malformed: {error}") from error
    if not rows:
        raise InvalidBody(f"no CSV rows in {len(data)} bytes")
    return rows


def _image(data: bytes) -> list[images.Pixels]:
    return [images.decode(data)]


def _image_records(data: bytes) -> list[image_record.ImageRecord]:
    records = []
    for number, payload in enumerate(decode_records(data)):
        try:
            records.append(image_record.decode(payload))
        except InvalidBody as error:
            raise InvalidBody(f"record {number}: {error}") from error
    return records


DECODERS: dict[str, Callable[[bytes], list[Any]]] = {
    "application/json": _json,
    "application/jsonlines": jsonlines.decode,
    "application/x-image": _image,
    "application/x-recordio": _image_records,
    "application/x-recordio-protobuf": record.decode_body,
    "image/jpeg": _image,
    "image/png": _image,
    "text/csv": _csv,
}
