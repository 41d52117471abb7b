"""Train FCN, PSPNet or DeepLabV3: what is read straight down here is what happens."""

# B batch, H height, W width, K classes

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from formats.masks import IGNORE
from trainers import loop, schedules
from trainers.artifact import write_json, write_model
from trainers.distributed import World, joined
from trainers.early_stopping import early_stopping
from trainers.hyperparameter_schema import parse, plain_values
from trainers.job import ClientError, Job
from trainers.optimizers import make_optimizer, set_rate
from trainers.pipes import feeding
from trainers.precision import Precision
from trainers.progress import QualityLog, log
from trainers.semantic_segmentation.data import Batch, make_batches, open_channel
from trainers.semantic_segmentation.evaluation import Evaluation, confusion
from trainers.semantic_segmentation.hyperparameters import Hyperparameters
from trainers.semantic_segmentation.model import Segmenter, upsampled
from trainers.semantic_segmentation.start import make_network
from trainers.vision.batches import Batches
from trainers.vision.loader import usable_cores
from trainers.vision.runs import identity, open_both, refuse_what_cannot_be_shared

__all__ = ["Learner", "learning_rate", "train"]

_FASTER = {"head.": 10.0, "auxiliary.": 10.0}
"""Heads start from random weights even where the backbone does not (contract, section 1)."""


class MaskLog(QualityLog):
    """The lines of the original's segmenter (its contract, section 4)."""

    _SIGNS: Mapping[str, str] = {"mIOU": "score", "pixel_accuracy": "score"}
    _NAMES_BATCHES = False
    _RATE = "#throughput_metric: host=%s, train throughput=(%s) records/second"


def train(job: Job, bar: Progress | None = None) -> Path:
    """Returns `job.model`: `model.pt`, a state dict, `model.json`, all that exporters need, and `hyperparams.json`.

    Raises:
        ClientError: a hyperparameter, a channel or a mask is wrong.
    """
    wanted = parse(Hyperparameters, job.hyperparameters)
    if wanted.lr_scheduler == "step" and not wanted.lr_scheduler_step:
        raise ClientError("hyperparameter lr_scheduler_step: required with lr_scheduler=step, such as '10, 20'")
    with joined() as world, feeding(job) as fed:
        refuse_what_cannot_be_shared(job, wanted, world)
        if wanted.mini_batch_size // world.local_size < 2 and wanted.algorithm != "fcn":
            raise ClientError(
                f"hyperparameter mini_batch_size: {wanted.mini_batch_size} leaves a process one image; algorithm="
                f"{wanted.algorithm} norms means over whole images, which takes two"
            )
        _train(fed, wanted, world, bar)
    return job.model


def _train(job: Job, wanted: Hyperparameters, world: World, bar: Progress | None) -> None:
    _announce(wanted, world)
    images, validation = open_both(job, wanted, lambda name: open_channel(job, name, wanted))
    # torch counts the machine's cores, not those this process may use; fewer, by OMP_NUM_THREADS, stay fewer
    torch.set_num_threads(min(torch.get_num_threads(), max(1, usable_cores() // world.local_size)))
    network, plain_stem = make_network(job, wanted)
    batches = make_batches(images, validation, wanted, world)
    learner = Learner(wanted, network, batches, world)
    plan = loop.Plan(
        name="semantic-segmentation",
        epochs=wanted.epochs,
        num_samples=batches.per_epoch * batches.size,
        checkpoint_frequency=None,
        early_stopping=early_stopping(wanted),
        identity=identity(wanted, images, validation),
        objective="mIOU",
        lines=MaskLog,
    )
    best = loop.run(job, learner, plan, bar, world)
    if best.finished:
        report = learner.evaluate(best.state)
        if world.is_first:
            write_json(job.output / "evaluation.json", report)
    if world.is_first:
        write_model(job, {"hyperparameters": plain_values(wanted), "plain_stem": plain_stem}, best)
    world.meet()


class Learner:
    """Network, optimizer and data of one run; see `loop.Learner`."""

    def __init__(self, wanted: Hyperparameters, network: Segmenter, batches: Batches[Batch], world: World) -> None:
        self._wanted, self._batches, self._world = wanted, batches, world
        self._device = world.device
        if wanted.syncbn and world.size > 1 and self._device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        # images lie in memory as NHWC
        self.network = network.to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._trained = world.wrap(_WithLoss(self.network, wanted.auxiliary_weight))
        self._optimizer = make_optimizer(wanted, self.network, rmsprop_momentum=wanted.gamma2, faster=_FASTER)
        self._precision = Precision(wanted.precision_dtype, self._device)
        self._epoch = 0
        self._last = {"mIOU": 0.0, "pixel_accuracy": 0.0}

    def train_epoch(self, epoch: int, batch_done: loop.BatchDone) -> dict[str, float]:
        self._trained.train()
        # dropout draws from it
        torch.manual_seed(self._wanted.seed * 1_000_003 + epoch * 1009 + self._world.rank)
        totals = torch.zeros(2, dtype=torch.float64, device=self._device)  # loss, labelled pixels
        for number, batch in enumerate(self._batches.train(epoch)):
            set_rate(self._optimizer, learning_rate(self._wanted, epoch + number / self._batches.per_epoch))
            mask_BHW = batch.mask.to(self._device, non_blocking=True).long()
            with self._precision.autocast():
                loss = self._trained(batch.image.to(self._device, non_blocking=True), mask_BHW)
            num_labelled = (mask_BHW != IGNORE).sum().double()
            # over all processes: their images hold unlike numbers of labelled pixels
            everywhere = self._world.sum(num_labelled.clone()).clamp(min=1)
            # gradients are averaged over processes, and each has its part of the sum alone
            self._precision.step(loss / everywhere.float() * self._world.size, self._optimizer)
            totals += torch.stack([loss.detach().double(), num_labelled])
            batch_done(self._batches.size, float)
        loss_sum, num_pixels = self._world.sum(totals).tolist()
        mean = loss_sum / max(num_pixels, 1)
        if not math.isfinite(mean):
            raise ClientError(f"Training diverged in epoch {epoch}: the loss is {mean}; try a smaller learning_rate.")
        self._epoch = epoch
        return {"loss": mean}

    def validate(self) -> dict[str, float]:
        done = self._epoch + 1
        # the first epoch too: no score is told that was not measured
        if done in (1, self._wanted.epochs) or done % self._wanted.validation_frequency == 0:
            measured = self._measure()
            self._last = {"mIOU": measured.mean_iou, "pixel_accuracy": measured.pixel_accuracy}
        return self._last

    def evaluate(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """A report on the validation images by the model of `state`; see `Evaluation`."""
        self.network.load_state_dict(state)
        return self._measure().report()

    @torch.no_grad()
    def _measure(self) -> Evaluation:
        self._world.average_buffers(self.network)
        self.network.eval()
        size = self._wanted.num_classes
        counts_KK = torch.zeros((size, size), dtype=torch.int64, device=self._device)
        for batch in self._batches.validation():
            with self._precision.autocast():
                scores_BKHW = self.network(batch.image.to(self._device, non_blocking=True))
            full_BKHW = upsampled(scores_BKHW.float(), batch.mask.shape[1], batch.mask.shape[2])
            counts_KK += confusion(full_BKHW.argmax(dim=1), batch.mask.to(self._device), size)
        counts_KK = self._world.sum(counts_KK).cpu()
        if not counts_KK.sum():
            raise ClientError("Channel 'validation' holds no labelled pixel that can be decoded.")
        return Evaluation(counts_KK)

    def model_state(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous().clone() for name, value in self.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        return {
            "network": self.model_state(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._precision.state(),
            "last": self._last,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._precision.load_state(state["scaler"])
        self._last = state["last"]


class _WithLoss(nn.Module):
    """The sum of the cross-entropy over labelled pixels, the auxiliary head's part included."""

    def __init__(self, network: Segmenter, auxiliary_weight: float) -> None:
        super().__init__()
        self.network = network
        self.auxiliary_weight = auxiliary_weight

    def forward(self, image_B3HW: Tensor, mask_BHW: Tensor) -> Tensor:
        scores_BKHW, aside_BKHW = self.network.both(image_B3HW)
        loss = _cross_entropy(scores_BKHW, mask_BHW)
        if aside_BKHW is not None:
            loss = loss + self.auxiliary_weight * _cross_entropy(aside_BKHW, mask_BHW)
        return loss


def _cross_entropy(scores_BKHW: Tensor, mask_BHW: Tensor) -> Tensor:
    """At the mask's resolution, in float32."""
    full_BKHW = upsampled(scores_BKHW.float(), mask_BHW.shape[1], mask_BHW.shape[2])
    return functional.cross_entropy(full_BKHW, mask_BHW, ignore_index=IGNORE, reduction="sum")


def learning_rate(wanted: Hyperparameters, epochs_done: float) -> float:
    """The backbone's rate when so many epochs are done; step 10 means that 10 epochs run before the rate falls."""
    if wanted.lr_scheduler == "step":
        return schedules.step(
            wanted.learning_rate, epochs_done, steps=wanted.lr_scheduler_step, factor=wanted.lr_scheduler_factor
        )
    falling = {"poly": schedules.poly, "cosine": schedules.cosine, "one_cycle": schedules.one_cycle}
    return falling[wanted.lr_scheduler](wanted.learning_rate, epochs_done, wanted.epochs)


def _announce(wanted: Hyperparameters, world: World) -> None:
    log.info("Final configuration: %s", json.dumps(plain_values(wanted)))
    if wanted.crop != wanted.crop_size:
        log.info("crop_size %d is rounded up to %d", wanted.crop_size, wanted.crop)
    if wanted.lr_scheduler != "step" and wanted.lr_scheduler_step:
        log.info("lr_scheduler_step has no effect with lr_scheduler=%s", wanted.lr_scheduler)
    if world.size > 1:
        log.info("%d processes on %d machines", world.size, world.num_hosts)
    if wanted.syncbn and not (world.size > 1 and world.device.type == "cuda"):
        log.info("syncbn=True has no effect: it is for several GPUs")
    if not torch.cuda.is_available():
        log.warning("No GPU found: training on the CPU, which is slow but for backbone=resnet-18")
