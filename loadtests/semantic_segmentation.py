"""Encoded pictures in, masks out (semantic segmentation contract, section 6)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from loadtests.pictures import made_pictures, read_pictures
from loadtests.workload import Array, Body, Unusable

__all__ = ["SemanticSegmentation", "build"]

_HEIGHT, _WIDTH = 240, 320


class SemanticSegmentation:
    """Requests of one picture each; an answer's numbers are how many pixels each class has.

    Args:
        bodies: JPEG and PNG files of any sizes.
        num_classes: of the model.
    """

    def __init__(self, bodies: list[Body], num_classes: int) -> None:
        self.accept = "image/png"
        self.bodies = bodies
        self.tensors = [{"image": _pixels(body)} for body in bodies]
        self._num_classes = num_classes

    def check_body(self, answer: bytes) -> Array:
        try:
            with Image.open(io.BytesIO(answer), formats=("PNG",)) as image:
                mask = np.asarray(image)
        except OSError as error:
            raise ValueError(f"expected a PNG, got {answer[:40]!r}: {error}") from error
        return self._check(mask)

    def check_tensors(self, outputs: Mapping[str, Array]) -> Array:
        if "mask" not in outputs:
            raise ValueError(f"expected the output 'mask', got {', '.join(outputs) or 'none'}")
        masks = outputs["mask"]
        if masks.shape[:1] != (1,):
            raise ValueError(f"expected one mask for one picture, got shape {masks.shape}")
        return self._check(masks[0])

    def _check(self, mask_HW: Array) -> Array:
        if mask_HW.ndim != 2 or mask_HW.dtype != np.uint8:
            raise ValueError(f"expected one class per pixel, got {mask_HW.dtype} of shape {mask_HW.shape}")
        if mask_HW.size and int(mask_HW.max()) >= self._num_classes:
            raise ValueError(f"class {mask_HW.max()} of {self._num_classes}")
        # shares, and not pixels: on the border of two classes the last bits of a batch decide
        counts = np.bincount(mask_HW.ravel(), minlength=self._num_classes)
        return np.round(np.concatenate([mask_HW.shape, counts / mask_HW.size]), 3)


def build(metadata: Mapping[str, Any], images: Path | None) -> SemanticSegmentation:
    """Pictures of 240 x 320, always the same ones, or the files of a directory.

    Raises:
        Unusable: the metadata are not those of a segmenter, or the directory holds no picture.
    """
    try:
        next(each for each in metadata["inputs"] if each["name"] == "image")
        next(each for each in metadata["outputs"] if each["name"] == "mask")
        (logits,) = (each["shape"] for each in metadata["outputs"] if each["name"] == "logits")
        num_classes = int(logits[1])
    except (KeyError, TypeError, ValueError, StopIteration, IndexError) as error:
        raise Unusable(f"'{metadata.get('name')}' does not look like a segmenter: {metadata}") from error
    bodies = made_pictures(_HEIGHT, _WIDTH) if images is None else read_pictures(images)
    return SemanticSegmentation(bodies, num_classes)


def _pixels(body: Body) -> Array:
    """(1, H, W, 3) uint8, in the picture's own size."""
    try:
        with Image.open(io.BytesIO(body.data), formats=("JPEG", "PNG")) as image:
            return np.asarray(image.convert("RGB"))[np.newaxis]
    except OSError as error:
        raise Unusable(f"a picture cannot be decoded: {error}") from error
