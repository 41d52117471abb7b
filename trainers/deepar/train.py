"""Train DeepAR: what is read straight down here is what happens."""

# N windows, S samples, P steps

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn

from formats.forecasting import uniform_noise
from formats.time_frequency import Frequency
from formats.timeseries import Series
from trainers import loop
from trainers.artifact import write_json, write_model
from trainers.deepar import data
from trainers.deepar.data import Fields, SeriesSet, Windows
from trainers.deepar.evaluation import Scores, quantiles_of, scores, scores_of
from trainers.deepar.hyperparameters import Hyperparameters
from trainers.deepar.model import Network, Sampler, Sizes
from trainers.distributed import World, joined
from trainers.early_stopping import EarlyStopping
from trainers.hyperparameter_schema import parse, plain_values
from trainers.job import ClientError, Job
from trainers.progress import EpochLog, log

__all__ = ["Learner", "forecast", "train"]

_OBJECTIVE = "loss_without_scales"
_LONGEST_GRADIENT = 10.0
_BATCHES_PER_LINE = 5
_FASTER = 5.0
_MODERATE_RATE = 0.005
_ROWS_AT_ONCE = 20_000
_STEPS_AT_ONCE = 2**20
_NORMAL = NormalDist()
_CALIBRATIONS = 3
_FIRST_WINDOWS, _FIRST_STEPS, _FEWEST_FIRST = 1000, 100_000, 10
_SAMPLES = 100
_NARROWEST, _WIDEST = 0.5, 3.0
_MOST_TAILS = 128
_WINDOWS_OF_DOUBT = 10
_HOST = "algo-1"


def train(job: Job, bar: Progress | None = None) -> Path:
    """Returns `job.model`: `model.pt`, a state dict, and `model.json`, all that exporters need.

    Raises:
        ClientError: a hyperparameter, a channel or a record is wrong.
    """
    wanted = parse(Hyperparameters, job.hyperparameters)
    with joined() as world:
        _train(job, wanted, world, bar)
    return job.model


def _train(job: Job, wanted: Hyperparameters, world: World, bar: Progress | None) -> None:
    began = time.perf_counter()
    log.info("Final configuration: %s", json.dumps(plain_values(wanted)))
    series, fields = _read_training(job, wanted)
    identity, packed = _identity(wanted, series), fields.packed(series)
    del series  # twice as large
    test = _read_test(job, wanted, fields) if "test" in job.channels else None
    sizes = _sizes(wanted, fields)
    learner = Learner(wanted, sizes, packed, world)
    patience = wanted.early_stopping_patience
    plan = loop.Plan(
        name="deepar",
        epochs=wanted.epochs,
        num_samples=learner.windows_per_epoch,
        checkpoint_frequency=None,
        early_stopping=EarlyStopping(min_epochs=1, patience=patience, tolerance=0.0) if patience else None,
        identity=identity,
        objective=_OBJECTIVE,
        mode="min",
        objective_of="train",
        lines=LossLog,
    )
    best = loop.run(job, learner, plan, bar, world)
    if world.is_first and best.epoch >= 0:
        best.metrics.pop(f"train:{_OBJECTIVE}")
        loss = best.metrics["train:final_loss"] = best.metrics.pop("train:loss")
        log.info("Final loss: %s (occurred at epoch %d)", loss, best.epoch)
        log.info("#quality_metric: host=%s, train final_loss <loss>=%s", _HOST, loss)
    if best.finished and world.is_first:
        learner.network.load_state_dict(best.state)
        learner.calibrate()
        best.state["spread"] = learner.network.spread.detach().cpu().clone()
    if best.finished and test is not None and world.is_first:
        measured = evaluate(learner.network, Frequency.parse(wanted.time_freq), test, wanted)
        best.metrics.update(_tell_scores(measured))
        write_json(job.output / "evaluation.json", _report(measured))
    if world.is_first:
        described = {"hyperparameters": plain_values(wanted), "sizes": asdict(sizes), "num_dynamic": fields.num_dynamic}
        write_model(job, described, best)
        _tell_metrics(best.metrics, began)
    world.meet()


def _read_training(job: Job, wanted: Hyperparameters) -> tuple[list[Series], Fields]:
    series = data.read_channel(job, "train")
    data.announce(series, "train")
    fields = Fields.of(series, wanted, "train")
    data.check_target(series, wanted.likelihood, "train")
    data.check_enough(series, wanted.prediction_length)
    data.warn_of_gaps(series, fields.cardinalities)
    return series, fields


def _read_test(job: Job, wanted: Hyperparameters, fields: Fields) -> Withheld:
    series = data.read_channel(job, "test")
    data.announce(series, "test")
    found = Fields.of(series, wanted, "test")
    if (len(found.cardinalities), found.num_dynamic) != (len(fields.cardinalities), fields.num_dynamic):
        raise ClientError("Channel 'test': `cat` and `dynamic_feat` must be as in channel 'train'.")
    if fields.cardinalities:
        data.check_categories(series, fields.cardinalities, "test")
    data.check_target(series, wanted.likelihood, "test")
    if not any((~np.isnan(each.target[-wanted.prediction_length :])).any() for each in series):
        raise ClientError(
            "Channel 'test' cannot be scored: no target is known in the last "
            f"{wanted.prediction_length} steps of any series."
        )
    return Withheld.of(series, fields.packed(series), wanted.prediction_length)


def _sizes(wanted: Hyperparameters, fields: Fields) -> Sizes:
    frequency = Frequency.parse(wanted.time_freq)
    return Sizes(
        lags=tuple(frequency.lags()),
        num_features=len(frequency.feature_names) + fields.num_dynamic,
        cardinalities=fields.cardinalities,
        embedding_dimension=wanted.embedding_dimension,
        num_cells=wanted.num_cells,
        num_layers=wanted.num_layers,
        dropout_rate=wanted.dropout_rate,
        likelihood=wanted.likelihood,
        context_length=wanted.context_length,
        prediction_length=wanted.prediction_length,
    )


def _identity(wanted: Hyperparameters, series: list[Series]) -> str:
    """Same text, same run: hyperparameters and data."""
    digest = hashlib.sha256(json.dumps(plain_values(wanted), sort_keys=True).encode())
    for each in series:
        digest.update(f"{each.start}{each.cat}".encode() + each.target.tobytes())
        digest.update(b"" if each.dynamic_feat is None else each.dynamic_feat.tobytes())
    return digest.hexdigest()


# ---- learning ----------------------------------------------------------------------------------------------------


class LossLog(EpochLog):
    """The lines of the original's forecaster (contract, section 4)."""

    _num_windows = 0

    def begin(self, epoch: int) -> None:
        super().begin(epoch)
        self._num_windows = 0

    def batch(self, num_samples: int, accuracy: Callable[[], float]) -> None:
        """What the others know as accuracy is the mean loss here."""
        self._num_windows += num_samples
        number, self._num_batches = self._num_batches, self._num_batches + 1
        if self._bar and self._line is not None:
            self._bar.advance(self._line, num_samples)
        elif number % _BATCHES_PER_LINE == 0:
            mean = accuracy()
            log.info("Epoch[%d] Batch[%d] avg_epoch_loss=%f", self._epoch, number, mean)
            log.info("#quality_metric: host=%s, epoch=%d, batch=%d train loss <loss>=%s",
                     _HOST, self._epoch, number, mean)  # fmt: skip

    def trained(self, metrics: Mapping[str, float]) -> None:
        log.info("processed a total of %d examples", self._num_windows)
        log.info("#quality_metric: host=%s, epoch=%d, train loss <loss>=%s", _HOST, self._epoch, metrics["loss"])
        log.info("#progress_metric: host=%s, completed %s %% of epochs", _HOST, 100 * (self._epoch + 1) // self._epochs)
        log.info("#throughput_metric: host=%s, train throughput=%s records/second",
                 _HOST, self._num_windows / max(self.seconds, 1e-9))  # fmt: skip

    def validated(self, metrics: Mapping[str, float]) -> None:
        """There is nothing but the loss."""

    def improved(self, objective: str, value: float) -> None:  # noqa: ARG002
        log.info("best epoch loss so far: %f, scales left out", value)

    def not_improved(self) -> None:
        log.info("loss did not improve")


class Learner:
    """Network, optimizer and data of one run; see `loop.Learner`."""

    def __init__(self, wanted: Hyperparameters, sizes: Sizes, series: SeriesSet, world: World) -> None:
        self._wanted, self._sizes, self._world, self._device = wanted, sizes, world, world.device
        self._frequency = Frequency.parse(wanted.time_freq)
        self.series = series
        torch.manual_seed(wanted.seed)
        lengths, prediction = self.series.lengths, wanted.prediction_length
        withheld = data.tails(lengths, wanted.context_length, prediction)
        self._trained_lengths = lengths - withheld * prediction
        self.tails = Tails.of(lengths, withheld, prediction)
        self.network = Network(sizes, *_default_scales(self.series, self._trained_lengths)).to(self._device)
        self.network.begin_linearly(self._first_windows())
        self._trained = world.wrap(_Losses(self.network))
        self._optimizer = torch.optim.Adam(self.network.parameters(), wanted.learning_rate)
        num_usable = int((lengths >= prediction).sum())
        passes, chance = data.passes_of(num_usable, wanted.mini_batch_size)
        self.windows_per_epoch = max(1, round(passes * num_usable * chance))
        if passes > 1:
            log.info("Small number of time series. Doing %d passes over dataset with prob %s per epoch.",
                     passes, chance)  # fmt: skip

    def _first_windows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of an epoch that is not trained; at most so many."""
        wanted = self._wanted
        numbers, begins = data.visits(
            self._trained_lengths, wanted.mini_batch_size, wanted.context_length, wanted.prediction_length,
            np.random.default_rng(wanted.seed),
        )  # fmt: skip
        most = max(_FEWEST_FIRST, min(_FIRST_WINDOWS, _FIRST_STEPS // wanted.prediction_length))
        for some, begin in data.batches(numbers[:most], begins[:most], wanted.mini_batch_size):
            windows = self._cut(some, begin)
            yield windows[0], windows[1]

    def train_epoch(self, epoch: int, batch_done: loop.BatchDone) -> dict[str, float]:
        wanted = self._wanted
        self._trained.train()
        random = np.random.default_rng((wanted.seed, epoch))
        torch.manual_seed(wanted.seed * 1_000_003 + epoch * 1009 + self._world.rank)  # zoneout draws from it
        numbers, begins = data.visits(
            self._trained_lengths, wanted.mini_batch_size, wanted.context_length, wanted.prediction_length, random
        )
        totals = torch.zeros(3, dtype=torch.float64, device=self._device)  # losses, the scales' part, observed steps

        def mean_loss() -> float:
            total, _, count = totals.tolist()
            return float(total / max(count, 1.0))

        num_batches = -(-len(numbers) // wanted.mini_batch_size)
        for number, (some, begin) in enumerate(data.batches(numbers, begins, wanted.mini_batch_size)):
            rate = learning_rate(wanted, epoch + number / num_batches)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            places = self._world.share(np.arange(len(some)))
            windows = self._cut(some[places], begin[places])
            observed_NT = windows[1]
            everywhere = self._world.sum(observed_NT.sum()).clamp(min=1)
            losses_NT, fixed_N1 = self._trained(*windows)
            loss = losses_NT.sum()
            self._optimizer.zero_grad(set_to_none=True)
            # gradients are averaged over processes, and each has its part of the sum alone
            (loss / everywhere * self._world.size).backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), _LONGEST_GRADIENT)
            self._optimizer.step()
            totals += torch.stack([loss.detach(), (fixed_N1 * observed_NT).sum(), observed_NT.sum()]).double()
            batch_done(len(some), mean_loss)
        total, fixed, count = self._world.sum(totals).tolist()
        loss = total / max(count, 1.0)
        if not math.isfinite(loss):
            raise ClientError(f"Training diverged in epoch {epoch}: the loss is {loss}; try a smaller learning_rate.")
        # the scales of the series that were drawn differ from epoch to epoch, and say nothing of the model
        return {"loss": loss, _OBJECTIVE: (total - fixed) / max(count, 1.0)}

    def validate(self) -> dict[str, float]:
        """Nothing: the best model is that of the least training loss, as in the original."""
        return {}

    def calibrate(self) -> None:
        """To be called at the end, with the best model; see `calibrate`."""
        calibrate(self.network.eval(), self._frequency, self.series, self.tails, self._wanted.seed)
        log.info("Deviations times %.3f, as %d withheld windows have it", self.network.spread, len(self.tails.numbers))

    def model_state(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        return {"network": self.model_state(), "optimizer": self._optimizer.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _cut(self, numbers: NDArray[np.int64], begins: NDArray[np.int64]) -> tuple[Tensor, ...]:
        sizes = self._sizes
        windows = data.cut(
            self.series, self._frequency, numbers, begins, longest_lag=sizes.lags[-1],
            context=sizes.context_length, prediction=sizes.prediction_length,
        )  # fmt: skip
        return tensors_of(windows, self._device)


class _Losses(nn.Module):
    """What processes train together."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, target_NT: Tensor, observed_NT: Tensor, features_NTF: Tensor, category_NK: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.network.losses(target_NT, observed_NT, features_NTF, category_NK)


def learning_rate(wanted: Hyperparameters, epochs_done: float) -> float:
    """Along a cosine to 0, from five times the hyperparameter where that is a moderate rate.

    The original's is constant, and takes many more epochs to as good forecasts; see docs/benchmarks/deepar.md.
    """
    highest = max(wanted.learning_rate, min(_FASTER * wanted.learning_rate, _MODERATE_RATE))
    return highest * 0.5 * (1 + math.cos(math.pi * min(epochs_done / wanted.epochs, 1.0)))


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


def _default_scales(series: SeriesSet, lengths: NDArray[np.int64]) -> tuple[float, float]:
    """The mean absolute value, and the mean step between neighbours of a series in units of its own.

    Args:
        series: of which so many steps count:
        lengths: (N,), at most those of the series.
    """
    first = np.flatnonzero(np.diff(series.offsets // _STEPS_AT_ONCE, prepend=-1))
    parts = np.split(np.arange(len(series)), first[1:])
    total, count, steps, pairs = np.concatenate([_sums(series, lengths, part) for part in parts], axis=1)
    scale = float(total.sum() / max(count.sum(), 1))
    usable = (total > 0) & (pairs > 0)
    relative = steps[usable] / pairs[usable] / (total[usable] / count[usable])
    return scale or 1.0, float(relative.mean()) if len(relative) else 1.0


def _sums(series: SeriesSet, lengths: NDArray[np.int64], part: NDArray[np.int64]) -> NDArray[np.float64]:
    """(4, N) of consecutive series: absolute values, known values, steps between known neighbours, their number."""
    first, last = series.offsets[part[0]], series.offsets[part[-1]] + series.lengths[part[-1]]
    offsets, target = series.offsets[part] - first, series.target[first:last]
    edges = np.zeros(len(target) + 1, np.int8)
    np.add.at(edges, offsets, 1)
    np.add.at(edges, offsets + lengths[part], -1)
    seen = series.observed[first:last] & (np.cumsum(edges[:-1], dtype=np.int8) > 0)
    pair = np.append(seen[1:] & seen[:-1], False)[: len(target)]
    held = series.lengths[part] > 0
    pair[(offsets + series.lengths[part])[held] - 1] = False
    value = np.where(seen, np.abs(target), 0.0)
    step = np.where(pair, np.abs(np.diff(target, append=0.0)), 0.0)
    found = np.zeros((4, len(part)))
    if held.any():  # sums are of all from one series' first step to the next one's
        for row, each in zip(found, (value, seen, step, pair), strict=True):
            row[held] = np.add.reduceat(each, offsets[held], dtype=np.float64)
    return found


# ---- scores ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def forecast(
    network: Network, frequency: Frequency, series: SeriesSet, begins: NDArray[np.int64], num_samples: int, seed: int,
    numbers: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:  # fmt: skip
    """Paths from step `begins[i]` of series `numbers[i]`, by default i, from what is known before it: (N, S, P)."""
    return np.concatenate(list(_forecasts(network, frequency, series, begins, num_samples, seed, numbers)))


@torch.inference_mode()
def _forecasts(
    network: Network, frequency: Frequency, series: SeriesSet, begins: NDArray[np.int64], num_samples: int, seed: int,
    numbers: NDArray[np.int64] | None = None,
) -> Iterator[NDArray[np.float32]]:  # fmt: skip
    """Those of `forecast` in parts of the first axis, for all paths of a large set are many times its size."""
    sizes, device = network.sizes, network.default_scale.device
    sampler = Sampler(network).eval().to(device)
    random = np.random.default_rng(seed)
    size = max(1, _ROWS_AT_ONCE // num_samples)
    for some, begin in data.batches(np.arange(len(series)) if numbers is None else numbers, begins, size):
        windows = data.cut(
            series, frequency, some, begin, longest_lag=sizes.lags[-1], context=sizes.context_length,
            prediction=sizes.prediction_length,
        )  # fmt: skip
        target, observed, features, *category = tensors_of(windows, device)
        shape = (len(some), num_samples, sizes.prediction_length, network.likelihood.num_noise)
        noise = torch.from_numpy(uniform_noise(shape, random)).to(device)
        known = torch.zeros_like(target)
        known[:, sizes.lags[-1] :] = observed
        given = (each[:, : sizes.history] for each in (target, known))
        yield sampler(*given, features, noise, *category).cpu().numpy()


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


def _tell_scores(measured: Scores) -> dict[str, float]:
    mean = measured.mean_weighted_quantile_loss
    log.info("#test_score (%s, RMSE): %s", _HOST, measured.rmse)
    log.info("#test_score (%s, mean_absolute_QuantileLoss): %s", _HOST, measured.mean_absolute_quantile_loss)
    log.info("#test_score (%s, mean_wQuantileLoss): %s", _HOST, mean)
    for tau, value in measured.weighted_quantile_loss.items():
        log.info("#test_score (%s, wQuantileLoss[%g]): %s", _HOST, tau, value)
    log.info("#quality_metric: host=%s, test RMSE <loss>=%s", _HOST, measured.rmse)
    log.info("#quality_metric: host=%s, test mean_wQuantileLoss <loss>=%s", _HOST, mean)
    told = {"test:RMSE": measured.rmse, "test:mean_wQuantileLoss": mean}
    # relative losses of series of zeros alone are no numbers, which JSON cannot hold
    return {name: value for name, value in told.items() if math.isfinite(value)}


def _report(measured: Scores) -> dict[str, Any]:
    def known(value: float) -> float | None:
        return value if math.isfinite(value) else None

    return {
        "RMSE": measured.rmse,
        "mean_absolute_QuantileLoss": measured.mean_absolute_quantile_loss,
        "mean_wQuantileLoss": known(measured.mean_weighted_quantile_loss),
        "wQuantileLoss": {f"{tau:g}": known(value) for tau, value in measured.weighted_quantile_loss.items()},
        "coverage_80": measured.coverage_80,
    }


def _tell_metrics(metrics: Mapping[str, float], began: float) -> None:
    now = time.time()
    told = {
        "StartTime": now - (time.perf_counter() - began),
        "EndTime": now,
        "Dimensions": {"Algorithm": "AWS/DeepAR", "Host": _HOST, "Operation": "training"},
        "Metrics": {name: {"sum": value, "count": 1, "min": value, "max": value} for name, value in metrics.items()},
    }
    log.info("#metrics %s", json.dumps(told))
