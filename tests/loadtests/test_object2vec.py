"""What is sent to Object2Vec, and what is taken for an answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loadtests.object2vec import build
from loadtests.workload import Unusable

PAIR: dict[str, Any] = {
    "name": "pairs",
    "inputs": [{"name": "in0", "shape": [-1, -1]}, {"name": "in1", "shape": [-1, -1]}],
    "outputs": [{"name": "scores", "shape": [-1, 3]}],
}


def test_bodies_hold_what_the_endpoints_graph_takes() -> None:
    encoder = {**PAIR, "inputs": PAIR["inputs"][:1], "outputs": [{"name": "embeddings", "shape": [-1, 8]}]}

    assert build(PAIR, None).bodies[0].data == b'{"instances": [{"in0": [0], "in1": [0]}]}'
    assert build(encoder, None).bodies[0].data == b'{"instances": [{"in0": [0]}]}'


def test_answers_of_another_form_are_refused() -> None:
    workload = build(PAIR, None)
    workload.check_body(b'{"predictions": [{"scores": [0.1, 0.2, 0.7]}]}')
    workload.check_tensors({"scores": np.zeros((1, 3), np.float32)})

    for wrong in (b"x", b'{"predictions": [{"scores": [1]}]}', b'{"predictions": [{"embeddings": [1, 2, 3]}]}'):
        with pytest.raises(ValueError, match="expected"):
            workload.check_body(wrong)
    with pytest.raises(ValueError, match="not finite"):
        workload.check_tensors({"scores": np.full((1, 3), np.nan)})


def test_other_models_are_refused() -> None:
    with pytest.raises(Unusable):
        build({**PAIR, "inputs": [{"name": "data"}]}, None)
