"""Train an image classifier: what is read straight down here is what happens."""

# B batch, H height, W width, K classes

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from trainers import checkpoints, loop
from trainers.early_stopping import EarlyStopping
from trainers.hyperparameter_schema import parse, plain_values
from trainers.image_classification.data import (
    CACHE_BYTES,
    ImageSet,
    open_channel,
    train_batches,
    validation_batches,
)
from trainers.image_classification.hyperparameters import Hyperparameters
from trainers.image_classification.model import build
from trainers.job import ClientError, Job
from trainers.progress import log

__all__ = ["MODEL_DESCRIPTION", "MODEL_WEIGHTS", "train"]

MODEL_WEIGHTS = "model.pt"
MODEL_DESCRIPTION = "model.json"
_LARGEST_POSITIVE_WEIGHT = 100.0


def train(job: Job, bar: Progress | None = None) -> Path:
    """Returns `job.output / "model"`: `model.pt`, a state dict, and `model.json`, all else that exporters need.

    Raises:
        ClientError: a hyperparameter, a channel or a record is wrong.
    """
    wanted = parse(Hyperparameters, job.hyperparameters)
    _refuse_what_is_not_there_yet(job, wanted)
    _announce(wanted)
    images, validation = _open_channels(job, wanted)
    # torch counts the machine's cores, not those this process may use; fewer, by OMP_NUM_THREADS, stay fewer
    torch.set_num_threads(min(torch.get_num_threads(), len(os.sched_getaffinity(0))))
    learner = Classifier(wanted, images, validation)
    plan = loop.Plan(
        name="image-classification",
        epochs=wanted.epochs,
        num_samples=len(images),
        checkpoint_frequency=wanted.checkpoint_frequency,
        early_stopping=_early_stopping(wanted),
        identity=_identity(wanted, images, validation),
    )
    best = loop.run(job, learner, plan, bar)
    return _write_model(job, wanted, images.class_names, best)


class Classifier:
    """Network, optimizer and data of one run; see `loop.Learner`."""

    def __init__(self, wanted: Hyperparameters, images: ImageSet, validation: ImageSet) -> None:
        self._wanted, self._images, self._validation = wanted, images, validation
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(wanted.seed)
        network = build(num_layers=wanted.num_layers, image_shape=wanted.image_shape, num_classes=wanted.num_classes)
        # images lie in memory as NHWC; measured 1.2 times as fast as NCHW on two cores
        self.network = network.to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._optimizer = make_optimizer(wanted, self.network)
        self._half = _half_precision(wanted, self._device)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._half is torch.float16)
        self._positive_weight_K = _positive_weights(wanted, images).to(self._device)

    def train_epoch(self, epoch: int, batch_done: Callable[[int, float], None]) -> dict[str, float]:
        wanted = self._wanted
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(wanted, epoch)
        self.network.train()
        scored, loss_sum = Scores(wanted), 0.0
        for image_B3HW, label in train_batches(self._images, wanted, epoch):
            image_B3HW, label = image_B3HW.to(self._device), label.to(self._device)  # noqa: PLW2901
            with self._autocast():
                score_BK = self.network(image_B3HW)
            loss = self._loss(score_BK.float(), label)
            self._optimizer.zero_grad(set_to_none=True)
            self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self._scaler.step(self._optimizer)
            self._scaler.update()
            loss_sum += loss.item() * len(label)
            scored.add(score_BK.detach(), label)
            batch_done(len(label), scored.accuracy)
        if not math.isfinite(loss_sum):
            raise ClientError(
                f"Training diverged in epoch {epoch}: the loss is {loss_sum}; try a smaller learning_rate."
            )
        return scored.metrics() | {"loss": loss_sum / max(scored.num_images, 1)}

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        self.network.eval()
        scored = Scores(self._wanted)
        for image_B3HW, label in validation_batches(self._validation, self._wanted.mini_batch_size):
            with self._autocast():
                score_BK = self.network(image_B3HW.to(self._device))
            scored.add(score_BK, label.to(self._device))
        return scored.metrics()

    def model_state(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous().clone() for name, value in self.network.state_dict().items()}

    def state(self) -> dict[str, Any]:
        return {
            "network": self.model_state(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])

    def _loss(self, score_BK: Tensor, label: Tensor) -> Tensor:
        if self._wanted.multi_label:
            return functional.binary_cross_entropy_with_logits(score_BK, label, pos_weight=self._positive_weight_K)
        return functional.cross_entropy(score_BK, label)

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self._device.type, dtype=self._half, enabled=self._half is not None)


class Scores:
    """Counts of right answers: exact, whatever the number of images."""

    def __init__(self, wanted: Hyperparameters) -> None:
        self._multi_label = wanted.multi_label
        self._top_k = None if wanted.multi_label else wanted.top_k  # one right class is what top-k counts
        self.num_images = self._num_right = self._num_judged = self._num_in_top = 0

    def add(self, score_BK: Tensor, label: Tensor) -> None:
        self.num_images += len(label)
        right = ((score_BK > 0) == (label > 0.5)) if self._multi_label else (score_BK.argmax(dim=1) == label)
        self._num_right += int(right.sum())
        self._num_judged += right.numel()
        if self._top_k:
            self._num_in_top += int((score_BK.topk(self._top_k).indices == label[:, None]).sum())

    @property
    def accuracy(self) -> float:
        """Share of right images; with several labels, the mean over classes."""
        return self._num_right / max(self._num_judged, 1)

    def metrics(self) -> dict[str, float]:
        top = {f"top_k_accuracy_{self._top_k}": self._num_in_top / max(self.num_images, 1)} if self._top_k else {}
        return {"accuracy": self.accuracy} | top


def make_optimizer(wanted: Hyperparameters, network: nn.Module) -> torch.optim.Optimizer:
    """The optimizer by its name; parameters of the others are ignored."""
    trainable = {name: value for name, value in network.named_parameters() if value.requires_grad}
    rate = wanted.learning_rate
    if wanted.optimizer == "adam":
        return torch.optim.Adam(trainable.values(), rate, (wanted.beta_1, wanted.beta_2), wanted.eps)
    if wanted.optimizer == "rmsprop":
        return torch.optim.RMSprop(trainable.values(), rate, wanted.gamma, wanted.eps)
    # MXNet decays weights and the scales of norms, and no bias
    groups = [
        {"params": [v for k, v in trainable.items() if not k.endswith("bias")], "weight_decay": wanted.weight_decay},
        {"params": [v for k, v in trainable.items() if k.endswith("bias")], "weight_decay": 0.0},
    ]
    nesterov = wanted.optimizer == "nag" and wanted.momentum > 0
    return torch.optim.SGD(groups, rate, wanted.momentum, nesterov=nesterov)


def learning_rate(wanted: Hyperparameters, epoch: int) -> float:
    """The rate of an epoch counted from 0: step 10 means that 10 epochs run before the rate falls."""
    return float(wanted.learning_rate * wanted.lr_scheduler_factor ** sum(s <= epoch for s in wanted.lr_scheduler_step))


def _open_channels(job: Job, wanted: Hyperparameters) -> tuple[ImageSet, ImageSet]:
    images, validation = open_channel(job, "train", wanted), open_channel(job, "validation", wanted)
    if images.directory.resolve() == validation.directory.resolve():
        raise ClientError(f"Channels 'train' and 'validation' are the same directory: {images.directory}.")
    if len(images) < wanted.mini_batch_size:
        raise ClientError(
            "The number of input images must be bigger or equal to the mini_batch_size. "
            f"There are {len(images)}, and mini_batch_size is {wanted.mini_batch_size}."
        )
    if len(images) != wanted.num_training_samples:
        log.warning(
            "num_training_samples is %d, but the train channel lists %d images; the list is what counts",
            wanted.num_training_samples,
            len(images),
        )
    validation.fill_cache(images.fill_cache(CACHE_BYTES))
    return images, validation


def _refuse_what_is_not_there_yet(job: Job, wanted: Hyperparameters) -> None:
    if wanted.use_pretrained_model:
        raise ClientError(
            "use_pretrained_model=1: no ImageNet weights are installed; train with use_pretrained_model=0."
        )
    if "model" in job.channels:
        raise ClientError("Channel 'model': incremental training is not supported yet.")
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        raise ClientError("Training in several processes (torchrun) is not supported yet; start one process.")


def _announce(wanted: Hyperparameters) -> None:
    values = plain_values(wanted)
    log.info("Final configuration: %s", json.dumps(values))
    log.info("---- Parameters ----")
    for name, value in values.items():
        log.info("%s: %s", name, value)
    if wanted.checkpoint_frequency is None:
        log.info("checkpoint_frequency not set, will store the best model")
    if wanted.kv_store:
        log.info("kv_store=%s has no effect: one process trains, there is nothing to synchronise", wanted.kv_store)
    if wanted.top_k and wanted.multi_label:
        log.info("top_k=%d has no effect with multi_label=1", wanted.top_k)
    if not torch.cuda.is_available():
        half = "; precision_dtype=float16 has no effect" if wanted.precision_dtype == "float16" else ""
        log.warning("No GPU found: training on the CPU, which is slow for large networks and images%s", half)


def _early_stopping(wanted: Hyperparameters) -> EarlyStopping | None:
    if not wanted.early_stopping:
        return None
    return EarlyStopping(
        min_epochs=wanted.early_stopping_min_epochs,
        patience=wanted.early_stopping_patience,
        tolerance=wanted.early_stopping_tolerance,
    )


def _identity(wanted: Hyperparameters, *sets: ImageSet) -> str:
    """Same text, same run: hyperparameters and what the lists say (not the pixels, which would have to be read)."""
    digest = hashlib.sha256(json.dumps(plain_values(wanted), sort_keys=True).encode())
    for images in sets:
        for entry in images.entries:
            digest.update(f"{entry.labels}\t{entry.path}\n".encode())
    return digest.hexdigest()


def _half_precision(wanted: Hyperparameters, device: torch.device) -> torch.dtype | None:
    if wanted.precision_dtype != "float16" or device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _positive_weights(wanted: Hyperparameters, images: ImageSet) -> Tensor:
    """(K,): how many times more often a class is absent than present; 1 without use_weighted_loss."""
    if not wanted.use_weighted_loss:
        return torch.ones(wanted.num_classes)
    present_K = torch.from_numpy(images.labels).float().mean(dim=0)
    return ((1 - present_K) / present_K.clamp(min=1e-6)).clamp(1 / _LARGEST_POSITIVE_WEIGHT, _LARGEST_POSITIVE_WEIGHT)


def _write_model(job: Job, wanted: Hyperparameters, class_names: list[str] | None, best: loop.Best) -> Path:
    directory = job.output / "model"
    description = {
        "algorithm": job.algorithm,
        "hyperparameters": plain_values(wanted),
        "num_classes": wanted.num_classes,
        "image_shape": list(wanted.image_shape),
        "multi_label": wanted.multi_label,
        "labels": class_names,
        "epoch": best.epoch,
        "metrics": best.metrics,
    }
    checkpoints.save(directory / MODEL_WEIGHTS, best.state)
    text = json.dumps(description, indent=2).encode() + b"\n"
    checkpoints.write_aside(
        directory / MODEL_DESCRIPTION, lambda file: file.write(text)
    )  # last: it says that all is there
    return directory
