"""`penstock data`: files that users make and look into from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from formats.images import encode_png
from formats.lst import ListEntry, write_lst
from penstock import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["data", *(str(argument) for argument in arguments)], env={"COLUMNS": "200"})


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Three small pictures of two classes, packed with their list."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        (images / f"{number}.png").write_bytes(encode_png(np.full((4, 5, 3), number, np.uint8)))
    entries = [ListEntry(number, (float(number % 2),), f"{number}.png") for number in range(3)]
    write_lst(tmp_path / "train.lst", entries)
    output = tmp_path / "train.rec"

    result = run("pack", images, "--lst", tmp_path / "train.lst", "--output", output)

    assert result.exit_code == 0, result.output
    return output


def test_packed_images_are_found_again_by_inspect(packed: Path) -> None:
    result = run("inspect", packed, "--first", 1)

    assert result.exit_code == 0
    assert "RecordIO of image records" in result.stdout
    assert "record 0 at byte 0: id 0, labels [0], image 4 x 5" in result.stdout
    assert "3 good, 0 malformed" in result.stdout


def test_inspect_ends_with_status_1_when_a_record_is_malformed(packed: Path) -> None:
    data = packed.read_bytes()
    packed.write_bytes(data[:-8])

    result = run("inspect", packed)

    assert result.exit_code == 1
    assert "2 good, 1 malformed" in result.stdout


def test_tokenize_writes_vocabularies_and_records(tmp_path: Path) -> None:
    (tmp_path / "en").write_text("a b\nb c\n")
    (tmp_path / "de").write_text("x\ny z\n")

    result = run(
        *("tokenize", "--train-source", tmp_path / "en", "--train-target", tmp_path / "de"),
        *("--output", tmp_path / "out"),
    )

    assert result.exit_code == 0, result.output
    words = json.loads((tmp_path / "out" / "vocab.src.json").read_text())
    assert set(words) == {"<pad>", "<unk>", "<s>", "</s>", "a", "b", "c"}
    assert run("inspect", tmp_path / "out" / "train.rec").stdout.rstrip().endswith("2 good, 0 malformed")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["inspect", "none.rec"], "none.rec: No such file or directory"),
        (["pack", "none", "--output", "x.rec"], "none"),
        (["tokenize", "--train-source", "none", "--train-target", "none", "--output", "out"], "none"),
    ],
)
def test_what_is_not_there_is_named_in_one_line(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    result = run(*arguments)

    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert text in result.stderr
