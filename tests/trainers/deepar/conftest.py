"""Small made channels: daily waves of several levels."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from formats.timeseries import Series, write, write_parquet

START = datetime(2024, 3, 1)
VALUES: dict[str, Any] = {
    "time_freq": "H", "context_length": 12, "prediction_length": 6, "epochs": 2, "num_cells": 8, "num_layers": 1,
    "mini_batch_size": 8, "likelihood": "gaussian", "num_eval_samples": 20,
}  # fmt: skip
Edit = Callable[[int, Series], Series]


def same(_number: int, series: Series) -> Series:
    return series


def waves(count: int = 12, length: int = 80, edit: Edit = same) -> list[Series]:
    random = np.random.default_rng(0)
    hours = np.arange(length)
    made = []
    for number in range(count):
        level = 1 + 9 * random.random()
        values = level * (1 + 0.3 * np.sin(2 * np.pi * hours / 24) + 0.02 * random.normal(size=length))
        made.append(edit(number, Series(START, values)))
    return made


def channel(directory: Path, series: list[Series], name: str = "a.json") -> Path:
    directory.mkdir(parents=True)
    with (directory / name).open("wb") as file:
        (write_parquet if name.endswith("parquet") else write)(file, series)
    return directory


def channels(directory: Path, edit: Edit = same) -> dict[str, Path]:
    return {
        "train": channel(directory / "train", waves(edit=edit)),
        "test": channel(directory / "test", waves(length=86, edit=edit)),
    }
