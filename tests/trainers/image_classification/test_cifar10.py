"""The recipes of examples/cifar10.py: their data, and that they run and go on."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from examples.cifar10 import CLASS_NAMES, RECIPES, main, write_channels
from formats.image_record import read
from formats.images import encode_jpeg
from trainers.hyperparameter_schema import parse
from trainers.image_classification.hyperparameters import Hyperparameters

ARCHIVE = Path(os.environ.get("PENSTOCK_DATA", "/nowhere")) / "image_classification" / "cifar10" / "train.tar.gz"


def small_archive(file: Path) -> Path:
    """Two images of each class, one on each side of the split; a class is a brightness."""
    with tarfile.open(file, "w:gz") as tar:
        for number, name in enumerate(CLASS_NAMES):
            for at in (0, 4999):
                data = encode_jpeg(np.full((32, 32, 3), 25 * number, np.uint8))
                member = tarfile.TarInfo(f"train/{name}/{at:04d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file


def test_the_last_numbers_of_each_class_are_for_validation(tmp_path: Path) -> None:
    counts = write_channels(small_archive(tmp_path / "a.tar.gz"), tmp_path / "data")
    with (tmp_path / "data" / "validation" / "data.rec").open("rb") as stream:
        records = list(read(stream))

    assert counts == {"train": 10, "validation": 10}
    assert [(record.labels.tolist(), record.id % 10_000) for record in records] == [([k], 4999) for k in range(10)]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_made_of_known_hyperparameters(name: str) -> None:
    parse(Hyperparameters, {"num_classes": 10, "num_training_samples": 45_000} | RECIPES[name])


def test_a_run_leaves_a_line_of_results(tmp_path: Path) -> None:
    options = ["--set", "epochs=1", "--set", "mini_batch_size=5"]
    archive = str(small_archive(tmp_path / "a.tar.gz"))

    assert main([archive, str(tmp_path / "out"), *options]) == 0
    (line,) = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["epochs"] == 1


@pytest.mark.slow
@pytest.mark.skipif(not ARCHIVE.exists(), reason="PENSTOCK_DATA holds no CIFAR-10")
def test_the_real_archive_has_45000_and_5000_images(tmp_path: Path) -> None:
    assert write_channels(ARCHIVE, tmp_path) == {"train": 45_000, "validation": 5_000}
