from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from loadtests.image_classification import build
from loadtests.workload import Neighbours, Unusable, load_workload

METADATA: dict[str, Any] = {
    "name": "pets",
    "inputs": [{"name": "image", "datatype": "UINT8", "shape": [-1, 24, 40, 3]}],
    "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}],
    "properties": {"algorithm": "image_classification"},
}


def test_pictures_have_the_size_of_the_model_and_come_in_both_formats() -> None:
    workload = build(METADATA, None)

    found = {(image.format, image.size) for image in (Image.open(io.BytesIO(b.data)) for b in workload.bodies)}
    assert found == {("JPEG", (40, 24)), ("PNG", (40, 24))}
    assert {tensor["image"].shape for tensor in workload.tensors} == {(1, 24, 40, 3)}


def test_pictures_are_all_different_and_the_same_in_every_run() -> None:
    first, second = build(METADATA, None), build(METADATA, None)

    assert len({body.data for body in first.bodies}) == len(first.bodies)
    assert first.bodies == second.bodies


def test_files_of_a_directory_are_sent_as_they_are(tmp_path: Path) -> None:
    Image.new("L", (7, 5), 90).save(tmp_path / "grey.png")
    (tmp_path / "notes.txt").write_text("no picture")

    workload = build(METADATA, tmp_path)

    assert [body.data for body in workload.bodies] == [(tmp_path / "grey.png").read_bytes()]
    assert workload.tensors[0]["image"].shape == (1, 24, 40, 3)


def test_a_directory_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"no \.jpg"):
        build(METADATA, tmp_path)


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ([0.2, 0.8], "expected 3 probabilities"),
        ([0.2, 0.8, 1.2], "outside 0 to 1"),
        ([0.2, 0.8, "x"], "list of numbers"),
        ({"error": "no"}, "list of numbers"),
    ],
)
def test_an_answer_of_the_wrong_form_is_noticed(answer: object, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build(METADATA, None).check_body(json.dumps(answer).encode())


def test_the_same_answer_has_the_same_numbers_on_every_protocol() -> None:
    workload = build(METADATA, None)
    row = np.array([[0.25, 0.5, 0.25]], np.float32)

    assert (workload.check_body(b"[0.25, 0.5, 0.25]") == workload.check_tensors({"probabilities": row})).all()


def test_an_answer_that_belongs_to_another_request_is_noticed() -> None:
    neighbours = Neighbours()
    neighbours.check(0, np.array([0.1, 0.9]))
    neighbours.check(1, np.array([0.7, 0.3]))

    with pytest.raises(ValueError, match="request 0 got the answer of request 1"):
        neighbours.check(0, np.array([0.7, 0.3]))


def test_a_request_may_have_a_second_right_answer_from_a_new_version() -> None:
    neighbours = Neighbours()
    neighbours.check(0, np.array([0.1, 0.9]))
    neighbours.check(1, np.array([0.7, 0.3]))

    neighbours.check(0, np.array([0.4, 0.6]))
    neighbours.check(0, np.array([0.1, 0.9]))


@pytest.mark.parametrize("algorithm", ["", "no_such", "run", "figures", "../etc"])
def test_an_algorithm_without_a_load_test_is_named(algorithm: str) -> None:
    with pytest.raises(Unusable, match=f"no load test for algorithm '{algorithm}'"):
        load_workload({"name": "m", "properties": {"algorithm": algorithm}}, None)
