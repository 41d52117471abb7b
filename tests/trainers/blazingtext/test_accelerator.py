"""What a GPU would compute, here on the CPU: the same steps as the compiled kernels, and as good vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.trainers.blazingtext.test_train import CLASSIFIER, VECTORS, corpus, labelled
from trainers.blazingtext import accelerator, kernels
from trainers.blazingtext import train as training
from trainers.blazingtext.data import Lines
from trainers.blazingtext.model import Embedding
from trainers.job import ClientError
from trainers.run import train

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_device", lambda _wanted, _world: CPU)


@pytest.mark.parametrize(
    ("mode", "subwords"), [("skipgram", False), ("skipgram", True), ("cbow", False), ("cbow", True)]
)
def test_words_that_share_neighbours_become_alike(tmp_path: Path, mode: str, subwords: bool) -> None:
    values = {**VECTORS, "mode": mode, "subwords": str(subwords), "buckets": "500"}
    model = train("blazingtext", {"train": corpus(tmp_path / "train")}, values, tmp_path / "out")

    lines = (model / "vectors.txt").read_text().splitlines()[1:]
    unit = {each[0]: np.array(each[1:], float) for each in map(str.split, lines)}
    unit = {word: row / np.linalg.norm(row) for word, row in unit.items()}
    assert unit["king"] @ unit["queen"] > unit["king"] @ unit["apple"] + 0.3


def test_a_classifier_learns(tmp_path: Path) -> None:
    channels = {"train": labelled(tmp_path / "a"), "validation": labelled(tmp_path / "b", 100, seed=9)}
    model = train("blazingtext", channels, CLASSIFIER, tmp_path / "out")

    assert json.loads((model / "model.json").read_text())["metrics"]["validation:accuracy"] > 0.95


def test_one_line_teaches_what_the_kernel_teaches() -> None:
    lines = Lines(np.array([0, 3]), np.array([0, 2, 2], np.int32), np.array([0, 1]), np.array([1], np.int32))
    ours, theirs = (Embedding.new(6, 3, 3, 2, seed=1) for _ in range(2))
    for each in (ours, theirs):
        each.output_rows[:] = np.random.default_rng(0).normal(size=(2, 6))

    order = np.array([0])
    accelerator.train_lines(lines, order, ours, 2, CPU, 0.1, 0.0, 1, lambda _: None)
    kernels.supervised(
        lines.starts, lines.features, lines.label_starts, lines.labels, order, 0, 1, theirs.inputs, theirs.outputs, 2,
        theirs.stride, 0.1, 0.0, 1,
    )  # fmt: skip

    assert ours.inputs == pytest.approx(theirs.inputs, abs=1e-6)
    assert ours.outputs == pytest.approx(theirs.outputs, abs=1e-6)


def test_neighbours_are_those_of_the_same_line_within_the_window() -> None:
    """Line ends (-1) part; words without a row (-2) are no distance."""
    how: Any = _how(window=1, keep=np.full(9, 1 << 24, np.float32))
    generator = torch.Generator().manual_seed(0)
    words, lines = accelerator._surviving(torch.tensor([1, 2, -2, 3, -1, 4, 5], dtype=torch.int32), how, generator)

    centres, neighbours = accelerator._pairs(words, lines, 1, generator)

    assert set(zip(centres.tolist(), neighbours.tolist(), strict=True)) == {
        (1, 2),
        (2, 1),
        (2, 3),
        (3, 2),
        (4, 5),
        (5, 4),
    }


def test_frequent_words_are_down_sampled_as_told() -> None:
    how: Any = _how(window=1, keep=np.array([1 << 23, 1 << 24], np.float32))
    words, _ = accelerator._surviving(torch.tensor([0, 1] * 5000), how, torch.Generator().manual_seed(0))

    counts = torch.bincount(words)
    assert counts[1] == 5000
    assert counts[0] == pytest.approx(2500, abs=150)  # four deviations


def test_a_row_that_all_examples_share_does_not_overshoot() -> None:
    matrix, rows = torch.zeros(2, 3), torch.zeros(1000, dtype=torch.long)
    accelerator._add(matrix, rows, torch.ones(1000, 3), 0.1)

    assert matrix[0].tolist() == pytest.approx([3.2] * 3, rel=1e-4)
    assert matrix[1].tolist() == [0, 0, 0]


def _how(window: int, keep: Any) -> accelerator.Neighbours:
    nothing = np.zeros(1, np.int64), np.empty(0, np.int32)
    return accelerator.Neighbours.of(
        CPU, keep, np.zeros(4, np.int32), *nothing, predicts_neighbours=True, num_negatives=2, window=window, end=-1
    )


def test_supervised_wants_one_process_and_the_others_a_gpu_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    for values, text in ((CLASSIFIER, "at most one GPU"), ({**VECTORS, "mode": "cbow"}, "several need batch_skipgram")):
        with pytest.raises(ClientError, match=text):
            train("blazingtext", {"train": tmp_path}, values, tmp_path / "out")
