"""Matching and losses on examples that fit on paper."""

from __future__ import annotations

import math

import pytest
import torch

from trainers.object_detection.boxes import apply_offsets, offsets_to
from trainers.object_detection.loss import Matches, match, multibox_losses

ANCHORS = torch.tensor([
    [0.25, 0.25, 0.5, 0.5],  # upper left quarter
    [0.75, 0.25, 0.5, 0.5],  # upper right
    [0.25, 0.75, 0.5, 0.5],  # lower left
    [0.30, 0.25, 0.5, 0.5],  # the first one, moved a little
    [0.75, 0.75, 0.5, 0.5],  # lower right
])  # fmt: skip


def objects(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor([rows], dtype=torch.float32)


def test_the_closest_anchor_and_those_beyond_half_answer() -> None:
    matches = match(objects((2, 0.0, 0.0, 0.5, 0.5)), ANCHORS)

    assert matches.label[0].tolist() == [3, 0, 0, 3, 0]  # 1 + class; 0 is the background
    assert matches.offset[0, 0].tolist() == [0, 0, 0, 0]
    assert matches.offset[0, 3].tolist() == pytest.approx([-1, 0, 0, 0], abs=1e-5)


def test_a_small_object_gets_its_best_anchor_below_half_too() -> None:
    matches = match(objects((0, 0.6, 0.6, 0.7, 0.7)), ANCHORS)

    assert matches.label[0].tolist() == [0, 0, 0, 0, 1]
    back = apply_offsets(matches.offset[0], ANCHORS)[4]
    assert back.tolist() == pytest.approx([0.6, 0.6, 0.7, 0.7], abs=1e-5)


def test_two_objects_in_one_place_get_two_anchors() -> None:
    matches = match(objects((0, 0.0, 0.0, 0.5, 0.5), (1, 0.01, 0.0, 0.5, 0.5)), ANCHORS)

    assert matches.label[0].tolist() == [1, 0, 0, 2, 0]


def test_two_objects_on_the_same_spot_below_half_get_two_anchors() -> None:
    matches = match(objects((0, 0.1, 0.1, 0.2, 0.2), (1, 0.1, 0.1, 0.2, 0.21)), ANCHORS)

    assert sorted(matches.label[0].tolist()) == [0, 0, 0, 1, 2]


def test_what_fills_up_matches_nothing() -> None:
    filled = torch.cat([objects((2, 0.0, 0.0, 0.5, 0.5)), torch.full((1, 3, 5), -1.0)], dim=1)

    for found, expected in zip(match(filled, ANCHORS), match(filled[:, :1], ANCHORS), strict=True):
        assert torch.equal(found, expected)
    nothing = match(torch.full((2, 3, 5), -1.0), ANCHORS)
    assert nothing.label.sum() == 0
    assert nothing.offset.isfinite().all()
    assert match(torch.empty(2, 0, 5), ANCHORS).label.shape == (2, 5)


def test_images_of_a_batch_do_not_mix() -> None:
    first, second = objects((2, 0.0, 0.0, 0.5, 0.5)), objects((0, 0.6, 0.6, 0.7, 0.7))

    both = match(torch.cat([first, second]), ANCHORS)

    assert torch.equal(both.label, torch.cat([match(first, ANCHORS).label, match(second, ANCHORS).label]))


def test_three_negatives_for_each_positive_and_the_hardest_ones() -> None:
    label = torch.tensor([[1, 0, 0, 0, 0, 0]])
    score = torch.zeros(1, 6, 2)
    score[0, 1:, 1] = torch.tensor([3.0, 2.0, 1.0, -5.0, -6.0])  # logits of the object where there is none
    matches = Matches(label, torch.zeros(1, 6, 4))

    losses = multibox_losses(score, torch.zeros(1, 6, 4), matches)

    expected = math.log(2) + sum(math.log1p(math.exp(value)) for value in (3.0, 2.0, 1.0))
    assert losses.cross_entropy.item() == pytest.approx(expected, rel=1e-6)
    assert losses.num_matched.item() == 1


def test_smooth_l1_counts_matched_anchors_alone() -> None:
    label = torch.tensor([[1, 0]])
    wanted, given = torch.zeros(1, 2, 4), torch.tensor([[[0.5, 2.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]])

    losses = multibox_losses(torch.zeros(1, 2, 2), given, Matches(label, wanted))

    assert losses.smooth_l1.item() == pytest.approx(0.5 * 0.5**2 + (2.0 - 0.5))


def test_an_image_without_objects_still_teaches_the_background() -> None:
    matches = match(torch.empty(1, 0, 5), ANCHORS)
    score = torch.zeros(1, 5, 3, requires_grad=True)

    losses = multibox_losses(score, torch.zeros(1, 5, 4), matches)
    losses.cross_entropy.backward()  # type: ignore[no-untyped-call]

    assert losses.num_matched.item() == 0
    assert losses.cross_entropy.item() == pytest.approx(3 * math.log(3), rel=1e-5)
    assert losses.smooth_l1.item() == 0
    assert offsets_to(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), ANCHORS[:1]).isfinite().all()
