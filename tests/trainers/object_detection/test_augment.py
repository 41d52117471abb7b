"""What augmentation does to boxes is what it does to pixels."""

from __future__ import annotations

import numpy as np
import pytest

from trainers.object_detection.augment import augment, squeeze

SIDE = 120


def scene(height: int = 160, width: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """A red and a blue rectangle on black, and where they are."""
    pixels = np.zeros((height, width, 3), np.uint8)
    objects = np.array([[0, 0.1, 0.2, 0.4, 0.6], [1, 0.5, 0.5, 0.9, 0.75]], np.float32)
    for (left, top, right, bottom), colour in zip(objects[:, 1:], ((255, 0, 0), (0, 0, 255)), strict=True):
        pixels[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = colour
    return pixels, objects


def seen_box(pixels: np.ndarray, number: int) -> tuple[np.ndarray, float]:
    """Corners of the pixels that are rather of that object's colour, as shares, and how many there are."""
    signed = pixels.astype(int)
    red, blue = signed[:, :, 0] - signed[:, :, 2], signed[:, :, 2] - signed[:, :, 0]
    y, x = np.nonzero((red, blue)[number] > 60)
    if not len(x):
        return np.zeros(4), 0.0
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) / SIDE, float(len(x))


@pytest.mark.parametrize("flips", ["horizontal", "both"])
def test_boxes_go_with_their_pixels(flips: str) -> None:
    pixels, objects = scene()
    compared = 0
    for seed in range(300):
        image, found = augment(pixels, objects, SIDE, flips, np.random.default_rng(seed))
        assert image.shape == (SIDE, SIDE, 3)
        assert ((found[:, 1:] >= 0) & (found[:, 1:] <= 1)).all()
        for row in found:
            box, count = seen_box(image, int(row[0]))
            if count > 100:  # colours may be shifted beyond telling
                assert box == pytest.approx(row[1:], abs=4 / SIDE), seed
                compared += 1

    assert compared > 300


def test_every_change_happens() -> None:
    pixels, objects = scene()
    results = [augment(pixels, objects, SIDE, "both", np.random.default_rng(seed)) for seed in range(200)]

    counts = np.bincount([len(found) for _, found in results], minlength=3)
    assert counts[0] < 20  # crops are chosen to overlap something
    assert counts[1] > 20
    assert counts[2] > 50
    grey = [(image == 127).all(axis=2).mean() > 0.3 for image, _ in results]
    assert 0.1 < np.mean(grey) < 0.6  # zoomed out
    widths = np.concatenate([found[found[:, 0] == 0, 3] - found[found[:, 0] == 0, 1] for _, found in results])
    assert widths.min() < 0.15  # the object itself is 0.3 wide
    assert widths.max() > 0.6
    left = np.mean([found[0, 1] + found[0, 3] < found[1, 1] + found[1, 3] for _, found in results if len(found) == 2])
    assert 0.3 < left < 0.7
    above = np.mean([found[0, 2] + found[0, 4] < found[1, 2] + found[1, 4] for _, found in results if len(found) == 2])
    assert 0.3 < above < 0.7


def test_the_same_numbers_give_the_same_sample() -> None:
    pixels, objects = scene()
    one, other = (augment(pixels, objects, SIDE, "horizontal", np.random.default_rng(7)) for _ in range(2))

    assert np.array_equal(one[0], other[0])
    assert np.array_equal(one[1], other[1])


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (3, 2)])
def test_odd_images_without_objects_are_no_trouble(size: tuple[int, int]) -> None:
    pixels, nothing = np.full((*size, 3), 200, np.uint8), np.zeros((0, 5), np.float32)
    for seed in range(40):
        image, found = augment(pixels, nothing, SIDE, "both", np.random.default_rng(seed))
        assert image.shape == (SIDE, SIDE, 3)
        assert found.shape == (0, 5)


def test_validation_sees_the_whole_image_squeezed() -> None:
    pixels, objects = scene()
    image = squeeze(pixels, SIDE)

    for number in (0, 1):
        assert seen_box(image, number)[0] == pytest.approx(objects[number, 1:], abs=2 / SIDE)
