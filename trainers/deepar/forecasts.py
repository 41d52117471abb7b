"""Forecasts while training: of what was withheld, to calibrate and to score."""

# N windows, S samples, P steps

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from formats.forecasting import path_noise
from formats.time_frequency import Frequency
from formats.timeseries import Series
from trainers.deepar import data
from trainers.deepar.data import SeriesSet, Windows
from trainers.deepar.evaluation import Scores, quantiles_of, scores, scores_of
from trainers.deepar.hyperparameters import Hyperparameters
from trainers.deepar.model import Network, Sampler
from trainers.deepar.threads import one_thread_each

__all__ = ["Tails", "Withheld", "calibrate", "evaluate", "forecast", "tensors_of"]

_ROWS_AT_ONCE = 20_000
_ROWS_OF_A_CPU = 3200
"""Whose gates fit into a core's cache: a third faster."""
_NORMAL = NormalDist()
_CALIBRATIONS = 3
_SAMPLES = 100
_NARROWEST, _WIDEST = 0.5, 3.0
_MOST_TAILS = 128
_WINDOWS_OF_DOUBT = 10


def tensors_of(windows: Windows, device: torch.device) -> tuple[Tensor, ...]:
    """Without the categories where there are none."""
    parts = windows if windows.category.shape[1] else windows[:3]
    return tuple(torch.from_numpy(part).to(device, non_blocking=True) for part in parts)


class Tails(NamedTuple):
    """The windows at the ends of the training series that are not trained on."""

    numbers: NDArray[np.int64]
    """(N,) of the series."""
    begins: NDArray[np.int64]
    """(N,) where their forecasts begin."""

    @classmethod
    def of(cls, lengths: NDArray[np.int64], withheld: NDArray[np.int64], prediction: int) -> Tails:
        numbers = np.repeat(np.arange(len(lengths)), withheld)
        back = np.concatenate([np.arange(1, count + 1) for count in withheld.tolist()])
        chosen = np.arange(len(numbers))
        if len(numbers) > _MOST_TAILS:  # evenly over the series
            chosen = np.linspace(0, len(numbers) - 1, _MOST_TAILS).astype(np.int64)
        numbers, back = numbers[chosen], back[chosen].astype(np.int64)
        return cls(numbers, lengths[numbers] - back * prediction)

    def values_of(self, series: SeriesSet, prediction: int) -> NDArray[np.float64]:
        """(N, P), what came true; NaN where it is not known."""
        places = (series.offsets[self.numbers] + self.begins)[:, None] + np.arange(prediction)
        return np.where(series.observed[places], series.target[places].astype(np.float64), np.nan)


def forecast(
    network: Network, frequency: Frequency, series: SeriesSet, begins: NDArray[np.int64], num_samples: int, seed: int,
    numbers: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:  # fmt: skip
    """Paths from step `begins[i]` of series `numbers[i]`, by default i, from what is known before it: (N, S, P)."""
    return np.concatenate(list(_forecasts(network, frequency, series, begins, num_samples, seed, numbers)))


def _forecasts(
    network: Network, frequency: Frequency, series: SeriesSet, begins: NDArray[np.int64], num_samples: int, seed: int,
    numbers: NDArray[np.int64] | None = None,
) -> Iterator[NDArray[np.float32]]:  # fmt: skip
    """Those of `forecast` in parts of the first axis, for all paths of a large set are many times its size."""
    sizes, device = network.sizes, network.default_scale.device
    on_cpu = device.type == "cpu"
    sampler = Sampler(network).eval().to(device)
    random = np.random.default_rng(seed)
    size = max(1, (_ROWS_OF_A_CPU if on_cpu else _ROWS_AT_ONCE) // num_samples)

    @torch.inference_mode()
    def sample(windows: Windows, noise: NDArray[np.float32]) -> NDArray[np.float32]:
        target, observed, features, *category = tensors_of(windows, device)
        known = torch.zeros_like(target)
        known[:, sizes.lags[-1] :] = observed
        given = (each[:, : sizes.history] for each in (target, known))
        samples: Tensor = sampler(*given, features, torch.from_numpy(noise).to(device), *category)
        return samples.cpu().numpy()

    with one_thread_each() as num_threads, ThreadPoolExecutor(num_threads if on_cpu else 1) as pool:
        waiting: deque[Future[NDArray[np.float32]]] = deque()
        for some, begin in data.batches(np.arange(len(series)) if numbers is None else numbers, begins, size):
            windows = data.cut(
                series, frequency, some, begin, longest_lag=sizes.lags[-1], context=sizes.context_length,
                prediction=sizes.prediction_length,
            )  # fmt: skip
            shape = (len(some), num_samples, sizes.prediction_length, network.likelihood.num_noise)
            waiting.append(pool.submit(sample, windows, path_noise(*shape, random)))
            if len(waiting) > num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def calibrate(network: Network, frequency: Frequency, series: SeriesSet, tails: Tails, seed: int) -> None:
    """Set the network's spread: with it, 80 % intervals of forecasts of withheld tails hold 80 % of the values.

    One-step deviations are learned from windows that are trained on, and know nothing of too close a fit, nor of what
    the errors of a path add up to. The search takes coverage for that of a normal distribution; few windows move the
    spread little.
    """
    known_NP = tails.values_of(series, network.sizes.prediction_length)
    spread = 1.0
    if network.likelihood.num_parameters > 1 and not np.isnan(known_NP).all():
        for _ in range(_CALIBRATIONS):
            network.spread.fill_(spread)
            samples = forecast(network, frequency, series, tails.begins, _SAMPLES, seed, tails.numbers)
            inside = scores(samples, known_NP, (0.5,)).coverage_80
            width = _NORMAL.inv_cdf(0.5 + min(max(inside, 0.2), 0.98) / 2)
            spread = min(max(spread * _NORMAL.inv_cdf(0.9) / width, _NARROWEST), _WIDEST)
    spread **= len(tails.numbers) / (len(tails.numbers) + _WINDOWS_OF_DOUBT)
    network.spread.fill_(spread)


class Withheld(NamedTuple):
    """Series whose last steps are forecast and scored."""

    series: SeriesSet
    begins: NDArray[np.int64]
    """(N,) of the forecasts."""
    target: NDArray[np.float64]
    """(N, P), what came true; NaN where it is not known."""

    @classmethod
    def of(cls, series: list[Series], packed: SeriesSet, prediction: int) -> Withheld:
        """Args:
        series: as they were read.
        packed: the same.
        prediction: steps.
        """
        begins = np.maximum(packed.lengths - prediction, 0)
        target = np.full((len(series), prediction), np.nan)
        for row, each, begin in zip(target, series, begins.tolist(), strict=True):
            row[: len(each.target) - begin] = each.target[begin:]
        return cls(packed, begins, target)


def evaluate(network: Network, frequency: Frequency, test: Withheld, wanted: Hyperparameters) -> Scores:
    """Forecasts of the last steps of each test series, which are withheld, beside what they are."""
    network.eval()
    means, quantiles = [], []
    for samples in _forecasts(network, frequency, test.series, test.begins, wanted.num_eval_samples, wanted.seed):
        means.append(samples.mean(axis=1, dtype=np.float64))
        quantiles.append(quantiles_of(samples, (*wanted.test_quantiles, 0.1, 0.9)))
    return scores_of(np.concatenate(means), np.concatenate(quantiles, axis=1), test.target, wanted.test_quantiles)
