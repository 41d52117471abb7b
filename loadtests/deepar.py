"""Series in, forecasts out (DeepAR contract, section 6)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.workload import Array, Body, Unusable

__all__ = ["DeepAR", "build"]

_NUM_SAMPLES = 50
_LENGTHS = (24, 100, 400)
_MOST_ANSWERS = 4 * len(_LENGTHS)
"""Unlike ones that users of a protocol may get: an endpoint may mix versions, and counts may turn in other batches."""
_CLOSE = 1e-3
"""Of the largest value: paths feed on themselves, and batches of other sizes round otherwise."""


class DeepAR:
    """Requests of one series each, with 50 samples and a seed: the same request has the same answer.

    Args:
        prediction_length: steps of a forecast.
        num_steps: of the graph's features, and how many there are of each.
        num_noise: uniform numbers of each sample.
        num_categories: 0 where the model has none.
    """

    def __init__(
        self, *, prediction_length: int, num_steps: tuple[int, int], num_noise: int, num_categories: int
    ) -> None:
        self.accept = "application/json"
        self._known: dict[str, list[Array]] = {"body": [], "tensors": []}
        self._prediction_length = prediction_length
        self.bodies = [_body(length, num_categories) for length in _LENGTHS]
        self.tensors = [
            _tensors(length, prediction_length, num_steps, num_noise, num_categories) for length in _LENGTHS
        ]

    def check_body(self, answer: bytes) -> Array:
        try:
            (found,) = json.loads(answer)["predictions"]
            mean, middle = np.array(found["mean"]), np.array(found["quantiles"]["0.5"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"expected one prediction of mean and quantiles, got {answer[:80]!r}") from error
        if mean.shape != (self._prediction_length,) or middle.shape != mean.shape or not np.isfinite(mean).all():
            raise ValueError(f"expected {self._prediction_length} finite numbers, got {mean.shape} and {middle.shape}")
        return self._seen("body", np.stack([mean, middle]))

    def check_tensors(self, outputs: Mapping[str, Array]) -> Array:
        samples = outputs.get("samples")
        if samples is None or samples.shape != (1, 4, self._prediction_length) or not np.isfinite(samples).all():
            raise ValueError(f"expected finite 'samples' of shape (1, 4, {self._prediction_length})")
        return self._seen("tensors", samples)

    def _seen(self, way: str, values: Array) -> Array:
        """The answer as it came first: seeds and noise are sent, so the same few answers must come for ever.

        Raises:
            ValueError: others keep coming.
        """
        known = self._known[way]
        for each in known:
            if np.abs(each - values).max() <= _CLOSE * np.abs(each).max():
                return each
        if len(known) == _MOST_ANSWERS:
            raise ValueError(f"expected one of {len(known)} answers that came before: the same seed gave another one")
        known.append(values)
        return values


def build(metadata: Mapping[str, Any], images: Path | None) -> DeepAR:  # noqa: ARG001
    """Series of several lengths; the workload of every algorithm may be given a directory of images.

    Raises:
        Unusable: the metadata are not those of DeepAR.
    """
    try:
        shapes = {each["name"]: each["shape"] for each in metadata["inputs"]}
        (samples,) = (each["shape"] for each in metadata["outputs"] if each["name"] == "samples")
        return DeepAR(
            prediction_length=int(samples[2]),
            num_steps=(int(shapes["features"][1]), int(shapes["features"][2])),
            num_noise=int(shapes["noise"][3]),
            num_categories=int(shapes["category"][1]) if "category" in shapes else 0,
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise Unusable(f"'{metadata.get('name')}' does not look like DeepAR: {metadata}") from error


def _body(length: int, num_categories: int) -> Body:
    target = [round(10 + 3 * float(np.sin(step / 4)), 3) for step in range(length)]
    instance: dict[str, Any] = {"start": "2024-03-01 00:00:00", "target": target}
    if num_categories:
        instance["cat"] = [0] * num_categories
    configuration = {
        "num_samples": _NUM_SAMPLES,
        "output_types": ["mean", "quantiles"],
        "quantiles": ["0.1", "0.5", "0.9"],
        "seed": 1,
    }
    return Body("application/json", json.dumps({"instances": [instance], "configuration": configuration}).encode())


def _tensors(
    length: int, prediction_length: int, num_steps: tuple[int, int], num_noise: int, num_categories: int
) -> dict[str, Array]:
    random = np.random.default_rng(length)
    made: dict[str, Array] = {
        "target": random.uniform(5, 15, (1, length)).astype(np.float32),
        "observed": np.ones((1, length), np.float32),
        "features": random.uniform(-0.5, 0.5, (1, *num_steps)).astype(np.float32),
        "noise": random.uniform(0.01, 0.99, (1, 4, prediction_length, num_noise)).astype(np.float32),
    }
    if num_categories:
        made["category"] = np.zeros((1, num_categories), np.int64)
    return made
