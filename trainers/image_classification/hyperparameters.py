"""What image classification can be told; names, defaults and ranges as its users know them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from trainers.hyperparameter_schema import Flag, Fraction, IntegerList, PositiveInteger, WholeNumber, choice, number
from trainers.vision.resnet import IMAGENET_DEPTHS

__all__ = ["Hyperparameters"]

_PRETRAINED_SIDE = 224


def _image_shape(value: object) -> object:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or len(parts) != 3:
        raise ValueError("Input should be C,H,W")
    return tuple(part.strip() if isinstance(part, str) else part for part in parts)


ImageShape = Annotated[
    tuple[PositiveInteger, PositiveInteger, PositiveInteger],
    BeforeValidator(_image_shape),
    Field(description="channels, height and width as C,H,W, such as 3,224,224"),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hyperparameters:
    num_classes: PositiveInteger
    """Output size; labels are 0 to num_classes - 1."""
    num_training_samples: PositiveInteger
    """Number of training images; the log warns when the data disagrees."""
    augmentation_type: Literal["crop", "crop_color", "crop_color_transform"] | None = None
    """`crop`: random crop and flip; `crop_color`: plus hue, saturation, lightness; `crop_color_transform`: plus
    rotation to 10 degrees, shear to 0.1, aspect change to 0.25. Unset: centre crop alone."""
    beta_1: Fraction = 0.9
    """Decay of the first moment; adam."""
    beta_2: Fraction = 0.999
    """Decay of the second moment; adam."""
    checkpoint_frequency: PositiveInteger | None = None
    """Keep the model of every so many epochs beside the best one; at most `epochs`. Unset: the best alone."""
    early_stopping: Flag = False
    """Stop when validation accuracy no longer improves."""
    early_stopping_min_epochs: PositiveInteger = 10
    """Epochs that run in any case; with early_stopping."""
    early_stopping_patience: PositiveInteger = 5
    """Epochs without improvement before the stop; with early_stopping."""
    early_stopping_tolerance: Fraction = 0.0
    """An epoch improves when (accuracy - best) / best is at least this; with early_stopping."""
    epochs: PositiveInteger = 30
    """Passes over the training data."""
    eps: Fraction = 1e-8
    """Added to the denominator; adam, rmsprop."""
    gamma: Fraction = 0.9
    """Decay of the average of squared gradients; rmsprop."""
    image_shape: ImageShape = (3, 224, 224)
    """`C,H,W` in pixels. C is 3 (colour) or 1 (grey)."""
    kv_store: Literal["dist_sync", "dist_async"] | None = None
    """How the original's machines agreed. Here they always compute one common update, which is dist_sync."""
    learning_rate: Fraction = 0.1
    """Initial step size."""
    lr_scheduler_factor: Fraction = 0.1
    """Multiplies the learning rate after each epoch of `lr_scheduler_step`."""
    lr_scheduler_step: IntegerList = ()
    """`"10, 20"`: the rate falls when 10, then 20 epochs are done."""
    mini_batch_size: PositiveInteger = 32
    """Images per update and machine, split over its processes; at most the number of training images."""
    momentum: Fraction = 0.9
    """sgd, nag."""
    multi_label: Flag = False
    """1: an image may have several labels, or none; one sigmoid per class instead of a softmax."""
    num_layers: Annotated[
        Literal[18, 34, 50, 101, 152, 200, 20, 32, 44, 56, 110],  # IMAGENET_DEPTHS, then SMALL_DEPTHS
        BeforeValidator(choice),
    ] = 152
    """18, 34, 50, 101, 152, 200: four stages, as for ImageNet; 20, 32, 44, 56, 110: three thin stages, as for CIFAR."""
    optimizer: Literal["sgd", "adam", "rmsprop", "nag"] = "sgd"
    """nag is sgd with Nesterov's momentum."""
    precision_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """float16: half-precision arithmetic and scaled loss, float32 weights; bfloat16 (not in the original): likewise,
    unscaled. A CPU computes both in bfloat16 where it has that, else in float32."""
    resize: PositiveInteger | None = None
    """Shortest side in pixels before the crop, aspect kept; at least max(H, W). Required with image files; without it,
    records are taken as they are."""
    top_k: Annotated[int, Field(ge=2), BeforeValidator(number)] | None = None
    """Also report how often the label is among the k most probable classes; at most `num_classes`."""
    use_pretrained_model: Flag = False
    """1: start from the ImageNet weights in channel `weights`; needs 224 x 224 and the ImageNet family."""
    use_weighted_loss: Flag = False
    """1: weigh each class's positives by how rare they are; only with multi_label=1."""
    weight_decay: Fraction = 0.0001
    """L2 penalty on weights; sgd, nag."""
    lr_scheduler: Literal["step", "cosine", "one_cycle"] = "step"
    """Not in the original: `cosine` falls to 0, `one_cycle` rises for a fifth of the epochs, then falls to 0; both
    leave `lr_scheduler_step` aside."""
    crop_padding: WholeNumber = 0
    """Not in the original: black pixels around the image before a random crop; 4 is usual for 32 x 32."""
    label_smoothing: Fraction = 0.0
    """Not in the original: share of the target that is spread over all classes; single-label."""
    input_workers: WholeNumber | None = None
    """Not in the original: processes that decode and augment; 0 for threads. Unset: chosen by device and data."""
    seed: WholeNumber = 0
    """Not in the original: same seed, data and machine give the same model."""

    def __post_init__(self) -> None:
        channels, height, width = self.image_shape
        if channels not in (1, 3):
            raise ValueError(f"hyperparameter image_shape: {channels} channels; must be 3 (colour) or 1 (grey)")
        if self.resize is not None and self.resize < max(height, width):
            raise ValueError(
                f"hyperparameter resize: {self.resize} must be at least {max(height, width)}, "
                f"the longer side of image_shape {channels},{height},{width}"
            )
        if self.checkpoint_frequency is not None and self.checkpoint_frequency > self.epochs:
            raise ValueError(
                f"hyperparameter checkpoint_frequency: {self.checkpoint_frequency} "
                f"must be at most epochs ({self.epochs})"
            )
        if self.top_k is not None and self.top_k > self.num_classes:
            raise ValueError(f"hyperparameter top_k: {self.top_k} must be at most num_classes ({self.num_classes})")
        if self.use_weighted_loss and not self.multi_label:
            raise ValueError("hyperparameter use_weighted_loss: 1 is only possible with multi_label=1")
        if self.use_pretrained_model:
            self._check_pretrained()

    def _check_pretrained(self) -> None:
        if self.image_shape != (3, _PRETRAINED_SIDE, _PRETRAINED_SIDE):
            shape = ",".join(map(str, self.image_shape))
            raise ValueError(f"hyperparameter image_shape: {shape} must be 3,224,224 with use_pretrained_model=1")
        if self.num_layers not in IMAGENET_DEPTHS:
            depths = ", ".join(map(str, IMAGENET_DEPTHS))
            raise ValueError(
                f"hyperparameter num_layers: {self.num_layers} must be one of {depths} with use_pretrained_model=1"
            )
