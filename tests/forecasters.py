"""A forecaster's checkpoint whose paths differ from each other, without any training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from formats.time_frequency import Frequency
from trainers.checkpoints import save
from trainers.deepar.model import Network, Sizes

__all__ = ["write_checkpoint"]


def write_checkpoint(directory: Path, *, num_dynamic: int = 0, **changed: Any) -> Path:
    """`model.pt` and `model.json` of a small random network: hours, 6 steps of context, 4 of forecast."""
    frequency = Frequency.parse("H")
    given: dict[str, Any] = {
        "lags": tuple(frequency.lags()), "num_features": len(frequency.feature_names) + num_dynamic,
        "cardinalities": (), "embedding_dimension": 3, "num_cells": 8, "num_layers": 2, "dropout_rate": 0.1,
        "likelihood": "gaussian", "context_length": 6, "prediction_length": 4,
    }  # fmt: skip
    sizes = Sizes(**given | changed)
    torch.manual_seed(0)
    network = Network(sizes, default_scale=3.0)
    torch.nn.init.normal_(network.direct, std=0.05)
    directory.mkdir(parents=True)
    save(directory / "model.pt", network.state_dict())
    description = {
        "algorithm": "deepar",
        "hyperparameters": {"time_freq": "H", "likelihood": sizes.likelihood},
        "sizes": asdict(sizes),
        "num_dynamic": num_dynamic,
        "epoch": 0,
        "metrics": {"train:final_loss": 0.5},
    }
    (directory / "model.json").write_text(json.dumps(description))
    return directory
