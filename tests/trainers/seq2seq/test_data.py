"""Channels of sentence pairs: what is read, what is cut, what is refused, and how batches are made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from formats import record, vocabulary
from formats.record import Record, Tensor
from tests.translators import WORDS, vocabulary_of
from trainers.hyperparameter_schema import parse
from trainers.job import ClientError, Job
from trainers.seq2seq.data import Pairs, Side, batches, buckets, read_channel, read_vocabularies
from trainers.seq2seq.hyperparameters import Hyperparameters


def ints(*values: int) -> Tensor:
    return Tensor(np.array(values, np.int32))


def write(directory: Path, *pairs: tuple[Sequence[int], Sequence[int]], name: str = "a.rec") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / name).open("wb") as file:
        record.write(file, (Record({"source": ints(*source), "target": ints(*target)}) for source, target in pairs))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "vocab").mkdir()
    for name in ("vocab.src.json", "vocab.trg.json"):
        vocabulary.write(tmp_path / "vocab" / name, vocabulary_of(WORDS))
    channels = {name: tmp_path / name for name in ("train", "validation", "vocab")}
    return Job(algorithm="seq2seq", channels=channels, hyperparameters={}, output=tmp_path, checkpoints=tmp_path / "c")


def read(job: Job, **given: Any) -> Pairs:
    return read_channel(job, "train", parse(Hyperparameters, given), read_vocabularies(job))


def lists(side: Side) -> list[list[int]]:
    return [side.ids[at : at + size].tolist() for at, size in zip(side.begins, side.lengths, strict=True)]


def test_pairs_of_all_files_are_read_in_order(job: Job) -> None:
    write(job.channels["train"], ([4, 5], [6]), name="a.rec")
    write(job.channels["train"] / "more", ([7], [8, 9, 10]), name="b.rec")
    pairs = read(job)

    assert lists(pairs.source) == [[4, 5], [7]]
    assert lists(pairs.target) == [[6], [8, 9, 10]]
    assert pairs.length_ratios.tolist() == [0.5, 3.0]


def test_specials_that_clients_sent_are_taken_off_and_added_once(job: Job) -> None:
    write(job.channels["train"], ([2, 4, 5, 3], [2, 6, 3]), ([4], [6, 7]))
    pairs = read(job)

    assert lists(pairs.source) == [[4, 5], [4]]
    assert pairs.target.padded(np.array([0, 1]), 0, end=True).tolist() == [[6, 3, 0], [6, 7, 3]]
    assert pairs.source.padded(np.array([1, 0]), 4).tolist() == [[4, 0, 0, 0], [4, 5, 0, 0]]


def test_long_sequences_are_cut_and_counted(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    write(job.channels["train"], ([4, 5, 6, 7, 3], [4]), ([4], [5, 6, 7]))
    pairs = read(job, max_seq_len_source=3, max_seq_len_target=2)

    assert lists(pairs.source) == [[4, 5, 6], [4]]
    assert lists(pairs.target) == [[4], [5, 6]]
    assert "1 of 2 source sequences are longer than max_seq_len_source=3 and were cut" in caplog.text


def test_pairs_with_an_empty_side_are_left_out(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    write(job.channels["train"], ([], [4]), ([5], [6]), ([7], [3]))

    assert lists(read(job).source) == [[5]]
    assert "left out 2 pairs with an empty side" in caplog.text


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ([([4], [5]), ([14], [5])], "a.rec, record 1: a source token is 14, expected an id from 1 to 13"),
        ([([4], [5, -1])], "a.rec, record 0: a target token is -1"),
        ([([4, 0], [5])], "a source token is 0, .*padding is added in training"),
        ([([], [])], "Channel 'train' holds no sentence pairs"),
    ],
)
def test_tokens_that_are_no_words_are_named(job: Job, pairs: list[Any], text: str) -> None:
    write(job.channels["train"], *pairs)
    with pytest.raises(ClientError, match=text):
        read(job)


def test_records_without_pairs_and_damaged_files_are_named(job: Job) -> None:
    directory = job.channels["train"]
    directory.mkdir()
    bad = {
        "features lack 'target'": record.encode_body([Record({"source": ints(4)})]),
        "float32": record.encode_body([Record({"source": Tensor(np.ones(1, np.float32)), "target": ints(4)})]),
        "not RecordIO": b"\0" * 32,
        "no records": b"",
    }
    for text, content in bad.items():
        (directory / "bad.rec").write_bytes(content)
        with pytest.raises(ClientError, match=f"bad.rec.*{text}"):
            read(job)


def test_vocabularies_are_needed_with_their_specials(job: Job) -> None:
    file = job.channels["vocab"] / "vocab.trg.json"
    file.write_text('{"<pad>": 1, "<unk>": 0, "<s>": 2, "</s>": 3}')
    with pytest.raises(ClientError, match=r"vocab.trg.json: token '<pad>' has id 1, expected 0"):
        read_vocabularies(job)
    file.unlink()
    with pytest.raises(ClientError, match=r"vocab.trg.json is missing; expected vocab.src.json and vocab.trg.json"):
        read_vocabularies(job)


def test_buckets_step_by_the_longer_side() -> None:
    def of(ratio: float, **given: int) -> list[tuple[int, int]]:
        return buckets(parse(Hyperparameters, {"max_seq_len_source": 30, "max_seq_len_target": 30} | given), ratio)

    assert of(1.0) == [(10, 10), (20, 20), (30, 30)]
    assert of(2.0) == [(5, 10), (10, 20), (15, 30), (20, 30), (25, 30), (30, 30)]
    assert of(0.5, max_seq_len_target=12) == [(10, 5), (20, 10), (30, 12)]
    assert of(1.0, bucket_width=1, max_seq_len_source=3, max_seq_len_target=3) == [(2, 2), (3, 3)]
    assert of(1.0, bucketing_enabled=False) == [(30, 30)]


def test_every_pair_is_in_one_batch_of_its_own_bucket() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 31, (2, 500))
    sides = [Side(np.zeros(0, np.int32), np.zeros(500, np.int64), each) for each in lengths]
    pairs, bounds = Pairs(*sides), [(10, 10), (20, 20), (30, 30)]
    found = list(batches(pairs, bounds, 16, random))

    assert sorted(np.concatenate([each for _, each in found])) == list(range(500))
    for bucket, members in found:
        longest = int(lengths[:, members].max())
        shortest_that_fits = [bound[0] for bound in bounds]
        assert len(members) <= 16
        assert longest <= bounds[bucket][0]
        assert all(lengths[:, each].max() > ([0, *shortest_that_fits])[bucket] for each in members)
    assert [bucket for bucket, _ in found] != sorted(bucket for bucket, _ in found)
