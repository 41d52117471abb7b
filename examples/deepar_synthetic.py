"""DeepAR on 200 noisy sines, data for which the original container's scores are public (DeepAR contract, section 8.1).

    python -m examples.deepar_synthetic OUTPUT [--seed N] [--set NAME=VALUE ...]

The original: test RMSE 0.3284, mean weighted quantile loss 0.03413. The signal itself with its noise: 0.2861, 0.03077.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from trainers.run import train

__all__ = ["HYPERPARAMETERS", "main", "write_series"]

HYPERPARAMETERS: dict[str, object] = {
    "time_freq": "H",
    "context_length": 72,
    "prediction_length": 48,
    "num_cells": 40,
    "num_layers": 3,
    "likelihood": "gaussian",
    "epochs": 20,
    "mini_batch_size": 32,
    "learning_rate": 0.001,
    "dropout_rate": 0.05,
    "early_stopping_patience": 10,
}
_START = "2016-01-01 00:00:00"
_LENGTH, _WITHHELD = 400, 48


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="values")
    asked = parser.parse_args(arguments)
    write_series(asked.output / "data")
    values = HYPERPARAMETERS | {"seed": asked.seed} | dict(each.split("=", 1) for each in asked.values)
    run = asked.output / "-".join([str(asked.seed), *asked.values])
    began = time.perf_counter()
    train("deepar", {name: asked.output / "data" / name for name in ("train", "test")}, values, run)
    result = {"run": run.name, "seconds": round(time.perf_counter() - began, 1)}
    print(json.dumps(result | json.loads((run / "evaluation.json").read_bytes())))
    return 0


def write_series(directory: Path) -> None:
    """`train/train.json` without the last 48 hours of each series, and `test/test.json`."""
    random = np.random.RandomState(1)  # the published data are made by it
    hours = np.arange(_LENGTH)
    lines = []
    for _ in range(200):
        level = 10 * random.rand()
        amplitude = (0.1 + 0.3 * random.rand()) * level
        lines.append(level + amplitude * np.sin(2 * np.pi * hours / 24) + 0.05 * level * random.randn(_LENGTH))
    for part, length in (("train", _LENGTH - _WITHHELD), ("test", _LENGTH)):
        (directory / part).mkdir(parents=True, exist_ok=True)
        rows = (json.dumps({"start": _START, "target": line[:length].tolist()}) + "\n" for line in lines)
        (directory / part / f"{part}.json").write_text("".join(rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
