"""Boxes: the JSON annotation of an image, and the float labels that lists and image records pack them into."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import ArrayLike, NDArray

from formats.errors import InvalidBody
from formats.jsonlines import parse_json

__all__ = ["Annotation", "corners", "decode_annotation", "encode_annotation", "pack_labels", "unpack_labels"]

_TOO_FEW = (
    "Not enough annotation packed in the list file or the RecordIO file. Each object requires at least five numbers "
    "[label_id, xmin, ymin, xmax, ymax] for annotation."
)

_MAX_WIDTH = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    boxes: NDArray[np.float64]
    """(N, 5): class, left, top, width, height in pixels, origin at the top left; N may be 0."""
    height: int
    width: int
    depth: int = 3
    file: str = ""
    """Path of the image relative to its channel; empty in a manifest."""
    categories: Mapping[int, str] = field(default_factory=dict)
    """Informational: real files hold ids here that disagree with the boxes."""


def decode_annotation(data: bytes | Mapping[str, Any], what: str = "annotation") -> Annotation:
    """An annotation from its JSON text, or from the object in a manifest's row.

    Args:
        data: JSON text or object with `image_size`, `annotations`, and perhaps `file` and `categories`.
        what: its name, for error texts.

    Raises:
        InvalidBody: names the field, its value, and what was expected.
    """
    found = data if isinstance(data, Mapping) else parse_json(data, what)
    if not isinstance(found, Mapping):
        raise InvalidBody(f"{what}: expected a JSON object, got {str(found)[:40]!r}")
    sizes, items = found.get("image_size"), found.get("annotations")
    if not isinstance(sizes, list) or len(sizes) != 1 or not isinstance(sizes[0], Mapping):
        raise InvalidBody(f"{what}: 'image_size' is {str(sizes)[:60]!r}, expected a list of one object")
    if not isinstance(items, list):
        raise InvalidBody(f"{what}: 'annotations' is {str(items)[:60]!r}, expected a list")
    boxes = np.zeros((len(items), 5))
    for at, item in enumerate(items):
        boxes[at] = _box(item, f"{what}: annotations[{at}]")
    size = {name: _number(sizes[0], name, f"{what}: image_size[0]", least=1) for name in ("height", "width")}
    depth = int(_number(sizes[0], "depth", f"{what}: image_size[0]", least=1)) if "depth" in sizes[0] else 3
    return Annotation(
        boxes, int(size["height"]), int(size["width"]), depth, str(found.get("file", "")), _categories(found)
    )


def encode_annotation(annotation: Annotation) -> bytes:
    """The JSON text of an annotation; whole pixels are written as integers."""
    value: dict[str, Any] = {"file": annotation.file} if annotation.file else {}
    value["image_size"] = [{"width": annotation.width, "height": annotation.height, "depth": annotation.depth}]
    value["annotations"] = [
        dict(zip(("class_id", "left", "top", "width", "height"), map(_whole, box), strict=True))
        for box in annotation.boxes.tolist()
    ]
    if annotation.categories:
        value["categories"] = [{"class_id": number, "name": name} for number, name in annotation.categories.items()]
    return orjson.dumps(value)


def corners(annotation: Annotation, height: int | None = None, width: int | None = None) -> NDArray[np.float32]:
    """(N, 5) float32: class, xmin, ymin, xmax, ymax as fractions of the image, clipped to it.

    Boxes of less than one pixel after clipping are left out. `height` and `width` are those of the real image where
    they are known: the file is trusted more than its annotation.
    """
    height, width = height or annotation.height, width or annotation.width
    kind, left, top, box_width, box_height = annotation.boxes.T
    x = np.clip(np.stack([left, left + box_width]), 0, width)
    y = np.clip(np.stack([top, top + box_height]), 0, height)
    kept = (x[1] - x[0]) * (y[1] - y[0]) >= 1
    found = np.stack([kind, x[0] / width, y[0] / height, x[1] / width, y[1] / height], axis=1)
    return np.ascontiguousarray(found[kept], np.float32)


def pack_labels(boxes: ArrayLike, *, extra: tuple[float, ...] = ()) -> NDArray[np.float32]:
    """Labels of an image record: `[A, B, extra..., box...]`, with A = 2 + len(extra) and B = numbers per box.

    Args:
        boxes: (N, B), B >= 5: class, xmin, ymin, xmax, ymax and what else belongs to a box, corners 0 to 1.
        extra: further header values.
    """
    array = np.asarray(boxes, np.float32)
    if array.ndim != 2 or array.shape[1] < 5:
        raise ValueError(f"boxes have shape {array.shape}, expected (N, 5 or more)")
    return np.concatenate([np.array([2 + len(extra), array.shape[1], *extra], np.float32), array.ravel()])


def unpack_labels(labels: ArrayLike, *, num_classes: int | None = None) -> NDArray[np.float32]:
    """Boxes of an image record's labels: (N, B) float32, class, xmin, ymin, xmax, ymax, ... with corners 0 to 1.

    Padding with -1 at the end and boxes without area are dropped; N may be 0.

    Args:
        labels: (n,) as in the record, `[A, B, extra..., box...]`.
        num_classes: refuse classes beyond it when given.

    Raises:
        InvalidBody: not packed boxes, absolute pixels, or a class out of range.
    """
    flat = np.asarray(labels, np.float32).ravel()
    if len(flat) < 2:
        raise InvalidBody(f"{len(flat)} label: no boxes; was the file packed without --pack-label?")
    head, width = float(flat[0]), float(flat[1])
    if not (2 <= head <= len(flat) and head % 1 == 0 and 5 <= width <= _MAX_WIDTH and width % 1 == 0):
        raise InvalidBody(f"{_TOO_FEW} (header width is {head:g}, numbers per object {width:g})")
    body = flat[int(head) :]
    # rows are padded with -1 to a common label_width; a class is never negative
    if (padding := np.flatnonzero(body[:: int(width)] < 0)).size:
        body = body[: padding[0] * int(width)]
    if len(body) % int(width):
        raise InvalidBody(f"{_TOO_FEW} ({len(body)} numbers are not a multiple of {width:g})")
    boxes = body.reshape(-1, int(width))
    _check_boxes(boxes, num_classes)
    return boxes[(boxes[:, 3] > boxes[:, 1]) & (boxes[:, 4] > boxes[:, 2])]


def _check_boxes(boxes: NDArray[np.float32], num_classes: int | None) -> None:
    for at, box in enumerate(boxes.tolist()):
        if not all(map(math.isfinite, box)):
            raise InvalidBody(f"box {at} is {box}, expected finite numbers")
        if box[0] != int(box[0]) or (num_classes is not None and box[0] >= num_classes):
            raise InvalidBody(f"box {at} has class {box[0]:g}, expected a whole number below {num_classes or 'inf'}")
        # a little beyond the border comes from rounding; 2 and more are pixels
        if not all(-1 <= value <= 2 for value in box[1:5]):
            raise InvalidBody(f"{_TOO_FEW} (box {at} has corners {box[1:5]}, expected fractions of 0 to 1)")


def _box(item: Any, where: str) -> tuple[float, ...]:
    if not isinstance(item, Mapping):
        raise InvalidBody(f"{where} is {str(item)[:40]!r}, expected an object")
    kind = _number(item, "class_id", where, least=0)
    if kind != int(kind):
        raise InvalidBody(f"{where}: 'class_id' is {kind}, expected a whole number")
    return kind, *(_number(item, name, where) for name in ("left", "top", "width", "height"))


def _number(item: Mapping[str, Any], name: str, where: str, *, least: float = -math.inf) -> float:
    value = item.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9 or value < least:
        bound = f" of {least:g} or more" if least > -math.inf else ""
        raise InvalidBody(f"{where}: '{name}' is {str(value)[:40]!r}, expected a number{bound}")
    return value


def _categories(found: Mapping[str, Any]) -> dict[int, str]:
    items = found.get("categories")
    if not isinstance(items, list):
        return {}
    pairs = [(item.get("class_id"), item.get("name")) for item in items if isinstance(item, Mapping)]
    return {number: str(name) for number, name in pairs if isinstance(number, int)}


def _whole(value: float) -> float:
    return int(value) if value == int(value) else value
