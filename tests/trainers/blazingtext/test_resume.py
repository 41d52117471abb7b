"""Runs that are stopped: what they leave, and that the next one ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainers.blazingtext.test_train import corpus, labelled
from trainers.blazingtext.model import Embedding
from trainers.blazingtext.resume import Resume
from trainers.job import ClientError
from trainers.run import train

PROGRAM = """
import json, sys
from pathlib import Path
from trainers.blazingtext.model import Embedding
from trainers.blazingtext.resume import Resume
from trainers.run import train
Resume.__init__.__kwdefaults__["every_s"] = 0.0  # so that every epoch is kept, not one a minute
channels, values, output = json.loads(sys.argv[1])
train("blazingtext", {k: Path(v) for k, v in channels.items()}, values, Path(output))
"""
EARLY = {
    "mode": "supervised", "min_count": 1, "buckets": 1000, "vector_dim": 10, "learning_rate": 0.05, "epochs": 12,
    "early_stopping": True, "min_epochs": 2, "patience": 30,
}  # fmt: skip
SKIPGRAM = {"mode": "skipgram", "vector_dim": 20, "evaluation": False, "sampling_threshold": 0.01, "epochs": 6}


def run(
    channels: dict[str, Path], values: dict[str, object], output: Path, send: signal.Signals | None = None, at: int = 0
) -> tuple[int, str]:
    """The job in a process of its own, on one core, sent a signal at the end of an epoch; gives status and log."""
    told = json.dumps([{k: str(v) for k, v in channels.items()}, values, str(output)])
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = ""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, told], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            log += line
            if send is not None and f"End of epoch: {at}" in line:
                process.send_signal(send)
                send = None
    return process.returncode, log


@pytest.mark.parametrize("values", [EARLY, SKIPGRAM], ids=["classifier that may stop early", "word vectors"])
def test_a_killed_run_ends_as_if_it_had_not_been_killed(tmp_path: Path, values: dict[str, object]) -> None:
    channels = {"train": corpus(tmp_path / "train")}
    if values is EARLY:
        channels = {"train": labelled(tmp_path / "a"), "validation": labelled(tmp_path / "b", 50, seed=3)}
    file = "model.bin" if values is EARLY else "vectors.bin"
    run(channels, values, tmp_path / "whole")

    first, _ = run(channels, values, tmp_path / "broken", signal.SIGKILL, 4)
    second, log = run(channels, values, tmp_path / "broken")

    assert (first, second) == (-signal.SIGKILL, 0)
    assert "Resuming after epoch" in log
    assert (tmp_path / "broken" / "model" / file).read_bytes() == (tmp_path / "whole" / "model" / file).read_bytes()


def test_sigterm_leaves_a_model_and_the_run_can_go_on(tmp_path: Path) -> None:
    channels = {"train": corpus(tmp_path / "train")}
    values = SKIPGRAM | {"epochs": 400}

    status, log = run(channels, values, tmp_path / "out", signal.SIGTERM, 2)

    assert status == 0
    assert "Stopped by SIGTERM" in log
    assert "End of epoch: 400" not in log
    assert (tmp_path / "out" / "model" / "vectors.bin").is_file()


def test_a_damaged_checkpoint_is_named_and_one_of_another_run_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    channels = {"train": corpus(tmp_path / "train")}
    run(channels, SKIPGRAM, tmp_path / "out", signal.SIGKILL, 3)
    file = tmp_path / "out" / "checkpoints" / "blazingtext.npz"

    train("blazingtext", channels, SKIPGRAM | {"seed": 5}, tmp_path / "out")
    assert "is of another run and is not used" in caplog.text

    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ClientError, match=r"blazingtext\.npz is damaged"):
        train("blazingtext", channels, SKIPGRAM, tmp_path / "out")


def test_epochs_are_kept_at_most_once_a_minute_unless_it_is_urgent(tmp_path: Path) -> None:
    resume = Resume(tmp_path, "x", Embedding.new(4, 2, 2, 2, seed=0))
    resume.keep(1)
    assert not list(tmp_path.iterdir())
    resume.keep(2, now=True)
    assert resume.begin()[0] == 2
