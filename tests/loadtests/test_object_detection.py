"""What a load test of a detector sends, and how it judges answers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from loadtests.workload import Unusable, load_workload

METADATA: dict[str, Any] = {
    "name": "cells",
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}],
    "outputs": [{"name": "detections", "datatype": "FP32", "shape": [-1, 3, 6]}],
    "properties": {"algorithm": "object_detection"},
}
ROWS = [[2.0, 0.75, 0.125, 0.25, 0.5, 0.75], [0.0, 0.25, 0.0, 0.0, 1.0, 0.5]]


def test_the_same_answer_has_the_same_numbers_on_every_protocol() -> None:
    workload = load_workload(METADATA, None)
    graph = np.array([[*ROWS, [-1, 0, 0.1, 0.1, 0.1, 0.1]]], np.float32)

    numbers = workload.check_body(json.dumps({"prediction": ROWS}).encode())
    assert numbers.shape == (2, 6)
    assert (numbers == workload.check_tensors({"detections": graph})).all()
    assert workload.tensors[0]["image"].shape == (1, 32, 32, 3)


def test_rows_of_equal_score_may_change_places() -> None:
    workload = load_workload(METADATA, None)
    one, other = (workload.check_body(json.dumps({"prediction": rows}).encode()) for rows in (ROWS, ROWS[::-1]))

    assert (one == other).all()


def test_nothing_found_is_an_answer() -> None:
    assert load_workload(METADATA, None).check_body(b'{"prediction": []}').shape == (0, 6)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ([1, 2], "prediction"),
        ({"prediction": [[0, 1.5, 0, 0, 1, 1]]}, "outside 0 to 1"),
        ({"prediction": [[0, 0.5, -0.1, 0, 1, 1]]}, "outside 0 to 1"),
        ({"prediction": [[0, 0.5, 0.6, 0, 0.5, 1]]}, "inside out"),
        ({"prediction": [[0, 0.5]]}, "reshape"),
    ],
)
def test_an_answer_of_the_wrong_form_is_noticed(answer: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        load_workload(METADATA, None).check_body(json.dumps(answer).encode())


def test_a_model_of_other_outputs_is_refused() -> None:
    with pytest.raises(Unusable, match="does not look like a detector"):
        load_workload({**METADATA, "outputs": []}, None)
