"""Anchors: the boxes of every place, size and shape that a detector judges (Liu et al. 2016, arXiv:1512.02325)."""

# A anchors

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["LARGE_LEVELS", "SMALL_LEVELS", "Level", "anchor_boxes", "levels_of"]

_THREE = (1.0, 2.0, 0.5)
_FIVE = (1.0, 2.0, 0.5, 3.0, 1 / 3)
_FIRST_LARGE_SHAPE = 448
"""Image sides from here on have the anchors that are meant for 512 (contract, section 1)."""


class Level(NamedTuple):
    """The anchors of one feature map."""

    size: float
    """Side of the square anchor, as a share of the image's."""
    between: float
    """Side of the larger square anchor, between this level's size and the next one's."""
    ratios: tuple[float, ...]
    """Width to height; 1 comes first."""

    @property
    def num_anchors(self) -> int:
        """Per place."""
        return len(self.ratios) + 1


SMALL_LEVELS = (
    Level(0.1, 0.141, _THREE),
    Level(0.2, 0.272, _FIVE),
    Level(0.37, 0.447, _FIVE),
    Level(0.54, 0.619, _FIVE),
    Level(0.71, 0.79, _THREE),
    Level(0.88, 0.961, _THREE),
)
LARGE_LEVELS = (
    Level(0.07, 0.1025, _THREE),
    Level(0.15, 0.2121, _FIVE),
    Level(0.3, 0.3674, _FIVE),
    Level(0.45, 0.5196, _FIVE),
    Level(0.6, 0.6708, _FIVE),
    Level(0.75, 0.8216, _THREE),
    Level(0.9, 0.9721, _THREE),
)


def levels_of(base_network: str, image_shape: int) -> tuple[Level, ...]:
    """The levels of a base network, finest first (contract, section 1).

    `resnet-18`, which is not in the original, begins as fine as VGG-16 does; it has the smaller anchors of
    `LARGE_LEVELS` at any image side, for it is meant for small images of small things.
    """
    if base_network == "vgg-16":
        return LARGE_LEVELS if image_shape >= _FIRST_LARGE_SHAPE else SMALL_LEVELS
    return LARGE_LEVELS[:6] if base_network == "resnet-18" else SMALL_LEVELS


def anchor_boxes(levels: Sequence[Level], map_sides: Sequence[tuple[int, int]]) -> Tensor:
    """The anchors of all levels, in the order in which a detector's scores come: level, row, column, shape.

    Args:
        levels: finest first.
        map_sides: height and width of each level's feature map.

    Returns:
        (A, 4) float32: centre x, centre y, width, height as shares of the image; not clipped to it.
    """
    boxes = []
    for level, (height, width) in zip(levels, map_sides, strict=True):
        shapes = [(level.size, level.size), (level.between, level.between)]
        shapes += [(level.size * math.sqrt(r), level.size / math.sqrt(r)) for r in level.ratios[1:]]
        y_HW, x_HW = torch.meshgrid(
            (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
        )
        centre_HWS2 = torch.stack([x_HW, y_HW], dim=2)[:, :, None].expand(-1, -1, len(shapes), -1)
        shape_HWS2 = torch.tensor(shapes).expand(height, width, -1, -1)
        boxes.append(torch.cat([centre_HWS2, shape_HWS2], dim=3).reshape(-1, 4))
    return torch.cat(boxes)
