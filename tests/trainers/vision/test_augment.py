"""The augmenter's constants and limits (image classification contract, section 3)."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest

from trainers.vision.augment import NUM_DRAWS, augment, centre_crop, shift_colour, transform

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(0, 256, (20, 30, 3), dtype=np.uint8)
NO_CHANGE = np.full(3, 0.5, np.float32)


@pytest.mark.parametrize("kind", [None, "crop", "crop_color", "crop_color_transform"])
def test_every_kind_gives_the_networks_size(kind: str | None) -> None:
    draws = RANDOM.random(NUM_DRAWS, dtype=np.float32)

    assert augment(PIXELS, kind, draws, 12, 14).shape == (12, 14, 3)


def test_without_augmentation_the_centre_is_cut_out() -> None:
    assert np.array_equal(centre_crop(PIXELS, 10, 10), PIXELS[5:15, 10:20])


def test_crop_reaches_every_corner_and_flips_half_of_the_time() -> None:
    draws = RANDOM.random((400, NUM_DRAWS), dtype=np.float32)
    seen = {augment(PIXELS, "crop", d, 19, 29).tobytes() for d in draws}
    corners = [PIXELS[top : top + 19, left : left + 29] for top in (0, 1) for left in (0, 1)]

    assert seen == {c.tobytes() for c in corners} | {c[:, ::-1].tobytes() for c in corners}


def test_no_shift_leaves_colours_as_they_are() -> None:
    difference = shift_colour(PIXELS, NO_CHANGE).astype(int) - PIXELS

    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("draws", [(0.0, 0.5, 0.5), (0.9, 0.5, 0.5), (0.5, 0.9, 0.5), (0.5, 0.1, 0.3)])
def test_shifts_are_added_in_hls(draws: tuple[float, float, float]) -> None:
    """Against the standard library, colour by colour: hue of 180, the rest of 255 steps, clipped."""
    shift = [(2 * d - 1) * limit for d, limit in zip(draws, (36 / 180, 50 / 255, 50 / 255), strict=True)]
    shifted = shift_colour(PIXELS[:4, :4], np.array(draws, np.float32)).reshape(-1, 3)
    for before, after in zip(PIXELS[:4, :4].reshape(-1, 3), shifted, strict=True):
        hls = colorsys.rgb_to_hls(*(before / 255))
        expected = colorsys.hls_to_rgb(*(min(max(c + s, 0), 1) for c, s in zip(hls, shift, strict=True)))

        assert after == pytest.approx([round(c * 255) for c in expected], abs=1)


def test_no_turn_leaves_the_image_as_it_is() -> None:
    assert np.array_equal(transform(PIXELS, NO_CHANGE), PIXELS)


def test_a_turn_of_ten_degrees_moves_a_mark_by_ten_degrees() -> None:
    pixels = np.zeros((101, 101, 3), np.uint8)
    pixels[48:53, 73:78] = 255  # 25 to the right of the centre
    turned = transform(pixels, np.array([1, 0.5, 0.5], np.float32))[20:81, 20:81, 0] > 128
    y, x = (axis.mean() + 20 - 50 for axis in np.nonzero(turned))

    assert np.hypot(x, y) == pytest.approx(25, abs=1)
    assert np.degrees(np.arctan2(-y, x)) == pytest.approx(10, abs=1)
