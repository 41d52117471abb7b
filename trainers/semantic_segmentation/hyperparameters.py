"""What semantic segmentation can be told; names, defaults and ranges as its users know them (contract, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from trainers.hyperparameter_schema import Flag, Fraction, IntegerList, PositiveInteger, WholeNumber, choice, number

__all__ = ["STRIDE", "Algorithm", "Backbone", "Hyperparameters"]

STRIDE = 8
"""Pixels per place of the networks' finest maps; crops are rounded up to it."""

Algorithm = Literal["fcn", "psp", "deeplab"]
Backbone = Literal["resnet-50", "resnet-101", "resnet-18"]
Side = Annotated[int, Field(gt=16, le=8192), BeforeValidator(number)]
Positive = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), BeforeValidator(number)]


def _steps(value: object) -> object:
    return () if value is None or (isinstance(value, str) and not value.strip()) else value


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    num_classes: Annotated[int, Field(ge=2, le=254), BeforeValidator(number)]
    """With the background; pixels of a mask are 0 to num_classes - 1, or 255, which is left out everywhere."""
    num_training_samples: PositiveInteger
    """Number of training images; the log warns when the data disagrees."""
    algorithm: Algorithm = "fcn"
    """What decides on top of the backbone: fcn, psp (pyramid pooling) or deeplab (DeepLabV3)."""
    backbone: Backbone = "resnet-50"
    """What sees the image. resnet-18 is not in the original: for CPUs."""
    base_size: Side = 520
    """A training image's longer side becomes this times 0.5 to 2.0, in pixels."""
    crop_size: Side = 240
    """Side of the square that is cut out of it, rounded up to a multiple of 8."""
    early_stopping: Flag = False
    """Stop when validation mIOU no longer improves."""
    early_stopping_min_epochs: PositiveInteger = 5
    """Epochs that run in any case; with early_stopping."""
    early_stopping_patience: PositiveInteger = 4
    """Epochs without improvement before the stop; with early_stopping."""
    early_stopping_tolerance: Fraction = 0.0
    """An epoch improves when (mIOU - best) / best is at least this; with early_stopping."""
    epochs: PositiveInteger = 10
    """Passes over the training data."""
    gamma1: Fraction = 0.9
    """Decay of the average of squared gradients; rmsprop."""
    gamma2: Fraction = 0.9
    """Momentum; rmsprop."""
    learning_rate: Positive = 0.001
    """Initial step size of the backbone; what is on top learns ten times as fast."""
    lr_scheduler: Literal["poly", "step", "cosine", "one_cycle"] = "poly"
    """`poly` and `cosine` fall to 0 over the run; `step` falls at `lr_scheduler_step`; `one_cycle`, not in the
    original, rises for a fifth of the epochs, then falls to 0."""
    lr_scheduler_factor: Fraction = 0.1
    """Multiplies the learning rate after each epoch of `lr_scheduler_step`; with lr_scheduler=step."""
    lr_scheduler_step: Annotated[IntegerList, BeforeValidator(_steps)] = ()
    """`"10, 20"`: the rate falls when 10, then 20 epochs are done; required with lr_scheduler=step."""
    mini_batch_size: PositiveInteger = 16
    """Images per update and machine, split over its processes; at most the number of training images."""
    momentum: Fraction = 0.9
    """sgd, nag."""
    optimizer: Literal["sgd", "adam", "adagrad", "nag", "rmsprop", "adadelta"] = "sgd"
    """nag is sgd with Nesterov's momentum."""
    syncbn: Flag = False
    """Norms take their statistics over all GPUs together."""
    use_pretrained_model: Flag | None = None
    """True: the backbone starts from the ImageNet weights in channel `weights`. Unset: where that channel is given."""
    validation_mini_batch_size: PositiveInteger = 16
    """1: whole images are scored; more: the centre square of crop_size, of images whose shorter side was brought to
    it."""
    weight_decay: Fraction = 0.0001
    """L2 penalty on weights; sgd, nag."""
    auxiliary_weight: Fraction = 0.5
    """Not in the original: what a second, smaller decision after the third stage counts in training; 0: none."""
    flips: Literal["horizontal", "both"] = "horizontal"
    """Not in the original: `both` for images that have no upside."""
    output_stride: Annotated[Literal[8, 16], BeforeValidator(choice)] = 8
    """Not in the original: pixels per place of the backbone's last map; 16 takes about a third of the time, and sees
    less fine."""
    precision_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Not in the original: arithmetic in 16 bits; the weights stay float32."""
    unknown_labels: Literal["error", "ignore"] = "error"
    """Not in the original: `ignore` leaves pixels of masks out whose value is no class."""
    validation_frequency: PositiveInteger = 1
    """Not in the original: score after the first epoch, every so many, and the last; between them it is as it was."""
    input_workers: WholeNumber | None = None
    """Not in the original: processes that decode and augment; 0 for threads. Unset: chosen by device and data."""
    seed: WholeNumber = 0
    """Not in the original: same seed, data and machine give the same model."""

    # of `trainers.optimizers`; the original does not let them be chosen
    beta_1: ClassVar[float] = 0.9
    beta_2: ClassVar[float] = 0.999
    eps: ClassVar[float] = 1e-8

    @property
    def gamma(self) -> float:
        return self.gamma1

    @property
    def crop(self) -> int:
        """`crop_size`, rounded up to a multiple of 8 (contract, section 2.4)."""
        return -(-self.crop_size // STRIDE) * STRIDE
