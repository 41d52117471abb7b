"""The three channels of Seq2seq, of texts."""

from __future__ import annotations

import shutil
from pathlib import Path

from formats.tokenize import tokenize

__all__ = ["write_channels"]

_FILES = {"train": ("train.rec",), "validation": ("val.rec",), "vocab": ("vocab.src.json", "vocab.trg.json")}


def write_channels(
    directory: Path, train: tuple[Path, Path], validation: tuple[Path, Path], num_subwords: int | None = None
) -> dict[str, Path]:
    """Tokenize texts, source and target each, and return the directory of each channel; what is there already is kept.

    Args:
        directory: of the channels, and of `subwords.model` where there is one.
        train: files of one sentence a line.
        validation: the same.
        num_subwords: learn so many parts of words from plain text; None: tokens stand between blanks.
    """
    channels = {name: directory / name for name in _FILES}
    if (directory / "done").exists():
        return channels
    tokenize(
        train_source=train[0],
        train_target=train[1],
        val_source=validation[0],
        val_target=validation[1],
        output_dir=directory,
        num_subwords=num_subwords,
    )
    for name, files in _FILES.items():
        channels[name].mkdir(exist_ok=True)
        for file in files:
            shutil.move(directory / file, channels[name] / file)
    (directory / "done").touch()
    return channels
