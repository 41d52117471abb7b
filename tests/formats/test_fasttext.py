"""fastText's files and hashing, against models and answers that fastText 0.9.3 made (fixtures/fasttext)."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from formats import fasttext_model
from formats.errors import InvalidBody
from formats.fasttext_units import Units, hash_of, subwords_of

FIXTURES = Path(__file__).parent / "fixtures" / "fasttext"
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text())


def units_of(model: fasttext_model.Model) -> Units:
    arguments = model.arguments
    keys = np.arange(arguments.bucket) if model.pruned is None else np.sort(model.pruned[:, 0]).astype(np.int64)
    absent = -1 if model.pruned is not None else len(model.input)
    return Units(
        model.words, bucket=arguments.bucket, keys=keys, absent=absent, word_ngrams=arguments.word_ngrams,
        minn=arguments.minn, maxn=arguments.maxn,
    )  # fmt: skip


@pytest.mark.parametrize(("word", "expected"), [(b"", 2166136261), (b"a", 0xE40C292C), (b"foobar", 0xBF9CF968)])
def test_plain_words_hash_as_fnv_1a(word: bytes, expected: int) -> None:
    """Test vectors of the Fowler-Noll-Vo hash, 32 bits."""
    assert hash_of(word) == expected


def test_bytes_beyond_ascii_are_extended_with_their_sign() -> None:
    assert hash_of(b"\xe9") == ((2166136261 ^ 0xFFFFFFE9) * 16777619) % (1 << 32)


def test_character_ngrams_keep_characters_whole_and_leave_out_lone_brackets() -> None:
    assert subwords_of("né".encode(), 1, 2) == [b"<n", b"n", "né".encode(), "é".encode(), "é>".encode()]


@pytest.mark.parametrize("name", [n for n in EXPECTED["models"] if n != "quantised.ftz"])
def test_vectors_of_words_are_those_of_fasttext(name: str) -> None:
    model = fasttext_model.read(FIXTURES / name)
    units = units_of(model)

    for word, expected in EXPECTED["models"][name]["vectors"].items():
        rows = units.of_word(word)
        vector = model.input[rows].mean(axis=0) if len(rows) else np.zeros(model.arguments.dim)
        assert np.abs(vector - np.array(expected)).max() < 1e-6, word


@pytest.mark.parametrize("name", ["softmax.bin", "vectors.bin", "tree.bin"])
def test_a_model_is_written_as_it_was_read(name: str, tmp_path: Path) -> None:
    with (tmp_path / "copy.bin").open("wb") as file:
        fasttext_model.write(file, fasttext_model.read(FIXTURES / name))

    assert (tmp_path / "copy.bin").read_bytes() == (FIXTURES / name).read_bytes()


def test_buckets_that_are_not_kept_are_rows_of_zeros(tmp_path: Path) -> None:
    counts = np.array([1], np.int64)
    model = fasttext_model.Model(
        arguments=fasttext_model.Arguments(dim=2, bucket=5, word_ngrams=2), words=[b"a"], word_counts=counts,
        labels=[b"__label__x"], label_counts=counts, num_tokens=2, input=np.ones((3, 2), np.float32),
        output=np.ones((1, 2), np.float32), kept_buckets=np.array([1, 4]),
    )  # fmt: skip
    with (tmp_path / "model.bin").open("wb") as file:
        fasttext_model.write(file, model)

    assert fasttext_model.read(tmp_path / "model.bin").input[:, 0].tolist() == [1, 0, 1, 0, 0, 1]


@pytest.mark.parametrize("name", sorted(EXPECTED["models"]))
def test_a_file_cut_anywhere_is_refused(name: str, tmp_path: Path) -> None:
    data = (FIXTURES / name).read_bytes()
    cut = tmp_path / "cut.bin"
    for size in range(0, len(data), 97):
        cut.write_bytes(data[:size])
        with pytest.raises(InvalidBody, match=r"cut\.bin"):
            fasttext_model.read(cut)


def test_no_changed_byte_of_the_head_does_worse_than_an_error(tmp_path: Path) -> None:
    """Sizes are believed only as far as the file is long: no allocation of what a header claims."""
    changed = tmp_path / "changed.bin"
    for name in ("softmax.bin", "quantised.ftz"):
        data = (FIXTURES / name).read_bytes()
        for at in range(120):
            for value in (0x00, 0x7F, 0xFF):
                changed.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
                try:
                    fasttext_model.read(changed)
                except InvalidBody as error:
                    assert "changed.bin" in str(error)  # noqa: PT017  either answer is right


def test_words_with_nul_bytes_are_not_written() -> None:
    model = fasttext_model.read(FIXTURES / "one_vs_all.bin")
    model.words[0] = b"a\0b"

    with pytest.raises(ValueError, match="NUL"):
        fasttext_model.write(io.BytesIO(), model)


def test_a_line_ends_at_its_end_mark_and_labels_are_no_words() -> None:
    units = Units([b"</s>", b"a"], bucket=0, keys=np.empty(0, np.int64), absent=2, word_ngrams=1, minn=0, maxn=0)

    assert units.of_line("__label__b a\0a\x0b</s> a").tolist() == [1, 1, 0]


def test_sparse_and_dense_buckets_are_written_alike(tmp_path: Path) -> None:
    counts = np.array([1], np.int64)
    for kept in (np.arange(0, 40_000, 3), np.array([5, 6, 39_999])):
        rows = np.random.default_rng(0).normal(size=(1 + len(kept), 2)).astype(np.float32)
        model = fasttext_model.Model(
            arguments=fasttext_model.Arguments(dim=2, bucket=40_000, word_ngrams=2), words=[b"a"], word_counts=counts,
            labels=[b"__label__x"], label_counts=counts, num_tokens=2, input=rows, output=np.ones((1, 2), np.float32),
            kept_buckets=kept,
        )  # fmt: skip
        with (tmp_path / "model.bin").open("wb") as file:
            fasttext_model.write(file, model)
        read = fasttext_model.read(tmp_path / "model.bin").input

        assert (read[1 + kept] == rows[1:]).all()
        assert np.count_nonzero(read.any(axis=1)) == len(rows)
