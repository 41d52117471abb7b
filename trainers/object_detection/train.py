"""Train a Single Shot Detector: what is read straight down here is what happens."""

# B batch, A anchors, M objects of the image that has most

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from trainers import loop, schedules
from trainers.artifact import write_json, write_model
from trainers.distributed import World, joined
from trainers.early_stopping import early_stopping
from trainers.hyperparameter_schema import parse, plain_values
from trainers.job import ClientError, Job
from trainers.object_detection.data import Batch, make_batches, open_channel
from trainers.object_detection.detection import Detections
from trainers.object_detection.evaluation import Evaluation
from trainers.object_detection.hyperparameters import Hyperparameters
from trainers.object_detection.loss import match, multibox_losses
from trainers.object_detection.model import SingleShotDetector
from trainers.object_detection.start import make_network
from trainers.optimizers import make_optimizer, set_rate
from trainers.pipes import feeding
from trainers.precision import Precision
from trainers.progress import QualityLog, log
from trainers.vision.batches import Batches
from trainers.vision.loader import usable_cores
from trainers.vision.runs import identity, open_both, refuse_what_cannot_be_shared

__all__ = ["Detector", "learning_rate", "train"]

_LARGEST_GRADIENT = 10.0
"""L2 norm to which gradients are cut: the first steps from random weights are steep."""


def train(job: Job, bar: Progress | None = None) -> Path:
    """Returns `job.model`: `model.pt`, a state dict, `model.json`, all that exporters need, and `hyperparams.json`.

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
    # torch counts the machine's cores, not those this process may use; fewer, by OMP_NUM_THREADS, stay fewer
    torch.set_num_threads(min(torch.get_num_threads(), max(1, usable_cores() // world.local_size)))
    network = make_network(job, wanted)
    batches = make_batches(images, validation, wanted, world)
    learner = Detector(wanted, network, batches, world)
    plan = loop.Plan(
        name="object-detection",
        epochs=wanted.epochs,
        num_samples=batches.per_epoch * batches.size,
        checkpoint_frequency=None,
        early_stopping=early_stopping(wanted),
        identity=identity(wanted, images, validation),
        objective="mAP",
        lines=QualityLog,
    )
    best = loop.run(job, learner, plan, bar, world)
    if best.finished:
        report = learner.evaluate(best.state)
        if world.is_first:
            write_json(job.output / "evaluation.json", report)
    if world.is_first:
        write_model(job, {"hyperparameters": plain_values(wanted)}, best)
    world.meet()


class Detector:
    """Network, optimizer and data of one run; see `loop.Learner`."""

    def __init__(
        self, wanted: Hyperparameters, network: SingleShotDetector, batches: Batches[Batch], world: World
    ) -> None:
        self._wanted, self._batches, self._world = wanted, batches, world
        self._device = world.device
        # images lie in memory as NHWC; measured 1.2 times as fast as NCHW on two cores
        self.network = network.to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._trained = world.wrap(self.network)
        self._optimizer = make_optimizer(wanted, self.network, rmsprop_decays=True)
        self._precision = Precision(wanted.precision_dtype, self._device)
        self._detections = Detections(
            self.network, nms_threshold=wanted.nms_threshold, nms_topk=wanted.nms_topk
        )  # fmt: skip
        self._num_validated = 0
        self._last_map = 0.0

    def train_epoch(self, epoch: int, batch_done: loop.BatchDone) -> dict[str, float]:
        self._trained.train()
        totals = torch.zeros(3, dtype=torch.float64, device=self._device)  # cross-entropy, smooth L1, matched anchors
        for number, batch in enumerate(self._batches.train(epoch)):
            rate = learning_rate(self._wanted, epoch + number / self._batches.per_epoch)
            set_rate(self._optimizer, rate)
            matches = match(batch.objects.to(self._device, non_blocking=True), self.network.anchors)
            with self._precision.autocast():
                score_BAL, offset_BA4 = self._trained(batch.image.to(self._device, non_blocking=True))
            losses = multibox_losses(score_BAL.float(), offset_BA4.float(), matches)
            # over all processes: their images hold unlike numbers of objects
            matched = self._world.sum(losses.num_matched.detach().clone()).clamp(min=1)
            loss = (losses.cross_entropy + losses.smooth_l1) / matched
            # gradients are averaged over processes, and each has its part of the sum alone
            self._precision.step(loss * self._world.size, self._optimizer, _LARGEST_GRADIENT)
            totals += torch.stack([value.detach().double() for value in losses])
            batch_done(self._batches.size, float)
        cross_entropy, smooth_l1, matched_in_all = self._world.sum(totals).tolist()
        mean = (cross_entropy + smooth_l1) / max(matched_in_all, 1)
        if not math.isfinite(mean):
            raise ClientError(f"Training diverged in epoch {epoch}: the loss is {mean}; try a smaller learning_rate.")
        self._num_validated = epoch
        return {
            "cross_entropy": cross_entropy / max(matched_in_all, 1),
            "smooth_l1": smooth_l1 / max(matched_in_all, 1),
        }

    def validate(self) -> dict[str, float]:
        done = self._num_validated + 1
        # the first epoch too: no score is told that was not measured
        if done in (1, self._wanted.epochs) or done % self._wanted.validation_frequency == 0:
            self._last_map = self._measure().mean_average_precision()
        return {"mAP": self._last_map}

    def evaluate(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """A report on the validation images by the model of `state`; see `Evaluation`."""
        self.network.load_state_dict(state)
        return self._measure().report()

    @torch.no_grad()
    def _measure(self) -> Evaluation:
        """Over all validation images, in every process."""
        self._world.average_buffers(self.network)
        self._detections.eval()
        found: list[Tensor] = []
        for batch in self._batches.validation():
            with self._precision.autocast():
                rows_BD6 = self._detections(batch.image.permute(0, 2, 3, 1).to(self._device))
            for rows, objects in zip(rows_BD6.float().cpu(), batch.objects, strict=True):
                found += [rows[rows[:, 0] >= 0], objects[objects[:, 0] >= 0]]
        found = self._world.gather(found)
        if not found:
            raise ClientError("Channel 'validation' holds no image that can be decoded.")
        evaluation = Evaluation(self._wanted.num_classes, self._wanted.overlap_threshold)
        for rows, objects in zip(found[::2], found[1::2], strict=True):
            evaluation.add(rows.numpy(), objects.numpy())
        return evaluation

    def model_state(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous().clone() for name, value in self.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        return {
            "network": self.model_state(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._precision.state(),
            "last_map": self._last_map,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._precision.load_state(state["scaler"])
        self._last_map = state["last_map"]


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
    if wanted.kv_store:
        log.info("kv_store=%s: all processes compute one common update", wanted.kv_store)
    if wanted.lr_scheduler != "step" and wanted.lr_scheduler_step:
        log.info("lr_scheduler_step has no effect with lr_scheduler=%s", wanted.lr_scheduler)
    if world.size > 1:
        log.info("%d processes on %d machines", world.size, world.num_hosts)
    if not torch.cuda.is_available():
        log.warning("No GPU found: training on the CPU, which is slow but for base_network=resnet-18")
