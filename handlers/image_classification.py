"""Encoded images in, class probabilities out (image classification contract, sections 6 and 9)."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import orjson

from formats import image_record, images, jsonlines
from formats.content_types import media_type_of
from formats.envelope import Prediction
from formats.errors import BackendFailed, InvalidBody
from formats.recordio import decode_records
from handlers.graph import Array, Arrays, RunnableGraph, Runtime
from handlers.handler import Answer, Handler
from model_store.store import Bundle

__all__ = ["ImageClassification"]

_LINES = "application/jsonlines"
_CROPPED = "centre_crop"
_LARGEST_BODY_BYTES = 256 << 20  # of resized pixels in one request
_LARGEST_BODY_PIXELS = 4 * images.MAX_PIXELS  # decoded in one request: many small files can hold many pixels
_ROWS_PER_RUN = 32  # activations of a large network take megabytes per image


class ImageClassification(Handler):
    """Serves algorithm `image_classification`.

    The graph takes `image`, (N, H, W, 3) uint8 RGB (a model of one channel turns it grey itself), and gives
    `probabilities`, (N, num_classes) float32. The image is squeezed to H x W whatever its aspect, without a crop, as
    the original does; in mode `centre_crop` it is resized and cut as validation images are.

    A body is one image, or many: image records, or JSON lines of `{"image": base64}`.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__(bundle, runtime)
        shape = bundle.manifest.settings.get("image_shape")
        if not (isinstance(shape, list) and len(shape) == 3):
            raise ValueError(f"{bundle.path}: settings.image_shape is {shape}; expected [channels, height, width]")
        _, self._height, self._width = (int(size) for size in shape)
        side = bundle.manifest.settings.get("resize")
        self._shortest_side = side if isinstance(side, int) else max(self._height, self._width)
        self._plans = {name: replace(plan, runnable=_InParts(plan.runnable)) for name, plan in self._plans.items()}
        self._most_images = max(1, _LARGEST_BODY_BYTES // (self._height * self._width * 3))
        # batch transform asks for another default; the hosting contract says so by this variable
        self._lines_by_default = environment.get("SAGEMAKER_BATCH", "").lower() == "true"

    def decode(self, prediction: Prediction) -> Arrays:
        prepare = self._crop if prediction.mode == _CROPPED else self._squeeze
        split = _SPLITTERS.get(media_type_of(prediction.content_type)[0])
        if split is None:
            return {"image": prepare(images.decode(prediction.body))[None]}
        parts = split(prediction.body)
        if len(parts) > self._most_images:
            raise InvalidBody(f"{len(parts)} images in one request; at most {self._most_images} are accepted")
        rows = np.empty((len(parts), self._height, self._width, 3), np.uint8)
        num_pixels = 0
        for number, (what, part) in enumerate(parts):
            try:
                num_pixels += int(np.prod(images.size_of(part)))
                if num_pixels > _LARGEST_BODY_PIXELS:
                    raise InvalidBody(f"more than {_LARGEST_BODY_PIXELS} pixels in one request")  # noqa: TRY301
                rows[number] = prepare(images.decode(part))
            except InvalidBody as error:
                raise InvalidBody(f"{what} {number}: {error}") from error
        return {"image": rows}

    def encode(self, prediction: Prediction, outputs: Arrays) -> Answer:
        probabilities_NK = outputs["probabilities"]
        if not np.isfinite(probabilities_NK).all():
            raise BackendFailed(f"model '{self.manifest.name}' answered NaN or infinity, which JSON cannot carry")
        many = media_type_of(prediction.content_type)[0] in _SPLITTERS
        if self._in_lines(prediction, many=many):
            return Answer(jsonlines.encode({"prediction": row} for row in probabilities_NK), _LINES)
        answer = probabilities_NK if many else probabilities_NK[0]
        return Answer(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), "application/json")

    def _in_lines(self, prediction: Prediction, *, many: bool) -> bool:
        if not prediction.accept.strip() and (many or self._lines_by_default):
            return True
        return self.accept_of(prediction) == _LINES

    def _squeeze(self, pixels_HWC: images.Pixels) -> images.Pixels:
        return images.resize(pixels_HWC, self._height, self._width)

    def _crop(self, pixels_HWC: images.Pixels) -> images.Pixels:
        """The shortest side to `resize`, then the centre: what validation measures."""
        scale = self._shortest_side / min(pixels_HWC.shape[:2])
        height, width = (max(self._shortest_side, round(side * scale)) for side in pixels_HWC.shape[:2])
        if max(height, width) > images.MAX_PIXELS // self._shortest_side:
            raise InvalidBody(f"image of {pixels_HWC.shape[0]} x {pixels_HWC.shape[1]} is too long to be resized")
        resized = images.resize(pixels_HWC, height, width)
        top, left = (height - self._height) // 2, (width - self._width) // 2
        return resized[top : top + self._height, left : left + self._width]


class _InParts:
    """A graph that runs on a few rows at a time: memory does not grow with the rows of a request or a batch."""

    def __init__(self, graph: RunnableGraph) -> None:
        self._graph = graph

    def run(self, inputs: Arrays) -> dict[str, Array]:
        rows = inputs["image"]
        if len(rows) <= _ROWS_PER_RUN:
            return self._graph.run(inputs)
        starts = range(0, len(rows), _ROWS_PER_RUN)
        answers = [self._graph.run({"image": rows[start : start + _ROWS_PER_RUN]}) for start in starts]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def _of_records(body: bytes) -> list[tuple[str, bytes]]:
    """Image records with whatever labels they have, or bare images; a single record may lack its padding."""
    return [("record", part) for part in _images_in(decode_records(body + bytes(-len(body) % 4)))]


def _images_in(payloads: list[bytes]) -> Iterator[bytes]:
    for number, payload in enumerate(payloads):
        if image_record.looks_like_image(payload):
            yield payload
            continue
        try:
            yield image_record.decode(payload).image
        except InvalidBody as error:
            raise InvalidBody(f"record {number}: {error}") from error


def _of_lines(body: bytes) -> list[tuple[str, bytes]]:
    return [("line", _base64(number, line)) for number, line in enumerate(jsonlines.decode(body))]


def _base64(number: int, line: dict[str, object]) -> bytes:
    text = line.get("image")
    if not isinstance(text, str):
        present = ", ".join(f"'{key[:40]}'" for key in list(line)[:8]) or "nothing"
        raise InvalidBody(f"line {number}: 'image' must be a base64 text of a JPEG or PNG file; found {present}")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidBody(f"line {number}: 'image' is not base64: {error}") from error


_SPLITTERS: dict[str, Callable[[bytes], list[tuple[str, bytes]]]] = {
    "application/x-recordio": _of_records,
    _LINES: _of_lines,
}
