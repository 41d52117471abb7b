"""How each contestant is set up."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from loadtests.bench.peers import ROOT, NotStarted, Server, free_ports
from loadtests.bench.requests import NAMES, naive_requests, penstock_requests, torchserve_requests

__all__ = ["BATCHING", "NAIVE", "PENSTOCK", "PENSTOCK_TORCHSERVE", "TORCHSERVE", "make_models", "servers"]

PENSTOCK = "Penstock"
PENSTOCK_TORCHSERVE = "Penstock before TorchServe"
TORCHSERVE = "TorchServe"
BATCHING = "TorchServe, batches of 32 or 5 ms"
NAIVE = "FastAPI + onnxruntime"


def make_models(directory: Path) -> None:
    """Write the graphs and publish them into `directory/store`, as a user would."""
    _run(sys.executable, "-m", "loadtests.bench.models", str(directory))
    for model in NAMES:
        _run(
            *(sys.executable, "-m", "penstock", "publish", str(directory / f"{model}.onnx")),
            *("--algorithm", "tensor", "--name", model, "--store", str(directory / "store")),
        )


def servers(directory: Path, num_workers: int) -> list[Server]:
    """All that speak HTTP, not started yet."""
    return [
        _penstock(PENSTOCK, directory, num_workers, {}),
        _torchserve(TORCHSERVE, directory, ""),
        _naive(directory),
        _torchserve(BATCHING, directory, _batching(num_workers)),
        _penstock(PENSTOCK_TORCHSERVE, directory, num_workers, {"BACKEND": "torchserve", "MANAGED": "true"}),
    ]


def _penstock(name: str, directory: Path, num_workers: int, pool: dict[str, str]) -> Server:
    http_port, grpc_port, admin_port = free_ports(3)
    pool = {"DEVICE": "cpu", "WORKERS": str(num_workers), **pool}
    return Server(
        name,
        [sys.executable, "-m", "penstock", "serve"],
        http_port,
        penstock_requests(directory),
        directory / name.lower().replace(" ", "-"),
        {
            "PENSTOCK_STORE": str(directory / "store"),
            "PENSTOCK_HOST": "127.0.0.1",
            "PENSTOCK_HTTP_PORT": str(http_port),
            "PENSTOCK_GRPC_PORT": str(grpc_port),
            "PENSTOCK_ADMIN_PORT": str(admin_port),
            **{f"PENSTOCK_POOLS__CPU__{key}": value for key, value in pool.items()},
        },
    )


def _naive(directory: Path) -> Server:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "loadtests.bench.naive", str(port), str(directory)]
    return Server(NAIVE, command, port, naive_requests(directory), directory / "naive")


def _batching(num_workers: int) -> str:
    return f"batchSize: 32\nmaxBatchDelay: 5\nminWorkers: {num_workers}\nmaxWorkers: {num_workers}\n"


def _torchserve(name: str, directory: Path, model_config: str) -> Server:
    """TorchServe as it comes: only addresses differ from its defaults, which start one worker per core and model."""
    home = directory / f"torchserve{'-batching' if model_config else ''}"
    for each in ("tmp", "store"):
        (home / each).mkdir(parents=True, exist_ok=True)
    for model in NAMES:
        _write_archive(home / "store" / f"{model}.mar", model, directory / f"{model}.onnx", model_config)
    inference, management, metrics, grpc_inference, grpc_management = free_ports(5)
    lines = [
        f"inference_address=http://127.0.0.1:{inference}",
        f"management_address=http://127.0.0.1:{management}",
        f"metrics_address=http://127.0.0.1:{metrics}",
        f"grpc_inference_port={grpc_inference}",
        f"grpc_management_port={grpc_management}",
        "number_of_gpu=0",  # every peer computes on the processor
    ]
    (home / "config.properties").write_text("\n".join(lines) + "\n")
    command = [
        *(sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs", "--disable-token-auth"),
        *("--model-store", str(home / "store"), "--models", *(f"{model}={model}.mar" for model in NAMES)),
        *("--ts-config", str(home / "config.properties")),
    ]
    # both, or two servers on one machine take each other's sockets
    environment = {"TMPDIR": str(home / "tmp"), "TEMP": str(home / "tmp")}
    return Server(
        name,
        command,
        inference,
        torchserve_requests(directory),
        home,
        environment,
        is_ready=lambda: all(_workers_ready(management, model) for model in NAMES),
    )


def _write_archive(path: Path, model: str, graph: Path, model_config: str) -> None:
    described = {"modelName": model, "modelVersion": "1.0", "handler": "torchserve_handler.py"}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        if model_config:
            described["configFile"] = "model-config.yaml"
            archive.writestr("model-config.yaml", model_config)
        signature = {"runtime": "python", "archiverVersion": "0.12.0", "model": described}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(signature))
        archive.write(Path(__file__).with_name("torchserve_handler.py"), "torchserve_handler.py")
        archive.write(graph, graph.name)


def _workers_ready(management: int, model: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", management, timeout=10)
    try:
        connection.request("GET", f"/models/{model}")
        (described,) = json.load(connection.getresponse())
    except (OSError, ValueError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    workers = described["workers"]
    return len(workers) == described["maxWorkers"] and all(each["status"] == "READY" for each in workers)


def _run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotStarted(f"{' '.join(command[1:])}: {done.stderr.strip()[-500:]}")


def missing_java() -> str:
    """Why TorchServe cannot take part, or nothing."""
    return "" if shutil.which("java") else "no java is on the PATH"
