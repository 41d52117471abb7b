"""Which anchor answers for which object, and what its answer costs (SSD, sections 2.2; contract, section 1)."""

# B batch, A anchors, M objects of the image that has most, K classes without the background

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from trainers.object_detection.boxes import corners_of, offsets_to, overlap

__all__ = ["Losses", "Matches", "match", "multibox_losses"]

_LEAST_OVERLAP = 0.5
"""An anchor answers for the object that it overlaps by more, whoever else does."""
_NEGATIVES_PER_POSITIVE = 3


class Matches(NamedTuple):
    label: Tensor
    """(B, A) int64: 0 for the background, else 1 + class."""
    offset: Tensor
    """(B, A, 4): where the object lies as seen from the anchor; 0 for the background."""


class Losses(NamedTuple):
    """Sums over the batch, to be divided by `num_matched`."""

    cross_entropy: Tensor
    smooth_l1: Tensor
    num_matched: Tensor
    """Anchors that answer for an object."""


@torch.no_grad()
def match(object_BM5: Tensor, anchor_A4: Tensor) -> Matches:
    """Each object gets the anchor that overlaps it most; each further anchor the object that it overlaps by over half.

    Args:
        object_BM5: class, xmin, ymin, xmax, ymax; class -1 fills up.
        anchor_A4: centred.
    """
    batch, most, _ = object_BM5.shape
    if most == 0:
        empty_BA4 = torch.zeros(batch, len(anchor_A4), 4, device=anchor_A4.device)
        return Matches(empty_BA4[:, :, 0].long(), empty_BA4)
    real_BM = object_BM5[:, :, 0] >= 0
    overlap_BMA = overlap(object_BM5[:, :, 1:], corners_of(anchor_A4))
    overlap_BMA = torch.where(real_BM[:, :, None], overlap_BMA, -1.0)
    best_BA, object_BA = overlap_BMA.max(dim=1)
    matched_BA = best_BA > _LEAST_OVERLAP
    anchor_BM = _an_anchor_each(overlap_BMA, real_BM)
    # what fills up writes to a place behind the last anchor
    place_BM = torch.where(real_BM, anchor_BM, len(anchor_A4))
    number_BM = torch.arange(most, device=object_BM5.device).expand(batch, -1)
    object_BA = functional.pad(object_BA, (0, 1)).scatter(1, place_BM, number_BM)[:, :-1]
    matched_BA = functional.pad(matched_BA, (0, 1)).scatter(1, place_BM, value=True)[:, :-1]
    chosen_BA5 = object_BM5.gather(1, object_BA[:, :, None].expand(-1, -1, 5))
    label_BA = torch.where(matched_BA, chosen_BA5[:, :, 0].long() + 1, 0)
    # those without an object have some box in its place: its logarithm must be finite, its value does not count
    corners_BA4 = torch.where(matched_BA[:, :, None], chosen_BA5[:, :, 1:], corners_of(anchor_A4))
    return Matches(label_BA, offsets_to(corners_BA4, anchor_A4) * matched_BA[:, :, None])


def _an_anchor_each(overlap_BMA: Tensor, real_BM: Tensor) -> Tensor:
    """(B, M): the anchor of each object, no two of an image the same; the closest pair chooses first."""
    anchor_BM = overlap_BMA.argmax(dim=2)
    ordered_BM = torch.where(real_BM, anchor_BM, -1 - torch.arange(anchor_BM.shape[1], device=anchor_BM.device))
    ordered_BM = ordered_BM.sort(dim=1).values
    contested_B = (ordered_BM[:, 1:] == ordered_BM[:, :-1]).any(dim=1)
    for image in contested_B.nonzero()[:, 0].tolist():  # rare: two objects in nearly the same place
        left_MA = overlap_BMA[image].clone()
        for _ in range(int(real_BM[image].sum())):
            row, column = divmod(int(left_MA.argmax()), left_MA.shape[1])
            anchor_BM[image, row] = column
            left_MA[row] = -2.0
            left_MA[:, column] = -2.0
    return anchor_BM


def multibox_losses(score_BAL: Tensor, offset_BA4: Tensor, matches: Matches) -> Losses:
    """Cross-entropy over the matched anchors and, for each of them, the three hardest of the background; smooth L1.

    Args:
        score_BAL: logits, the background first.
        offset_BA4: as the network gives them.
        matches: what it should have given.
    """
    positive_BA = matches.label > 0
    cost_BA = functional.cross_entropy(score_BAL.transpose(1, 2), matches.label, reduction="none")
    with torch.no_grad():
        # an image without objects has no positives to count by: as many as one would have
        wanted_B = (_NEGATIVES_PER_POSITIVE * positive_BA.sum(dim=1)).clamp(min=_NEGATIVES_PER_POSITIVE)
        hardness_BA = cost_BA.masked_fill(positive_BA, -1.0)
        limit = min(int(wanted_B.max()), hardness_BA.shape[1])
        hardest_BN, place_BN = hardness_BA.topk(limit, dim=1)
        rank_N = torch.arange(limit, device=place_BN.device)
        taken_BN = (rank_N < wanted_B[:, None]) & (hardest_BN >= 0)
        negative_BA = torch.zeros_like(positive_BA).scatter(1, place_BN, taken_BN)
    cross_entropy = (cost_BA * (positive_BA | negative_BA)).sum()
    smooth_l1 = functional.smooth_l1_loss(offset_BA4[positive_BA], matches.offset[positive_BA], reduction="sum")
    return Losses(cross_entropy, smooth_l1, positive_BA.sum())
