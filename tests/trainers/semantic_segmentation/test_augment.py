"""Images and masks are moved together."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from formats.masks import IGNORE
from trainers.semantic_segmentation.augment import augment, centre, padded

Pixels = NDArray[np.uint8]


def halves(height: int = 60, width: int = 80) -> tuple[Pixels, Pixels]:
    """Left half black and of class 3, right half white and of class 7."""
    mask = np.full((height, width), 3, np.uint8)
    mask[:, width // 2 :] = 7
    return np.repeat(np.where(mask == 3, 0, 255).astype(np.uint8)[:, :, None], 3, axis=2), mask


def test_what_is_black_keeps_the_class_of_black() -> None:
    pixels, mask = halves()
    seen = set()
    for seed in range(60):
        image, labels = augment(pixels, mask, 80, 48, "both", np.random.default_rng(seed))
        assert image.shape == (48, 48, 3)
        assert labels.shape == (48, 48)
        brightness = image.astype(int).mean(axis=2)
        # away from the edge that resizing and blurring soften
        assert set(labels[brightness < 20].tolist()) <= {3}
        assert set(labels[brightness > 235].tolist()) <= {7}
        seen |= set(np.unique(labels).tolist())
    assert seen == {3, 7, IGNORE}


def test_around_a_small_image_lies_what_is_left_out() -> None:
    pixels, mask = halves(30, 40)
    image, labels = augment(pixels, mask, 20, 64, "horizontal", np.random.default_rng(0))

    outside = labels == IGNORE
    assert outside.mean() > 0.5
    assert image[outside].mean(axis=0) == pytest.approx([124, 116, 104], abs=16)  # a blur softens its edge


def test_scales_reach_from_half_to_twice_the_base_size() -> None:
    mask = np.zeros((300, 400), np.uint8)
    mask[:, 200:] = 1
    pixels = np.zeros((300, 400, 3), np.uint8)
    widths = []
    for seed in range(200):
        _, labels = augment(pixels, mask, 100, 256, "horizontal", np.random.default_rng(seed))
        widths.append(int((labels != IGNORE).any(axis=0).sum()))

    assert 48 <= min(widths) < 65
    assert 185 < max(widths) <= 202


def test_the_middle_of_the_scaled_image_is_validated() -> None:
    pixels, mask = halves(60, 80)
    image, labels = centre(pixels, mask, 30)

    assert image.shape == (30, 30, 3)
    assert (labels[:, :15] == 3).all()
    assert (labels[:, 15:] == 7).all()


def test_whole_images_get_sides_that_are_multiples_of_8() -> None:
    pixels, mask = halves(60, 77)
    image, labels = padded(pixels, mask)

    assert image.shape == (64, 80, 3)
    assert np.array_equal(image[:60, :77], pixels)
    assert np.array_equal(labels[:60, :77], mask)
    assert (labels[60:] == IGNORE).all()
    assert (labels[:, 77:] == IGNORE).all()


def test_the_same_draws_give_the_same_sample() -> None:
    first, second = (augment(*halves(), 80, 48, "both", np.random.default_rng(5)) for _ in range(2))

    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
