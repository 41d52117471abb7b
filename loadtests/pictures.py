"""Pictures to send: made-up ones, always the same, or a directory's."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from loadtests.workload import Array, Body, Unusable

__all__ = ["made_pictures", "picture", "pixels_of", "read_pictures"]

_NUM_PICTURES = 24
_MAX_FILES = 200
_CONTENT_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}


def made_pictures(height: int, width: int) -> list[Body]:
    """JPEG and PNG files of one size."""
    random = np.random.default_rng(20)
    return [_encode(picture(random, height, width), number) for number in range(_NUM_PICTURES)]


def picture(random: np.random.Generator, height: int, width: int) -> Array:
    """A sky, some shapes and a little noise, (height, width, 3) uint8: it compresses as photographs do."""
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    top, bottom = random.uniform(0, 255, (2, 3))
    scene = top + (bottom - top) * rows[..., None]
    for _ in range(6):
        y, x, radius = random.uniform((0, 0, 0.05), (1, 1, 0.4))
        scene[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = random.uniform(0, 255, 3)
    return np.asarray(np.clip(scene + random.normal(0, 4, scene.shape), 0, 255), np.uint8)


def _encode(pixels: Array, number: int) -> Body:
    buffer = io.BytesIO()
    if number % 3 == 2:
        Image.fromarray(pixels).save(buffer, "PNG")
        return Body("image/png", buffer.getvalue())
    Image.fromarray(pixels).save(buffer, "JPEG", quality=75 + number)
    return Body("image/jpeg", buffer.getvalue())


def read_pictures(directory: Path) -> list[Body]:
    """The first 200 JPEG and PNG files of a directory tree.

    Raises:
        Unusable: there is none.
    """
    files = sorted(file for file in directory.rglob("*") if file.suffix.lower() in _CONTENT_TYPES)[:_MAX_FILES]
    if not files:
        raise Unusable(f"--images {directory}: no {', '.join(_CONTENT_TYPES)} files there")
    return [Body(_CONTENT_TYPES[file.suffix.lower()], file.read_bytes()) for file in files]


def pixels_of(body: Body, height: int, width: int) -> Array:
    """A file as the graph sees it, (1, height, width, 3) uint8.

    Raises:
        Unusable: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(body.data), formats=("JPEG", "PNG")) as image:
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    except OSError as error:
        raise Unusable(f"a picture cannot be decoded: {error}") from error
    return np.asarray(resized)[np.newaxis]
