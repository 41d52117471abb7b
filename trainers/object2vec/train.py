"""Train Object2Vec: what is read straight down here is what happens."""

# B pairs, O outputs, R rows of a table, D numbers of a row

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor, nn

from trainers import loop
from trainers.artifact import write_json, write_model
from trainers.distributed import World, joined
from trainers.early_stopping import EarlyStopping
from trainers.hyperparameter_schema import parse, plain_values
from trainers.job import ClientError, Job
from trainers.object2vec import data
from trainers.object2vec.data import Pairs
from trainers.object2vec.hyperparameters import Hyperparameters
from trainers.object2vec.model import Network, Sizes, look_up
from trainers.object2vec.pretrained import read_rows
from trainers.object2vec.rows import RowOptimizer
from trainers.progress import EpochLog, log

__all__ = ["Learner", "train"]

_HOST = "algo-1"
_PAIRS_AT_ONCE = 1024
_SIGNS = {"accuracy": "score", "pearson_correlation": "score", "spearman_correlation": "score"}


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
    _warn(job, wanted)
    found: dict[str, Pairs] = {
        name: _read(job, name) for name in ("train", "validation", "test") if name in ("train", *job.channels)
    }
    wanted = _with_sizes(wanted, found["train"])
    log.info("Final configuration: %s", json.dumps(plain_values(wanted)))
    for channel, pairs in found.items():
        data.check(pairs, wanted, channel)
    learner = Learner(wanted, found["train"], found.get("validation"), world, job)
    plan = loop.Plan(
        name="object2vec",
        epochs=wanted.epochs,
        num_samples=learner.num_samples,
        checkpoint_frequency=None,
        early_stopping=_LossStopping(
            min_epochs=1, patience=wanted.early_stopping_patience, tolerance=wanted.early_stopping_tolerance
        ),
        identity=_identity(wanted, found),
        objective=learner.loss_name,
        mode="min",
        objective_of="validation" if "validation" in found else "train",
        lines=PairLog,
    )
    best = loop.run(job, learner, plan, bar, world)
    if best.finished and "test" in found:
        learner.network.load_state_dict(best.state)
        for name, value in learner.evaluate(found["test"]).items():
            best.metrics[f"test:{name}"] = value
            log.info("#quality_metric: host=%s, test %s <%s>=%s", _HOST, name, _SIGNS.get(name, "loss"), value)
        if world.is_first:
            write_json(job.output / "evaluation.json", best.metrics)
    if world.is_first:
        write_model(job, {"hyperparameters": plain_values(wanted)}, best)
    world.meet()


def _read(job: Job, name: str) -> Pairs:
    pairs = data.read_channel(job, name)
    data.announce(pairs, name)
    return pairs


def _warn(job: Job, wanted: Hyperparameters) -> None:
    given = sorted(name for name in job.hyperparameters if name.startswith("enc1_") and name != "enc1_network")
    if wanted.enc1_network == "enc0" and given:
        log.warning(
            "%s: not looked at, for enc1_network is enc0 and takes these from enc0; name a network to set them",
            ", ".join(given),
        )
    if wanted.enc1_network == "enc0" and not wanted.tied_encoder_weight:
        log.info("enc1 is built as enc0 is, but learns weights of its own: embeddings of the two sides do not compare")
    if wanted.feature_dim is not None:
        log.info("feature_dim=%s has no meaning here", wanted.feature_dim)


def _with_sizes(wanted: Hyperparameters, pairs: Pairs) -> Hyperparameters:
    """The hyperparameters with numbers in place of `auto` vocabularies."""
    highest = [int(side.ids.max(initial=0)) for side in pairs.sides]
    if wanted.enc1_network == "enc0":
        highest = [max(highest)] * 2
    changes = {
        f"enc{side}_vocab_size": max(2, highest[side] + 1)
        for side in (0, 1)
        if getattr(wanted, f"enc{side}_vocab_size") == "auto"
    }
    try:
        return dataclasses.replace(wanted, **changes)  # type: ignore[arg-type]
    except ValueError as error:
        raise ClientError(str(error)) from error


def _identity(wanted: Hyperparameters, found: Mapping[str, Pairs]) -> str:
    """Same text, same run: hyperparameters and data."""
    digest = hashlib.sha256(json.dumps(plain_values(wanted), sort_keys=True).encode())
    for name in ("train", "validation"):
        if name in found:
            digest.update(found[name].identity().encode())
    return digest.hexdigest()


@dataclass(slots=True, kw_only=True)
class _LossStopping(EarlyStopping):
    """The tolerance is a difference of losses here (contract, section 3)."""

    def _improves(self, value: float) -> bool:
        return self.best is None or value - self.best >= self.tolerance


class PairLog(EpochLog):
    """The lines of the original (contract, section 4)."""

    _num_pairs = 0

    def begin(self, epoch: int) -> None:
        super().begin(epoch)
        self._num_pairs = 0

    def batch(self, num_samples: int, accuracy: Callable[[], float]) -> None:  # noqa: ARG002
        self._num_pairs += num_samples
        if self._bar and self._line is not None:
            self._bar.advance(self._line, num_samples)

    def trained(self, metrics: Mapping[str, float]) -> None:
        self._tell("train", metrics)
        rate = self._num_pairs / max(self.seconds, 1e-9)
        log.info("#throughput_metric: host=%s, train throughput=%s records/second", _HOST, rate)

    def validated(self, metrics: Mapping[str, float]) -> None:
        self._tell("validation", metrics)
        log.info("#progress_metric: host=%s, completed %d %%", _HOST, 100 * (self._epoch + 1) // self._epochs)

    def improved(self, objective: str, value: float) -> None:  # noqa: ARG002
        log.info("Best loss so far: %f", value)

    def _tell(self, channel: str, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            log.info("#quality_metric: host=%s, epoch=%d, %s %s <%s>=%s",
                     _HOST, self._epoch, channel, name, _SIGNS.get(name, "loss"), value)  # fmt: skip


class Learner:
    """Network, optimizers and data of one run; see `loop.Learner`."""

    def __init__(self, wanted: Hyperparameters, pairs: Pairs, validation: Pairs | None, world: World, job: Job) -> None:
        self._wanted, self._world, self._device = wanted, world, world.device
        self._pairs, self._validation = pairs, validation
        positives = int((pairs.labels != 0).sum())
        self.num_samples = len(pairs) + positives * wanted.negative_sampling_rate
        torch.manual_seed(wanted.seed)
        bias = 0.0 if wanted.output_layer == "softmax" else float(pairs.labels.mean(dtype=np.float64))
        self.network = Network(Sizes.of(wanted), bias)
        frozen = _start_from_files(self.network, wanted, job)
        self.network.to(self._device)
        sparse = wanted.is_sparse
        self._row_optimizers: dict[int, RowOptimizer] = {}
        for number, table in enumerate(self.network.tables):
            table.requires_grad_(not (sparse or number in frozen))
            if sparse and number not in frozen:
                settings = (wanted.optimizer, wanted.learning_rate, wanted.weight_decay)
                self._row_optimizers[number] = RowOptimizer(table.data, *settings)
        # tables that are not in the wrapped part are no matter of its averaged gradients
        self._apart = sparse
        self._trained = world.wrap(self.network.body if sparse else self.network)
        self._optimizer = _make_optimizer(wanted, self.network)

    # ---- training ----

    def train_epoch(self, epoch: int, batch_done: loop.BatchDone) -> dict[str, float]:
        wanted, pairs = self._wanted, self._pairs
        self.network.train()
        random = np.random.default_rng((wanted.seed, epoch))
        torch.manual_seed(wanted.seed * 1_000_003 + epoch * 1009 + self._world.rank)  # dropout draws from it
        drawn = data.draw(pairs, wanted.negative_sampling_rate, random)
        totals = torch.zeros(3, dtype=torch.float64, device=self._device)  # losses, right answers, pairs
        lengths = self._longer_side(pairs, drawn.first, drawn.second)
        for some in data.batches(lengths, wanted.mini_batch_size, wanted.bucket_width, random):
            own = self._world.share(some)
            totals += self._step(pairs, drawn, own, len(some))
            batch_done(len(some), lambda: 0.0)
        for optimizer in self._row_optimizers.values():
            optimizer.settle()
        metrics = self._metrics(self._world.sum(totals))
        loss = metrics[self.loss_name]
        if not math.isfinite(loss):
            raise ClientError(f"Training diverged in epoch {epoch}: the loss is {loss}; try a smaller learning_rate.")
        return metrics

    def _step(self, pairs: Pairs, drawn: data.Drawn, own: NDArray[np.int64], num_pairs: int) -> Tensor:
        """One step on this process's part of a batch of `num_pairs`; its losses, right answers and pairs."""
        id0, id1 = self._ids(pairs, drawn.first[own], drawn.second[own])
        label_B = torch.from_numpy(drawn.labels[own]).to(self._device)
        reads: list[_Read] = []
        if self._apart:
            vector0, known0, vector1, known1 = self._vectors(id0, id1, reads)
            score_BO = self._trained(vector0, known0, vector1, known1)
        else:
            score_BO = self._trained(id0, id1)
        loss_B = self._losses(score_BO, label_B)
        self._optimizer.zero_grad(set_to_none=True)
        # gradients are averaged over processes, and each has its part of the sum alone
        (loss_B.sum() * (self._world.size / num_pairs)).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        for read in reads:
            self._step_rows(read)
        return self._totals(loss_B.detach(), score_BO.detach(), label_B)

    def _vectors(self, id0: Tensor, id1: Tensor, reads: list[_Read]) -> tuple[Tensor, ...]:
        """What the tables say of ids; the rows that were read are leaves of their own, and noted in `reads`."""
        both: list[list[Tensor]] = [[id0, id1]] if len(self.network.tables) == 1 else [[id0], [id1]]
        found: list[Tensor] = []
        for number, ids in enumerate(both):
            table = self.network.tables[number]
            optimizer = self._row_optimizers.get(number)
            if optimizer is None:  # frozen
                for each in ids:
                    found += look_up(table, each)
                continue
            flat = torch.cat([each.reshape(-1) for each in ids]).clamp_(min=0)
            row_R, place = torch.unique(flat, return_inverse=True)
            optimizer.catch_up(row_R)
            leaf_RD = table.data[row_R].requires_grad_()
            reads.append(_Read(number, row_R, leaf_RD))
            places = place.split([each.numel() for each in ids])
            for each, at in zip(ids, places, strict=True):
                known = each >= 0
                vector = nn.functional.embedding(at.view_as(each), leaf_RD) * known.unsqueeze(2)
                found += [vector, known]
        return tuple(found)

    def _step_rows(self, read: _Read) -> None:
        row_R, gradient_RD = read.rows, read.leaf.grad
        assert gradient_RD is not None
        if self._world.size > 1:
            parts = self._world.gather([row_R.cpu(), gradient_RD.cpu() / self._world.size])
            row_R, place = torch.unique(torch.cat(parts[::2]), return_inverse=True)
            joined_gradient = torch.zeros(len(row_R), gradient_RD.shape[1])
            gradient_RD = joined_gradient.index_add_(0, place, torch.cat(parts[1::2])).to(self._device)
            row_R = row_R.to(self._device)
            self._row_optimizers[read.table].catch_up(row_R)
        self._row_optimizers[read.table].step(row_R, gradient_RD)

    # ---- scores ----

    def validate(self) -> dict[str, float]:
        """On the validation channel; the best model is that of the least loss there, or else in training."""
        return {} if self._validation is None else self.evaluate(self._validation)

    @torch.inference_mode()
    def evaluate(self, pairs: Pairs) -> dict[str, float]:
        """Of all pairs, by all processes together: loss, and accuracy of classes or correlations of values."""
        self.network.eval()
        everything = np.arange(len(pairs))
        order = np.argsort(self._longer_side(pairs, everything, everything), kind="stable")
        totals = torch.zeros(3, dtype=torch.float64, device=self._device)
        values: list[Tensor] = []
        for start in range(0, len(order), _PAIRS_AT_ONCE):
            own = self._world.share(order[start : start + _PAIRS_AT_ONCE])
            if len(own):
                label_B = torch.from_numpy(pairs.labels[own]).to(self._device)
                score_BO = self.network(*self._ids(pairs, own, own))
                totals += self._totals(self._losses(score_BO, label_B), score_BO, label_B)
                values.append(torch.stack([score_BO[:, 0], label_B], dim=1).cpu())
        metrics = self._metrics(self._world.sum(totals))
        if self._wanted.output_layer == "mean_squared_error":
            value_N2 = torch.cat(self._world.gather(values)).double().numpy()
            metrics |= data.correlations(value_N2[:, 0], value_N2[:, 1])
        return metrics

    def _losses(self, score_BO: Tensor, label_B: Tensor) -> Tensor:
        if self._wanted.output_layer == "softmax":
            return nn.functional.cross_entropy(score_BO, label_B.long(), reduction="none")
        return (score_BO[:, 0] - label_B).square()

    @staticmethod
    def _totals(loss_B: Tensor, score_BO: Tensor, label_B: Tensor) -> Tensor:
        right = (score_BO.argmax(dim=1) == label_B).sum()
        return torch.stack([loss_B.double().sum(), right.double(), torch.ones_like(loss_B).double().sum()])

    def _metrics(self, totals: Tensor) -> dict[str, float]:
        loss, right, count = totals.tolist()
        if self._wanted.output_layer == "softmax":
            return {"accuracy": right / count, "cross_entropy": loss / count}
        return {"mean_squared_error": loss / count}

    @property
    def loss_name(self) -> str:
        """Among the metrics."""
        return "cross_entropy" if self._wanted.output_layer == "softmax" else "mean_squared_error"

    # ---- data and state ----

    def _ids(self, pairs: Pairs, first: NDArray[np.int64], second: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        side0, side1 = self._wanted.sides
        id0 = torch.from_numpy(pairs.sides[0].padded(first, side0.max_seq_len))
        id1 = torch.from_numpy(pairs.sides[1].padded(second, side1.max_seq_len))
        return id0.to(self._device, non_blocking=True), id1.to(self._device, non_blocking=True)

    def _longer_side(self, pairs: Pairs, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
        side0, side1 = self._wanted.sides
        lengths0 = pairs.sides[0].lengths(side0.max_seq_len)[first]
        return np.maximum(lengths0, pairs.sides[1].lengths(side1.max_seq_len)[second])

    def model_state(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        rows = {str(number): optimizer.state() for number, optimizer in self._row_optimizers.items()}
        return {"network": self.model_state(), "optimizer": self._optimizer.state_dict(), "rows": rows}

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        for number, optimizer in self._row_optimizers.items():
            optimizer.load_state(state["rows"][str(number)])


@dataclass(frozen=True, slots=True)
class _Read:
    """Rows that a step has read, and how its loss depends on them."""

    table: int
    rows: Tensor
    leaf: Tensor


def _start_from_files(network: Network, wanted: Hyperparameters, job: Job) -> set[int]:
    """Put vectors made elsewhere into the tables; the numbers of those that are to stay as they are."""
    frozen = set()
    for number, side in enumerate(wanted.sides[: len(network.tables)]):
        if side.pretrained_embedding_file:
            table = network.tables[number]
            rows, vectors = read_rows(job, side, number, len(table))
            with torch.no_grad():
                table[torch.from_numpy(rows)] = torch.from_numpy(vectors)
            if side.freeze_pretrained_embedding:
                frozen.add(number)
    return frozen


def _make_optimizer(wanted: Hyperparameters, network: Network) -> torch.optim.Optimizer:
    trainable = [(name, each) for name, each in network.named_parameters() if each.requires_grad]
    groups = [
        {"params": [each for name, each in trainable if not _is_bias(name)], "weight_decay": wanted.weight_decay},
        {"params": [each for name, each in trainable if _is_bias(name)], "weight_decay": 0.0},
    ]
    makers: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adagrad": torch.optim.Adagrad,
        "adadelta": torch.optim.Adadelta,
        "rmsprop": torch.optim.RMSprop,
        "sgd": torch.optim.SGD,
    }
    fused = {"fused": True} if wanted.optimizer in ("adam", "adagrad", "sgd") and not torch.cuda.is_available() else {}
    return makers[wanted.optimizer](groups, lr=wanted.learning_rate, **fused)


def _is_bias(name: str) -> bool:
    return "bias" in name.rsplit(".", 1)[-1]
