"""What object detection can be told; names, defaults and ranges as its users know them (contract, section 3)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from trainers.hyperparameter_schema import Flag, Fraction, IntegerList, PositiveInteger, WholeNumber, number

__all__ = ["Hyperparameters"]

Positive = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), BeforeValidator(number)]


def _pattern(value: object) -> object:
    """Nothing is frozen by an empty pattern, nor by `false`, which consoles send for a field that was left alone."""
    text = "" if value is None else str(value).strip()
    if text.lower() in ("", "false"):
        return None
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"Input should be a regular expression: {error}") from error
    return text


def _steps(value: object) -> object:
    return () if value is None or (isinstance(value, str) and not value.strip()) else value


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    num_classes: PositiveInteger
    """Without the background; classes are 0 to num_classes - 1."""
    num_training_samples: PositiveInteger
    """Number of training images; the log warns when the data disagrees."""
    base_network: Literal["vgg-16", "resnet-50", "resnet-18"] = "vgg-16"
    """What sees the image. resnet-18 is not in the original: for CPUs, and for small things."""
    early_stopping: Flag = False
    """Stop when validation mAP no longer improves."""
    early_stopping_min_epochs: PositiveInteger = 10
    """Epochs that run in any case; with early_stopping."""
    early_stopping_patience: PositiveInteger = 5
    """Epochs without improvement before the stop; with early_stopping."""
    early_stopping_tolerance: Fraction = 0.0
    """An epoch improves when (mAP - best) / best is at least this; with early_stopping."""
    epochs: PositiveInteger = 30
    """Passes over the training data."""
    freeze_layer_pattern: Annotated[
        str | None, BeforeValidator(_pattern), Field(description="a regular expression, or nothing")
    ] = None
    """Parameters of the base network whose name begins like this stay as they are: `^(conv1_|conv2_).*`,
    `^(conv0|stage1).*`."""
    image_shape: Annotated[int, Field(ge=300, le=4096), BeforeValidator(number)] = 300
    """Side in pixels of the square that images are squeezed to."""
    kv_store: Literal["dist_sync", "dist_async"] | None = None
    """How the original's machines agreed. Here they always compute one common update, which is dist_sync."""
    label_width: PositiveInteger = 350
    """2 + 5 times the most objects that an image may have."""
    learning_rate: Positive = 0.001
    """Initial step size."""
    lr_scheduler_factor: Fraction = 0.1
    """Multiplies the learning rate after each epoch of `lr_scheduler_step`."""
    lr_scheduler_step: Annotated[IntegerList, BeforeValidator(_steps)] = ()
    """`"10, 20"`: the rate falls when 10, then 20 epochs are done."""
    mini_batch_size: PositiveInteger = 32
    """Images per update and machine, split over its processes; at most the number of training images."""
    momentum: Fraction = 0.9
    """sgd."""
    nms_threshold: Positive = 0.45
    """Of two boxes of one class that overlap by more, the one with the lower score is dropped."""
    nms_topk: PositiveInteger = 400
    """Boxes of an image that take part in this, those of the highest scores; the most that are ever answered."""
    optimizer: Literal["sgd", "adam", "rmsprop", "adadelta"] = "sgd"
    overlap_threshold: Positive = 0.5
    """Intersection over union from which a box is right; of the evaluation, not of training."""
    use_pretrained_model: Flag | None = None
    """1: start from ImageNet weights in channel `weights`. Unset: 1 where that channel is given."""
    weight_decay: Fraction = 0.0005
    """L2 penalty on weights; sgd, rmsprop."""
    drop_empty_images: Flag = False
    """Not in the original: leave images without any object out; else they teach what background is."""
    flips: Literal["horizontal", "both"] = "horizontal"
    """Not in the original: `both` for images that have no upside, such as those of a microscope."""
    lr_scheduler: Literal["step", "cosine", "one_cycle"] = "step"
    """Not in the original: `cosine` falls to 0, `one_cycle` rises for a fifth of the epochs, then falls to 0; both
    leave `lr_scheduler_step` aside."""
    precision_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Not in the original: arithmetic in 16 bits; the weights stay float32."""
    validation_frequency: PositiveInteger = 1
    """Not in the original: measure mAP after the first epoch, every so many, and the last; between, it is as it was."""
    input_workers: WholeNumber | None = None
    """Not in the original: processes that decode and augment; 0 for threads. Unset: chosen by device and data."""
    seed: WholeNumber = 0
    """Not in the original: same seed, data and machine give the same model."""

    # of `trainers.optimizers`; the original does not let them be chosen
    beta_1: ClassVar[float] = 0.9
    beta_2: ClassVar[float] = 0.999
    eps: ClassVar[float] = 1e-8
    gamma: ClassVar[float] = 0.9
