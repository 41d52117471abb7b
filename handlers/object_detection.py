"""An encoded image in, boxes out (object detection contract, section 6)."""

# N requests of a batch, D rows of the graph's answer

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
import orjson
from numpy.typing import NDArray

from formats import images, jsonlines
from formats.envelope import Prediction
from formats.errors import BackendFailed, NotAcceptable
from handlers.graph import Arrays, Runtime
from handlers.handler import Answer, Handler
from model_store.store import Bundle

__all__ = ["ObjectDetection"]

_LINES = "application/jsonlines"
_PARAMETER = re.compile(r";\s*([a-z]+)\s*=\s*\"?([^;,\"]*)\"?", re.IGNORECASE)


class ObjectDetection(Handler):
    """Serves algorithm `object_detection`.

    The graph takes `image`, (N, S, S, 3) uint8 RGB, and gives `detections`, (N, D, 6) float32: class, score and corners
    as shares of the image, the highest score first, class -1 where there is nothing. The image is squeezed to the
    square whatever its aspect, as the original does.

    The answer is `{"prediction": [[class, score, xmin, ymin, xmax, ymax], ...]}`. With `Accept:
    application/json;annotation=1` it is in pixels, in the form of an annotation file; `threshold=0.3` in Accept, which
    the original does not know, leaves lower scores out.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        super().__init__(bundle, runtime)
        side = bundle.manifest.settings.get("image_shape")
        if not isinstance(side, int):
            raise ValueError(f"{bundle.path}: settings.image_shape is {side}; expected the square's side in pixels")  # noqa: TRY004
        self._side = side

    def decode(self, prediction: Prediction) -> Arrays:
        _wishes(prediction.accept)  # a wrong one fails before the work
        return {"image": images.resize(images.decode(prediction.body), self._side, self._side)[None]}

    def encode(self, prediction: Prediction, outputs: Arrays) -> Answer:
        rows_D6 = outputs["detections"][0]
        annotation, threshold = _wishes(prediction.accept)
        rows_D6 = rows_D6[(rows_D6[:, 0] >= 0) & (rows_D6[:, 1] >= threshold)]
        if not np.isfinite(rows_D6).all():
            raise BackendFailed(f"model '{self.manifest.name}' answered NaN or infinity, which JSON cannot carry")
        if annotation:
            return Answer(orjson.dumps(_in_pixels(rows_D6, *images.size_of(prediction.body))), "application/json")
        if self.accept_of(prediction) == _LINES:
            return Answer(jsonlines.encode([{"prediction": rows_D6}]), _LINES)
        body = orjson.dumps({"prediction": np.ascontiguousarray(rows_D6)}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Answer(body, "application/json")


@lru_cache(maxsize=256)  # clients send the same few headers for ever
def _wishes(accept: str) -> tuple[bool, float]:
    """Whether pixels are wanted, and the lowest score.

    Raises:
        NotAcceptable: a parameter's value that makes no sense.
    """
    found = {name.lower(): value.strip() for name, value in _PARAMETER.findall(accept)}
    annotation, threshold = found.get("annotation", "0"), found.get("threshold", "0")
    if annotation not in ("0", "1"):
        raise NotAcceptable(f"Accept: annotation={annotation[:40]}; expected 0 or 1")
    try:
        least = float(threshold)
    except ValueError:
        least = -1.0
    if not 0 <= least <= 1:
        raise NotAcceptable(f"Accept: threshold={threshold[:40]}; expected a number from 0 to 1")
    return annotation == "1", least


def _in_pixels(rows_D6: NDArray[np.float32], height: int, width: int) -> dict[str, object]:
    """The contract's section 6.2: whole pixels of the image as it was sent."""
    corners = np.rint(rows_D6[:, 2:].astype(np.float64) * (width, height, width, height)).astype(int).tolist()
    return {
        "image_size": [{"width": width, "height": height, "depth": 3}],
        "annotations": [
            {
                "class_id": int(number),
                "score": score,
                "left": left,
                "top": top,
                "width": right - left,
                "height": bottom - top,
            }
            for (number, score), (left, top, right, bottom) in zip(rows_D6[:, :2].tolist(), corners, strict=True)
        ],
    }
