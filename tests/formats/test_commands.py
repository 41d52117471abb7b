"""The functions behind `penstock data pack`, `tokenize` and `inspect`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from formats import image_record, images, record, vocabulary
from formats.detection import unpack_labels
from formats.errors import InvalidBody
from formats.inspection import inspect
from formats.lst import ListEntry, read_lst, write_lst
from formats.pack import pack
from formats.recordio import read_at, read_index
from formats.source import list_files
from formats.tokenize import tokenize

FIXTURES = Path(__file__).parent / "fixtures"


def silent(_: str) -> None:
    pass


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of two images each, one of them a PNG."""
    root = tmp_path / "images"
    for number, name in enumerate(["oak/1.jpg", "oak/2.png", "ash/3.jpg", "ash/deep/4.JPG"]):
        pixels = np.full((20, 30 + number, 3), 40 * number, np.uint8)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(images.encode_png(pixels) if "png" in name else images.encode_jpeg(pixels))
    return root


def records_of(path: Path) -> list[image_record.ImageRecord]:
    with path.open("rb") as stream:
        return list(image_record.read(stream))


def test_directories_become_classes_in_sorted_order(tree: Path, tmp_path: Path) -> None:
    report = pack(output=tmp_path / "x.rec", images_root=tree, write=silent)

    found = records_of(tmp_path / "x.rec")
    assert report.classes == ("ash", "ash/deep", "oak")
    assert [(r.id, r.labels.tolist(), r.packed) for r in found] == [
        (0, [0.0], False),
        (1, [1.0], False),
        (2, [2.0], False),
        (3, [2.0], False),
    ]
    assert found[3].image == (tree / "oak/2.png").read_bytes()
    assert [entry.path for entry in read_lst(tmp_path / "x.lst")] == [
        "ash/3.jpg",
        "ash/deep/4.JPG",
        "oak/1.jpg",
        "oak/2.png",
    ]


def test_the_index_leads_to_its_records(tree: Path, tmp_path: Path) -> None:
    pack(output=tmp_path / "x.rec", images_root=tree, shuffle_seed=3, write=silent)

    index = read_index(tmp_path / "x.idx")
    with (tmp_path / "x.rec").open("rb") as stream:
        assert all(image_record.decode(read_at(stream, offset)).id == key for key, offset in index.items())
    assert sorted(index) == [0, 1, 2, 3]


@pytest.mark.parametrize(("pack_label", "labels"), [(True, [1, 0, 1]), (False, [1])])
def test_a_list_gives_one_label_or_all(tree: Path, tmp_path: Path, pack_label: bool, labels: list[float]) -> None:
    write_lst(tmp_path / "in.lst", [ListEntry(7, (1.0, 0.0, 1.0), "oak/1.jpg")])

    pack(output=tmp_path / "x.rec", images_root=tree, lst=tmp_path / "in.lst", pack_label=pack_label, write=silent)

    assert [(r.id, r.labels.tolist(), r.packed) for r in records_of(tmp_path / "x.rec")] == [(7, labels, pack_label)]


def test_annotations_become_packed_boxes(tree: Path, tmp_path: Path) -> None:
    for name in ["oak/1", "oak/2", "ash/3", "ash/deep/4"]:
        path = tmp_path / "annotations" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        box = {"class_id": 1, "left": 3, "top": 5, "width": 6, "height": 10}
        path.write_text(json.dumps({"image_size": [{"width": 30, "height": 20}], "annotations": [box]}))

    pack(output=tmp_path / "x.rec", images_root=tree, annotations=tmp_path / "annotations", write=silent)

    oak = records_of(tmp_path / "x.rec")[2]
    np.testing.assert_allclose(unpack_labels(oak.labels), [[1, 0.1, 0.25, 0.3, 0.75]], rtol=1e-6)


def test_the_shorter_side_is_resized(tree: Path, tmp_path: Path) -> None:
    pack(output=tmp_path / "x.rec", images_root=tree, resize=10, write=silent)

    sizes = [images.size_of(r.image) for r in records_of(tmp_path / "x.rec")]
    assert sizes == [(10, 16), (10, 16), (10, 15), (10, 16)]


def test_a_missing_image_is_named_before_anything_is_written(tree: Path, tmp_path: Path) -> None:
    write_lst(tmp_path / "in.lst", [ListEntry(n, (1.0,), f"oak/{n}.jpg") for n in range(14)])

    with pytest.raises(InvalidBody, match=r"13 listed images are missing: oak/0.jpg, .* and 3 more"):
        pack(output=tmp_path / "x.rec", images_root=tree, lst=tmp_path / "in.lst", write=silent)
    assert not list(tmp_path.glob("x.*"))


def test_a_damaged_image_fails_or_is_skipped_by_name(tree: Path, tmp_path: Path) -> None:
    (tree / "ash/3.jpg").write_bytes((tree / "ash/3.jpg").read_bytes()[:-200])
    told: list[str] = []

    with pytest.raises(InvalidBody, match=r"ash/3.jpg: JPEG .* truncated"):
        pack(output=tmp_path / "x.rec", images_root=tree, write=silent)
    assert not list(tmp_path.glob("x.*"))
    report = pack(output=tmp_path / "x.rec", images_root=tree, skip_bad=True, write=told.append)

    assert (report.records, report.skipped) == (3, 1)
    assert any(line.startswith("skipped ash/3.jpg: JPEG") for line in told)


def test_two_rows_of_one_index_are_refused(tree: Path, tmp_path: Path) -> None:
    write_lst(tmp_path / "in.lst", [ListEntry(1, (1.0,), "oak/1.jpg"), ListEntry(1, (1.0,), "oak/2.png")])

    with pytest.raises(InvalidBody, match=r"index 1 stands for both oak/1.jpg and oak/2.png"):
        pack(output=tmp_path / "x.rec", images_root=tree, lst=tmp_path / "in.lst", write=silent)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    (tmp_path / "train.en").write_text("a small dog\n\na dog\n\n")
    (tmp_path / "train.de.gz").write_bytes(gzip.compress(b"ein kleiner hund\nleer\nein hund\n\n"))
    (tmp_path / "val.en").write_text("a cat\n")
    (tmp_path / "val.de").write_text("eine katze\n")
    return tmp_path


def test_parallel_text_becomes_records_of_ids(texts: Path) -> None:
    """seq2seq contract, sections 2.2 to 2.4."""
    report = tokenize(
        train_source=texts / "train.en",
        train_target=texts / "train.de.gz",
        val_source=texts / "val.en",
        val_target=texts / "val.de",
        output_dir=texts / "out",
        write=silent,
    )

    assert (report.vocab_source, report.vocab_target) == (7, 8)
    assert (report.train_pairs, report.val_pairs, report.dropped) == (2, 1, 2)
    source = vocabulary.read(texts / "out/vocab.src.json")
    with (texts / "out/train.rec").open("rb") as stream:
        first = next(record.read(stream))
    words = vocabulary.tokens_of(source)
    tensor = record.tensor_in(first.features, "source")
    assert [words[number] for number in tensor.values] == ["a", "small", "dog"]
    assert tensor.values.dtype == np.int32
    with (texts / "out/val.rec").open("rb") as stream:
        unknown = record.tensor_in(next(record.read(stream)).features, "target").values
    assert unknown.tolist() == [vocabulary.UNK, vocabulary.UNK]


def test_a_single_vocabulary_is_written_under_both_names(texts: Path) -> None:
    tokenize(
        train_source=texts / "train.en",
        train_target=texts / "train.de.gz",
        output_dir=texts / "out",
        single_vocab=True,
        num_words_source=3,
        write=silent,
    )

    assert (texts / "out/vocab.src.json").read_bytes() == (texts / "out/vocab.trg.json").read_bytes()
    assert len(vocabulary.read(texts / "out/vocab.src.json")) == 7


def test_texts_of_different_lengths_are_refused(texts: Path) -> None:
    with pytest.raises(InvalidBody, match=r"val.de ends at line 1, .*train.en goes on: the two must be parallel"):
        tokenize(train_source=texts / "train.en", train_target=texts / "val.de", output_dir=texts / "out", write=silent)
    assert not [file for file in list_files(texts / "out") if ".rec" in file]


def inspected(path: Path) -> tuple[str, int, int, str]:
    lines: list[str] = []
    report = inspect(path, write=lines.append)
    return report.kind, report.records, report.malformed, "\n".join(lines)


def test_a_packed_file_is_recognised_and_its_damage_named(tree: Path, tmp_path: Path) -> None:
    pack(output=tmp_path / "x.rec", images_root=tree, write=silent)
    offsets = sorted(read_index(tmp_path / "x.idx").values())
    data = bytearray((tmp_path / "x.rec").read_bytes())
    data[offsets[2]] ^= 1
    (tmp_path / "x.rec").write_bytes(data)

    kind, good, malformed, text = inspected(tmp_path / "x.rec")

    assert (kind, good, malformed) == ("RecordIO of image records", 3, 1)
    assert f"MALFORMED record 2 at byte {offsets[2]}: not RecordIO" in text
    assert "id 0, labels [0], image 20 x 32" in text
    assert "label 2: 1" in text


def test_malformed_protobuf_records_behind_the_first_are_named_too(tmp_path: Path) -> None:
    """Behind the first few, which are shown, the file is read by whole blocks."""

    def framed(key: int) -> bytes:
        tensor = record.Tensor(np.ones(2, np.float32), np.array([key, 1], np.uint64), (9,))
        label = {"values": record.Tensor(np.ones(1, np.float32))}
        return record.encode_body([record.Record({"values": tensor}, label)])

    size = len(framed(0))
    data = bytearray(framed(0) * 50 + framed(9) + framed(0) * 50)
    data[80 * size] ^= 1
    (tmp_path / "x.rec").write_bytes(data)

    kind, good, malformed, text = inspected(tmp_path / "x.rec")

    assert (kind, good, malformed) == ("RecordIO of protobuf records", 99, 2)
    assert f"MALFORMED record 50 at byte {50 * size}: feature 'values' has key 9" in text
    assert f"MALFORMED record 80 at byte {80 * size}: not RecordIO" in text
    assert f"record 2 at byte {2 * size}: features 'values' float32[2] sparse of shape [9]: 1, 1" in text
    assert "record 3 at" not in text
    assert "label 1: 99" in text


@pytest.mark.parametrize(
    ("name", "kind", "records"),
    [
        ("sdk_dense_float32.rec", "RecordIO of protobuf records", 3),
        ("sdk_sparse_float32.rec", "RecordIO of protobuf records", 3),
        ("mxnet_images.idx", "", 0),
    ],
)
def test_other_files_are_recognised(name: str, kind: str, records: int) -> None:
    if not kind:
        with pytest.raises(InvalidBody, match="of no known kind; it looks like text"):
            inspected(FIXTURES / name)
        return
    assert inspected(FIXTURES / name)[:3] == (kind, records, 0)


@pytest.mark.parametrize(
    ("name", "data", "kind", "good", "malformed", "text"),
    [
        ("a.json", b'{"label":1}\nx\n{"label":2}\n', "JSON Lines", 2, 1, "MALFORMED line 2: not valid JSON"),
        ("a.json.gz", gzip.compress(b'{"label":1}\n'), "JSON Lines", 1, 0, "label 1: 1"),
        ("a.lst", b"1\t0\ta.jpg\nx\n", "image list", 1, 1, "MALFORMED line 2: 1 tab separated"),
        ("a.json", b'[{"prefix":"s3://b/"},\n"a"]', "JSON", 1, 0, "list of 2 entries"),
        ("a.png", images.encode_png(np.zeros((2, 3, 3), np.uint8)), "image", 1, 0, "2 x 3"),
        ("a.parquet", b"PAR1", "Parquet", 0, 1, "not a readable Parquet file"),
    ],
)
def test_text_and_other_kinds(
    tmp_path: Path, name: str, data: bytes, kind: str, good: int, malformed: int, text: str
) -> None:
    (tmp_path / name).write_bytes(data)

    found = inspected(tmp_path / name)

    assert found[:3] == (kind, good, malformed)
    assert text in found[3]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").touch()

    with pytest.raises(InvalidBody, match="empty"):
        inspected(tmp_path / "x")
