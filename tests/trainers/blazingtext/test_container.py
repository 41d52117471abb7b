"""The training container with text: `/opt/ml` in, a model or a failure file out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.trainers.blazingtext.test_train import corpus, labelled
from trainers.container import run_container

FILE = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "ContentType": "text/plain"}


def prefix_of(directory: Path, values: dict[str, str], *channels: str) -> Path:
    (directory / "input" / "config").mkdir(parents=True)
    (directory / "input" / "config" / "hyperparameters.json").write_text(json.dumps(values))
    (directory / "input" / "config" / "inputdataconfig.json").write_text(json.dumps(dict.fromkeys(channels, FILE)))
    return directory


def test_a_classifier_and_word_vectors_leave_the_originals_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classifier = {"mode": "supervised", "min_count": "1", "buckets": "1000", "learning_rate": "0.5"}
    prefix = prefix_of(tmp_path / "a", classifier, "train", "validation")
    labelled(prefix / "input" / "data" / "train")
    labelled(prefix / "input" / "data" / "validation", 50, seed=3)
    assert run_container("blazingtext", prefix) == 0
    assert {file.name for file in (prefix / "model").iterdir()} == {"model.bin", "model.json"}
    assert "#validation_accuracy: " in capsys.readouterr().err

    prefix = prefix_of(tmp_path / "b", {"mode": "batch_skipgram", "vector_dim": "20", "epochs": "1"}, "train")
    corpus(prefix / "input" / "data" / "train")
    assert run_container("blazingtext", prefix) == 0
    assert {"vectors.txt", "vectors.bin"} <= {file.name for file in (prefix / "model").iterdir()}
    assert not (prefix / "output" / "failure").exists()


def test_a_users_mistake_is_in_the_failure_file(tmp_path: Path) -> None:
    prefix = prefix_of(tmp_path, {"mode": "supervised", "early_stopping": "True"}, "train")
    labelled(prefix / "input" / "data" / "train")

    assert run_container("blazingtext", prefix) == 1
    assert (
        (prefix / "output" / "failure")
        .read_text()
        .startswith("ClientError: hyperparameter early_stopping: True needs the channel 'validation'")
    )
