"""Series to a forecaster's inputs, and what clients may ask of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from formats.errors import InvalidBody
from formats.forecasting import (
    Configuration,
    Horizon,
    PathNoise,
    answers,
    filled,
    graph_inputs,
    path_noise,
    uniform_noise,
)
from formats.time_frequency import Frequency
from formats.timeseries import Series

HORIZON = Horizon(
    frequency=Frequency.parse("H"), history=10, context_length=4, prediction_length=2, cardinalities=(), num_dynamic=0,
    num_noise=2, likelihood="gaussian",
)  # fmt: skip
START = datetime(2024, 3, 1)


def series(target: list[float], **more: object) -> Series:
    return Series(START, np.array(target, float), **more)  # type: ignore[arg-type]


def test_gaps_take_what_was_known_before_and_zeros_at_the_beginning() -> None:
    nan = np.nan
    assert filled(np.array([nan, nan, 3, nan, nan, 5, nan])).tolist() == [0, 0, 3, 3, 3, 5, 5]
    assert filled(np.array([nan, nan])).tolist() == [0, 0]
    assert filled(np.empty(0)).tolist() == []


def test_noise_lies_between_its_ends_even_where_it_is_nearest_to_them() -> None:
    class Extreme:
        def integers(self, low: int, high: int, shape: tuple[int, ...], dtype: type) -> Any:
            return np.array([low, high - 1], dtype).reshape(shape)

    noise = uniform_noise((2,), Extreme())  # type: ignore[arg-type]
    assert 0 < noise[0] < noise[1] < 1


@pytest.mark.parametrize("num_samples", [1, 3, 100, 128, 300])
def test_each_number_of_a_paths_noise_is_spread_over_all_strata(num_samples: int) -> None:
    """Of as many equal parts as there are paths, up to 128 of them at once, each holds one, wherever they begin."""
    noise = path_noise(5, num_samples, 4, 3, np.random.default_rng(0))

    assert noise.shape == (5, num_samples, 4, 3)
    assert ((noise > 0) & (noise < 1)).all()
    for first in range(0, num_samples - num_samples % 128 or 1, 128):
        block = np.sort(noise[:, first : first + 128], axis=1)
        gaps = np.diff(block, axis=1, append=block[:, :1] + 1)
        assert gaps.max() < 2 / block.shape[1] + 1e-6


def test_a_paths_noise_is_even_and_knows_nothing_of_its_other_numbers() -> None:
    """One path of each of 4,000 series: Kolmogorov and Smirnov's distance of one number, and of the sum of two."""
    noise = path_noise(4000, 100, 2, 2, np.random.default_rng(0))[:, 17]

    assert stats.kstest(noise[:, 1, 0], "uniform").pvalue > 0.01
    for first, second in ((noise[:, 0, 0], noise[:, 0, 1]), (noise[:, 0, 0], noise[:, 1, 0])):
        assert stats.kstest(first + second, stats.triang(0.5, 0, 2).cdf).pvalue > 0.01
        assert abs(np.corrcoef(first, second)[0, 1]) < 0.05


def test_quantiles_of_such_paths_are_nearer_to_those_of_the_law() -> None:
    """A random walk of eight steps, 100 paths: variances of its quantiles over 2,000 series."""

    def variances(uniform: NDArray[np.float32]) -> list[float]:
        steps = np.sqrt(-2 * np.log(uniform[..., 0])) * np.cos(2 * np.pi * uniform[..., 1])
        ends = steps.sum(axis=2)
        return [float(np.quantile(ends, tau, axis=1).var()) for tau in (0.1, 0.5, 0.9)]

    random = np.random.default_rng(0)
    ours, plain = variances(path_noise(2000, 100, 8, 2, random)), variances(uniform_noise((2000, 100, 8, 2), random))
    assert [own < 0.8 * other for own, other in zip(ours, plain, strict=True)] == [True] * 3


@pytest.mark.parametrize("pieces", [[900], [1] * 20 + [880], [128, 172, 300, 300], [300, 0, 450, 150], [50] * 18])
def test_paths_that_are_drawn_in_pieces_are_those_that_are_drawn_at_once(pieces: list[int]) -> None:
    noise = PathNoise(300, 2, 2, np.random.default_rng(3))
    found = np.concatenate([noise.draw(piece) for piece in pieces])

    assert (found.reshape(3, 300, 2, 2) == path_noise(3, 300, 2, 2, np.random.default_rng(3))).all()


def test_a_seed_gives_a_series_the_same_paths_whatever_comes_behind_it() -> None:
    alone, beside = (path_noise(count, 130, 3, 2, np.random.default_rng(7)) for count in (1, 6))

    assert (alone[0] == beside[0]).all()
    assert not (beside[1] == beside[0]).any()


def test_series_of_unlike_lengths_end_at_the_same_place() -> None:
    given = graph_inputs([series([1, 2, np.nan]), series([]), series(list(range(20)))], HORIZON, Configuration())

    assert given["target"].shape == (3, 10)
    assert given["target"][0].tolist() == [0] * 7 + [1, 2, 2]
    assert given["observed"][0].tolist() == [0] * 7 + [1, 1, 0]
    assert not given["observed"][1].any()
    assert given["target"][2].tolist() == list(range(10, 20))
    assert given["noise"].shape == (3, 100, 2, 2)


def test_a_gap_that_began_before_what_is_kept_keeps_its_value() -> None:
    given = graph_inputs([series([7.0] + [np.nan] * 12)], HORIZON, Configuration())

    assert given["target"][0].tolist() == [7.0] * 10
    assert not given["observed"].any()


def test_features_are_those_of_context_and_forecast() -> None:
    dynamic = np.arange(7.0)[None]
    horizon = replace(HORIZON, num_dynamic=1)
    given = graph_inputs([series([1] * 5, dynamic_feat=dynamic)], horizon, Configuration())["features"][0]

    assert given.shape == (6, 6)
    hours = [each / 23 - 0.5 for each in (1, 2, 3, 4, 5, 6)]  # steps 1 to 6 of a series that began at midnight
    assert given[:, 0].tolist() == pytest.approx(hours)
    assert given[:, -1].tolist() == [1, 2, 3, 4, 5, 6]
    short = graph_inputs([series([1], dynamic_feat=np.array([[5.0, 6, 7]]))], horizon, Configuration())["features"]
    assert short[0, :, -1].tolist() == [0, 0, 0, 5, 6, 7]


@pytest.mark.parametrize(
    ("horizon", "given", "text"),
    [
        (HORIZON, series([1], cat=(1,)), r"instance 0: 'cat' is \[1\]; the model was trained without it"),
        (replace(HORIZON, cardinalities=(3,)), series([1]), "'cat' is missing; expected 1 integers"),
        (replace(HORIZON, cardinalities=(3,)), series([1], cat=(3,)), r"'cat'\[0\] is 3; expected 0 to 2"),
        (HORIZON, series([1], dynamic_feat=np.ones((1, 3))), "'dynamic_feat' has 1 rows; the model was trained with 0"),
        (
            replace(HORIZON, num_dynamic=1), series([1, 2], dynamic_feat=np.ones((1, 3))),
            "has 3 values a row; expected 4, the 2 of 'target' and 2 of the forecast",
        ),
        (replace(HORIZON, likelihood="beta"), series([0.5, 1.5]), r"is 1.5.* expected a value from 0 to 1"),
        (replace(HORIZON, likelihood="negative-binomial"), series([-1]), "expected a value of 0 or more"),
    ],
)  # fmt: skip
def test_series_that_do_not_fit_the_model_are_told(horizon: Horizon, given: Series, text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        graph_inputs([given], horizon, Configuration())


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "'configuration' is \\[\\], expected an object"),
        ({"num_samples": 0}, "num_samples is 0, expected an integer from 1"),
        ({"num_samples": True}, "num_samples is True"),
        ({"num_samples": 10**6}, "to 10000"),
        ({"output_types": ["median"]}, "expected some of mean, quantiles, samples"),
        ({"output_types": []}, "output_types"),
        ({"quantiles": ["x"]}, "quantiles holds 'x'"),
        ({"quantiles": ["0"]}, "quantiles holds '0'"),
        ({"quantiles": "0.5"}, "quantiles is '0.5'"),
        ({"samples": 3}, "'samples' is unknown"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_what_a_configuration_may_hold(given: object, text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        Configuration.of(given)


def test_what_a_configuration_leaves_out_is_as_in_the_default_and_quantiles_keep_their_spelling() -> None:
    default = Configuration.of({"num_samples": 7, "output_types": ["samples"]})

    assert Configuration.of({"quantiles": ["0.50", 0.9]}, default) == Configuration(7, ("samples",), ("0.50", "0.9"))
    assert Configuration.of(None, default) is default
    assert Configuration().quantiles[0] == "0.1"


def test_answers_hold_what_was_asked_for_and_nothing_else() -> None:
    samples = np.array([[[1, 2], [3, 4], [5, 9]]], np.float32)
    wanted = Configuration(3, ("quantiles", "mean"), ("0.5",))

    (answer,) = answers(samples, wanted)
    assert set(answer) == {"quantiles", "mean"}
    assert answer["mean"].tolist() == [3, 5]
    assert answer["quantiles"]["0.5"].tolist() == [3, 4]
    (paths,) = answers(samples, replace(wanted, output_types=("samples",)))
    assert paths["samples"].tolist() == samples[0].tolist()
