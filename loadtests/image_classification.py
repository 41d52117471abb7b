"""Encoded pictures in, class probabilities out (image classification contract, section 6)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.pictures import made_pictures, pixels_of, read_pictures
from loadtests.workload import Array, Body, Unusable

__all__ = ["ImageClassification", "build"]


class ImageClassification:
    """Requests of one picture each.

    Args:
        bodies: JPEG and PNG files.
        height, width: of the graph's input, in pixels.
        num_classes: length of every answer.
    """

    def __init__(self, bodies: list[Body], height: int, width: int, num_classes: int) -> None:
        self.accept = "application/json"
        self.bodies = bodies
        self.tensors = [{"image": pixels_of(body, height, width)} for body in bodies]
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
    bodies = made_pictures(height, width) if images is None else read_pictures(images)
    return ImageClassification(bodies, height, width, num_classes)
