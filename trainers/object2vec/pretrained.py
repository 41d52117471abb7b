"""Token embeddings made elsewhere: GloVe's text, word2vec's and fastText's (which begin with two counts)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from formats import vocabulary
from formats.errors import InvalidBody
from formats.source import open_file
from trainers.job import ClientError, Job
from trainers.object2vec.hyperparameters import SideSettings
from trainers.progress import log

__all__ = ["read_rows"]


def read_rows(
    job: Job, side: SideSettings, number: int, vocab_size: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of the table and what they are to hold; words that are not in the vocabulary are passed over.

    Args:
        job: of the auxiliary channel.
        side: its files' names.
        number: of the encoder, for error texts.
        vocab_size: ids are below it.

    Raises:
        ClientError: a file is missing, or not of its form; names file, line and what was expected.
    """
    auxiliary = job.channel("auxiliary")
    ids = _vocabulary(auxiliary / side.vocab_file, number, vocab_size)
    file, dim = auxiliary / side.pretrained_embedding_file, side.token_embedding_dim
    if not file.is_file():
        raise ClientError(f"hyperparameter enc{number}_pretrained_embedding_file: {file} is not there.")
    rows: list[int] = []
    vectors: list[NDArray[np.float32]] = []
    with open_file(file) as stream:
        for place, line in enumerate(stream, start=1):
            parts = line.rstrip().split(b" ")
            if place == 1 and len(parts) == 2 and all(part.isdigit() for part in parts):
                if int(parts[1]) != dim:
                    raise ClientError(_wrong_length(file, place, int(parts[1]), number, dim))
                continue
            if len(parts) <= dim:
                raise ClientError(_wrong_length(file, place, len(parts) - 1, number, dim))
            # a few words of published files hold spaces themselves
            row = ids.get(b" ".join(parts[:-dim]).decode("utf-8", "replace"))
            if row is not None:
                vectors.append(_numbers(file, place, parts[-dim:]))
                rows.append(row)
    log.info("%s: vectors for %d of the vocabulary's %d words", file.name, len(rows), len(ids))
    if not rows:
        raise ClientError(f"{file} holds no word of {side.vocab_file}.")
    return np.array(rows, np.int64), np.stack(vectors)


def _numbers(file: Path, place: int, parts: list[bytes]) -> NDArray[np.float32]:
    try:
        found = np.array(parts, dtype=np.bytes_).astype(np.float32)
    except ValueError as error:
        raise ClientError(f"{file}, line {place}: expected a word and numbers: {error}") from error
    if not np.isfinite(found).all():
        raise ClientError(f"{file}, line {place}: holds NaN or infinity.")
    return found


def _wrong_length(file: Path, place: int, found: int, number: int, dim: int) -> str:
    return f"{file}, line {place}: vectors of {found} numbers; enc{number}_token_embedding_dim is {dim}."


def _vocabulary(file: Path, number: int, vocab_size: int) -> dict[str, int]:
    try:
        ids = dict(vocabulary.read(file, specials=False))
    except FileNotFoundError as error:
        raise ClientError(f"hyperparameter enc{number}_vocab_file: {file} is not there.") from error
    except InvalidBody as error:
        raise ClientError(f"{file}: {error}") from error
    highest = max(ids.values(), default=0)
    if highest >= vocab_size:
        raise ClientError(f"{file}: id {highest} is not less than enc{number}_vocab_size={vocab_size}.")
    return ids
