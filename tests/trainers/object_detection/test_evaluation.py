"""Average precision: by hand, against a plain implementation, and against pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainers.object_detection.evaluation import Evaluation, average_precision, coco_metrics


def test_a_curve_by_hand() -> None:
    """Right, wrong, right, right of four objects: precision 1, 1/2, 2/3, 3/4 at recall 1/4, 1/4, 2/4, 3/4."""
    area, eleven = average_precision(np.array([True, False, True, True]), 4)

    assert area == pytest.approx(0.25 * 1 + 0.25 * 0.75 + 0.25 * 0.75)
    # recall 0, .1, .2 have precision 1; .3 to .7 have 3/4; .8, .9 and 1 are never reached
    assert eleven == pytest.approx((3 * 1 + 5 * 0.75) / 11)


def test_nothing_found_is_nothing() -> None:
    assert average_precision(np.zeros(0, bool), 3) == (0, 0)
    assert average_precision(np.array([False, False]), 3) == (0, 0)


def rows(*found: tuple[float, ...]) -> np.ndarray:
    return np.array(found, np.float32).reshape(-1, 6)


def objects(*found: tuple[float, ...]) -> np.ndarray:
    return np.array(found, np.float32).reshape(-1, 5)


def test_an_object_is_found_once_and_by_its_class() -> None:
    evaluation = Evaluation(3, 0.5)
    evaluation.add(
        rows((0, 0.9, 0, 0, 0.5, 0.5), (0, 0.8, 0, 0, 0.5, 0.5), (1, 0.7, 0.5, 0.5, 1, 1), (-1, 0, 0, 0, 0, 0)),
        objects((0, 0, 0, 0.5, 0.5), (0, 0.5, 0.5, 1, 1)),
    )
    first, second, third = evaluation.per_class()

    assert (first.area, first.num_objects, first.num_detections) == (0.5, 2, 2)
    assert (second.area, second.num_objects, second.num_detections) == (None, 0, 1)
    assert third.area is None
    assert evaluation.mean_average_precision() == 0.5


def test_the_overlap_is_reached_or_not() -> None:
    found, truth = rows((0, 0.9, 0, 0, 0.5, 1.0)), objects((0, 0, 0, 1.0, 1.0))

    for least, area in ((0.5, 1.0), (0.51, 0.0)):
        evaluation = Evaluation(1, least)
        evaluation.add(found, truth)
        assert evaluation.mean_average_precision() == area


def test_the_report_names_its_classes() -> None:
    evaluation = Evaluation(2, 0.5)
    evaluation.add(rows((1, 0.9, 0, 0, 0.5, 0.5)), objects((1, 0, 0, 0.5, 0.5)))
    report = evaluation.report(["cat", "owl"])

    assert (report["mAP"], report["mAP_voc07_11_point"], report["num_images"]) == (1, 1, 1)
    assert report["coco"] == {"AP": pytest.approx(1), "AP50": pytest.approx(1), "AP75": pytest.approx(1)}
    assert report["classes"][1] == {
        "class_id": 1, "name": "owl", "area": 1, "eleven_points": 1, "num_objects": 1, "num_detections": 1,
    }  # fmt: skip


def random_boxes(random: np.random.Generator, count: int) -> np.ndarray:
    low = random.random((count, 2)) * 0.7
    return np.concatenate([low, low + 0.05 + random.random((count, 2)) * 0.25], axis=1)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_at_one_overlap_we_agree_with_pycocotools(seed: int) -> None:
    """COCO takes the area at 101 recalls, and lets a detection fall back on its second-best object: where objects do
    not touch, right and wrong are the same, and the areas differ by a hundredth at most."""
    random = np.random.default_rng(seed)
    num_objects = 4  # per image; 25 images: recalls are hundredths
    evaluation = Evaluation(1, 0.5)
    for _ in range(25):
        corners = np.array([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [0.5, 0.5]])
        truth = np.concatenate([corners + 0.05, corners + 0.45], axis=1)[:num_objects]
        found = truth[random.random(num_objects) < 0.7] + random.uniform(-0.1, 0.1, 4)
        noise = random_boxes(random, int(random.integers(0, 3)))
        boxes = np.concatenate([found, noise])
        scored = np.concatenate([np.zeros((len(boxes), 1)), random.random((len(boxes), 1)), boxes], axis=1)
        evaluation.add(scored.astype(np.float32), np.insert(truth, 0, 0, axis=1).astype(np.float32))

    theirs = coco_metrics(evaluation.detections, evaluation.truths, 1)["AP50"]

    ours = evaluation.mean_average_precision()
    steps = area_at_101(evaluation)
    assert steps == pytest.approx(theirs, abs=1e-6)
    assert ours == pytest.approx(theirs, abs=0.01)


def area_at_101(evaluation: Evaluation) -> float:
    """Our right-or-wrong flags under COCO's way to take the area: the mean precision at recall 0, 0.01 .. 1."""
    from trainers.object_detection.evaluation import _right  # noqa: PLC0415

    scores, flags, total = [], [], 0
    for found, truth in zip(evaluation.detections, evaluation.truths, strict=True):
        order = np.argsort(-found[:, 1], kind="stable")
        scores.append(found[order, 1])
        flags.append(_right(found[order, 2:], truth[:, 1:], 0.5))
        total += len(truth)
    right = np.concatenate(flags)[np.argsort(-np.concatenate(scores), kind="stable")]
    counted = np.cumsum(right)
    precision = np.maximum.accumulate((counted / np.arange(1, len(right) + 1))[::-1])[::-1]
    places = np.searchsorted(counted / total, np.linspace(0, 1, 101), side="left")
    return float(np.append(precision, 0)[places].mean())
