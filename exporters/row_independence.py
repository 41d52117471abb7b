"""Does a graph answer each row as if it were alone? Only then may the requests of several clients share a run.

Nothing in a graph says so outright: `x -> x xᵀ` and `x -> x - mean(x)` take any number of rows, and one client's answer
would hold something of another's request. So names of axes are read where there are some, and then the graph is tried:
rows alone, other rows alone, and both together must give the same numbers.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from formats.tensors import DATATYPES
from model_store.manifest import TensorSpec

__all__ = ["Axes", "Run", "told_by_names", "told_by_trying"]

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[Mapping[str, Array]], Sequence[Array]]
"""All outputs of a graph, in its order, for inputs by name; whatever it raises, it refuses them."""
Axes = Mapping[str, Sequence[str]]
"""Of each input and output the names of its axes, empty for an axis that has none."""

_GENERATED = re.compile(r"unk__\d+|.*_dynamic_axes_\d+|.*_dim_\d+", re.DOTALL)
"""Names that exporters (tf2onnx, torch) make up afresh for every tensor: that two differ means nothing."""
_NUM_ROWS = ((1, 1), (1, 2), (3, 2), (2, 6))
"""Of the two requests that are tried alone and together."""
_LENGTHS = (8, 32, 224, 3, 1)
"""Tried, one after the other, for all later axes that may vary: the first that the graph takes."""
_LARGEST = (100, 2)
"""Integers (and texts of digits) are drawn below the first; where the graph refuses that, as a lookup in a short table
does, below the second."""
_TOLERANCES = {2: 1e-2, 4: 1e-4, 8: 1e-4}
"""Of the largest number of an output, by the bytes of a float: sums are added in another order in larger batches, which
strays by 1e-6 in float32. What 8-bit graphs that scale by the whole batch stray is far beyond."""
_ENOUGH_S = 20.0
"""No further number of rows is tried after so long."""


def told_by_names(axes: Axes) -> str:
    """Why rows cannot be independent, or nothing."""
    firsts = {name: names[0] for name, names in axes.items() if names and names[0]}
    later = {axis for names in axes.values() for axis in names[1:]}
    for name, axis in firsts.items():
        if axis in later:
            return f"axis '{axis}', the first of {name}, is also a later one"
    told = {axis: name for name, axis in firsts.items() if not _GENERATED.fullmatch(axis)}
    if len(told) > 1:
        (one, first), (other, second), *_ = told.items()
        return f"{first} and {second} have first axes of different names, '{one}' and '{other}'"
    return ""


def told_by_trying(inputs: Sequence[TensorSpec], run: Run) -> str:
    """Run the graph on rows alone and on the same rows together.

    Args:
        inputs: each with a first axis that may vary.
        run: the graph.

    Returns:
        Why requests must not share a run: the answers differ, or the graph took none of the inputs tried. Nothing
        where all answers agree.
    """
    random = np.random.default_rng(0)
    complaint = "no input"
    for length, largest in itertools.product(_LENGTHS, _LARGEST):
        try:
            run(_draw(inputs, 1, length, largest, random))
        except Exception as error:  # noqa: BLE001  engines raise what they like; another length may fit
            complaint = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        else:
            return _compare_all(inputs, run, length, largest)
        if all(spec.datatype.startswith("FP") and -1 not in spec.shape[1:] for spec in inputs):
            break  # nothing would be different
    return f"it could not be tried on random inputs ({complaint})"


def _compare_all(inputs: Sequence[TensorSpec], run: Run, length: int, largest: int) -> str:
    random = np.random.default_rng(1)
    began = time.monotonic()
    for first, second in _NUM_ROWS:
        one = _draw(inputs, first, length, largest, random)
        other = _draw(inputs, second, length, largest, random)
        both = {name: np.concatenate([one[name], other[name]]) for name in one}
        try:
            why = _compare(first, second, run(one), run(other), run(both))
        except Exception as error:  # noqa: BLE001
            what = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
            return f"it does not take {first} or {second} rows, or {first + second} ({what})"
        if why:
            return why
        if time.monotonic() - began > _ENOUGH_S:
            break
    return ""


def _compare(first: int, second: int, one: Sequence[Array], other: Sequence[Array], both: Sequence[Array]) -> str:
    for index, (a, b, ab) in enumerate(zip(one, other, both, strict=True)):
        what = f"output {index} of {first} and {second} rows"
        if (a.shape[:1], b.shape[:1], ab.shape[:1]) != ((first,), (second,), (first + second,)):
            return f"{what} has shapes {a.shape} and {b.shape} alone, {ab.shape} together: not a row for a row"
        if not a.shape[1:] == b.shape[1:] == ab.shape[1:]:
            return f"{what} has shapes {a.shape} and {b.shape} alone, {ab.shape} together"
        if not _alike(np.concatenate([a, b]), ab):
            return f"{what} differs between rows alone and rows together"
    return ""


def _alike(alone: Array, together: Array) -> bool:
    if alone.dtype.kind != "f":
        return bool(np.array_equal(alone, together))
    finite = np.abs(alone[np.isfinite(alone)])
    tolerance = _TOLERANCES[alone.dtype.itemsize]
    margin = tolerance * float(finite.max(initial=0))
    return bool(np.allclose(together.astype(np.float64), alone, rtol=tolerance, atol=margin, equal_nan=True))


def _draw(
    inputs: Sequence[TensorSpec], num_rows: int, length: int, largest: int, random: np.random.Generator
) -> dict[str, Array]:
    def shape_of(spec: TensorSpec) -> list[int]:
        return [num_rows, *(length if dimension == -1 else dimension for dimension in spec.shape[1:])]

    return {spec.name: _values(spec.datatype, shape_of(spec), largest, random) for spec in inputs}


def _values(datatype: str, shape: Sequence[int], largest: int, random: np.random.Generator) -> Array:
    dtype = DATATYPES[datatype]
    if dtype.kind == "f":
        return random.normal(size=shape).astype(dtype)
    numbers = random.integers(0, 2 if dtype.kind == "b" else largest, shape)
    return numbers.astype(str).astype(object) if dtype.kind == "O" else numbers.astype(dtype)
