"""From what the network says of each anchor to the few boxes that are reported."""

# B batch, A anchors, K classes without the background, D detections

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.object_detection.boxes import apply_offsets, overlap
from trainers.object_detection.model import SingleShotDetector

__all__ = ["LEAST_SCORE", "Detections", "EveryAnchor", "select", "suppressed"]

LEAST_SCORE = 0.01
"""Boxes below are never reported (contract, section 6)."""


class EveryAnchor(nn.Module):
    """Boxes and class probabilities of all anchors."""

    def __init__(self, network: SingleShotDetector) -> None:
        super().__init__()
        self.network = network

    def forward(self, image_BHW3: Tensor) -> tuple[Tensor, Tensor]:
        """Args: image_BHW3: RGB uint8. Returns: (B, A, 4) corners within 0 to 1, (B, A, K) probabilities."""
        score_BAL, offset_BA4 = self.network(image_BHW3.permute(0, 3, 1, 2))
        box_BA4 = apply_offsets(offset_BA4.float(), self.network.anchors).clamp(0, 1)
        return box_BA4, torch.softmax(score_BAL.float(), dim=2)[:, :, 1:]


class Detections(nn.Module):
    """Pixels to rows of class, score and box: what is served.

    Args:
        network: trained.
        nms_threshold: of two boxes of one class that overlap by more, the one with the lower score is dropped.
        nms_topk: so many boxes, those of the highest scores, take part.
    """

    def __init__(self, network: SingleShotDetector, *, nms_threshold: float, nms_topk: int) -> None:
        super().__init__()
        self.every_anchor = EveryAnchor(network)
        self.nms_threshold = nms_threshold
        self.nms_topk = min(nms_topk, len(network.anchors))

    def forward(self, image_BHW3: Tensor) -> Tensor:
        """Args: image_BHW3: RGB uint8. Returns: (B, nms_topk, 6); see `select`."""
        box_BA4, probability_BAK = self.every_anchor(image_BHW3)
        return select(box_BA4, probability_BAK, self.nms_threshold, self.nms_topk)

    @torch.jit.export
    def anchors(self, image_BHW3: Tensor) -> tuple[Tensor, Tensor]:
        """What `EveryAnchor` gives, for comparisons."""
        box_BA4, probability_BAK = self.every_anchor(image_BHW3)
        return box_BA4, probability_BAK


def select(box_BA4: Tensor, probability_BAK: Tensor, nms_threshold: float, nms_topk: int) -> Tensor:
    """The reported boxes. Each anchor stands for its most probable class alone, as in the original.

    Args:
        box_BA4: corners.
        probability_BAK: without the background.
        nms_threshold: see `Detections`.
        nms_topk: at most A.

    Returns:
        (B, nms_topk, 6): class, score, xmin, ymin, xmax, ymax, the highest score first. What is suppressed, or scores
        below 0.01, has class -1 and score 0.
    """
    best_BA, class_BA = probability_BAK.max(dim=2)
    # stable: of equal scores the first anchor's counts first, as in ONNX's TopK, whatever else is in the batch
    score_BA, place_BA = best_BA.sort(dim=1, descending=True, stable=True)
    score_BD, place_BD = score_BA[:, :nms_topk], place_BA[:, :nms_topk]
    class_BD = class_BA.gather(1, place_BD)
    box_BD4 = box_BA4.gather(1, place_BD.unsqueeze(2).expand(-1, -1, 4))
    kept_BD = (score_BD > 0.01) & ~suppressed(box_BD4, class_BD, nms_threshold)
    shown_BD = torch.where(kept_BD, class_BD.to(score_BD.dtype), -torch.ones_like(score_BD))
    return torch.cat(
        [shown_BD.unsqueeze(2), torch.where(kept_BD, score_BD, torch.zeros_like(score_BD)).unsqueeze(2), box_BD4], dim=2
    )


def suppressed(box_BD4: Tensor, class_BD: Tensor, nms_threshold: float) -> Tensor:
    """Greedy non-maximum suppression of boxes in the order of their scores.

    A box is suppressed when one before it, itself not suppressed, is of its class and overlaps it by more than the
    threshold. This is solved for all boxes at once by repeating the rule until nothing changes: after n rounds the
    first n boxes are right, and nearly always all of them after three or four.

    Returns:
        (B, D) bool.
    """
    number = torch.arange(box_BD4.shape[1], device=box_BD4.device)
    before = number.unsqueeze(1) < number.unsqueeze(0)
    rival = (overlap(box_BD4, box_BD4) > nms_threshold) & before & (class_BD.unsqueeze(2) == class_BD.unsqueeze(1))
    gone = torch.zeros_like(class_BD, dtype=torch.bool)
    now = rival.any(dim=1)
    while not torch.equal(now, gone):
        gone = now
        now = (rival & ~gone.unsqueeze(2)).any(dim=1)
    return gone
