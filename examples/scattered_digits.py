"""Scenes for a first run: handwritten digits of scikit-learn's set on coloured grounds, with boxes and with masks.

    python examples/scattered_digits.py DIR

writes `DIR/train` and `DIR/validation` with 300 x 300 images, `..._boxes` with one JSON annotation each, for object
detection, and `..._masks` with one PNG mask each, for semantic segmentation: 1 where there is ink, 0 elsewhere. All
scenes follow from one seed; those of validation hold digits that training never sees.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from formats.detection import Annotation, encode_annotation
from formats.images import encode_png, resize
from formats.masks import encode_mask

__all__ = ["NUM_SCENES", "SIDE", "write_scenes"]

SIDE = 300
NUM_SCENES = {"train": 60, "validation": 12}

_INK = 96  # of 255: what a pixel of a digit must have at least
_SIZES = (50, 110)
_MOST_DIGITS = 5
Pixels = NDArray[np.uint8]


def write_scenes(directory: Path) -> dict[str, int]:
    """Write all channels and return how many digits each part's scenes hold."""
    digits, _ = load_digits(return_X_y=True)
    images = np.rint(digits.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    random = np.random.default_rng(0)
    counts = {}
    for part, count in NUM_SCENES.items():
        for name in (part, f"{part}_boxes", f"{part}_masks"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        known = images[::2] if part == "train" else images[1::2]
        counts[part] = 0
        for number in range(count):
            pixels, mask, boxes = _scene(known, random)
            annotation = Annotation(np.array(boxes, float), SIDE, SIDE, 3, f"{number}.png", {0: "digit"})
            (directory / part / f"{number}.png").write_bytes(encode_png(pixels))
            (directory / f"{part}_boxes" / f"{number}.json").write_bytes(encode_annotation(annotation))
            (directory / f"{part}_masks" / f"{number}.png").write_bytes(encode_mask(mask))
            counts[part] += len(boxes)
    return counts


def _scene(digits: Pixels, random: np.random.Generator) -> tuple[Pixels, Pixels, list[list[int]]]:
    """(S, S, 3) pixels, (S, S) mask, and class, left, top, width, height of each digit; none covers another."""
    ground = random.integers(0, 120, 3) + random.integers(0, 40, (SIDE // 10, SIDE // 10, 1))
    pixels = ground.repeat(10, axis=0).repeat(10, axis=1).astype(np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    boxes: list[list[int]] = []
    for _ in range(_MOST_DIGITS):
        side = int(random.integers(*_SIZES))
        top, left = (int(each) for each in random.integers(0, SIDE - side, 2))
        ink = resize(digits[random.integers(len(digits))], side, side) > _INK
        rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
        place = (slice(top, top + side), slice(left, left + side))
        if mask[place].any() or not rows.size:
            continue
        pixels[place][ink] = random.integers(150, 256, 3)
        mask[place][ink] = 1
        height, width = int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1
        boxes.append([0, left + int(columns[0]), top + int(rows[0]), width, height])
    return pixels, mask, boxes


if __name__ == "__main__":
    print(write_scenes(Path(sys.argv[1])))
