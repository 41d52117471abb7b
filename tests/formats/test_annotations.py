"""Detection annotations, packed labels, manifests and masks."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from formats import manifests
from formats.detection import Annotation, corners, decode_annotation, encode_annotation, pack_labels, unpack_labels
from formats.errors import InvalidBody
from formats.images import decode, encode_png
from formats.lst import parse_row
from formats.manifests import ManifestRow, Reference, class_of, classes_of
from formats.masks import IGNORE, PALETTE, colours_to_classes, decode_label_map, decode_mask, encode_mask

EXAMPLE: dict[str, Any] = {
    "file": "birds/0007.jpg",
    "image_size": [{"width": 640, "height": 480, "depth": 3}],
    "annotations": [
        {"class_id": 1, "left": 32, "top": 60, "width": 128, "height": 240},
        {"class_id": 0, "left": 400, "top": 10, "width": 80, "height": 90},
    ],
    "categories": [{"class_id": 0, "name": "nest"}, {"class_id": 1, "name": "owl"}],
}
ROW = "17\t2\t5\t1.0000\t0.0500\t0.1250\t0.2500\t0.6250\t0.0000\t0.6250\t0.0208\t0.7500\t0.2083\tbirds/0007.jpg"


def test_the_annotation_of_the_contract_and_its_list_row_are_the_same_boxes() -> None:
    """Object detection contract, sections 2.1 and 2.2; the row has four decimals."""
    annotation = decode_annotation(json.dumps(EXAMPLE).encode())
    packed = parse_row(ROW).labels

    assert (annotation.file, annotation.height, annotation.width) == ("birds/0007.jpg", 480, 640)
    assert annotation.categories == {0: "nest", 1: "owl"}
    np.testing.assert_allclose(corners(annotation), unpack_labels(packed), atol=5e-5)
    np.testing.assert_allclose(pack_labels(corners(annotation)), packed, atol=5e-5)


def test_an_annotation_that_is_written_is_read_back() -> None:
    assert json.loads(encode_annotation(decode_annotation(EXAMPLE))) == EXAMPLE


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"image_size": []}, "'image_size' is"),
        ({"image_size": [{"width": 0, "height": 1}]}, r"image_size\[0\]: 'width' is '0', expected a number of 1"),
        ({"annotations": {}}, "'annotations' is"),
        ({"annotations": [7]}, r"annotations\[0\] is '7'"),
        ({"annotations": [{"class_id": -1}]}, r"annotations\[0\]: 'class_id' is '-1'"),
        ({"annotations": [{"class_id": 0.5, "left": 1}]}, "'class_id' is 0.5, expected a whole number"),
        ({"annotations": [{"class_id": 0, "left": "1"}]}, r"annotations\[0\]: 'left' is '1', expected a number"),
        ({"annotations": [{"class_id": 0, "left": 1e300}]}, "'left' is '1e\\+300'"),
    ],
)
def test_a_bad_annotation_names_its_field(change: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        decode_annotation({**EXAMPLE, **change}, "x.json")


def test_boxes_are_clipped_and_vanishing_ones_dropped() -> None:
    boxes = np.array([[0, -10, 0, 20, 10], [1, 90, 90, 50, 50], [2, 200, 0, 10, 10], [3, 5, 5, 0.5, 0.5]])

    found = corners(Annotation(boxes, height=100, width=100))

    np.testing.assert_allclose(found, [[0, 0, 0, 0.1, 0.1], [1, 0.9, 0.9, 1, 1]])


def test_an_image_without_boxes_is_background() -> None:
    assert corners(Annotation(np.zeros((0, 5)), height=10, width=10)).shape == (0, 5)
    assert unpack_labels(pack_labels(np.zeros((0, 5)))).shape == (0, 5)


@given(
    st.lists(st.tuples(st.integers(0, 90), *[st.floats(0, 1, width=32)] * 5), max_size=5),
    st.lists(st.floats(0, 9, width=32), max_size=2),
    st.integers(0, 12),
)
def test_packed_boxes_are_unpacked_whatever_the_padding(
    rows: list[tuple[float, ...]], extra: list[float], padding: int
) -> None:
    boxes = np.array(rows, np.float32).reshape(-1, 6)
    valid = boxes[(boxes[:, 3] > boxes[:, 1]) & (boxes[:, 4] > boxes[:, 2])]

    labels = np.concatenate([pack_labels(boxes, extra=tuple(extra)), np.full(padding, -1, np.float32)])

    assert np.array_equal(unpack_labels(labels), valid)


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([3], "was the file packed without --pack-label"),
        ([2, 4, 1, 0, 0, 1], "at least five numbers.*numbers per object 4"),
        ([1, 5], "header width is 1"),
        ([2, 5, 1, 0, 0, 1], "4 numbers are not a multiple of 5"),
        ([2, 5, 1, 10, 20, 300, 400], "at least five numbers.*expected fractions"),
        ([2, 5, 0.5, 0, 0, 1, 1], "box 0 has class 0.5"),
        ([2, 5, 3, 0, 0, 1, 1], "class 3, expected a whole number below 3"),
        ([2, 5, 1, 0, 0, float("nan"), 1], "box 0 is .*finite"),
        ([float("nan"), 5, 1], "header width is nan"),
        ([1e30, 5, 1], "header width is 1e"),
        ([2, 1e30, 1, 0, 0, -1, 0], "numbers per object 1e"),
    ],
)
def test_labels_that_are_no_boxes_are_refused(labels: list[float], text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        unpack_labels(labels, num_classes=3)


def test_manifest_values_come_in_the_order_of_the_names() -> None:
    """Record formats, section 4: references, texts without quotes, other values as their JSON text."""
    data = (
        b'{"class":"2","source-ref":"s3://b/i/1.jpg"}\n{"source-ref":"s3://b/i/2.jpg","class":0,"class-metadata":{}}\n'
    )

    rows = list(manifests.read(io.BytesIO(data), ["source-ref", "class"]))

    assert rows == [
        ManifestRow(1, (Reference("s3://b/i/1.jpg"), "2")),
        ManifestRow(2, (Reference("s3://b/i/2.jpg"), "0")),
    ]
    records = manifests.attribute_stream(rows, lambda uri: uri[-5:].encode())
    assert list(manifests.grouped(records, 2)) == [(b"1.jpg", b"2"), (b"2.jpg", b"0")]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"", "line 2: empty"),
        (b'{"a-ref":"s3://x"}', "line 2: attribute 'b' is missing; present: 'a-ref'"),
        (b'{"a-ref":7,"b":1}', "line 2: 'a-ref' is '7', expected a URI"),
        (b'{"a-ref":"s3://x","b":1},', "line 2: not valid JSON"),
    ],
)
def test_a_bad_manifest_line_is_named(line: bytes, text: str) -> None:
    good = b'{"a-ref":"s3://x","b":1}\n'

    with pytest.raises(InvalidBody, match=text):
        list(manifests.read(io.BytesIO(good + line + b"\n" + good), ["a-ref", "b"]))


def test_a_stream_that_ends_inside_a_sample_is_truncated() -> None:
    with pytest.raises(InvalidBody, match="sample 1 has 1 of its 2"):
        list(manifests.grouped([b"a", b"b", b"c"], 2))


@pytest.mark.parametrize("text", ["2", '"2"', "2.0", "[2]", b"2"])
def test_a_class_has_many_spellings(text: str | bytes) -> None:
    assert class_of(text, 3) == 2


@pytest.mark.parametrize("text", ["-1", "3", "1.5", "true", "null", "[1,2]", "roses", ""])
def test_what_is_no_class_is_refused(text: str) -> None:
    with pytest.raises(InvalidBody):
        class_of(text, 3)


def test_the_multi_label_forms_of_the_contract() -> None:
    """Image classification contract, section 2.3."""
    assert classes_of("[1, 0, 1]", 3).tolist() == [1, 0, 1]
    assert classes_of('"[0, 2]"', 3, "class-id").tolist() == [1, 0, 1]
    assert classes_of("[]", 3, "class-id").tolist() == [0, 0, 0]
    with pytest.raises(InvalidBody, match=r"\(2\) and the num_classes parameter \(3\)"):
        classes_of("[1, 0]", 3)
    with pytest.raises(InvalidBody, match="zeros and ones"):
        classes_of("[1, 0, 2]", 3)
    with pytest.raises(InvalidBody, match="expected a number below num_classes = 3"):
        classes_of("[3]", 3, "class-id")


def test_a_manifest_file_lists_objects_under_its_prefix() -> None:
    data = manifests.encode_manifest_file("s3://b/dir/", ["a.rec", "c/b.rec"])

    assert manifests.decode_manifest_file(data) == ["s3://b/dir/a.rec", "s3://b/dir/c/b.rec"]
    for bad in (b"{}", b"[]", b'["a"]', b'[{"prefix":1}]', b'[{"prefix":"s3://b/"},7]'):
        with pytest.raises(InvalidBody):
            manifests.decode_manifest_file(bad)


def test_manifest_rows_that_are_written_are_read_back() -> None:
    stream = io.BytesIO()
    manifests.write(stream, [{"source-ref": "s3://b/1", "label": [1, 0]}])
    stream.seek(0)

    assert list(manifests.read(stream, ["label", "source-ref"])) == [ManifestRow(1, ("[1, 0]", Reference("s3://b/1")))]


MASK = np.array([[0, 1, 2], [3, 255, 5]], np.uint8)


def test_a_mask_keeps_its_ids_and_shows_colours() -> None:
    assert np.array_equal(decode_mask(encode_mask(MASK)), MASK)
    assert decode(encode_mask(MASK))[0, 1].tolist() == PALETTE[1].tolist() == [128, 0, 0]
    assert np.array_equal(decode_mask(encode_png(MASK)), MASK)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_a_mask_of_another_mode_is_refused_by_its_name(mode: str) -> None:
    out = io.BytesIO()
    Image.new(mode, (3, 2)).save(out, "PNG")

    with pytest.raises(InvalidBody, match=f"mask has mode {mode}, expected P or L"):
        decode_mask(out.getvalue())


def test_a_mask_that_is_no_png_or_damaged_or_too_large_is_refused() -> None:
    for data in (b"", b"\xff\xd8\xff", encode_mask(MASK)[:-20]):
        with pytest.raises(InvalidBody, match="mask"):
            decode_mask(data)
    with pytest.raises(InvalidBody, match="at most 5 are accepted"):
        decode_mask(encode_mask(MASK), max_pixels=5)


def test_label_maps_of_the_contract() -> None:
    """Semantic segmentation contract, section 2.2; 255 and pixels that are not named are ignored."""
    scaled = decode_label_map(b'{"scale": "60"}')
    mapped = decode_label_map(b'{"map": {"0": 5, "1": 0, "2": 2}}')

    assert scaled[[0, 59, 60, 120, 255]].tolist() == [0, 0, 1, 2, IGNORE]
    assert mapped[[0, 5, 2, 7, 255]].tolist() == [1, 0, 2, IGNORE, IGNORE]


@pytest.mark.parametrize(
    "data",
    [b"{}", b"[]", b'{"scale":0}', b'{"scale":true}', b'{"map":[]}', b'{"map":{"a":1}}', b'{"map":{"0":256}}',
     b'{"map":{"0":1,"1":1}}', b'{"scale":1,"map":{}}'],
)  # fmt: skip
def test_a_bad_label_map_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidBody, match="label map"):
        decode_label_map(data)


def test_colours_become_classes_by_the_metadata() -> None:
    rgb = np.array([[[255, 255, 255], [42, 207, 89]]], np.uint8)
    colour_map = {"0": {"hex-color": "#ffffff"}, "1": {"class-name": "lane", "hex-color": "#2acf59"}}

    assert colours_to_classes(encode_png(rgb), colour_map).tolist() == [[0, 1]]
    with pytest.raises(InvalidBody, match="1 pixels of colours that the map lacks, such as #2acf59"):
        colours_to_classes(encode_png(rgb), {"0": {"hex-color": "#ffffff"}})
    with pytest.raises(InvalidBody, match="expected a 'hex-color'"):
        colours_to_classes(encode_png(rgb), {"0": {}})
