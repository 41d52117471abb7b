"""What DeepAR's training and its serving do alike to series: fill gaps, draw noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["filled", "uniform_noise"]

_BITS = 23


def filled(target: NDArray[np.float64]) -> NDArray[np.float32]:
    """Gaps (NaN) of (T,) take the value before them; those at the beginning, 0."""
    known = ~np.isnan(target)
    if known.all():
        return target.astype(np.float32)
    last = np.maximum.accumulate(np.where(known, np.arange(len(target)), -1))
    return np.where(last >= 0, np.nan_to_num(target)[last], 0.0).astype(np.float32)


def uniform_noise(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float32]:
    """Evenly from (0, 1), both ends left out, so that logarithms are finite; float32 holds each of the values exactly."""
    numbers = random.integers(0, 1 << _BITS, shape, dtype=np.uint32)
    noise: NDArray[np.float32] = (numbers.astype(np.float32) + np.float32(0.5)) / np.float32(1 << _BITS)
    return noise
