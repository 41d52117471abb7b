"""Which epoch's model is the best, whichever way its metric goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from trainers import loop
from trainers.early_stopping import EarlyStopping
from trainers.job import Job

LOSSES = [3.0, 1.0, 2.0, 2.5, 0.5]


class Recorded:
    """A learner whose model is the number of epochs that it has seen."""

    def __init__(self, losses: list[float]) -> None:
        self._losses = losses
        self._done = torch.zeros(1)

    def train_epoch(self, epoch: int, batch_done: loop.BatchDone) -> dict[str, float]:
        self._done += 1
        batch_done(1, lambda: 0.0)
        return {"loss": self._losses[epoch]}

    def validate(self) -> dict[str, float]:
        loss = self._losses[int(self._done) - 1]
        return {"loss": loss, "accuracy": -loss}

    def model_state(self) -> dict[str, Tensor]:
        return {"done": self._done.clone()}

    def state(self) -> dict[str, Any]:
        return {"done": self._done.clone()}

    def load_state(self, state: dict[str, Any]) -> None:
        self._done = state["done"].clone()


def job_in(root: Path) -> Job:
    for name in ("output", "checkpoints"):
        (root / name).mkdir(exist_ok=True)
    return Job(algorithm="", channels={}, hyperparameters={}, output=root / "output", checkpoints=root / "checkpoints")


def plan(
    objective: str, mode: Literal["max", "min"], *, epochs: int = 5, patience: int | None = None, **given: Any
) -> loop.Plan:
    stopping = EarlyStopping(min_epochs=1, patience=patience, tolerance=0.0) if patience else None
    return loop.Plan(name="recorded", epochs=epochs, num_samples=1, checkpoint_frequency=None,
                     early_stopping=stopping, identity="", objective=objective, mode=mode, **given)  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "mode", "expected"), [("loss", "min", 4), ("loss", "max", 0), ("accuracy", "max", 4)]
)
def test_the_best_epoch_is_that_of_the_largest_or_the_smallest_objective(
    tmp_path: Path, objective: str, mode: Literal["max", "min"], expected: int
) -> None:
    best = loop.run(job_in(tmp_path), Recorded(LOSSES), plan(objective, mode), None)

    assert (best.epoch, best.state["done"].item()) == (expected, expected + 1)


def test_an_objective_may_be_one_of_training(tmp_path: Path) -> None:
    learner = Recorded(LOSSES)
    learner.validate = dict  # type: ignore[method-assign]
    best = loop.run(job_in(tmp_path), learner, plan("loss", "min", objective_of="train"), None)

    assert (best.epoch, best.metrics) == (4, {"train:loss": 0.5})


def test_early_stopping_waits_for_a_smaller_value_where_small_is_good(tmp_path: Path) -> None:
    best = loop.run(job_in(tmp_path), Recorded(LOSSES), plan("loss", "min", patience=2), None)

    assert (best.epoch, best.finished) == (1, True)
    assert len((tmp_path / "output" / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_value_that_is_no_number_is_never_the_best(tmp_path: Path) -> None:
    best = loop.run(job_in(tmp_path), Recorded([float("nan"), 2.0, float("nan")]), plan("loss", "min", epochs=3), None)

    assert best.epoch == 1
