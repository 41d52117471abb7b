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
from handlers.graph import Array, Arrays
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
            raise InvalidBody(
                f"body must be a JSON object with exactly the fields {', '.join(names)}; found {found[:200]}"
            )
        arrays = {spec.name: _array(spec, body[spec.name]) for spec in inputs}
        if self.manifest.graphs[self.mode_of(prediction).graph].batched:
            rows = {name: len(array) for name, array in arrays.items()}
            if len(set(rows.values())) != 1 or 0 in rows.values():
                raise InvalidBody(f"inputs must share one batch size of at least 1; got {rows}")
        return arrays

    def encode(self, prediction: Prediction, outputs: Arrays) -> Answer:  # noqa: ARG002
        plain = {name: _plain(array) for name, array in outputs.items()}
        return Answer(orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY), "application/json")


def _plain(array: Array) -> Any:
    """What orjson can write: it takes neither scalars, nor text, nor strides."""
    if array.ndim == 0 or array.dtype.kind in "OSU":
        return array.tolist()
    return np.ascontiguousarray(array)


def _array(spec: TensorSpec, value: Any) -> Array:
    dtype = DATATYPES[spec.datatype]
    try:
        # as objects first: numpy's own guess turns true into 1 and 1 into "1", and one long text beside many short
        # ones into a table of that width, more than any worker's memory
        array = np.array(value, dtype=object)
    except ValueError as error:
        raise InvalidBody(f"field '{spec.name}': rows of different lengths; expected shape {spec.shape}") from error
    fits = array.ndim == len(spec.shape) and all(e in (-1, a) for e, a in zip(spec.shape, array.shape, strict=True))
    if not fits:
        raise InvalidBody(f"field '{spec.name}': shape {list(array.shape)} or ragged rows, expected {spec.shape}")
    values = array.ravel().tolist()
    foreign = set(map(type, values)) - _TYPES[dtype.kind]
    if foreign:
        found = ", ".join(sorted(_JSON_NAMES.get(kind, kind.__name__) for kind in foreign))
        raise InvalidBody(f"field '{spec.name}': holds {found}; expected {spec.datatype} of shape {spec.shape}")
    if dtype.kind in "iu" and values:
        limits = np.iinfo(dtype)
        if min(values) < limits.min or max(values) > limits.max:
            raise InvalidBody(f"field '{spec.name}': a value is outside {limits.min} to {limits.max}")
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(converted).all():
        raise InvalidBody(f"field '{spec.name}': a value is too large for {spec.datatype}")
    return converted


_TYPES: dict[str, set[type]] = {"f": {float, int}, "i": {int}, "u": {int}, "b": {bool}, "O": {str}}
"""Types of JSON values that may become a tensor of a kind."""
_JSON_NAMES: dict[type, str] = {
    list: "lists (rows of different lengths, or nested too deep)",
    dict: "objects",
    str: "strings",
    bool: "booleans",
    type(None): "nulls",
    float: "fractions",
    int: "integers",
}
