"""TorchServe as a peer: its archive, its configuration, and when it is ready."""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import zipfile
from pathlib import Path

from loadtests.bench.cases import Case
from loadtests.bench.peers import CORES, NotStarted, Server, free_ports
from loadtests.bench.requests import build

__all__ = ["batching", "check_java", "torchserve"]

_HANDLER = Path(__file__).parent / "servers" / "torchserve_handler.py"


def check_java() -> None:
    """Raises: NotStarted: TorchServe cannot run."""
    if not shutil.which("java"):
        raise NotStarted("no java is on the PATH")


def torchserve(name: str, directory: Path, case: Case) -> Server:
    """As it comes: only addresses differ from its defaults, which start one worker per core and model."""
    return _torchserve(name, directory, case, "")


def batching(name: str, directory: Path, case: Case) -> Server:
    """With batches of its own."""
    workers = f"minWorkers: {CORES}\nmaxWorkers: {CORES}\n"
    return _torchserve(name, directory, case, f"batchSize: 32\nmaxBatchDelay: 5\n{workers}")


def _torchserve(name: str, directory: Path, case: Case, model_config: str) -> Server:
    check_java()
    home = directory / f"torchserve{'-batching' if model_config else ''}"
    for each in ("tmp", "store"):
        (home / each).mkdir(parents=True, exist_ok=True)
    model = case.model
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
        *("--model-store", str(home / "store"), "--models", f"{model}={model}.mar"),
        *("--ts-config", str(home / "config.properties")),
    ]
    # both, or two servers on one machine take each other's sockets
    environment = {"TMPDIR": str(home / "tmp"), "TEMP": str(home / "tmp")}
    return Server(
        name,
        command,
        grpc_inference if case.wire == "grpc" else inference,
        build(directory, case, "torchserve"),
        home,
        environment,
        is_ready=lambda: _workers_ready(management, model),
    )


def _write_archive(path: Path, model: str, graph: Path, model_config: str) -> None:
    described = {"modelName": model, "modelVersion": "1.0", "handler": _HANDLER.name}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        if model_config:
            described["configFile"] = "model-config.yaml"
            archive.writestr("model-config.yaml", model_config)
        signature = {"runtime": "python", "archiverVersion": "0.12.0", "model": described}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(signature))
        archive.write(_HANDLER, _HANDLER.name)
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
