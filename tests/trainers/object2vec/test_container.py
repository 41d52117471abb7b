"""The training container with pairs: `/opt/ml` in, a model or a failure file out."""

from __future__ import annotations

import json
from pathlib import Path

from tests.trainers.object2vec.test_train import POOLED, made, write
from trainers.container import run_container

LINES = {"TrainingInputMode": "File", "S3DistributionType": "ShardedByS3Key", "ContentType": "application/jsonlines"}
HIDDEN = {"_kvstore": "device", "_num_gpus": "auto", "_num_kv_servers": "auto"}


def prefix_of(directory: Path, changed: dict[str, object]) -> Path:
    """`/opt/ml` as the platform lays it out, every value a string."""
    config = directory / "input" / "config"
    config.mkdir(parents=True)
    values = {name: str(value) for name, value in (POOLED | HIDDEN | changed).items()}
    (config / "hyperparameters.json").write_text(json.dumps(values))
    channels = ("train", "validation", "test")
    (config / "inputdataconfig.json").write_text(json.dumps(dict.fromkeys(channels, LINES)))
    for seed, name in enumerate(channels):
        write(directory / "input" / "data" / name, made(40, seed))
    return directory


def test_a_run_leaves_a_model_and_scores_the_test_channel(tmp_path: Path) -> None:
    prefix = prefix_of(tmp_path, {"epochs": 2, "tied_token_embedding_weight": "False"})

    assert run_container("object2vec", prefix) == 0
    description = json.loads((prefix / "model" / "model.json").read_text())
    assert {file.name for file in (prefix / "model").iterdir()} == {"model.pt", "model.json", "hyperparams.json"}
    assert {"validation:accuracy", "test:accuracy", "test:cross_entropy"} <= set(description["metrics"])
    assert not (prefix / "output" / "failure").exists()


def test_a_users_mistake_is_in_the_failure_file(tmp_path: Path) -> None:
    prefix = prefix_of(tmp_path, {"enc0_vocab_size": 5})

    assert run_container("object2vec", prefix) == 1
    failure = (prefix / "output" / "failure").read_text()
    assert failure.startswith("ClientError: Channel 'train': ")
    assert "Inconsistent vocab for in0 found" in failure
