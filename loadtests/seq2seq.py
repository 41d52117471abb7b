"""Sentences in, sentences out (Seq2seq contract, section 6)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.workload import Array, Body, Unusable

__all__ = ["Seq2seq", "build"]

_LENGTHS = (3, 12, 25)
_BEAM = 5


class Seq2seq:
    """Requests of one sentence each, short and long; words are made up, so most are unknown to the model."""

    def __init__(self) -> None:
        self.accept = "application/json"
        self.bodies = [_body(length) for length in _LENGTHS]
        self.tensors = [_tensors(length) for length in _LENGTHS]

    def check_body(self, answer: bytes) -> Array:
        try:
            (found,) = json.loads(answer)["predictions"]
            target = found["target"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"expected one prediction of a target, got {answer[:80]!r}") from error
        if not isinstance(target, str):
            raise ValueError(f"expected a text, got {target!r:.80}")  # noqa: TRY004  a workload's checks raise ValueError
        return np.array([1.0])

    def check_tensors(self, outputs: Mapping[str, Array]) -> Array:
        target, score = outputs.get("target"), outputs.get("score")
        if target is None or target.ndim != 2 or len(target) != 1 or target.dtype != np.int64:
            raise ValueError("expected int64 'target' of shape (1, T)")
        if score is None or score.shape != (1,) or not np.isfinite(score).all():
            raise ValueError("expected one finite 'score'")
        # words and token ids are not the same input: only the form can be compared
        return np.array([1.0])


def build(metadata: Mapping[str, Any], images: Path | None) -> Seq2seq:  # noqa: ARG001
    """Sentences of several lengths; the workload of every algorithm may be given a directory of images.

    Raises:
        Unusable: the metadata are not those of Seq2seq.
    """
    try:
        inputs = {each["name"] for each in metadata["inputs"]}
        outputs = {each["name"] for each in metadata["outputs"]}
    except (KeyError, TypeError) as error:
        raise Unusable(f"'{metadata.get('name')}' does not look like Seq2seq: {metadata}") from error
    if not {"source", "max_length", "beam_size"} <= inputs or not {"target", "score"} <= outputs:
        raise Unusable(f"'{metadata.get('name')}' does not look like Seq2seq: {metadata}")
    return Seq2seq()


def _body(length: int) -> Body:
    text = " ".join(f"word{number % 7}" for number in range(length))
    return Body("application/json", json.dumps({"instances": [{"data": text}]}).encode())


def _tensors(length: int) -> dict[str, Array]:
    return {
        "source": np.ones((1, length), np.int64),  # <unk>
        "max_length": np.array([length + 5], np.int64),
        "beam_size": np.array([_BEAM], np.int64),
        "length_penalty": np.array([[1.0, 0.0]], np.float32),
        "attention_wanted": np.array([False]),
    }
