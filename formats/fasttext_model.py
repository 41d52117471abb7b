"""fastText's binary models, versions 11 and 12: `model.bin`, `vectors.bin` and quantised `.ftz` files.

Sizes in a file are believed only as far as the file is long. Layout: BlazingText contract, section 5.1.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from formats.errors import InvalidBody

__all__ = [
    "CBOW",
    "HIERARCHICAL",
    "NEGATIVE",
    "ONE_VS_ALL",
    "SKIPGRAM",
    "SOFTMAX",
    "SUPERVISED",
    "Arguments",
    "Model",
    "read",
    "write",
]

MAGIC, VERSION = 793712314, 12
HIERARCHICAL, NEGATIVE, SOFTMAX, ONE_VS_ALL = 1, 2, 3, 4
CBOW, SKIPGRAM, SUPERVISED = 1, 2, 3
_ARGUMENTS = struct.Struct("<12id")
_DICTIONARY = struct.Struct("<3i2q")
_ENTRY = struct.Struct("<qb")
_SHAPE = struct.Struct("<2q")
_NUM_CENTROIDS = 256
_MAX_DIM = 1 << 16
_BUCKETS_AT_ONCE = 1 << 14
_DENSE = 0.05
Matrix = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """In the order of the file."""

    dim: int
    ws: int = 5
    epoch: int = 5
    min_count: int = 5
    neg: int = 5
    word_ngrams: int = 1
    loss: int = SOFTMAX
    model: int = SUPERVISED
    bucket: int = 0
    minn: int = 0
    maxn: int = 0
    lr_update_rate: int = 100
    t: float = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    arguments: Arguments
    words: list[bytes]
    """By row."""
    word_counts: NDArray[np.int64]
    labels: list[bytes]
    """By row of the output, with their prefix."""
    label_counts: NDArray[np.int64]
    num_tokens: int
    """Of the training text."""
    input: Matrix
    """(words + buckets, dim): vectors of words, then of hash buckets; read-only where it is the file itself."""
    output: Matrix
    """(labels, dim), or (words, dim) of word vectors."""
    pruned: NDArray[np.int32] | None = None
    """(kept, 2): bucket to row behind the words; other buckets are left out. None: bucket b is row words + b."""
    kept_buckets: NDArray[np.int64] | None = None
    """For writing: which buckets the rows behind the words are, ascending; the others are rows of zeros."""


def read(path: str | Path) -> Model:
    """Read a model; large matrices stay in the file until they are looked at.

    Raises:
        InvalidBody: not such a file, truncated, or sizes that contradict each other; names what and where.
    """
    with Path(path).open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:
            raise InvalidBody(f"{path}: empty, expected a fastText model") from error
        return _Reader(data, str(path)).model()


def write(file: BinaryIO, model: Model) -> None:
    """Write version 12, unquantised; rows of zeros become holes where the file system has them.

    Args:
        file: seekable, empty.
        model: `pruned` models cannot be written.

    Raises:
        ValueError: shapes do not fit, or a word holds a byte that the format has no room for.
    """
    arguments = model.arguments
    num_words = len(model.words)
    kept = np.arange(arguments.bucket) if model.kept_buckets is None else model.kept_buckets
    if model.pruned is not None or model.input.shape != (num_words + len(kept), arguments.dim):
        raise ValueError(f"input of shape {model.input.shape}, expected ({num_words + len(kept)}, {arguments.dim})")
    if any(b"\0" in word for word in (*model.words, *model.labels)):
        raise ValueError("a word holds a NUL byte, which ends words in this format")
    file.write(struct.pack("<2i", MAGIC, VERSION))
    file.write(_ARGUMENTS.pack(*(getattr(arguments, field.name) for field in fields(arguments))))
    num_entries = num_words + len(model.labels)
    file.write(_DICTIONARY.pack(num_entries, num_words, len(model.labels), model.num_tokens, -1))
    words, labels = (zip(model.words, model.word_counts.tolist(), strict=True),
                     zip(model.labels, model.label_counts.tolist(), strict=True))  # fmt: skip
    file.writelines(name + b"\0" + _ENTRY.pack(count, 0) for name, count in words)
    file.writelines(name + b"\0" + _ENTRY.pack(count, 1) for name, count in labels)
    file.write(b"\0" + _SHAPE.pack(num_words + arguments.bucket, arguments.dim))
    begin = file.tell()
    row = 4 * arguments.dim
    file.write(np.ascontiguousarray(model.input[:num_words], "<f4").tobytes())
    for start in range(0, arguments.bucket, _BUCKETS_AT_ONCE):
        first, last = np.searchsorted(kept, (start, start + _BUCKETS_AT_ONCE)).tolist()
        if first == last:
            continue
        # where rows lie close together, pages without any are rare, and a call for each run takes longer than zeros
        size = min(_BUCKETS_AT_ONCE, arguments.bucket - start)
        if last - first > size * _DENSE:
            block = np.zeros((size, arguments.dim), "<f4")
            block[kept[first:last] - start] = model.input[num_words + first : num_words + last]
            file.seek(begin + (num_words + start) * row)
            file.write(block.tobytes())
            continue
        for one, behind in _runs(kept[first:last]):
            file.seek(begin + (num_words + int(kept[first + one])) * row)
            file.write(
                np.ascontiguousarray(model.input[num_words + first + one : num_words + first + behind], "<f4").data
            )
    file.seek(begin + (num_words + arguments.bucket) * row)
    file.write(b"\0" + _SHAPE.pack(*model.output.shape))
    file.write(np.ascontiguousarray(model.output, "<f4").tobytes())


def _runs(numbers: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """First and one past the last place of each run of consecutive numbers."""
    if len(numbers):
        cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
        yield from zip([0, *cuts.tolist()], [*cuts.tolist(), len(numbers)], strict=True)


class _Reader:
    def __init__(self, data: mmap.mmap, name: str) -> None:
        self._data, self._name, self._at = data, name, 0

    def model(self) -> Model:
        if len(self._data) < 8 or struct.unpack_from("<i", self._data)[0] != MAGIC:
            raise self._fault("not a fastText model: it begins with another magic number")
        self._at = 4
        (version,) = self._unpack(struct.Struct("<i"), "version")
        if not 11 <= version <= VERSION:
            raise self._fault(f"version {version}, expected 11 or 12")
        arguments = self._arguments(version)
        words, word_counts, labels, label_counts, num_tokens, pruned = self._dictionary()
        quantised = self._flag("quantised input")
        matrix = self._quantised("input") if quantised else self._dense("input")
        num_rows = len(words) + (arguments.bucket if pruned is None else len(pruned))
        if matrix.shape != (num_rows, arguments.dim):
            raise self._fault(f"input is {matrix.shape}, expected ({num_rows}, {arguments.dim})")
        if pruned is not None and len(pruned) and not 0 <= pruned[:, 1].min() <= pruned[:, 1].max() < len(pruned):
            raise self._fault("a pruned bucket leads to a row that is not there")
        quantised_output = self._flag("quantised output") and quantised
        output = self._quantised("output") if quantised_output else self._dense("output")
        expected = len(labels) if arguments.model == SUPERVISED else len(words)
        if output.shape != (expected, arguments.dim):
            raise self._fault(f"output is {output.shape}, expected ({expected}, {arguments.dim})")
        return Model(
            arguments=arguments, words=words, word_counts=word_counts, labels=labels, label_counts=label_counts,
            num_tokens=num_tokens, input=matrix, output=output, pruned=pruned,
        )  # fmt: skip

    def _arguments(self, version: int) -> Arguments:
        values = self._unpack(_ARGUMENTS, "arguments")
        arguments = Arguments(**{f.name: v for f, v in zip(fields(Arguments), values, strict=True)})
        if version == 11 and arguments.model == SUPERVISED:
            arguments = Arguments(**{**{f.name: getattr(arguments, f.name) for f in fields(Arguments)}, "maxn": 0})
        if not 1 <= arguments.dim <= _MAX_DIM:
            raise self._fault(f"dim is {arguments.dim}, expected 1 to {_MAX_DIM}")
        for name, value, known in (("loss", arguments.loss, 4), ("model", arguments.model, 3)):
            if not 1 <= value <= known:
                raise self._fault(f"{name} is {value}, expected 1 to {known}")
        if arguments.bucket < 0 or arguments.word_ngrams < 0:
            raise self._fault(f"bucket is {arguments.bucket}, wordNgrams {arguments.word_ngrams}; expected 0 or more")
        if not 0 <= arguments.minn <= 1024 or not 0 <= arguments.maxn <= 1024:
            raise self._fault(f"minn is {arguments.minn}, maxn {arguments.maxn}; expected 0 to 1024")
        if not arguments.bucket and (arguments.maxn or arguments.word_ngrams > 1):
            raise self._fault("n-grams need at least one bucket; there is none")
        return arguments

    def _dictionary(
        self,
    ) -> tuple[list[bytes], NDArray[np.int64], list[bytes], NDArray[np.int64], int, NDArray[np.int32] | None]:
        size, num_words, num_labels, num_tokens, num_pruned = self._unpack(_DICTIONARY, "dictionary")
        room = (len(self._data) - self._at) // (1 + _ENTRY.size)
        if min(size, num_words, num_labels) < 0 or size != num_words + num_labels or size > room:
            raise self._fault(f"{size} entries, {num_words} words and {num_labels} labels cannot be in this file")
        names, counts = [], np.zeros(size, np.int64)
        for number in range(size):
            end = self._data.find(b"\0", self._at)
            if end < 0:
                raise self._fault(f"entry {number} of the dictionary has no end")
            names.append(self._data[self._at : end])
            self._at = end + 1
            counts[number], kind = self._unpack(_ENTRY, f"entry {number}")
            if kind != (number >= num_words):
                raise self._fault(f"entry {number} is of type {kind}; words come first, then labels")
        pruned = None
        if num_pruned >= 0:
            pruned = np.frombuffer(self._take(num_pruned * 8, "pruned buckets"), "<i4").reshape(-1, 2)
        words, labels = names[:num_words], names[num_words:]
        return words, counts[:num_words], labels, counts[num_words:], num_tokens, pruned

    def _dense(self, what: str) -> Matrix:
        rows, columns = self._unpack(_SHAPE, what)
        if rows < 0 or columns < 0:
            raise self._fault(f"{what} is {rows} x {columns}")
        begin = self._at
        self._skip(rows * columns * 4, what)
        return np.frombuffer(self._data, "<f4", rows * columns, begin).reshape(rows, columns)

    def _quantised(self, what: str) -> Matrix:
        """Product quantisation (Joulin et al. 2016, arXiv:1612.03651), undone."""
        normed = self._flag(f"norms of {what}")
        rows, columns = self._unpack(_SHAPE, what)
        (num_codes,) = self._unpack(struct.Struct("<i"), f"codes of {what}")
        codes = self._take(num_codes, f"codes of {what}")
        centroids, num_parts, part, last = self._quantiser(what)
        if rows < 0 or num_codes != rows * num_parts or columns != (num_parts - 1) * part + last:
            raise self._fault(f"{what} is {rows} x {columns}, which {num_codes} codes cannot make")
        code_RP = np.frombuffer(codes, np.uint8).reshape(rows, num_parts)
        matrix = np.empty((rows, columns), np.float32)
        for number in range(num_parts):
            width = last if number == num_parts - 1 else part
            begin = number * _NUM_CENTROIDS * part
            table = centroids[begin : begin + _NUM_CENTROIDS * width].reshape(_NUM_CENTROIDS, width)
            matrix[:, number * part : number * part + width] = table[code_RP[:, number]]
        if normed:
            norm_codes = np.frombuffer(self._take(rows, f"norms of {what}"), np.uint8)
            norms, *_ = self._quantiser(f"norms of {what}")
            if len(norms) != _NUM_CENTROIDS:
                raise self._fault(f"norms of {what} have {len(norms)} values, expected {_NUM_CENTROIDS}")
            with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused where it is used
                matrix *= norms[norm_codes][:, None]
        return matrix

    def _quantiser(self, what: str) -> tuple[Matrix, int, int, int]:
        dim, num_parts, part, last = self._unpack(struct.Struct("<4i"), f"quantiser of {what}")
        if not (1 <= num_parts <= dim <= _MAX_DIM and 1 <= last <= part <= dim) or (num_parts - 1) * part + last != dim:
            raise self._fault(f"quantiser of {what}: {dim} numbers in {num_parts} parts of {part}, the last of {last}")
        return np.frombuffer(self._take(dim * _NUM_CENTROIDS * 4, what), "<f4"), num_parts, part, last

    def _flag(self, what: str) -> bool:
        return self._take(1, what) != b"\0"

    def _unpack(self, form: struct.Struct, what: str) -> tuple[int, ...]:
        return form.unpack(self._take(form.size, what))

    def _take(self, size: int, what: str) -> bytes:
        begin = self._at
        self._skip(size, what)
        return self._data[begin : begin + size]

    def _skip(self, size: int, what: str) -> None:
        if size < 0 or size > len(self._data) - self._at:
            raise self._fault(f"{what} needs {size} bytes, {len(self._data) - self._at} are left: truncated?")
        self._at += size

    def _fault(self, text: str) -> InvalidBody:
        return InvalidBody(f"{self._name}, byte {self._at}: {text}")
