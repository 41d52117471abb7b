"""TorchServe as a peer, alone and with a front before it: its archive, its configuration, and when it is ready."""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

from loadtests.bench.cases import Case
from loadtests.bench.peers import CORES, NotStarted, Server, free_ports
from loadtests.bench.requests import build

__all__ = ["batching", "behind_nginx", "behind_proxy", "check_java", "torchserve"]

_HANDLER = Path(__file__).parent / "servers" / "torchserve_handler.py"


def check_java() -> None:
    """Raises: NotStarted: TorchServe cannot run."""
    if not shutil.which("java"):
        raise NotStarted("no java is on the PATH")


def torchserve(name: str, directory: Path, case: Case) -> Server:
    """As it comes: only addresses differ from its defaults, which start one worker per core and model."""
    return _torchserve(name, directory / "torchserve", case, "")


def batching(name: str, directory: Path, case: Case) -> Server:
    """With batches of its own."""
    workers = f"minWorkers: {CORES}\nmaxWorkers: {CORES}\n"
    return _torchserve(name, directory / "torchserve-batching", case, f"batchSize: 32\nmaxBatchDelay: 5\n{workers}")


def behind_nginx(name: str, directory: Path, case: Case) -> Server:
    """With a worker per core, and connections to TorchServe that are kept."""
    if not shutil.which("nginx"):
        raise NotStarted("no nginx is on the PATH (Debian: nginx-light)")
    home = directory / "torchserve-nginx"
    behind = _torchserve(name, home, case, "")
    (port,) = free_ports(1)
    (home / "nginx.conf").write_text(_NGINX.format(port=port, behind=behind.port, cores=CORES))
    return _fronted(behind, port, ["nginx", "-p", str(home), "-c", "nginx.conf", "-e", "stderr"])


def behind_proxy(name: str, directory: Path, case: Case) -> Server:
    behind = _torchserve(name, directory / "torchserve-proxy", case, "")
    (port,) = free_ports(1)
    return _fronted(
        behind, port, [sys.executable, "-m", "loadtests.bench.servers.proxy_app", str(port), str(behind.port)]
    )


_NGINX = """\
daemon off;
worker_processes {cores};
pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path tmp/client; proxy_temp_path tmp/proxy;
  fastcgi_temp_path tmp/fastcgi; uwsgi_temp_path tmp/uwsgi; scgi_temp_path tmp/scgi;
  keepalive_requests 100000000;
  upstream torchserve {{ server 127.0.0.1:{behind}; keepalive 64; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} reuseport;
    location / {{ proxy_pass http://torchserve; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
"""


def _fronted(behind: Server, port: int, front: list[str]) -> Server:
    module = "loadtests.bench.servers.fronted"
    return replace(behind, port=port, command=[sys.executable, "-m", module, json.dumps(front), *behind.command])


def _torchserve(name: str, home: Path, case: Case, model_config: str) -> Server:
    check_java()
    directory = home.parent
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
