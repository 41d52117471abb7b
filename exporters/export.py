"""The one way in to exporting: a checkpoint of any algorithm to a bundle that is there whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from model_store.manifest import Manifest
from model_store.store import seal
from trainers.job import ClientError
from trainers.run import ALGORITHMS

__all__ = ["export"]


def export(checkpoint: Path, output: Path, inference_configuration: dict[str, Any] | None = None) -> Path:
    """Write the bundle of a trained model and return `output`.

    Args:
        checkpoint: what `trainers.run.train` returned, or the output directory that it was given;
            or a fastText model file.
        output: a directory that does not exist yet, or is empty.
        inference_configuration: of DeepAR, what holds for requests that say nothing of it.

    Raises:
        ClientError: not a checkpoint, or there is something at `output` already; or a configuration that the algorithm
            does not have.
        ParityError: an exported graph answers differently from the trained model; nothing is left behind.
    """
    if checkpoint.is_file():
        from exporters import blazingtext  # noqa: PLC0415  a fastText model of anybody's is a checkpoint too

        if checkpoint.suffix not in blazingtext.FOREIGN_SUFFIXES:
            raise ClientError(f"{checkpoint}: expected a checkpoint directory, or a fastText model (.bin, .ftz)")
        description = blazingtext.describe_file(checkpoint)
        checkpoint = checkpoint.parent
        return _write(checkpoint, description, output)
    if not (checkpoint / "model.json").is_file() and (checkpoint / "model" / "model.json").is_file():
        checkpoint /= "model"
    description = _describe(checkpoint)
    if inference_configuration is not None:
        if description["algorithm"] != "deepar":
            raise ClientError(f"an inference configuration is DeepAR's; {checkpoint} is of {description['algorithm']}.")
        description["inference_configuration"] = inference_configuration
    return _write(checkpoint, description, output)


def _write(checkpoint: Path, description: dict[str, Any], output: Path) -> Path:
    """The bundle, written aside and put in place."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ClientError(f"{output} exists already; choose another output, or remove it.")
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.parent / f".{output.name}-{secrets.token_hex(4)}"
    aside.mkdir()
    try:
        writer = import_module(f"exporters.{description['algorithm']}")
        manifest: Manifest = writer.write_bundle(checkpoint, description, aside)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        seal(aside, Manifest.model_validate({**manifest.model_dump(), "created": created}))
        os.replace(aside, output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return output


def _describe(checkpoint: Path) -> dict[str, Any]:
    file = checkpoint / "model.json"
    try:
        description = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise ClientError(f"{checkpoint} is not a checkpoint: it holds no model.json; has training ended?") from error
    except ValueError as error:
        raise ClientError(f"{file} is not JSON: {error}") from error
    if not isinstance(description, dict) or description.get("algorithm") not in ALGORITHMS:
        raise ClientError(f"{file} names no algorithm that can be exported; known: {', '.join(ALGORITHMS)}.")
    return description
