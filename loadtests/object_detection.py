"""Encoded pictures in, rows of class, score and box out (object detection contract, section 6)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.pictures import made_pictures, pixels_of, read_pictures
from loadtests.workload import Array, Body, Unusable

__all__ = ["ObjectDetection", "build"]


class ObjectDetection:
    """Requests of one picture each.

    Args:
        bodies: JPEG and PNG files.
        side: of the graph's square input, in pixels.
    """

    def __init__(self, bodies: list[Body], side: int) -> None:
        self.accept = "application/json"
        self.bodies = bodies
        self.tensors = [{"image": pixels_of(body, side, side)} for body in bodies]

    def check_body(self, answer: bytes) -> Array:
        found = json.loads(answer)
        if not isinstance(found, dict) or not isinstance(found.get("prediction"), list):
            raise ValueError(f'expected {{"prediction": [[...], ...]}}, got {answer[:80]!r}')  # noqa: TRY004
        return _checked(np.array(found["prediction"], np.float64).reshape(-1, 6))

    def check_tensors(self, outputs: Mapping[str, Array]) -> Array:
        if "detections" not in outputs:
            raise ValueError(f"expected the output 'detections', got {', '.join(outputs) or 'none'}")
        rows = outputs["detections"]
        if rows.ndim != 3 or rows.shape[0] != 1 or rows.shape[2] != 6:
            raise ValueError(f"expected (1, D, 6) for one picture, got shape {rows.shape}")
        return _checked(np.asarray(rows[0][rows[0, :, 0] >= 0], np.float64))


def _checked(rows_D6: Array) -> Array:
    """The rows in an order that nearly equal scores do not change.

    Raises:
        ValueError: a number that cannot be.
    """
    if not ((rows_D6[:, 1:] >= 0) & (rows_D6[:, 1:] <= 1)).all():
        raise ValueError(f"a score or a corner is outside 0 to 1: {rows_D6[:3]} ...")
    if not (rows_D6[:, 4:] >= rows_D6[:, 2:4]).all():
        raise ValueError(f"a box is inside out: {rows_D6[:3]} ...")
    return rows_D6[np.lexsort(np.round(rows_D6, 3).T)]


def build(metadata: Mapping[str, Any], images: Path | None) -> ObjectDetection:
    """Pictures of the model's own size, always the same ones, or the files of a directory.

    Raises:
        Unusable: the metadata are not those of a detector, or the directory holds no picture.
    """
    try:
        (image,) = (each["shape"] for each in metadata["inputs"] if each["name"] == "image")
        _, side, _, _ = image
        next(each for each in metadata["outputs"] if each["name"] == "detections")
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise Unusable(f"'{metadata.get('name')}' does not look like a detector: {metadata}") from error
    return ObjectDetection(made_pictures(side, side) if images is None else read_pictures(images), side)
