"""The table of the image classification contract, section 3, line by line."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from trainers.hyperparameter_schema import parse, plain_values
from trainers.image_classification.hyperparameters import Hyperparameters
from trainers.job import ClientError

REQUIRED = {"num_classes": "5", "num_training_samples": "100"}

DEFAULTS = {
    "augmentation_type": None,
    "beta_1": 0.9,
    "beta_2": 0.999,
    "checkpoint_frequency": None,
    "early_stopping": False,
    "early_stopping_min_epochs": 10,
    "early_stopping_patience": 5,
    "early_stopping_tolerance": 0.0,
    "epochs": 30,
    "eps": 1e-8,
    "gamma": 0.9,
    "image_shape": (3, 224, 224),
    "kv_store": None,
    "learning_rate": 0.1,
    "lr_scheduler_factor": 0.1,
    "lr_scheduler_step": (),
    "mini_batch_size": 32,
    "momentum": 0.9,
    "multi_label": False,
    "num_layers": 152,
    "optimizer": "sgd",
    "precision_dtype": "float32",
    "resize": None,
    "top_k": None,
    "use_pretrained_model": False,
    "use_weighted_loss": False,
    "weight_decay": 0.0001,
}
OUR_OWN = {
    "lr_scheduler": "step",
    "crop_padding": 0,
    "label_smoothing": 0.0,
    "input_workers": None,
    "seed": 0,
}


def test_the_defaults_are_those_of_the_original() -> None:
    parsed = dataclasses.asdict(parse(Hyperparameters, REQUIRED))

    assert parsed == {"num_classes": 5, "num_training_samples": 100, **DEFAULTS, **OUR_OWN}


@pytest.mark.parametrize("name", ["num_classes", "num_training_samples"])
def test_what_has_no_default_is_required(name: str) -> None:
    rest = {key: value for key, value in REQUIRED.items() if key != name}

    with pytest.raises(ClientError, match=f"'{name}' is a required property"):
        parse(Hyperparameters, rest)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("augmentation_type", "crop_color", "crop_color"),
        ("early_stopping", "True", True),
        ("early_stopping", "false", False),
        ("image_shape", "3, 28,28", (3, 28, 28)),
        ("image_shape", "1,28,28", (1, 28, 28)),
        ("lr_scheduler_step", "10, 20", (10, 20)),
        ("lr_scheduler_step", "7", (7,)),
        ("multi_label", "1", True),
        ("num_layers", "18", 18),
        ("optimizer", '"nag"', "nag"),
        ("eps", "1e-3", 0.001),
        ("epochs", 4, 4),
        ("learning_rate", 1, 1.0),
        ("kv_store", "dist_sync", "dist_sync"),
        ("top_k", "2", 2),
        ("resize", "256", 256),
    ],
)
def test_strings_and_typed_values_are_read(name: str, text: object, value: object) -> None:
    assert getattr(parse(Hyperparameters, REQUIRED | {name: text}), name) == value


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152, 200, 20, 32, 44, 56, 110])
def test_every_documented_depth_goes_with_any_height(depth: int) -> None:
    parsed = parse(Hyperparameters, REQUIRED | {"num_layers": str(depth), "image_shape": "3,28,28"})

    assert parsed.num_layers == depth


FRACTIONS = [
    "beta_1", "beta_2", "early_stopping_tolerance", "eps", "gamma", "learning_rate", "lr_scheduler_factor", "momentum",
    "weight_decay", "label_smoothing",
]  # fmt: skip
COUNTS = [
    "num_classes", "num_training_samples", "checkpoint_frequency", "early_stopping_min_epochs",
    "early_stopping_patience", "epochs", "mini_batch_size", "resize",
]  # fmt: skip


@pytest.mark.parametrize("name", FRACTIONS)
@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "inf", "abc", True])
def test_a_fraction_is_a_number_from_0_to_1(name: str, value: object) -> None:
    with pytest.raises(ClientError, match=f"hyperparameter {name} must be a number from 0 to 1"):
        parse(Hyperparameters, REQUIRED | {name: value})


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "abc", True])
def test_a_count_is_an_integer_of_at_least_1(name: str, value: object) -> None:
    with pytest.raises(ClientError, match=f"hyperparameter {name} must be an integer of at least 1"):
        parse(Hyperparameters, REQUIRED | {name: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("augmentation_type", "crop_color_transformation", "did you mean 'crop_color_transform'"),
        ("image_shape", "3,28", "C,H,W"),
        ("image_shape", "3,28,0", "C,H,W"),
        ("image_shape", "2,28,28", "must be 3"),
        ("kv_store", "device", "one of dist_sync, dist_async"),
        ("lr_scheduler_step", "10,x", "comma list of integers"),
        ("multi_label", "maybe", "0, 1, True or False"),
        ("num_layers", "19", "one of 18, 34, 50, 101, 152, 200, 20, 32, 44, 56, 110"),
        ("optimizer", "adagrad", "one of sgd, adam, rmsprop, nag"),
        ("precision_dtype", "float64", "one of float32, float16, bfloat16"),
        ("top_k", "1", "integer of at least 2"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, value: str, expected: str) -> None:
    with pytest.raises(ClientError, match=expected) as caught:
        parse(Hyperparameters, REQUIRED | {name: value})

    assert name in str(caught.value)


def test_a_bad_value_is_told_in_the_words_of_the_original() -> None:
    with pytest.raises(ClientError, match="'abc' is not valid under any of the given schemas"):
        parse(Hyperparameters, REQUIRED | {"epochs": "abc"})


def test_all_bad_values_are_told_at_once() -> None:
    with pytest.raises(ClientError, match=r"epochs.*learning_rate"):
        parse(Hyperparameters, REQUIRED | {"epochs": "0", "learning_rate": "7"})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"checkpoint_frequency": "3", "epochs": "2"}, r"3 must be at most epochs \(2\)"),
        ({"resize": "223"}, "223 must be at least 224"),
        ({"top_k": "6"}, r"6 must be at most num_classes \(5\)"),
        ({"use_weighted_loss": "1"}, "only possible with multi_label=1"),
        ({"use_pretrained_model": "1", "image_shape": "3,32,32"}, "3,32,32 must be 3,224,224"),
        ({"use_pretrained_model": "1", "num_layers": "20"}, "20 must be one of 18, 34, 50, 101, 152, 200"),
    ],
)
def test_conditions_between_hyperparameters_hold(changed: dict[str, str], expected: str) -> None:
    with pytest.raises(ClientError, match=expected):
        parse(Hyperparameters, REQUIRED | changed)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("augmentation type", "augmentation_type"), ("epoch", "epochs"), ("Learning-Rate", "learning_rate")],
)
def test_an_unknown_name_is_an_error_that_suggests_the_nearest(name: str, meant: str) -> None:
    told = rf"Additional hyperparameters are not allowed \('{name}' was unexpected\).*did you mean '{meant}'"

    with pytest.raises(ClientError, match=told):
        parse(Hyperparameters, REQUIRED | {name: "1"})


def test_tuning_keys_and_model_prefix_are_ignored() -> None:
    extras: dict[str, Any] = {"_tuning_objective_metric": "validation:accuracy", "model_prefix": ""}

    assert parse(Hyperparameters, REQUIRED | extras) == parse(Hyperparameters, REQUIRED)


def test_parameters_of_other_optimizers_are_ignored() -> None:
    assert parse(Hyperparameters, REQUIRED | {"optimizer": "sgd", "beta_1": "0.5", "gamma": "0.5"}).optimizer == "sgd"


def test_plain_values_are_read_back_as_they_were() -> None:
    parsed = parse(Hyperparameters, REQUIRED | {"lr_scheduler_step": "10, 20", "early_stopping": "True"})
    given = {name: value for name, value in plain_values(parsed).items() if value is not None}

    assert parse(Hyperparameters, given) == parsed
