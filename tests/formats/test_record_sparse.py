from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import InvalidBody
from formats.record import BytesValue, Feature, Record, Tensor, decode, encode, encode_body, tensor_in
from formats.record_sparse import SparseRows, read_sparse
from formats.recordio import encode_record, read_decoded

FIXTURES = Path(__file__).parent / "fixtures"
Row = tuple[int, str, list[tuple[int, float]], Any]
"""Width, dtype, (index, value) pairs in order, and the label with its dtype."""


def in_bulk(data: bytes) -> list[Row]:
    rows: list[Row] = []
    for block in read_sparse(io.BytesIO(data), "x.rec"):
        assert block.indptr[0] == 0
        assert block.indptr[-1] == len(block.indices) == len(block.data)
        for i, (begin, end) in enumerate(zip(block.indptr[:-1], block.indptr[1:], strict=True)):
            pairs = list(zip(block.indices[begin:end].tolist(), block.data[begin:end].tolist(), strict=True))
            label = None if block.labels is None else (block.labels.dtype.str, block.labels[i].item())
            rows.append((block.width, block.data.dtype.str, pairs, label))
    return rows


def one_by_one(data: bytes) -> list[Row]:
    """The plain reference: the ordinary decoder, and the reader's rules in plain words."""
    rows: list[Row] = []
    for found in read_decoded(decode, io.BytesIO(data), "x.rec"):
        try:
            rows.append(plain_row(found, rows[0] if rows else None))
        except InvalidBody as error:
            raise InvalidBody(f"x.rec: record {len(rows)} at byte ?: {error}") from error
    return rows


def plain_row(found: Record, first: Row | None) -> Row:
    tensor = tensor_in(found.features, "values")
    width = math.prod(tensor.shape) if tensor.shape else len(tensor.values)
    keys = range(len(tensor.values)) if tensor.keys is None else tensor.keys.tolist()
    label = None
    if found.label:
        values = tensor_in(found.label, "values", "labels").values
        if len(values) != 1:
            raise InvalidBody("no single label")
        label = (values.dtype.str, values[0].item())
    if width >= 2**63 or (first is not None and (width, label is None) != (first[0], first[3] is None)):
        raise InvalidBody("unlike the first record")
    pairs = sorted(dict(zip(keys, tensor.values.tolist(), strict=True)).items())
    return width, tensor.values.dtype.str, pairs, label


def outcome(reader: Callable[[bytes], list[Row]], data: bytes) -> Any:
    """The rows as text (a NaN equals itself there), or the record at which reading ends and whether it is an error."""
    try:
        return repr(reader(data))
    except InvalidBody as error:
        return str(error).partition(" at byte ")[0]


def row(
    pairs: dict[int, float], width: int = 100_000, label: float | None = 1, dtype: str = "<f4", label_dtype: str = "<f4"
) -> Record:
    values = Tensor(np.array(list(pairs.values()), dtype), np.array(list(pairs), np.uint64), (width,))
    return Record({"values": values}, {} if label is None else {"values": Tensor(np.array([label], label_dtype))})


dtypes = st.sampled_from(["<f4", "<f4", "<f8", "<i4"])
keys = st.integers(0, 99_999) | st.integers(0, 99)
pairs = st.dictionaries(keys, st.integers(-1000, 100_000).map(float), max_size=150)


def test_the_sdks_file_gives_its_matrix() -> None:
    """As `scipy.sparse.csr_matrix` held it; its last row is all zeros."""
    data = (FIXTURES / "sdk_sparse_float32.rec").read_bytes()

    (block,) = read_sparse(io.BytesIO(data))

    assert block.indptr.tolist() == [0, 1, 3, 3]
    assert block.indices.tolist() == [2, 0, 3]
    assert block.data.tolist() == [1.5, 2.0, -3.0]
    assert block.labels is not None
    assert block.labels.tolist() == [0, 1, 4]
    assert block.width == 4
    assert [array.dtype for array in block[:4]] == [np.int64, np.int64, np.float32, np.float32]  # type: ignore[union-attr]


@settings(deadline=None, max_examples=80)
@given(st.lists(pairs, min_size=1, max_size=20), dtypes, dtypes, st.booleans())
def test_rows_come_as_they_were_written(rows: list[dict[int, float]], dtype: str, label: str, labelled: bool) -> None:
    data = encode_body(
        row(r, dtype=dtype, label=i if labelled else None, label_dtype=label) for i, r in enumerate(rows)
    )

    expected = [(100_000, dtype, sorted(r.items()), (label, i) if labelled else None) for i, r in enumerate(rows)]
    assert in_bulk(data) == expected
    assert one_by_one(data) == expected


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["", "uid", "dense", "int", "double", "2d", "turned", "wide key"]), pairs), min_size=1
    )
)
def test_records_of_other_structure_give_the_same(rows: list[tuple[str, dict[int, float]]]) -> None:
    payloads = []
    for kind, found in rows:
        made = row(found, dtype={"int": "<i4", "double": "<f8"}.get(kind, "<f4"))
        if kind == "uid":
            made.uid = "x" * len(found)
        if kind == "dense":
            made.features = {"values": Tensor(np.arange(100_000, dtype=np.float32), None, (100_000,))}
        if kind == "2d":
            made.features = {"values": Tensor(np.ones(1, np.float32), np.array([99_999], np.uint64), (100, 1000))}
        payload = encode(made)
        if kind == "turned":  # fields come in any order
            payload = encode(Record({}, made.label)) + encode(Record(made.features))
        payloads.append(encode_record(payload, split=False))
    data = b"".join(payloads)

    assert outcome(in_bulk, data) == outcome(one_by_one, data)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_changed_byte_gives_what_record_by_record_gives(draw: st.DataObject) -> None:
    rows = [row({3: 1.5, 700: 2, 70_000: -1}), row({}), row({5: 1}, label=3), row({n: n for n in range(70)})] * 2
    data = bytearray(encode_body(rows))
    for _ in range(draw.draw(st.integers(1, 2))):
        data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    if draw.draw(st.booleans()):
        del data[draw.draw(st.integers(0, len(data))) :]

    assert outcome(in_bulk, bytes(data)) == outcome(one_by_one, bytes(data)) or not data


def test_a_file_of_many_blocks_is_read_whole() -> None:
    rng = np.random.default_rng(2)
    counts = rng.integers(0, 90, 12_000)
    rows = [np.sort(rng.choice(70_000, count, replace=False)) for count in counts]
    data = encode_body(row(dict(zip(r.tolist(), r.tolist(), strict=True)), label=i) for i, r in enumerate(rows))
    blocks = list(read_sparse(io.BytesIO(data)))

    assert len(data) > 3 * 2**20
    assert len(blocks) < 12  # in bulk
    assert np.concatenate([np.diff(b.indptr) for b in blocks]).tolist() == counts.tolist()
    assert np.array_equal(np.concatenate([b.indices for b in blocks]), np.concatenate(rows))
    assert np.array_equal(np.concatenate([b.data for b in blocks]), np.concatenate(rows))
    assert np.array_equal(np.concatenate([b.labels for b in blocks if b.labels is not None]), np.arange(12_000))


def test_unordered_keys_come_sorted_and_of_a_key_given_twice_the_last_counts() -> None:
    """As `formats.record.dense` fills a row; a reader of CSR might add them up."""
    features = Tensor(np.array([1, 2, 3], np.float32), np.array([7, 2, 7], np.uint64), (9,))

    (block,) = read_sparse(io.BytesIO(encode_body([Record({"values": features})] * 40)))

    assert block.indptr.tolist() == list(range(0, 82, 2))
    assert block.indices.tolist() == [2, 7] * 40
    assert block.data.tolist() == [2, 3] * 40


def test_keys_of_ten_bytes_are_whole() -> None:
    last = 2**63 - 2
    data = encode_body([row({0: 1, 300: 2, last: 3}, width=2**63 - 1)] * 30)

    (block,) = read_sparse(io.BytesIO(data))

    assert block.indices.tolist() == [0, 300, last] * 30


@pytest.mark.parametrize("uid", ["", "x"])
@pytest.mark.parametrize(
    ("odd", "text"),
    [
        (Record({"other": Tensor(np.ones(3, np.float32))}), "features lack 'values'; present: 'other'"),
        (Record({"values": BytesValue((b"x",))}), "'values' holds bytes"),
        (row({1: 1}, width=10), "has 10 elements, the first record has 100000"),
        (row({1: 1}, label=None), "has no label, unlike the first record"),
        (Record(row({1: 1}).features, {"values": Tensor(np.ones(2, np.float32))}), "has 2 values, expected 1"),
        (row({100_000: 1}), r"has key 100000, its shape \[100000\] ends before"),
        (Record({"values": Tensor(np.ones(1, np.float32), np.ones(2, np.uint64), (9,))}), "2 keys and 1 values"),
        (Record({"values": Tensor(np.ones(1, np.float32), np.ones(1, np.uint64))}), "lacks its shape"),
    ],
)
def test_a_row_that_is_wrong_is_named_by_number_and_byte(odd: Record, text: str, uid: str) -> None:
    good = encode_body([row({1: 1, 200: 2})] * 50)
    odd.uid = uid or None

    with pytest.raises(InvalidBody, match=f"x.rec: record 50 at byte {len(good)}: .*{text}"):
        in_bulk(good + encode_body([odd, row({1: 1, 200: 2})]))


@pytest.mark.parametrize("tail", [b"\x0a\x23", b"junkjunk", encode_record(b"abc")[:-1]])
def test_damage_after_a_bulk_run_is_named_by_number_and_byte(tail: bytes) -> None:
    good = encode_body([row({1: 1, 200: 2})] * 50)

    with pytest.raises(InvalidBody, match=f"record 50 at byte {len(good)}"):
        in_bulk(good + tail)


def test_other_names_are_read_when_asked_for() -> None:
    features: dict[str, Feature] = {"words": row({4: 2}).features["values"]}
    data = encode_body([Record(features, {"class": Tensor(np.ones(1, np.int32))})] * 3)

    (block,) = read_sparse(io.BytesIO(data), feature="words", label="class")

    assert isinstance(block, SparseRows)
    assert block.indices.tolist() == [4] * 3
    assert block.labels is not None
    assert block.labels.tolist() == [1] * 3


def test_a_wider_shape_than_int64_is_refused() -> None:
    with pytest.raises(InvalidBody, match=r"record 0 at byte 0: sparse shape .* at most 9223372036854775807"):
        in_bulk(encode_body([row({1: 1}, width=2**63)]))


def test_an_empty_file_has_no_records() -> None:
    with pytest.raises(InvalidBody, match="no records"):
        in_bulk(b"")
