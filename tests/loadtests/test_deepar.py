"""What a load test of DeepAR sends, and how it judges answers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from loadtests.workload import Unusable, load_workload

METADATA: dict[str, Any] = {
    "name": "sales",
    "inputs": [
        {"name": "target", "datatype": "FP32", "shape": [-1, -1]},
        {"name": "observed", "datatype": "FP32", "shape": [-1, -1]},
        {"name": "features", "datatype": "FP32", "shape": [-1, 10, 5]},
        {"name": "noise", "datatype": "FP32", "shape": [-1, -1, 4, 2]},
        {"name": "category", "datatype": "INT64", "shape": [-1, 2]},
    ],
    "outputs": [{"name": "samples", "datatype": "FP32", "shape": [-1, -1, 4]}],
    "properties": {"algorithm": "deepar"},
}


def test_series_of_the_models_form_are_sent() -> None:
    workload = load_workload(METADATA, None)
    (instance,) = json.loads(workload.bodies[0].data)["instances"]

    assert instance["cat"] == [0, 0]
    assert {name: array.shape for name, array in workload.tensors[0].items()} == {
        "target": (1, 24), "observed": (1, 24), "features": (1, 10, 5), "noise": (1, 4, 4, 2), "category": (1, 2),
    }  # fmt: skip
    workload.check_body(b'{"predictions": [{"mean": [1, 2, 3, 4], "quantiles": {"0.5": [1, 2, 3, 4]}}]}')
    workload.check_tensors({"samples": np.zeros((1, 4, 4), np.float32)})


def test_a_seed_must_give_the_same_answer_each_time() -> None:
    workload = load_workload(METADATA, None)

    def answer(level: float) -> bytes:
        return json.dumps({"predictions": [{"mean": [level] * 4, "quantiles": {"0.5": [level] * 4}}]}).encode()

    first = workload.check_body(answer(10))
    assert workload.check_body(answer(10.001)) is first
    assert np.abs(workload.check_body(answer(11)) - first).max() == 1  # of another request: `Neighbours` compares
    levels = iter(range(20, 40))
    with pytest.raises(ValueError, match="the same seed gave another one"):
        list(map(workload.check_body, map(answer, levels)))
    assert workload.check_body(answer(10)) is first


@pytest.mark.parametrize(
    "answer", [b"[]", b'{"predictions": []}', b'{"predictions": [{"mean": [1], "quantiles": {"0.5": [1]}}]}', b"x"]
)
def test_other_answers_are_failures(answer: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        load_workload(METADATA, None).check_body(answer)


def test_another_algorithm_is_unusable() -> None:
    with pytest.raises(Unusable, match="DeepAR"):
        load_workload(METADATA | {"inputs": []}, None)
