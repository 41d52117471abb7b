"""Train word vectors or a text classifier: what is read straight down here is what happens."""

from __future__ import annotations

import json
import math
import os
import time
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from trainers.blazingtext import kernels, tokens
from trainers.blazingtext.data import (
    Ids,
    Lines,
    Vocabulary,
    WordList,
    blocks_of,
    char_ngrams,
    number_lines,
    read_corpus,
)
from trainers.blazingtext.evaluation import SETS, agreement, find_sets
from trainers.blazingtext.hyperparameters import Hyperparameters
from trainers.blazingtext.model import Embedding, word_vectors, write_binary, write_text
from trainers.blazingtext.progress import Meter
from trainers.blazingtext.resume import Resume, identity_of
from trainers.blazingtext.threads import num_threads, on_all_cores
from trainers.checkpoints import write_aside
from trainers.early_stopping import EarlyStopping
from trainers.hyperparameter_schema import parse, plain_values
from trainers.job import ClientError, Job
from trainers.pipes import feeding
from trainers.progress import log

__all__ = ["Classifier", "WordVectors", "train"]

_WORDS_PER_SLICE = 50_000
_LINES_PER_SLICE = 1_000
_NEGATIVES = 1 << 22
_NEGATIVE_POWER = 0.75
_MEETINGS_PER_EPOCH = 20
_KEEP_ALL = 1 << 24
_STRICTLY_BETTER = 1e-9


def train(job: Job, bar: Progress | None = None) -> Path:
    """Returns `job.model`: `vectors.txt` and `vectors.bin`, or `model.bin`, and `model.json`.

    Raises:
        ClientError: a hyperparameter, a channel or a record is wrong.
    """
    wanted = parse(Hyperparameters, job.hyperparameters)
    _announce(wanted)
    if wanted.early_stopping and "validation" not in job.channels:
        raise ClientError("hyperparameter early_stopping: True needs the channel 'validation', which is not given.")
    with _processes(wanted) as world, feeding(job) as fed:
        if wanted.mode == "supervised":
            _train_classifier(fed, wanted, bar)
        else:
            _train_vectors(fed, wanted, bar, world)
    return job.model


# ---- word vectors ------------------------------------------------------------------------------------------------


class WordVectors:
    """A corpus and the vectors that are learned from it."""

    def __init__(self, wanted: Hyperparameters, ids: Ids, words: WordList) -> None:
        self._wanted, self._ids = wanted, ids
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
        total = len(self._ids) * wanted.epochs
        fall = wanted.learning_rate / total
        step = 0.0 + fall
        each: Embedding = self.embedding
        shared = (self._end, self._keep, each.inputs, each.outputs, each.stride)
        negatives = (self._negatives, wanted.negative_samples, wanted.window_size, kernels.SIGMOID)

        def work(first: int, last: int) -> None:
            done = epoch * len(self._ids) + start + first
            rate = wanted.learning_rate - fall * done
            seed = _mixed(wanted.seed, done)
            span = (self._ids, start + first, start + last)
            if wanted.mode == "batch_skipgram":
                kernels.batch_skipgram(*span, *shared, wanted.batch_size, *negatives, rate, step, seed)
            else:
                kernel = kernels.skipgram if wanted.mode == "skipgram" else kernels.cbow
                kernel(*span, *shared, self.unit_starts, self.units, *negatives, rate, step, seed)

        slice_size = max(1_000, min(_WORDS_PER_SLICE, -(-(stop - start) // (4 * num_threads()))))
        on_all_cores(work, stop - start, slice_size, lambda at: tell(epoch * len(self._ids) + start + at))

    def vectors(self) -> NDArray[np.float32]:
        return word_vectors(self.embedding, self.unit_starts, self.units)


def _train_vectors(job: Job, wanted: Hyperparameters, bar: Progress | None, world: Any) -> None:
    began = time.perf_counter()
    vocabulary, ids = read_corpus(job, "train")
    words = WordList.of(vocabulary, wanted.min_count, with_labels=False)
    ids = ids[: tokens.renumber(ids, words.numbers)]
    del vocabulary
    log.info("Number of words:  %d", len(words.words))
    learner = WordVectors(wanted, ids, words)
    resume = Resume(job.checkpoints, identity_of(wanted, ids), learner.embedding)
    meter = Meter(bar, total=len(ids) * wanted.epochs, rate=wanted.learning_rate, began=began)
    first_epoch = resume.begin()
    meter.start(first_epoch * len(ids))
    rank, size = (world.rank, world.size) if world else (0, 1)
    bounds = np.linspace(len(ids) * rank // size, len(ids) * (rank + 1) // size,
                         _MEETINGS_PER_EPOCH + 1 if size > 1 else 2).astype(int)  # fmt: skip
    for epoch in range(first_epoch, wanted.epochs):
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            learner.train_part(epoch, start, stop, meter.tell)
            _average(learner.embedding, world)
        meter.epoch_ended(epoch, (epoch + 1) * len(ids))
        if rank == 0 and epoch + 1 < wanted.epochs:
            resume.keep(epoch + 1)
    _check_finite(learner.embedding)
    meter.finish("Training finished!")
    if rank == 0:
        _write_vectors(job, wanted, learner, meter)


def _write_vectors(job: Job, wanted: Hyperparameters, learner: WordVectors, meter: Meter) -> None:
    vectors = learner.vectors()
    write_text(job.model / "vectors.txt", learner.words.words, vectors)
    write_binary(job.model / "vectors.bin", wanted, learner.embedding, learner.words, learner.kept_buckets)
    metrics = meter.figures()
    if wanted.evaluation:
        metrics |= _evaluate_vectors(job, learner, vectors)
    _describe(job, wanted, metrics, "vectors.bin")


def _evaluate_vectors(job: Job, learner: WordVectors, vectors: NDArray[np.float32]) -> dict[str, float]:
    directory = find_sets(job)
    if directory is None:
        log.warning("evaluation=True: no WordSim-353 at hand; give it as channel 'evaluation', or set PENSTOCK_DATA")
        return {}
    log.info("Evaluating word embeddings....")
    log.info("Vectors read from: %s", job.model / "vectors.txt")
    rows = {word.decode("utf-8", "replace"): number for number, word in enumerate(learner.words.words)}
    report: dict[str, Any] = {name: agreement(directory / name, rows, vectors) for name in SETS}
    report["mean_rho"] = float(np.mean([report[name]["spearmans_rho"] for name in SETS]))
    log.info("%s", json.dumps(report))
    log.info("#mean_rho: %s", report["mean_rho"])
    text = json.dumps(report).encode()
    write_aside(job.model / "eval.json", lambda file: file.write(text))
    return {"train:mean_rho": report["mean_rho"]}


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


def _average(embedding: Embedding, world: Any) -> None:
    """Several machines go on with the mean of what each has learned."""
    if world is None or world.size == 1:
        return
    import torch  # noqa: PLC0415  one process alone needs none

    for matrix in (embedding.inputs, embedding.outputs):
        summed = world.sum(torch.from_numpy(matrix))
        summed /= world.size


# ---- classification ----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Best:
    epoch: int
    accuracy: float
    inputs: NDArray[np.float32]
    outputs: NDArray[np.float32]


class Classifier:
    """Labelled lines and what is learned from them."""

    def __init__(self, wanted: Hyperparameters, vocabulary: Vocabulary, ids: Ids) -> None:
        self._wanted = wanted
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

        def work(first: int, last: int) -> None:
            done = epoch * len(lines) + first
            kernels.supervised(
                lines.starts, lines.features, lines.label_starts, lines.labels, order, first, last, each.inputs,
                each.outputs, num_labels, each.stride, wanted.learning_rate - fall * done, fall,
                _mixed(wanted.seed, done),
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


def _train_classifier(job: Job, wanted: Hyperparameters, bar: Progress | None) -> None:
    began = time.perf_counter()
    vocabulary, ids = read_corpus(job, "train")
    learner = Classifier(wanted, vocabulary, ids)
    validation = learner.number(job, "validation", vocabulary) if "validation" in job.channels else None
    if validation is not None and not len(validation.labels):
        raise ClientError("Channel 'validation': no line has a label that channel 'train' has.")
    log.info("Number of words:  %d", len(learner.words.words))
    resume = Resume(job.checkpoints, identity_of(wanted, ids), learner.embedding)
    words_per_line = len(ids) / max(len(learner.lines), 1)
    meter = Meter(
        bar, total=len(learner.lines) * wanted.epochs, rate=wanted.learning_rate, began=began, words=words_per_line
    )
    first_epoch = resume.begin()
    meter.start(first_epoch * len(learner.lines))
    stopping = EarlyStopping(min_epochs=wanted.min_epochs, patience=wanted.patience, tolerance=_STRICTLY_BETTER)
    best: _Best | None = None
    for epoch in range(first_epoch, wanted.epochs):
        learner.train_epoch(epoch, meter.tell)
        meter.epoch_ended(epoch, (epoch + 1) * len(learner.lines))
        if wanted.early_stopping and validation is not None and epoch + 1 >= min(wanted.min_epochs, wanted.epochs):
            best = _better(learner, validation, epoch, best)
            if stopping.observe(learner.accuracy(validation)[0], epoch + 1):
                log.info("Reached early stopping after %d epochs without improvement.", wanted.patience)
                break
        if epoch + 1 < wanted.epochs and not wanted.early_stopping:
            resume.keep(epoch + 1)
    if best is not None:
        learner.embedding.inputs[:], learner.embedding.outputs[:] = best.inputs, best.outputs
    _check_finite(learner.embedding)
    meter.finish("Training finished.")
    _write_classifier(job, wanted, learner, validation, meter)


def _better(learner: Classifier, validation: Lines, epoch: int, best: _Best | None) -> _Best:
    log.info("Using %d threads for prediction!", num_threads())
    accuracy, _ = learner.accuracy(validation)
    log.info("Validation accuracy: %g", accuracy)
    if best is not None and accuracy <= best.accuracy:
        log.info("Validation accuracy has not improved since epoch %d.", best.epoch)
        return best
    log.info("Validation accuracy improved! Storing best weights...")
    each = learner.embedding
    return _Best(epoch, accuracy, each.inputs.copy(), each.outputs.copy())


def _write_classifier(
    job: Job, wanted: Hyperparameters, learner: Classifier, validation: Lines | None, meter: Meter
) -> None:
    metrics = meter.figures()
    for name, lines in (("train", learner.lines), ("validation", validation)):
        if lines is not None:
            metrics[f"{name}:accuracy"], num_examples = learner.accuracy(lines)
            log.info("#%s_accuracy: %s", name, round(metrics[f"{name}:accuracy"], 4))
            log.info("Number of %s examples: %d", name, num_examples)
    embedding, buckets = learner.by_bucket()
    write_binary(job.model / "model.bin", wanted, embedding, learner.words, buckets)
    _describe(job, wanted, metrics, "model.bin")


# ---- both --------------------------------------------------------------------------------------------------------


def _processes(wanted: Hyperparameters) -> Any:
    """The processes that torchrun started; alone, torch is not even imported, which costs more than small trainings."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return nullcontext()
    if wanted.mode != "batch_skipgram" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ClientError(f"hyperparameter mode: {wanted.mode} trains on one machine; several need batch_skipgram.")
    from trainers.distributed import joined  # noqa: PLC0415

    return joined()


def _announce(wanted: Hyperparameters) -> None:
    for name, value in plain_values(wanted).items():
        log.info("%s: %s", name, value)
    if wanted.mode == "batch_skipgram" and wanted.batch_size != 2 * wanted.window_size + 1:
        log.warning("batch_size is %d; 2 * window_size + 1 = %d is advised",
                    wanted.batch_size, 2 * wanted.window_size + 1)  # fmt: skip
    if wanted.vector_dim >= 1500:
        log.warning("vector_dim is %d: vectors of 1500 and more are slow and seldom better", wanted.vector_dim)


def _check_finite(embedding: Embedding) -> None:
    if not np.isfinite(embedding.outputs).all():
        raise ClientError("Training diverged: vectors are not finite; try a smaller learning_rate.")


def _mixed(seed: int, place: int) -> int:
    """A random state of its own for each slice, the same in each run."""
    return (zlib.crc32(f"{seed}:{place}".encode()) << 20) | (place & 0xFFFFF)


def _describe(job: Job, wanted: Hyperparameters, metrics: dict[str, float], file: str) -> None:
    metrics_line = json.dumps({"time": time.time(), **metrics}).encode() + b"\n"
    write_aside(job.output / "metrics.jsonl", lambda stream: stream.write(metrics_line))
    description = {
        "algorithm": job.algorithm,
        "hyperparameters": plain_values(wanted),
        "model": file,
        "metrics": metrics,
    }
    text = json.dumps(description, indent=2).encode() + b"\n"
    write_aside(job.model / "model.json", lambda stream: stream.write(text))  # last: it says that all is there
