"""Learning rates over a run, as plain functions of how many epochs are done (fractions count)."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["cosine", "one_cycle", "poly", "step"]


def step(base: float, epochs_done: float, *, steps: Sequence[int], factor: float) -> float:
    """The rate is multiplied by `factor` when each number of epochs in `steps` is done."""
    return base * float(factor) ** sum(epoch <= epochs_done for epoch in steps)


def cosine(base: float, epochs_done: float, epochs: int) -> float:
    """From `base` to 0 along half a cosine (Loshchilov and Hutter 2016, arXiv:1608.03983, without restarts)."""
    return base * 0.5 * (1 + math.cos(math.pi * min(epochs_done / epochs, 1)))


def one_cycle(base: float, epochs_done: float, epochs: int, *, rising: float = 0.2) -> float:
    """Up to `base` in the first `rising` of the run, then down to 0, both straight (Smith 2017, arXiv:1708.07120)."""
    share = min(epochs_done / epochs, 1)
    return base * (share / rising if share < rising else (1 - share) / (1 - rising))


def poly(base: float, epochs_done: float, epochs: int, *, power: float = 0.9) -> float:
    """Down to 0 as a power of what is left of the run (Chen et al. 2016, arXiv:1606.00915)."""
    return float(base * (1 - min(epochs_done / epochs, 1)) ** power)
