"""Calibration and scores, on data whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from formats.time_frequency import Frequency
from formats.timeseries import Series
from tests.trainers.deepar.conftest import START
from trainers.deepar.data import SeriesSet, tails
from trainers.deepar.evaluation import scores
from trainers.deepar.forecasts import Tails, calibrate
from trainers.deepar.model import Network, Sizes


def test_calibration_finds_the_deviation_that_is_in_the_data() -> None:
    """White noise of deviation 0.1 about 1, and a network that forecasts 0.05 whatever it reads."""
    frequency = Frequency.parse("H")
    sizes = Sizes(
        lags=(1, 2), num_features=len(frequency.feature_names), cardinalities=(), embedding_dimension=1, num_cells=2,
        num_layers=1, dropout_rate=0.0, likelihood="gaussian", context_length=12, prediction_length=6,
    )  # fmt: skip
    network = Network(sizes)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.centred.zero_()
        network.constant.copy_(torch.tensor([1.0, math.log(math.expm1(0.05))]))
    random = np.random.default_rng(0)
    made = [Series(START, 1 + 0.1 * random.normal(size=60)) for _ in range(100)]
    series = SeriesSet.of(made, use_cat=False, num_dynamic=0)
    windows = Tails.of(series.lengths, tails(series.lengths, 12, 6), 6)

    calibrate(network.eval(), frequency, series, windows, 0)

    assert len(windows.numbers) == 100
    # a hundred windows go 100 / 110 of the way to 2; six hundred values tell coverage to 1.6 %, the deviation to 5 %
    assert float(network.spread) == pytest.approx(2 ** (100 / 110), rel=0.12)


def test_scores_are_those_of_their_definitions() -> None:
    """Worked by hand: one step, samples 1 to 5, target 5; a second target is missing."""
    samples = np.stack([[np.arange(1.0, 6)] * 2], axis=0)[0].T[None].astype(np.float32)
    found = scores(samples, np.array([[5.0, np.nan]]), (0.5, 0.75))

    assert found.rmse == pytest.approx(2.0)
    assert found.weighted_quantile_loss == {0.5: pytest.approx(2 * 0.5 * 2 / 5), 0.75: pytest.approx(2 * 0.75 * 1 / 5)}
    assert found.coverage_80 == 0.0
