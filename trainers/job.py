"""One training job: where data comes from, what was asked for, where results go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ClientError", "Job"]


class ClientError(ValueError):
    """The user can mend it: a hyperparameter, a channel, a record. The text names it; failure files add the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    algorithm: str
    """Its name as in `trainers.run.ALGORITHMS`."""
    channels: Mapping[str, Path]
    """Channel name to the directory that holds its files."""
    hyperparameters: Mapping[str, object]
    """As the user gave them: strings or typed values."""
    output: Path
    """`model/` is what exporters read, `metrics.jsonl` one line per epoch."""
    checkpoints: Path
    """What a restarted job resumes from; may lie on storage that outlives the machine."""

    def channel(self, name: str) -> Path:
        """The directory of a channel that must be there and must hold something.

        Raises:
            ClientError: the channel is missing, not a directory, or empty.
        """
        directory = self.channels.get(name)
        if directory is None:
            given = ", ".join(sorted(self.channels)) or "none"
            raise ClientError(f"Missing required channel '{name}'; channels given: {given}.")
        if not directory.is_dir():
            raise ClientError(f"Channel '{name}': {directory} is not a directory.")
        if not any(directory.iterdir()):
            raise ClientError(f"Channel '{name}': {directory} holds no files.")
        return directory
