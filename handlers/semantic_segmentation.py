"""An encoded image in, a class for each of its pixels out (semantic segmentation contract, section 6)."""

# H height, W width, K classes; h and w, places of the network's last map

from __future__ import annotations

import io
import re
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from formats import images, record
from formats.envelope import Prediction
from formats.errors import InvalidBody, NotAcceptable
from formats.masks import encode_mask
from handlers.graph import Arrays, Runtime
from handlers.handler import Answer, Handler
from model_store.store import Bundle

__all__ = ["MAX_ANSWER_BYTES", "MAX_PIXELS", "SemanticSegmentation", "probabilities"]

MAX_PIXELS = 8_000_000
"""Of one image: FCN on ResNet-50 at stride 8 takes 0.5 to 0.6 kB for each pixel while it runs."""
MAX_ANSWER_BYTES = 256 << 20
"""Of probabilities, which take 4 bytes per pixel and class."""

_STRIDE = 8
_ALONE_PIXELS = 500_000
"""Larger images run one by one: a batch of them saves no time, and takes its multiple of memory."""
_PROTOBUF = ("application/x-protobuf", "application/x-recordio-protobuf")
_WISH = re.compile(r";\s*(shares|palette)\s*=\s*\"?([^;,\"]*)\"?", re.IGNORECASE)


class _Wishes(NamedTuple):
    """Parameters of an Accept header."""

    shares: bool = False
    palette: bool = True


class SemanticSegmentation(Handler):
    """Serves algorithm `semantic_segmentation`.

    The graph takes `image`, (N, H, W, 3) uint8 RGB of any size, and gives `mask`, (N, H, W) uint8, and `logits`, (N, K,
    h, w) float32 at the network's own resolution.

    The answer is a PNG of class ids in the image's size, with a palette unless `palette=0` is wished; as protobuf, the
    probabilities of all classes, (1, K, H, W); as NPY, which the original does not know, the same probabilities, (K, H,
    W); as JSON, which it does not know either, runs of equal classes along the rows, or with `shares=1` each class's
    share of the pixels.
    """

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        super().__init__(bundle, runtime)
        num_classes = bundle.manifest.settings.get("num_classes")
        if not isinstance(num_classes, int):
            raise ValueError(f"{bundle.path}: settings.num_classes is {num_classes}; expected a number of classes")  # noqa: TRY004
        self._num_classes = num_classes

    def decode(self, prediction: Prediction) -> Arrays:
        _wishes(prediction.accept)  # a wrong wish fails before the work
        height, width = images.size_of(prediction.body)
        if height * width > MAX_PIXELS:
            raise InvalidBody(
                f"image is {height} x {width} (height x width), {height * width} pixels; at most {MAX_PIXELS} are "
                "segmented: send it smaller, or in parts"
            )
        kind = self.accept_of(prediction)
        if kind not in ("image/png", "application/json"):
            needed = 4 * self._num_classes * height * width
            if needed > MAX_ANSWER_BYTES:
                raise InvalidBody(
                    f"probabilities of {self._num_classes} classes for {height} x {width} pixels take {needed} bytes; "
                    f"at most {MAX_ANSWER_BYTES} are answered: send a smaller image, or accept image/png"
                )
        return {"image": images.decode(prediction.body)[None]}

    def likeness(self, inputs: Arrays) -> tuple[int, ...]:
        """Images of one size share a run: padding to a larger neighbour would change what is found."""
        _, height, width, _ = inputs["image"].shape
        # `inputs` outlives the batch's grouping, so its id is no other's
        return (height, width) if height * width <= _ALONE_PIXELS else (height, width, id(inputs))

    def encode(self, prediction: Prediction, outputs: Arrays) -> Answer:
        kind = self.accept_of(prediction)
        mask_HW = outputs["mask"][0]
        if kind == "image/png":
            return Answer(encode_mask(mask_HW, colours=_wishes(prediction.accept).palette), kind)
        if kind == "application/json":
            if _wishes(prediction.accept).shares:
                return Answer(_shares(mask_HW, self._num_classes), kind)
            return Answer(_runs(mask_HW), kind)
        found_KHW = probabilities(outputs["logits"][0], *mask_HW.shape)
        if kind in _PROTOBUF:
            return Answer(_record(found_KHW), kind)
        buffer = io.BytesIO()
        np.save(buffer, found_KHW)
        return Answer(buffer.getvalue(), kind)


def probabilities(logits_Khw: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """(K, height, width): softmax of the logits, brought to the padded image's size as the graph does, then cut.

    Bilinear interpolation with half-pixel centres is linear in rows and in columns: two matrix products.
    """
    padded_H, padded_W = (-(-side // _STRIDE) * _STRIDE for side in (height, width))
    rows_Hh = _interpolation(logits_Khw.shape[1], padded_H)[:height]
    columns_Ww = _interpolation(logits_Khw.shape[2], padded_W)[:width]
    full_KHW: NDArray[np.float32] = np.matmul(np.matmul(rows_Hh, logits_Khw), columns_Ww.T, dtype=np.float32)
    full_KHW -= full_KHW.max(axis=0)
    np.exp(full_KHW, out=full_KHW)
    full_KHW /= full_KHW.sum(axis=0)
    return full_KHW


@lru_cache(maxsize=64)
def _interpolation(places: int, size: int) -> NDArray[np.float32]:
    """(size, places): what each place counts in each pixel."""
    centre = np.clip((np.arange(size) + 0.5) * places / size - 0.5, 0, places - 1)
    low = np.floor(centre).astype(int)
    high = np.minimum(low + 1, places - 1)
    share = (centre - low).astype(np.float32)
    weights = np.zeros((size, places), np.float32)
    np.add.at(weights, (np.arange(size), low), 1 - share)
    np.add.at(weights, (np.arange(size), high), share)
    weights.flags.writeable = False  # it is shared by all that ask
    return weights


def _record(found_KHW: NDArray[np.float32]) -> bytes:
    """One framed record: `shape` and `target`, channel first, as clients reshape it (contract, section 6)."""
    shape = np.array([1, *found_KHW.shape], np.int32)
    features = {"shape": record.Tensor(shape), "target": record.Tensor(found_KHW.ravel())}
    return record.encode_body([record.Record(features=features)])


def _runs(mask_HW: NDArray[np.uint8]) -> bytes:
    flat = mask_HW.ravel()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1])
    lengths = np.diff(np.concatenate([starts, [flat.size]]))
    runs = np.stack([flat[starts].astype(np.int64), lengths], axis=1)
    return orjson.dumps({"shape": list(mask_HW.shape), "runs": runs}, option=orjson.OPT_SERIALIZE_NUMPY)


def _shares(mask_HW: NDArray[np.uint8], num_classes: int) -> bytes:
    counts = np.bincount(mask_HW.ravel(), minlength=num_classes)
    return orjson.dumps({"shape": list(mask_HW.shape), "shares": (counts / mask_HW.size).tolist()})


@lru_cache(maxsize=256)  # clients send the same few headers for ever
def _wishes(accept: str) -> _Wishes:
    found = {}
    for name, text in _WISH.findall(accept):
        value = text.strip()
        if value not in ("0", "1"):
            raise NotAcceptable(f"Accept: {name.lower()}={value[:40]}; expected 0 or 1")
        found[name.lower()] = value == "1"
    return _Wishes(**found)
