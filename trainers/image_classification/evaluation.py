"""What a finished model gets right and wrong, class by class, and whether its probabilities can be believed."""

# B batch, K classes

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainers.distributed import World

__all__ = ["Evaluation"]

_NUM_BINS = 15
_LARGEST_MATRIX = 200  # classes; beyond, only the largest confusions are listed
_NUM_CONFUSIONS = 20


class Evaluation:
    """Counts over the validation images; memory does not grow with their number."""

    def __init__(self, num_classes: int, *, multi_label: bool, device: torch.device) -> None:
        self._multi_label, self._num_classes = multi_label, num_classes
        # by class, [label absent or present][not predicted or predicted]; of one label: the confusion matrix
        shape = (num_classes, 2, 2) if multi_label else (num_classes, num_classes)
        self._counts = torch.zeros(shape, dtype=torch.int64, device=device)
        self._bins = torch.zeros((3, _NUM_BINS), dtype=torch.float64, device=device)  # number, confidence, right
        self._num_images = torch.zeros((), dtype=torch.int64, device=device)
        self._num_exact = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, score_BK: Tensor, label: Tensor) -> None:
        """Args: score_BK: logits. label: (B,) classes, or (B, K) of 0 and 1 with several labels."""
        score_BK = score_BK.float()
        self._num_images += len(label)
        if self._multi_label:
            probability, right = score_BK.sigmoid(), (score_BK > 0) == (label > 0.5)
            self._num_exact += right.all(dim=1).sum()
            for present in (0, 1):
                for predicted in (0, 1):
                    chosen = ((label > 0.5) == bool(present)) & ((score_BK > 0) == bool(predicted))
                    self._counts[:, present, predicted] += chosen.sum(dim=0)
            confidence = torch.maximum(probability, 1 - probability).flatten()
            self._fill_bins(confidence, right.flatten())
            return
        confidence, predicted_B = score_BK.softmax(dim=1).max(dim=1)
        right = predicted_B == label
        self._num_exact += right.sum()
        places = label * self._num_classes + predicted_B
        self._counts += places.bincount(minlength=self._num_classes**2).reshape(self._counts.shape)
        self._fill_bins(confidence, right)

    def report(self, world: World, labels: list[str] | None) -> dict[str, Any]:
        """Everything as JSON values, over all processes.

        Args:
            world: the processes that have each seen a part.
            labels: names of the classes, where known.
        """
        for counts in (self._counts, self._bins, self._num_images, self._num_exact):
            world.sum(counts)
        num_images = max(int(self._num_images), 1)
        counted = self._counts.cpu()
        names = labels or [str(number) for number in range(self._num_classes)]
        report = {
            "num_images": int(self._num_images),
            ("exact_match" if self._multi_label else "accuracy"): int(self._num_exact) / num_images,
            "calibration": self._calibration(),
            "classes": self._classes(counted, names),
        }
        return report if self._multi_label else report | self._confusions(counted, names)

    def _fill_bins(self, confidence: Tensor, right: Tensor) -> None:
        place = (confidence * _NUM_BINS).long().clamp(max=_NUM_BINS - 1)
        for row, values in enumerate((torch.ones_like(confidence), confidence, right)):
            # scatter_add on a GPU would add in any order
            self._bins[row] += place.bincount(values.double(), minlength=_NUM_BINS)

    def _calibration(self) -> dict[str, Any]:
        """Expected calibration error (Guo et al. 2017, arXiv:1706.04599): mean distance of confidence and accuracy."""
        number, confidence, right = self._bins.cpu()
        safe = number.clamp(min=1)
        error = ((confidence - right).abs().sum() / number.sum().clamp(min=1)).item()
        bins = [
            {"from": at / _NUM_BINS, "number": int(n), "confidence": c, "accuracy": r}
            for at, (n, c, r) in enumerate(
                zip(number, (confidence / safe).tolist(), (right / safe).tolist(), strict=True)
            )
        ]
        return {"expected_calibration_error": error, "bins": bins}

    def _classes(self, counted: Tensor, names: list[str]) -> list[dict[str, Any]]:
        if self._multi_label:
            found, missed, wrongly = counted[:, 1, 1], counted[:, 1, 0], counted[:, 0, 1]
        else:
            found = counted.diagonal()
            missed, wrongly = counted.sum(dim=1) - found, counted.sum(dim=0) - found
        return [
            {
                "class": number,
                "label": names[number],
                "number": int(f + m),
                "precision": _share(f, f + w),
                "recall": _share(f, f + m),
                "f1": _share(2 * f, 2 * f + m + w),
            }
            for number, (f, m, w) in enumerate(zip(found.tolist(), missed.tolist(), wrongly.tolist(), strict=True))
        ]

    def _confusions(self, counted: Tensor, names: list[str]) -> dict[str, Any]:
        wrong = counted.clone().fill_diagonal_(0).flatten()
        most = wrong.topk(min(_NUM_CONFUSIONS, len(wrong)))
        pairs = [
            {"is": names[place // self._num_classes], "taken_for": names[place % self._num_classes], "number": number}
            for number, place in zip(most.values.tolist(), most.indices.tolist(), strict=True)
            if number
        ]
        matrix = {"confusion_matrix": counted.tolist()} if self._num_classes <= _LARGEST_MATRIX else {}
        return {"largest_confusions": pairs} | matrix


def _share(part: int, whole: int) -> float | None:
    """None where nothing is to be shared: neither 0 nor 1 would be true."""
    return part / whole if whole else None
