from __future__ import annotations

import numpy as np
import pytest

from formats.content_types import DECODERS, decode, media_type_of
from formats.errors import InvalidBody, UnsupportedContentType
from formats.image_record import encode, image_record
from formats.images import encode_jpeg, encode_png
from formats.record import Record, encode_body
from formats.recordio import encode_record

PIXELS = np.zeros((2, 3, 3), np.uint8)
BODIES = {
    "application/json": (b'{"instances":[1,{"a":2}]}', [1, {"a": 2}]),
    "application/jsonlines": (b'{"a":1}\n{"a":2}\n', [{"a": 1}, {"a": 2}]),
    "text/csv": (b'1,2.5\n"x, y",3\n', [["1", "2.5"], ["x, y", "3"]]),
}


@pytest.mark.parametrize("content_type", BODIES)
def test_a_text_body_becomes_its_instances(content_type: str) -> None:
    body, instances = BODIES[content_type]

    assert decode(content_type, body) == instances


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "application/x-image", "IMAGE/PNG; q=1"])
@pytest.mark.parametrize("body", [encode_png(PIXELS), encode_jpeg(PIXELS)])
def test_an_image_is_known_by_its_bytes_not_by_its_type(content_type: str, body: bytes) -> None:
    assert [pixels.shape for pixels in decode(content_type, body)] == [(2, 3, 3)]


def test_the_two_kinds_of_recordio() -> None:
    assert [r.uid for r in decode("application/x-recordio-protobuf", encode_body([Record(uid="a"), Record()]))] == [
        "a",
        None,
    ]
    assert [
        r.id for r in decode("application/x-recordio", encode_record(encode(image_record(7, 1, encode_png(PIXELS)))))
    ] == [7]


@pytest.mark.parametrize("content_type", sorted(DECODERS))
@pytest.mark.parametrize("body", [b"", b"\x00\xff\xfe\x01", b"\x0a\x23\xd7\xce\x02\0\0\0\xff\xff\0\0"])
def test_bad_bodies_of_every_type_are_invalid(content_type: str, body: bytes) -> None:
    with pytest.raises(InvalidBody):
        decode(content_type, body)


@pytest.mark.parametrize("body", [b"[1]", b"{}", b'{"instances":1}', b'{"instances":[]}'])
def test_json_needs_instances(body: bytes) -> None:
    with pytest.raises(InvalidBody, match="instances"):
        decode("application/json", body)


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/octet-stream"])
def test_an_unknown_type_names_those_that_are_known(content_type: str) -> None:
    with pytest.raises(UnsupportedContentType, match=r"expected one of: application/json, .*text/csv"):
        decode(content_type, b"")


def test_parameters_are_read_with_and_without_blanks() -> None:
    assert media_type_of('Text/CSV;label_size=0 ; x="1"') == ("text/csv", {"label_size": "0", "x": "1"})
