"""Texts in, labels or vectors out (BlazingText contract, section 6)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.workload import Array, Body, Unusable

__all__ = ["BlazingText", "build"]

_SENTENCES = (
    "the team won the match in extra time .",
    "stocks fell as oil prices rose and the bank raised its forecast for the next quarter .",
    "what is the full form of .com ?",
    "a quiet film that is funny , sad and never dull",
)


class BlazingText:
    """Requests of one text each; an answer's numbers are how many labels and numbers it has.

    Args:
        supervised: whether labels are expected.
        width: labels or numbers of a vector.
    """

    def __init__(self, *, supervised: bool, width: int) -> None:
        self.accept = "application/json"
        texts = _SENTENCES if supervised else tuple(_SENTENCES[0].split())
        self.bodies = [Body("application/json", json.dumps({"instances": [text]}).encode()) for text in texts]
        # rows of frequent words, which every model has
        self.tensors = [{"units": np.arange(1 + number, dtype=np.int64)[None]} for number in range(len(texts))]
        self._supervised, self._width = supervised, width

    def check_body(self, answer: bytes) -> Array:
        try:
            (found,) = json.loads(answer)
            numbers = found["prob"] if self._supervised else found["vector"]
            count = len(found["label"]) if self._supervised else len(numbers)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"expected one answer in a list, got {answer[:80]!r}") from error
        if count != (1 if self._supervised else self._width) or len(numbers) != count:
            raise ValueError(f"{count} labels and {len(numbers)} numbers, of {self._width}")
        return self._shape()

    def check_tensors(self, outputs: Mapping[str, Array]) -> Array:
        name = "probabilities" if self._supervised else "vector"
        if name not in outputs or outputs[name].shape != (1, self._width):
            raise ValueError(f"expected '{name}' of shape (1, {self._width}), got {', '.join(outputs) or 'none'}")
        if not np.isfinite(outputs[name]).all():
            raise ValueError(f"'{name}' is not finite")
        return self._shape()

    def _shape(self) -> Array:
        # texts and rows of one model are not the same input: only the form can be compared
        return np.array([float(self._width)])


def build(metadata: Mapping[str, Any], images: Path | None) -> BlazingText:  # noqa: ARG001
    """A few sentences, or their words; the workload of every algorithm may be given a directory of images.

    Raises:
        Unusable: the metadata are not those of BlazingText.
    """
    try:
        next(each for each in metadata["inputs"] if each["name"] == "units")
        shapes = {each["name"]: each["shape"] for each in metadata["outputs"]}
        supervised = "probabilities" in shapes
        width = int(shapes["probabilities" if supervised else "vector"][1])
    except (KeyError, TypeError, ValueError, StopIteration, IndexError) as error:
        raise Unusable(f"'{metadata.get('name')}' does not look like BlazingText: {metadata}") from error
    return BlazingText(supervised=supervised, width=width)
