"""The life of a run: epochs, the best model, checkpoints, early stopping, and an orderly end on SIGTERM."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

from rich.progress import Progress
from torch import Tensor

from trainers import checkpoints
from trainers.distributed import ALONE, World
from trainers.early_stopping import EarlyStopping
from trainers.job import ClientError, Job
from trainers.progress import EpochLog, log

__all__ = ["BatchDone", "Best", "Learner", "Plan", "StopRequested", "run"]

BatchDone = Callable[[int, Callable[[], float]], None]


class StopRequested(BaseException):
    """SIGTERM has arrived; raised between two batches."""


class Learner(Protocol):
    """What an algorithm plugs in."""

    def train_epoch(self, epoch: int, batch_done: BatchDone) -> dict[str, float]:
        """One pass; everything random in it follows from (seed, epoch). The same in all processes.

        Args:
            epoch: counted from 0.
            batch_done: to be called after each batch with its size and a function that gives the epoch's accuracy so
                far; a GPU need not be waited for when nobody asks.
        """
        ...

    def validate(self) -> dict[str, float]:
        """Metrics by name, the same in all processes; holds the plan's objective, unless that is of training."""
        ...

    def model_state(self) -> dict[str, Tensor]: ...

    def state(self) -> dict[str, Any]:
        """Everything the next epoch depends on: tensors and plain values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    name: str
    """Begins the checkpoints' file names, such as `image-classification`."""
    epochs: int
    num_samples: int
    checkpoint_frequency: int | None
    """Keep the model of every so many epochs in `model/`."""
    early_stopping: EarlyStopping | None
    identity: str
    """Hyperparameters and data in one text: a checkpoint of another text belongs to another run."""
    objective: str = "accuracy"
    """The metric that chooses the best model."""
    mode: Literal["max", "min"] = "max"
    """Whether its largest or its smallest value is the best."""
    objective_of: Literal["train", "validation"] = "validation"
    """Where it is measured."""
    lines: Callable[..., EpochLog] = EpochLog
    """What is said of epochs, in the form of the original's algorithm."""

    def value(self, row: Mapping[str, float]) -> float:
        """The objective of an epoch, of whose metrics `row` holds the published names."""
        return row[f"{self.objective_of}:{self.objective}"]

    def score(self, row: Mapping[str, float]) -> float:
        """The same, turned such that larger is better: what early stopping and its checkpoints hold."""
        return self.value(row) if self.mode == "max" else -self.value(row)


@dataclass(frozen=True, slots=True)
class Best:
    """The model to export."""

    epoch: int
    metrics: dict[str, float]
    """Under their published names, such as `validation:accuracy`."""
    state: dict[str, Tensor]
    finished: bool
    """False after SIGTERM: the same job started again goes on."""


@dataclass(slots=True)
class _History:
    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    finished: bool = False

    def best_score(self, plan: Plan) -> float:
        return plan.score(self.epochs[self.best_epoch]) if self.best_epoch >= 0 else float("-inf")


def run(job: Job, learner: Learner, plan: Plan, bar: Progress | None, world: World = ALONE) -> Best:
    """Train to the end, or to SIGTERM, from the last checkpoint if there is one.

    A process killed at any point leaves the last whole checkpoint; the epochs after it are run again, alike. Of several
    processes the first one reads and writes files, and gives the others what they need.

    Raises:
        ClientError: the checkpoint directory belongs to another run, or is damaged.
    """
    history = _resume(job, learner, plan, world)
    epochs = plan.lines(bar, num_samples=plan.num_samples, epochs=plan.epochs, first_epoch=len(history.epochs))
    with _stop_on_sigterm(world) as raise_if_stopped:

        def batch_done(num_samples: int, accuracy: Callable[[], float]) -> None:
            epochs.batch(num_samples, accuracy)
            raise_if_stopped()

        try:
            while not history.finished:
                _one_epoch(job, learner, plan, history, epochs, batch_done, world)
                raise_if_stopped()
        except StopRequested:
            log.info("Stopped by SIGTERM; the same job started again resumes after epoch %d", len(history.epochs) - 1)
    if history.best_epoch < 0:  # stopped within the first epoch: better this model than none
        return Best(-1, {}, learner.model_state(), finished=False)
    best = world.from_first(checkpoints.load(_model_file(job, plan, history.best_epoch)) if world.is_first else None)
    assert best is not None
    metrics = {k: v for k, v in history.epochs[history.best_epoch].items() if ":" in k}
    return Best(history.best_epoch, metrics, best, history.finished)


def _one_epoch(
    job: Job,
    learner: Learner,
    plan: Plan,
    history: _History,
    epochs: EpochLog,
    batch_done: BatchDone,
    world: World,
) -> None:
    epoch = len(history.epochs)
    epochs.begin(epoch)
    trained = learner.train_epoch(epoch, batch_done)
    epochs.trained(trained)
    validated = learner.validate()
    epochs.validated(validated)
    row = {"epoch": epoch, "time_s": round(epochs.seconds, 3)}
    row |= {f"train:{k}": v for k, v in trained.items()} | {f"validation:{k}": v for k, v in validated.items()}
    outdated = history.best_epoch
    score = plan.score(row)
    improved = score > history.best_score(plan)
    history.epochs.append(row)
    history.best_epoch = epoch if improved else outdated
    stop = plan.early_stopping is not None and plan.early_stopping.observe(score, epoch + 1)
    if stop:
        log.info("Early stopping: no improvement in %d epochs", plan.early_stopping and plan.early_stopping.patience)
    history.finished = stop or epoch + 1 == plan.epochs
    if world.is_first:
        _save(job, learner, plan, history, outdated, epochs)
    world.meet()


def _save(job: Job, learner: Learner, plan: Plan, history: _History, outdated: int, epochs: EpochLog) -> None:
    epoch = len(history.epochs) - 1
    improved = history.best_epoch == epoch
    if improved:
        epochs.improved(plan.objective, plan.value(history.epochs[epoch]))
        _save_model(_model_file(job, plan, epoch), learner)
    else:
        epochs.not_improved()
    if plan.checkpoint_frequency and (epoch + 1) % plan.checkpoint_frequency == 0:
        _save_model(job.model / _file_name(plan, epoch), learner)
    _save_progress(job, learner, plan, history)
    if improved and outdated >= 0:  # only now: until the line above, a kill would have needed the old one
        _model_file(job, plan, outdated).unlink(missing_ok=True)


def _save_model(path: Path, learner: Learner) -> None:
    checkpoints.save(path, learner.model_state())
    log.info('Saved checkpoint to "%s"', path)


def _save_progress(job: Job, learner: Learner, plan: Plan, history: _History) -> None:
    stopping = plan.early_stopping
    state = {
        "identity": plan.identity,
        "learner": learner.state(),
        "history": history.epochs,
        "best_epoch": history.best_epoch,
        "finished": history.finished,
        "early_stopping": [stopping.best, stopping.epochs_without_improvement] if stopping else None,
    }
    checkpoints.save(job.checkpoints / "last.pt", state)
    _write_metrics(job, history)


def _write_metrics(job: Job, history: _History) -> None:
    # written anew each time: after a kill, an appended line could be there twice or in part
    lines = "".join(json.dumps(row) + "\n" for row in history.epochs)
    checkpoints.write_aside(job.output / "metrics.jsonl", lambda file: file.write(lines.encode()))


def _resume(job: Job, learner: Learner, plan: Plan, world: World) -> _History:
    file = job.checkpoints / "last.pt"
    state = world.from_first(checkpoints.load(file) if world.is_first and file.exists() else None)
    if state is None:
        return _History()
    if state.get("identity") != plan.identity:
        raise ClientError(
            f"{job.checkpoints} holds a run with other hyperparameters or other data; "
            "choose another output, or remove that directory to start afresh."
        )
    learner.load_state(state["learner"])
    if plan.early_stopping and state["early_stopping"]:
        plan.early_stopping.best, plan.early_stopping.epochs_without_improvement = state["early_stopping"]
    history = _History(state["history"], state["best_epoch"], state["finished"])
    if world.is_first:
        _write_metrics(job, history)
    log.info("Resumed from %s after epoch %d", file, len(history.epochs) - 1)
    return history


def _file_name(plan: Plan, epoch: int) -> str:
    return f"{plan.name}-{epoch + 1:04d}.pt"


def _model_file(job: Job, plan: Plan, epoch: int) -> Path:
    return job.checkpoints / _file_name(plan, epoch)


@contextmanager
def _stop_on_sigterm(world: World) -> Iterator[Callable[[], None]]:
    """Gives a function that raises `StopRequested` once SIGTERM has arrived: the signal never interrupts a write.

    All processes ask at the same places, and all stop at the same one, whichever the signal has reached.
    """
    arrived = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        arrived.set()

    def raise_if_arrived() -> None:
        if world.any(arrived.is_set()):
            raise StopRequested

    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread alone
        yield raise_if_arrived
        return
    former = signal.signal(signal.SIGTERM, note)
    try:
        yield raise_if_arrived
    finally:
        signal.signal(signal.SIGTERM, former)
