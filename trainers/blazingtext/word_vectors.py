"""A corpus and the word vectors that are learned from it: skip-gram, CBOW, and skip-gram in batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainers.blazingtext import kernels
from trainers.blazingtext.data import Ids, WordList, char_ngrams
from trainers.blazingtext.hyperparameters import Hyperparameters
from trainers.blazingtext.model import Embedding, word_vectors
from trainers.blazingtext.threads import num_threads, on_all_cores, seed_of

if TYPE_CHECKING:
    import torch

__all__ = ["WordVectors"]

_WORDS_PER_SLICE = 50_000
_NEGATIVES = 1 << 22
_NEGATIVE_POWER = 0.75
_KEEP_ALL = 1 << 24


class WordVectors:
    """A corpus and the vectors that are learned from it."""

    def __init__(self, wanted: Hyperparameters, ids: Ids, words: WordList, device: torch.device | None = None) -> None:
        """On `device`, or by the compiled kernels."""
        self._wanted, self._ids, self._device = wanted, ids, device
        self.words = words
        self.unit_starts, self.units = np.zeros(1, np.int64), np.empty(0, np.int32)
        self.kept_buckets = np.empty(0, np.int64)
        if wanted.subwords:
            self.unit_starts, self.units, self.kept_buckets = char_ngrams(
                words.words, wanted.buckets, wanted.min_char, wanted.max_char
            )
        num_words = len(words.words)
        num_rows = num_words + len(self.kept_buckets)
        self.embedding = Embedding.new(wanted.vector_dim, num_words, num_rows, num_words, wanted.seed)
        self._keep = _shares_kept(words.word_counts, wanted.sampling_threshold)
        self._negatives = _negative_table(words, wanted.seed)
        self._end = words.words.index(b"</s>") if b"</s>" in words.words else kernels.LINE_END

    def train_part(self, epoch: int, start: int, stop: int, tell: Callable[[int], None]) -> None:
        """One pass over tokens[start:stop]; `tell` hears how many of the whole run's tokens are done."""
        wanted = self._wanted
        fall = wanted.learning_rate / (len(self._ids) * wanted.epochs)
        if self._device is not None:
            self._train_on(self._device, epoch, start, stop, fall, tell)
            return
        each: Embedding = self.embedding
        shared = (self._end, self._keep, each.inputs, each.outputs, each.stride)
        negatives = (self._negatives, wanted.negative_samples, wanted.window_size, kernels.SIGMOID)

        def work(first: int, last: int) -> None:
            done = epoch * len(self._ids) + start + first
            rate = wanted.learning_rate - fall * done
            seed = seed_of(wanted.seed, done)
            span = (self._ids, start + first, start + last)
            if wanted.mode == "batch_skipgram":
                kernels.batch_skipgram(*span, *shared, wanted.batch_size, *negatives, rate, fall, seed)
            else:
                kernel = kernels.skipgram if wanted.mode == "skipgram" else kernels.cbow
                kernel(*span, *shared, self.unit_starts, self.units, *negatives, rate, fall, seed)

        slice_size = max(1_000, min(_WORDS_PER_SLICE, -(-(stop - start) // (4 * num_threads()))))
        on_all_cores(work, stop - start, slice_size, lambda at: tell(epoch * len(self._ids) + start + at))

    def _train_on(
        self, device: torch.device, epoch: int, start: int, stop: int, fall: float, tell: Callable[[int], None]
    ) -> None:
        from trainers.blazingtext import accelerator  # noqa: PLC0415  torch, which the kernels do without

        wanted, done = self._wanted, epoch * len(self._ids) + start
        how = accelerator.Neighbours.of(
            device, self._keep, self._negatives, self.unit_starts, self.units, end=self._end,
            predicts_neighbours=wanted.mode == "skipgram", num_negatives=wanted.negative_samples,
            window=wanted.window_size,
        )  # fmt: skip
        accelerator.train_words(
            self._ids[start:stop], self.embedding, how, wanted.learning_rate - fall * done, fall,
            seed_of(wanted.seed, done), lambda at: tell(done + at),
        )  # fmt: skip

    def vectors(self) -> NDArray[np.float32]:
        return word_vectors(self.embedding, self.unit_starts, self.units)


def _shares_kept(counts: NDArray[np.int64], threshold: float) -> NDArray[np.float32]:
    """How many of 2**24 occurrences of each word are used (Mikolov's program: sqrt(t / f) + t / f)."""
    share = threshold / (counts / counts.sum())
    kept: NDArray[np.float32] = (np.minimum(np.sqrt(share) + share, 1) * _KEEP_ALL).astype(np.float32)
    return kept


def _negative_table(words: WordList, seed: int) -> Ids:
    """Words in shares of their counts to the power of 3/4; a power of two of them, for drawing by a mask."""
    size = min(_NEGATIVES, 1 << max(16, math.ceil(math.log2(len(words.words) * 64))))
    weights = words.word_counts.astype(np.float64) ** _NEGATIVE_POWER
    if b"</s>" in words.words and len(words.words) > 1:
        weights[words.words.index(b"</s>")] = 0
    bounds = np.cumsum(weights / weights.sum())
    places = np.searchsorted(bounds, (np.arange(size) + 0.5) / size).clip(max=len(weights) - 1)
    table = places.astype(np.int32)
    np.random.default_rng(seed).shuffle(table)
    return table
