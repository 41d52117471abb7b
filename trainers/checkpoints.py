"""What a killed job resumes from: tensors and plain values in files that are there whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from trainers.job import ClientError

__all__ = ["load", "save", "write_aside"]


def write_aside(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Give a file its new content atomically and durably: written aside, synced, renamed, the directory synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers, texts, lists and dictionaries of them."""
    import torch  # noqa: PLC0415  trainers that need no torch write files aside too

    write_aside(path, lambda file: torch.save(state, file))


def load(path: Path | IO[bytes], name: str = "") -> dict[str, Any]:
    """Read what `save` wrote, onto the CPU; anything but plain values is refused, so a foreign file cannot run code.

    Args:
        path: a file, or an open stream, which needs a `name`.
        name: for error texts.

    Raises:
        ClientError: damaged, or not such a file.
    """
    import torch  # noqa: PLC0415

    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds: zip, unpickling, runtime, end of file
        raise ClientError(f"{name or path} is damaged or not a checkpoint: {str(error).splitlines()[0]}") from error
    return state
