from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formats import jsonlines
from formats.errors import InvalidBody
from formats.recordio import decode_records, encode_record, read_records
from formats.source import (
    Shard,
    attribute_fetcher,
    epoch_pipe,
    feed_pipe,
    list_files,
    open_file,
    read_all,
    read_raw,
    shuffled,
    wrapped,
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ["b/2.rec", "a.rec", "b/.hidden", ".git/x.rec", "_SUCCESS", "c.JSON"]:
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "train"


@pytest.mark.parametrize("as_url", [False, True])
def test_a_tree_is_listed_sorted_without_hidden_names(tree: Path, as_url: bool) -> None:
    """DeepAR contract, section 2."""
    found = list_files(f"file://{tree}" if as_url else tree)

    assert [file.removeprefix("file://").removeprefix(f"{tree}/") for file in found] == ["a.rec", "b/2.rec", "c.JSON"]


def test_files_are_chosen_by_suffix_in_any_case(tree: Path) -> None:
    assert list_files(tree, suffixes=[".json"]) == [str(tree / "c.JSON")]
    with pytest.raises(InvalidBody, match=r"no file that ends in .lst or .idx is there"):
        list_files(tree, suffixes=[".lst", ".idx"])


def test_a_location_may_be_one_file(tree: Path) -> None:
    assert list_files(tree / "a.rec") == [str(tree / "a.rec")]
    assert list_files(f"file://{tree}/a.rec") == [f"file://{tree}/a.rec"]


@pytest.mark.parametrize("where", ["{}/absent", "file://{}/absent", "nosuchprotocol://{}"])
def test_an_absent_location_is_named(tmp_path: Path, where: str) -> None:
    with pytest.raises(InvalidBody, match=r"absent|nosuchprotocol"):
        list_files(where.format(tmp_path))
    with pytest.raises(InvalidBody, match=r"absent|nosuchprotocol"), open_file(where.format(tmp_path)):
        pass


def write_parts(directory: Path, parts: list[list[bytes]]) -> list[str]:
    directory.mkdir(exist_ok=True)
    for number, part in enumerate(parts):
        (directory / f"{number}.rec").write_bytes(b"".join(map(encode_record, part)))
    return [str(directory / f"{number}.rec") for number in range(len(parts))]


@given(
    st.lists(st.lists(st.binary(max_size=40), min_size=1, max_size=8), min_size=1, max_size=4),
    st.integers(1, 7),
    st.booleans(),
)
def test_byte_ranges_neither_drop_nor_repeat(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[bytes]], world_size: int, as_url: bool
) -> None:
    files = write_parts(tmp_path_factory.getbasetemp() / "ranges", parts)
    names = [f"file://{file}" for file in files] if as_url else files

    found = [raw.payload for rank in range(world_size) for raw in read_raw(names, shard=Shard(rank, world_size))]

    assert found == [payload for part in parts for payload in part]


def test_every_nth_item_neither_drops_nor_repeats(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.json").write_bytes(jsonlines.encode({"n": 5 * number + i} for i in range(5)))

    shards = [
        [row["n"] for _, row in read_all(list_files(tmp_path), jsonlines.read, shard=Shard(rank, 4))]
        for rank in range(4)
    ]

    assert shards[1] == [1, 5, 9, 13]
    assert sorted(n for shard in shards for n in shard) == list(range(15))


def test_damage_in_a_shard_names_its_file_and_byte(tmp_path: Path) -> None:
    files = write_parts(tmp_path / "x", [[b"a" * 100] * 10, [b"b" * 100] * 10])
    data = bytearray(Path(files[1]).read_bytes())
    data[108 * 9] ^= 1
    Path(files[1]).write_bytes(data)

    with pytest.raises(InvalidBody, match=r"1.rec: record \d at byte 972: not RecordIO"):
        list(read_raw(files, shard=Shard(1, 2)))


@given(st.integers(0, 60), st.integers(1, 70), st.integers(0, 3))
def test_a_shuffle_keeps_every_item(count: int, size: int, seed: int) -> None:
    once, again = list(shuffled(range(count), size, seed)), list(shuffled(range(count), size, seed))

    assert once == again
    assert sorted(once) == list(range(count))


def test_a_shuffle_changes_with_seed_and_epoch_and_not_at_all_with_a_buffer_of_one() -> None:
    orders = {tuple(shuffled(range(50), 20, seed, epoch)) for seed in range(3) for epoch in range(3)}

    assert len(orders) == 9
    assert list(shuffled(range(50), 1, 0)) == list(range(50))


def test_a_pipe_is_read_epoch_by_epoch(tmp_path: Path) -> None:
    """Record formats, section 5: the next pipe may come late."""
    files = write_parts(tmp_path / "data", [[b"a", b"bc"], [b"d"]])

    def feed() -> None:
        for epoch in range(2):
            feed_pipe(tmp_path / f"train_{epoch}", wrapped(files))

    feeder = threading.Thread(target=feed)
    feeder.start()
    epochs = []
    for epoch in range(2):
        pipe = epoch_pipe(tmp_path, "train", epoch)
        epochs.append([raw.payload for raw in read_raw([pipe], shard=Shard(1, 2) if epoch else Shard())])
    feeder.join(10)

    assert epochs == [[b"a", b"bc", b"d"], [b"bc"]]


def test_leaving_a_pipe_early_harms_nobody(tmp_path: Path) -> None:
    taken: list[bool] = []
    feeder = threading.Thread(
        target=lambda: taken.append(
            feed_pipe(tmp_path / "train_0", (encode_record(bytes(1000)) for _ in range(10_000)))
        )
    )
    feeder.start()
    with open_file(epoch_pipe(tmp_path, "train", 0)) as stream:
        first = next(read_records(stream))
    feeder.join(10)

    assert first.payload == bytes(1000)
    assert taken == [False]


def test_a_pipe_that_never_comes_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidBody, match="epoch 3, has not come in"):
        epoch_pipe(tmp_path, "train", 3, timeout_s=0.02)


def test_plain_objects_are_wrapped_as_one_record_each(tree: Path) -> None:
    stream = b"".join(wrapped(list_files(tree), record_io=True))

    assert decode_records(stream) == [b"a.rec", b"b/2.rec", b"c.JSON"]


def test_references_are_fetched_below_their_root_only(tree: Path) -> None:
    fetch = attribute_fetcher({"s3://bucket/data/": tree}, max_bytes=6)

    assert fetch("s3://bucket/data/a.rec") == b"a.rec"
    for uri, text in [
        ("s3://bucket/data/../x", "leaves its prefix"),
        ("/etc/passwd", "neither a URL nor under a known prefix"),
        ("file:///etc/passwd", "neither a URL nor under a known prefix"),
        ("s3://bucket/data/absent", "cannot be read"),
        ("s3://bucket/data/b/2.rec", "more than 6 bytes"),
    ]:
        with pytest.raises(InvalidBody, match=text):
            fetch(uri)


def test_gzip_behind_a_url_is_read_as_lines(tmp_path: Path) -> None:
    import gzip  # noqa: PLC0415

    (tmp_path / "x.json.gz").write_bytes(gzip.compress(b'{"a":1}\n'))

    assert list(read_all([f"file://{tmp_path}/x.json.gz"], jsonlines.read)) == [(1, {"a": 1})]


def test_an_empty_file_among_others_is_named(tmp_path: Path) -> None:
    files = write_parts(tmp_path / "x", [[b"a"], []])

    with pytest.raises(InvalidBody, match=r"1.rec: no records"):
        list(read_raw(files))
