"""The classifier: a residual network by depth, shape and family."""

from __future__ import annotations

from trainers.vision.resnet import Architecture, ResNetV1b, ResNetV2

__all__ = ["build"]


def build(
    *,
    num_layers: int,
    image_shape: tuple[int, int, int],
    num_classes: int,
    architecture: Architecture = "resnet_v2",
) -> ResNetV2 | ResNetV1b:
    """A freshly initialised network: its stages follow from the depth, the stem of `resnet_v2` from the height.

    Args:
        num_layers: one of IMAGENET_DEPTHS or SMALL_DEPTHS; `resnet_v1b` has the former alone.
        image_shape: channels, height, width.
        num_classes: number of scores.
        architecture: `resnet_v1b` is what published ImageNet weights are for.
    """
    if architecture == "resnet_v1b":
        return ResNetV1b(num_layers=num_layers, num_classes=num_classes)
    return ResNetV2(num_layers=num_layers, image_shape=image_shape, num_classes=num_classes)
