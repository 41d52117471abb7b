"""Channels of time series: read, checked against each other, and cut into windows."""

# N windows, C context, P prediction, L longest lag, F features, K categories

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats import timeseries
from formats.errors import InvalidBody
from formats.forecasting import check_support, filled
from formats.source import list_files, open_file
from formats.time_frequency import Frequency, seconds
from formats.timeseries import Series
from trainers.deepar.hyperparameters import Hyperparameters
from trainers.job import ClientError, Job
from trainers.progress import log

__all__ = [
    "Fields",
    "SeriesSet",
    "Windows",
    "announce",
    "batches",
    "check_categories",
    "check_enough",
    "check_gaps",
    "check_target",
    "cut",
    "passes_of",
    "read_channel",
    "tails",
    "visits",
]

_FEWEST_OBSERVATIONS = 300
_SHARE_OF_COLD_STARTS = 0.1
_ENOUGH_TAILS = 100
_LARGEST_SHARE_OF_TAILS = 8
"""One over it."""
_STEPS_BEFORE_A_TAIL = 3
"""At least, in prediction lengths, behind the first context."""
_LARGEST_EMBEDDING = 100_000_000
"""Numbers; three times as many are the optimizer's."""
_JSON = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
_PARQUET = (".parquet", ".pq")


@dataclass(frozen=True, slots=True)
class SeriesSet:
    """The series of a channel, in one row of numbers."""

    starts: NDArray[np.datetime64]
    """(N,) seconds."""
    lengths: NDArray[np.int64]
    offsets: NDArray[np.int64]
    """(N,) where each series begins in `target`; what is at 0 belongs to none."""
    target: NDArray[np.float32]
    """Gaps filled with what was last known, or zeros; see `filled`."""
    observed: NDArray[np.bool_]
    dynamic: NDArray[np.float32]
    """(D, as target)."""
    category: NDArray[np.int64]
    """(N, K)."""

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, series: list[Series], reach: int = 1, *, use_cat: bool, num_dynamic: int) -> SeriesSet:
        """Of series that are alike in what they hold.

        Args:
            series: at least one.
            reach: zeros before the first, at least 1.
            use_cat: whether `cat` is taken.
            num_dynamic: rows of `dynamic_feat` to take.
        """
        lengths = np.array([len(each.target) for each in series])
        offsets = np.cumsum(lengths) - lengths + reach
        size = int(lengths.sum()) + reach
        target, observed = np.zeros(size, np.float32), np.zeros(size, bool)
        dynamic = np.zeros((num_dynamic, size), np.float32)
        for each, at, length in zip(series, offsets.tolist(), lengths.tolist(), strict=True):
            target[at : at + length] = filled(each.target)
            observed[at : at + length] = ~np.isnan(each.target)
            if num_dynamic and each.dynamic_feat is not None:
                dynamic[:, at : at + length] = each.dynamic_feat[:, :length]
        category = np.array([each.cat if use_cat else () for each in series], np.int64)
        starts = np.array([seconds(each.start) for each in series])
        return cls(starts, lengths, offsets, target, observed, dynamic, category.reshape(len(series), -1))


class Windows(NamedTuple):
    """A batch of windows; the last P steps are those to forecast."""

    target: NDArray[np.float32]
    """(N, L + C + P)."""
    observed: NDArray[np.float32]
    """(N, C + P)."""
    features: NDArray[np.float32]
    """(N, C + P, F)."""
    category: NDArray[np.int64]
    """(N, K)."""


def cut(
    series: SeriesSet, frequency: Frequency, numbers: NDArray[np.int64], begins: NDArray[np.int64], *,
    longest_lag: int, context: int, prediction: int,
) -> Windows:  # fmt: skip
    """Windows whose forecasts begin at step `begins` of the series `numbers`."""
    steps = begins[:, None] + np.arange(-context - longest_lag, prediction)
    # before a series and behind it there is nothing, as at place 0
    inside = (steps >= 0) & (steps < series.lengths[numbers][:, None])
    places = np.where(inside, series.offsets[numbers][:, None] + steps, 0)
    spans, within = places[:, longest_lag:], steps[:, longest_lag:]
    features = frequency.features(series.starts[numbers], within)
    if len(series.dynamic):
        features = np.concatenate([features, np.moveaxis(series.dynamic[:, spans], 0, 2)], axis=2)
    observed = series.observed[spans].astype(np.float32)
    return Windows(series.target[places], observed, features, series.category[numbers])


def visits(
    lengths: NDArray[np.int64], batch_size: int, context: int, prediction: int, random: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which series an epoch visits and where each visit's forecast begins, in random order (contract, section 3.1).

    Forecasts begin where there is a whole context before them, if the series is that long.
    Small sets are gone through several times, each series with a chance, so that there are about ten batches.
    """
    usable = np.flatnonzero(lengths >= prediction)
    passes, chance = passes_of(len(usable), batch_size)
    numbers = np.concatenate([usable[random.random(len(usable)) < chance] for _ in range(passes)])
    random.shuffle(numbers)
    last = lengths[numbers] - prediction
    # few visits are of a series' first days, so that new series can be forecast too
    first = np.where(random.random(len(numbers)) < _SHARE_OF_COLD_STARTS, 0, np.minimum(context, last))
    return numbers, random.integers(first, last + 1)


def tails(lengths: NDArray[np.int64], context: int, prediction: int) -> NDArray[np.int64]:
    """How many windows at the end of each series are not trained on, but tell how good forecasts are.

    One of each series that is long enough, and more where series are few: about a hundred in all, of at most an eighth
    of a series.
    """
    long_enough = lengths >= context + (_STEPS_BEFORE_A_TAIL + 1) * prediction
    each = -(-_ENOUGH_TAILS // max(1, int(long_enough.sum())))
    most = np.maximum(1, lengths // (_LARGEST_SHARE_OF_TAILS * prediction))
    return np.where(long_enough, np.minimum(each, most), 0)


def passes_of(num_series: int, batch_size: int) -> tuple[int, float]:
    """How often an epoch goes through all series, and the chance of each to be visited then."""
    passes = max(1, math.ceil(10 * batch_size / num_series))
    return passes, min(1.0, 10 * batch_size / (num_series * passes)) if passes > 1 else 1.0


# ---- channels ----------------------------------------------------------------------------------------------------


def read_channel(job: Job, name: str) -> list[Series]:
    """All series of a channel: of its file, or of all files in its tree.

    Raises:
        ClientError: a file or a record is not what it should be; names it.
    """
    found: list[Series] = []
    default = job.settings_of(name).content_type
    try:
        for file in list_files(job.path_of(name)):
            lower = file.lower()
            parquet = lower.endswith(_PARQUET) or ("parquet" in default and not lower.endswith(_JSON))
            with open_file(file) as stream:
                found += timeseries.read_parquet(stream, file) if parquet else timeseries.read(stream, file)
    except InvalidBody as error:
        raise ClientError(f"Channel '{name}': {error}") from error
    if not found:
        raise ClientError(f"Channel '{name}' holds no time series.")
    return found


@dataclass(frozen=True, slots=True)
class Fields:
    """What the records of a run hold beside their targets."""

    cardinalities: tuple[int, ...]
    num_dynamic: int

    @classmethod
    def of(cls, series: list[Series], wanted: Hyperparameters, name: str) -> Fields:
        """As the hyperparameters say, or as the data are.

        Raises:
            ClientError: they disagree, or records among each other.
        """
        cardinalities, num_dynamic = tuple[int, ...](), 0
        if wanted.cardinality != "ignore":
            num_cat = _alike(series, [None if each.cat is None else len(each.cat) for each in series], "cat", name)
            _tell("cardinality", wanted.cardinality, "cat", num_cat, series[0].file)
            cardinalities = _cardinalities(series, wanted, num_cat, name)
        if wanted.num_dynamic_feat != "ignore":
            counts = [None if (each := one.dynamic_feat) is None else len(each) for one in series]
            rows = _alike(series, counts, "dynamic_feat", name)
            _tell("num_dynamic_feat", wanted.num_dynamic_feat, "dynamic_feat", rows, series[0].file)
            num_dynamic = _num_dynamic(wanted, rows, name)
            _check_lengths(series, wanted.prediction_length, name)
        return cls(cardinalities, num_dynamic)

    def packed(self, series: list[Series]) -> SeriesSet:
        """With the fields that are used."""
        return SeriesSet.of(series, use_cat=bool(self.cardinalities), num_dynamic=self.num_dynamic)


def check_target(series: list[Series], likelihood: str, name: str) -> None:
    """Raises:
    ClientError: a value lies where the likelihood has no density.
    """
    for each in series:
        try:
            check_support(each.target, likelihood, _where(each))
        except InvalidBody as error:
            raise ClientError(f"Channel '{name}', {error}") from error
        if likelihood == "negative-binomial" and not (each.target % 1 == 0)[~np.isnan(each.target)].all():
            at = int((each.target % 1 > 0).argmax())
            raise ClientError(
                f"Channel '{name}', {_where(each)}: 'target'[{at}] is {each.target[at]:g}; with likelihood "
                f"{likelihood}, expected a whole number"
            )


def check_enough(series: list[Series], prediction: int) -> None:
    """Raises:
    ClientError: there is too little to learn from.
    """
    observations = sum(int((~np.isnan(each.target)).sum()) for each in series)
    if observations < _FEWEST_OBSERVATIONS:
        raise ClientError(
            f"Channel 'train' holds {observations} observations; at least {_FEWEST_OBSERVATIONS} are needed in all."
        )
    short = sum(len(each.target) < prediction for each in series)
    if short == len(series):
        raise ClientError(f"Channel 'train': every series is shorter than prediction_length = {prediction}.")
    if short:
        log.info("%d of %d time series are shorter than prediction_length = %d and are ignored in training",
                 short, len(series), prediction)  # fmt: skip
    if not any((np.nan_to_num(each.target) != 0).any() for each in series):
        log.warning("All training time series consist of only zeros")


def announce(series: list[Series], name: str) -> None:
    """The data set's figures, as the original's log has them."""
    # one after the other: all at once would take several times the memory of the series themselves
    count, total, total_abs, low, high, whole = 0, 0.0, 0.0, math.inf, -math.inf, True
    for each in series:
        known = each.target[~np.isnan(each.target)]
        if len(known):
            count, total, total_abs = count + len(known), total + known.sum(), total_abs + np.abs(known).sum()
            low, high = min(low, known.min()), max(high, known.max())
            whole = whole and bool((known == np.round(known)).all())
    length = sum(len(each.target) for each in series)
    log.info("%s time series (channel '%s')", "Integer" if count and whole else "Real", name)
    log.info("number of time series: %d", len(series))
    log.info("number of observations: %d", count)
    log.info("mean target length: %s", length / len(series))
    if count:
        log.info("min/mean/max target: %s/%s/%s", low, total / count, high)
        log.info("mean abs(target): %s", total_abs / count)
    log.info("contains missing values: %s", "yes" if count < length else "no")


def _where(series: Series) -> str:
    return f"{series.file}, {series.place}"


def _alike(series: list[Series], counts: list[int | None], field: str, name: str) -> int | None:
    for each, count in zip(series, counts, strict=True):
        if count != counts[0]:
            first, other = (f"no `{field}`" if n is None else f"`{field}` of length {n}" for n in (counts[0], count))
            raise ClientError(
                f"Channel '{name}': {_where(series[0])} has {first} and {_where(each)} has {other}; "
                "all records must be alike."
            )
    return counts[0]


def _check_lengths(series: list[Series], prediction: int, name: str) -> None:
    """Both lengths of the guide, which contradicts itself, are taken (contract, section 2.1)."""
    for each in series:
        length = len(each.target)
        if each.dynamic_feat is not None and each.dynamic_feat.shape[1] not in (length, length + prediction):
            raise ClientError(
                f"Channel '{name}', {_where(each)}: 'dynamic_feat' has {each.dynamic_feat.shape[1]} values a row; "
                f"expected {length}, as many as 'target', or {length + prediction} with those of a forecast."
            )


def _tell(hyperparameter: str, given: str, field: str, count: int | None, file: str) -> None:
    if given != "auto":
        return
    if count is None:
        log.info("[%s=auto] `%s` field was NOT found in the file `%s` and will NOT be used for training.",
                 hyperparameter, field, file)  # fmt: skip
    else:
        log.info("[%s=auto] `%s` field was found in the file `%s` and will be used for training.",
                 hyperparameter, field, file)  # fmt: skip


def _cardinalities(series: list[Series], wanted: Hyperparameters, num_cat: int | None, name: str) -> tuple[int, ...]:
    given = wanted.cardinalities
    if num_cat is None:
        if given:
            raise ClientError(f"hyperparameter cardinality: {wanted.cardinality}, but channel '{name}' has no `cat`.")
        return ()
    if given is None:
        given = tuple(max(ids) + 1 for ids in zip(*(each.cat or () for each in series), strict=True))
    if len(given) != num_cat:
        raise ClientError(
            f"hyperparameter cardinality: {wanted.cardinality} is of {len(given)} categories; `cat` has {num_cat}."
        )
    check_categories(series, given, name)
    size = sum(given) * wanted.embedding_dimension
    if size > _LARGEST_EMBEDDING:
        raise ClientError(
            f"Channel '{name}': {sum(given)} categories, embeddings of {wanted.embedding_dimension} numbers each: "
            f"{size} are too many; at most {_LARGEST_EMBEDDING}. "
            "Number the categories of `cat` from 0 and leave none out."
        )
    return given


def check_gaps(series: list[Series], cardinalities: tuple[int, ...], given: tuple[int, ...] | None) -> None:
    """Every category should occur in training (contract, sections 2.1 and 2.2).

    A cardinality is given in order that data which disagree are found; of `auto` a gap is no more than odd.

    Raises:
        ClientError: a category of those that were given does not occur.
    """
    for place, count in enumerate(cardinalities):
        present = len({each.cat[place] for each in series if each.cat is not None})
        if present < count and given:
            raise ClientError(
                f"hyperparameter cardinality: {list(given)}, but {present} of the {count} categories of cat[{place}] "
                "occur in channel 'train'; all must, or auto be chosen."
            )
        if present < count:
            log.warning("%d of the %d categories of cat[%d] do not occur in channel 'train'; "
                        "nothing is learned of them", count - present, count, place)  # fmt: skip


def check_categories(series: list[Series], cardinalities: tuple[int, ...], name: str) -> None:
    """Raises:
    ClientError: a category is out of range.
    """
    for each in series:
        for place, (value, count) in enumerate(zip(each.cat or (), cardinalities, strict=True)):
            if value >= count:
                raise ClientError(
                    f"Channel '{name}', {_where(each)}: cat[{place}] is {value}; the cardinality there is {count}."
                )


def _num_dynamic(wanted: Hyperparameters, found: int | None, name: str) -> int:
    if wanted.num_dynamic_feat != "auto" and int(wanted.num_dynamic_feat) != (found or 0):
        raise ClientError(
            f"hyperparameter num_dynamic_feat: {wanted.num_dynamic_feat}, but `dynamic_feat` of channel '{name}' has "
            f"{found or 0} rows."
        )
    return found or 0


def batches(
    numbers: NDArray[np.int64], begins: NDArray[np.int64], size: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Both in parts of `size`; the last may be smaller."""
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size], begins[start : start + size]
