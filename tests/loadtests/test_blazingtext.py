"""What a load test of BlazingText sends, and how it judges answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loadtests.workload import Unusable, load_workload


def metadata(name: str) -> dict[str, Any]:
    return {
        "name": "topics",
        "inputs": [{"name": "units", "datatype": "INT64", "shape": [-1, -1]}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": [-1, 3]}],
        "properties": {"algorithm": "blazingtext"},
    }


def test_labels_and_vectors_are_told_apart() -> None:
    labels, vectors = load_workload(metadata("probabilities"), None), load_workload(metadata("vector"), None)

    labels.check_body(b'[{"label": ["__label__a"], "prob": [0.5]}]')
    vectors.check_body(b'[{"word": "a", "vector": [1, 2, 3]}]')
    vectors.check_tensors({"vector": np.zeros((1, 3), np.float32)})


@pytest.mark.parametrize("answer", [b"[]", b"{}", b'[{"label": [], "prob": []}]', b'{"error": 1}', b"x"])
def test_other_answers_are_failures(answer: bytes) -> None:
    with pytest.raises(ValueError, match=r"expected|labels"):
        load_workload(metadata("probabilities"), None).check_body(answer)


def test_another_algorithm_is_unusable() -> None:
    with pytest.raises(Unusable, match="BlazingText"):
        load_workload({**metadata("mask"), "inputs": []}, None)
