"""How good forecasts are: the scores of the test channel (contract, section 4)."""

# N windows, S samples, P steps, Q quantiles

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Scores", "quantiles_of", "scores", "scores_of"]


@dataclass(frozen=True, slots=True)
class Scores:
    rmse: float
    """Of the mean forecast."""
    weighted_quantile_loss: dict[float, float]
    """By quantile, relative to the sum of absolute targets."""
    mean_absolute_quantile_loss: float
    """Mean over quantiles of the sums."""
    coverage_80: float
    """Share of the targets between the 10 % and the 90 % quantile."""

    @property
    def mean_weighted_quantile_loss(self) -> float:
        return float(np.mean(list(self.weighted_quantile_loss.values())))


def quantiles_of(samples_NSP: NDArray[np.float32], quantiles: tuple[float, ...]) -> NDArray[np.float32]:
    """Empirical quantiles: (Q, N, P)."""
    found: NDArray[np.float32] = np.quantile(samples_NSP, quantiles, axis=1).astype(np.float32)
    return found


def scores(samples_NSP: NDArray[np.float32], target_NP: NDArray[np.float64], quantiles: tuple[float, ...]) -> Scores:
    """Of paths beside what came true; see `scores_of`."""
    mean_NP = samples_NSP.mean(axis=1, dtype=np.float64)
    return scores_of(mean_NP, quantiles_of(samples_NSP, (*quantiles, 0.1, 0.9)), target_NP, quantiles)


def scores_of(
    mean_NP: NDArray[np.float64],
    every_QNP: NDArray[np.float32],
    target_NP: NDArray[np.float64],
    quantiles: tuple[float, ...],
) -> Scores:
    """Of forecasts' means and quantiles, after which come those at 0.1 and 0.9; targets that are NaN do not count.

    Raises:
        ValueError: no target is known.
    """
    known_NP = ~np.isnan(target_NP)
    if not known_NP.any():
        raise ValueError("no target is known")
    target = target_NP[known_NP]
    error = mean_NP[known_NP] - target
    sums = {}
    for tau, forecast_NP in zip(quantiles, every_QNP, strict=False):
        short = target - forecast_NP[known_NP]
        sums[tau] = float(2 * np.maximum(tau * short, (tau - 1) * short).sum())
    whole = float(np.abs(target).sum())
    inside = (target >= every_QNP[-2][known_NP]) & (target <= every_QNP[-1][known_NP])
    return Scores(
        rmse=float(np.sqrt(np.mean(error**2))),
        weighted_quantile_loss={tau: total / whole if whole else float("nan") for tau, total in sums.items()},
        mean_absolute_quantile_loss=float(np.mean(list(sums.values()))),
        coverage_80=float(inside.mean()),
    )
