"""The augmentation of SSD (section 2.2; constants of the contract, section 1): zoom out, crop by overlap, flip, colour.

Geometry is decided on the boxes first and then done to the pixels at once: the window of the source that is seen, which
may reach beyond it, is resized to the network's square. Colours change last, on the small image.
"""

# S side of the network's image, N objects

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Flips", "augment", "squeeze"]

Pixels = NDArray[np.uint8]
Objects = NDArray[np.float32]
Window = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax as shares of the source's width and height."""
Flips = str
"""`horizontal`, or `both` for images that have no upside."""

_WHOLE: Window = (0.0, 0.0, 1.0, 1.0)
_LEAST_OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9)
_TRIALS = 25
_LEAST_SCALE, _MOST_ASPECT = 0.3, 2.0
_MOST_ZOOM = 4.0
_FILL = 127
_MAX_HUE = 18.0  # of 180, as OpenCV counts
_MAX_SATURATION = _MAX_BRIGHTNESS = 32.0
_MAX_CONTRAST = 0.5
_FILTERS = (
    Image.Resampling.NEAREST,
    Image.Resampling.BILINEAR,
    Image.Resampling.BICUBIC,
    Image.Resampling.BOX,
    Image.Resampling.LANCZOS,
)


def augment(
    pixels: Pixels, objects_N5: Objects, side: int, flips: Flips, random: np.random.Generator
) -> tuple[Pixels, Objects]:
    """One training sample.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        objects_N5: class, xmin, ymin, xmax, ymax as shares of the image.
        side: S.
        flips: mirror at random left to right, or upside down too.
        random: everything is drawn from it.

    Returns:
        (S, S, 3) uint8, and those objects, (M, 5), whose centres are still seen.
    """
    window = _WHOLE
    if random.random() < 0.5:
        window = _zoomed_out(random)
    window = _cropped(window, objects_N5, random)
    objects_N5 = _seen(objects_N5, window)
    resampling = _FILTERS[random.integers(len(_FILTERS))]
    pixels = _view(pixels, window, side, resampling)
    if random.random() < 0.5:
        pixels, objects_N5 = pixels[:, ::-1], _mirrored(objects_N5, 1)
    if flips == "both" and random.random() < 0.5:
        pixels, objects_N5 = pixels[::-1], _mirrored(objects_N5, 2)
    return _recoloured(pixels, random), objects_N5


def squeeze(pixels: Pixels, side: int) -> Pixels:
    """(S, S, 3): the whole image, its aspect not kept, as it is served."""
    return _view(pixels, _WHOLE, side, Image.Resampling.BILINEAR)


def _zoomed_out(random: np.random.Generator) -> Window:
    scale = random.uniform(1.0, _MOST_ZOOM)
    left, top = random.uniform(0, scale - 1, 2)
    return -left, -top, scale - left, scale - top


def _cropped(window: Window, objects_N5: Objects, random: np.random.Generator) -> Window:
    """A random part of the window that overlaps one of its objects enough; the whole window in one case of six."""
    choice = random.integers(len(_LEAST_OVERLAPS) + 1)
    if choice == len(_LEAST_OVERLAPS) or not len(objects_N5):
        return window
    width, height = window[2] - window[0], window[3] - window[1]
    for scale, stretch, along_x, along_y in random.random((_TRIALS, 4)).tolist():
        size = _LEAST_SCALE + scale * (1 - _LEAST_SCALE)
        # the aspect stays such that neither side passes the window
        most = min(_MOST_ASPECT, 1 / size**2)
        root = float(np.sqrt(most ** (2 * stretch - 1)))
        part_x, part_y = min(size * root, 1.0), min(size / root, 1.0)
        left, top = window[0] + along_x * (1 - part_x) * width, window[1] + along_y * (1 - part_y) * height
        part = (left, top, left + part_x * width, top + part_y * height)
        if _largest_overlap(objects_N5, part) >= _LEAST_OVERLAPS[choice]:
            return part
    return window


def _largest_overlap(objects_N5: Objects, window: Window) -> float:
    """Intersection over union of the window with the object it fits best."""
    x = np.minimum(objects_N5[:, 3], window[2]) - np.maximum(objects_N5[:, 1], window[0])
    y = np.minimum(objects_N5[:, 4], window[3]) - np.maximum(objects_N5[:, 2], window[1])
    common = np.clip(x, 0, None) * np.clip(y, 0, None)
    areas = (objects_N5[:, 3] - objects_N5[:, 1]) * (objects_N5[:, 4] - objects_N5[:, 2])
    own = (window[2] - window[0]) * (window[3] - window[1])
    return float((common / (areas + own - common)).max())


def _seen(objects_N5: Objects, window: Window) -> Objects:
    """The objects whose centres lie in the window, as shares of it, clipped to it."""
    origin, end = np.array(window[:2], np.float32), np.array(window[2:], np.float32)
    corners = (objects_N5[:, 1:].reshape(-1, 2, 2) - origin) / (end - origin)
    centre = corners.mean(axis=1)
    kept = ((centre > 0) & (centre < 1)).all(axis=1)
    moved = np.clip(corners[kept], 0, 1).reshape(-1, 4)
    return np.concatenate([objects_N5[kept, :1], moved], axis=1)


def _view(pixels: Pixels, window: Window, side: int, resampling: Image.Resampling) -> Pixels:
    """(S, S, 3): the window, resized; grey where it reaches beyond the image."""
    height, width = pixels.shape[:2]
    inside = (max(window[0], 0.0), max(window[1], 0.0), min(window[2], 1.0), min(window[3], 1.0))
    scale_x, scale_y = side / (window[2] - window[0]), side / (window[3] - window[1])
    left, right = round((inside[0] - window[0]) * scale_x), round((inside[2] - window[0]) * scale_x)
    top, bottom = round((inside[1] - window[1]) * scale_y), round((inside[3] - window[1]) * scale_y)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    box = (inside[0] * width, inside[1] * height, inside[2] * width, inside[3] * height)
    part = np.asarray(Image.fromarray(pixels).resize((right - left, bottom - top), resampling, box))
    if part.shape[:2] == (side, side):
        return part
    canvas = np.full((side, side, 3), _FILL, np.uint8)
    canvas[top:bottom, left:right] = part[: side - top, : side - left]
    return canvas


def _mirrored(objects_N5: Objects, first: int) -> Objects:
    mirrored = objects_N5.copy()
    mirrored[:, first], mirrored[:, first + 2] = 1 - objects_N5[:, first + 2], 1 - objects_N5[:, first]
    return mirrored


def _recoloured(pixels: Pixels, random: np.random.Generator) -> Pixels:
    """Brightness, contrast, saturation and hue, each in half of the cases."""
    chosen, amounts = random.random(4) < 0.5, random.uniform(-1, 1, 4)
    if chosen[0] or chosen[1]:
        # one table does both: contrast about the middle of the scale, then brightness
        gain = 1 + _MAX_CONTRAST * amounts[1] if chosen[1] else 1.0
        shift = _MAX_BRIGHTNESS * amounts[0] if chosen[0] else 0.0
        table = np.clip((np.arange(256) - 128) * gain + 128 + shift, 0, 255).astype(np.uint8)
        pixels = table[pixels]
    if chosen[2] or chosen[3]:
        hsv = np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("HSV"))
        if chosen[3]:
            hsv[:, :, 0] += np.uint8(round(_MAX_HUE * amounts[3] * 256 / 180) % 256)  # a circle: overflow is right
        if chosen[2]:
            table = np.clip(np.arange(256) + _MAX_SATURATION * amounts[2], 0, 255).astype(np.uint8)
            hsv[:, :, 1] = table[hsv[:, :, 1]]
        pixels = np.array(Image.fromarray(hsv, "HSV").convert("RGB"))
    return np.ascontiguousarray(pixels)
