"""What is learned: two matrices, rows padded for the kernels, and the words that the rows are of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from numpy.typing import NDArray

from formats import fasttext_model
from trainers.blazingtext.data import WordList
from trainers.blazingtext.hyperparameters import Hyperparameters
from trainers.blazingtext.kernels import randomise
from trainers.blazingtext.threads import on_all_cores
from trainers.blazingtext.vectors import aligned_rows, stride_of
from trainers.checkpoints import write_aside

__all__ = ["Embedding", "word_vectors", "write_binary", "write_text"]

Matrix = NDArray[np.float32]
_MASK = (1 << 63) - 1
_LOSSES = {"supervised": fasttext_model.SOFTMAX}
_MODELS = {"supervised": fasttext_model.SUPERVISED, "cbow": fasttext_model.CBOW}


@dataclass(frozen=True, slots=True)
class Embedding:
    """Flat matrices of `num_rows` and `num_outputs` rows; see `vectors.stride_of`."""

    dim: int
    num_words: int
    inputs: Matrix
    outputs: Matrix

    @classmethod
    def new(cls, dim: int, num_words: int, num_rows: int, num_outputs: int, seed: int) -> Embedding:
        """Inputs begin as small random vectors, outputs as zeros."""
        inputs, outputs = aligned_rows(num_rows, dim), aligned_rows(num_outputs, dim)
        stride = stride_of(dim)

        def work(first: int, last: int) -> None:
            randomise(inputs, stride, dim, first, last, (seed * 0x9E3779B9 + first) & _MASK)

        on_all_cores(work, num_rows, 20_000, lambda _: None)
        return cls(dim, num_words, inputs, outputs)

    @property
    def stride(self) -> int:
        return stride_of(self.dim)

    @property
    def input_rows(self) -> Matrix:
        """(rows, dim): a view."""
        return self.inputs.reshape(-1, self.stride)[:, : self.dim]

    @property
    def output_rows(self) -> Matrix:
        return self.outputs.reshape(-1, self.stride)[:, : self.dim]


def word_vectors(embedding: Embedding, starts: NDArray[np.int64], units: NDArray[np.int32]) -> Matrix:
    """(words, dim): the mean of each word's units, which is its own row where there are no subwords."""
    rows = embedding.input_rows
    if not len(units):
        return rows[: embedding.num_words]
    vectors = np.empty((embedding.num_words, embedding.dim), np.float32)
    for first in range(0, embedding.num_words, 4096):
        last = min(first + 4096, embedding.num_words)
        begins = starts[first:last]
        sums = np.add.reduceat(rows[units[begins[0] : starts[last]]], begins - begins[0], axis=0)
        vectors[first:last] = sums / np.diff(starts[first : last + 1])[:, None]
    return vectors


def write_text(file: Path, words: list[bytes], vectors: Matrix) -> None:
    """word2vec's text form: count and dimension, then one word a line, most frequent first."""
    head = b"%d %d\n" % vectors.shape
    lines = (
        word + b" " + orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].replace(b",", b" ") + b"\n"
        for word, row in zip(words, np.ascontiguousarray(vectors), strict=True)
    )
    write_aside(file, lambda stream: stream.writelines((head, *lines)))


def write_binary(
    file: Path, wanted: Hyperparameters, embedding: Embedding, words: WordList, kept_buckets: NDArray[np.int64]
) -> None:
    """The binary form of fastText.

    Args:
        file: to write.
        wanted: what was trained.
        embedding: rows of words, then of `kept_buckets`.
        words: of the rows.
        kept_buckets: (K,) ascending.
    """
    supervised = wanted.mode == "supervised"
    hashes = wanted.word_ngrams > 1 if supervised else wanted.subwords
    arguments = fasttext_model.Arguments(
        dim=wanted.vector_dim,
        ws=wanted.window_size,
        epoch=wanted.epochs,
        min_count=wanted.min_count,
        neg=wanted.negative_samples,
        word_ngrams=wanted.word_ngrams if supervised else 1,
        loss=_LOSSES.get(wanted.mode, fasttext_model.NEGATIVE),
        model=_MODELS.get(wanted.mode, fasttext_model.SKIPGRAM),
        bucket=wanted.buckets if hashes else 0,
        minn=wanted.min_char if wanted.subwords and not supervised else 0,
        maxn=wanted.max_char if wanted.subwords and not supervised else 0,
        t=wanted.sampling_threshold,
    )
    model = fasttext_model.Model(
        arguments=arguments,
        words=words.words,
        word_counts=words.word_counts,
        labels=words.labels,
        label_counts=words.label_counts,
        num_tokens=int(words.word_counts.sum() + words.label_counts.sum()),
        input=embedding.input_rows,
        output=embedding.output_rows,
        kept_buckets=kept_buckets,
    )
    write_aside(file, lambda stream: fasttext_model.write(stream, model))  # type: ignore[arg-type]
