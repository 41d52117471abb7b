"""From a stored image to what the network sees: crop, flip, colour and shape changes of the original's augmenter.

Every function is pure: the random numbers come in, so an image's augmentation depends on seed and epoch, not on the
batch, the thread or the process that happens to make it.
"""

# H height, W width; pixels are (H, W, 3) uint8 RGB

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["NUM_DRAWS", "augment", "centre_crop", "pad", "random_crop", "shift_colour", "transform"]

Pixels = NDArray[np.uint8]
Draws = NDArray[np.float32]

NUM_DRAWS = 9
"""Uniform numbers in [0, 1) that `augment` takes per image."""

# 8-bit OpenCV scale: hue counts 2 degrees a step, 180 in all
_MAX_HUE_SHIFT, _MAX_SATURATION_SHIFT, _MAX_LIGHTNESS_SHIFT = 36, 50, 50
_MAX_ROTATION_DEGREES, _MAX_SHEAR, _MAX_ASPECT_CHANGE = 10, 0.1, 0.25
_BORDER = (255, 255, 255)


def augment(pixels: Pixels, kind: str | None, draws: Draws, height: int, width: int, padding: int = 0) -> Pixels:
    """One training image of the network's size.

    Args:
        pixels: at least `height` x `width`.
        kind: the hyperparameter `augmentation_type`.
        draws: NUM_DRAWS uniform numbers; every kind reads its own places, so kinds share their crops.
        height: of the result.
        width: of the result.
        padding: black pixels that are put around the image before a random crop.
    """
    if kind is None:
        return centre_crop(pixels, height, width)
    if kind == "crop_color_transform":
        pixels = transform(pixels, draws[6:9])
    if padding:
        pixels = pad(pixels, padding)
    pixels = random_crop(pixels, draws[0:2], height, width)
    if kind != "crop":
        pixels = shift_colour(pixels, draws[3:6])
    return pixels[:, ::-1] if draws[2] < 0.5 else pixels


def centre_crop(pixels: Pixels, height: int, width: int) -> Pixels:
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def pad(pixels: Pixels, padding: int) -> Pixels:
    """The image with `padding` black pixels on each side."""
    height, width, _ = pixels.shape
    padded = np.zeros((height + 2 * padding, width + 2 * padding, 3), np.uint8)
    padded[padding : padding + height, padding : padding + width] = pixels
    return padded


def random_crop(pixels: Pixels, draws: Draws, height: int, width: int) -> Pixels:
    top = int(draws[0] * (pixels.shape[0] - height + 1))
    left = int(draws[1] * (pixels.shape[1] - width + 1))
    return pixels[top : top + height, left : left + width]


def shift_colour(pixels: Pixels, draws: Draws) -> Pixels:
    """Add one random offset each to hue, lightness and saturation; sums are clipped, hue too, as the original does."""
    hue, lightness, saturation = _to_hls(pixels)
    shift = 2 * draws - 1
    hue = np.clip(hue + shift[0] * _MAX_HUE_SHIFT, 0, 180)
    lightness = np.clip(lightness + shift[1] * _MAX_LIGHTNESS_SHIFT, 0, 255)
    saturation = np.clip(saturation + shift[2] * _MAX_SATURATION_SHIFT, 0, 255)
    return _from_hls(hue, lightness, saturation)


def transform(pixels: Pixels, draws: Draws) -> Pixels:
    """Rotation, shear and aspect change around the centre; what comes from outside the image is white."""
    angle = math.radians((2 * float(draws[0]) - 1) * _MAX_ROTATION_DEGREES)
    shear = (2 * float(draws[1]) - 1) * _MAX_SHEAR
    ratio = 1 + (2 * float(draws[2]) - 1) * _MAX_ASPECT_CHANGE
    across = 2 / (1 + ratio)
    along = ratio * across
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array(
        [
            [across * cos - shear * sin * along, across * sin + shear * cos * along],
            [-sin * along, cos * along],
        ]
    )
    back = np.linalg.inv(matrix)  # Pillow asks where each pixel of the result comes from
    centre = np.array([pixels.shape[1] / 2, pixels.shape[0] / 2])
    offset = centre - back @ centre
    image = Image.fromarray(np.ascontiguousarray(pixels))
    coefficients = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    turned = image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=_BORDER
    )
    return np.asarray(turned)


def _to_hls(pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Hue 0 to 180, lightness and saturation 0 to 255."""
    rgb = pixels.astype(np.float32) / 255
    high, low = rgb.max(axis=2), rgb.min(axis=2)
    spread, total = high - low, high + low
    safe = np.where(spread > 0, spread, 1)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    sixth = np.where(
        high == red,
        (green - blue) / safe % 6,
        np.where(high == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    saturation = spread / np.maximum(np.where(total < 1, total, 2 - total), 1e-6)
    hue = np.where(spread > 0, sixth, 0) * 30
    return hue.astype(np.float32), (total / 2 * 255).astype(np.float32), (saturation * 255).astype(np.float32)


def _from_hls(hue: NDArray[np.float32], lightness: NDArray[np.float32], saturation: NDArray[np.float32]) -> Pixels:
    light = lightness[..., None] / 255
    reach = saturation[..., None] / 255 * np.minimum(light, 1 - light)
    place = (np.array([0, 8, 4], np.float32) + hue[..., None] / 15) % 12
    rgb = light - reach * np.clip(np.minimum(place - 3, 9 - place), -1, 1)
    pixels: Pixels = np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8)
    return pixels
