"""DeepAR's calendar against dates that can be looked up, and its lags against the contract's rules."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pytest

from formats.time_frequency import LONGEST_LAG, Frequency, seconds


@pytest.mark.parametrize(
    ("text", "told"),
    [("H", "H"), ("2h", "2H"), (" 15min ", "15min"), ("5T", "5min"), ("d", "D"), ("W", "W"), ("M", "M"), ("3MS", "3M")],
)
def test_frequencies_are_read_however_pandas_spells_them(text: str, told: str) -> None:
    assert str(Frequency.parse(text)) == told


@pytest.mark.parametrize("text", ["", "X", "0H", "000H", "-1D", "1.5H", "m", "H2", "9999999D"])
def test_what_is_no_frequency_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="is no frequency; expected a multiple of M, W, D, H or min"):
        Frequency.parse(text)


def test_lags_of_hours_are_the_last_seven_and_about_the_same_hour_of_days_and_weeks_before() -> None:
    lags = Frequency.parse("H").lags()

    assert lags[:10] == [1, 2, 3, 4, 5, 6, 7, 23, 24, 25]
    assert {167, 168, 169, 336, 504, 672, 719, 720, 721} <= set(lags)
    assert lags[-1] <= LONGEST_LAG


def test_lags_of_other_frequencies() -> None:
    assert {58, 60, 62, 120, 180} <= set(Frequency.parse("min").lags())
    assert {11, 12, 13, 83, 84, 85} <= set(Frequency.parse("2H").lags())
    assert {13, 14, 15, 28, 30, 364} <= set(Frequency.parse("D").lags())
    assert {8, 12, 51, 52, 53, 156} <= set(Frequency.parse("W").lags())
    assert Frequency.parse("M").lags() == [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 23, 24, 25, 35, 36, 37]
    for text in ("min", "7min", "H", "5H", "D", "3D", "W", "M", "12M"):
        lags = Frequency.parse(text).lags()
        assert lags == sorted(set(lags))
        assert lags[0] == 1


def test_features_say_where_a_time_stands() -> None:
    """2024-02-29 was a Thursday, the 60th day of the year."""
    start = np.array([seconds(datetime(2024, 2, 29, 23, 59))])
    frequency = Frequency.parse("min")
    found = dict(zip(frequency.feature_names, frequency.features(start, np.array([[0, 1]]))[0].T, strict=True))

    assert found["minute_of_hour"].tolist() == pytest.approx([0.5, -0.5])
    assert found["hour_of_day"].tolist() == pytest.approx([0.5, -0.5])
    assert found["day_of_week"].tolist() == pytest.approx([3 / 6 - 0.5, 4 / 6 - 0.5])
    assert found["day_of_month"].tolist() == pytest.approx([28 / 30 - 0.5, -0.5])
    assert found["day_of_year"].tolist() == pytest.approx([59 / 365 - 0.5, 60 / 365 - 0.5])
    assert found["age"].tolist() == pytest.approx([np.log10(2), np.log10(3)])


def test_months_step_over_years_and_features_stay_in_range() -> None:
    frequency = Frequency.parse("2M")
    times = frequency.times(np.array([seconds(datetime(2023, 11, 30))]), np.array([[0, 1, 2, -6]]))
    assert times.astype("M8[M]").astype(str)[0].tolist() == ["2023-11", "2024-01", "2024-03", "2022-11"]

    random = np.random.default_rng(0)
    starts = np.array([np.datetime64(int(s), "s") for s in random.integers(-(10**10), 10**10, 200)])
    for text in ("min", "H", "D", "W", "M"):
        values = Frequency.parse(text).features(starts, random.integers(-1000, 1000, (200, 5)))
        assert (np.abs(values[..., :-1]) <= 0.5 + 1e-6).all()
        assert np.isfinite(values).all()
