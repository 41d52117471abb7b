"""The examples on data in PASCAL VOC's form: their channels, and that they run and go on."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from examples import bccd, playing_cards
from formats.detection import decode_annotation
from formats.images import encode_jpeg

DATA = Path(os.environ.get("PENSTOCK_DATA", "../shared/data")) / "object_detection"

BOX = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def xml(*objects: tuple[str, int, int, int, int]) -> str:
    boxes = "".join(BOX.format(*each) for each in objects)
    return f"<annotation><size><width>64</width><height>48</height><depth>3</depth></size>{boxes}</annotation>"


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    folder = tmp_path / "cells"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    random = np.random.default_rng(0)
    for stem in ("a", "b", "c"):
        pixels = random.integers(0, 256, (48, 64, 3), np.uint8)
        (folder / "JPEGImages" / f"{stem}.jpg").write_bytes(encode_jpeg(pixels))
        (folder / "Annotations" / f"{stem}.xml").write_text(xml(("RBC", 10, 5, 30, 25), ("Platelets", 7, 7, 7, 9)))
    (folder / "ImageSets/Main/train.txt").write_text("a\nb\n")
    (folder / "ImageSets/Main/val.txt").write_text("c\n")
    return folder


def test_boxes_become_annotations_and_one_without_area_is_dropped(cells: Path, tmp_path: Path) -> None:
    assert bccd.write_channels(cells, tmp_path / "data") == {"train": 2, "validation": 1}

    found = decode_annotation((tmp_path / "data/validation_annotation/c.json").read_bytes())
    assert (found.height, found.width, found.file) == (48, 64, "c.jpg")
    assert found.boxes.tolist() == [[0, 10, 5, 20, 20]]
    assert (tmp_path / "data/train/a.jpg").read_bytes() == (cells / "JPEGImages/a.jpg").read_bytes()


def test_a_class_that_is_none_is_an_error(cells: Path, tmp_path: Path) -> None:
    (cells / "Annotations/a.xml").write_text(xml(("Bacterium", 1, 1, 9, 9)))

    with pytest.raises(ValueError, match=r"a\.xml: object of class 'Bacterium'; expected one of RBC"):
        bccd.write_channels(cells, tmp_path / "data")


def test_a_recipe_runs_and_says_what_came_out(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    told = ["num_training_samples=2", "mini_batch_size=2", "epochs=1"]
    arguments = [str(cells), str(output), *(part for each in told for part in ("--set", each))]
    assert bccd.main(arguments) == 0

    (line,) = (output / "results.jsonl").read_text().splitlines()
    result = json.loads(line)
    assert result["run"] == f"cpu-0-{'-'.join(told)}"
    assert list(result["AP"]) == ["RBC", "WBC", "Platelets"]
    assert result["AP"]["WBC"] is None
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="PENSTOCK_DATA names no directory with object_detection")
def test_the_real_sets_have_the_objects_that_their_authors_count(tmp_path: Path) -> None:
    assert bccd.write_channels(DATA / "bccd", tmp_path / "bccd") == {
        "train": 2382 + 214 + 209 - 1,  # one box has no area
        "validation": 968 + 87 + 83 - 1,
    }
    assert playing_cards.write_channels(DATA / "playing-cards-subset", tmp_path / "cards") == {
        "train": 47 + 41 + 45 + 38 + 50 + 41,
        "validation": 15 + 9 + 12 + 11 + 15 + 13,
    }
