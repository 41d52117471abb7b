"""Somebody else's graph, served as it is: plain JSON `{"<input>": [...]}` to `{"<output>": [...]}`.

Its own inputs are also reachable through the tensor protocols, as those of every model are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from formats.envelope import Prediction
from formats.errors import InvalidBody
from formats.tensors import DATATYPES
from handlers.graph import Arrays
from handlers.handler import Answer, Handler
from model_store.manifest import TensorSpec

__all__ = ["TensorHandler"]


class TensorHandler(Handler):
    """Serves algorithm `tensor`."""

    def decode(self, prediction: Prediction) -> Arrays:
        inputs = self.manifest.graphs[self.mode_of(prediction).graph].inputs
        try:
            body = orjson.loads(prediction.body)
        except ValueError as error:
            raise InvalidBody(f"body is not JSON: {error}") from error
        names = [spec.name for spec in inputs]
        if not isinstance(body, dict) or sorted(body) != sorted(names):
            found = ", ".join(body) if isinstance(body, dict) else type(body).__name__
            raise InvalidBody(f"body must be a JSON object with exactly the fields {', '.join(names)}; found {found}")
        arrays = {spec.name: _array(spec, body[spec.name]) for spec in inputs}
        if self.manifest.graphs[self.mode_of(prediction).graph].batched:
            rows = {name: len(array) for name, array in arrays.items()}
            if len(set(rows.values())) != 1 or 0 in rows.values():
                raise InvalidBody(f"inputs must share one batch size of at least 1; got {rows}")
        return arrays

    def encode(self, prediction: Prediction, outputs: Arrays) -> Answer:  # noqa: ARG002
        plain = {name: array.tolist() if array.dtype.kind in "OSU" else array for name, array in outputs.items()}
        contiguous = {n: np.ascontiguousarray(a) if isinstance(a, np.ndarray) else a for n, a in plain.items()}
        return Answer(orjson.dumps(contiguous, option=orjson.OPT_SERIALIZE_NUMPY), "application/json")


def _array(spec: TensorSpec, value: Any) -> np.ndarray[Any, np.dtype[Any]]:
    dtype = DATATYPES[spec.datatype]
    try:
        array = np.array(value)
    except ValueError as error:  # rows of different lengths
        raise InvalidBody(f"field '{spec.name}': rows of different lengths; expected shape {spec.shape}") from error
    fits = array.ndim == len(spec.shape) and all(e in (-1, a) for e, a in zip(spec.shape, array.shape, strict=True))
    if not fits:
        raise InvalidBody(f"field '{spec.name}': shape {list(array.shape)}, expected {spec.shape}")
    if array.dtype.kind not in _KINDS[dtype.kind]:
        raise InvalidBody(f"field '{spec.name}': values of type {array.dtype}, expected {spec.datatype}")
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise InvalidBody(f"field '{spec.name}': a value is outside {limits.min} to {limits.max}")
    return array.astype(dtype)


_KINDS = {"f": "fiu", "i": "iu", "u": "iu", "b": "b", "O": "U"}
"""Kinds of JSON values, as numpy sees them, that may become a tensor of a kind."""
