"""One training job: where data comes from, what was asked for, where results go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ChannelSettings", "ClientError", "Job", "read_input_config"]

_MODES = {"File": False, "FastFile": False, "Pipe": True}


class ClientError(ValueError):
    """The user can mend it: a hyperparameter, a channel, a record. The text names it; failure files add the class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettings:
    """How a channel is to be read, as `inputdataconfig.json` says it; every field may be left away."""

    content_type: str = ""
    """As sent, parameters included; empty: what the files are is seen from their names."""
    pipe: bool = False
    """Whether the data come through one named pipe per epoch, `<channel>_<epoch>` beside the channel's path."""
    attribute_names: tuple[str, ...] = ()
    """Of an augmented manifest, in the order of the stream."""
    local_roots: Mapping[str, str] = field(default_factory=dict)
    """Not in the original: URI prefixes of a manifest to directories, relative to the channel's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    algorithm: str
    """Its name as in `trainers.run.ALGORITHMS`."""
    channels: Mapping[str, Path]
    """Channel name to the directory that holds its files, or (where the algorithm takes one) to a file; of a Pipe
    channel, the path its pipes' names begin with."""
    hyperparameters: Mapping[str, object]
    """As the user gave them: strings or typed values."""
    output: Path
    """`model/` is what exporters read, `metrics.jsonl` one line per epoch, and of some algorithms one of the whole."""
    checkpoints: Path
    """What a restarted job resumes from; may lie on storage that outlives the machine."""
    model: Path = Path()
    """Where the trained model goes; by default `model/` in the output."""
    settings: Mapping[str, ChannelSettings] = field(default_factory=dict)
    """By channel name."""

    def __post_init__(self) -> None:
        if self.model == Path():
            object.__setattr__(self, "model", self.output / "model")

    def channel(self, name: str) -> Path:
        """The directory of a channel that must be there and must hold something.

        Raises:
            ClientError: the channel is missing, not a directory, or empty.
        """
        directory = self.path_of(name)
        if not directory.is_dir():
            raise ClientError(f"Channel '{name}': {directory} is not a directory.")
        if not any(directory.iterdir()):
            raise ClientError(f"Channel '{name}': {directory} holds no files.")
        return directory

    def path_of(self, name: str) -> Path:
        """The path of a channel that must be given.

        Raises:
            ClientError: it is not.
        """
        path = self.channels.get(name)
        if path is None:
            given = ", ".join(sorted(self.channels)) or "none"
            raise ClientError(f"Missing required channel '{name}'; channels given: {given}.")
        return path

    def settings_of(self, name: str) -> ChannelSettings:
        return self.settings.get(name, ChannelSettings())


def read_input_config(config: Mapping[str, Any]) -> dict[str, ChannelSettings]:
    """The content of `inputdataconfig.json`, by channel name.

    Understands `ContentType`, `TrainingInputMode` (File, FastFile, Pipe), and of our own `AttributeNames` (a list) and
    `LocalRoots` (URI prefix to directory); other keys, such as `RecordWrapperType`, say nothing that is not seen from
    the data.

    Raises:
        ClientError: not of that form; names channel and key.
    """
    settings = {}
    for name, given in config.items():
        if not isinstance(given, Mapping):
            raise ClientError(f"Input configuration, channel '{name}': expected an object, found {given!r:.80}.")
        mode = given.get("TrainingInputMode") or "File"
        if mode not in _MODES:
            raise ClientError(
                f"Input configuration, channel '{name}': TrainingInputMode is {mode!r:.40}; "
                f"expected one of {', '.join(_MODES)}."
            )
        attributes, roots = given.get("AttributeNames") or [], given.get("LocalRoots") or {}
        if not (isinstance(attributes, list) and all(isinstance(each, str) for each in attributes)):
            raise ClientError(f"Input configuration, channel '{name}': AttributeNames must be a list of texts.")
        if not (isinstance(roots, Mapping) and all(isinstance(each, str) for each in roots.values())):
            raise ClientError(f"Input configuration, channel '{name}': LocalRoots must map prefixes to directories.")
        settings[name] = ChannelSettings(
            content_type=str(given.get("ContentType") or ""),
            pipe=_MODES[mode],
            attribute_names=tuple(attributes),
            local_roots=dict(roots),
        )
    return settings
