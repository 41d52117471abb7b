"""Pairs in, scores out, or single items in, embeddings out (Object2Vec contract, section 6)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.workload import Array, Body, Unusable

__all__ = ["Object2Vec", "build"]

_LENGTHS = (1, 7, 20, 50)


class Object2Vec:
    """Requests of one instance each.

    Args:
        sides: which of `in0` and `in1` the endpoint's graph takes.
        name: of its output, `scores` or `embeddings`.
        width: numbers in it.
    """

    def __init__(self, sides: list[str], name: str, width: int) -> None:
        self.accept = "application/json"
        # ids 0 and 1 are in every vocabulary
        rows = [[place % 2 for place in range(length)] for length in _LENGTHS]
        self.bodies = [
            Body("application/json", json.dumps({"instances": [dict.fromkeys(sides, row)]}).encode()) for row in rows
        ]
        self.tensors = [{side: np.array([row], np.int64) for side in sides} for row in rows]
        self._name, self._width = name, width

    def check_body(self, answer: bytes) -> Array:
        try:
            (found,) = json.loads(answer)["predictions"]
            numbers = found[self._name]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"expected one prediction of '{self._name}', got {answer[:80]!r}") from error
        if len(numbers) != self._width:
            raise ValueError(f"{len(numbers)} numbers, expected {self._width}")
        return self._shape()

    def check_tensors(self, outputs: Mapping[str, Array]) -> Array:
        if self._name not in outputs or outputs[self._name].shape != (1, self._width):
            raise ValueError(f"expected '{self._name}' of shape (1, {self._width}), got {', '.join(outputs) or 'none'}")
        if not np.isfinite(outputs[self._name]).all():
            raise ValueError(f"'{self._name}' is not finite")
        return self._shape()

    def _shape(self) -> Array:
        # JSON cuts at the length of training and tensors do not: only the form can be compared
        return np.array([float(self._width)])


def build(metadata: Mapping[str, Any], images: Path | None) -> Object2Vec:  # noqa: ARG001
    """Lists of several lengths; the workload of every algorithm may be given a directory of images.

    Raises:
        Unusable: the metadata are not those of Object2Vec.
    """
    try:
        sides = [each["name"] for each in metadata["inputs"]]
        ((name, width),) = ((each["name"], int(each["shape"][1])) for each in metadata["outputs"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Unusable(f"'{metadata.get('name')}' does not look like Object2Vec: {metadata}") from error
    if not sides or not set(sides) <= {"in0", "in1"}:
        raise Unusable(f"'{metadata.get('name')}' does not look like Object2Vec: its inputs are {', '.join(sides)}")
    return Object2Vec(sides, name, width)
