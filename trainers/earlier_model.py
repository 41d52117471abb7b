"""What a finished job leaves, read again: by incremental training (channel `model`)."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from trainers import checkpoints
from trainers.job import ClientError

__all__ = ["MODEL_DESCRIPTION", "MODEL_WEIGHTS", "read_model"]

MODEL_WEIGHTS = "model.pt"
MODEL_DESCRIPTION = "model.json"
_LARGEST_MEMBER = 4 << 30  # bytes; an archive's word about itself is not trusted


def read_model(directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Description and weights, from `model.tar.gz` or from the same files unpacked.

    Raises:
        ClientError: neither is there, or it is damaged.
    """
    archive = directory / "model.tar.gz"
    if archive.is_file():
        text, weights = _members(archive)
        state = checkpoints.load(io.BytesIO(weights), f"{archive}: {MODEL_WEIGHTS}")
    else:
        try:
            text = (directory / MODEL_DESCRIPTION).read_bytes()
        except FileNotFoundError as error:
            raise ClientError(
                f"Channel 'model': {directory} holds neither model.tar.gz nor {MODEL_DESCRIPTION}."
            ) from error
        state = checkpoints.load(directory / MODEL_WEIGHTS)
    try:
        description = json.loads(text)
    except ValueError as error:
        raise ClientError(f"Channel 'model': {MODEL_DESCRIPTION} is not JSON: {error}") from error
    if not (isinstance(description, dict) and isinstance(description.get("hyperparameters"), dict)):
        raise ClientError(f"Channel 'model': {MODEL_DESCRIPTION} is not a model's description.")
    return description, state


def _members(archive: Path) -> tuple[bytes, bytes]:
    """The two files that matter, read and never unpacked: names in an archive may point anywhere."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if name in (MODEL_DESCRIPTION, MODEL_WEIGHTS) and member.isfile() and member.size <= _LARGEST_MEMBER:
                    stream = tar.extractfile(member)
                    assert stream is not None
                    found[name] = stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ClientError(f"Channel 'model': {archive} is damaged or not a tar file: {error}") from error
    missing = {MODEL_DESCRIPTION, MODEL_WEIGHTS} - set(found)
    if missing:
        raise ClientError(f"Channel 'model': {archive} holds no {' and no '.join(sorted(missing))}.")
    return found[MODEL_DESCRIPTION], found[MODEL_WEIGHTS]
