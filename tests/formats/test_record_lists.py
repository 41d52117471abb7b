from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import InvalidBody
from formats.record import BytesValue, Feature, Record, Tensor, decode_body, encode, encode_body, tensor_in
from formats.record_lists import read_lists
from formats.recordio import encode_record

ints = st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(0, 300), max_size=90)


def pair(source: list[int], target: list[int], more: dict[str, Feature] | None = None) -> Record:
    sides = {"source": source, "target": target}
    return Record({**{name: Tensor(np.array(ids, np.int32)) for name, ids in sides.items()}, **(more or {})})


def joined(data: bytes) -> list[tuple[list[int], ...]]:
    found: list[tuple[list[int], ...]] = []
    for block in read_lists(io.BytesIO(data), "x.rec"):
        count = len(block[0].offsets) - 1
        assert all(len(lists.offsets) == count + 1 and lists.offsets[-1] == len(lists.values) for lists in block)
        found += [
            tuple(lists.values[lists.offsets[i] : lists.offsets[i + 1]].tolist() for lists in block)
            for i in range(count)
        ]
    return found


def one_by_one(data: bytes) -> list[tuple[list[int], ...]]:
    return [
        tuple(tensor_in(r.features, side).values.tolist() for side in ("source", "target")) for r in decode_body(data)
    ]


@settings(deadline=None, max_examples=80)
@given(st.lists(st.tuples(ints, ints), min_size=1, max_size=20))
def test_pairs_come_as_they_were_written(pairs: list[tuple[list[int], list[int]]]) -> None:
    assert joined(encode_body(pair(*sides) for sides in pairs)) == pairs


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["plain", "turned", "uid", "more", "shape"]), ints, ints), min_size=1, max_size=12
    )
)
def test_records_of_other_structure_give_the_same(rows: list[tuple[str, list[int], list[int]]]) -> None:
    payloads = []
    for kind, source, target in rows:
        made = pair(source, target)
        if kind == "turned":  # map entries come in any order
            sides = [encode(Record({name: feature})) for name, feature in made.features.items()]
            payloads.append(sides[1] + sides[0])
            continue
        if kind == "uid":
            made.uid = "x"
        if kind == "more":
            made = pair(source, target, {"other": BytesValue((b"y",))})
        if kind == "shape" and source:
            made = pair(source, target, {"source": Tensor(np.array(source, np.int32), None, (len(source),))})
        payloads.append(encode(made))
    data = b"".join(encode_record(payload, split=False) for payload in payloads)

    assert joined(data) == one_by_one(data)


def test_a_file_of_many_blocks_is_read_whole() -> None:
    rng = np.random.default_rng(2)
    pairs = [(rng.integers(0, 70_000, n % 50).tolist(), rng.integers(-3, 100, n % 37).tolist()) for n in range(20_000)]
    data = encode_body(pair(*sides) for sides in pairs)

    assert len(data) > 2 * 2**20
    assert joined(data) == pairs


@pytest.mark.parametrize(
    ("record", "text"),
    [
        (Record({"source": Tensor(np.ones(1, np.int32))}), "features lack 'target'; present: 'source'"),
        (
            pair([1], [2], {"target": Tensor(np.ones(1, np.float32))}),
            "feature 'target' is float32, expected a dense int32",
        ),
        (
            pair([1], [2], {"target": Tensor(np.ones(1, np.int32), np.zeros(1, np.uint64), (3,))}),
            "feature 'target' is sparse",
        ),
    ],
)
def test_a_record_that_is_no_pair_is_named(record: Record, text: str) -> None:
    good = encode_body([pair([1, 2], [3])] * 5)

    with pytest.raises(InvalidBody, match=f"x.rec: record 5 at byte {len(good)}: .*{text}"):
        joined(good + encode_body([record]))


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_a_changed_byte_gives_what_record_by_record_gives(draw: st.DataObject) -> None:
    data = bytearray(encode_body([pair([1, 300, -1], [5]), pair([], [7, 8]), pair([9], [])] * 2))
    for _ in range(draw.draw(st.integers(1, 2))):
        data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    try:
        found: list[tuple[list[int], ...]] | None = joined(bytes(data))
    except InvalidBody:
        found = None
    try:
        expected: list[tuple[list[int], ...]] | None = one_by_one(bytes(data))
        kinds = {
            tensor_in(r.features, s).values.dtype.kind for r in decode_body(bytes(data)) for s in ("source", "target")
        }
        expected = expected if kinds == {"i"} else None
    except InvalidBody:
        expected = None

    assert found == expected


def test_an_empty_file_has_no_records() -> None:
    with pytest.raises(InvalidBody, match="no records"):
        joined(b"")
