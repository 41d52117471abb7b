"""The demonstration's data and setting: real handwritten digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.digits import CLASS_NAMES, write_digits
from formats.lst import read_lst
from trainers.run import train

SETTING = Path(__file__).parents[3] / "examples" / "digits.json"


def test_four_fifths_of_each_class_are_for_training(tmp_path: Path) -> None:
    counts = write_digits(tmp_path)
    for channel, count in counts.items():
        entries = list(read_lst(tmp_path / channel / f"{channel}.lst"))

        assert len(entries) == count
        assert {(int(e.labels[0]), e.path.partition("/")[0]) for e in entries} == set(enumerate(CLASS_NAMES))
    assert counts == {"train": 1442, "validation": 355}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_setting_reaches_97_percent(tmp_path: Path, seed: int) -> None:
    write_digits(tmp_path)
    channels = {name: tmp_path / name for name in ("train", "validation")}
    values = json.loads(SETTING.read_bytes()) | {"seed": seed}
    description = json.loads(
        (train("image_classification", channels, values, tmp_path / "o") / "model.json").read_bytes()
    )

    assert description["metrics"]["validation:accuracy"] >= 0.97
