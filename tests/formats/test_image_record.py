from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats.errors import InvalidBody
from formats.image_record import ImageRecord, decode, encode, image_record, read, write
from formats.recordio import MAGIC, decode_records, encode_record, read_index

FIXTURES = Path(__file__).parent / "fixtures"
JPEG = b"\xff\xd8\xff\xe0 jpeg"
PACKED_BOXES = "00000040 0000a040 0000803f cdcccc3d cdcc4c3e 0000003f 0000403f"
BOXES = [2, 5, 1, 0.1, 0.2, 0.5, 0.75]


def plain(record: ImageRecord) -> tuple[object, ...]:
    return record.id, record.labels.tolist(), record.image, record.packed, record.id2


@pytest.mark.parametrize(
    ("record", "head"),
    [
        (image_record(7, 1.0, JPEG), "00000000 0000803f 0700000000000000 0000000000000000"),
        (
            image_record(7, BOXES, JPEG),
            "07000000 00000000 0700000000000000 0000000000000000 " + PACKED_BOXES,
        ),
    ],
)
def test_the_bytes_of_the_contract(record: ImageRecord, head: str) -> None:
    """Record formats, examples of section 3, both directions."""
    assert encode(record) == bytes.fromhex(head) + JPEG
    assert plain(decode(bytes.fromhex(head) + JPEG)) == plain(record)


def test_mxnets_image_records_are_read_and_written_bit_for_bit() -> None:
    data = (FIXTURES / "mxnet_images.rec").read_bytes()
    images = [b"\x89PNG\r\n\x1a\nfirst", b"\xff\xd8\xff\xe0second", b"\xff\xd8\xff\xdb" + MAGIC + b"third" + MAGIC * 2]

    found = list(read(io.BytesIO(data)))
    stream = io.BytesIO()
    index = write(stream, found)

    assert [(r.id, r.image) for r in found] == list(zip([7, 3, 12], images, strict=True))
    assert [r.labels.tolist() for r in found] == [[1.0], pytest.approx(BOXES), [0.0, 1.0, 1.0]]
    assert stream.getvalue() == data
    assert dict(index) == read_index(FIXTURES / "mxnet_images.idx")


def test_mxnets_framing_is_read_and_written_bit_for_bit() -> None:
    data = (FIXTURES / "mxnet_raw.rec").read_bytes()
    payloads = [b"hello", b"ABCD" + MAGIC + b"xyz", MAGIC + b"xyz", b"A" + MAGIC + b"BCD", b"", MAGIC * 3, b"abcd"]

    assert decode_records(data) == payloads
    assert b"".join(map(encode_record, payloads)) == data


records = st.builds(
    ImageRecord,
    st.integers(0, 2**64 - 1),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9).map(
        lambda labels: np.array(labels, np.float32)
    ),
    st.binary(max_size=20).map(lambda tail: JPEG + tail),
    st.just(True),
    st.integers(0, 2**64 - 1),
)


@given(st.lists(records, min_size=1, max_size=4))
def test_what_is_written_is_read_back(written: list[ImageRecord]) -> None:
    stream = io.BytesIO()
    write(stream, written)
    stream.seek(0)

    assert [plain(record) for record in read(stream)] == [plain(record) for record in written]


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"", "0 bytes, an image record has a header of 24"),
        (bytes(24), "no JPEG or PNG image after 0 labels; found nothing"),
        (bytes(24) + b"GIF89a", "a GIF image"),
        (struct.pack("<IfQQ", 3, 0, 0, 0) + bytes(8), "32 bytes, header and 3 labels take 36"),
        (struct.pack("<IfQQ", 2**32 - 1, 0, 0, 0) + JPEG, "claims 4294967295 labels"),
        (struct.pack("<IfQQ", 0, float("nan"), 0, 0) + JPEG, "label 0 is nan"),
        (struct.pack("<IfQQff", 2, 0, 0, 0, 1, float("inf")) + JPEG, "label 1 is inf"),
        (JPEG + bytes(40), "a stream of manifest attributes"),
    ],
)
def test_damage_is_named_with_record_and_offset(payload: bytes, text: str) -> None:
    good = encode_record(encode(image_record(0, 1.0, JPEG)))

    with pytest.raises(InvalidBody, match=f"x.rec: record 1 at byte {len(good)}: .*{text}"):
        list(read(io.BytesIO(good + encode_record(payload)), "x.rec"))


def test_skip_bad_tells_of_each_one() -> None:
    good = encode_record(encode(image_record(0, 1.0, JPEG)))
    faults: list[int] = []

    found = list(
        read(io.BytesIO(good + encode_record(b"") + good), skip_bad=True, on_bad=lambda n, *_: faults.append(n))
    )

    assert len(found) == 2
    assert faults == [1]


def test_a_record_without_labels_is_not_written() -> None:
    with pytest.raises(ValueError, match="labels have shape"):
        encode(ImageRecord(0, np.zeros(0, np.float32), JPEG))
