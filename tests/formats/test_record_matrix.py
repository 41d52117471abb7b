from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import InvalidBody
from formats.record import Record, Tensor, decode, dense, encode_body, tensor_in
from formats.record_matrix import Rows, read_matrix
from formats.recordio import encode_record, read_decoded

FIXTURES = Path(__file__).parent / "fixtures"


def joined(data: bytes) -> Rows:
    blocks = list(read_matrix(io.BytesIO(data), "file.rec"))
    labels = [block.labels for block in blocks if block.labels is not None]
    return Rows(np.concatenate([b.features for b in blocks]), np.concatenate(labels) if labels else None)


def one_by_one(data: bytes) -> Rows:
    records = list(read_decoded(decode, io.BytesIO(data)))
    rows = np.stack([dense(tensor_in(r.features, "values")).astype(np.float32) for r in records])
    labels = [tensor_in(r.label, "values").values for r in records if r.label]
    return Rows(rows, np.concatenate(labels).astype(np.float32) if labels else None)


def row(values: list[float], label: float | None, dtype: str = "<f4", uid: str | None = None) -> Record:
    labels = {} if label is None else {"values": Tensor(np.array([label], np.float32))}
    return Record({"values": Tensor(np.array(values, dtype))}, labels, uid)


def assert_same(found: Rows, expected: Rows) -> None:
    assert np.array_equal(found.features, expected.features)
    assert found.features.dtype == np.float32
    assert (found.labels is None) == (expected.labels is None)
    if found.labels is not None and expected.labels is not None:
        assert np.array_equal(found.labels, expected.labels)


@pytest.mark.parametrize(
    "kind", ["dense_float32", "dense_float64", "dense_int32", "dense_unlabelled", "sparse_float32"]
)
def test_the_sdks_files_give_the_same_rows_as_record_by_record(kind: str) -> None:
    data = (FIXTURES / f"sdk_{kind}.rec").read_bytes()

    assert_same(joined(data), one_by_one(data))


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_file_of_many_blocks_is_cut_exactly(dtype: str, labelled: bool) -> None:
    rows = np.random.default_rng(1).random((4000, 150)).astype(dtype)
    data = encode_body([row(r.tolist(), float(i) if labelled else None, dtype) for i, r in enumerate(rows)])

    found = joined(data)

    assert len(data) > 2 * 2**20
    assert np.array_equal(found.features, rows.astype(np.float32))
    assert found.labels is None if not labelled else np.array_equal(found.labels, np.arange(4000))  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_mixed_layouts_give_the_same_rows_as_record_by_record(draw: st.DataObject) -> None:
    """Runs of one layout, broken by other dtypes, ids and sparse rows."""
    kinds = draw.draw(st.lists(st.tuples(st.sampled_from(["<f4", "<f8", "<i4", "uid"]), st.integers(1, 9)), min_size=1))
    counter = iter(range(10_000))
    records = [
        row([next(counter), 2, 3], next(counter), "<f4" if kind == "uid" else kind, "x" if kind == "uid" else None)
        for kind, repeat in kinds
        for _ in range(repeat)
    ]

    assert_same(joined(encode_body(records)), one_by_one(encode_body(records)))


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (row([1, 2], 0), "has 2 values, the first record has 3"),
        (row([1, 2, 3], None), "has no label"),
        (Record({"other": Tensor(np.ones(3, np.float32))}), "features lack 'values'; present: 'other'"),
        (
            Record(row([1, 2, 3], 0).features, {"values": Tensor(np.ones(2, np.float32))}),
            "label 'values' has 2 values, expected 1",
        ),
    ],
)
def test_a_row_unlike_the_first_is_named_by_number_and_byte(record: Record, text: str) -> None:
    good = encode_body([row([1, 2, 3], 0)] * 50)

    with pytest.raises(InvalidBody, match=f"file.rec: record 50 at byte {len(good)}: .*{text}"):
        joined(good + encode_body([record]))


@pytest.mark.parametrize("tail", [b"\x0a\x23", b"junkjunk", encode_record(b"abc")[:-1]])
def test_damage_after_a_bulk_run_is_named_by_number_and_byte(tail: bytes) -> None:
    good = encode_body([row([1, 2, 3], 0)] * 50)

    with pytest.raises(InvalidBody, match=f"record 50 at byte {len(good)}"):
        joined(good + tail)


def test_an_empty_file_has_no_records() -> None:
    with pytest.raises(InvalidBody, match="no records"):
        joined(b"")


def sparse_row(width: int, values: list[float], keys: list[int], label: float, dtype: str) -> Record:
    tensor = Tensor(np.array(values, dtype), np.array(keys, np.uint64), (width,))
    return Record({"values": tensor}, {"values": Tensor(np.array([label], dtype))})


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i4"])
@pytest.mark.parametrize("width", [50, 30_000])
def test_sparse_rows_are_filled_up_with_zeros(dtype: str, width: int) -> None:
    """In bulk too: of a key given twice the last value counts, wide rows come in smaller blocks."""
    rng = np.random.default_rng(3)
    made = [
        sparse_row(width, list(range(n)), rng.integers(0, width, n).tolist(), n, dtype)
        for n in rng.integers(0, 40, 300).tolist()
    ]
    data = encode_body(made)

    assert_same(joined(data), one_by_one(data))
    assert all(block.features.nbytes <= 1 << 22 for block in read_matrix(io.BytesIO(data)))


def test_whole_numbers_of_any_size_come_in_bulk() -> None:
    rows = np.random.default_rng(4).integers(-(2**31), 2**31, (20_000, 9)) >> np.arange(0, 27, 3)
    data = encode_body(row(r.tolist(), i, "<i4") for i, r in enumerate(rows))

    found = joined(data)

    assert len(list(read_matrix(io.BytesIO(data)))) < 10
    assert np.array_equal(found.features, rows.astype(np.float32))
    assert found.labels is not None
    assert np.array_equal(found.labels, np.arange(20_000))


def test_a_number_beyond_float32_becomes_infinite() -> None:
    found = joined(encode_body([row([1e300], 0, "<f8")] * 3 + [sparse_row(1, [1e300], [0], 1e300, "<f8")] * 3))

    assert np.isposinf(found.features).all()
    assert found.labels is not None
    assert found.labels.tolist() == [0, 0, 0, np.inf, np.inf, np.inf]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_flipped_byte_in_rows_of_varying_size_gives_what_record_by_record_gives(draw: st.DataObject) -> None:
    width = 300
    rows = [sparse_row(width, [1, 2, 300], [0, 7, 299], 1, "<f4"), sparse_row(width, [], [], 2, "<f4")]
    data = bytearray(encode_body(rows * 3))
    if draw.draw(st.booleans()):
        data = bytearray(encode_body([row([1, 300, -1], i, "<i4") for i in range(6)]))
    data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    try:
        found = joined(bytes(data))
    except InvalidBody:
        return
    expected = one_by_one(bytes(data))

    np.testing.assert_array_equal(found.features, expected.features)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_flipped_byte_gives_what_record_by_record_gives(draw: st.DataObject) -> None:
    data = bytearray(encode_body([row([1.5, 2, 3], i) for i in range(6)]))
    data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    try:
        found = joined(bytes(data))
    except InvalidBody:
        return
    expected = one_by_one(bytes(data))

    np.testing.assert_array_equal(found.features, expected.features)
