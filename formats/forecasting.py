"""What DeepAR's training, export and serving do alike: series to the graph's inputs, paths to answers."""

# N series, S samples, P steps, W noise, H history, C context

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from formats.errors import InvalidBody
from formats.time_frequency import Frequency, seconds
from formats.timeseries import Series

__all__ = [
    "OUTPUT_TYPES",
    "Configuration",
    "Horizon",
    "PathNoise",
    "answers",
    "check_support",
    "filled",
    "graph_inputs",
    "path_noise",
    "uniform_noise",
]

OUTPUT_TYPES = ("mean", "quantiles", "samples")
_BITS = 23
_STRATA = 128
_MOST_SAMPLES = 10_000
_LARGEST_BOUND = float(np.finfo(np.float32).max)
_SUPPORT = {"beta": (0.0, 1.0), "negative-binomial": (0.0, np.inf)}


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a client wants of each series (contract, section 6); the defaults are those of batch transform."""

    num_samples: int = 100
    output_types: tuple[str, ...] = ("mean", "quantiles")
    quantiles: tuple[str, ...] = ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9")
    """As they were sent: they are the answer's keys."""
    seed: int | None = None
    """Not in the original, nor what follows: the same seed gives the same paths."""
    minimum: float | None = None
    """Paths are clipped there; sales are not negative, whatever the likelihood."""
    maximum: float | None = None
    forward_fields: tuple[str, ...] = ()
    """Fields of each series that its answer repeats, such as an id."""

    @classmethod
    def of(cls, given: object, default: Configuration | None = None, where: str = "'configuration'") -> Configuration:
        """Of a JSON object; what it leaves out is as in `default`.

        Raises:
            InvalidBody: names the field, its value, and what was expected.
        """
        base = default or cls()
        if given is None:
            return base
        if not isinstance(given, Mapping):
            raise InvalidBody(f"{where} is {given!r:.80}, expected an object")
        unknown = sorted(set(given) - _SETTINGS)
        if unknown:
            raise InvalidBody(f"{where}: '{unknown[0]}' is unknown; expected some of {', '.join(sorted(_SETTINGS))}")
        found = cls(
            num_samples=_integer(given.get("num_samples", base.num_samples), f"{where}.num_samples", 1, _MOST_SAMPLES),
            output_types=_output_types(given.get("output_types", base.output_types), where),
            quantiles=_quantiles(given.get("quantiles", base.quantiles), where),
            seed=base.seed if given.get("seed") is None else _integer(given["seed"], f"{where}.seed", 0, 2**63 - 1),
            minimum=_bound(given.get("minimum", base.minimum), f"{where}.minimum"),
            maximum=_bound(given.get("maximum", base.maximum), f"{where}.maximum"),
            forward_fields=_forward_fields(given.get("forward_fields", base.forward_fields), where),
        )
        if found.minimum is not None and found.maximum is not None and found.minimum > found.maximum:
            raise InvalidBody(f"{where}.minimum is {found.minimum:g}, above {where}.maximum, {found.maximum:g}")
        return found


_SETTINGS = frozenset(each.name for each in fields(Configuration))


@dataclass(frozen=True, slots=True, kw_only=True)
class Horizon:
    """What a model needs to know of a series before it can forecast."""

    frequency: Frequency
    history: int
    """Steps before the forecast that count."""
    context_length: int
    prediction_length: int
    cardinalities: tuple[int, ...]
    num_dynamic: int
    num_noise: int
    likelihood: str


def graph_inputs(series: Sequence[Series], horizon: Horizon, wanted: Configuration) -> dict[str, NDArray[Any]]:
    """`target`, `observed` (N, H), `features`, `noise` and, of models with categories, `category`.

    Raises:
        InvalidBody: a series is not such as the model was trained with; names its number and field.
    """
    for number, each in enumerate(series):
        _check(each, horizon, f"instance {number}")
    longest = max(1, min(horizon.history, max(len(each.target) for each in series)))
    target, observed = (np.zeros((len(series), longest), np.float32) for _ in range(2))
    for row, each in enumerate(series):
        kept = each.target[-longest:]
        if len(kept):
            # a gap at the beginning of what is kept takes the value that was before it
            target[row, -len(kept) :] = filled(each.target)[-longest:]
            observed[row, -len(kept) :] = ~np.isnan(kept)
    inputs: dict[str, NDArray[Any]] = {
        "target": target,
        "observed": observed,
        "features": _features(series, horizon),
        "noise": _noise(len(series), horizon, wanted),
    }
    if horizon.cardinalities:
        inputs["category"] = np.array([each.cat for each in series], np.int64)
    return inputs


def answers(samples_NSP: NDArray[np.float32], wanted: Configuration) -> list[dict[str, Any]]:
    """One object of plain arrays for each series; keys only of what was asked for."""
    found: list[dict[str, Any]] = [{} for _ in samples_NSP]
    if (wanted.minimum, wanted.maximum) != (None, None):
        samples_NSP = np.clip(samples_NSP, wanted.minimum, wanted.maximum)
    if "mean" in wanted.output_types:
        for answer, mean in zip(found, samples_NSP.mean(axis=1), strict=True):
            answer["mean"] = mean
    if "quantiles" in wanted.output_types:
        numbers = [float(text) for text in wanted.quantiles]
        values_QNP = np.quantile(samples_NSP, numbers, axis=1).astype(np.float32)
        for row, answer in enumerate(found):
            answer["quantiles"] = {text: values_QNP[q, row] for q, text in enumerate(wanted.quantiles)}
    if "samples" in wanted.output_types:
        for answer, paths in zip(found, samples_NSP, strict=True):
            answer["samples"] = np.ascontiguousarray(paths)
    return found


def check_support(target: NDArray[np.float64], likelihood: str, where: str) -> None:
    """Raises:
    InvalidBody: a value lies where the likelihood has no density.
    """
    low, high = _SUPPORT.get(likelihood, (-np.inf, np.inf))
    outside = (target < low) | (target > high)
    if outside.any():
        at = int(outside.argmax())
        expected = "a value from 0 to 1" if high == 1 else "a value of 0 or more"
        raise InvalidBody(
            f"{where}: 'target'[{at}] is {target[at]:g}; with likelihood {likelihood}, expected {expected}"
        )


def filled(target: NDArray[np.float64]) -> NDArray[np.float32]:
    """Gaps (NaN) of (T,) take the value before them; those at the beginning, 0."""
    known = ~np.isnan(target)
    if known.all():
        return target.astype(np.float32)
    last = np.maximum.accumulate(np.where(known, np.arange(len(target)), -1))
    return np.where(last >= 0, np.nan_to_num(target)[last], 0.0).astype(np.float32)


def uniform_noise(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[np.float32]:
    """Evenly from (0, 1) without its ends, so that logarithms are finite; float32 holds each value exactly."""
    return _between(random.integers(0, 1 << _BITS, shape, dtype=np.uint32))


def _between(numbers: NDArray[np.uint32]) -> NDArray[np.float32]:
    noise: NDArray[np.float32] = (numbers.astype(np.float32) + np.float32(0.5)) / np.float32(1 << _BITS)
    return noise


class PathNoise:
    """For each path independent numbers evenly from (0, 1), which are spread evenly over the paths of a series.

    Of each number, the paths of a series (the first 128, the next 128, ...) have one in each stratum: a Latin hypercube
    (McKay, Beckman and Conover 1979), turned by as much as chance has it. Of a sum of eight normals, quantiles of 100
    such paths are as near to those of infinitely many as else those of 140 to 200, and the mean as that of 450.
    """

    def __init__(self, num_samples: int, num_steps: int, width: int, random: np.random.Generator) -> None:
        """Args:
        num_samples: paths of each series.
        num_steps: of a path.
        width: numbers for each step.
        random: from which as many numbers are drawn as come out.
        """
        self._num_samples, self._random = num_samples, random
        self._strata = _strata(min(num_samples, _STRATA), num_steps, width)
        self._drawn = 0
        self._turn = np.zeros((num_steps, width), np.uint32)

    def draw(self, num_paths: int) -> NDArray[np.float32]:
        """(num_paths, P, W): the next ones, series after series; the same in one piece as in many."""
        count, *shape = self._strata.shape
        numbers = self._random.integers(0, 1 << _BITS, (num_paths, *shape), dtype=np.uint32)
        within = (self._drawn + np.arange(num_paths)) % self._num_samples % count
        first = np.arange(num_paths) - within
        # the first path of each 128 has no place in its stratum by chance, but turns all of them
        turns = numbers[np.maximum(first, 0)]
        turns[first < 0] = self._turn
        numbers //= np.uint32(count)
        numbers[within == 0] = 0
        numbers += self._strata[within]
        numbers += turns
        numbers &= np.uint32((1 << _BITS) - 1)
        if num_paths:
            self._drawn, self._turn = self._drawn + num_paths, turns[-1].copy()
        return _between(numbers)


def path_noise(
    num_series: int, num_samples: int, num_steps: int, width: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """(N, S, P, W) of `PathNoise`."""
    drawn = PathNoise(num_samples, num_steps, width, random).draw(num_series * num_samples)
    return drawn.reshape(num_series, num_samples, num_steps, width)


@lru_cache(maxsize=16)
def _strata(count: int, num_steps: int, width: int) -> NDArray[np.uint32]:
    """(count, P, W): where the strata begin, for each number in an order of its own, always the same."""
    begins = (np.arange(count, dtype=np.uint64) << np.uint64(_BITS)) // np.uint64(count)
    orders = np.random.default_rng(count).permuted(np.broadcast_to(begins, (num_steps * width, count)), axis=1)
    return np.ascontiguousarray(orders.T.reshape(count, num_steps, width).astype(np.uint32))


def _noise(num_series: int, horizon: Horizon, wanted: Configuration) -> NDArray[np.float32]:
    random = np.random.default_rng(wanted.seed)
    return path_noise(num_series, wanted.num_samples, horizon.prediction_length, horizon.num_noise, random)


def _features(series: Sequence[Series], horizon: Horizon) -> NDArray[np.float32]:
    """(N, C + P, F): of the calendar, the age, and `dynamic_feat`, which is 0 before a series begins."""
    starts = np.array([seconds(each.start) for each in series])
    ends = np.array([len(each.target) for each in series])[:, None]
    steps = ends + np.arange(-horizon.context_length, horizon.prediction_length)
    try:
        calendar = horizon.frequency.features(starts, steps)
    except OverflowError as error:
        raise InvalidBody(f"a time of the forecast cannot be told: {error}") from error
    if not horizon.num_dynamic:
        return calendar
    width = steps.shape[1]
    dynamic = np.zeros((len(series), width, horizon.num_dynamic), np.float32)
    for row, each in enumerate(series):
        assert each.dynamic_feat is not None
        kept = each.dynamic_feat[:, -width:]
        dynamic[row, -kept.shape[1] :] = kept.T
    return np.concatenate([calendar, dynamic], axis=2)


def _check(series: Series, horizon: Horizon, where: str) -> None:
    _check_categories(series, horizon, where)
    found = 0 if series.dynamic_feat is None else len(series.dynamic_feat)
    if found != horizon.num_dynamic:
        raise InvalidBody(f"{where}: 'dynamic_feat' has {found} rows; the model was trained with {horizon.num_dynamic}")
    if series.dynamic_feat is not None:
        expected = len(series.target) + horizon.prediction_length
        if series.dynamic_feat.shape[1] != expected:
            raise InvalidBody(
                f"{where}: 'dynamic_feat' has {series.dynamic_feat.shape[1]} values a row; expected {expected}, the "
                f"{len(series.target)} of 'target' and {horizon.prediction_length} of the forecast"
            )
    check_support(series.target, horizon.likelihood, where)


def _check_categories(series: Series, horizon: Horizon, where: str) -> None:
    if not horizon.cardinalities:
        if series.cat is not None:
            raise InvalidBody(f"{where}: 'cat' is {list(series.cat)}; the model was trained without it")
        return
    if series.cat is None or len(series.cat) != len(horizon.cardinalities):
        found = "missing" if series.cat is None else list(series.cat)
        raise InvalidBody(f"{where}: 'cat' is {found}; expected {len(horizon.cardinalities)} integers")
    for place, (value, count) in enumerate(zip(series.cat, horizon.cardinalities, strict=True)):
        if value >= count:
            raise InvalidBody(f"{where}: 'cat'[{place}] is {value}; expected 0 to {count - 1}")


def _integer(value: object, what: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise InvalidBody(f"{what} is {value!r:.40}, expected an integer from {low} to {high}")
    return value


def _output_types(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not value or any(each not in OUTPUT_TYPES for each in value):
        raise InvalidBody(f"{where}.output_types is {value!r:.80}, expected some of {', '.join(OUTPUT_TYPES)}")
    return tuple(value)


def _bound(value: object, what: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST_BOUND:
        raise InvalidBody(f"{what} is {value!r:.40}, expected a number")
    return float(value)


def _forward_fields(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or any(not isinstance(each, str) or each in OUTPUT_TYPES for each in value):
        raise InvalidBody(
            f"{where}.forward_fields is {value!r:.80}, expected names of fields other than {', '.join(OUTPUT_TYPES)}"
        )
    return tuple(value)


def _quantiles(value: object, where: str) -> tuple[str, ...]:
    expected = 'texts of numbers between 0 and 1, such as ["0.1", "0.9"]'
    if not isinstance(value, list | tuple) or not value:
        raise InvalidBody(f"{where}.quantiles is {value!r:.80}, expected {expected}")
    found = []
    for each in value:
        try:
            number = float(each) if isinstance(each, str | float | int) and not isinstance(each, bool) else np.nan
        except ValueError:
            number = np.nan
        if not 0 < number < 1:
            raise InvalidBody(f"{where}.quantiles holds {each!r:.40}, expected {expected}")
        found.append(str(each))
    return tuple(found)
