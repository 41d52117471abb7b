"""The training container's contract (hosting contract, section 1), with its files and its exit statuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.conftest import as_records
from trainers.container import read_job, run_container
from trainers.job import ClientError, Job

MakeJob = Callable[..., Job]
FILE = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated", "RecordWrapperType": "None"}


def prepared(prefix: Path, job: Job, config: dict[str, Any] | None = None, **changed: object) -> Path:
    """What the platform lays out under `prefix`."""
    (prefix / "input" / "config").mkdir(parents=True)
    values = {name: str(value) for name, value in (dict(job.hyperparameters) | changed).items()}
    settings = dict.fromkeys(job.channels, FILE) if config is None else config
    (prefix / "input" / "config" / "hyperparameters.json").write_text(json.dumps(values))
    (prefix / "input" / "config" / "inputdataconfig.json").write_text(json.dumps(settings))
    for name, path in job.channels.items():
        shutil.copytree(path, prefix / "input" / "data" / name)
    return prefix


def test_a_job_leaves_its_model_its_data_and_its_checkpoints(
    job: MakeJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = prepared(tmp_path / "ml", job(), checkpoint_frequency=1)

    assert run_container("image_classification", prefix) == 0
    assert {file.name for file in (prefix / "model").iterdir()} == {
        "model.pt", "model.json", "hyperparams.json", "image-classification-0001.pt", "image-classification-0002.pt",
    }  # fmt: skip
    assert {file.name for file in (prefix / "output" / "data").iterdir()} == {"metrics.jsonl", "evaluation.json"}
    assert (prefix / "checkpoints" / "last.pt").exists()
    assert not (prefix / "output" / "failure").exists()
    assert "Docker entrypoint called with argument(s): train" in capsys.readouterr().err


def test_records_come_by_their_content_type(job: MakeJob, tmp_path: Path, channels: dict[str, Path]) -> None:
    config = {name: FILE | {"ContentType": "application/x-recordio"} for name in channels}
    given = {name: as_records(path) for name, path in channels.items()}
    prefix = prepared(tmp_path / "ml", job("o", given), config)

    assert run_container("image_classification", prefix) == 0


def _unknown_name(prefix: Path) -> None:
    file = prefix / "input" / "config" / "hyperparameters.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"epoch": "3"}))


def _no_data(prefix: Path) -> None:
    shutil.rmtree(prefix / "input" / "data" / "train")


def _broken_config(prefix: Path) -> None:
    (prefix / "input" / "config" / "inputdataconfig.json").write_text("{")


def _foreign_host(prefix: Path) -> None:
    (prefix / "input" / "config" / "resourceconfig.json").write_text('{"current_host": "a", "hosts": ["b", "c"]}')


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_unknown_name, "ClientError: Additional hyperparameters are not allowed ('epoch' was unexpected)"),
        (_no_data, "ClientError: Channel 'train': "),
        (_broken_config, "ClientError: "),
        (_foreign_host, "ClientError: resourceconfig.json: current_host is 'a', which is not one of hosts"),
    ],
)
def test_a_users_mistake_is_a_client_error_in_the_failure_file(
    job: MakeJob, tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    prefix = prepared(tmp_path / "ml", job())
    spoil(prefix)

    assert run_container("image_classification", prefix) == 1
    text = (prefix / "output" / "failure").read_text()
    assert text.startswith(told)
    assert len(text) <= 1024


def test_what_is_nobodys_mistake_is_an_algorithm_error(job: MakeJob, tmp_path: Path) -> None:
    prefix = prepared(tmp_path / "ml", job())
    (prefix / "model").write_text("a file where a directory must be")

    assert run_container("image_classification", prefix) == 1
    assert (prefix / "output" / "failure").read_text().startswith("AlgorithmError: FileExistsError: ")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"train": {"TrainingInputMode": "Fast"}}, "TrainingInputMode is 'Fast'; expected one of File, FastFile, Pipe"),
        ({"train": 3}, "channel 'train': expected an object, found 3"),
        ({"train": {"AttributeNames": "class"}}, "AttributeNames must be a list of texts"),
        ({"train": {"LocalRoots": {"s3://b": 3}}}, "LocalRoots must map prefixes to directories"),
    ],
)
def test_a_wrong_input_configuration_is_told(job: MakeJob, tmp_path: Path, config: dict[str, Any], told: str) -> None:
    with pytest.raises(ClientError, match=told):
        read_job("image_classification", prepared(tmp_path / "ml", job(), config))


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_two_hosts_train_one_model(job: MakeJob, tmp_path: Path) -> None:
    """Two containers that know each other by `resourceconfig.json`; the first one of the list writes the model."""
    hosts = ["127.0.0.1", "localhost"]
    environment = os.environ | {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    prefixes, started = [tmp_path / host for host in hosts], []
    for host, prefix in zip(hosts, prefixes, strict=True):
        prepared(prefix, job(), mini_batch_size=6, kv_store="dist_sync")
        (prefix / "input" / "config" / "resourceconfig.json").write_text(
            json.dumps({"current_host": host, "hosts": hosts, "network_interface_name": "lo"})
        )
        arguments = ["-m", "penstock", "train", "image_classification", "--container", "--prefix", str(prefix)]
        started.append(
            subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True, env=environment)
        )
    logs = [process.communicate(timeout=120)[1] for process in started]

    assert [process.returncode for process in started] == [0, 0], logs
    assert [(prefix / "model" / "model.json").exists() for prefix in prefixes] == [True, False]
    assert "all machines compute one common update (all-reduce), 12 images in all" in logs[0]
    assert len((prefixes[0] / "output" / "data" / "metrics.jsonl").read_text().splitlines()) == 2


def test_sigterm_in_a_container_leaves_the_best_model_and_status_0(job: MakeJob, tmp_path: Path) -> None:
    prefix = prepared(tmp_path / "ml", job(), epochs=500)
    arguments = ["-m", "penstock", "train", "image_classification", "--container", "--prefix", str(prefix)]
    with subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "Epoch[1] Train-accuracy" in line:
                process.send_signal(signal.SIGTERM)

    assert process.returncode == 0
    assert (prefix / "model" / "model.json").exists()
