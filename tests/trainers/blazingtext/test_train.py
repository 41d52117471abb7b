"""Training small texts: what is learned, what is written, what is said, what is refused."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numba import njit
from numpy.typing import NDArray

from exporters.export import export
from formats import fasttext_model
from formats.envelope import Prediction
from formats.fasttext_units import hash_of, subwords_of
from handlers.algorithms import load_handler
from handlers.graph import Runtime
from model_store.store import Store
from trainers.blazingtext import kernels, tokens, vectors
from trainers.blazingtext.evaluation import spearman
from trainers.blazingtext.hyperparameters import Hyperparameters
from trainers.hyperparameter_schema import parse
from trainers.job import ChannelSettings, ClientError
from trainers.run import train

dot: Any = vectors.dot  # its type is that of the function that numba makes of it
exchange: Any = vectors.exchange

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")

TOPICS = {"sports": "team won match goal coach score league", "markets": "stocks fell oil price bank share trade"}


def labelled(directory: Path, count: int = 400, seed: int = 0) -> Path:
    """Sorted by label, as files often are."""
    random = np.random.default_rng(seed)
    directory.mkdir(parents=True)
    lines = [
        f"__label__{topic} {' '.join(random.choice(words.split(), 5))} the\n"
        for topic, words in TOPICS.items()
        for _ in range(count // 2)
    ]
    (directory / "text").write_text("".join(lines))
    return directory


def corpus(directory: Path) -> Path:
    random = np.random.default_rng(1)
    directory.mkdir(parents=True)
    groups = ["king queen crown throne", "apple pear plum cherry", "saw hammer nail drill"]
    lines = [" ".join(random.choice(groups[random.integers(3)].split(), 8)) + " and\n" for _ in range(3000)]
    (directory / "text").write_text("".join(lines))
    return directory


CLASSIFIER = {"mode": "supervised", "min_count": "1", "buckets": "1000", "vector_dim": "10", "learning_rate": "0.5"}
VECTORS = {"vector_dim": "20", "evaluation": "false", "sampling_threshold": "0.01", "epochs": "5"}


def test_a_classifier_learns_whatever_the_order_of_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    channels = {"train": labelled(tmp_path / "a"), "validation": labelled(tmp_path / "b", 100, seed=9)}
    with caplog.at_level(logging.INFO, "penstock.train"):
        model = train("blazingtext", channels, CLASSIFIER, tmp_path / "out")

    assert json.loads((model / "model.json").read_text())["metrics"]["validation:accuracy"] > 0.95
    for line in ("#train_accuracy: ", "#validation_accuracy: ", "Number of train examples: 400", "Training finished."):
        assert line in caplog.text


def test_trained_exported_published_and_served(tmp_path: Path) -> None:
    model = train("blazingtext", {"train": labelled(tmp_path / "a")}, CLASSIFIER, tmp_path / "out")
    published = Store(tmp_path / "store").publish(export(model, tmp_path / "bundle"), name="topics")
    handler = load_handler(published, Runtime())
    body = b'{"instances": ["oil stocks fell", "coach won match"]}'

    (outcome,) = handler.predict([Prediction("topics", "1", body, "application/json", "")])

    assert [each["label"] for each in json.loads(outcome.body)] == [["__label__markets"], ["__label__sports"]]


@pytest.mark.parametrize(
    ("mode", "subwords"),
    [("skipgram", False), ("skipgram", True), ("cbow", False), ("cbow", True), ("batch_skipgram", False)],
)
def test_words_that_share_neighbours_become_alike(tmp_path: Path, mode: str, subwords: bool) -> None:
    values = {**VECTORS, "mode": mode, "subwords": str(subwords), "buckets": "500"}
    model = train("blazingtext", {"train": corpus(tmp_path / "train")}, values, tmp_path / "out")

    lines = (model / "vectors.txt").read_text().splitlines()
    rows = {line.split()[0]: np.array(line.split()[1:], float) for line in lines[1:]}
    # less what all words have in common, which is most of it after so few sentences, and varies with the threads' luck
    own = {word: row - np.mean(list(rows.values()), axis=0) for word, row in rows.items()}
    unit = {word: row / np.linalg.norm(row) for word, row in own.items()}
    assert lines[0] == f"{len(rows)} 20"
    assert unit["king"] @ unit["queen"] > unit["king"] @ unit["apple"] + 0.8


def test_the_binary_holds_the_vectors_of_the_text(tmp_path: Path) -> None:
    values = {**VECTORS, "mode": "skipgram", "subwords": "True", "buckets": "500", "epochs": "1"}
    model = train("blazingtext", {"train": corpus(tmp_path / "train")}, values, tmp_path / "out")
    binary = fasttext_model.read(model / "vectors.bin")
    row = next(line for line in (model / "vectors.txt").read_text().splitlines() if line.startswith("king "))

    grams = [len(binary.words) + hash_of(gram) % 500 for gram in subwords_of(b"king", 3, 6)]
    vector = binary.input[[binary.words.index(b"king"), *grams]].mean(axis=0)
    assert np.array(row.split()[1:], float) == pytest.approx(vector, abs=1e-6)
    assert (np.diff(binary.word_counts) <= 0).all()


def test_early_stopping_keeps_the_best_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    channels = {"train": labelled(tmp_path / "a"), "validation": labelled(tmp_path / "b", 50, seed=3)}
    values = {**CLASSIFIER, "early_stopping": "True", "epochs": "60", "min_epochs": "2", "patience": "2"}
    with caplog.at_level(logging.INFO, "penstock.train"):
        train("blazingtext", channels, values, tmp_path / "out")

    assert "Validation accuracy improved! Storing best weights..." in caplog.text
    assert "End of epoch: 60" not in caplog.text


def test_fewer_epochs_than_min_epochs_are_fine(tmp_path: Path) -> None:
    """A published notebook sends epochs=1 with min_epochs=5."""
    channels = {"train": labelled(tmp_path / "a"), "validation": labelled(tmp_path / "b", 50)}
    values = {**CLASSIFIER, "early_stopping": "True", "epochs": "1", "min_epochs": "5"}

    assert (train("blazingtext", channels, values, tmp_path / "out") / "model.bin").is_file()


@pytest.mark.parametrize("pipe", [False, True])
def test_manifests_are_read_from_files_and_pipes(tmp_path: Path, pipe: bool) -> None:
    (tmp_path / "train").mkdir()
    rows = [{"source": "oil fell", "label": 1}, {"source": "team won", "label": [4, 7]}] * 20
    (tmp_path / "train" / "x.manifest").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"train": ChannelSettings(pipe=pipe, attribute_names=("source", "label"))}

    model = train("blazingtext", {"train": tmp_path / "train"}, CLASSIFIER, tmp_path / "out", settings)

    assert set(fasttext_model.read(model / "model.bin").labels) == {b"__label__1", b"__label__4", b"__label__7"}


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({}, "mode"),
        ({"mode": "skip"}, "skipgram"),
        ({"mode": "cbow", "vector_dim": "2049"}, "vector_dim"),
        ({"mode": "batch_skipgram", "batch_size": "33"}, "batch_size"),
        ({"mode": "cbow", "sampling_threshold": "1"}, "sampling_threshold"),
        ({"mode": "cbow", "learning_rate": "0"}, "learning_rate"),
        ({"mode": "batch_skipgram", "subwords": "True"}, "subwords"),
        ({"mode": "cbow", "windowsize": "3"}, "window_size"),
        ({"mode": "skipgram", "early_stopping": "True"}, "early_stopping"),
    ],
)
def test_hyperparameters_are_checked_before_data_are_read(values: dict[str, object], text: str) -> None:
    with pytest.raises(ClientError, match=text):
        parse(Hyperparameters, values)


def test_what_a_text_must_hold(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "x").write_text("no labels here\n")
    for values, text in (
        (CLASSIFIER, "__label__"),
        ({**VECTORS, "mode": "cbow", "min_count": "5"}, "vocabulary is empty"),
        ({**CLASSIFIER, "early_stopping": "True"}, "validation"),
    ):
        with pytest.raises(ClientError, match=text):
            train("blazingtext", {"train": tmp_path / "t"}, values, tmp_path / "out")


def test_products_and_steps_are_those_of_numpy() -> None:
    random = np.random.default_rng(0)
    room = vectors.aligned_rows(4, 20)
    stride = vectors.stride_of(20)
    rows = room.reshape(4, stride)
    rows[:, :20] = random.normal(size=(4, 20))
    before, gradient = rows.copy(), np.zeros(stride, np.float32)

    assert room.ctypes.data % 64 == 0
    score = _dot(room, stride)
    _exchange(room, gradient, stride)

    assert score == pytest.approx(before[0] @ before[1], rel=1e-5)
    assert gradient == pytest.approx(0.5 * before[0], rel=1e-5)
    assert rows[0] == pytest.approx(before[0] + 0.5 * before[1], rel=1e-5)


def test_one_softmax_step_follows_the_gradient() -> None:
    inputs, outputs = vectors.aligned_rows(2, 16), vectors.aligned_rows(2, 16)
    inputs[:] = np.random.default_rng(0).normal(size=32)
    outputs[:] = np.random.default_rng(1).normal(size=32)
    a, b = inputs.reshape(2, 16).astype(float), outputs.reshape(2, 16).astype(float)
    hidden = a.mean(axis=0)
    chance = np.exp(b @ hidden) / np.exp(b @ hidden).sum()
    error = np.array([1, 0]) - chance

    starts, ids, ends = np.array([0, 2]), np.array([0, 1], np.int32), np.array([0, 1])
    kernels.supervised(
        starts, ids, ends, np.array([0], np.int32), np.array([0]), 0, 1, inputs, outputs, 2, 16, 0.1, 0.0, 1
    )

    assert outputs.reshape(2, 16) == pytest.approx(b + 0.1 * error[:, None] * hidden, abs=1e-5)
    assert inputs.reshape(2, 16) == pytest.approx(a + 0.1 * (error @ b) / 2, abs=1e-5)


def test_compiled_hashes_are_those_of_the_serving_side() -> None:
    for word in ("foobar", "né", "日本語"):
        text, found = np.frombuffer(f"<{word}>".encode(), np.uint8), np.empty(99, np.uint32)
        count = tokens.subword_hashes(text, 0, len(text), 1, 4, found)

        assert found[:count].tolist() == [hash_of(gram) for gram in subwords_of(word.encode(), 1, 4)]


def test_spearman_shares_the_ranks_of_equal_values() -> None:
    """Worked by hand: ranks 1, 2.5, 2.5, 4 against 1, 3, 2, 4."""
    assert spearman(np.array([1.0, 2, 2, 3]), np.array([1.0, 3, 2, 4])) == pytest.approx(0.9486833)


def test_two_machines_learn_one_model_together(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from trainers.run import train; "
        "train('blazingtext', {'train': Path(sys.argv[1])}, {'mode': 'batch_skipgram', 'vector_dim': 20, "
        "'evaluation': False, 'sampling_threshold': 0.01}, Path(sys.argv[2]))"
    )
    script = tmp_path / "job.py"
    script.write_text(code)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29677",
        str(script),
    ]
    text = corpus(tmp_path / "train")
    root = str(Path(__file__).parents[3])
    subprocess.run(
        [*command, str(text), str(tmp_path / "out")], check=True, timeout=150, capture_output=True,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip

    model = fasttext_model.read(tmp_path / "out" / "model" / "vectors.bin")
    unit = model.input / np.linalg.norm(model.input, axis=1, keepdims=True)
    king, queen, apple = (unit[model.words.index(word)] for word in (b"king", b"queen", b"apple"))
    assert king @ queen > king @ apple + 0.3


def _dot(room: NDArray[np.float32], stride: int) -> float:
    compiled: Any = njit(lambda a, n: dot(a, 0, a, n, n))
    return float(compiled(room, stride))


def _exchange(room: NDArray[np.float32], gradient: NDArray[np.float32], stride: int) -> None:
    compiled: Any = njit(lambda a, g, n: exchange(np.float32(0.5), a, 0, a, n, g, n))
    compiled(room, gradient, stride)
