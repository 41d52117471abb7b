"""Train Seq2seq: what is read straight down here is what happens."""

# B pairs, S source tokens, T target steps, N target tokens of all pairs, V the target's vocabulary

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from formats import vocabulary
from formats.vocabulary import PAD
from trainers import checkpoints, loop
from trainers.artifact import write_json, write_model
from trainers.distributed import World, joined
from trainers.early_stopping import EarlyStopping
from trainers.hyperparameter_schema import parse, plain_values
from trainers.job import ClientError, Job
from trainers.precision import Precision
from trainers.progress import EpochLog, log
from trainers.seq2seq import data
from trainers.seq2seq.beam_search import BeamSearch
from trainers.seq2seq.data import Pairs, Vocabularies
from trainers.seq2seq.evaluation import bleu_scores
from trainers.seq2seq.hyperparameters import Hyperparameters
from trainers.seq2seq.model import Network

__all__ = ["VOCABULARY_FILES", "Learner", "max_lengths", "train"]

VOCABULARY_FILES = ("vocab.src.json", "vocab.trg.json")
"""Beside the model's weights, as the original has them."""
_HOST = "algo-1"
_BATCHES_PER_LINE = 50
_BLEU_SEED = 42
_NO_END = 1_000_000
"""Checkpoints of a run that only early stopping ends."""
_TRANSLATED_AT_ONCE = 128


def train(job: Job, bar: Progress | None = None) -> Path:
    """Returns `job.model`: `model.pt`, a state dict, both vocabularies, and `model.json`, all that exporters need.

    Raises:
        ClientError: a hyperparameter, a channel or a record is wrong.
    """
    wanted = parse(Hyperparameters, job.hyperparameters)
    with joined() as world:
        _train(job, wanted, world, bar)
    return job.model


def _train(job: Job, wanted: Hyperparameters, world: World, bar: Progress | None) -> None:
    for name in ("train", "validation", "vocab"):
        job.channel(name)
    if wanted.momentum is not None and wanted.optimizer_type != "sgd":
        log.warning("momentum=%g: not looked at, for optimizer_type is %s", wanted.momentum, wanted.optimizer_type)
    known = data.read_vocabularies(job)
    log.info("Vocabularies: %d source and %d target tokens", len(known.source), len(known.target))
    found = [data.read_channel(job, name, wanted, known) for name in ("train", "validation")]
    log.info("Final configuration: %s", json.dumps(plain_values(wanted)))
    learner = Learner(wanted, found[0], found[1], known, world)
    plan = loop.Plan(
        name="seq2seq",
        epochs=learner.num_checkpoints,
        num_samples=min(wanted.checkpoint_frequency_num_batches, learner.num_updates) * wanted.batch_size,
        checkpoint_frequency=None,
        early_stopping=learner.early_stopping(),
        identity=_identity(wanted, known, found),
        objective=wanted.optimized_metric,
        mode=learner.mode,
        lines=partial(CheckpointLog, learner=learner),
    )
    best = loop.run(job, learner, plan, bar, world)
    if world.is_first:
        ratios = found[0].length_ratios
        description = {
            "hyperparameters": plain_values(wanted),
            "num_words": [len(known.source), len(known.target)],
            "length_ratio": {"mean": float(ratios.mean()), "standard_deviation": float(ratios.std())},
        }
        for name, words in zip(VOCABULARY_FILES, known, strict=True):
            text = vocabulary.encode(words)
            checkpoints.write_aside(job.model / name, lambda file, text=text: file.write(text))  # type: ignore[misc]
        if best.finished:
            write_json(job.output / "evaluation.json", best.metrics)
        write_model(job, description, best)
    world.meet()


def max_lengths(source_lengths: NDArray[np.int64], mean: float, standard_deviation: float) -> NDArray[np.int64]:
    """Steps after which hypotheses end (contract, section 6.4), `</s>` counted.

    Args:
        source_lengths: numbers of source tokens.
        mean: of target tokens per source token.
        standard_deviation: of the same.
    """
    limits: NDArray[np.int64] = np.ceil(source_lengths * (mean + 2 * standard_deviation) - 1e-9).astype(np.int64) + 1
    return limits


def _identity(wanted: Hyperparameters, known: Vocabularies, found: Sequence[Pairs]) -> str:
    digest = hashlib.sha256(json.dumps([plain_values(wanted), *known], sort_keys=True).encode())
    for pairs in found:
        digest.update(pairs.identity().encode())
    return digest.hexdigest()


class CheckpointLog(EpochLog):
    """Sockeye's lines, and the sibling algorithms' `#quality_metric` (contract, section 4)."""

    def __init__(self, *arguments: Any, learner: Learner, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._learner = learner

    def batch(self, num_samples: int, accuracy: Callable[[], float]) -> None:
        self._num_batches += 1
        self._window_samples += num_samples
        if self._bar and self._line is not None:
            self._bar.advance(self._line, num_samples)
        elif self._num_batches % _BATCHES_PER_LINE == 0:
            now = self.seconds
            speed = self._window_samples / max(now - self._window_started, 1e-9)
            name = self._learner.training_metric
            log.info("Epoch[%d] Batch [%d]\tSpeed: %.2f samples/sec\t%s=%f",
                     self._learner.epoch, self._num_batches, speed, name, accuracy())  # fmt: skip
            self._window_started, self._window_samples = now, 0

    def begin(self, epoch: int) -> None:
        super().begin(epoch)
        self._window_started = 0.0  # counted as `seconds` here

    def trained(self, metrics: Mapping[str, float]) -> None:
        learner, number = self._learner, self._epoch + 1
        log.info("Checkpoint [%d]\tUpdates=%d Epoch=%d Samples=%d Time-cost=%.3f learning_rate=%g",
                 number, learner.updates, learner.epoch, learner.num_seen, self.seconds, learner.rate)  # fmt: skip
        for name, value in metrics.items():
            log.info("Checkpoint [%d]\tTrain-%s=%f", self._epoch + 1, name, value)

    def validated(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            log.info("Checkpoint [%d]\tValidation-%s=%f", self._epoch + 1, name, value)
            sign = "loss" if name == "perplexity" else "score"
            log.info("#quality_metric: host=%s, epoch=%d, validation %s <%s>=%s",
                     _HOST, self._learner.epoch, name, sign, value)  # fmt: skip
        if self._learner.bleu_of_text is not None:
            log.info("Checkpoint [%d]\tBLEU is %.2f in percent, and %.2f by sacreBLEU's 13a on merged text",
                     self._epoch + 1, 100 * metrics["bleu"], self._learner.bleu_of_text)  # fmt: skip
        if self._epochs < _NO_END:
            done = 100 * (self._epoch + 1) // self._epochs
            log.info("#progress_metric: host=%s, completed %d %%", _HOST, done)

    def improved(self, objective: str, value: float) -> None:
        log.info("Best %s so far: %f", objective, value)


class Learner:
    """Network, optimizer and data of one run; see `loop.Learner`, whose epochs are stretches between checkpoints."""

    def __init__(
        self, wanted: Hyperparameters, pairs: Pairs, validation: Pairs, known: Vocabularies, world: World
    ) -> None:
        self._wanted, self._world, self._device = wanted, world, world.device
        self._pairs, self._validation = pairs, validation
        self._words = vocabulary.tokens_of(known.target)
        ratios = pairs.length_ratios
        self._ratio = (float(ratios.mean()), float(ratios.std()))
        self._buckets = data.buckets(wanted, self._ratio[0])
        first = list(data.batches(pairs, self._buckets, wanted.batch_size, np.random.default_rng((wanted.seed, 0))))
        self._batches, self._batches_of = first, 0
        torch.manual_seed(wanted.seed)
        self.network = Network(wanted, len(known.source), len(known.target)).to(self._device)
        self._trained = world.wrap(self.network)
        self._optimizer = _make_optimizer(wanted, self.network)
        self._precision = Precision(wanted.precision_dtype, self._device)
        self.updates = 0
        self.rate = wanted.learning_rate
        self._base_rate = wanted.learning_rate
        self._best, self._num_without_improvement = -math.inf, 0
        self.bleu_of_text: float | None = None
        log.info("%d batches an epoch in %d buckets; %d parameters", len(first), len(self._buckets),
                 sum(each.numel() for each in self.network.parameters()))  # fmt: skip

    # ---- the run's course ----

    @property
    def num_updates(self) -> int:
        """Of the whole run; very many where only early stopping ends it."""
        wanted = self._wanted
        limits = [wanted.max_num_batches] if wanted.max_num_batches > 0 else []
        if wanted.max_num_epochs is not None:
            limits.append(wanted.max_num_epochs * len(self._batches))
        return min(limits, default=_NO_END * wanted.checkpoint_frequency_num_batches)

    @property
    def num_checkpoints(self) -> int:
        return math.ceil(self.num_updates / self._wanted.checkpoint_frequency_num_batches)

    @property
    def epoch(self) -> int:
        """Passes over the data that are done."""
        return self.updates // len(self._batches)

    @property
    def num_seen(self) -> int:
        """Pairs since the run began, where no pair is seen twice before another is seen once."""
        return self.epoch * len(self._pairs) + sum(len(each) for _, each in self._batches[: self._place])

    @property
    def _place(self) -> int:
        return self.updates % len(self._batches)

    @property
    def mode(self) -> Literal["max", "min"]:
        """Which values of the optimized metric are the better ones."""
        return "min" if self._wanted.optimized_metric == "perplexity" else "max"

    @property
    def training_metric(self) -> str:
        return self._wanted.training_metric

    def early_stopping(self) -> EarlyStopping | None:
        """None where the number of epochs is given, which the original then takes as an order."""
        wanted = self._wanted
        if wanted.max_num_epochs is not None:
            return None
        first = wanted.min_num_epochs * len(self._batches) / wanted.checkpoint_frequency_num_batches
        # so small a tolerance asks for any improvement at all
        return _Stopping(min_epochs=math.ceil(first), patience=wanted.checkpoint_threshold, tolerance=0.0)

    # ---- training ----

    def train_epoch(self, epoch: int, batch_done: loop.BatchDone) -> dict[str, float]:
        wanted = self._wanted
        torch.manual_seed(wanted.seed * 1_000_003 + epoch * 1009 + self._world.rank)  # dropout draws from it
        self.network.train()
        totals = torch.zeros(3, dtype=torch.float64, device=self._device)  # log losses, right tokens, tokens
        stop = min((epoch + 1) * wanted.checkpoint_frequency_num_batches, self.num_updates)

        def metric_so_far() -> float:
            return self._metrics(totals)[wanted.training_metric]

        while self.updates < stop:
            bucket, some = self._batch()
            totals += self._step(bucket, some)
            self.updates += 1
            batch_done(len(some), metric_so_far)
        metrics = self._metrics(self._world.sum(totals))
        self._refuse_divergence(metrics["perplexity"])
        return {name: metrics[name] for name in ("perplexity", *self._also_accuracy)}

    def _refuse_divergence(self, perplexity: float) -> None:
        if not math.isfinite(perplexity):
            raise ClientError(
                f"Training diverged at update {self.updates}: the perplexity is {perplexity}; "
                "try a smaller learning_rate, or a smaller clip_gradient."
            )

    @property
    def _also_accuracy(self) -> tuple[str, ...]:
        return ("accuracy",) if self._wanted.training_metric == "accuracy" else ()

    def _batch(self) -> tuple[int, NDArray[np.int64]]:
        epoch, place = divmod(self.updates, len(self._batches))
        if self._batches_of != epoch:
            random = np.random.default_rng((self._wanted.seed, epoch))
            self._batches = list(data.batches(self._pairs, self._buckets, self._wanted.batch_size, random))
            self._batches_of = epoch
        return self._batches[place]

    def _step(self, bucket: int, some: NDArray[np.int64]) -> Tensor:
        """One update; its log losses, right tokens and tokens of this process's part."""
        own = self._world.share(some)
        # a batch of fewer pairs than processes: some have one that does not count, for all must take part
        counts = 1.0 if len(own) else 0.0
        source_BS, label_BT = self._tensors(self._pairs, own if len(own) else some[:1], bucket)
        num_tokens = int(self._pairs.target.lengths[some].sum()) + len(some)
        self._set_rate()
        with self._precision.autocast():
            logit_NV = self._trained(source_BS, label_BT)
        word_N = label_BT[label_BT != PAD]
        log_probability_NV = torch.log_softmax(logit_NV.float(), dim=1)
        loss_N = -log_probability_NV.gather(1, word_N.unsqueeze(1)).squeeze(1)
        loss = loss_N.sum()
        smoothing = self._wanted.label_smoothing
        if smoothing:
            loss = (1 - smoothing) * loss - smoothing * log_probability_NV.mean(dim=1).sum()
        # gradients are averaged over processes, and each has its part of the sum alone
        loss = loss * (counts * self._world.size / num_tokens)
        clip = self._wanted.clip_gradient
        self._precision.step(loss, self._optimizer, largest_element=clip if clip >= 0 else None)
        return counts * self._totals(loss_N.detach(), logit_NV.detach(), word_N, self._also_accuracy != ())

    @staticmethod
    def _totals(loss_N: Tensor, logit_NV: Tensor, word_N: Tensor, with_accuracy: bool) -> Tensor:
        right = (logit_NV.argmax(dim=1) == word_N).sum() if with_accuracy else torch.zeros_like(loss_N[0])
        return torch.stack([loss_N.double().sum(), right.double(), torch.ones_like(loss_N).double().sum()])

    def _tensors(self, pairs: Pairs, some: NDArray[np.int64], bucket: int) -> tuple[Tensor, Tensor]:
        wide = (0, 0) if self._wanted.bucketing_enabled else self._buckets[bucket]
        source_BS = torch.from_numpy(pairs.source.padded(some, wide[0]))
        label_BT = torch.from_numpy(pairs.target.padded(some, wide[1] + 1 if wide[1] else 0, end=True))
        return source_BS.to(self._device, non_blocking=True), label_BT.to(self._device, non_blocking=True)

    @staticmethod
    def _metrics(totals: Tensor) -> dict[str, float]:
        loss, right, count = totals.tolist()
        mean = loss / count
        perplexity = math.exp(mean) if mean < 700 else math.inf if mean >= 700 else math.nan
        return {"perplexity": perplexity, "accuracy": right / count}

    def _set_rate(self) -> None:
        wanted = self._wanted
        since = self.updates / (wanted.fixed_rate_lr_half_life * wanted.checkpoint_frequency_num_batches)
        rate = self._base_rate
        if wanted.lr_scheduler_type == "fixed_rate_inv_t":
            rate /= 1 + since
        elif wanted.lr_scheduler_type == "fixed_rate_inv_sqrt_t":
            rate /= math.sqrt(1 + 3 * since)
        if wanted.learning_rate_warmup_num_batches:
            rate *= min(1.0, (self.updates + 1) / wanted.learning_rate_warmup_num_batches)
        if wanted.cooldown:
            rate *= min(1.0, (self.num_updates - self.updates) / (wanted.cooldown * self.num_updates))
        self.rate = rate
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    # ---- validation ----

    def validate(self) -> dict[str, float]:
        self.network.eval()
        totals = torch.zeros(3, dtype=torch.float64, device=self._device)
        with torch.inference_mode():
            for bucket, some in data.batches(self._validation, self._buckets, self._wanted.batch_size, None):
                own = self._world.share(some)
                if not len(own):
                    continue
                source_BS, label_BT = self._tensors(self._validation, own, bucket)
                with self._precision.autocast():
                    logit_NV = self.network(source_BS, label_BT).float()
                word_N = label_BT[label_BT != PAD]
                loss_N = torch.nn.functional.cross_entropy(logit_NV, word_N, reduction="none")
                totals += self._totals(loss_N, logit_NV, word_N, True)
        metrics = self._metrics(self._world.sum(totals))
        self._refuse_divergence(metrics["perplexity"])
        if self._wanted.bleu_sample:
            metrics["bleu"] = self._bleu()
        self._reduce_on_plateau(metrics[self._wanted.optimized_metric])
        return metrics

    def _bleu(self) -> float:
        """Of the same validation pairs each time."""
        number, pairs = self._wanted.bleu_sample, self._validation
        chosen = np.arange(len(pairs))
        if 0 < number < len(pairs):
            chosen = np.sort(np.random.default_rng(_BLEU_SEED).choice(len(pairs), number, replace=False))
        chosen = chosen[np.argsort(pairs.source.lengths[chosen], kind="stable")]
        search = BeamSearch(self.network).eval()
        translations = []
        references = []
        for at in range(0, len(chosen), _TRANSLATED_AT_ONCE):
            some = chosen[at : at + _TRANSLATED_AT_ONCE]
            translations += self._translated(search, some)
            references += [self._text(row) for row in pairs.target.padded(some, 0)]
        scores = bleu_scores(translations, references)
        self.bleu_of_text = scores.text
        return scores.tokens

    def _translated(self, search: BeamSearch, some: NDArray[np.int64]) -> list[list[str]]:
        source = self._validation.source
        limits = max_lengths(source.lengths[some], *self._ratio)
        number = len(some)
        with torch.inference_mode():
            target_BT, _, _ = search(
                torch.from_numpy(source.padded(some, 0)).to(self._device),
                torch.from_numpy(limits).to(self._device),
                torch.full((number,), min(self._wanted.beam_size, len(self._words)), device=self._device),
                torch.tensor([[1.0, 0.0]], device=self._device).expand(number, 2),
                torch.zeros(number, dtype=torch.bool, device=self._device),
            )
        return [self._text(row) for row in target_BT.cpu().numpy()]

    def _text(self, row: NDArray[np.int64]) -> list[str]:
        return [self._words[token] for token in row.tolist() if token != PAD]

    def _reduce_on_plateau(self, value: float) -> None:
        wanted = self._wanted
        score = value if self.mode == "max" else -value  # larger is better, in checkpoints too
        if score > self._best:
            self._best, self._num_without_improvement = score, 0
            return
        self._num_without_improvement += 1
        reduces = wanted.lr_scheduler_type == "plateau_reduce"
        if reduces and self._num_without_improvement >= wanted.plateau_reduce_lr_threshold:
            self._base_rate *= wanted.plateau_reduce_lr_factor
            self._num_without_improvement = 0
            log.info("%s has not improved in %d checkpoints: learning_rate is %g from now on",
                     wanted.optimized_metric, wanted.plateau_reduce_lr_threshold, self._base_rate)  # fmt: skip

    # ---- state ----

    def model_state(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        return {
            "network": self.model_state(),
            "optimizer": self._optimizer.state_dict(),
            "precision": self._precision.state(),
            "updates": self.updates,
            "plateau": [self._base_rate, self._best, self._num_without_improvement],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._precision.load_state(state["precision"])
        self.updates = state["updates"]
        self._base_rate, self._best, self._num_without_improvement = state["plateau"]


class _Stopping(EarlyStopping):
    def _improves(self, value: float) -> bool:
        return self.best is None or value > self.best


def _make_optimizer(wanted: Hyperparameters, network: Network) -> torch.optim.Optimizer:
    weights = [each for each in network.parameters() if each.dim() > 1]
    biases = [each for each in network.parameters() if each.dim() == 1]  # MXNet decays no bias
    groups = [{"params": weights, "weight_decay": wanted.weight_decay}, {"params": biases, "weight_decay": 0.0}]
    if wanted.optimizer_type == "adam":
        return torch.optim.Adam(groups, lr=wanted.learning_rate, fused=True)
    if wanted.optimizer_type == "sgd":
        return torch.optim.SGD(groups, lr=wanted.learning_rate, momentum=wanted.momentum or 0.0)
    return torch.optim.RMSprop(groups, lr=wanted.learning_rate, alpha=0.9)
