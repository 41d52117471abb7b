"""Boxes as corners and as offsets from anchors, and how much they overlap. All sides are shares of the image's."""

# A anchors; ... any leading axes

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["apply_offsets", "corners_of", "offsets_to", "overlap"]

CENTRE_VARIANCE, SIZE_VARIANCE = 0.1, 0.2


def corners_of(centred: Tensor) -> Tensor:
    """(..., 4) centre x, centre y, width, height to xmin, ymin, xmax, ymax."""
    half = centred[..., 2:] / 2
    return torch.cat([centred[..., :2] - half, centred[..., :2] + half], dim=-1)


def overlap(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of each with each; 0 where both are empty.

    Args:
        one: (..., M, 4) corners.
        other: (..., A, 4) corners, with the same or no leading axes.

    Returns:
        (..., M, A) float, 0 to 1.
    """
    low = torch.maximum(one.unsqueeze(-2)[..., :2], other.unsqueeze(-3)[..., :2])
    high = torch.minimum(one.unsqueeze(-2)[..., 2:], other.unsqueeze(-3)[..., 2:])
    common = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1) for boxes in (one, other)]
    union = areas[0].unsqueeze(-1) + areas[1].unsqueeze(-2) - common
    return torch.where(union > 0, common / union, torch.zeros_like(union))


def offsets_to(corners: Tensor, anchors: Tensor) -> Tensor:
    """What a detector has to say so that `apply_offsets` gives these boxes (SSD, equation 2, with variances).

    Args:
        corners: (..., A, 4), of positive width and height.
        anchors: (A, 4) centred.

    Returns:
        (..., A, 4).
    """
    size = corners[..., 2:] - corners[..., :2]
    centre = (corners[..., :2] + corners[..., 2:]) / 2
    moved = (centre - anchors[:, :2]) / anchors[:, 2:] / CENTRE_VARIANCE
    return torch.cat([moved, torch.log(size / anchors[:, 2:]) / SIZE_VARIANCE], dim=-1)


def apply_offsets(offsets: Tensor, anchors: Tensor) -> Tensor:
    """(..., A, 4) offsets from (A, 4) centred anchors to corners; the inverse of `offsets_to`."""
    centre = anchors[:, :2] + offsets[..., :2] * 0.1 * anchors[:, 2:]  # literals: TorchScript sees no module's names
    # beyond e^4 anchors a box is the whole image anyway, and beyond e^88 it would be infinite
    half = anchors[:, 2:] * torch.exp((offsets[..., 2:] * 0.2).clamp(max=4.0)) / 2
    return torch.cat([centre - half, centre + half], dim=-1)
