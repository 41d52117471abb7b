"""Average precision: PASCAL VOC's, by area and at eleven points, and COCO's, by its own library.

Everingham et al. 2010 (doi 10.1007/s11263-009-0275-4), section 4.2; devkit of 2010 for the area under the curve.
"""

# D detections and N objects of one image; P detections of one class over all images

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassPrecision", "Evaluation", "average_precision", "coco_metrics"]

Rows = NDArray[np.float32]


class ClassPrecision(NamedTuple):
    """Of one class; None where the validation images hold none of it."""

    area: float | None
    """Area under the precision-recall curve, its precision made to fall: VOC since 2010."""
    eleven_points: float | None
    """Mean of the best precision at recall 0, 0.1 .. 1: VOC 2007."""
    num_objects: int
    num_detections: int


@dataclass(slots=True)
class Evaluation:
    """Detections beside the truth, image after image."""

    num_classes: int
    least_overlap: float
    """Intersection over union from which a box is right."""
    detections: list[Rows] = field(default_factory=list)
    """(D, 6) each: class, score, xmin, ymin, xmax, ymax."""
    truths: list[Rows] = field(default_factory=list)
    """(N, 5) each: class, xmin, ymin, xmax, ymax."""

    def add(self, rows_D6: Rows, objects_N5: Rows) -> None:
        """One image; rows of class -1 are none."""
        self.detections.append(rows_D6[rows_D6[:, 0] >= 0])
        self.truths.append(objects_N5[objects_N5[:, 0] >= 0])

    def per_class(self) -> list[ClassPrecision]:
        return [self._of_class(number) for number in range(self.num_classes)]

    def mean_average_precision(self) -> float:
        """Over the classes that occur, by area: `validation:mAP`."""
        areas = [each.area for each in self.per_class() if each.area is not None]
        return float(np.mean(areas)) if areas else 0.0

    def report(self, names: list[str] | None = None) -> dict[str, Any]:
        """Everything as JSON values."""
        classes = self.per_class()
        eleven = [each.eleven_points for each in classes if each.eleven_points is not None]
        return {
            "num_images": len(self.truths),
            "overlap_threshold": self.least_overlap,
            "mAP": self.mean_average_precision(),
            "mAP_voc07_11_point": float(np.mean(eleven)) if eleven else 0.0,
            "coco": coco_metrics(self.detections, self.truths, self.num_classes),
            "classes": [
                {"class_id": number, **({"name": names[number]} if names else {}), **each._asdict()}
                for number, each in enumerate(classes)
            ],
        }

    def _of_class(self, number: int) -> ClassPrecision:
        scores, right = [], []
        num_objects = 0
        for rows, objects in zip(self.detections, self.truths, strict=True):
            mine, theirs = rows[rows[:, 0] == number], objects[objects[:, 0] == number, 1:]
            mine = mine[np.argsort(-mine[:, 1], kind="stable")]
            num_objects += len(theirs)
            scores.append(mine[:, 1])
            right.append(_right(mine[:, 2:], theirs, self.least_overlap))
        score_P, right_P = np.concatenate(scores), np.concatenate(right)
        if not num_objects:
            return ClassPrecision(None, None, 0, len(score_P))
        ordered_P = right_P[np.argsort(-score_P, kind="stable")]
        return ClassPrecision(*average_precision(ordered_P, num_objects), num_objects, len(score_P))


def average_precision(right_P: NDArray[np.bool_], num_objects: int) -> tuple[float, float]:
    """By area, and at eleven points.

    Args:
        right_P: whether each detection found an object, the highest score first.
        num_objects: that could have been found, at least 1.
    """
    found_P = np.cumsum(right_P)
    recall_P = found_P / num_objects
    precision_P = found_P / np.arange(1, len(right_P) + 1)
    falling_P = np.maximum.accumulate(precision_P[::-1])[::-1]
    area = float((np.diff(recall_P, prepend=0.0) * falling_P).sum())
    # the first place at which each recall is reached; behind the last one there is no precision
    places = np.searchsorted(recall_P, np.linspace(0, 1, 11) - 1e-12)
    eleven = float(np.append(falling_P, 0.0)[places].mean())
    return area, eleven


def _right(boxes_D4: Rows, truths_N4: Rows, least_overlap: float) -> NDArray[np.bool_]:
    """VOC's rule: a detection belongs to the object that it overlaps most; the first one of each object is right."""
    right = np.zeros(len(boxes_D4), bool)
    if not len(truths_N4):
        return right
    low = np.maximum(boxes_D4[:, None, :2], truths_N4[None, :, :2])
    high = np.minimum(boxes_D4[:, None, 2:], truths_N4[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (boxes_D4, truths_N4)]
    overlap_DN = common / np.maximum(areas[0][:, None] + areas[1] - common, 1e-12)
    taken: set[int] = set()
    for at, best in enumerate(overlap_DN.argmax(axis=1).tolist()):
        if overlap_DN[at, best] >= least_overlap and best not in taken:
            taken.add(best)
            right[at] = True
    return right


def coco_metrics(detections: list[Rows], truths: list[Rows], num_classes: int) -> dict[str, float]:
    """COCO's AP over overlaps 0.5 to 0.95, at 0.5 and at 0.75, as pycocotools measures them; -1 without objects."""
    from pycocotools.coco import COCO  # noqa: PLC0415  only reports need it
    from pycocotools.cocoeval import COCOeval  # noqa: PLC0415

    side = 1000.0  # shares to pixels: the library thinks in areas of pixels, which only its small/medium/large show
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(1, len(truths) + 1)],
        "categories": [{"id": number} for number in range(num_classes)],
        "annotations": [
            {"image_id": image, "category_id": int(row[0]), "bbox": _corner_and_size(row[1:], side), "iscrowd": 0}
            for image, objects in enumerate(truths, 1)
            for row in objects
        ],
    }
    for number, annotation in enumerate(truth.dataset["annotations"], 1):
        annotation |= {"id": number, "area": annotation["bbox"][2] * annotation["bbox"][3]}
    found = [
        {"image_id": image, "category_id": int(row[0]), "score": float(row[1]), "bbox": _corner_and_size(row[2:], side)}
        for image, rows in enumerate(detections, 1)
        for row in rows
    ]
    if not found or not truth.dataset["annotations"]:
        empty = 0.0 if truth.dataset["annotations"] else -1.0
        return dict.fromkeys(("AP", "AP50", "AP75"), empty)
    with contextlib.redirect_stdout(io.StringIO()):  # it talks
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(("AP", "AP50", "AP75"), map(float, evaluation.stats[:3]), strict=True))


def _corner_and_size(corners: Rows, side: float) -> list[float]:
    left, top, right, bottom = (float(value) * side for value in corners)
    return [left, top, right - left, bottom - top]
