"""What a load test of a segmenter sends, and how it judges answers."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from formats.masks import encode_mask
from loadtests.workload import Unusable, load_workload

METADATA: dict[str, Any] = {
    "name": "roads",
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}],
    "outputs": [
        {"name": "mask", "datatype": "UINT8", "shape": [-1, -1, -1]},
        {"name": "logits", "datatype": "FP32", "shape": [-1, 4, -1, -1]},
    ],
    "properties": {"algorithm": "semantic_segmentation"},
}


def mask(highest: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, highest + 1, (6, 8), np.uint8)


def test_the_same_answer_has_the_same_numbers_on_every_protocol() -> None:
    workload = load_workload(METADATA, None)
    numbers = workload.check_body(encode_mask(mask()))

    assert numbers[:2].tolist() == [6, 8]
    assert numbers[2:].sum() == pytest.approx(1, abs=0.01)
    assert (numbers == workload.check_tensors({"mask": mask()[None]})).all()


def test_pictures_are_sent_in_their_own_size_both_ways() -> None:
    workload = load_workload(METADATA, None)

    for body, tensors in zip(workload.bodies, workload.tensors, strict=True):
        width, height = Image.open(io.BytesIO(body.data)).size
        assert tensors["image"].shape == (1, height, width, 3)


def test_an_answer_of_the_wrong_form_is_noticed() -> None:
    workload = load_workload(METADATA, None)

    with pytest.raises(ValueError, match="expected a PNG"):
        workload.check_body(b'{"error": "no"}')
    with pytest.raises(ValueError, match="class 9 of 4"):
        workload.check_body(encode_mask(mask(9)))
    with pytest.raises(ValueError, match="one class per pixel"):
        workload.check_tensors({"mask": mask()[None, None]})


def test_a_model_of_other_outputs_is_refused() -> None:
    with pytest.raises(Unusable, match="does not look like a segmenter"):
        load_workload({**METADATA, "outputs": []}, None)
