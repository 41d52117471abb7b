"""Train word vectors or a text classifier: what is read straight down here is what happens."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from trainers.blazingtext import tokens
from trainers.blazingtext.classifier import Best, Classifier
from trainers.blazingtext.data import (
    Lines,
    WordList,
    read_corpus,
)
from trainers.blazingtext.evaluation import SETS, agreement, find_sets
from trainers.blazingtext.hyperparameters import Hyperparameters
from trainers.blazingtext.model import Embedding, write_binary, write_text
from trainers.blazingtext.progress import Meter
from trainers.blazingtext.resume import Resume, identity_of, sigterm_noted
from trainers.blazingtext.word_vectors import WordVectors
from trainers.checkpoints import write_aside
from trainers.hyperparameter_schema import parse, plain_values
from trainers.job import ClientError, Job
from trainers.pipes import feeding
from trainers.progress import log

if TYPE_CHECKING:
    import torch

__all__ = ["train"]

_MEETINGS_PER_EPOCH = 20


def train(job: Job, bar: Progress | None = None) -> Path:
    """Returns `job.model`: `vectors.txt` and `vectors.bin`, or `model.bin`, and `model.json`.

    Raises:
        ClientError: a hyperparameter, a channel or a record is wrong.
    """
    wanted = parse(Hyperparameters, job.hyperparameters)
    _announce(wanted)
    if wanted.early_stopping and "validation" not in job.channels:
        raise ClientError("hyperparameter early_stopping: True needs the channel 'validation', which is not given.")
    with _processes(wanted) as world, feeding(job) as fed, sigterm_noted() as stopped:
        device = _device(wanted, world)
        if wanted.mode == "supervised":
            _train_classifier(fed, wanted, bar, device, stopped)
        else:
            _train_vectors(fed, wanted, bar, world, device, stopped)
    return job.model


# ---- word vectors ------------------------------------------------------------------------------------------------


def _train_vectors(
    job: Job,
    wanted: Hyperparameters,
    bar: Progress | None,
    world: Any,
    device: torch.device | None,
    stopped: Callable[[], bool],
) -> None:
    began = time.perf_counter()
    vocabulary, ids = read_corpus(job, "train")
    words = WordList.of(vocabulary, wanted.min_count, with_labels=False)
    ids = ids[: tokens.renumber(ids, words.numbers)]
    del vocabulary
    log.info("Number of words:  %d", len(words.words))
    learner = WordVectors(wanted, ids, words, device)
    resume = Resume(job.checkpoints, identity_of(wanted, ids), learner.embedding)
    meter = Meter(bar, total=len(ids) * wanted.epochs, rate=wanted.learning_rate, began=began)
    first_epoch, _ = resume.begin()
    meter.start(first_epoch * len(ids))
    rank, size = (world.rank, world.size) if world else (0, 1)
    bounds = np.linspace(len(ids) * rank // size, len(ids) * (rank + 1) // size,
                         _MEETINGS_PER_EPOCH + 1 if size > 1 else 2).astype(int)  # fmt: skip
    for epoch in range(first_epoch, wanted.epochs):
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            learner.train_part(epoch, start, stop, meter.tell)
            _average(learner.embedding, world)
        meter.epoch_ended(epoch, (epoch + 1) * len(ids))
        stop = world.any(stopped()) if world else stopped()
        if rank == 0 and epoch + 1 < wanted.epochs:
            resume.keep(epoch + 1, now=stop)
        if stop:
            log.info("Stopped by SIGTERM; the same job started again resumes after epoch %d", epoch + 1)
            break
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


def _average(embedding: Embedding, world: Any) -> None:
    """Several machines go on with the mean of what each has learned."""
    if world is None or world.size == 1:
        return
    import torch  # noqa: PLC0415  one process alone needs none

    for matrix in (embedding.inputs, embedding.outputs):
        summed = world.sum(torch.from_numpy(matrix))
        summed /= world.size


# ---- classification ----------------------------------------------------------------------------------------------


def _train_classifier(
    job: Job, wanted: Hyperparameters, bar: Progress | None, device: torch.device | None, stopped: Callable[[], bool]
) -> None:
    began = time.perf_counter()
    vocabulary, ids = read_corpus(job, "train")
    learner = Classifier(wanted, vocabulary, ids, device)
    validation = learner.number(job, "validation", vocabulary) if "validation" in job.channels else None
    if validation is not None and not len(validation.labels):
        raise ClientError("Channel 'validation': no line has a label that channel 'train' has.")
    log.info("Number of words:  %d", len(learner.words.words))
    resume = Resume(job.checkpoints, identity_of(wanted, ids), learner.embedding)
    words_per_line = len(ids) / max(len(learner.lines), 1)
    meter = Meter(
        bar, total=len(learner.lines) * wanted.epochs, rate=wanted.learning_rate, began=began, words=words_per_line
    )
    first_epoch, kept = resume.begin()
    meter.start(first_epoch * len(learner.lines))
    best = Best.of(wanted, kept)
    for epoch in range(first_epoch, wanted.epochs):
        learner.train_epoch(epoch, meter.tell)
        meter.epoch_ended(epoch, (epoch + 1) * len(learner.lines))
        measured = wanted.early_stopping and epoch + 1 >= min(wanted.min_epochs, wanted.epochs)
        if measured and validation is not None and best.observe(learner, validation, epoch):
            log.info("Reached early stopping after %d epochs without improvement.", wanted.patience)
            break
        if epoch + 1 < wanted.epochs:
            resume.keep(epoch + 1, best.arrays(), now=stopped())
        if stopped():
            log.info("Stopped by SIGTERM; the same job started again resumes after epoch %d", epoch + 1)
            break
    best.give_to(learner)
    _check_finite(learner.embedding)
    meter.finish("Training finished.")
    _write_classifier(job, wanted, learner, validation, meter)


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
    num_processes, num_here = (int(os.environ.get(name, "1")) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    if wanted.mode == "supervised" and num_processes > 1:
        raise ClientError("hyperparameter mode: supervised trains on one machine with at most one GPU.")
    if wanted.mode != "batch_skipgram" and num_processes > num_here:
        raise ClientError(f"hyperparameter mode: {wanted.mode} trains on one machine; several need batch_skipgram.")
    from trainers.distributed import joined  # noqa: PLC0415

    return joined()


def _device(wanted: Hyperparameters, world: Any) -> torch.device | None:
    """The GPU that this process trains on; None: the compiled kernels, on the CPU."""
    if wanted.mode != "batch_skipgram" and _may_have_gpu():
        import torch  # noqa: PLC0415  its import takes longer than small trainings do

        if torch.cuda.is_available():
            return torch.device("cuda", world.local_rank if world else 0)
    if world and world.size > 1 and wanted.mode != "batch_skipgram":
        raise ClientError(f"hyperparameter mode: {wanted.mode} needs a GPU for each process; found none.")
    return None


def _may_have_gpu() -> bool:
    """Whether a driver is there: of NVIDIA, under WSL, of AMD."""
    return any(Path(file).exists() for file in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


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
