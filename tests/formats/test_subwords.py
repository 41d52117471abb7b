"""Plain text to parts of words and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from formats import record, vocabulary
from formats.errors import InvalidBody
from formats.record import tensor_in
from formats.subwords import Subwords, learn, merge
from formats.tokenize import tokenize
from penstock import app

pytest.importorskip("sentencepiece", reason="the extra 'subwords' is not installed")
TEXT = ["Ein Mann läuft über die Straße.", "Eine Frau läuft schnell.", "Zwei Männer, eine Straße: schneller!"] * 5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("subwords") / "subwords.model"
    learn(TEXT, file, 60)
    return file


def test_text_comes_back_as_it_was(model: Path) -> None:
    split = Subwords(model).split

    for text in [*TEXT, "Männerstraße", ""]:
        assert merge(split(text)) == text
    assert len(split("läuft")) < len("läuft")
    assert split("Mann")[0].startswith("\u2581")


def test_parts_of_subword_nmt_are_merged_too() -> None:
    assert merge(["a", "sm@@", "all", "do@@", "g", "."]) == "a small dog ."
    assert merge(["do@@"]) == "do"
    assert merge([]) == ""


def test_too_little_text_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidBody, match="no 5000 parts of words can be learned"):
        learn(TEXT, tmp_path / "subwords.model", 5000)
    (tmp_path / "other.model").write_bytes(b"no model")
    with pytest.raises(InvalidBody, match=r"other\.model is not a SentencePiece model"):
        Subwords(tmp_path / "other.model")


def test_tokenize_learns_from_both_sides_and_writes_what_it_learned(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("\n".join(TEXT))
    (tmp_path / "target").write_text("\n".join(text.upper() for text in TEXT))
    given: dict[str, Any] = {"train_source": tmp_path / "source", "train_target": tmp_path / "target"}
    report = tokenize(**given, output_dir=tmp_path / "out", num_subwords=90)
    again = tokenize(**given, output_dir=tmp_path / "again", subwords_model=tmp_path / "out" / "subwords.model")

    assert report == again
    assert report.train_pairs == len(TEXT)
    words = vocabulary.tokens_of(vocabulary.read(tmp_path / "out" / "vocab.trg.json"))
    with (tmp_path / "out" / "train.rec").open("rb") as file:
        first = next(iter(record.read(file)))
    ids = tensor_in(first.features, "target").values
    assert merge([words[each] for each in ids]) == TEXT[0].upper()
    assert (tmp_path / "again" / "train.rec").read_bytes() == (tmp_path / "out" / "train.rec").read_bytes()
    with pytest.raises(ValueError, match="either learned or given"):
        tokenize(**given, output_dir=tmp_path / "x", num_subwords=9, subwords_model=tmp_path / "out" / "subwords.model")


def test_the_command_splits_and_merges_lines(model: Path) -> None:
    told = CliRunner().invoke(app, ["data", "subwords", str(model)], input="Eine Frau läuft.\nMänner\n")
    back = CliRunner().invoke(app, ["data", "subwords", str(model), "--merge"], input=told.stdout)
    nowhere = CliRunner().invoke(app, ["data", "subwords", "none.model"])

    assert told.exit_code == 0, told.output
    assert back.stdout == "Eine Frau läuft.\nMänner\n"
    assert nowhere.exit_code == 1
    assert "none.model" in nowhere.stderr
