"""Windows, visits and what is withheld."""

from __future__ import annotations

import numpy as np
import pytest

from formats.time_frequency import Frequency
from formats.timeseries import Series
from tests.trainers.deepar.conftest import START, VALUES
from trainers.deepar.data import Fields, SeriesSet, cut, passes_of, tails, visits
from trainers.deepar.forecasts import Tails
from trainers.deepar.hyperparameters import Hyperparameters
from trainers.hyperparameter_schema import parse


def test_windows_are_cut_where_they_should_be() -> None:
    wanted = parse(Hyperparameters, VALUES)
    series = [Series(START, np.arange(1.0, 11)), Series(START, np.array([5.0, np.nan, 7]))]
    made = SeriesSet.of(series, use_cat=False, num_dynamic=0)
    found = cut(made, Frequency.parse("H"), np.array([0, 1]), np.array([8, 1]), longest_lag=3, context=3, prediction=2)

    assert found.target[0].tolist() == [3, 4, 5, 6, 7, 8, 9, 10]
    assert found.target[1].tolist() == [0, 0, 0, 0, 0, 5, 5, 7]
    assert found.observed.tolist() == [[1] * 5, [0, 0, 1, 0, 1]]
    assert Fields.of(series, wanted, "train") == Fields((), 0)


def test_an_epoch_visits_about_ten_batches_of_a_small_set_and_each_series_of_a_large_one_once() -> None:
    """The original's log: 14 series in batches of 64 are 46 passes with 0.9938, 200 in 32 two with 0.8."""
    assert list(passes_of(14, 64)) == pytest.approx([46, 0.9938], abs=1e-4)
    assert list(passes_of(200, 32)) == pytest.approx([2, 0.8])
    lengths = np.full(1000, 30)
    numbers, begins = visits(lengths, 8, 12, 6, np.random.default_rng(0))
    assert sorted(numbers.tolist()) == list(range(1000))
    assert begins.max() == 24
    assert (begins < 12).mean() == pytest.approx(0.05, abs=0.03)


def test_tails_are_about_a_hundred_windows_of_an_eighth_of_a_series_at_most() -> None:
    assert tails(np.full(200, 352), 72, 48).tolist() == [1] * 200
    assert tails(np.full(8, 6071), 30, 30).tolist() == [13] * 8
    assert tails(np.array([800, 40, 33]), 10, 6).tolist() == [16, 1, 0]
    assert Tails.of(np.array([20, 9, 12]), np.array([2, 0, 1]), 3)[1].tolist() == [17, 14, 9]
