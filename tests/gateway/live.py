"""A real `penstock serve` process on free ports, for tests that speak to it as its clients do."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

__all__ = ["EMBEDDED", "LiveGateway", "eventually", "serving"]

EMBEDDED = """
[pools.cpu]
device = "cpu"
workers = 2
"""
_BASE = 'host = "127.0.0.1"\nhttp_port = 0\ngrpc_port = 0\nadmin_port = 0\n'
_ADDRESS = {
    "http": re.compile(r"^  HTTP\s+http://127\.0\.0\.1:(\d+)", re.MULTILINE),
    "grpc": re.compile(r"^  gRPC\s+127\.0\.0\.1:(\d+)", re.MULTILINE),
    "admin": re.compile(r"^  management\s+http://127\.0\.0\.1:(\d+)", re.MULTILINE),
}


@dataclass
class LiveGateway:
    process: subprocess.Popen[bytes]
    store: Path
    log_file: Path
    http_port: int = 0
    grpc_port: int = 0
    admin_port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def admin(self, path: str) -> Any:
        return httpx.get(self.admin_url + path, timeout=30).json()

    def models(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What `/models` says, by name and version."""
        return {(each["name"], each["version"]): each for each in self.admin("/models")}

    def workers(self) -> list[psutil.Process]:
        """The embedded worker processes, oldest first."""
        children = psutil.Process(self.process.pid).children()
        return sorted((c for c in children if "handlers.host" in c.cmdline()), key=lambda c: c.create_time())

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 30) -> int:
        return self.process.wait(timeout_s)


def eventually(condition: Callable[[], object], timeout_s: float = 30, pause_s: float = 0.02) -> None:
    """Wait until a condition holds; fails the test when it does not in time."""
    give_up = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up, f"not so within {timeout_s:g} s"
        time.sleep(pause_s)


@contextmanager
def serving(store: Path, config: str = EMBEDDED, *, top: str = "", wait_s: float = 60) -> Iterator[LiveGateway]:
    """Serve a store until the block ends; entered once `/ping` says ready.

    Args:
        store: root of the published models.
        config: TOML tables of the configuration, pools above all.
        top: TOML lines before the first table.
        wait_s: how long to wait for `/ping`; 0 does not wait.
    """
    gateway = _start(store, f"{_BASE}{top}\n{config}")
    try:
        _read_ports(gateway, max(wait_s, 60))
        if wait_s:
            eventually(lambda: _ready(gateway), wait_s)
        yield gateway
    finally:
        _end(gateway)


def _start(store: Path, config: str) -> LiveGateway:
    number = len(list(store.parent.glob(f"{store.name}-*.toml")))
    file = store.parent / f"{store.name}-{number}.toml"
    file.write_text(config)
    log_file = file.with_suffix(".log")
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock", "serve", "--config", str(file), "--store", str(store)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={k: v for k, v in os.environ.items() if not k.startswith("PENSTOCK_")} | {"COLUMNS": "200"},
        )
    return LiveGateway(process, store, log_file)


def _read_ports(gateway: LiveGateway, timeout_s: float) -> None:
    def announced() -> bool:
        assert gateway.process.poll() is None, gateway.log
        return _ADDRESS["admin"].search(gateway.log) is not None

    eventually(announced, timeout_s)
    found = {name: int(match[1]) for name, pattern in _ADDRESS.items() if (match := pattern.search(gateway.log))}
    gateway.http_port, gateway.grpc_port, gateway.admin_port = found["http"], found["grpc"], found["admin"]


def _ready(gateway: LiveGateway) -> bool:
    assert gateway.process.poll() is None, gateway.log
    return httpx.get(f"{gateway.url}/ping", timeout=30).status_code == 200


def _end(gateway: LiveGateway) -> None:
    """Stop without a drain; what is left of its children is killed."""
    try:
        children = psutil.Process(gateway.process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        children = []
    if gateway.process.poll() is None:
        gateway.process.send_signal(signal.SIGTERM)
        gateway.process.send_signal(signal.SIGTERM)
        try:
            gateway.process.wait(20)
        except subprocess.TimeoutExpired:
            gateway.process.kill()
            gateway.process.wait()
    for child in children:
        if child.is_running():
            child.kill()
