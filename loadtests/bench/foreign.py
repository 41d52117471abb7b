"""Peers that must not share Penstock's virtual environment; `make bench-peers` makes one for each.

`PENSTOCK_BENCH_<PEER>_PYTHON` names the Python of another place.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from loadtests.bench.cases import Case
from loadtests.bench.peers import CORES, ROOT, NotStarted, Server, free_ports
from loadtests.bench.requests import build

__all__ = ["bentoml", "litserve", "mlserver", "rayserve", "triton"]

_SERVERS = Path(__file__).parent / "servers"
_SHAPES = {"mlp": ("16", "10"), "mean": ("3, 224, 224", "10"), "resnet18": ("3, 224, 224", "1000")}
"""Of one row of input and output, as Triton's configuration wants them."""


def litserve(name: str, directory: Path, case: Case) -> Server:
    """With a worker per core."""
    (port,) = free_ports(1)
    arguments = (str(port), str(directory), case.model, str(CORES))
    command = [str(_python("litserve")), "-m", "loadtests.bench.servers.litserve_app", *arguments]
    return Server(name, command, port, build(directory, case, "bare"), directory / "litserve")


def bentoml(name: str, directory: Path, case: Case) -> Server:
    """With a worker per core."""
    python = _python("bentoml")
    home = directory / "bentoml"
    (port,) = free_ports(1)
    command = [str(python.parent / "bentoml"), "serve", "loadtests.bench.servers.bentoml_app:OnnxModel"]
    environment = {
        "PENSTOCK_BENCH_BENTOML": os.pathsep.join([str(directory / f"{case.model}.onnx"), str(CORES)]),
        "BENTOML_DO_NOT_TRACK": "true",
        "BENTOML_HOME": str(home),
        "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)]),
    }
    command += ["--host", "127.0.0.1", "--port", str(port)]
    return Server(name, command, port, build(directory, case, "bare"), home, environment)


def rayserve(name: str, directory: Path, case: Case) -> Server:
    """With a replica per core, and without Ray's dashboard; its daemons take a tenth of a core while nobody asks."""
    (port,) = free_ports(1)
    arguments = (str(port), str(directory), case.model, str(CORES))
    command = [str(_python("rayserve")), "-m", "loadtests.bench.servers.rayserve_app", *arguments]
    environment = {"RAY_USAGE_STATS_ENABLED": "0"}
    request = build(directory, case, "bare")
    return Server(name, command, port, request, directory / "rayserve", environment, restless=True)


def mlserver(name: str, directory: Path, case: Case) -> Server:
    """With `parallel_workers` 0, without its pool of processes, so that a request takes one hop less."""
    python = _python("mlserver")
    home = directory / "mlserver"
    home.mkdir(parents=True, exist_ok=True)
    http_port, grpc_port, metrics_port = free_ports(3)
    settings = {"host": "127.0.0.1", "http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
    settings |= {"parallel_workers": 0, "debug": False, "grpc_max_message_length": 2**30}
    model = {
        "name": case.model,
        "implementation": "loadtests.bench.servers.mlserver_runtime.OnnxModel",
        "parameters": {"uri": str(directory / f"{case.model}.onnx")},
    }
    (home / "settings.json").write_text(json.dumps(settings))
    (home / "model-settings.json").write_text(json.dumps(model))
    port = grpc_port if case.wire == "grpc" else http_port
    command = [str(python.parent / "mlserver"), "start", str(home)]
    return Server(name, command, port, build(directory, case, "open_inference"), home)


def triton(name: str, directory: Path, case: Case) -> Server:
    """The server that nvidia-pytriton brings along, with an instance per core.

    It is started without pytriton, whose own proxy would cost a hop.
    """
    python = _python("triton")
    site = next(python.parent.parent.glob("lib/python3.*/site-packages"))
    binaries = site / "pytriton" / "tritonserver"
    home = directory / "triton"
    _write_backend(home / "backends" / "python", binaries, site.parent.name.removeprefix("python"))
    _write_repository(home / "models" / case.model, directory, case)
    http_port, grpc_port = free_ports(2)
    command = [
        *(str(binaries / "bin" / "tritonserver"), "--model-repository", str(home / "models")),
        *("--backend-directory", str(home / "backends"), "--log-verbose=0", "--allow-metrics=false"),
        *("--http-address=127.0.0.1", f"--http-port={http_port}", "--grpc-address=127.0.0.1"),
        *(f"--grpc-port={grpc_port}", "--exit-timeout-secs=3"),
    ]
    environment = {
        "LD_LIBRARY_PATH": str(site / "nvidia_pytriton.libs"),
        "PYTHONPATH": str(site),
        "PATH": os.pathsep.join([str(python.parent), os.environ.get("PATH", os.defpath)]),
    }
    port = grpc_port if case.wire == "grpc" else http_port
    return Server(name, command, port, build(directory, case, "open_inference"), home, environment)


def _python(peer: str) -> Path:
    """Raises: NotStarted: there is none."""
    variable = f"PENSTOCK_BENCH_{peer.upper()}_PYTHON"
    python = Path(os.environ.get(variable) or ROOT / ".run" / "peers" / peer / "bin" / "python").absolute()
    if not python.exists():
        raise NotStarted(f"{python} does not exist; `make bench-peers` installs it, {variable} names another")
    return python


def _write_backend(backend: Path, binaries: Path, version: str) -> None:
    """Triton wants the stub of this Python beside the backend's library."""
    stub = binaries / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        raise NotStarted(f"{stub} does not exist: the bundled Triton has none for Python {version}")
    shutil.rmtree(backend, ignore_errors=True)
    shutil.copytree(binaries / "backends" / "python", backend)
    shutil.copy(stub, backend / stub.name)


def _write_repository(place: Path, directory: Path, case: Case) -> None:
    row, scores = _SHAPES[case.model]
    (place / "1").mkdir(parents=True, exist_ok=True)
    (place / "config.pbtxt").write_text(f"""\
backend: "python"
max_batch_size: 64
input [ {{ name: "x", data_type: TYPE_FP32, dims: [ {row} ] }} ]
output [ {{ name: "y", data_type: TYPE_FP32, dims: [ {scores} ] }} ]
instance_group [ {{ count: {CORES}, kind: KIND_CPU }} ]
dynamic_batching {{ }}
""")
    shutil.copyfile(_SERVERS / "triton_model.py", place / "1" / "model.py")
    shutil.copyfile(directory / f"{case.model}.onnx", place / "1" / "model.onnx")
