"""Runs of another shape: the training container, and two processes that train one model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trainers.seq2seq.test_train import TINY, write_task
from trainers.container import run_container


def test_the_container_takes_the_originals_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "input" / "config"
    config.mkdir(parents=True)
    values = {name: str(value) for name, value in TINY.items()} | {"max_num_batches": "20", "seed": "1"}
    (config / "hyperparameters.json").write_text(json.dumps(values))
    file = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}  # no content type, as in the notebook
    (config / "inputdataconfig.json").write_text(json.dumps(dict.fromkeys(("train", "validation", "vocab"), file)))
    write_task(tmp_path / "input" / "data")

    assert run_container("seq2seq", tmp_path) == 0
    names = {each.name for each in (tmp_path / "model").iterdir()}
    assert names == {"model.pt", "model.json", "hyperparams.json", "vocab.src.json", "vocab.trg.json"}
    assert "validation perplexity <loss>=" in capsys.readouterr().err


def test_a_users_mistake_is_in_the_failure_file(tmp_path: Path) -> None:
    (tmp_path / "input" / "config").mkdir(parents=True)
    (tmp_path / "input" / "config" / "hyperparameters.json").write_text('{"run_num_hidden": "64"}')
    write_task(tmp_path / "input" / "data")

    assert run_container("seq2seq", tmp_path) == 1
    failure = (tmp_path / "output" / "failure").read_text()
    assert failure.startswith("ClientError: Additional hyperparameters are not allowed")
    assert "did you mean 'rnn_num_hidden'?" in failure


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    root = write_task(tmp_path, sizes=(101, 30))
    # 101 = 5 batches of 20 and one pair alone, which one process of two has no part in
    settings = TINY | {"optimizer_type": "sgd", "learning_rate": 0.1, "max_num_batches": 18,
                       "checkpoint_frequency_num_batches": 6, "bleu_sample_size": 5}  # fmt: skip
    asked = [f"--set={name}={value}" for name, value in settings.items()]
    channels = [f"--channel={name}={root / name}" for name in ("train", "validation", "vocab")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    found = []
    for number, start in enumerate(([sys.executable, "-m"], torchrun)):
        output = tmp_path / f"out-{number}"
        command = [*start, "penstock", "train", "seq2seq", *channels, *asked, "--output", str(output)]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        found.append([(row["train:perplexity"], row["validation:perplexity"]) for row in rows])

    assert len(found[0]) == 3
    for one, two in zip(*found, strict=True):
        assert two == pytest.approx(one, rel=1e-4)
