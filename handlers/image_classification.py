"""One encoded image in, class probabilities out (image classification contract, sections 6 and 9)."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np
import orjson

from formats import content_types, images
from formats.envelope import Prediction
from formats.errors import BackendFailed
from handlers.graph import Arrays, Runtime
from handlers.handler import Answer, Handler
from model_store.store import Bundle

__all__ = ["ImageClassification"]

_LINES = "application/jsonlines"


class ImageClassification(Handler):
    """Serves algorithm `image_classification`.

    The graph takes `image`, (N, H, W, 3) uint8 RGB (a model of one channel turns it grey itself), and gives
    `probabilities`, (N, num_classes) float32. The image is squeezed to H x W whatever its aspect, without a crop, as
    the original does.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime, environment: Mapping[str, str] = os.environ) -> None:
        super().__init__(bundle, runtime)
        shape = bundle.manifest.settings.get("image_shape")
        if not (isinstance(shape, list) and len(shape) == 3):
            raise ValueError(f"{bundle.path}: settings.image_shape is {shape}; expected [channels, height, width]")
        _, self._height, self._width = (int(size) for size in shape)
        # batch transform asks for another default; the hosting contract says so by this variable
        self._lines_by_default = environment.get("SAGEMAKER_BATCH", "").lower() == "true"

    def decode(self, prediction: Prediction) -> Arrays:
        (pixels_HWC,) = content_types.decode(prediction.content_type, prediction.body)
        return {"image": images.resize(pixels_HWC, self._height, self._width)[None]}

    def encode(self, prediction: Prediction, outputs: Arrays) -> Answer:
        (probabilities_K,) = outputs["probabilities"]
        if not np.isfinite(probabilities_K).all():
            raise BackendFailed(f"model '{self.manifest.name}' answered NaN or infinity, which JSON cannot carry")
        if self._in_lines(prediction):
            line = {"prediction": probabilities_K}
            return Answer(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE), _LINES)
        return Answer(orjson.dumps(probabilities_K, option=orjson.OPT_SERIALIZE_NUMPY), "application/json")

    def _in_lines(self, prediction: Prediction) -> bool:
        if self._lines_by_default and not prediction.accept.strip():
            return True
        return self.accept_of(prediction) == _LINES
