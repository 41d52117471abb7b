"""The lines of the log: what is published of them is read by scrapers (contract, section 4)."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainers.deepar.conftest import VALUES, channels, waves

PREFIX = re.compile(r"\[(\d\d/\d\d/\d{4} \d\d:\d\d:\d\d) (INFO|WARNING|ERROR) \d+\] (.*)")
SCRAPED = {
    "test:RMSE": r"#quality_metric: host=\S+, test RMSE <loss>=(\S+)",
    "test:mean_wQuantileLoss": r"#quality_metric: host=\S+, test mean_wQuantileLoss <loss>=(\S+)",
    "train:final_loss": r"#quality_metric: host=\S+, train final_loss <loss>=(\S+)",
    "train:loss": r"#quality_metric: host=\S+, epoch=\S+, train loss <loss>=(\S+)",
    "train:loss:batch": r"#quality_metric: host=\S+, epoch=\S+, batch=\S+ train loss <loss>=(\S+)",
    "train:progress": r"#progress_metric: host=\S+, completed (\S+) %",
    "train:throughput": r"#throughput_metric: host=\S+, train throughput=(\S+) records/second",
}
"""As AWS published them, with the metrics' names."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `penstock train` with a test channel; `log` holds its standard error."""
    root = tmp_path_factory.mktemp("run")
    given = [part for name, path in channels(root).items() for part in ("--channel", f"{name}={path}")]
    values = [part for name, value in VALUES.items() for part in ("--set", f"{name}={value}")]
    command = [sys.executable, "-m", "penstock", "train", "deepar", *given, *values, "--output", str(root / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (root / "out" / "log").write_text(done.stderr)
    return root / "out"


@pytest.fixture
def lines(output: Path) -> list[str]:
    """Without their prefixes."""
    matches = [PREFIX.fullmatch(line) for line in (output / "log").read_text().splitlines()]
    return [match[3] for match in matches if match]


def numbers(pattern: str, lines: list[str]) -> list[float]:
    return [float(match[1]) for line in lines if (match := re.search(pattern, line))]


def test_every_line_begins_with_time_level_and_thread(output: Path) -> None:
    for line in (output / "log").read_text().splitlines():
        match = PREFIX.fullmatch(line)
        assert match, line
        assert abs((datetime.now() - datetime.strptime(match[1], "%m/%d/%Y %H:%M:%S")).total_seconds()) < 3600


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("test:RMSE", 1), ("test:mean_wQuantileLoss", 1), ("train:final_loss", 1), ("train:loss", 2),
        ("train:loss:batch", 4), ("train:progress", 2), ("train:throughput", 2),
    ],
)  # fmt: skip
def test_scrapers_find_a_number_in_every_line_of_a_metric(lines: list[str], name: str, count: int) -> None:
    """Of two epochs of ten batches."""
    found = numbers(SCRAPED[name], lines)
    assert len(found) == count
    assert np.isfinite(found).all()


def test_scores_are_told_in_four_kinds_and_agree(output: Path, lines: list[str]) -> None:
    report = json.loads((output / "evaluation.json").read_text())
    found = {
        match[1]: float(match[2])
        for line in lines
        if (match := re.fullmatch(r"#test_score \(algo-1, ([\w.\[\]]+)\): (\S+)", line))
    }

    kinds = {"RMSE", "mean_absolute_QuantileLoss", "mean_wQuantileLoss"}
    assert set(found) == kinds | {f"wQuantileLoss[0.{tenth}]" for tenth in range(1, 10)}
    assert {kind: found[kind] for kind in kinds} == {kind: report[kind] for kind in kinds}
    assert found["mean_wQuantileLoss"] == pytest.approx(np.mean(list(report["wQuantileLoss"].values())))
    assert numbers(SCRAPED["test:RMSE"], lines) == [found["RMSE"]]
    whole = np.abs([each.target[-6:] for each in waves(length=86)]).sum()
    assert found["mean_absolute_QuantileLoss"] == pytest.approx(found["mean_wQuantileLoss"] * whole)


def test_the_data_sets_figures_are_told(output: Path, lines: list[str]) -> None:
    at = lines.index("Real time series (channel 'train')")
    values = np.array([each.target for each in waves()])

    assert lines[at + 1 : at + 3] == ["number of time series: 12", "number of observations: 960"]
    assert lines[at + 3] == "mean target length: 80.0"
    (told,) = numbers(r"mean abs\(target\): (\S+)", lines[at : at + 7])
    assert told == pytest.approx(values.mean())
    low, mean, high = map(float, lines[at + 4].removeprefix("min/mean/max target: ").split("/"))
    assert (low, mean, high) == pytest.approx((values.min(), values.mean(), values.max()))
    assert lines[at + 6] == "contains missing values: no"
    assert "Real time series (channel 'test')" in lines


def test_the_other_lines_of_the_original(output: Path, lines: list[str]) -> None:
    file = output.parent / "train" / "a.json"
    for field, name in (("cat", "cardinality"), ("dynamic_feat", "num_dynamic_feat")):
        assert (
            f"[{name}=auto] `{field}` field was NOT found in the file `{file}` and will NOT be used for training."
            in lines
        )
    text = "\n".join(lines)
    assert re.search(r"Small number of time series\. Doing 7 passes over dataset with prob 0\.95\d* per epoch", text)
    for pattern, count in (
        (r"^Epoch\[\d+\] Batch\[[05]\] avg_epoch_loss=(\S+)$", 4),
        (r"^Final loss: (\S+) \(occurred at epoch [01]\)$", 1),
        (r"^processed a total of (\S+) examples$", 2),
    ):
        found = numbers(pattern, lines)
        assert len(found) == count
        assert np.isfinite(found).all()
    better = numbers(r"^best epoch loss so far: (\S+)", lines)
    assert len(better) + lines.count("loss did not improve") == 2
    assert np.isfinite(better).all()


def test_metrics_are_told_as_json_once_an_epoch_and_at_the_end(lines: list[str]) -> None:
    told = [json.loads(line.removeprefix("#metrics ")) for line in lines if line.startswith("#metrics ")]

    assert len(told) == 3
    for each in told:
        assert set(each) == {"StartTime", "EndTime", "Dimensions", "Metrics"}
        assert each["Dimensions"] == {"Algorithm": "AWS/DeepAR", "Host": "algo-1", "Operation": "training"}
        assert each["StartTime"] < each["EndTime"]
        for figures in each["Metrics"].values():
            assert set(figures) == {"sum", "count", "min", "max"}
    assert all(each["Metrics"]["update.time"]["sum"] > 0 for each in told[:2])
    assert {"train:final_loss", "test:RMSE", "test:mean_wQuantileLoss", "totaltime"} <= set(told[2]["Metrics"])


def test_metrics_jsonl_holds_every_metric(output: Path, lines: list[str]) -> None:
    *epochs, whole = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]

    assert [row["train:loss"] for row in epochs] == numbers(SCRAPED["train:loss"], lines)
    assert [row["train:throughput"] for row in epochs] == numbers(SCRAPED["train:throughput"], lines)
    assert [row["train:progress"] for row in epochs] == numbers(SCRAPED["train:progress"], lines) == [50, 100]
    for name in ("train:final_loss", "test:RMSE", "test:mean_wQuantileLoss"):
        assert [whole[name]] == numbers(SCRAPED[name], lines)
        assert math.isfinite(whole[name])


def test_hidden_settings_of_the_original_are_let_in_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Contract, section 3: those that its log has, and no others."""
    from trainers.run import train  # noqa: PLC0415

    hidden: dict[str, Any] = dict.fromkeys(("_kvstore", "_num_gpus", "_num_kv_servers"), "auto")
    with caplog.at_level("INFO", "penstock.train"):
        train("deepar", channels(tmp_path), VALUES | hidden | {"_tuning_objective_metric": "test:RMSE"}, tmp_path / "o")

    for name in (*hidden, "_tuning_objective_metric"):
        assert f"hyperparameter {name} has no meaning here and is ignored" in caplog.text
