"""The contestants: each a process tree on loopback, started, asked, measured and stopped the same way."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, TypeVar

import grpc
import psutil

from loadtests.bench.answers import ask, ask_at_once
from loadtests.bench.load import Load, send
from loadtests.bench.requests import Request

T = TypeVar("T")

__all__ = ["CORES", "FAILURES", "ROOT", "NotStarted", "RawLimit", "Sample", "Server", "free_ports"]

CORES = os.cpu_count() or 1
"""Processes, workers or instances of whoever has more than one."""
ROOT = Path(__file__).resolve().parent.parent.parent
_POLL_S = 0.2
_STOP_PATIENCE_S = 6.0
_WAKING_S = 0.5
"""For what a server has to make up for after it was held still."""
_PORTS = range(15_000, 32_000)
_given: set[int] = set()


class NotStarted(Exception):
    """A peer cannot take part; the text says why."""


FAILURES = (OSError, ValueError, KeyError, http.client.HTTPException, grpc.RpcError)
"""What asking a server that is not there, or answers otherwise than expected, may raise."""


@dataclass(frozen=True)
class Sample:
    """One peer, one case, one number of connections, one round."""

    per_second: float
    p50_s: float
    p99_s: float
    cpu_s_per_1000: float
    """Processor seconds of the server's whole process tree per 1,000 answers."""
    foreign_cores: float
    """Cores that neither the server nor the load generator used, but somebody did."""
    client_cores: float
    """Cores that the load generator used."""
    memory_bytes: int
    """Of the server's process tree just after; of what processes share, each counts its part."""


@dataclass
class Server:
    """A peer that speaks HTTP or gRPC."""

    name: str
    command: Sequence[str]
    port: int
    request: Request
    directory: Path
    """Its working directory; `log.txt` gets what it prints."""
    environment: Mapping[str, str] = field(default_factory=dict)
    is_ready: Callable[[], bool] = lambda: True
    """Asked after the model has answered."""
    cores: Sequence[int] = ()
    """Those that it must keep to, while its clients have the others; all are everybody's, if none are named."""
    restless: bool = False
    """Works while nobody asks it, so it is held still (SIGSTOP) while others are measured."""
    answer_bytes: int = 0
    """Size of a right answer."""
    _process: psutil.Popen | None = None
    _last_tree: list[psutil.Process] = field(default_factory=list)
    _stop_by: float = 0.0

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PENSTOCK_", "TS_"))}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        with (self.directory / "log.txt").open("wb") as log:
            self._process = psutil.Popen(
                [*(("taskset", "-c", ",".join(map(str, self.cores))) if self.cores else ()), *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                env={
                    **inherited,
                    "PATH": path,
                    "PYTHONPATH": str(ROOT),
                    "ORT_DISABLE_TELEMETRY": "1",
                    **self.environment,
                },
                start_new_session=True,  # Ctrl-C is for the benchmark, which stops its servers in order
            )

    def wait_ready(self, timeout_s: float) -> None:
        """Until it has answered rightly.

        Raises:
            NotStarted: it ended, or did not in time; with the end of its log.
        """
        give_up = time.monotonic() + timeout_s
        complaint: Exception | str | None = "not asked yet"
        while time.monotonic() < give_up:
            if self._process is None or self._process.poll() is not None:
                complaint = "it ended"
                break
            try:
                self.check()
            except FAILURES as error:
                complaint = error.details() if isinstance(error, grpc.Call) else error
            else:
                if self.is_ready():
                    return
                complaint = "its workers are not ready"
            time.sleep(_POLL_S)
        log = (self.directory / "log.txt").read_text(errors="replace").strip().splitlines()
        raise NotStarted(f"{complaint}; last of its log: {' | '.join(log[-3:])[-400:]}")

    def check(self) -> None:
        """Ask once, and compare with torch's answer; raises as `ask` does."""
        self.answer_bytes = ask(self.port, self.request)

    def verify(self) -> None:
        """Ask for many different answers at once, and compare each with torch's; raises as `ask_at_once` does."""
        with self._awake():
            self.answer_bytes = ask_at_once(self.port, self.request)

    def measure(self, load: Load) -> Sample:
        """Raises: RuntimeError: an answer was no success, or none came."""
        others = [core for core in range(CORES) if core not in self.cores] if self.cores else ()
        with self._awake():
            return self._measure(replace(load, cores=others))

    def _measure(self, load: Load) -> Sample:
        began = time.monotonic()
        machine, generator, server = _machine_cpu_s(), _children_cpu_s(), self._cpu_s()
        burst = send(self.port, self.request, load, self.answer_bytes)
        used, client = self._cpu_s() - server, _children_cpu_s() - generator
        # while the load generator started too, which may take longer than the load
        others = (_machine_cpu_s() - machine - used - client) / (time.monotonic() - began)
        return Sample(
            per_second=burst.answers / burst.seconds,
            p50_s=burst.p50_s,
            p99_s=burst.p99_s,
            cpu_s_per_1000=used / burst.answers * 1000,
            foreign_cores=max(0.0, others),
            client_cores=(client if burst.cpu_s is None else burst.cpu_s) / burst.seconds,
            memory_bytes=sum(_quietly(_memory, each) for each in self._tree()),
        )

    def hold(self) -> None:
        """Until it is next asked, if it is restless."""
        if self.restless:
            for process in self._tree():
                _quietly(psutil.Process.suspend, process)

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        if self.restless:
            self._wake()
            time.sleep(_WAKING_S)
        try:
            yield
        finally:
            self.hold()

    def _wake(self) -> None:
        for process in reversed(self._tree()):
            _quietly(psutil.Process.resume, process)

    def begin_stop(self) -> None:
        """Ask it to end, without waiting: the others can be asked meanwhile."""
        if self._process is not None:
            if self.restless:
                self._wake()
            self._last_tree = self._tree() or self._last_tree
            self._stop_by = time.monotonic() + _STOP_PATIENCE_S
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                self._process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        """Wait for the end that was asked for, and enforce it."""
        _, alive = psutil.wait_procs(self._last_tree, max(0.1, self._stop_by - time.monotonic()))
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, _STOP_PATIENCE_S)
        if self._process is not None:
            self._process.poll()

    def _cpu_s(self) -> float:
        return sum(_quietly(_cpu, each) for each in self._tree())

    def _tree(self) -> list[psutil.Process]:
        assert self._process is not None, "measured before start"
        try:
            leader = psutil.Process(self._process.pid)
            return [leader, *leader.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


class RawLimit:
    """ONNX Runtime without a server: one process for one client, and one per core for more."""

    name = "onnxruntime alone"

    def __init__(self, graph: Path, request: Path, num_processes: int) -> None:
        self._loops: list[subprocess.Popen[str]] = []
        self._command = [sys.executable, "-m", "loadtests.bench.raw", str(graph), str(request)]
        self._num_processes = num_processes

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "ORT_DISABLE_TELEMETRY": "1"}
        self._loops = [
            subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,
            )
            for _ in range(self._num_processes)
        ]

    def wait_ready(self, timeout_s: float) -> None:  # noqa: ARG002  the pipe ends when the process does
        for loop in self._loops:
            assert loop.stdout is not None
            if loop.stdout.readline() != "ready\n":
                raise NotStarted(f"a loop ended with status {loop.wait()}")

    def verify(self) -> None:
        """Nothing to ask: what it computes is what the servers' answers are held against."""

    def hold(self) -> None:
        """Its loops wait for the next line."""

    def measure(self, load: Load) -> Sample:
        loops = self._loops[: min(load.connections, self._num_processes)]
        machine = _machine_cpu_s()
        for loop in loops:
            assert loop.stdin is not None
            loop.stdin.write(f"{load.seconds}\n")
            loop.stdin.flush()
        found = [json.loads(loop.stdout.readline()) for loop in loops if loop.stdout is not None]
        cpu_s, answers = sum(each["cpu_s"] for each in found), sum(each["answers"] for each in found)
        return Sample(
            per_second=sum(each["answers"] / each["seconds"] for each in found),
            p50_s=max(each["p50_s"] for each in found),
            p99_s=max(each["p99_s"] for each in found),
            cpu_s_per_1000=cpu_s / answers * 1000,
            foreign_cores=max(0.0, (_machine_cpu_s() - machine - cpu_s) / load.seconds),
            client_cores=0.0,
            memory_bytes=sum(_memory(psutil.Process(loop.pid)) for loop in loops),
        )

    def begin_stop(self) -> None:
        for loop in self._loops:
            loop.kill()

    def stop(self) -> None:
        for loop in self._loops:
            loop.wait()
            for pipe in (loop.stdin, loop.stdout):
                if pipe is not None:
                    pipe.close()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, each given once, below those that clients are given by the system."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(_PORTS.start, _PORTS.stop)
        with socket.socket() as attempt, contextlib.suppress(OSError):
            attempt.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                found.append(port)
    return found


def _quietly(read: Callable[[psutil.Process], T], process: psutil.Process) -> T | Literal[0]:
    try:
        return read(process)
    except psutil.NoSuchProcess:  # ended since the tree was listed
        return 0


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _memory(process: psutil.Process) -> int:
    return int(process.memory_full_info().pss)


def _machine_cpu_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def _children_cpu_s() -> float:
    """Of the load generators, which have ended and been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
