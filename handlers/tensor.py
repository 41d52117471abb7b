"""Somebody else's graph, served as it is: plain JSON `{"<input>": [...]}` to `{"<output>": [...]}`.

Its own inputs are also reachable through the tensor protocols, as those of every model are.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import orjson

from formats.envelope import Prediction
from formats.errors import InvalidBody
from formats.tensors import DATATYPES
from handlers.graph import Array, Arrays, Runtime
from handlers.handler import Answer, Handler
from model_store.manifest import TensorSpec
from model_store.store import Bundle

__all__ = ["TensorHandler"]


class TensorHandler(Handler):
    """Serves algorithm `tensor`."""

    def __init__(self, bundle: Bundle, runtime: Runtime) -> None:
        super().__init__(bundle, runtime)
        specs = [spec for graph in bundle.manifest.graphs.values() for spec in graph.inputs]
        self._rows_differ = any(-1 in spec.shape[1:] for spec in specs)

    def likeness(self, inputs: Arrays) -> Hashable:
        """The shapes of rows, where they may differ: only equal ones can be joined."""
        return tuple([array.shape[1:] for array in inputs.values()]) if self._rows_differ else None

    def decode(self, prediction: Prediction) -> Arrays:
        graph = self.graph_of(prediction)
        try:
            body = orjson.loads(prediction.body)
        except ValueError as error:
            raise InvalidBody(f"body is not JSON: {error}") from error
        specs = graph.inputs
        if type(body) is not dict or len(body) != len(specs) or any(spec.name not in body for spec in specs):
            found = ", ".join(body) if isinstance(body, dict) else type(body).__name__
            names = ", ".join(spec.name for spec in specs)
            raise InvalidBody(f"body must be a JSON object with exactly the fields {names}; found {found[:200]}")
        arrays = {spec.name: _array(spec, body[spec.name]) for spec in specs}
        if graph.batched:
            rows = set(map(len, arrays.values()))
            if len(rows) != 1 or 0 in rows:
                sizes = {name: len(array) for name, array in arrays.items()}
                raise InvalidBody(f"inputs must share one batch size of at least 1; got {sizes}")
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
    element = _ELEMENTS[spec.datatype]
    shape, values = _flatten(spec, value)
    # by hand, for numpy's own guess turns true into 1 and 1 into "1"
    if not element.types.issuperset(map(type, values)):
        foreign = set(map(type, values)) - element.types
        found = ", ".join(sorted(_JSON_NAMES.get(kind, kind.__name__) for kind in foreign))
        raise InvalidBody(f"field '{spec.name}': holds {found}; expected {spec.datatype} of shape {spec.shape}")
    dtype = element.dtype
    if not element.code:
        return np.array(values, dtype).reshape(shape)
    try:
        # twice as fast as numpy for a few numbers, equal for many, and refuses what does not fit
        packed = struct.pack(f"<{len(values)}{element.code}", *values)
    except (OverflowError, struct.error) as error:
        if dtype.kind == "f":
            raise InvalidBody(f"field '{spec.name}': a value is too large for {spec.datatype}") from error
        limits = np.iinfo(dtype)
        raise InvalidBody(f"field '{spec.name}': a value is outside {limits.min} to {limits.max}") from error
    return np.ndarray(shape, dtype, packed)


def _flatten(spec: TensorSpec, value: Any) -> tuple[list[int], list[Any]]:
    """Shape and elements of nested lists, held against the expected shape."""
    shape: list[int] = []
    level = [value]
    for expected in spec.shape:
        if len(level) == 1:  # a single row, nearly always: no need of sets
            (inner,) = level
            if type(inner) is not list:
                raise InvalidBody(f"field '{spec.name}': shape {shape} or ragged rows, expected {spec.shape}")
            shape.append(len(inner))
        else:
            if set(map(type, level)) != {list}:
                raise InvalidBody(f"field '{spec.name}': shape {shape} or ragged rows, expected {spec.shape}")
            lengths = set(map(len, level))
            shape.append(lengths.pop())
            if lengths:
                raise InvalidBody(f"field '{spec.name}': rows of different lengths; expected shape {spec.shape}")
            inner = list(chain.from_iterable(level))
        if expected not in (-1, shape[-1]):
            raise InvalidBody(f"field '{spec.name}': shape {shape} or ragged rows, expected {spec.shape}")
        level = inner
    if level and type(level[0]) is list:
        found = [*shape, len(level[0])]
        raise InvalidBody(f"field '{spec.name}': shape {found} or ragged rows, expected {spec.shape}")
    return shape, level


class _Element(NamedTuple):
    """What a tensor's elements are in numpy, in JSON, and to `struct`."""

    dtype: np.dtype[Any]
    types: frozenset[type]
    code: str


_CODES = {"f": {2: "e", 4: "f", 8: "d"}, "i": dict(zip((1, 2, 4, 8), "bhiq", strict=True)), "b": {1: "?"}}
_CODES["u"] = {size: code.upper() for size, code in _CODES["i"].items()}
_TYPES = {
    "f": frozenset({float, int}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "b": frozenset({bool}),
    "O": frozenset({str}),
}
_ELEMENTS = {
    name: _Element(dtype, _TYPES[dtype.kind], _CODES.get(dtype.kind, {}).get(dtype.itemsize, ""))
    for name, dtype in DATATYPES.items()
}
_JSON_NAMES: dict[type, str] = {
    list: "lists (rows of different lengths, or nested too deep)",
    dict: "objects",
    str: "strings",
    bool: "booleans",
    type(None): "nulls",
    float: "fractions",
    int: "integers",
}
