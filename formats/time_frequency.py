"""DeepAR's calendar: what `time_freq` means, which lags belong to it, and where a time stands in hour, week and year.

Parsed here and not by pandas, whose spellings of the same frequencies have changed (DeepAR contract, sections 3.2, 9).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LONGEST_LAG", "Frequency", "seconds"]

LONGEST_LAG = 1200
"""Steps; seasons that reach further back are left out."""
_ALWAYS = range(1, 8)
_UNITS = {"min": "min", "t": "min", "h": "H", "d": "D", "w": "W", "m": "M"}
_SECONDS = {"min": 60, "H": 3600, "D": 86_400, "W": 604_800}
_FEATURES = {
    "min": ("minute_of_hour", "hour_of_day", "day_of_week", "day_of_month", "day_of_year"),
    "H": ("hour_of_day", "day_of_week", "day_of_month", "day_of_year"),
    "D": ("day_of_week", "day_of_month", "day_of_year"),
    "W": ("day_of_month", "week_of_year"),
    "M": ("month_of_year",),
}


@dataclass(frozen=True, slots=True)
class Frequency:
    multiple: int
    unit: str
    """`min`, `H`, `D`, `W` or `M`."""

    @classmethod
    def parse(cls, text: str) -> Frequency:
        """Of `2H`, `D`, `15min`.

        Raises:
            ValueError: not of that form; says what is.
        """
        found = re.fullmatch(r"\s*(\d*)\s*([A-Za-z]+)\s*", text)
        # M is a month and never a minute
        unit = None if found is None else "M" if found[2] in ("M", "ME", "MS") else _UNITS.get(found[2].lower())
        if found is None or unit is None or len(found[1]) > 6 or int(found[1] or 1) == 0 or found[2] == "m":
            raise ValueError(f"'{text}' is no frequency; expected a multiple of M, W, D, H or min, such as 2H or D")
        return cls(int(found[1] or 1), unit)

    def __str__(self) -> str:
        return f"{self.multiple if self.multiple > 1 else ''}{self.unit}"

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Of `features`, in their order."""
        return (*_FEATURES[self.unit], "age")

    def lags(self) -> list[int]:
        """How many steps back the network looks, ascending: the last seven, and about the same time of earlier seasons.

        The rules are those that GluonTS made public (contract, section 3.2).
        """
        return sorted({lag for lag in (*_ALWAYS, *self._seasons()) if 0 < lag <= LONGEST_LAG})

    def _seasons(self) -> Iterable[int]:
        steps, found = float(self.multiple), list[int]()
        if self.unit == "min":
            found += _around((k * 60 // steps for k in (1, 2, 3)), 2)
            steps /= 60
        if self.unit in ("min", "H"):
            found += _around((k * 24 // steps for k in range(1, 8)), 1)
            steps /= 24
        if self.unit in ("min", "H", "D"):
            found += _around((k * 7 // steps for k in range(1, 5)), 1)
            found += _around([30 // steps], 1)
            steps /= 7
        if self.unit in ("min", "H", "D", "W"):
            found += _around((k * 52 // steps for k in (1, 2, 3)), 1)
            found += _around((weeks // steps for weeks in (4, 8, 12)), 0)
        if self.unit == "M":
            found += _around((k * 12 // steps for k in (1, 2, 3)), 1)
        return [lag for lag in found if lag >= len(_ALWAYS) + 1]

    def times(self, start: NDArray[np.datetime64], steps: NDArray[np.int64]) -> NDArray[np.datetime64]:
        """The times so many steps behind each start, in seconds; of months, their first days.

        Args:
            start: (B,) datetime64[s].
            steps: (B, T).
        """
        if self.unit == "M":
            months = start.astype("M8[M]")[:, None] + (steps * self.multiple).astype("m8[M]")
            firsts: NDArray[np.datetime64] = months.astype("M8[s]")
            return firsts
        moved: NDArray[np.datetime64] = start[:, None] + (steps * (self.multiple * _SECONDS[self.unit])).astype("m8[s]")
        return moved

    def features(self, start: NDArray[np.datetime64], steps: NDArray[np.int64]) -> NDArray[np.float32]:
        """Where each time stands in its hour, day, week, month and year, -0.5 to 0.5, and the age: log10(2 + steps).

        Args:
            start: (B,) datetime64[s], the time of step 0.
            steps: (B, T).

        Returns:
            (B, T, F), F of `feature_names`.
        """
        times = self.times(start, steps)
        columns = [_PLACES[name](times) - 0.5 for name in _FEATURES[self.unit]]
        age = np.log10(2.0 + np.maximum(steps, 0))
        return np.stack([*columns, age], axis=-1).astype(np.float32)


def seconds(start: datetime) -> np.datetime64:
    """A start as `Frequency.times` takes it."""
    return np.datetime64(start.replace(microsecond=0), "s")


def _around(lags: Iterable[float], reach: int) -> list[int]:
    return [int(lag) + shift for lag in lags for shift in range(-reach, reach + 1)]


Times = NDArray[np.datetime64]


def _since(times: Times, unit: str) -> NDArray[np.int64]:
    """Days since the month or year began."""
    days: NDArray[Any] = times.astype("M8[D]")
    passed: NDArray[np.int64] = (days - times.astype(f"M8[{unit}]").astype("M8[D]")).astype(np.int64)
    return passed


def _day_number(times: Times) -> NDArray[np.int64]:
    number: NDArray[np.int64] = times.astype("M8[D]").astype(np.int64)
    return number


_PLACES: dict[str, Callable[[Times], NDArray[Any]]] = {
    "minute_of_hour": lambda t: t.astype("M8[m]").astype(np.int64) % 60 / 59,
    "hour_of_day": lambda t: t.astype("M8[h]").astype(np.int64) % 24 / 23,
    "day_of_week": lambda t: (_day_number(t) + 3) % 7 / 6,  # 1970 began on a Thursday
    "day_of_month": lambda t: _since(t, "M") / 30,
    "day_of_year": lambda t: _since(t, "Y") / 365,
    "week_of_year": lambda t: _since(t, "Y") // 7 / 52,
    "month_of_year": lambda t: t.astype("M8[M]").astype(np.int64) % 12 / 11,
}
