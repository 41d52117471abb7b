"""Training as its users call it: files in, the original's log lines and a model out."""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from formats.time_frequency import Frequency
from formats.timeseries import Series, write, write_parquet
from trainers.checkpoints import load
from trainers.container import run_container
from trainers.deepar.data import Fields, SeriesSet, cut, passes_of, tails, visits
from trainers.deepar.evaluation import scores
from trainers.deepar.hyperparameters import Hyperparameters
from trainers.deepar.model import Network, Sizes
from trainers.deepar.train import Tails, calibrate
from trainers.hyperparameter_schema import parse
from trainers.job import ClientError
from trainers.run import train

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


def test_the_log_has_the_lines_that_scrapers_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "penstock.train"):
        train("deepar", channels(tmp_path), VALUES, tmp_path / "out")

    for line in (
        r"#quality_metric: host=\S+, test RMSE <loss>=(\S+)",
        r"#quality_metric: host=\S+, test mean_wQuantileLoss <loss>=(\S+)",
        r"#quality_metric: host=\S+, train final_loss <loss>=(\S+)",
        r"#quality_metric: host=\S+, epoch=\S+, train loss <loss>=(\S+)",
        r"#quality_metric: host=\S+, epoch=\S+, batch=\S+ train loss <loss>=(\S+)",
        r"#progress_metric: host=\S+, completed (\S+) %",
        r"#throughput_metric: host=\S+, train throughput=(\S+) records/second",
        r"#test_score \(algo-1, RMSE\): \S+",
        r"#test_score \(algo-1, mean_absolute_QuantileLoss\): \S+",
        r"#test_score \(algo-1, wQuantileLoss\[0\.9\]\): \S+",
        r"Epoch\[0\] Batch\[5\] avg_epoch_loss=",
        r"Final loss: \S+ \(occurred at epoch \d+\)",
        r"Small number of time series\. Doing 7 passes over dataset with prob 0\.95\d* per epoch",
        r"\[cardinality=auto\] `cat` field was NOT found in the file `train` and will NOT be used for training\.",
        r"number of time series: 12",
        r"#metrics \{",
    ):
        assert re.search(line, caplog.text), line
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {"RMSE", "mean_wQuantileLoss", "wQuantileLoss", "coverage_80"} <= set(report)


def test_a_season_is_learned(tmp_path: Path) -> None:
    given = channels(tmp_path)
    train(
        "deepar",
        given,
        VALUES | {"epochs": 100, "context_length": 24, "num_cells": 16, "learning_rate": 0.002},
        tmp_path / "out",
    )

    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    naive = scores(
        np.stack([each.target[None, -30:-24] for each in waves(length=86)]).astype(np.float32),
        np.stack([each.target[-6:] for each in waves(length=86)]), (0.5,),
    )  # fmt: skip
    assert report["RMSE"] < 2 * naive.rmse  # which knows the season, and has little noise to repeat


@pytest.mark.parametrize("likelihood", ["student-t", "beta", "negative-binomial", "deterministic-L1"])
def test_every_likelihood_trains_with_gaps_categories_and_features(tmp_path: Path, likelihood: str) -> None:
    def edit(number: int, series: Series) -> Series:
        target = series.target / 20 if likelihood == "beta" else np.round(series.target)
        target[number : number + 5] = np.nan
        return Series(START, target, (number % 3, 0), np.stack([np.arange(len(target)) % 7.0]))

    model = train("deepar", channels(tmp_path, edit), VALUES | {"likelihood": likelihood}, tmp_path / "out")

    description = json.loads((model / "model.json").read_text())
    assert description["sizes"]["cardinalities"] == [3, 1]
    assert description["num_dynamic"] == 1
    assert np.isfinite(list(description["metrics"].values())).all()


@pytest.mark.parametrize("name", ["a.json", "sub.json.gz", "b.parquet", "c.jsonl"])
def test_every_form_of_file_gives_the_same_series(tmp_path: Path, name: str) -> None:
    plain = channel(tmp_path / "plain", waves())
    other = tmp_path / "other" / "deep" / "er"
    channel(other, waves(), name.removesuffix(".gz"))
    if name.endswith(".gz"):
        file = other / name.removesuffix(".gz")
        (other / name).write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    (tmp_path / "other" / "_SUCCESS").write_text("")
    (tmp_path / "other" / ".hidden.json").write_text("no json")

    states = [
        load(train("deepar", {"train": each}, VALUES, tmp_path / f"out-{each.name}") / "model.pt")
        for each in (plain, tmp_path / "other")
    ]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize(
    ("values", "edit", "text"),
    [
        ({"time_freq": "5X"}, same, "time_freq"),
        ({"epochs": "0"}, same, "epochs"),
        ({"likelihood": "poisson"}, same, "likelihood"),
        ({"test_quantiles": "[0, 1]"}, same, "test_quantiles"),
        ({"cardinality": "[0]"}, same, "cardinality"),
        ({"num_cell": "3"}, same, "num_cells"),
        ({"cardinality": "[3]"}, same, "has no `cat`"),
        ({"num_dynamic_feat": "2"}, same, "has 0 rows"),
        ({"prediction_length": "100"}, same, "every series is shorter than prediction_length = 100"),
        (
            {"cardinality": "[2]"},
            lambda n, s: Series(START, s.target, (n,)),
            r"cat\[0\] is 2; the cardinality there is 2",
        ),
        ({"cardinality": "[2,3]"}, lambda n, s: Series(START, s.target, (n,)), "is of 2 categories; `cat` has 1"),
        (
            {},
            lambda n, s: Series(START, s.target, (n,) if n else None),
            "record 0 has no `cat` and record 1 has `cat` of length 1",
        ),
        (
            {},
            lambda n, s: Series(START, s.target, None, np.ones((1 + n // 5, 80))),
            "record 0 has `dynamic_feat` of length 1 and record 5 has `dynamic_feat` of length 2",
        ),
        (
            {"cardinality": "[2000000000]"},
            lambda _, s: Series(START, s.target, (0,)),
            "2000000000 categories, embeddings",
        ),
        ({"cardinality": "[]"}, same, r"'\[\]' is not valid"),
        ({"cardinality": "[1.5]"}, same, "a JSON array of integers above 0"),
        ({"num_dynamic_feat": "-1"}, same, "num_dynamic_feat must be auto, ignore or a whole number"),
        ({"test_quantiles": "[null]"}, same, "test_quantiles must be a JSON array of numbers between 0 and 1"),
        ({"test_quantiles": "[]"}, same, "test_quantiles"),
        ({"learning_rate": "1e300"}, same, "learning_rate must be a number above 0 and at most 1"),
        ({"dropout_rate": "1"}, same, "dropout_rate must be a number from 0 to below 1"),
        ({"early_stopping_patience": "0"}, same, "an integer of at least 1, or empty"),
        ({"num_eval_samples": "0"}, same, "num_eval_samples must be an integer of at least 1"),
        ({"embedding_dimension": "0"}, same, "embedding_dimension must be an integer of at least 1"),
        ({"seed": 2**70}, same, "seed must be an integer from 0 to 4294967295"),
        ({}, lambda _, s: Series(START, s.target * np.nan), "holds 0 observations; at least 300"),
        ({}, lambda _, s: Series(START, s.target[:20]), "holds 240 observations; at least 300"),
        ({"likelihood": "beta"}, same, "expected a value from 0 to 1"),
        ({"likelihood": "negative-binomial"}, lambda _, s: Series(START, -s.target), "expected a value of 0 or more"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, values: dict[str, Any], edit: Edit, text: str) -> None:
    with pytest.raises(ClientError, match=text):
        train("deepar", {"train": channel(tmp_path / "t", waves(edit=edit))}, VALUES | values, tmp_path / "out")


def test_a_broken_record_is_named_by_file_and_line(tmp_path: Path) -> None:
    directory = channel(tmp_path / "t", waves())
    with (directory / "a.json").open("a") as file:
        file.write('{"start": "2024-03-01", "target": [1, "x"]}\n')
    with pytest.raises(ClientError, match=r"a\.json, line 13: 'target'\[1\] is 'x'"):
        train("deepar", {"train": directory}, VALUES, tmp_path / "out")


def test_series_of_zeros_alone_are_trained_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    given = channels(tmp_path, lambda _, s: Series(START, np.zeros_like(s.target)))
    with caplog.at_level(logging.WARNING, "penstock.train"):
        model = train("deepar", given, VALUES, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text(), parse_constant=refuse)
    metrics = json.loads((model / "model.json").read_text(), parse_constant=refuse)["metrics"]

    assert "consist of only zeros" in caplog.text
    assert report["mean_wQuantileLoss"] is None  # relative to a sum of zeros
    assert metrics["test:RMSE"] == report["RMSE"] < 0.1


def test_records_of_the_guides_longer_features_and_gluonts_names_train_alike(tmp_path: Path) -> None:
    """Features as long as the target, or longer by prediction_length; contract, sections 2.1 and 9."""
    random = np.random.default_rng(3)
    features = [random.normal(size=(1, 86)) for _ in range(12)]
    forms = {
        "equal": waves(edit=lambda n, s: Series(START, s.target, (n % 2,), features[n][:, :80])),
        "longer": waves(edit=lambda n, s: Series(START, s.target, (n % 2,), features[n])),
    }
    given = {name: channel(tmp_path / name, series) for name, series in forms.items()}
    text = (given["equal"] / "a.json").read_text()
    given["gluonts"] = channel(tmp_path / "gluonts", [])
    text = text.replace('"cat"', '"feat_static_cat"').replace('"dynamic_feat"', '"feat_dynamic_real"')
    (given["gluonts"] / "a.json").write_text(text)

    first, *others = [
        load(train("deepar", {"train": each}, VALUES, tmp_path / f"out-{name}") / "model.pt")
        for name, each in given.items()
    ]
    for other in others:
        assert all(torch.equal(value, other[key]) for key, value in first.items())


def test_auto_says_that_fields_were_found_and_a_single_category_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = channels(tmp_path, lambda _, s: Series(START, s.target, (0, 4), np.zeros((2, len(s.target)))))
    with caplog.at_level(logging.INFO, "penstock.train"):
        model = train("deepar", given, VALUES, tmp_path / "out")
    sizes = json.loads((model / "model.json").read_text())["sizes"]

    for line in (
        "[cardinality=auto] `cat` field was found in the file `train` and will be used for training.",
        "[num_dynamic_feat=auto] `dynamic_feat` field was found in the file `train` and will be used for training.",
        "4 of the 5 categories of cat[1] do not occur in channel 'train'",
    ):
        assert line in caplog.text
    assert sizes["cardinalities"] == [1, 5]
    assert "of cat[0]" not in caplog.text


@pytest.mark.parametrize("off", ["ignore", ""])
def test_fields_that_are_ignored_may_be_in_some_records_only(tmp_path: Path, off: str) -> None:
    given = channels(tmp_path, lambda n, s: Series(START, s.target, (n,), np.ones((n, len(s.target)))) if n else s)
    plain = train("deepar", channels(tmp_path / "plain"), VALUES, tmp_path / "out-plain")
    model = train("deepar", given, VALUES | {"cardinality": off, "num_dynamic_feat": off}, tmp_path / "out")

    states = [load(each / "model.pt") for each in (plain, model)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (lambda _, s: Series(START, s.target, (0,)), "'test': `cat` and `dynamic_feat` must be as in channel 'train'"),
        (lambda _, s: Series(START, -s.target), "'test', series 0: 'target'"),
        (lambda _, s: Series(START, np.append(s.target, [np.nan] * 6)), "no target is known in the last 6 steps"),
    ],
)
def test_a_test_channel_that_does_not_fit_is_told_before_training(tmp_path: Path, edit: Edit, text: str) -> None:
    given = {"train": channel(tmp_path / "train", waves()), "test": channel(tmp_path / "test", waves(edit=edit))}
    with pytest.raises(ClientError, match=text):
        train("deepar", given, VALUES | {"likelihood": "negative-binomial"}, tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_a_test_category_that_training_never_saw_is_told(tmp_path: Path) -> None:
    def of(category: int) -> list[Series]:
        return waves(edit=lambda _, s: Series(START, s.target, (category,)))

    given = {"train": channel(tmp_path / "train", of(0)), "test": channel(tmp_path / "test", of(3))}
    with pytest.raises(ClientError, match=r"'test', series 0: cat\[0\] is 3; the cardinality there is 1"):
        train("deepar", given, VALUES, tmp_path / "out")


@pytest.mark.parametrize("length", [0, 1, 3, 6])
def test_a_last_series_as_short_as_a_forecast_or_shorter_is_scored_too(tmp_path: Path, length: int) -> None:
    """And one without anything but its start."""
    given = channels(tmp_path, lambda n, s: Series(START, s.target[:length] if n == 11 else s.target))
    train("deepar", given, VALUES, tmp_path / "out")
    assert math.isfinite(json.loads((tmp_path / "out" / "evaluation.json").read_text())["RMSE"])


def test_short_series_are_scored_and_left_out_of_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = channels(tmp_path, lambda n, s: Series(START, s.target[:3] if n == 0 else s.target))
    with caplog.at_level(logging.INFO, "penstock.train"):
        train("deepar", given, VALUES, tmp_path / "out")
    assert "1 of 12 time series are shorter than prediction_length = 6 and are ignored" in caplog.text


def test_early_stopping_ends_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = VALUES | {"epochs": 60, "early_stopping_patience": "1", "learning_rate": "1e-9"}
    with caplog.at_level(logging.INFO, "penstock.train"):
        train("deepar", channels(tmp_path), values, tmp_path / "out")
    assert "best epoch loss so far: " in caplog.text
    assert "loss did not improve" in caplog.text
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) < 60


def test_windows_are_cut_where_they_should_be() -> None:
    wanted = parse(Hyperparameters, VALUES)
    series = [Series(START, np.arange(1.0, 11)), Series(START, np.array([5.0, np.nan, 7]))]
    made = SeriesSet.of(series, use_cat=False, num_dynamic=0)
    found = cut(made, Frequency.parse("H"), np.array([0, 1]), np.array([8, 1]), longest_lag=3, context=3, prediction=2)

    assert found.target[0].tolist() == [3, 4, 5, 6, 7, 8, 9, 10]
    assert found.target[1].tolist() == [0, 0, 0, 0, 0, 5, 5, 7]
    assert found.observed.tolist() == [[1] * 5, [0, 0, 1, 0, 1]]
    assert Fields.of(series, wanted, "train") == Fields((), 0)


def test_an_epoch_visits_about_ten_batches_of_a_small_set_and_each_series_of_a_large_one_once() -> None:
    """The original's log: 14 series in batches of 64 are 46 passes with 0.9938, 200 in 32 two with 0.8."""
    assert list(passes_of(14, 64)) == pytest.approx([46, 0.9938], abs=1e-4)
    assert list(passes_of(200, 32)) == pytest.approx([2, 0.8])
    lengths = np.full(1000, 30)
    numbers, begins = visits(lengths, 8, 12, 6, np.random.default_rng(0))
    assert sorted(numbers.tolist()) == list(range(1000))
    assert begins.max() == 24
    assert (begins < 12).mean() == pytest.approx(0.05, abs=0.03)


def test_tails_are_about_a_hundred_windows_of_an_eighth_of_a_series_at_most() -> None:
    assert tails(np.full(200, 352), 72, 48).tolist() == [1] * 200
    assert tails(np.full(8, 6071), 30, 30).tolist() == [13] * 8
    assert tails(np.array([800, 40, 33]), 10, 6).tolist() == [16, 1, 0]
    assert Tails.of(np.array([20, 9, 12]), np.array([2, 0, 1]), 3)[1].tolist() == [17, 14, 9]


def test_what_is_withheld_is_not_trained_on(tmp_path: Path) -> None:
    def edit(_number: int, series: Series) -> Series:
        return Series(START, np.concatenate([series.target[:-6], -series.target[-6:]]))

    states = []
    for name, each in (("plain", same), ("other", edit)):
        given = {"train": channel(tmp_path / name, waves(edit=each))}
        states.append(load(train("deepar", given, VALUES, tmp_path / f"{name}-out") / "model.pt"))
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items() if key != "spread")
    assert states[0]["spread"] < states[1]["spread"]


def test_calibration_finds_the_deviation_that_is_in_the_data() -> None:
    """White noise of deviation 0.1 about 1, and a network that forecasts 0.05 whatever it reads."""
    frequency = Frequency.parse("H")
    sizes = Sizes(
        lags=(1, 2), num_features=len(frequency.feature_names), cardinalities=(), embedding_dimension=1, num_cells=2,
        num_layers=1, dropout_rate=0.0, likelihood="gaussian", context_length=12, prediction_length=6,
    )  # fmt: skip
    network = Network(sizes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.centred.zero_()
        network.constant.copy_(torch.tensor([1.0, math.log(math.expm1(0.05))]))
    random = np.random.default_rng(0)
    made = [Series(START, 1 + 0.1 * random.normal(size=60)) for _ in range(100)]
    series = SeriesSet.of(made, use_cat=False, num_dynamic=0)
    windows = Tails.of(series.lengths, tails(series.lengths, 12, 6), 6)

    calibrate(network.eval(), frequency, series, windows, 0)

    assert len(windows.numbers) == 100
    # a hundred windows go 100 / 110 of the way to 2; six hundred values tell coverage to 1.6 %, the deviation to 5 %
    assert float(network.spread) == pytest.approx(2 ** (100 / 110), rel=0.12)


def test_scores_are_those_of_their_definitions() -> None:
    """Worked by hand: one step, samples 1 to 5, target 5; a second target is missing."""
    samples = np.stack([[np.arange(1.0, 6)] * 2], axis=0)[0].T[None].astype(np.float32)
    found = scores(samples, np.array([[5.0, np.nan]]), (0.5, 0.75))

    assert found.rmse == pytest.approx(2.0)
    assert found.weighted_quantile_loss == {0.5: pytest.approx(2 * 0.5 * 2 / 5), 0.75: pytest.approx(2 * 0.75 * 1 / 5)}
    assert found.coverage_80 == 0.0


PROGRAM = """
import json, sys
from pathlib import Path
from trainers.run import train
channels, values, output = json.loads(sys.argv[1])
train("deepar", {k: Path(v) for k, v in channels.items()}, values, Path(output))
"""


def run(given: dict[str, Path], values: dict[str, Any], output: Path, at: str = "", *launcher: str) -> tuple[int, str]:
    """The job in a process of its own, killed once its log holds `at`; gives status and log."""
    script = output.parent / "job.py"
    script.write_text(PROGRAM)
    told = json.dumps([{k: str(v) for k, v in given.items()}, values, str(output)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, *launcher, str(script), told]
    log = ""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        for line in process.stderr:
            log += line
            if at and at in line:
                process.send_signal(signal.SIGKILL)
                at = ""
    return process.returncode, log


def rows(output: Path) -> list[dict[str, Any]]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time_s"} for line in lines]


def test_a_killed_run_ends_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    given, values = channels(tmp_path), VALUES | {"epochs": 5}
    run(given, values, tmp_path / "whole")
    first, _ = run(given, values, tmp_path / "broken", "epoch=2, batch=5")
    second, log = run(given, values, tmp_path / "broken")

    assert (first, second) == (-signal.SIGKILL, 0)
    assert "Resumed from" in log
    # not to the bit: how memory is aligned may change the order of a sum
    for one, other in zip(rows(tmp_path / "broken"), rows(tmp_path / "whole"), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_two_processes_have_the_losses_of_one(tmp_path: Path) -> None:
    """The same global batch in two halves; without zoneout nothing else is drawn by chance."""
    given, values = channels(tmp_path), VALUES | {"epochs": 3, "dropout_rate": 0.0}
    run(given, values, tmp_path / "one")
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29683")
    status, log = run(given, values, tmp_path / "two", "", *torchrun)

    assert status == 0, log
    ours, theirs = ([row["train:loss"] for row in rows(tmp_path / name)] for name in ("two", "one"))
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_the_container_takes_the_originals_files(tmp_path: Path) -> None:
    prefix = tmp_path / "ml"
    (prefix / "input" / "config").mkdir(parents=True)
    values = {name: str(value) for name, value in VALUES.items()} | {"_tuning_objective_metric": "", "_kvstore": "auto"}
    (prefix / "input" / "config" / "hyperparameters.json").write_text(json.dumps(values))
    settings = {"TrainingInputMode": "File", "ContentType": "json"}
    (prefix / "input" / "config" / "inputdataconfig.json").write_text(json.dumps({"train": settings, "test": settings}))
    channels(prefix / "input" / "data")

    assert run_container("deepar", prefix) == 0
    assert {"model.pt", "model.json"} <= {file.name for file in (prefix / "model").iterdir()}
