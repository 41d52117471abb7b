"""Labelled lines, the classifier that is learned from them, and the best that it has been."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trainers.blazingtext import kernels
from trainers.blazingtext.data import Ids, Lines, Vocabulary, WordList, blocks_of, number_lines
from trainers.blazingtext.hyperparameters import Hyperparameters
from trainers.blazingtext.model import Embedding
from trainers.blazingtext.resume import Arrays
from trainers.blazingtext.threads import num_threads, on_all_cores, seed_of
from trainers.early_stopping import EarlyStopping
from trainers.job import ClientError, Job
from trainers.progress import log

if TYPE_CHECKING:
    import torch

__all__ = ["Best", "Classifier"]

_LINES_PER_SLICE = 1_000
_STRICTLY_BETTER = 1e-9


class Classifier:
    """Labelled lines and what is learned from them."""

    def __init__(
        self, wanted: Hyperparameters, vocabulary: Vocabulary, ids: Ids, device: torch.device | None = None
    ) -> None:
        self._wanted, self._device = wanted, device
        self.words = WordList.of(vocabulary, wanted.min_count, with_labels=True)
        if not self.words.labels:
            raise ClientError("Channel 'train': no line has a token that starts with '__label__'.")
        self._rows = np.zeros(wanted.buckets if wanted.word_ngrams > 1 else 1, np.int32)
        num_words = len(self.words.words)
        self.lines, num_rows = self._number(ids, vocabulary.hashes[ids], num_words, grow=True)
        num_labels = len(self.words.labels)
        self.embedding = Embedding.new(wanted.vector_dim, num_words, num_rows, num_labels, wanted.seed)

    def number(self, job: Job, channel: str, vocabulary: Vocabulary) -> Lines:
        """Another channel's lines; what training did not see is left out."""
        found = [vocabulary.look_up(block) for block in blocks_of(job, channel)]
        if not found:
            raise ClientError(f"Channel '{channel}' holds no text.")
        ids, hashes = (np.concatenate([each[i] for each in found]) for i in (0, 1))
        lines, _ = self._number(ids.astype(np.int32), hashes.astype(np.uint32), 0, grow=False)
        return lines

    def _number(self, ids: Ids, hashes: NDArray[np.uint32], num_rows: int, *, grow: bool) -> tuple[Lines, int]:
        return number_lines(
            ids, hashes, self.words, self._rows, num_rows, word_ngrams=self._wanted.word_ngrams, grow=grow
        )

    def train_epoch(self, epoch: int, tell: Callable[[int], None]) -> None:
        wanted, lines, each = self._wanted, self.lines, self.embedding
        fall = wanted.learning_rate / (len(lines) * wanted.epochs)
        num_labels = len(self.words.labels)
        # files are often sorted by label, and a long run of one class makes the other classes forgotten
        order = np.random.default_rng((wanted.seed, epoch)).permutation(len(lines))
        if self._device is not None:
            from trainers.blazingtext import accelerator  # noqa: PLC0415  torch, which the kernels do without

            accelerator.train_lines(
                lines, order, each, num_labels, self._device, wanted.learning_rate - fall * epoch * len(lines), fall,
                seed_of(wanted.seed, epoch), lambda at: tell(epoch * len(lines) + at),
            )  # fmt: skip
            return

        def work(first: int, last: int) -> None:
            done = epoch * len(lines) + first
            kernels.supervised(
                lines.starts, lines.features, lines.label_starts, lines.labels, order, first, last, each.inputs,
                each.outputs, num_labels, each.stride, wanted.learning_rate - fall * done, fall,
                seed_of(wanted.seed, done),
            )  # fmt: skip

        size = max(100, min(_LINES_PER_SLICE, -(-len(lines) // (2 * num_threads()))))
        on_all_cores(work, len(lines), size, lambda at: tell(epoch * len(lines) + at))

    def accuracy(self, lines: Lines) -> tuple[float, int]:
        """How often the best class is among a line's labels, and of how many lines with known labels."""
        each, num_labels = self.embedding, len(self.words.labels)
        best = np.empty(len(lines), np.int32)

        def work(first: int, last: int) -> None:
            kernels.predict_best(
                lines.starts, lines.features, first, last, each.inputs, each.outputs, num_labels, each.stride, best
            )

        on_all_cores(work, len(lines), _LINES_PER_SLICE, lambda _: None)
        counts = np.diff(lines.label_starts)
        hits = lines.labels == np.repeat(best, counts)
        right = np.bincount(np.repeat(np.arange(len(lines)), counts), hits, len(lines)) > 0
        num_examples = int(np.count_nonzero(counts))
        return (float(right[counts > 0].mean()) if num_examples else 0.0), num_examples

    def by_bucket(self) -> tuple[Embedding, NDArray[np.int64]]:
        """The embedding with its n-grams in the order of their buckets, and those buckets."""
        each = self.embedding
        buckets = np.flatnonzero(self._rows)
        order = np.concatenate([np.arange(each.num_words), self._rows[buckets]])
        inputs = each.inputs.reshape(-1, each.stride)[order].ravel()
        return Embedding(each.dim, each.num_words, inputs, each.outputs), buckets


@dataclass(slots=True)
class Best:
    """The weights of the epoch with the best validation accuracy, where runs may stop early."""

    stopping: EarlyStopping
    epoch: int = -1
    accuracy: float = -1.0
    inputs: NDArray[np.float32] | None = None
    outputs: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, wanted: Hyperparameters, kept: Arrays) -> Best:
        """What `arrays` gave, or a beginning."""
        stopping = EarlyStopping(min_epochs=wanted.min_epochs, patience=wanted.patience, tolerance=_STRICTLY_BETTER)
        if "inputs" not in kept:
            return cls(stopping)
        stopping.best, accuracy = map(float, kept["accuracies"])
        stopping.epochs_without_improvement, epoch = map(int, kept["epochs"])
        return cls(stopping, epoch, accuracy, kept["inputs"], kept["outputs"])

    def arrays(self) -> Arrays:
        if self.inputs is None or self.outputs is None:
            return {}
        return {
            "accuracies": np.array([self.stopping.best, self.accuracy], float),
            "epochs": np.array([self.stopping.epochs_without_improvement, self.epoch]),
            "inputs": self.inputs,
            "outputs": self.outputs,
        }

    def observe(self, learner: Classifier, validation: Lines, epoch: int) -> bool:
        """Measure this epoch, keep its weights if they are the best, and say whether to stop."""
        log.info("Using %d threads for prediction!", num_threads())
        accuracy, _ = learner.accuracy(validation)
        log.info("Validation accuracy: %g", accuracy)
        if self.inputs is not None and accuracy <= self.accuracy:
            log.info("Validation accuracy has not improved since epoch %d.", self.epoch)
        else:
            log.info("Validation accuracy improved! Storing best weights...")
            self.epoch, self.accuracy = epoch, accuracy
            self.inputs, self.outputs = learner.embedding.inputs.copy(), learner.embedding.outputs.copy()
        return self.stopping.observe(accuracy, epoch + 1)

    def give_to(self, learner: Classifier) -> None:
        if self.inputs is not None:
            learner.embedding.inputs[:], learner.embedding.outputs[:] = self.inputs, self.outputs
