"""One function per reader: any bytes in, and nothing but a clean answer or `InvalidBody` may come out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from formats import detection, image_record, images, jsonlines, labelled_text, lst, masks, parquet, record, timeseries
from formats.errors import InvalidBody
from formats.record import dense
from formats.record_lists import read_lists
from formats.record_matrix import read_matrix
from formats.record_sparse import read_sparse
from formats.recordio import encode_record, read_decoded, read_records, shard_bounds

__all__ = ["SEEDS", "TARGETS"]

_FIXTURES = Path(__file__).parents[1] / "formats" / "fixtures"
_PIXELS = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
_FEW = 1 << 16


def recordio(data: bytes) -> None:
    """Whole, skipping damage, and in shards: skipping finds at least what reading finds, and shards find the same."""
    with suppress(InvalidBody):
        found = [raw.payload for raw in read_records(io.BytesIO(data))]
        assert sum(map(len, found)) <= len(data)
        assert [raw.payload for raw in read_records(io.BytesIO(data), skip_bad=True)] == found
    with suppress(InvalidBody):
        for raw in read_records(io.BytesIO(data), skip_bad=True):
            assert len(raw.payload) <= len(data)
    bounds = [shard_bounds(io.BytesIO(data), len(data), rank, 3) for rank in range(3)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == len(data)
    assert all(left[1] == right[0] for left, right in pairwise(bounds))


def protobuf(data: bytes) -> None:
    """One unframed record; what is decoded can be encoded and decoded again."""
    with suppress(InvalidBody):
        found = record.decode(data)
        assert record.encode(record.decode(record.encode(found))) == record.encode(found)
        for feature in found.features.values():
            if isinstance(feature, record.Tensor):
                dense(feature, max_elements=_FEW)


def _one_by_one(data: bytes) -> Iterator[record.Record]:
    """Without any reading in bulk."""
    return read_decoded(record.decode, io.BytesIO(data))


def protobuf_records(data: bytes) -> None:
    """Reading in blocks gives the records, the faults and their places that reading one by one gives."""
    for skip in (False, True):
        assert _told(record.read, data, skip) == _told(partial(read_decoded, record.decode), data, skip)


def _told(reader: Callable[..., Iterator[record.Record]], data: bytes, skip: bool) -> list[object]:
    seen: list[object] = []
    try:
        seen.extend(map(record.encode, reader(io.BytesIO(data), skip_bad=skip, on_bad=lambda *bad: seen.append(bad))))
    except InvalidBody as error:
        seen.append(str(error))
    return seen


def protobuf_matrix(data: bytes) -> None:
    """Bulk reading gives what reading record by record gives."""
    try:
        blocks = list(read_matrix(io.BytesIO(data), max_features=_FEW))
    except InvalidBody:
        return
    rows = np.concatenate([block.features for block in blocks])
    each = [dense(record.tensor_in(r.features, "values")).ravel() for r in _one_by_one(data)]
    with np.errstate(over="ignore", invalid="ignore"):
        assert np.array_equal(rows, np.stack(each).astype(np.float32), equal_nan=True)


def protobuf_lists(data: bytes) -> None:
    """Bulk reading gives what reading record by record gives."""
    try:
        blocks = list(read_lists(io.BytesIO(data)))
    except InvalidBody:
        return
    pairs = [[r.features[side] for side in ("source", "target")] for r in _one_by_one(data)]
    for side in range(2):
        values = np.concatenate([block[side].values for block in blocks])
        each = [pair[side].values for pair in pairs if isinstance(pair[side], record.Tensor)]
        assert np.array_equal(values, np.concatenate(each))
        assert sum(len(block[side].offsets) - 1 for block in blocks) == len(pairs)


def protobuf_sparse(data: bytes) -> None:
    """Bulk reading gives what reading record by record gives, and its arrays are sound."""
    try:
        blocks = list(read_sparse(io.BytesIO(data)))
    except InvalidBody:
        return
    records = _one_by_one(data)
    for block in blocks:
        assert block.indptr[0] == 0
        assert block.indptr[-1] == len(block.indices) == len(block.data)
        assert block.labels is None or len(block.labels) == len(block.indptr) - 1
        for number, (begin, end) in enumerate(pairwise(block.indptr.tolist())):
            found = next(records)
            tensor = record.tensor_in(found.features, "values")
            keys = range(len(tensor.values)) if tensor.keys is None else tensor.keys.tolist()
            last = dict(zip(keys, range(len(tensor.values)), strict=True))
            assert block.indices[begin:end].tolist() == sorted(last)
            assert block.data[begin:end].tobytes() == tensor.values[[last[key] for key in sorted(last)]].tobytes()
            if block.labels is not None:
                label = record.tensor_in(found.label, "values").values
                assert block.labels[number : number + 1].tobytes() == label.tobytes()
    assert next(records, None) is None


def images_in_records(data: bytes) -> None:
    with suppress(InvalidBody):
        for found in image_record.read(io.BytesIO(data), skip_bad=True):
            with suppress(InvalidBody):
                detection.unpack_labels(found.labels)


def image(data: bytes) -> None:
    with suppress(InvalidBody):
        pixels = images.decode(data, max_pixels=_FEW)
        assert pixels.shape[:2] == images.size_of(data)


def mask(data: bytes) -> None:
    with suppress(InvalidBody):
        assert masks.decode_mask(data, max_pixels=_FEW).ndim == 2


def json_lines(data: bytes) -> None:
    for reader in (timeseries.read, labelled_text.read, labelled_text.read_texts):
        with suppress(InvalidBody):
            list(reader(io.BytesIO(data)))
    with suppress(InvalidBody):
        list(jsonlines.read(io.BytesIO(data), on_bad=lambda *_: None))


def image_list(data: bytes) -> None:
    with suppress(InvalidBody):
        for entry in lst.read_lst(io.BytesIO(data)):
            assert not entry.path.startswith("/")


def parquet_file(data: bytes) -> None:
    with suppress(InvalidBody):
        list(parquet.read(io.BytesIO(data)))


def _parquet_seed() -> bytes:
    stream = io.BytesIO()
    parquet.write(stream, [{"start": "2024-01-01", "target": [1.0, 2.0], "dynamic_feat": [[1.0]]}] * 2)
    return stream.getvalue()


def _pairs_seed() -> bytes:
    sides = [([1, 300], [70_000, -1]), ([], [5]), ([9], [])]
    return record.encode_body(
        record.Record(
            {side: record.Tensor(np.array(ids, np.int32)) for side, ids in zip(("source", "target"), pair, strict=True)}
        )
        for pair in sides
    )


def _sparse_seeds() -> list[bytes]:
    def row(values: list[float], keys: list[int], dtype: str, label: str | None) -> record.Record:
        tensor = record.Tensor(np.array(values, dtype), np.array(keys, np.uint64), (100_000,))
        labels = {} if label is None else {"values": record.Tensor(np.ones(1, label))}
        return record.Record({"values": tensor}, labels)

    rows = [([1.5, -2.0, 3.0], [3, 700, 70_000]), ([], []), ([300.0] * 60, list(range(60))), ([1.0, 2.0], [9, 9])]
    return [
        record.encode_body(row(*values, dtype, label) for values in rows)
        for dtype, label in (("<f4", "<f4"), ("<f8", "<i4"), ("<i4", None))
    ]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "image": image,
    "image_list": image_list,
    "images_in_records": images_in_records,
    "json_lines": json_lines,
    "mask": mask,
    "parquet_file": parquet_file,
    "protobuf": protobuf,
    "protobuf_lists": protobuf_lists,
    "protobuf_matrix": protobuf_matrix,
    "protobuf_records": protobuf_records,
    "protobuf_sparse": protobuf_sparse,
    "recordio": recordio,
}


def _records() -> list[bytes]:
    return [path.read_bytes() for path in sorted(_FIXTURES.glob("*.rec"))]


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "image": lambda: [images.encode_jpeg(_PIXELS), images.encode_png(_PIXELS), images.encode_png(_PIXELS[..., 0])],
    "image_list": lambda: [b"7\t2\t5\t1\t.1\t.2\t.3\t.4\ta/b.jpg\n8\t1\tc.jpg\r\n"],
    "images_in_records": _records,
    "json_lines": lambda: [
        b'{"start":"2024-01-01","target":[1,null,"NaN"],"cat":[1],"dynamic_feat":[[1,2,3]]}\n',
        b"__label__a some words\nand more\n",
    ],
    "mask": lambda: [masks.encode_mask(_PIXELS[..., 0]), images.encode_png(_PIXELS[..., 0])],
    "parquet_file": lambda: [_parquet_seed()],
    "protobuf": lambda: [raw.payload for data in _records() for raw in read_records(io.BytesIO(data))],
    "protobuf_lists": lambda: [_pairs_seed()],
    "protobuf_matrix": lambda: [(_FIXTURES / "sdk_dense_float32.rec").read_bytes() * 3, *_records()],
    "protobuf_records": lambda: [*_records(), _pairs_seed(), *_sparse_seeds()],
    "protobuf_sparse": lambda: [(_FIXTURES / "sdk_sparse_float32.rec").read_bytes() * 3, *_sparse_seeds()],
    "recordio": lambda: [*_records(), encode_record(b"a" * 30) * 3],
}
