"""The report on a finished model, against counts made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from trainers.distributed import ALONE
from trainers.image_classification.evaluation import Evaluation
from trainers.image_classification.train import train
from trainers.job import Job

CPU = torch.device("cpu")


def test_a_confusion_matrix_counts_what_is_taken_for_what() -> None:
    evaluation = Evaluation(3, multi_label=False, device=CPU)
    evaluation.add(torch.eye(3)[[0, 0, 1, 2]] * 9, torch.tensor([0, 0, 0, 2]))
    evaluation.add(torch.eye(3)[[1]] * 9, torch.tensor([1]))
    report = evaluation.report(ALONE, ["ash", "elm", "oak"])

    assert report["num_images"] == 5
    assert report["accuracy"] == 0.8
    assert report["confusion_matrix"] == [[2, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert report["largest_confusions"] == [{"is": "ash", "taken_for": "elm", "number": 1}]
    assert report["classes"][0] == {
        "class": 0, "label": "ash", "number": 3, "precision": 1.0, "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(0.8),
    }  # fmt: skip


def test_calibration_is_the_distance_of_confidence_and_accuracy() -> None:
    """Two images at 0.9 of which one is right: 0.4 apart."""
    evaluation = Evaluation(2, multi_label=False, device=CPU)
    evaluation.add(torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log(), torch.tensor([0, 1]))
    calibration = evaluation.report(ALONE, None)["calibration"]

    assert calibration["expected_calibration_error"] == pytest.approx(0.4, abs=1e-6)
    assert [each for each in calibration["bins"] if each["number"]] == [
        {"from": pytest.approx(13 / 15), "number": 2, "confidence": pytest.approx(0.9), "accuracy": 0.5}
    ]


def test_several_labels_are_judged_class_by_class() -> None:
    evaluation = Evaluation(2, multi_label=True, device=CPU)
    score_BK, label_BK = torch.tensor([[5.0, -5], [5, 5], [-5, -5]]), torch.tensor([[1.0, 0], [0, 1], [0, 1]])
    evaluation.add(score_BK, label_BK)
    report = evaluation.report(ALONE, None)

    assert report["exact_match"] == pytest.approx(1 / 3)
    assert [(c["number"], c["precision"], c["recall"]) for c in report["classes"]] == [(1, 0.5, 1.0), (2, 1.0, 0.5)]
    assert "confusion_matrix" not in report


def test_a_class_that_is_never_seen_has_no_figures() -> None:
    report = Evaluation(2, multi_label=False, device=CPU).report(ALONE, None)

    assert report["classes"][0]["precision"] is None


def test_a_finished_run_leaves_its_report(job: Callable[..., Job]) -> None:
    asked = job(epochs=4)
    description = json.loads((train(asked) / "model.json").read_bytes())
    report = json.loads((asked.output / "evaluation.json").read_bytes())

    assert report["accuracy"] == description["metrics"]["validation:accuracy"]
    assert [row["label"] for row in report["classes"]] == ["dark", "light"]
