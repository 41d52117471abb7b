"""What a finished job leaves, written: the files that exporters and a later training read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers import checkpoints
from trainers.earlier_model import MODEL_DESCRIPTION, MODEL_WEIGHTS
from trainers.job import Job
from trainers.loop import Best

__all__ = ["write_json", "write_model"]


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    text = json.dumps(content, indent=2).encode() + b"\n"
    checkpoints.write_aside(file, lambda stream: stream.write(text))


def write_model(job: Job, description: Mapping[str, Any], best: Best) -> None:
    """`model.pt`, `hyperparams.json` and, last, for it says that all is there, `model.json`.

    Args:
        job: whose `model` directory it is.
        description: what exporters need, `hyperparameters` among it; epoch and metrics are added.
        best: the model to export.
    """
    checkpoints.save(job.model / MODEL_WEIGHTS, best.state)
    # tools written for the original's artifact read this file, whose values are texts
    given = description["hyperparameters"]
    write_json(job.model / "hyperparams.json", {name: str(value) for name, value in given.items() if value is not None})
    told = {"algorithm": job.algorithm, **description, "epoch": best.epoch, "metrics": best.metrics}
    write_json(job.model / MODEL_DESCRIPTION, told)
