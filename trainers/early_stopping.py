"""When to stop: validation no longer improves (image classification contract, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["EarlyStopping", "StoppingSettings", "early_stopping"]


@dataclass(slots=True, kw_only=True)
class EarlyStopping:
    min_epochs: int
    """Epochs that run in any case."""
    patience: int
    """Epochs without improvement before the stop."""
    tolerance: float
    """An epoch improves when (new - best) / best is at least this; so with 0, a repeated best still counts."""
    best: float | None = None
    epochs_without_improvement: int = 0

    def observe(self, value: float, num_epochs_done: int) -> bool:
        """Take in one epoch's score, larger is better, and say whether to stop."""
        if self._improves(value):
            self.epochs_without_improvement = 0
        else:
            self.epochs_without_improvement += 1
        self.best = value if self.best is None else max(self.best, value)
        return num_epochs_done >= self.min_epochs and self.epochs_without_improvement >= self.patience

    def _improves(self, value: float) -> bool:
        if self.best is None:
            return True
        if self.best <= 0:  # the ratio has no meaning yet
            return value > self.best
        return (value - self.best) / self.best >= self.tolerance


class StoppingSettings(Protocol):
    """What an algorithm's hyperparameters hold, where it names them as the original's vision algorithms do."""

    @property
    def early_stopping(self) -> bool: ...
    @property
    def early_stopping_min_epochs(self) -> int: ...
    @property
    def early_stopping_patience(self) -> int: ...
    @property
    def early_stopping_tolerance(self) -> float: ...


def early_stopping(wanted: StoppingSettings) -> EarlyStopping | None:
    """As the hyperparameters of that name say."""
    if not wanted.early_stopping:
        return None
    return EarlyStopping(
        min_epochs=wanted.early_stopping_min_epochs,
        patience=wanted.early_stopping_patience,
        tolerance=wanted.early_stopping_tolerance,
    )
