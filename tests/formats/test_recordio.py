from __future__ import annotations

import io
import logging
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import InvalidBody
from formats.recordio import (
    MAGIC,
    RawRecord,
    RecordWriter,
    build_index,
    decode_records,
    encode_record,
    read_at,
    read_index,
    read_records,
    shard_bounds,
    write_index,
)

# payloads in which the magic is likely, aligned and not
payloads = st.lists(st.one_of(st.binary(max_size=9), st.just(MAGIC)), max_size=6).map(b"".join)
VECTORS = [
    (b"hello", "0a23d7ce 05000000 68656c6c 6f000000"),
    (b"ABCD" + MAGIC + b"xyz", "0a23d7ce 04000020 41424344 0a23d7ce 03000060 78797a00"),
    (MAGIC + b"xyz", "0a23d7ce 00000020 0a23d7ce 03000060 78797a00"),
    (b"A" + MAGIC + b"BCD", "0a23d7ce 08000000 410a23d7 ce424344"),
]


def framed(records: list[bytes], *, split: bool = True) -> bytes:
    return b"".join(encode_record(record, split=split) for record in records)


def read_all(data: bytes) -> list[RawRecord]:
    return list(read_records(io.BytesIO(data), "file.rec"))


@pytest.mark.parametrize(("payload", "on_disk"), VECTORS)
def test_the_byte_strings_of_the_contract(payload: bytes, on_disk: str) -> None:
    """Record formats, table of section 1.1, both directions."""
    assert encode_record(payload) == bytes.fromhex(on_disk)
    assert decode_records(bytes.fromhex(on_disk)) == [payload]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_payload_of_magics_alone_is_cut_into_empty_parts(count: int) -> None:
    parts = [(1, 0), *[(2, 0)] * (count - 1), (3, 0)]

    assert encode_record(MAGIC * count) == b"".join(MAGIC + struct.pack("<I", f << 29 | n) for f, n in parts)
    assert decode_records(encode_record(MAGIC * count)) == [MAGIC * count]


@pytest.mark.parametrize("length", range(6))
def test_padding_reaches_the_next_multiple_of_four(length: int) -> None:
    assert len(encode_record(bytes(length))) == 8 + [0, 4, 4, 4, 4, 8][length]


def test_a_whole_record_with_an_aligned_magic_is_readable() -> None:
    """The SageMaker SDK writes such records."""
    payload = b"ABCD" + MAGIC + b"xyz"

    assert encode_record(payload, split=False)[4:8] == b"\x0b\0\0\0"
    assert decode_records(encode_record(payload, split=False)) == [payload]


@given(st.lists(payloads, min_size=1, max_size=8), st.booleans())
def test_what_is_written_is_read_back(records: list[bytes], split: bool) -> None:
    assert [record.payload for record in read_all(framed(records, split=split))] == records


def test_records_come_with_their_number_and_offset() -> None:
    assert read_all(framed([b"a", b"", b"bcd"])) == [(0, 0, b"a"), (1, 12, b""), (2, 20, b"bcd")]


def test_a_record_longer_than_a_block_is_read_whole() -> None:
    records = [b"x" * 3_000_001, b"y", MAGIC * 300_000]

    assert decode_records(framed(records)) == records


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", r"file.rec: no records \(0 bytes\)"),
        (b"\x0a\x23\xd7", "record 0 at byte 0: truncated header: 3 bytes left"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "record 0 at byte 0: not RecordIO.*gzip"),
        (b"\xff\xd8\xff\xe0\0\0\0\0", "a JPEG image"),
        (b"version https://git-lfs.github.com", "git-LFS pointer"),
        (b'{"a": [1, 2, 3]}', "JSON text"),
        (b"1.0,2.0,3.0\n", "text: '1.0,2.0,3.0"),
        (encode_record(b"a") + b"lost" * 3, "record 1 at byte 12: .*lost alignment: found 6c 6f 73 74"),
        (MAGIC + struct.pack("<I", 4 << 29), "record 0 at byte 0: corrupt: flag 4"),
        (MAGIC + struct.pack("<I", 2 << 29), "corrupt sequence: flag 2 outside"),
        (MAGIC + struct.pack("<I", 3 << 29), "corrupt sequence: flag 3 outside"),
        (MAGIC + struct.pack("<I", 1 << 29), "ends inside a record of several parts, begun at byte 0"),
        (MAGIC + struct.pack("<I", 1 << 29) + encode_record(b""), "byte 8: corrupt sequence: flag 0 inside"),
        (MAGIC + struct.pack("<I", 2**29 - 1) + bytes(92), "truncated: 536870911 bytes of payload"),
        (encode_record(b"hello")[:-3], "truncated: 5 bytes of payload with padding to 8, 5 are there"),
    ],
)
def test_damage_is_named_with_record_and_offset(data: bytes, text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        read_all(data)


def test_a_truncation_at_any_byte_names_an_offset() -> None:
    data = framed([b"ABCD" + MAGIC + b"xyz", b"hello"])
    boundaries = {24}  # a cut between two records leaves a good file

    for length in range(1, len(data)):
        if length not in boundaries:
            with pytest.raises(InvalidBody, match=r"record [01] at byte \d+"):
                read_all(data[:length])


@settings(max_examples=300)
@given(st.binary(min_size=1, max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    if not data.startswith(MAGIC):
        with pytest.raises(InvalidBody, match="record 0 at byte 0"):
            read_all(data)


@given(st.lists(payloads, min_size=1, max_size=5), st.data())
def test_a_flipped_byte_gives_a_clean_error_or_other_payloads(records: list[bytes], draw: st.DataObject) -> None:
    data = bytearray(framed(records))
    at = draw.draw(st.integers(0, len(data) - 1))
    data[at] ^= draw.draw(st.integers(1, 255))

    try:
        found = read_all(bytes(data))
    except InvalidBody:
        return
    assert sum(len(record.payload) for record in found) <= len(data)


@given(payloads, payloads, st.binary(min_size=1, max_size=40))
def test_skip_bad_finds_the_next_record_after_damage(first: bytes, last: bytes, junk: bytes) -> None:
    junk = (junk + bytes(-len(junk) % 4)).replace(MAGIC, b"junk")
    if MAGIC in junk:
        return
    faults: list[tuple[int, int]] = []
    head = encode_record(first)

    found = read_records(
        io.BytesIO(head + junk + encode_record(last)), skip_bad=True, on_bad=lambda n, at, _: faults.append((n, at))
    )

    assert [record.payload for record in found] == [first, last]
    assert faults == [(1, len(head))]


def test_skip_bad_survives_damage_across_a_block_border() -> None:
    records = [bytes([i]) * 200_000 for i in range(12)]
    data = bytearray(framed(records))
    data[5 * 200_008] ^= 1

    found = [record.payload[0] for record in read_records(io.BytesIO(data), skip_bad=True)]

    assert found == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


def test_a_record_beyond_the_callers_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(InvalidBody, match="record of 1000 bytes or more; at most 999"):
        list(read_records(io.BytesIO(encode_record(bytes(1000))), max_record=999))


def test_padding_that_is_not_zero_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    data = (MAGIC + struct.pack("<I", 1) + b"a???") * 3

    with caplog.at_level(logging.WARNING):
        assert decode_records(data) == [b"a"] * 3

    assert len(caplog.records) == 1


@given(st.lists(payloads, min_size=1, max_size=30), st.integers(1, 9))
def test_shards_neither_drop_nor_repeat(records: list[bytes], world_size: int) -> None:
    data = framed(records)
    found = []
    for rank in range(world_size):
        stream = io.BytesIO(data)
        start, stop = shard_bounds(stream, len(data), rank, world_size)
        stream.seek(start)
        found += [record.payload for record in read_records(stream, start=start, stop=stop)]

    assert found == records


def test_an_index_finds_its_records(tmp_path: Path) -> None:
    stream = io.BytesIO()
    writer = RecordWriter(stream)
    write_index(tmp_path / "x.idx", [(key, writer.write(payload)) for key, payload in [(7, b"a"), (3, b"bcdef")]])

    index = read_index(tmp_path / "x.idx")

    assert index == {7: 0, 3: 12}
    assert read_at(stream, index[3]) == b"bcdef"
    assert [offset for _, offset in build_index(io.BytesIO(stream.getvalue()))] == [0, 12]


@pytest.mark.parametrize("text", ["1 2", "1\tx", "\t4", "1\t6"])
def test_a_bad_index_names_its_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.idx").write_text("0\t0\n" + text)

    with pytest.raises(InvalidBody, match="line 2"):
        read_index(tmp_path / "x.idx")


def test_an_offset_past_the_end_is_an_error() -> None:
    with pytest.raises(InvalidBody, match="byte 100"):
        read_at(io.BytesIO(encode_record(b"a")), 100)
