"""Channels of pairs: read into two long rows of token ids, checked, and cut into batches of like lengths."""

# N records, B pairs of a batch, T tokens

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats import token_pairs
from formats.errors import InvalidBody
from formats.source import list_files, open_file
from trainers.job import ClientError, Job
from trainers.object2vec.hyperparameters import Hyperparameters
from trainers.progress import log

__all__ = ["Drawn", "Pairs", "Tokens", "announce", "batches", "check", "correlations", "draw", "read_channel"]


@dataclass(frozen=True, slots=True)
class Tokens:
    """One side of all records."""

    ids: NDArray[np.int32]
    """Of all records, one after the other."""
    begins: NDArray[np.int64]
    """(N + 1,)."""

    def lengths(self, most: int) -> NDArray[np.int64]:
        """(N,) as far as encoders read."""
        return np.minimum(np.diff(self.begins), most)

    def padded(self, records: NDArray[np.int64], most: int) -> NDArray[np.int64]:
        """(B, T) ids of some records, at least one wide, -1 behind the end; T is at most `most`."""
        begin_B = self.begins[records]
        length_B = np.minimum(self.begins[records + 1] - begin_B, most)
        place_T = np.arange(max(1, int(length_B.max(initial=0))))
        there_BT = place_T < length_B[:, None]
        found = np.full(there_BT.shape, -1, np.int64)
        found[there_BT] = self.ids[(begin_B[:, None] + place_T)[there_BT]]
        return found


@dataclass(frozen=True, slots=True)
class Pairs:
    sides: tuple[Tokens, Tokens]
    labels: NDArray[np.float32]
    origins: list[tuple[str, int]]
    """Files and how many records came of each."""

    def __len__(self) -> int:
        return len(self.labels)

    def identity(self) -> str:
        digest = hashlib.sha256(self.labels.tobytes())
        for side in self.sides:
            digest.update(side.ids.tobytes() + side.begins.tobytes())
        return digest.hexdigest()

    def place(self, record: int) -> str:
        """File and record, counted from 1, for error texts."""
        for name, count in self.origins:
            if record < count:
                return f"{name}, record {record + 1}"
            record -= count
        raise IndexError(record)


def read_channel(job: Job, name: str) -> Pairs:
    """All pairs of all files in a channel's tree.

    Raises:
        ClientError: a file or a record is not what it should be; names it.
    """
    ids, begins, labels = (array("i"), array("i")), (array("q", [0]), array("q", [0])), array("f")
    origins = []
    for file in list_files(job.channel(name)):
        before = len(labels)
        try:
            with open_file(file) as stream:
                for pair in token_pairs.read(stream, file):
                    for side, tokens in enumerate((pair.in0, pair.in1)):
                        ids[side].extend(tokens or ())
                        begins[side].append(len(ids[side]))
                    labels.append(pair.label or 0.0)
        except InvalidBody as error:
            raise ClientError(f"Channel '{name}': {error}") from error
        origins.append((file, len(labels) - before))
    if not len(labels):
        raise ClientError(f"Channel '{name}' holds no pairs.")
    first, second = (
        Tokens(np.frombuffer(ids[side], np.int32) if ids[side] else np.zeros(0, np.int32),
               np.frombuffer(begins[side], np.int64))
        for side in (0, 1)
    )  # fmt: skip
    return Pairs((first, second), np.frombuffer(labels, np.float32), origins)


def announce(pairs: Pairs, name: str) -> None:
    highest = [int(side.ids.max(initial=-1)) for side in pairs.sides]
    log.info("Channel '%s': %d pairs; highest token ids: in0 %d, in1 %d", name, len(pairs), *highest)
    for number, side in enumerate(pairs.sides):
        empty = int((np.diff(side.begins) == 0).sum())
        if empty:
            log.warning("Channel '%s': in%d of %d pairs is empty; taken as one token of padding", name, number, empty)


def check(pairs: Pairs, wanted: Hyperparameters, name: str) -> None:
    """Raises ClientError for the first token id or label that the hyperparameters do not allow."""
    for number, (tokens, side) in enumerate(zip(pairs.sides, wanted.sides, strict=True)):
        size = side.vocab_size
        if size == "auto" or int(tokens.ids.max(initial=-1)) < size:
            continue
        at = int(np.flatnonzero(tokens.ids >= size)[0])
        record = int(np.searchsorted(tokens.begins, at, "right")) - 1
        text = (
            f"Channel '{name}': {pairs.place(record)}: Inconsistent vocab for in{number} found. "
            f'Vocab id "{tokens.ids[at]}" is not less than vocab_size={size}'
        )
        if number and wanted.enc1_network == "enc0":
            text += " (enc1_network is enc0, so enc0_vocab_size counts for in1 too)"
        raise ClientError(f"{text}; ids begin at 0, so the size is the highest id plus 1.")
    if wanted.output_layer == "softmax":
        label_N = pairs.labels
        wrong = np.flatnonzero((label_N != np.floor(label_N)) | (label_N < 0) | (label_N >= wanted.num_classes))
        if len(wrong):
            raise ClientError(
                f"Channel '{name}': {pairs.place(int(wrong[0]))}: 'label' is {label_N[wrong[0]]:g}, expected a class "
                f"from 0 to {wanted.num_classes - 1} (num_classes is {wanted.num_classes})."
            )


class Drawn(NamedTuple):
    """The pairs of one epoch: side 0 of one record beside side 1 of another, or of the same."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    labels: NDArray[np.float32]


def draw(pairs: Pairs, negative_sampling_rate: int, random: np.random.Generator) -> Drawn:
    """Every record, and for each that is positive so many wrong ones, in order; wrong ones have label 0."""
    everything = np.arange(len(pairs))
    if not negative_sampling_rate or len(pairs) < 2:
        return Drawn(everything, everything, pairs.labels)
    first = np.repeat(np.flatnonzero(pairs.labels != 0), negative_sampling_rate)
    # any record but the own one
    second = (first + random.integers(1, len(pairs), len(first))) % len(pairs)
    labels = np.concatenate([pairs.labels, np.zeros(len(first), np.float32)])
    return Drawn(np.concatenate([everything, first]), np.concatenate([everything, second]), labels)


def batches(
    lengths: NDArray[np.int64], size: int, bucket_width: int, random: np.random.Generator
) -> Iterator[NDArray[np.int64]]:
    """Every index once, in random batches of at most `size`.

    Args:
        lengths: (N,) how many tokens each has.
        size: of a batch.
        bucket_width: indices share a batch only when their lengths lie within the same so many tokens; 0: any may.
        random: decides.
    """
    order = random.permutation(len(lengths))
    if not bucket_width:
        yield from (order[start : start + size] for start in range(0, len(order), size))
        return
    bucket = np.maximum(lengths[order] - 1, 0) // bucket_width
    order = order[np.argsort(bucket, kind="stable")]
    edges = np.concatenate([[0], np.cumsum(np.bincount(bucket))])
    found = [
        order[start : min(start + size, stop)]
        for begin, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
        for start in range(begin, stop, size)
    ]
    for number in random.permutation(len(found)).tolist():
        yield found[number]


def correlations(value_N: NDArray[np.float64], label_N: NDArray[np.float64]) -> dict[str, float]:
    """Pearson's and Spearman's coefficient, ties ranked by their mean rank; 0 where either side is constant."""
    return {
        "pearson_correlation": _pearson(value_N, label_N),
        "spearman_correlation": _pearson(_ranks(value_N), _ranks(label_N)),
    }


def _pearson(a_N: NDArray[np.float64], b_N: NDArray[np.float64]) -> float:
    a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    scale = float(np.sqrt((a_N @ a_N) * (b_N @ b_N)))
    return float(a_N @ b_N) / scale if scale > 0 else 0.0


def _ranks(value_N: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place_N, counts = np.unique(value_N, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[place_N]
    return ranks
