"""Mean intersection over union and pixel accuracy, counted over the whole set (contract, section 4)."""

# K classes

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from formats.masks import IGNORE

__all__ = ["Evaluation", "confusion"]


def confusion(found: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """(K, K) int64: how many pixels of class i (row) were taken for class j (column); 255 in the truth is left out.

    Args:
        found: class ids, of any shape and integer type.
        truth: the same shape.
        num_classes: K.
    """
    counted = truth != IGNORE
    pairs = truth[counted].long() * num_classes + found[counted].long()
    return torch.bincount(pairs, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures of a confusion matrix."""

    counts_KK: Tensor  # noqa: N815  shapes stand in names

    @property
    def intersections_over_unions(self) -> Tensor:
        """(K,) float64; 0 for a class that neither occurs nor was found."""
        right = self.counts_KK.diagonal().double()
        union = self.counts_KK.sum(0) + self.counts_KK.sum(1) - self.counts_KK.diagonal()
        return right / union.clamp(min=1)

    @property
    def is_present(self) -> Tensor:
        """(K,) bool: occurs, or was found."""
        return (self.counts_KK.sum(0) + self.counts_KK.sum(1)) > 0

    @property
    def mean_iou(self) -> float:
        """Over all classes, as GluonCV has it: `validation:mIOU`."""
        return float(self.intersections_over_unions.mean())

    @property
    def pixel_accuracy(self) -> float:
        return float(self.counts_KK.diagonal().sum() / self.counts_KK.sum().clamp(min=1))

    def report(self, names: list[str] | None = None) -> dict[str, Any]:
        """Everything as JSON values."""
        present = self.is_present
        each = self.intersections_over_unions
        occurring = self.counts_KK.sum(1)
        return {
            "mIOU": self.mean_iou,
            "mIOU_of_present_classes": float(each[present].mean()) if bool(present.any()) else 0.0,
            "pixel_accuracy": self.pixel_accuracy,
            "num_pixels": int(self.counts_KK.sum()),
            "classes": [
                {
                    "class_id": number,
                    **({"name": names[number]} if names else {}),
                    "IOU": float(each[number]) if bool(present[number]) else None,
                    "share_of_pixels": float(occurring[number] / self.counts_KK.sum().clamp(min=1)),
                }
                for number in range(len(each))
            ],
            "confusion_matrix": self.counts_KK.tolist(),
        }
