from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pool
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from formats.errors import InvalidBody
from formats.protos import record_pb2
from formats.record import (
    BytesValue,
    Feature,
    Record,
    Tensor,
    decode,
    decode_body,
    dense,
    encode,
    encode_body,
    read,
    tensor_in,
    write,
)
from formats.recordio import encode_record, read_decoded

FIXTURES = Path(__file__).parent / "fixtures"
EXAMPLE = bytes.fromhex(
    "0a160a0676616c756573120c120a0a080000803f00000040 12120a0676616c756573120812060a0400000000".replace(" ", "")
)


def plain(feature: Feature) -> Any:
    if isinstance(feature, BytesValue):
        return feature
    keys = None if feature.keys is None else feature.keys.tolist()
    return feature.values.dtype.str, feature.values.tobytes(), keys, feature.shape


def plain_record(record: Record) -> Any:
    sides = [{name: plain(feature) for name, feature in side.items()} for side in (record.features, record.label)]
    return sides, record.uid, record.metadata, record.configuration


def floats(*values: float) -> Tensor:
    return Tensor(np.array(values, np.float32))


dense_tensors = st.builds(
    Tensor,
    hnp.arrays(
        st.sampled_from(["<f4", "<f8", "<i4"]),
        st.integers(0, 100),
        # a NaN's payload bits may change on its way through C doubles
        elements=None,
    ).map(np.nan_to_num),
)
sparse_tensors = st.integers(1, 2**63).flatmap(
    lambda size: st.builds(
        lambda keys: Tensor(np.arange(len(keys), dtype=np.float32), np.array(keys, np.uint64), (size,)),
        st.lists(st.integers(0, size - 1), max_size=9),
    )
)
features = st.dictionaries(
    st.text(max_size=5),
    dense_tensors | sparse_tensors | st.builds(BytesValue, st.lists(st.binary()).map(tuple), st.none() | st.text()),
    max_size=3,
)
records = st.builds(Record, features, features, *[st.none() | st.text(max_size=9)] * 3)


def test_the_bytes_of_the_contract() -> None:
    """Record formats, example of section 2, both directions."""
    record = Record({"values": floats(1, 2)}, {"values": floats(0)})

    assert encode(record) == EXAMPLE
    assert plain_record(decode(EXAMPLE)) == plain_record(record)
    assert encode_body([record]) == bytes.fromhex("0a23d7ce2c000000") + EXAMPLE


def test_the_segmentation_answer_of_the_contract() -> None:
    """Semantic segmentation contract, section 6; map order is free, so the record is compared, not its bytes."""
    data = bytes.fromhex(
        "0a110a0573686170651208 3a060a0401020102 0a1e0a0674617267657412141212 0a106666663fcdcc4c3ecdcccc3dcdcc4c3f"
    )

    record = decode(data)

    assert dense(tensor_in(record.features, "shape")).tolist() == [1, 2, 1, 2]
    assert dense(tensor_in(record.features, "target")).tolist() == pytest.approx([0.9, 0.2, 0.1, 0.8])


@settings(deadline=None)
@given(st.lists(records, min_size=1, max_size=3))
def test_what_is_written_is_read_back(written: list[Record]) -> None:
    stream = io.BytesIO()
    assert write(stream, written) == len(written)
    stream.seek(0)

    assert [plain_record(record) for record in read(stream)] == [plain_record(record) for record in written]


@pytest.mark.parametrize(("kind", "dtype"), [("float32", np.float32), ("float64", np.float64), ("int32", np.int32)])
def test_the_sdks_dense_files_are_read_and_written_bit_for_bit(kind: str, dtype: type) -> None:
    data = (FIXTURES / f"sdk_dense_{kind}.rec").read_bytes()
    rows: NDArray[Any] = np.array([[0.5, -1.25, 3.0], [1e-3, 0.0, 7.5], [2.0, 2.5, -0.0]]).astype(dtype)
    labels: NDArray[Any] = np.array([0.0, 1.0, 4.0]).astype(dtype)

    found = decode_body(data)

    assert [tensor_in(r.features, "values").values.tobytes() for r in found] == [row.tobytes() for row in rows]
    assert [tensor_in(r.label, "values").values.tolist() for r in found] == [[label] for label in labels]
    assert encode_body(found) == data


def test_the_sdks_sparse_file_is_read_and_written_bit_for_bit() -> None:
    """Its last row is all zeros: no values, no keys, only a shape."""
    data = (FIXTURES / "sdk_sparse_float32.rec").read_bytes()

    found = decode_body(data)

    assert [dense(tensor_in(r.features, "values")).tolist() for r in found] == [
        [0, 0, 1.5, 0],
        [2.0, 0, 0, -3.0],
        [0, 0, 0, 0],
    ]
    assert encode_body(found) == data


def test_long_tensors_take_the_bulk_way_to_the_same_numbers() -> None:
    for dtype in (np.float32, np.float64, np.int32):
        values = np.arange(20_000, dtype=dtype) - 7
        found = decode(encode(Record({"values": Tensor(values, None, (20_000,))})))

        assert np.array_equal(tensor_in(found.features, "values").values, values)


def test_unpacked_numbers_and_unknown_fields_are_accepted() -> None:
    tensor = b"\x0d\0\0\x80\x3f\x0d\0\0\0\x40" + b"\x7a\x01x"  # field 1 twice, fixed32 each; field 15 is unknown
    value = b"\x12" + bytes([len(tensor)]) + tensor
    entry = b"\x0a\x01v\x12" + bytes([len(value)]) + value
    message = b"\x0a" + bytes([len(entry)]) + entry + b"\x7a\x01x"

    assert tensor_in(decode(message).features, "v").values.tolist() == [1, 2]


def test_the_last_of_a_repeated_key_wins() -> None:
    first, second = encode(Record({"v": floats(1)})), encode(Record({"v": floats(2, 3)}))

    assert tensor_in(decode(first + second).features, "v").values.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("features", "text"),
    [
        ({"v": Tensor(np.ones(2, np.float32), None, (3,))}, r"'v' has 2 values, its shape \[3\] 3"),
        ({"v": Tensor(np.ones(2, np.float32), np.array([1], np.uint64), (3,))}, "1 keys and 2 values"),
        ({"v": Tensor(np.ones(1, np.float32), np.array([1], np.uint64))}, "lacks its shape"),
        ({"v": Tensor(np.ones(1, np.float32), np.array([3], np.uint64), (3,))}, "key 3, its shape"),
    ],
)
def test_a_tensor_that_contradicts_itself_is_refused(features: dict[str, Feature], text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        decode(encode(Record(features)))


def test_an_empty_value_is_refused_by_its_name() -> None:
    with pytest.raises(InvalidBody, match="feature 'v' is empty"):
        decode(b"\x0a\x05\x0a\x01v\x12\x00")


@pytest.mark.parametrize(
    "payload",
    [b"\xff", b"\x0a\xff", b"not protobuf", b"\x0a\x05\x0a\x01\xff\x12\x00", b"\x1a\x02\xff\xfe", b"\x0b" * 100_000],
    ids=["tag", "length", "text", "key", "uid", "deep groups"],
)
def test_a_payload_that_is_no_record_is_named_by_number_and_byte(payload: bytes) -> None:
    stream = io.BytesIO(encode_body([Record()]) + encode_record(payload))

    with pytest.raises(InvalidBody, match=r"file.rec: record 1 at byte 8: not a valid Record"):
        list(read(stream, "file.rec"))


def test_an_absent_feature_is_named_with_those_present() -> None:
    record = Record({"target": floats(1), "image": BytesValue((b"x",))})

    with pytest.raises(InvalidBody, match="features lack 'source'; present: 'image', 'target'"):
        tensor_in(record.features, "source")
    with pytest.raises(InvalidBody, match="'image' holds bytes"):
        tensor_in(record.features, "image")
    with pytest.raises(InvalidBody, match="labels lack 'values'; present: none"):
        tensor_in(record.label, "values", "labels")


def test_a_sparse_claim_is_not_allocated() -> None:
    tensor = Tensor(np.ones(1, np.float32), np.array([0], np.uint64), (2**40,))

    with pytest.raises(InvalidBody, match="1099511627776 elements"):
        dense(tensor)


def test_an_axis_of_zero_beside_an_impossible_one_is_refused() -> None:
    """Found by fuzzing: the product is 0, and so is the number of values."""
    tensor = Tensor(np.zeros(0, np.int32), np.zeros(0, np.uint64), (0, 2**64 - 1, 3))

    with pytest.raises(InvalidBody, match="is impossible"):
        dense(tensor)


def test_another_dtype_is_refused_when_writing() -> None:
    with pytest.raises(ValueError, match="'v' has dtype int64"):
        encode(Record({"v": Tensor(np.arange(3))}))


def outcome(reader: Callable[..., Iterator[Record]], data: bytes, **options: Any) -> list[Any]:
    """Records, faults and their places, in order."""
    seen: list[Any] = []
    try:
        seen.extend(
            map(plain_record, reader(io.BytesIO(data), "x.rec", on_bad=lambda *fault: seen.append(fault), **options))
        )
    except InvalidBody as error:
        seen.append(str(error))
    return seen


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_blocks_give_what_one_record_after_the_other_gives(draw: st.DataObject) -> None:
    """Runs of usual records, broken by any others, then damaged."""
    usual = st.sampled_from(
        [
            *decode_body((FIXTURES / "sdk_sparse_float32.rec").read_bytes()),
            *decode_body((FIXTURES / "sdk_dense_int32.rec").read_bytes()),
            Record({"source": Tensor(np.array([1, 300, -70_000], np.int32)), "target": Tensor(np.zeros(0, np.int32))}),
            Record(
                {"a": floats(1), "b": Tensor(np.ones(2, np.float64), None, (2, 1)), "c": floats()}, {"d": floats(2)}
            ),
        ]
    )
    written = draw.draw(st.lists(usual | records, min_size=1, max_size=12))
    data = bytearray(encode_body(written))
    for _ in range(draw.draw(st.integers(0, 2))):
        data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    options: dict[str, Any] = draw.draw(
        st.sampled_from([{}, {"skip_bad": True}, {"max_record": 60}, {"start": 8}, {"stop": 40}])
    )

    assert outcome(read, bytes(data), **options) == outcome(partial(read_decoded, decode), bytes(data), **options)


@pytest.mark.parametrize("count", [20, 2000])
def test_a_body_of_any_size_gives_its_records_or_names_the_wrong_one(count: int) -> None:
    made = [Record({"v": floats(*range(number % 9))}, {"y": floats(number)}) for number in range(count)]
    wrong = encode_body([Record({"v": Tensor(np.ones(2, np.float32), np.array([1], np.uint64), (3,))})])

    assert [plain_record(r) for r in decode_body(encode_body(made))] == [plain_record(r) for r in made]
    with pytest.raises(InvalidBody, match=f"record {count}.*: feature 'v' has 1 keys and 2 values"):
        decode_body(encode_body(made) + wrong)


def test_no_record_keeps_the_block_that_it_came_in() -> None:
    stream = io.BytesIO(encode_body([Record({"v": floats(1, 2, 3)})] * 2000))

    assert all(tensor_in(found.features, "v").values.base is None for found in read(stream))


def test_a_number_that_is_none_keeps_its_bits() -> None:
    """A signalling NaN would become a quiet one on its way through a C double."""
    bits = np.array([0x7F800001, 0xFFC12345], np.uint32)
    data = encode_body([Record({"v": Tensor(np.zeros(2, np.float32))})]).replace(bytes(8), bits.tobytes())

    assert tensor_in(decode_body(data)[0].features, "v").values.view(np.uint32).tolist() == bits.tolist()
    assert [tensor_in(r.features, "v").values.view(np.uint32).tolist() for r in read(io.BytesIO(data))] == [
        bits.tolist()
    ]


def test_skip_bad_passes_over_records_that_are_not_protobuf() -> None:
    stream = io.BytesIO(encode_body([Record(uid="a")]) + encode_record(b"\xff") + encode_body([Record(uid="b")]))
    faults: list[tuple[int, int]] = []

    found = [r.uid for r in read(stream, skip_bad=True, on_bad=lambda n, at, _: faults.append((n, at)))]

    assert found == ["a", "b"]
    assert faults == [(1, 12)]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80))
def test_any_bytes_are_a_record_or_a_clean_error(data: bytes) -> None:
    with contextlib.suppress(InvalidBody):
        decode(data)


def test_the_messages_live_in_a_pool_of_their_own() -> None:
    """The SageMaker SDK registers the same names in the default pool."""
    assert record_pb2.DESCRIPTOR.pool is not descriptor_pool.Default()  # type: ignore[no-untyped-call]
