"""What training, validation and padding do to an image and its mask together (contract, section 2.4).

Scaling and cutting are done at once: only the part of the image that is seen is resized.
"""

# S side of a crop

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from formats.masks import IGNORE
from trainers.semantic_segmentation.hyperparameters import STRIDE
from trainers.semantic_segmentation.model import MEAN_COLOUR

__all__ = ["Pair", "augment", "centre", "padded"]

Pixels = NDArray[np.uint8]
Pair = tuple[Pixels, Pixels]
"""(H, W, 3) RGB and (H, W) class ids."""

_SCALES = (0.5, 2.0)
_AROUND = np.rint(MEAN_COLOUR).astype(np.uint8)


def augment(pixels: Pixels, mask: Pixels, base_size: int, side: int, flips: str, random: np.random.Generator) -> Pair:
    """One training sample, (S, S, 3) and (S, S).

    Args:
        pixels: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8.
        base_size: the longer side becomes this times 0.5 to 2.
        side: S; where the scaled image is smaller, the mean colour, and 255 in the mask, fill up.
        flips: mirror at random left to right, or upside down too.
        random: everything is drawn from it.
    """
    scale = base_size * random.uniform(*_SCALES) / max(mask.shape)
    height, width = (max(1, round(each * scale)) for each in mask.shape)
    top = int(random.integers(max(height - side, 0) + 1))
    left = int(random.integers(max(width - side, 0) + 1))
    seen = _window(pixels, mask, (height, width), (top, left), side)
    pixels, mask = _filled(*seen, side, side)
    if random.random() < 0.5:
        pixels, mask = pixels[:, ::-1], mask[:, ::-1]
    if flips == "both" and random.random() < 0.5:
        pixels, mask = pixels[::-1], mask[::-1]
    if random.random() < 0.5:
        blurred = Image.fromarray(np.ascontiguousarray(pixels)).filter(ImageFilter.GaussianBlur(random.random()))
        pixels = np.asarray(blurred)
    return np.ascontiguousarray(pixels), np.ascontiguousarray(mask)


def centre(pixels: Pixels, mask: Pixels, side: int) -> Pair:
    """(S, S, 3) and (S, S): the shorter side brought to S, then the middle."""
    scale = side / min(mask.shape)
    height, width = (max(side, round(each * scale)) for each in mask.shape)
    return _window(pixels, mask, (height, width), ((height - side) // 2, (width - side) // 2), side)


def padded(pixels: Pixels, mask: Pixels) -> Pair:
    """The whole, with sides that are multiples of 8."""
    height, width = (-(-each // STRIDE) * STRIDE for each in mask.shape)
    return _filled(pixels, mask, height, width)


def _window(pixels: Pixels, mask: Pixels, scaled: tuple[int, int], corner: tuple[int, int], side: int) -> Pair:
    """The part of the scaled image that begins at `corner` and is `side` high and wide, or what there is of it."""
    (height, width), (top, left) = scaled, corner
    size = min(side, width - left), min(side, height - top)
    across, down = mask.shape[1] / width, mask.shape[0] / height
    box = (left * across, top * down, (left + size[0]) * across, (top + size[1]) * down)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR, box)
    labels = Image.fromarray(mask).resize(size, Image.Resampling.NEAREST, box)
    return np.asarray(image), np.asarray(labels)


def _filled(pixels: Pixels, mask: Pixels, height: int, width: int) -> Pair:
    if mask.shape == (height, width):
        return pixels, mask
    image = np.empty((height, width, 3), np.uint8)
    image[:] = _AROUND
    labels = np.full((height, width), IGNORE, np.uint8)
    image[: mask.shape[0], : mask.shape[1]] = pixels
    labels[: mask.shape[0], : mask.shape[1]] = mask
    return image, labels
