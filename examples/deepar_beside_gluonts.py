"""DeepAR beside GluonTS's PyTorch DeepAREstimator: same series, sizes and number of training windows, in turns.

    python -m examples.deepar_beside_gluonts --work WORK --peers PEERS/bin/python [--data DATA] [--pieces N]
                                             [--windows N] [--seeds N]
    python -m examples.deepar_beside_gluonts --work WORK --table

PEERS is an environment with `gluonts[torch]`; DATA holds `m4-hourly`, `exchange-rate` and `etth1`, by default
PENSTOCK_DATA's `deepar`. Each piece is one training by one system with one seed and one number of windows; its result
is a line of WORK/results.jsonl, and pieces that have one are left out; what the systems say is in WORK/log.txt. Both
systems' paths are scored by the same code.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Task", "main", "read_task"]

DATA_SETS = ("m4-hourly", "exchange-rate", "etth1")
SYSTEMS = ("penstock", "gluonts")
QUANTILES = tuple(n / 10 for n in range(1, 10))
NUM_SAMPLES = 100
BATCH = 32
SIZES = {"num_layers": 2, "num_cells": 40, "embedding_dimension": 10}
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Task:
    frequency: str
    start: str
    prediction_length: int
    train: list[Values]
    test: list[tuple[int, Values]]
    """The series' number, and it up to the end of a window to forecast."""


def read_task(name: str, root: Path) -> Task:
    """The protocol of each data set's README."""
    if name == "m4-hourly":
        train = [row[~np.isnan(row)] for row in _rows(root / name / "Hourly-train.csv.gz")]
        later = _rows(root / name / "Hourly-test.csv.gz")
        test = [(i, np.concatenate([row, more])) for i, (row, more) in enumerate(zip(train, later, strict=True))]
        return Task("H", "1750-01-01 00:00:00", 48, train, test)
    if name == "exchange-rate":
        with gzip.open(root / name / "exchange_rate.txt.gz", "rt") as file:
            columns = np.array([[float(value) for value in line.split(",")] for line in file]).T
        return _rolling("D", "1990-01-01 00:00:00", 30, columns, first=6071, count=5)
    with gzip.open(root / name / "ETTh1.csv.gz", "rt") as file:
        columns = np.array([[float(value) for value in row[1:]] for row in list(csv.reader(file))[1:]]).T
    return _rolling("H", "2016-07-01 00:00:00", 48, columns, first=columns.shape[1] - 20 * 48, count=20)


def _rolling(frequency: str, start: str, length: int, columns: Values, *, first: int, count: int) -> Task:
    ends = [first + length * (number + 1) for number in range(count)]
    test = [(i, column[:end]) for end in ends for i, column in enumerate(columns)]
    return Task(frequency, start, length, [column[:first] for column in columns], test)


def _rows(file: Path) -> list[Values]:
    with gzip.open(file, "rt") as stream:
        rows = list(csv.reader(stream))[1:]
    return [np.array([float(value) if value else np.nan for value in row[1:]]) for row in rows]


# ---- one training, in a process of its own -----------------------------------------------------------------------


def run_penstock(task: Task, seed: int, windows: int, output: Path) -> tuple[float, NDArray[np.float32]]:
    import torch  # noqa: PLC0415

    from formats.time_frequency import Frequency  # noqa: PLC0415
    from formats.timeseries import parse_series  # noqa: PLC0415
    from trainers.checkpoints import load  # noqa: PLC0415
    from trainers.deepar.data import SeriesSet  # noqa: PLC0415
    from trainers.deepar.forecasts import forecast  # noqa: PLC0415
    from trainers.deepar.model import Network, Sizes  # noqa: PLC0415
    from trainers.deepar.train import train as _  # noqa: PLC0415, F401  of neither system the imports are timed
    from trainers.run import train  # noqa: PLC0415

    (output / "train").mkdir(parents=True)
    with (output / "train" / "train.json").open("w") as file:
        for number, values in enumerate(task.train):
            file.write(json.dumps({"start": task.start, "target": values.tolist(), "cat": [number]}) + "\n")
    per_epoch = max(len(task.train), 10 * BATCH)
    wanted: dict[str, object] = SIZES | {
        "time_freq": task.frequency, "prediction_length": task.prediction_length, "mini_batch_size": BATCH,
        "context_length": task.prediction_length, "epochs": round(windows / per_epoch), "seed": seed,
    }  # fmt: skip
    began = time.perf_counter()
    model = train("deepar", {"train": output / "train"}, wanted, output)
    spent = time.perf_counter() - began
    described = json.loads((model / "model.json").read_text())["sizes"]
    sizes = Sizes(**described | {name: tuple(described[name]) for name in ("lags", "cardinalities")})
    network = Network(sizes).eval()
    network.load_state_dict(load(model / "model.pt"))
    rows = [{"start": task.start, "target": series.tolist(), "cat": [number]} for number, series in task.test]
    series = SeriesSet.of([parse_series(row) for row in rows], sizes.history, use_cat=True, num_dynamic=0)
    with torch.inference_mode():
        begins = series.lengths - task.prediction_length
        return spent, forecast(network, Frequency.parse(task.frequency), series, begins, NUM_SAMPLES, seed)


def run_gluonts(task: Task, seed: int, windows: int, output: Path) -> tuple[float, NDArray[np.float32]]:
    import pandas as pd  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from gluonts.dataset.common import ListDataset  # noqa: PLC0415
    from gluonts.torch import DeepAREstimator  # noqa: PLC0415

    torch.manual_seed(seed)
    np.random.seed(seed)  # the peer draws from it
    frequency = task.frequency.lower() if task.frequency == "H" else task.frequency
    begin = pd.Period(task.start, frequency)

    def dataset(series: list[tuple[int, Values]]) -> Any:
        rows = [{"start": begin, "target": values, "feat_static_cat": [number]} for number, values in series]
        return ListDataset(rows, freq=frequency)

    estimator = DeepAREstimator(
        freq=frequency, prediction_length=task.prediction_length, num_layers=SIZES["num_layers"],
        hidden_size=SIZES["num_cells"], num_feat_static_cat=1, cardinality=[len(task.train)],
        embedding_dimension=[SIZES["embedding_dimension"]], batch_size=BATCH,
        num_batches_per_epoch=50, num_parallel_samples=NUM_SAMPLES,
        trainer_kwargs={
            "max_epochs": windows // (50 * BATCH), "enable_progress_bar": False, "logger": False,
            "default_root_dir": str(output), "accelerator": "cpu",
        },
    )  # fmt: skip
    known = dataset(list(enumerate(task.train)))
    began = time.perf_counter()
    predictor = estimator.train(known)
    spent = time.perf_counter() - began
    asked = dataset([(number, values[: -task.prediction_length]) for number, values in task.test])
    return spent, np.stack([each.samples for each in predictor.predict(asked)]).astype(np.float32)


def run_piece(piece: dict[str, Any], root: Path, work: Path) -> None:
    task = read_task(piece["data"], root)
    output = work / "-".join(map(str, piece.values()))
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    run = run_penstock if piece["system"] == "penstock" else run_gluonts
    spent, samples = run(task, piece["seed"], piece["windows"], output)
    np.save(output / "samples.npy", samples)
    (output / "spent.json").write_text(json.dumps(spent))


# ---- all of them -------------------------------------------------------------------------------------------------


def pieces(seeds: int, windows: int) -> Iterator[dict[str, Any]]:
    """Systems take turns, so that a slow minute of the machine meets both."""
    for seed in range(seeds):
        for data in DATA_SETS:
            for system in SYSTEMS:
                yield {"data": data, "system": system, "seed": seed, "windows": windows}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peers", default=sys.executable)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pieces", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=32_000)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--piece", type=json.loads, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    root = asked.data or Path(os.environ.get("PENSTOCK_DATA", "../shared/data")).resolve() / "deepar"
    if asked.piece:
        run_piece(asked.piece, root, asked.work)
        return 0
    asked.work.mkdir(parents=True, exist_ok=True)
    results = asked.work / "results.jsonl"
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if asked.table:
        print(table([row for row in done if row.get("windows") == asked.windows]))
        return 0
    left = [each for each in pieces(asked.seeds, asked.windows) if not any(each.items() <= row.items() for row in done)]
    for piece in left[: asked.pieces]:
        python = sys.executable if piece["system"] == "penstock" else asked.peers
        command = [python, "-m", "examples.deepar_beside_gluonts", "--work", asked.work, "--data", root]
        with (asked.work / "log.txt").open("a") as log:
            spoken: dict[str, Any] = {"stdout": log, "stderr": log}
            subprocess.run([*map(str, command), "--piece", json.dumps(piece)], check=True, **spoken)
        row = piece | measure(piece, root, asked.work)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    return 0


def measure(piece: dict[str, Any], root: Path, work: Path) -> dict[str, float]:
    from trainers.deepar.evaluation import scores  # noqa: PLC0415

    task, output = read_task(piece["data"], root), work / "-".join(map(str, piece.values()))
    target = np.stack([values[-task.prediction_length :] for _, values in task.test])
    found = scores(np.load(output / "samples.npy"), target, QUANTILES)
    return {
        "mean_wQL": found.mean_weighted_quantile_loss,
        "ND": found.weighted_quantile_loss[0.5],
        "RMSE": found.rmse,
        "coverage_80": found.coverage_80,
        "training_s": json.loads((output / "spent.json").read_text()),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: mean and deviation over seeds."""
    lines = ["| data | | mean_wQL | ND | RMSE | coverage of 80 % | training, s |", "|---|---|---|---|---|---|---|"]
    for data in DATA_SETS:
        for system in SYSTEMS:
            some = [row for row in rows if (row["data"], row["system"]) == (data, system)]
            if some:
                cells = [_spread([row[name] for row in some], f) for name, f in _COLUMNS.items()]
                lines.append(f"| {data} | {system} | {' | '.join(cells)} |")
    return "\n".join(lines)


_COLUMNS = {"mean_wQL": ".4f", "ND": ".4f", "RMSE": ".4g", "coverage_80": ".2f", "training_s": ".0f"}


def _spread(values: list[float], form: str) -> str:
    return f"{mean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
