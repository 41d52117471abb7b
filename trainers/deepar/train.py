"""Train DeepAR: what is read straight down here is what happens."""

# N windows, S samples, P steps

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn

from formats.time_frequency import Frequency
from formats.timeseries import Series
from trainers import loop
from trainers.artifact import write_json, write_model
from trainers.checkpoints import write_aside
from trainers.deepar import data
from trainers.deepar.data import Fields, SeriesSet
from trainers.deepar.evaluation import Scores
from trainers.deepar.forecasts import Tails, Withheld, calibrate, evaluate, tensors_of
from trainers.deepar.hyperparameters import Hyperparameters
from trainers.deepar.log_lines import LossLog, tell_final_loss, tell_metrics, tell_scores
from trainers.deepar.model import Network, Sizes
from trainers.deepar.threads import threads_for
from trainers.distributed import World, joined
from trainers.early_stopping import EarlyStopping
from trainers.hyperparameter_schema import parse, plain_values
from trainers.job import ClientError, Job
from trainers.progress import log

__all__ = ["Learner", "train"]

_OBJECTIVE = "loss_without_scales"
_LONGEST_GRADIENT = 10.0
_FASTER = 5.0
_MODERATE_RATE = 0.005
_LOWEST = 0.1
_STEPS_AT_ONCE = 2**20
_FIRST_WINDOWS, _FIRST_STEPS, _FEWEST_FIRST = 1000, 100_000, 10
_AVERAGED = 9.0
_LONG = 400
_WITHOUT_MEANING = frozenset({"_kvstore", "_num_gpus", "_num_kv_servers", "_tuning_objective_metric"})
"""Of the original's hidden settings, as its log has them: of a parameter server, and of tuning jobs."""


def train(job: Job, bar: Progress | None = None) -> Path:
    """Returns `job.model`: `model.pt`, a state dict, and `model.json`, all that exporters need.

    Raises:
        ClientError: a hyperparameter, a channel or a record is wrong.
    """
    wanted = parse(Hyperparameters, job.hyperparameters, ignored=_WITHOUT_MEANING)
    for name in sorted(_WITHOUT_MEANING & job.hyperparameters.keys()):
        log.info("hyperparameter %s has no meaning here and is ignored", name)
    if wanted.prediction_length > _LONG:
        log.warning("prediction_length = %d: more than %d steps are seldom forecast well, and slowly; "
                    "a coarser time_freq may serve", wanted.prediction_length, _LONG)  # fmt: skip
    with joined() as world:
        _train(job, wanted, world, bar)
    return job.model


def _train(job: Job, wanted: Hyperparameters, world: World, bar: Progress | None) -> None:
    began = time.perf_counter()
    log.info("Final configuration: %s", json.dumps(plain_values(wanted)))
    series, fields = _read_training(job, wanted)
    identity, packed = _identity(wanted, series), fields.packed(series)
    _check_alike(world, identity, len(series), len(packed.target))
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
    with threads_for(sizes.products_per_window * wanted.mini_batch_size // world.size):
        best = loop.run(job, learner, plan, bar, world)
    if world.is_first:
        _tell_best(best)
        if best.finished:
            _calibrate_and_score(job, learner, best, test)
        described = {"hyperparameters": plain_values(wanted), "sizes": asdict(sizes), "num_dynamic": fields.num_dynamic}
        write_model(job, described, best)
        seconds = time.perf_counter() - began
        tell_metrics(best.metrics | {"totaltime": 1000 * seconds}, seconds)
    world.meet()


def _read_training(job: Job, wanted: Hyperparameters) -> tuple[list[Series], Fields]:
    series = data.read_channel(job, "train")
    data.announce(series, "train")
    fields = Fields.of(series, wanted, "train")
    data.check_target(series, wanted.likelihood, "train")
    data.check_enough(series, wanted.prediction_length)
    data.check_gaps(series, fields.cardinalities, wanted.cardinalities)
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


def _check_alike(world: World, identity: str, num_series: int, num_steps: int) -> None:
    """All processes read all series, and each trains on its part of every batch.

    Raises:
        ClientError: they have not read the same, such as shards of it: in all processes, before they wait for others.
    """
    digest = torch.tensor(list(bytes.fromhex(identity)))
    found = [each.tolist() for each in world.gather([torch.cat([digest, torch.tensor([num_series, num_steps])])])]
    for rank, other in enumerate(found):
        if other != found[0]:
            raise ClientError(
                "Channel 'train' or the hyperparameters are not the same in all processes: process 0 has read "
                f"{found[0][-2]} time series of {found[0][-1]} steps in all, process {rank} {other[-2]} of "
                f"{other[-1]}. Each must be given all of the data (not ShardedByS3Key)."
            )


def _tell_best(best: loop.Best) -> None:
    if best.epoch < 0:
        return
    for name in (f"train:{_OBJECTIVE}", "train:progress"):  # of an epoch, not of a model
        best.metrics.pop(name)
    loss = best.metrics["train:final_loss"] = best.metrics.pop("train:loss")
    tell_final_loss(loss, best.epoch)


def _calibrate_and_score(job: Job, learner: Learner, best: loop.Best, test: Withheld | None) -> None:
    learner.network.load_state_dict(best.state)
    learner.calibrate()
    best.state["spread"] = learner.network.spread.detach().cpu().clone()
    if test is not None:
        measured = learner.evaluate(test)
        best.metrics.update(tell_scores(measured))
        write_json(job.output / "evaluation.json", _report(measured))
    _add_metrics(job, best)


def _add_metrics(job: Job, best: loop.Best) -> None:
    """One line more, of the run as a whole; a run that is started again begins with those of the epochs alone."""
    file = job.output / "metrics.jsonl"
    kept = {name: value for name, value in best.metrics.items() if name.startswith("test:") or name.endswith("_loss")}
    text = file.read_text() + json.dumps({"epoch": best.epoch} | kept) + "\n"
    write_aside(file, lambda stream: stream.write(text.encode()))


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


# ---- learning ----------------------------------------------------------------------------------------------------


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
        self._optimizer = torch.optim.Adam(self.network.parameters(), wanted.learning_rate, fused=True)
        self._num_steps = 0
        self._means = {name: each.detach().clone() for name, each in self.network.named_parameters()}
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
        wanted, began = self._wanted, time.perf_counter()
        self._trained.train()
        random = np.random.default_rng((wanted.seed, epoch))
        torch.manual_seed(wanted.seed * 1_000_003 + epoch * 1009)  # zoneout draws from it
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
            part = (int(places[0]) if len(places) else 0, len(some))
            losses_NT, fixed_N1 = self._trained(part, *windows)
            loss = losses_NT.sum()
            self._optimizer.zero_grad(set_to_none=True)
            # gradients are averaged over processes, and each has its part of the sum alone
            (loss / everywhere * self._world.size).backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), _LONGEST_GRADIENT)
            self._optimizer.step()
            self._average()
            totals += torch.stack([loss.detach(), (fixed_N1 * observed_NT).sum(), observed_NT.sum()]).double()
            batch_done(len(some), mean_loss)
        total, fixed, count = self._world.sum(totals).tolist()
        loss = total / max(count, 1.0)
        if not math.isfinite(loss):
            raise ClientError(f"Training diverged in epoch {epoch}: the loss is {loss}; try a smaller learning_rate.")
        # the scales of the series that were drawn differ from epoch to epoch, and say nothing of the model
        return {
            "loss": loss,
            _OBJECTIVE: (total - fixed) / max(count, 1.0),
            "throughput": len(numbers) / (time.perf_counter() - began),
            "progress": 100 * (epoch + 1) / wanted.epochs,
        }

    def validate(self) -> dict[str, float]:
        """Nothing: the best model is that of the least training loss, as in the original."""
        return {}

    def calibrate(self) -> None:
        """To be called at the end, with the best model; see `calibrate`."""
        calibrate(self.network.eval(), self._frequency, self.series, self.tails, self._wanted.seed)
        log.info("Deviations times %.3f, as %d withheld windows have it", self.network.spread, len(self.tails.numbers))

    @torch.no_grad()
    def _average(self) -> None:
        """Polynomial decay (Shamir and Zhang 2013): a mean over about the last tenth of all steps, however many."""
        self._num_steps += 1
        share = _AVERAGED / (_AVERAGED + self._num_steps)
        torch._foreach_lerp_(list(self._means.values()), [each.detach() for each in self.network.parameters()], share)

    def evaluate(self, test: Withheld) -> Scores:
        return evaluate(self.network, self._frequency, test, self._wanted)

    def model_state(self) -> dict[str, Tensor]:
        """The mean of the latest weights: it forecasts better than any of them; see docs/adr/0008."""
        return {name: each.detach().cpu().clone() for name, each in (self.network.state_dict() | self._means).items()}

    def state(self) -> dict[str, Any]:
        return {
            "network": {name: each.detach().cpu().clone() for name, each in self.network.state_dict().items()},
            "optimizer": self._optimizer.state_dict(),
            "means": {name: each.cpu().clone() for name, each in self._means.items()},
            "num_steps": self._num_steps,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._num_steps = state["num_steps"]
        for name, mean in self._means.items():
            mean.copy_(state["means"][name])

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
        self,
        part: tuple[int, int],
        target_NT: Tensor,
        observed_NT: Tensor,
        features_NTF: Tensor,
        category_NK: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return self.network.losses(target_NT, observed_NT, features_NTF, category_NK, part)


def learning_rate(wanted: Hyperparameters, epochs_done: float) -> float:
    """Along a cosine, from five times the hyperparameter where that is a moderate rate, to a tenth of where it began.

    The original's is constant, and takes many more epochs to as good forecasts; see docs/benchmarks/deepar.md. It need
    not fall to 0: the noise of late steps is averaged out of the weights, and until then leads further (ADR 8).
    """
    highest = max(wanted.learning_rate, min(_FASTER * wanted.learning_rate, _MODERATE_RATE))
    fallen = 0.5 * (1 + math.cos(math.pi * min(epochs_done / wanted.epochs, 1.0)))
    return highest * (_LOWEST + (1 - _LOWEST) * fallen)


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
