"""The table of the semantic segmentation contract, section 3, line by line."""

from __future__ import annotations

from typing import Any

import pytest

from trainers.hyperparameter_schema import parse, plain_values
from trainers.job import ClientError
from trainers.semantic_segmentation.hyperparameters import Hyperparameters

REQUIRED = {"num_classes": "11", "num_training_samples": "367"}

DEFAULTS = {
    "algorithm": "fcn",
    "backbone": "resnet-50",
    "base_size": 520,
    "crop_size": 240,
    "early_stopping": False,
    "early_stopping_min_epochs": 5,
    "early_stopping_patience": 4,
    "early_stopping_tolerance": 0.0,
    "epochs": 10,
    "gamma1": 0.9,
    "gamma2": 0.9,
    "learning_rate": 0.001,
    "lr_scheduler": "poly",
    "lr_scheduler_factor": 0.1,
    "mini_batch_size": 16,
    "momentum": 0.9,
    "optimizer": "sgd",
    "syncbn": False,
    "validation_mini_batch_size": 16,
    "weight_decay": 0.0001,
}


def test_defaults_are_the_originals() -> None:
    found = plain_values(parse(Hyperparameters, REQUIRED))

    assert {name: found[name] for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("missing", list(REQUIRED))
def test_what_is_required_is_missed_by_name(missing: str) -> None:
    with pytest.raises(ClientError, match=missing):
        parse(Hyperparameters, {name: value for name, value in REQUIRED.items() if name != missing})


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("use_pretrained_model", "True", True),
        ("use_pretrained_model", "0", False),
        ("syncbn", "true", True),
        ("backbone", "resnet-101", "resnet-101"),
        ("optimizer", "adadelta", "adadelta"),
        ("lr_scheduler_step", "10, 20", (10, 20)),
        ("lr_scheduler_step", "", ()),
        ("learning_rate", "1", 1.0),
        ("num_classes", "254", 254),
        ("output_stride", "16", 16),
    ],
)
def test_values_come_as_text(name: str, text: str, value: Any) -> None:
    assert getattr(parse(Hyperparameters, REQUIRED | {name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("num_classes", "1"),
        ("num_classes", "255"),
        ("num_training_samples", "0"),
        ("base_size", "16"),
        ("crop_size", "16"),
        ("epochs", "0"),
        ("gamma1", "1.1"),
        ("gamma2", "-0.1"),
        ("learning_rate", "0"),
        ("learning_rate", "nan"),
        ("learning_rate", "1.5"),
        ("lr_scheduler", "warmup"),
        ("lr_scheduler_step", "ten"),
        ("mini_batch_size", "0"),
        ("momentum", "2"),
        ("optimizer", "lamb"),
        ("output_stride", "4"),
        ("syncbn", "perhaps"),
        ("validation_mini_batch_size", "0"),
        ("weight_decay", "-1"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(ClientError, match=name):
        parse(Hyperparameters, REQUIRED | {name: text})


def test_an_unknown_name_is_told_its_neighbour() -> None:
    with pytest.raises(ClientError, match="crop_size"):
        parse(Hyperparameters, REQUIRED | {"crop_sise": "240"})


@pytest.mark.parametrize(("asked", "used"), [("240", 240), ("241", 248), ("17", 24)])
def test_a_crop_is_rounded_up_to_a_multiple_of_8(asked: str, used: int) -> None:
    assert parse(Hyperparameters, REQUIRED | {"crop_size": asked}).crop == used
