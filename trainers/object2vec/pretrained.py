"""Token embeddings made elsewhere: GloVe's text, that of word2vec and fastText (which begins with two counts), and
word2vec's binary form, whose name ends in `.bin`: the line of two counts, then word, blank, and float32 numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from formats import vocabulary
from formats.errors import InvalidBody
from formats.source import open_file
from trainers.job import ClientError, Job
from trainers.object2vec.hyperparameters import SideSettings
from trainers.progress import log

__all__ = ["read_rows"]

_LONGEST_WORD = 4096  # bytes


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
        read = _binary if ".bin" in (file.suffix, Path(file.stem).suffix) else _text
        for row, vector in read(stream, file, number, dim, ids):
            rows.append(row)
            vectors.append(vector)
    log.info("%s: vectors for %d of the vocabulary's %d words", file.name, len(rows), len(ids))
    if not rows:
        raise ClientError(f"{file} holds no word of {side.vocab_file}.")
    return np.array(rows, np.int64), np.stack(vectors)


_Found = Iterator[tuple[int, NDArray[np.float32]]]


def _text(stream: BinaryIO, file: Path, number: int, dim: int, ids: dict[str, int]) -> _Found:
    for place, line in enumerate(stream, start=1):
        parts = line.rstrip().split(b" ")
        if place == 1 and len(parts) == 2 and all(part.isdigit() for part in parts):
            if int(parts[1]) != dim:
                raise ClientError(_wrong_length(f"{file}, line {place}", int(parts[1]), number, dim))
            continue
        if len(parts) <= dim:
            raise ClientError(_wrong_length(f"{file}, line {place}", len(parts) - 1, number, dim))
        # a few words of published files hold spaces themselves
        row = ids.get(b" ".join(parts[:-dim]).decode("utf-8", "replace"))
        if row is not None:
            yield row, _numbers(file, place, parts[-dim:])


def _binary(stream: BinaryIO, file: Path, number: int, dim: int, ids: dict[str, int]) -> _Found:
    head = stream.readline(_LONGEST_WORD)
    counts = head.split()
    if len(counts) != 2 or not all(part.isdigit() for part in counts):
        raise ClientError(
            f"{file}: expected word2vec's binary form, which begins with a line of two counts, found {head[:20]!r}; "
            "fastText's own .bin files hold more than vectors: give the .vec file"
        )
    if int(counts[1]) != dim:
        raise ClientError(_wrong_length(str(file), int(counts[1]), number, dim))
    rest = b""
    for place in range(1, int(counts[0]) + 1):
        # word2vec ends vectors with a line's end, other writers with nothing
        rest = (rest + stream.read(_LONGEST_WORD + 4 * dim - len(rest))).lstrip(b"\n")
        word, _, after = rest.partition(b" ")
        if len(after) < 4 * dim:
            raise ClientError(f"{file}: ends, or loses its form, in vector {place} of the {int(counts[0])} it names.")
        row = ids.get(word.decode("utf-8", "replace"))
        if row is not None:
            vector = np.frombuffer(after[: 4 * dim], "<f4").astype(np.float32)
            if not np.isfinite(vector).all():
                raise ClientError(f"{file}, vector {place}: holds NaN or infinity.")
            yield row, vector
        rest = after[4 * dim :]


def _numbers(file: Path, place: int, parts: list[bytes]) -> NDArray[np.float32]:
    try:
        found = np.array(parts, dtype=np.bytes_).astype(np.float32)
    except ValueError as error:
        raise ClientError(f"{file}, line {place}: expected a word and numbers: {error}") from error
    if not np.isfinite(found).all():
        raise ClientError(f"{file}, line {place}: holds NaN or infinity.")
    return found


def _wrong_length(place: str, found: int, number: int, dim: int) -> str:
    return f"{place}: vectors of {found} numbers; enc{number}_token_embedding_dim is {dim}."


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
