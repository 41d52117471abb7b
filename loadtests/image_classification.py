"""Encoded pictures in, class probabilities out (image classification contract, section 6)."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from loadtests.workload import Array, Body, Unusable

__all__ = ["ImageClassification", "build", "picture"]

_NUM_PICTURES = 24
_MAX_FILES = 200
_CONTENT_TYPES = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}


class ImageClassification:
    """Requests of one picture each.

    Args:
        bodies: JPEG and PNG files.
        height, width: of the graph's input, in pixels.
        num_classes: length of every answer.
    """

    def __init__(self, bodies: list[Body], height: int, width: int, num_classes: int) -> None:
        self.bodies = bodies
        self.tensors = [{"image": _pixels(body, height, width)} for body in bodies]
        self._num_classes = num_classes

    def check_body(self, answer: bytes) -> Array:
        values = json.loads(answer)
        if not isinstance(values, list) or not all(isinstance(value, (int, float)) for value in values):
            raise ValueError(f"expected a JSON list of numbers, got {answer[:80]!r}")
        return self._check(np.array(values, np.float64))

    def check_tensors(self, outputs: Mapping[str, Array]) -> Array:
        if "probabilities" not in outputs:
            raise ValueError(f"expected the output 'probabilities', got {', '.join(outputs) or 'none'}")
        rows = outputs["probabilities"]
        if rows.shape[:1] != (1,):
            raise ValueError(f"expected one row for one picture, got shape {rows.shape}")
        return self._check(np.asarray(rows[0], np.float64))

    def _check(self, probabilities_K: Array) -> Array:
        if probabilities_K.shape != (self._num_classes,):
            raise ValueError(f"expected {self._num_classes} probabilities, got shape {probabilities_K.shape}")
        # no sum is asked for: of several labels each has a probability of its own
        if not ((probabilities_K >= 0) & (probabilities_K <= 1)).all():
            raise ValueError(f"a probability is outside 0 to 1: {probabilities_K[:5]} ...")
        return probabilities_K


def build(metadata: Mapping[str, Any], images: Path | None) -> ImageClassification:
    """Pictures of the model's own size, always the same ones, or the files of a directory.

    Raises:
        Unusable: the metadata are not those of an image classifier, or the directory holds no picture.
    """
    try:
        (image,) = (each["shape"] for each in metadata["inputs"] if each["name"] == "image")
        (answer,) = (each["shape"] for each in metadata["outputs"] if each["name"] == "probabilities")
        _, height, width, _ = image
        num_classes = answer[-1]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Unusable(f"'{metadata.get('name')}' does not look like an image classifier: {metadata}") from error
    if images is not None:
        return ImageClassification(_read(images), height, width, num_classes)
    random = np.random.default_rng(20)
    bodies = [_encode(picture(random, height, width), number) for number in range(_NUM_PICTURES)]
    return ImageClassification(bodies, height, width, num_classes)


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


def _read(directory: Path) -> list[Body]:
    files = sorted(file for file in directory.rglob("*") if file.suffix.lower() in _CONTENT_TYPES)[:_MAX_FILES]
    if not files:
        raise Unusable(f"--images {directory}: no {', '.join(_CONTENT_TYPES)} files there")
    return [Body(_CONTENT_TYPES[file.suffix.lower()], file.read_bytes()) for file in files]


def _pixels(body: Body, height: int, width: int) -> Array:
    """(1, height, width, 3) uint8."""
    try:
        with Image.open(io.BytesIO(body.data), formats=("JPEG", "PNG")) as image:
            resized = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    except OSError as error:
        raise Unusable(f"a picture cannot be decoded: {error}") from error
    return np.asarray(resized)[np.newaxis]
