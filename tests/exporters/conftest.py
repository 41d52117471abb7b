"""Trained checkpoints without the training: random weights, norms that have seen something."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainers.checkpoints import save
from trainers.hyperparameter_schema import parse, plain_values
from trainers.image_classification.hyperparameters import Hyperparameters
from trainers.image_classification.model import build


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Makes what training leaves in `OUTPUT/model`; keyword arguments are hyperparameters."""

    def make(**changed: object) -> Path:
        small = {"num_classes": 3, "num_training_samples": 9, "num_layers": 20, "image_shape": "3,12,16"}
        wanted = parse(Hyperparameters, small | changed)
        torch.manual_seed(0)
        network = build(num_layers=wanted.num_layers, image_shape=wanted.image_shape, num_classes=wanted.num_classes)
        network(torch.randint(0, 256, (8, 3, 12, 16)))
        description = {
            "algorithm": "image_classification",
            "hyperparameters": plain_values(wanted),
            "num_classes": wanted.num_classes,
            "image_shape": list(wanted.image_shape),
            "multi_label": wanted.multi_label,
            "labels": ["ash", "elm", "oak"],
            "epoch": 1,
            "metrics": {"validation:accuracy": 0.5},
        }
        directory = tmp_path / "out" / "model"
        save(directory / "model.pt", network.state_dict())
        (directory / "model.json").write_text(json.dumps(description))
        return directory

    return make
