"""Training as its users call it: files in, the original's log lines and a model out."""

from __future__ import annotations

import gzip
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from formats import parquet
from formats.timeseries import Series
from tests.trainers.deepar.conftest import START, VALUES, Edit, channel, channels, same, waves
from trainers.checkpoints import load
from trainers.container import run_container
from trainers.deepar.data import Fields
from trainers.deepar.hyperparameters import Hyperparameters
from trainers.deepar.train import Learner, _sizes, learning_rate
from trainers.distributed import ALONE
from trainers.hyperparameter_schema import parse
from trainers.job import ClientError
from trainers.run import train


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
        ({"_num_cells": "3"}, same, "'_num_cells' was unexpected"),
        ({"model_prefix": ""}, same, "'model_prefix' was unexpected"),
        ({"time_freq": "000H"}, same, "time_freq"),
        (
            {"cardinality": "[13]"},
            lambda n, s: Series(START, s.target, (n,)),
            r"cardinality: \[13\], but 12 of the 13 categories of cat\[0\] occur in channel 'train'",
        ),
        (
            {"cardinality": "[12]"},
            lambda n, s: Series(START, s.target, (max(n, 1),)),
            r"\[12\], but 11 of the 12 categories of cat\[0\] occur",
        ),
        (
            {},
            lambda n, s: Series(START, s.target, None, np.ones((1, 80 + (n == 3)))),
            r"a\.json, line 4: 'dynamic_feat' has 81 values a row; expected 80, .* or 86 with those of a forecast",
        ),
        (
            {"likelihood": "negative-binomial"},
            lambda n, s: Series(START, np.append(np.round(s.target), [np.nan, 7 + n / 4])),
            r"a\.json, line 2: 'target'\[81\] is 7\.25; with likelihood negative-binomial, expected a whole number",
        ),
        ({"cardinality": "[3]"}, same, "has no `cat`"),
        ({"num_dynamic_feat": "2"}, same, "has 0 rows"),
        ({"prediction_length": "100"}, same, "every series is shorter than prediction_length = 100"),
        (
            {"cardinality": "[2]"},
            lambda n, s: Series(START, s.target, (n,)),
            r"a\.json, line 3: cat\[0\] is 2; the cardinality there is 2",
        ),
        ({"cardinality": "[2,3]"}, lambda n, s: Series(START, s.target, (n,)), "is of 2 categories; `cat` has 1"),
        (
            {},
            lambda n, s: Series(START, s.target, (n,) if n else None),
            r"a\.json, line 1 has no `cat` and \S+a\.json, line 2 has `cat` of length 1",
        ),
        (
            {},
            lambda n, s: Series(START, s.target, None, np.ones((1 + n // 5, 80))),
            r"a\.json, line 1 has `dynamic_feat` of length 1 and \S+, line 6 has `dynamic_feat` of length 2",
        ),
        (
            {},
            lambda _, s: Series(START, s.target, (1_999_999_999,)),
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


def test_a_channel_may_be_a_file(tmp_path: Path) -> None:
    directory = channel(tmp_path / "t", waves())
    states = [
        load(train("deepar", {"train": each}, VALUES, tmp_path / f"out-{each.name}") / "model.pt")
        for each in (directory, directory / "a.json")
    ]

    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("names", [[], ["_SUCCESS"], [".hidden.json"]])
def test_a_channel_without_a_file_to_read_is_told(tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "t").mkdir()
    for name in names:
        (tmp_path / "t" / name).write_text("")
    with pytest.raises(ClientError, match=r"Channel 'train': \S+t: no file is there"):
        train("deepar", {"train": tmp_path / "t"}, VALUES, tmp_path / "out")


def test_parquet_days_and_whole_floats_as_categories_train(tmp_path: Path) -> None:
    """As pandas writes them, where a column has days alone, or had gaps."""
    (tmp_path / "t").mkdir()
    with (tmp_path / "t" / "a.parquet").open("wb") as file:
        parquet.write(
            file, [{"start": START.date(), "target": s.target, "cat": [float(n)]} for n, s in enumerate(waves())]
        )
    model = train("deepar", {"train": tmp_path / "t"}, VALUES, tmp_path / "out")

    assert json.loads((model / "model.json").read_text())["sizes"]["cardinalities"] == [12]


def test_a_horizon_beyond_400_steps_is_discouraged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By a warning, before anything else; contract, section 2.2."""
    for length in ("400", "401"):
        with pytest.raises(ClientError, match=f"every series is shorter than prediction_length = {length}"):
            train("deepar", {"train": channel(tmp_path / length, waves())}, VALUES | {"prediction_length": length},
                  tmp_path / "out")  # fmt: skip

    assert "prediction_length = 401: more than 400 steps are seldom forecast well" in caplog.text
    assert "prediction_length = 400: more" not in caplog.text


@pytest.mark.parametrize("likelihood", ["student-T", "gaussian", "negative-binomial", "beta", "deterministic-L1"])
def test_constant_series_are_forecast_as_they_are(tmp_path: Path, likelihood: str) -> None:
    constant = 0.5 if likelihood == "beta" else 7.0
    given = channels(tmp_path, lambda _, s: Series(START, np.full_like(s.target, constant)))
    train("deepar", given, VALUES | {"likelihood": likelihood, "epochs": 20}, tmp_path / "out")

    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["RMSE"] < {"negative-binomial": 0.15, "beta": 0.1}.get(likelihood, 0.01) * constant


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

    file = given["train"] / "a.json"
    for line in (
        f"[cardinality=auto] `cat` field was found in the file `{file}` and will be used for training.",
        f"[num_dynamic_feat=auto] `dynamic_feat` field was found in the file `{file}` and will be used for training.",
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
        (lambda _, s: Series(START, -s.target), r"'test', \S+a\.json, line 1: 'target'\[0\] is -"),
        (lambda _, s: Series(START, s.target + 0.5), r"'test', \S+a\.json, line 1: .* expected a whole number"),
        (lambda _, s: Series(START, np.append(s.target, [np.nan] * 6)), "no target is known in the last 6 steps"),
    ],
)
def test_a_test_channel_that_does_not_fit_is_told_before_training(tmp_path: Path, edit: Edit, text: str) -> None:
    def rounded(number: int, series: Series) -> Series:
        return edit(number, Series(START, np.round(series.target)))

    given = {
        "train": channel(tmp_path / "train", waves(edit=lambda _, s: Series(START, np.round(s.target)))),
        "test": channel(tmp_path / "test", waves(edit=rounded)),
    }
    with pytest.raises(ClientError, match=text):
        train("deepar", given, VALUES | {"likelihood": "negative-binomial"}, tmp_path / "out")
    assert not (tmp_path / "out" / "metrics.jsonl").exists()


def test_a_test_category_that_training_never_saw_is_told(tmp_path: Path) -> None:
    def of(category: int) -> list[Series]:
        return waves(edit=lambda _, s: Series(START, s.target, (category,)))

    given = {"train": channel(tmp_path / "train", of(0)), "test": channel(tmp_path / "test", of(3))}
    with pytest.raises(ClientError, match=r"'test', \S+a\.json, line 1: cat\[0\] is 3; the cardinality there is 1"):
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


def test_a_finished_run_that_is_started_again_ends_with_the_same_figures(tmp_path: Path) -> None:
    given = channels(tmp_path)
    told = []
    for _ in range(2):
        model = train("deepar", given, VALUES, tmp_path / "out")
        lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
        told.append((lines, json.loads((model / "model.json").read_text())))

    assert told[0] == told[1]
    assert len(told[0][0]) == 3


@pytest.mark.parametrize("patience", [1, 4])
def test_early_stopping_waits_so_many_epochs_and_keeps_the_best_model(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, patience: int
) -> None:
    values = VALUES | {"epochs": 200, "early_stopping_patience": str(patience), "learning_rate": "0.02"}
    with caplog.at_level(logging.INFO, "penstock.train"):
        model = train("deepar", channels(tmp_path), values, tmp_path / "out")
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["train:loss_without_scales"] for line in lines[:-1]]
    best = int(np.argmin(losses))
    ((kept, state),) = [(f.name, load(f)) for f in (tmp_path / "out" / "checkpoints").glob("deepar-*.pt")]
    last = load(tmp_path / "out" / "checkpoints" / "last.pt")["learner"]["means"]
    found = load(model / "model.pt")

    assert len(losses) == best + 1 + patience < 200
    assert "best epoch loss so far: " in caplog.text
    assert caplog.text.count("loss did not improve") >= patience
    assert json.loads((model / "model.json").read_text())["epoch"] == best
    assert kept == f"deepar-{best + 1:04d}.pt"
    assert all(torch.equal(value, found[name]) for name, value in state.items() if name != "spread")
    assert not torch.equal(found["direct"], last["direct"])


@pytest.mark.parametrize(("given", "first"), [(0.001, 0.005), (0.0005, 0.0025), (0.003, 0.005), (0.02, 0.02)])
def test_the_learning_rate_falls_to_a_tenth(given: float, first: float) -> None:
    wanted = parse(Hyperparameters, VALUES | {"learning_rate": given, "epochs": 10})
    rates = [learning_rate(wanted, epoch / 2) for epoch in range(21)]

    assert (rates[0], rates[10], rates[20]) == pytest.approx((first, 0.55 * first, 0.1 * first))
    assert rates == sorted(rates, reverse=True)


def test_the_model_is_the_mean_of_the_latest_weights() -> None:
    """Each step's mean by hand: 9 / (9 + n) of the n-th step's weights, and what is left of the mean before."""
    wanted = parse(Hyperparameters, VALUES)
    fields = Fields((), 0)
    learner = Learner(wanted, _sizes(wanted, fields), fields.packed(waves()), ALONE)
    mean, seen = learner.model_state()["direct"], 0

    def done(_count: int, _loss: Callable[[], float]) -> None:
        nonlocal mean, seen
        seen += 1
        mean = mean + 9 / (9 + seen) * (learner.network.direct.detach() - mean)

    for epoch in range(2):
        learner.train_epoch(epoch, done)

    assert seen > 15
    assert learner.model_state()["direct"].numpy() == pytest.approx(mean.numpy(), abs=1e-6)
    assert (learner.model_state()["direct"] - learner.network.direct).abs().max() > 1e-4


def test_what_is_withheld_is_not_trained_on(tmp_path: Path) -> None:
    def edit(_number: int, series: Series) -> Series:
        return Series(START, np.concatenate([series.target[:-6], -series.target[-6:]]))

    states = []
    for name, each in (("plain", same), ("other", edit)):
        given = {"train": channel(tmp_path / name, waves(edit=each))}
        states.append(load(train("deepar", given, VALUES, tmp_path / f"{name}-out") / "model.pt"))
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items() if key != "spread")
    assert states[0]["spread"] < states[1]["spread"]


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
