"""The one way in to training: by algorithm name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from trainers.job import ChannelSettings, ClientError, Job
from trainers.progress import log, speaking

__all__ = ["ALGORITHMS", "run_job", "train"]

ALGORITHMS = (
    "blazingtext",
    "deepar",
    "image_classification",
    "object2vec",
    "object_detection",
    "semantic_segmentation",
    "seq2seq",
)
_NO_SETTINGS: Mapping[str, ChannelSettings] = {}


def train(
    algorithm: str,
    channels: Mapping[str, Path],
    hyperparameters: Mapping[str, object],
    output: Path,
    settings: Mapping[str, ChannelSettings] = _NO_SETTINGS,
) -> Path:
    """Train, or resume a run that was cut off, and return the directory that exporters read (`OUTPUT/model`).

    Args:
        algorithm: one of ALGORITHMS.
        channels: name to directory, such as `train` and `validation`.
        hyperparameters: strings or typed values by name.
        output: where results go; the same call with the same output resumes.
        settings: how channels are to be read, where that is not seen from their files.

    Raises:
        ClientError: what the user can mend, in words.
    """
    job = Job(
        algorithm=algorithm,
        channels={name: Path(directory) for name, directory in channels.items()},
        hyperparameters=hyperparameters,
        output=output,
        checkpoints=output / "checkpoints",
        settings=settings,
    )
    return run_job(job)


def run_job(job: Job) -> Path:
    """Train as `train` does, wherever the job's parts lie.

    Raises:
        ClientError: what the user can mend, in words; logged too.
    """
    # Torch's threads spin at every barrier; where others use the same cores, each waits for one that is not running.
    # Measured on 2 cores with two busy neighbours: 2.1 s a step spinning, 0.25 s asleep. Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module = _module_of(job.algorithm)
    with speaking(_rank()) as bar:
        log.info("Docker entrypoint called with argument(s): train")
        try:
            trained: Path = import_module(module).train(job, bar)
        except ClientError as error:
            log.error("Customer Error: %s", error)
            raise
    return trained


def _module_of(algorithm: str) -> str:
    if algorithm not in ALGORITHMS:
        raise ClientError(f"Unknown algorithm '{algorithm}'; known: {', '.join(ALGORITHMS)}.")
    return f"trainers.{algorithm}.train"


def _rank() -> int:
    """This process's number among those that torchrun started, known before torch is imported."""
    return int(os.environ.get("RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0
