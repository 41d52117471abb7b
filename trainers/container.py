"""The training container's contract: `/opt/ml` in, a model or a failure file out, the exit status says which.

One process per GPU trains, on every machine of the job; where that is more than one in all, torchrun starts them.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from trainers.job import ChannelSettings, ClientError, Job, read_input_config
from trainers.run import run_job

__all__ = ["PREFIX", "run_container"]

PREFIX = Path("/opt/ml")
_LARGEST_FAILURE = 1024  # characters that the platform keeps
_MASTER_PORT = "29400"
_RESOLVE_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class _Resources:
    current_host: str
    hosts: tuple[str, ...]


def run_container(algorithm: str, prefix: Path = PREFIX) -> int:
    """Train as the files under `prefix` say, and return the exit status: 0, or 1 with a failure file.

    Args:
        algorithm: one of `trainers.run.ALGORITHMS`.
        prefix: what stands for `/opt/ml`.
    """
    try:
        resources = _resources(prefix)
        num_processes = _num_gpus() or 1
        if len(resources.hosts) * num_processes > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
            status = _start_processes(algorithm, prefix, resources, num_processes)
            if status and not _failure_file(prefix).exists():
                _fail(prefix, f"AlgorithmError: a training process ended with status {status}; see the log")
            return 1 if status else 0
        run_job(read_job(algorithm, prefix))
    except ClientError as error:
        _fail(prefix, f"ClientError: {error}")
        return 1
    except Exception as error:  # noqa: BLE001  the platform knows of nothing but the file and the status
        traceback.print_exc()
        _fail(prefix, f"AlgorithmError: {type(error).__name__}: {error}")
        return 1
    return 0


def read_job(algorithm: str, prefix: Path) -> Job:
    """The job that the configuration files describe.

    Raises:
        ClientError: a file is missing or not of its form.
    """
    config = prefix / "input" / "config"
    values = _read(config / "hyperparameters.json")
    settings = read_input_config(_read(config / "inputdataconfig.json"))
    data = prefix / "input" / "data"
    return Job(
        algorithm=algorithm,
        channels={name: data / name for name in settings or _found_channels(data)},
        hyperparameters=values,
        output=prefix / "output" / "data",
        checkpoints=prefix / "checkpoints",
        model=prefix / "model",
        settings=settings,
    )


def _read(file: Path) -> Mapping[str, Any]:
    """A configuration file's object; a file that is not there says nothing, as on platforms that leave it out."""
    try:
        content = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ClientError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ClientError(f"{file}: expected a JSON object, found {type(content).__name__}.")
    return content


def _found_channels(data: Path) -> Mapping[str, ChannelSettings]:
    if not data.is_dir():
        return {}
    return {directory.name: ChannelSettings() for directory in sorted(data.iterdir()) if directory.is_dir()}


def _resources(prefix: Path) -> _Resources:
    config = _read(prefix / "input" / "config" / "resourceconfig.json")
    current = config.get("current_host", "localhost")
    hosts = config.get("hosts") or [current]
    if not (isinstance(hosts, list) and all(isinstance(host, str) for host in hosts) and current in hosts):
        raise ClientError(f"resourceconfig.json: current_host is {current!r}, which is not one of hosts {hosts!r}.")
    return _Resources(current, tuple(sorted(hosts)))


def _num_gpus() -> int:
    import torch  # noqa: PLC0415  `penstock --help` needs no torch

    return torch.cuda.device_count()


def _start_processes(algorithm: str, prefix: Path, resources: _Resources, num_processes: int) -> int:
    """Let torchrun start this machine's processes, and wait for them; SIGTERM is passed on."""
    master = resources.hosts[0]
    _wait_for_name(master)
    command = [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", str(len(resources.hosts)), "--nproc-per-node", str(num_processes)),
        *("--node-rank", str(resources.hosts.index(resources.current_host))),
        *("--master-addr", master, "--master-port", os.environ.get("MASTER_PORT", _MASTER_PORT)),
        *("-m", "penstock", "train", algorithm, "--container", "--prefix", str(prefix)),
    ]
    stopped = False
    with subprocess.Popen(command) as process:

        def pass_on(number: int, _frame: FrameType | None) -> None:
            nonlocal stopped
            stopped = True
            process.send_signal(number)

        former = signal.signal(signal.SIGTERM, pass_on)
        try:
            status = process.wait()
        finally:
            signal.signal(signal.SIGTERM, former)
    return 0 if stopped else status  # the launcher calls it a failure to have been asked to end


def _wait_for_name(host: str) -> None:
    """Names of a job's machines appear in the name service some time after the machines do."""
    deadline = time.monotonic() + _RESOLVE_TIMEOUT_S
    while True:
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            if time.monotonic() > deadline:
                raise OSError(f"host '{host}' has not become known in {_RESOLVE_TIMEOUT_S:g} s: {error}") from error
            time.sleep(1)
        else:
            return


def _failure_file(prefix: Path) -> Path:
    return prefix / "output" / "failure"


def _fail(prefix: Path, text: str) -> None:
    file = _failure_file(prefix)
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.exists():  # of several processes the first one knows the cause
        file.write_text(text[:_LARGEST_FAILURE])
