"""The life of the process: what it imports, which modules a request crosses, what it says when it cannot start."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.live import LiveGateway, serving

REPOSITORY = Path(__file__).parents[2]

SERVE_ONE = """
import asyncio, json, sys
from pathlib import Path

from gateway.server import Gateway
from gateway.settings import PoolSettings, Settings


async def ask(connection):
    reader, writer = connection
    body = Path(sys.argv[2]).read_bytes()
    head = "POST /invocations HTTP/1.1\\r\\nHost: x\\r\\nContent-Type: image/png\\r\\nConnection: close\\r\\n"
    writer.write(head.encode() + b"Content-Length: %d\\r\\n\\r\\n" % len(body) + body)
    answer = await reader.read()
    writer.close()
    return answer.split(b" ", 2)[1]


async def main():
    settings = Settings(
        store=sys.argv[1], host="127.0.0.1", http_port=0, grpc_port=0, admin_port=0, default_endpoint="tiny",
        pools={"cpu": PoolSettings(device="cpu", workers=1)},
    )
    gateway = Gateway(settings)
    await gateway.start()
    while not gateway.readiness.ready:
        await asyncio.sleep(0.02)
    connect = lambda: asyncio.open_connection("127.0.0.1", gateway.http_port)
    assert await ask(await connect()) == b"200"
    TRACE
    await gateway.stop()


asyncio.run(main())
"""

# Which functions of gateway/ run between the last byte read and the answer written, in the order of their first call.
TRACE = """
    seen = []

    def note(frame, event, _):
        name = frame.f_globals.get("__name__", "")
        if event == "call" and name.startswith("gateway.") and name not in seen:
            seen.append(name)

    background = {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}
    for task in background:
        if task.get_name() in ("store", "tick", "health") or task.get_name().endswith("-hung"):
            task.cancel()
    connection = await connect()
    await asyncio.sleep(0.05)
    sys.setprofile(note)
    assert await ask(connection) == b"200"
    sys.setprofile(None)
    print(json.dumps(seen))
"""


def run_script(script: str, zoo: Path, png: bytes, tmp_path: Path) -> str:
    (tmp_path / "picture.png").write_bytes(png)
    done = subprocess.run(
        [sys.executable, "-c", script, str(zoo), str(tmp_path / "picture.png")],
        cwd=REPOSITORY,
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_serving_gateway_has_imported_neither_torch_nor_a_trainer(zoo: Path, png: bytes, tmp_path: Path) -> None:
    script = SERVE_ONE.replace("TRACE", "print('\\n'.join(sys.modules))")

    loaded = {name.partition(".")[0] for name in run_script(script, zoo, png, tmp_path).split()}

    assert "gateway" in loaded
    assert not loaded & {"torch", "torchvision", "onnx", "onnxruntime", "trainers", "exporters", "PIL", "pandas"}


TABLES_AND_TYPES = {
    "gateway.timing",
    "gateway.rest.routes",  # a lookup in the table of routes
    "gateway.rest.exchange",  # the types Request and Response, and their encoding
    "gateway.rest.heads",  # a lookup in the table of heads
    "gateway.call_cost",  # what calls cost so far
    "gateway.settings",  # fields
    "gateway.metrics",  # counts what passes, changes nothing
    "gateway.status",  # the table of statuses
    "gateway.busy_poll",  # told when a request came, sees none
}


def test_a_request_crosses_at_most_six_modules(zoo: Path, png: bytes, tmp_path: Path) -> None:
    """The style's rule of six rooms; tables, types and counters are not rooms that a request must cross."""
    seen = eval(run_script(SERVE_ONE.replace("    TRACE", TRACE), zoo, png, tmp_path))

    rooms = [name for name in seen if name not in TABLES_AND_TYPES]
    assert rooms == [
        "gateway.rest.front_door",
        "gateway.rest.sagemaker",
        "gateway.router",
        "gateway.batcher",
        "gateway.pool",
        "gateway.backends.embedded",
    ]


@pytest.mark.parametrize("taken", ["http_port", "grpc_port", "admin_port"])
def test_a_taken_port_is_one_clear_line_and_status_1(zoo: Path, tmp_path: Path, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        ports = {"http_port": 0, "grpc_port": 0, "admin_port": 0, taken: port}
        done = serve_and_fail(zoo, tmp_path, "\n".join(f"{name} = {number}" for name, number in ports.items()))

    assert done.returncode == 1
    assert f"penstock: cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ("http_prot = 1", "http_prot"),
        ('[pools.cpu]\ndevice = "cpu"\nbackend = "none"', "backend 'none' is not installed"),
        (
            '[pools.cpu]\ndevice = "cpu"\nworkers = 1\nstartup_timeout_s = 0.01',
            "pool cpu: workers did not start within",
        ),
    ],
)
def test_what_keeps_it_from_starting_is_one_clear_error_and_status_1(
    zoo: Path, tmp_path: Path, config: str, text: str
) -> None:
    done = serve_and_fail(zoo, tmp_path, config)

    assert done.returncode == 1
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def serve_and_fail(zoo: Path, tmp_path: Path, config: str) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "penstock.toml"
    ports = "" if "_port" in config else "http_port = 0\ngrpc_port = 0\nadmin_port = 0\n"
    file.write_text(f'host = "127.0.0.1"\n{ports}{config}\n')
    return subprocess.run(
        [sys.executable, "-m", "penstock", "serve", "--config", str(file), "--store", str(zoo)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_empty_store_is_served_and_said(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with serving(tmp_path / "store", '[pools.cpu]\ndevice = "cpu"\nworkers = 1\n') as gateway:
        assert "no model is published yet" in gateway.log


def test_what_runs_where_is_logged(live: LiveGateway) -> None:
    assert "tiny version 2 mode predict: runs on pool cpu (placement cpu, gpu)" in live.log
