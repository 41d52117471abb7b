"""Runs in processes of their own: killed and resumed, and several through the real launcher over gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from formats.timeseries import Series
from tests.trainers.deepar.conftest import START, VALUES, channel, channels, waves
from trainers.checkpoints import load

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
PROGRAM = """
import json, sys
from pathlib import Path
from trainers.run import train
channels, values, output = json.loads(sys.argv[1])
train("deepar", {k: Path(v) for k, v in channels.items()}, values, Path(output))
"""


def run(
    given: dict[str, Path], values: dict[str, Any], output: Path, at: str = "", *launcher: str, program: str = PROGRAM
) -> tuple[int, str]:
    """The job in a process of its own, killed once its log holds `at`; gives status and log."""
    script = output.parent / "job.py"
    script.write_text(program)
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
    return [{k: v for k, v in json.loads(line).items() if k not in ("time_s", "train:throughput")} for line in lines]


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


def with_fields(number: int, series: Series) -> Series:
    return Series(START, series.target, (number % 3, 0), np.stack([np.arange(len(series.target)) % 7.0]))


def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    """The same global batch in two halves, with categories, features and zoneout."""
    given, values = channels(tmp_path, with_fields), VALUES | {"epochs": 3, "dropout_rate": 0.2, "num_layers": 2}
    run(given, values, tmp_path / "one")
    status, log = run(given, values, tmp_path / "two", "", *TORCHRUN)

    assert status == 0, log
    ours, theirs = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert len(ours) == 4
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=2e-3)
    weights, others = (load(tmp_path / name / "model" / "model.pt") for name in ("two", "one"))
    for name, value in weights.items():
        assert value.numpy() == pytest.approx(others[name].numpy(), rel=5e-3, abs=5e-3), name


SHARDS = """
import json, os, sys
from pathlib import Path
from trainers.run import train
channels, values, output = json.loads(sys.argv[1])
train("deepar", {"train": Path(channels["train"]) / os.environ["RANK"]}, values, Path(output))
"""


@pytest.mark.parametrize("form", ["fewer", "other"])
def test_processes_that_were_given_unlike_data_say_so_at_once(tmp_path: Path, form: str) -> None:
    """Even where series and steps are as many, and only a value differs."""
    channel(tmp_path / "t" / "0", waves())
    channel(tmp_path / "t" / "1", waves(6) if form == "fewer" else waves(edit=lambda _, s: Series(START, s.target + 1)))
    status, log = run({"train": tmp_path / "t"}, VALUES, tmp_path / "out", "", *TORCHRUN, program=SHARDS)

    assert status != 0
    steps = "6 of" if form == "fewer" else "12 of"
    said = f"not the same in all processes: process 0 has read 12 time series of 961 steps in all, process 1 {steps}"
    assert log.count(said) >= 2, log
    assert not (tmp_path / "out" / "model").exists()
