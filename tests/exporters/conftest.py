"""Trained checkpoints without the training: random weights, norms that have seen something."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from exporters.export import export
from model_store.store import Bundle
from trainers.checkpoints import save
from trainers.hyperparameter_schema import parse, plain_values
from trainers.image_classification.hyperparameters import Hyperparameters
from trainers.image_classification.model import build
from trainers.vision.resnet import Architecture


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Two threads that wait for each other starve on busy cores."""
    torch.set_num_threads(1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Makes what training leaves in `OUTPUT/model`; keyword arguments are hyperparameters."""
    return partial(_make_checkpoint, tmp_path / "out" / "model")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The default checkpoint, exported once for all who only read it."""
    directory = tmp_path_factory.mktemp("exported")
    return Bundle.open(export(_make_checkpoint(directory / "model"), directory / "bundle"))


def _make_checkpoint(directory: Path, architecture: Architecture = "resnet_v2", **changed: object) -> Path:
    small = {"num_classes": 3, "num_training_samples": 9, "num_layers": 20, "image_shape": "3,12,16"}
    wanted = parse(Hyperparameters, small | changed)
    torch.manual_seed(0)
    network = build(
        num_layers=wanted.num_layers,
        image_shape=wanted.image_shape,
        num_classes=wanted.num_classes,
        architecture=architecture,
    )
    with torch.no_grad():
        for _ in range(40):  # until the norms know their inputs: else the softmax saturates and hides differences
            network(torch.randint(0, 256, (8, 3, *wanted.image_shape[1:])))
    description = {
        "algorithm": "image_classification",
        "architecture": architecture,
        "hyperparameters": plain_values(wanted),
        "num_classes": wanted.num_classes,
        "image_shape": list(wanted.image_shape),
        "multi_label": wanted.multi_label,
        "labels": ["ash", "elm", "oak"],
        "epoch": 1,
        "metrics": {"validation:accuracy": 0.5},
    }
    save(directory / "model.pt", network.state_dict())
    (directory / "model.json").write_text(json.dumps(description))
    return directory
