"""The sets that Seq2seq's examples make or read."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from examples.cmudict import error_rates, read_words
from examples.dates import NUM_PAIRS, as_tokens, write_dates
from formats import record, vocabulary
from formats.record import tensor_in

DATA = Path(os.environ.get("PENSTOCK_DATA", "../shared/data")) / "seq2seq" / "cmudict-g2p"


def test_dates_are_pairs_of_signs(tmp_path: Path) -> None:
    assert write_dates(tmp_path) == NUM_PAIRS
    words = [
        vocabulary.tokens_of(vocabulary.read(tmp_path / "vocab" / f"vocab.{side}.json")) for side in ("src", "trg")
    ]
    with (tmp_path / "validation" / "val.rec").open("rb") as file:
        pairs = [
            ["".join(known[each] for each in tensor_in(found.features, side).values)
             for side, known in zip(("source", "target"), words, strict=True)]
            for found in record.read(file)
        ]  # fmt: skip

    assert len(pairs) == NUM_PAIRS["validation"]
    assert all(len(target) == 10 and target[4] == target[7] == "-" for _, target in pairs)
    assert all(target[2:4] in source and "<unk>" not in source for source, target in pairs)
    assert as_tokens("3 May 98") == "3 _ m a y _ 9 8"


def test_a_word_is_right_by_any_of_its_pronunciations(tmp_path: Path) -> None:
    lines = ["read R EH1 D", "read(2) R IY1 D # now", "cat K AE1 T", "# a comment of one sign", "cat(2) K AE2 T"]
    with gzip.open(tmp_path / "words.gz", "wt") as file:
        file.write("\n".join(lines) + "\n")
    words = {word: known for part in read_words(tmp_path / "words.gz").values() for word, known in part.items()}
    words.pop("#", None)

    assert words == {"read": ["R EH D", "R IY D"], "cat": ["K AE T"]}
    rates = error_rates({"read": "R IY D", "cat": "K T"}, words)
    assert rates == {"test_wer": 50.0, "test_per": 16.67, "num_words": 2}


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="PENSTOCK_DATA holds no seq2seq/cmudict-g2p")
def test_the_dictionary_is_divided_by_words() -> None:
    parts = read_words(DATA / "cmudict.dev.dict.gz")

    assert sum(map(len, parts.values())) == 119_732
    assert not set(parts["train"]) & (set(parts["validation"]) | set(parts["test"]))
    assert 0.04 < len(parts["test"]) / 119_732 < 0.06
