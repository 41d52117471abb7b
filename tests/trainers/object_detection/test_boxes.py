"""Anchors and boxes, against the paper's figures and arithmetic by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trainers.object_detection.anchors import LARGE_LEVELS, SMALL_LEVELS, Level, anchor_boxes, levels_of
from trainers.object_detection.boxes import apply_offsets, offsets_to, overlap
from trainers.object_detection.detection import select, suppressed
from trainers.object_detection.model import BaseNetwork, SingleShotDetector, aliases

shares = hnp.arrays(np.float32, (6, 4), elements=st.floats(0, 1, width=32))


@pytest.mark.parametrize(
    ("base", "side", "count"), [("vgg-16", 300, 8732), ("vgg-16", 512, 24564), ("resnet-50", 300, 2268)]
)
def test_there_are_as_many_anchors_as_in_the_original(base: BaseNetwork, side: int, count: int) -> None:
    network = SingleShotDetector(base_network=base, num_classes=2, image_shape=side)

    assert network.anchors.shape == (count, 4)


@pytest.mark.parametrize(("base", "side"), [("resnet-50", 512), ("resnet-18", 300), ("vgg-16", 400)])
def test_each_anchor_gets_a_score_and_offsets(base: BaseNetwork, side: int) -> None:
    network = SingleShotDetector(base_network=base, num_classes=4, image_shape=side).eval()
    with torch.inference_mode():
        score, offset = network(torch.zeros(2, 3, side, side, dtype=torch.uint8))

    assert score.shape == (2, len(network.anchors), 5)
    assert offset.shape == (2, len(network.anchors), 4)


def test_the_anchors_of_a_place_are_those_of_the_paper() -> None:
    anchors = anchor_boxes([Level(0.2, 0.272, (1.0, 2.0, 0.5))], [(2, 4)])

    assert anchors.shape == (2 * 4 * 4, 4)
    expected = [
        (0.125, 0.25, 0.2, 0.2),
        (0.125, 0.25, 0.272, 0.272),
        (0.125, 0.25, 0.2 * math.sqrt(2), 0.2 / math.sqrt(2)),
        (0.125, 0.25, 0.2 / math.sqrt(2), 0.2 * math.sqrt(2)),
    ]
    assert anchors[:4].tolist() == [pytest.approx(row) for row in expected]
    assert anchors[-1, :2].tolist() == [0.875, 0.75]  # rows first: the last place is the lower right one


def test_large_images_have_smaller_anchors() -> None:
    assert levels_of("vgg-16", 300) == SMALL_LEVELS
    assert levels_of("vgg-16", 512) == LARGE_LEVELS
    assert levels_of("resnet-50", 512) == SMALL_LEVELS


def test_overlap_by_hand() -> None:
    one = torch.tensor([[0.0, 0.0, 0.4, 0.4]])
    others = torch.tensor([[0.2, 0.2, 0.6, 0.6], [0.5, 0.5, 0.6, 0.6], [0.0, 0.0, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]])

    assert overlap(one, others).tolist() == [pytest.approx([0.04 / 0.28, 0, 1, 0])]
    assert overlap(others[3:], others[3:]).tolist() == [[0]]


@given(shares, st.integers(0, 2**32 - 1))
def test_offsets_lead_back_to_the_box(corners: np.ndarray, seed: int) -> None:
    low, high = np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:]) + 0.01
    boxes = torch.from_numpy(np.concatenate([low, high], axis=1))
    anchors = torch.rand(6, 4, generator=torch.Generator().manual_seed(seed)) * 0.9 + 0.1

    assert torch.allclose(apply_offsets(offsets_to(boxes, anchors), anchors), boxes, atol=1e-5)


def test_offsets_by_hand() -> None:
    anchors = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    boxes = torch.tensor([[0.42, 0.34, 0.62, 0.74]])  # moved by a tenth of the anchor, of its size

    assert offsets_to(boxes, anchors).tolist() == [pytest.approx([1.0, 1.0, 0.0, 0.0], abs=1e-5)]
    assert apply_offsets(torch.tensor([[1.0, 1.0, 0.0, 0.0]]), anchors).tolist() == [pytest.approx(boxes[0].tolist())]


def test_wild_offsets_stay_finite() -> None:
    wild = torch.tensor([[1e30, -1e30, 1e30, 1e30], [0.0, 0.0, -1e30, -1e30]])

    assert apply_offsets(wild, torch.full((2, 4), 0.5)).clamp(0, 1).isfinite().all()


def plain_overlap(one: np.ndarray, other: np.ndarray) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, np.float32(0)) * max(height, np.float32(0))
    union = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - common
    return float(common / union) if union > 0 else 0.0


def plain_nms(boxes: np.ndarray, classes: np.ndarray, threshold: float) -> list[bool]:
    """Greedy suppression as one would write it down: True for what is dropped."""
    dropped: list[bool] = []
    for at, box in enumerate(boxes):
        rivals = [boxes[b] for b in range(at) if not dropped[b] and classes[b] == classes[at]]
        dropped.append(any(plain_overlap(rival, box) > threshold for rival in rivals))
    return dropped


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 24), st.sampled_from([0.0, 0.3, 0.45, 0.7, 1.0]))
def test_suppression_equals_the_plain_loop(seed: int, count: int, threshold: float) -> None:
    random = np.random.default_rng(seed)
    low = random.random((count, 2)).astype(np.float32) * 0.6
    boxes = np.concatenate([low, low + random.random((count, 2)).astype(np.float32) * 0.5], axis=1, dtype=np.float32)
    classes = random.integers(0, 3, count)

    found = suppressed(torch.from_numpy(boxes)[None], torch.from_numpy(classes)[None], threshold)

    assert found[0].tolist() == plain_nms(boxes, classes, threshold)


def test_a_chain_of_overlaps_keeps_every_second_box() -> None:
    left = torch.arange(50) * 0.5
    boxes = torch.stack([left, torch.zeros(50), left + 1, torch.ones(50)], dim=1)[None]

    assert suppressed(boxes, torch.zeros(1, 50, dtype=torch.long), 0.3)[0].tolist() == [False, True] * 25


def test_what_is_selected_comes_by_score_and_without_faint_ones() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.01, 0.0, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9], [0.1, 0.6, 0.3, 0.9]]])
    probabilities = torch.tensor([[[0.2, 0.7], [0.1, 0.8], [0.6, 0.3], [0.004, 0.009]]])

    rows = select(boxes, probabilities, 0.45, 4)[0]

    assert rows[:, 0].tolist() == [1, -1, 0, -1]
    assert rows[:, 1].tolist() == pytest.approx([0.8, 0, 0.6, 0])
    assert rows[0, 2:].tolist() == pytest.approx([0.01, 0, 0.5, 0.5])


def test_parameters_go_by_the_originals_names_too() -> None:
    assert "stage1_unit1_conv1_weight" in list(aliases("base.network.layer1.0.conv1.weight"))
    assert "stage2_unit1_sc_weight" in list(aliases("base.network.layer2.0.downsample.0.weight"))
    assert "conv0_weight" in list(aliases("base.network.conv1.weight"))
    assert "conv4_3_bias" in list(aliases("base.conv4_3.bias"))
