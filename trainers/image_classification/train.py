"""Train an image classifier: what is read straight down here is what happens."""

# B batch, H height, W width, K classes

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from trainers import loop, schedules
from trainers.artifact import write_json, write_model
from trainers.distributed import World, joined
from trainers.early_stopping import early_stopping
from trainers.hyperparameter_schema import parse, plain_values
from trainers.image_classification.data import Batch, make_batches, open_channel
from trainers.image_classification.evaluation import Evaluation
from trainers.image_classification.hyperparameters import Hyperparameters
from trainers.image_classification.start import make_network
from trainers.job import ClientError, Job
from trainers.optimizers import make_optimizer, set_rate
from trainers.pipes import feeding
from trainers.precision import Precision
from trainers.progress import log
from trainers.vision.batches import Batches, ImageChannel
from trainers.vision.loader import usable_cores
from trainers.vision.runs import identity, open_both, refuse_what_cannot_be_shared

__all__ = ["Classifier", "Scores", "learning_rate", "train"]

_LARGEST_POSITIVE_WEIGHT = 100.0


def train(job: Job, bar: Progress | None = None) -> Path:
    """Returns `job.model`: `model.pt`, a state dict, and `model.json`, all else that exporters need.

    Raises:
        ClientError: a hyperparameter, a channel or a record is wrong.
    """
    wanted = parse(Hyperparameters, job.hyperparameters)
    with joined() as world, feeding(job) as fed:
        refuse_what_cannot_be_shared(job, wanted, world)
        _train(fed, wanted, world, bar)
    return job.model


def _train(job: Job, wanted: Hyperparameters, world: World, bar: Progress | None) -> None:
    _announce(wanted, world)
    images, validation = open_both(job, wanted, lambda name: open_channel(job, name, wanted))
    if images.is_pipe and wanted.use_weighted_loss:
        raise ClientError("use_weighted_loss=1 counts the labels beforehand, which Pipe mode does not allow.")
    # torch counts the machine's cores, not those this process may use; fewer, by OMP_NUM_THREADS, stay fewer
    torch.set_num_threads(min(torch.get_num_threads(), max(1, usable_cores() // world.local_size)))
    network, architecture = make_network(job, wanted)
    batches = make_batches(images, validation, wanted, world)
    learner = Classifier(wanted, network, batches, world, _positive_weights(wanted, images))
    plan = loop.Plan(
        name="image-classification",
        epochs=wanted.epochs,
        num_samples=batches.per_epoch * batches.size,
        checkpoint_frequency=wanted.checkpoint_frequency,
        early_stopping=early_stopping(wanted),
        identity=identity(wanted, images, validation),
    )
    best = loop.run(job, learner, plan, bar, world)
    if best.finished:
        report = learner.evaluate(best.state, images.class_names)
        if world.is_first:
            write_json(job.output / "evaluation.json", report)
    if world.is_first:
        description = {
            "architecture": architecture,
            "hyperparameters": plain_values(wanted),
            "num_classes": wanted.num_classes,
            "image_shape": list(wanted.image_shape),
            "multi_label": wanted.multi_label,
            "labels": images.class_names,
        }
        write_model(job, description, best)
    world.meet()


class Classifier:
    """Network, optimizer and data of one run; see `loop.Learner`."""

    def __init__(
        self,
        wanted: Hyperparameters,
        network: nn.Module,
        batches: Batches[Batch],
        world: World,
        positive_weight_K: Tensor,
    ) -> None:
        self._wanted, self._batches, self._world = wanted, batches, world
        self._device = world.device
        # images lie in memory as NHWC; measured 1.2 times as fast as NCHW on two cores
        self.network = network.to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._trained = world.wrap(self.network)
        self._optimizer = make_optimizer(wanted, self.network)
        self._precision = Precision(wanted.precision_dtype, self._device)
        self._positive_weight_K = positive_weight_K.to(self._device)

    def train_epoch(self, epoch: int, batch_done: loop.BatchDone) -> dict[str, float]:
        self._trained.train()
        scored = Scores(self._wanted, self._device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)  # read once: a GPU is not waited for
        for number, batch in enumerate(self._batches.train(epoch)):
            rate = learning_rate(self._wanted, epoch + number / self._batches.per_epoch)
            set_rate(self._optimizer, rate)
            image_B3HW = batch.image.to(self._device, non_blocking=True)
            label = batch.label.to(self._device, non_blocking=True)
            with self._precision.autocast():
                score_BK = self._trained(image_B3HW)
            loss = self._loss_sum(score_BK.float(), label)
            # gradients are averaged over processes, which may hold parts of different size
            self._precision.step(loss * (self._world.size / self._batches.size), self._optimizer)
            loss_sum += loss.detach()
            scored.add(score_BK.detach(), label)
            batch_done(self._batches.size, scored.accuracy)
        scored.sum_over(self._world)
        mean_loss = self._world.sum(loss_sum).item() / max(scored.num_images, 1)
        if not math.isfinite(mean_loss):
            raise ClientError(
                f"Training diverged in epoch {epoch}: the loss is {mean_loss}; try a smaller learning_rate."
            )
        return scored.metrics() | {"loss": mean_loss}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        self._world.average_buffers(self.network)
        self.network.eval()
        scored = Scores(self._wanted, self._device)
        for batch in self._batches.validation():
            with self._precision.autocast():
                score_BK = self.network(batch.image.to(self._device, non_blocking=True))
            scored.add(score_BK, batch.label.to(self._device))
        scored.sum_over(self._world)
        if not scored.num_images:
            raise ClientError("Channel 'validation' holds no image that can be decoded.")
        return scored.metrics()

    @torch.no_grad()
    def evaluate(self, state: dict[str, Tensor], labels: list[str] | None) -> dict[str, Any]:
        """A report on the validation images by the model of `state`; see `Evaluation`."""
        self.network.load_state_dict(state)
        self.network.eval()
        wanted = self._wanted
        evaluation = Evaluation(wanted.num_classes, multi_label=wanted.multi_label, device=self._device)
        for batch in self._batches.validation():
            with self._precision.autocast():
                score_BK = self.network(batch.image.to(self._device, non_blocking=True))
            evaluation.add(score_BK, batch.label.to(self._device))
        return evaluation.report(self._world, labels)

    def model_state(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous().clone() for name, value in self.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        return {
            "network": self.model_state(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._precision.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._precision.load_state(state["scaler"])

    def _loss_sum(self, score_BK: Tensor, label: Tensor) -> Tensor:
        """Summed over images; of several labels, the mean over classes of each image."""
        if self._wanted.multi_label:
            summed = functional.binary_cross_entropy_with_logits(
                score_BK, label, pos_weight=self._positive_weight_K, reduction="sum"
            )
            return summed / score_BK.shape[1]
        smoothing = self._wanted.label_smoothing
        return functional.cross_entropy(score_BK, label, reduction="sum", label_smoothing=smoothing)


class Scores:
    """Counts of right answers: exact, whatever the number of images."""

    def __init__(self, wanted: Hyperparameters, device: torch.device | None = None) -> None:
        self._multi_label = wanted.multi_label
        self._top_k = None if wanted.multi_label else wanted.top_k  # one right class is what top-k counts
        self._counts = torch.zeros(4, dtype=torch.int64, device=device)  # images, judged, right, in the top k

    def add(self, score_BK: Tensor, label: Tensor) -> None:
        right = ((score_BK > 0) == (label > 0.5)) if self._multi_label else (score_BK.argmax(dim=1) == label)
        self._counts[0] += len(label)
        self._counts[1] += right.numel()
        self._counts[2] += right.sum()
        if self._top_k:
            self._counts[3] += (score_BK.topk(self._top_k).indices == label[:, None]).sum()

    def sum_over(self, world: World) -> None:
        world.sum(self._counts)

    @property
    def num_images(self) -> int:
        return int(self._counts[0])

    def accuracy(self) -> float:
        """Share of right images; with several labels, the mean over classes."""
        _, judged, right, _ = self._counts.tolist()
        return float(right / max(judged, 1))

    def metrics(self) -> dict[str, float]:
        images, _, _, in_top = self._counts.tolist()
        top = {f"top_k_accuracy_{self._top_k}": in_top / max(images, 1)} if self._top_k else {}
        return {"accuracy": self.accuracy()} | top


def learning_rate(wanted: Hyperparameters, epochs_done: float) -> float:
    """The rate when so many epochs are done; step 10 means that 10 epochs run before the rate falls."""
    if wanted.lr_scheduler == "cosine":
        return schedules.cosine(wanted.learning_rate, epochs_done, wanted.epochs)
    if wanted.lr_scheduler == "one_cycle":
        return schedules.one_cycle(wanted.learning_rate, epochs_done, wanted.epochs)
    return schedules.step(
        wanted.learning_rate, epochs_done, steps=wanted.lr_scheduler_step, factor=wanted.lr_scheduler_factor
    )


def _announce(wanted: Hyperparameters, world: World) -> None:
    values = plain_values(wanted)
    log.info("Final configuration: %s", json.dumps(values))
    log.info("---- Parameters ----")
    for name, value in values.items():
        log.info("%s: %s", name, value)
    if wanted.checkpoint_frequency is None:
        log.info("checkpoint_frequency not set, will store the best model")
    if wanted.kv_store and world.num_hosts == 1:
        log.info("kv_store=%s has no effect on one machine: its processes always compute one common update",
                 wanted.kv_store)  # fmt: skip
    elif world.num_hosts > 1:
        log.info("kv_store=%s: all machines compute one common update (all-reduce), %d images in all",
                 wanted.kv_store, wanted.mini_batch_size * world.num_hosts)  # fmt: skip
    if wanted.top_k and wanted.multi_label:
        log.info("top_k=%d has no effect with multi_label=1", wanted.top_k)
    if wanted.lr_scheduler != "step" and wanted.lr_scheduler_step:
        log.info("lr_scheduler_step has no effect with lr_scheduler=%s", wanted.lr_scheduler)
    if world.size > 1:
        log.info("%d processes on %d machines", world.size, world.num_hosts)
    if not torch.cuda.is_available():
        log.warning("No GPU found: training on the CPU, which is slow for large networks and images")


def _positive_weights(wanted: Hyperparameters, images: ImageChannel) -> Tensor:
    """(K,): how many times more often a class is absent than present; 1 without use_weighted_loss."""
    if not wanted.use_weighted_loss:
        return torch.ones(wanted.num_classes)
    present_K = torch.from_numpy(images.labels).float().mean(dim=0)
    return ((1 - present_K) / present_K.clamp(min=1e-6)).clamp(1 / _LARGEST_POSITIVE_WEIGHT, _LARGEST_POSITIVE_WEIGHT)
