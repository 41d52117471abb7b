"""One TorchServe on this machine, started, spoken to and ended by the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import http.client
import importlib.util
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import orjson

from formats.errors import BackendUnavailable
from gateway.settings import PoolSettings

__all__ = ["Reply", "TorchServeProcess"]

_LOOPBACK = "127.0.0.1"
_MIN_JAVA = 11
_MAX_SOCKET_PATH = 107 - len("/.ts.sock.65535")
_CALL_TIMEOUT_S = 10.0
_TERM_PATIENCE_S = 5.0
_KILL_PATIENCE_S = 5.0

# Loggers that write several lines per request keep to warnings; a worker's own output is what an operator looks for.
_LOG_CONFIG = """\
<?xml version="1.0" encoding="UTF-8"?>
<Configuration status="WARN">
  <Appenders>
    <RollingFile name="server" fileName="{logs}/server.log" filePattern="{logs}/server.%i.log">
      <PatternLayout pattern="%d{{ISO8601}} %-5p %t %c{{1}} - %m%n"/>
      <SizeBasedTriggeringPolicy size="10 MB"/>
      <DefaultRolloverStrategy max="3"/>
    </RollingFile>
    <RollingFile name="workers" fileName="{logs}/workers.log" filePattern="{logs}/workers.%i.log">
      <PatternLayout pattern="%d{{ISO8601}} %t - %m%n"/>
      <SizeBasedTriggeringPolicy size="10 MB"/>
      <DefaultRolloverStrategy max="3"/>
    </RollingFile>
  </Appenders>
  <Loggers>
    <Logger name="MODEL_LOG" level="info" additivity="false"><AppenderRef ref="workers"/></Logger>
    <Logger name="ACCESS_LOG" level="off" additivity="false"/>
    <Logger name="org.pytorch.serve" level="info"/>
    <Logger name="org.pytorch.serve.wlm.BatchAggregator" level="warn"/>
    <Logger name="org.pytorch.serve.wlm.WorkerLifeCycle" level="warn"/>
    <Logger name="org.pytorch.serve.wlm.WorkerThread" level="warn"/>
    <Root level="warn"><AppenderRef ref="server"/></Root>
  </Loggers>
</Configuration>
"""


@dataclass(frozen=True, slots=True)
class Reply:
    """What TorchServe's management API answered."""

    status: int
    body: bytes

    def text(self) -> str:
        """The message of an error object, or the beginning of whatever it is."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(orjson.loads(self.body)["message"])
        return self.body[:300].decode(errors="replace")


@dataclass(frozen=True, slots=True)
class _Ports:
    inference: int
    management: int
    metrics: int
    grpc_inference: int
    grpc_management: int


class TorchServeProcess:
    """A server in a directory of its own. Not for several tasks at once, but for `call`."""

    def __init__(self, name: str, settings: PoolSettings, directory: Path) -> None:
        self._name = name
        self._settings = settings
        self._home = directory.absolute() / "torchserve"
        self.store = self._home / "store"
        """TorchServe's model store: one directory per registered model."""
        self.reports = self._home / "reports"
        """Where a worker that cannot load its model leaves the reason, as `<registered name>.json`."""
        self._logs = self._home / "logs"
        self._temporary = self._home / "tmp"
        self._lock: IO[bytes] | None = None
        self._ports: _Ports | None = None
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        """`host:port` of gRPC inference; a new one after each start."""
        assert self._ports is not None
        return f"{_LOOPBACK}:{self._ports.grpc_inference}"

    @property
    def rest_address(self) -> str:
        """`host:port` of REST inference."""
        assert self._ports is not None
        return f"{_LOOPBACK}:{self._ports.inference}"

    @property
    def metrics_url(self) -> str:
        assert self._ports is not None
        return f"http://{_LOOPBACK}:{self._ports.metrics}/metrics"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def pid(self) -> int | None:
        """Leader of the server's process group."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the server with an empty model store; returns when its management API answers.

        Raises:
            BackendUnavailable: Java or TorchServe is missing or unfit, the directory is in use, or it did not come up.
        """
        await _check_java()
        if importlib.util.find_spec("ts") is None:
            raise BackendUnavailable(f"pool {self._name}: TorchServe is not installed; install penstock[torchserve]")
        self._prepare_directories()
        self._ports = _Ports(*_free_ports(5))
        self._write_configuration(self._ports)
        await self._spawn()
        deadline = time.monotonic() + self._settings.startup_timeout_s
        while True:
            if not self.running:
                raise BackendUnavailable(f"pool {self._name}: TorchServe ended at start: {self._last_words()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if (await self.call("GET", "/models?limit=1")).status == http.HTTPStatus.OK:
                    return
            if time.monotonic() > deadline:
                await self.end()
                text = f"did not start within {self._settings.startup_timeout_s:g} s: {self._last_words()}"
                raise BackendUnavailable(f"pool {self._name}: TorchServe {text}")
            await asyncio.sleep(0.1)

    async def call(self, method: str, path: str, timeout_s: float = _CALL_TIMEOUT_S) -> Reply:
        """One management request. Raises `OSError` or `HTTPException` when there is no answer."""
        assert self._ports is not None
        return await asyncio.to_thread(_request, self._ports.management, method, path, timeout_s)

    async def wait(self) -> None:
        """Until the server has ended, by itself or by `end`."""
        assert self._process is not None
        await self._process.wait()

    async def end(self, *, gently: bool = True) -> None:
        """End the server and all its workers; the directories stay for the next start."""
        process = self._process
        if process is None:
            return
        steps = ((signal.SIGTERM, _TERM_PATIENCE_S), (signal.SIGKILL, _KILL_PATIENCE_S))
        for number, patience_s in steps if gently else steps[1:]:
            # the group, not the leader: a busy worker outlives a JVM that was killed
            if not _signal_group(process.pid, number):
                break
            await _group_gone(process, patience_s)
        await process.wait()

    async def close(self) -> None:
        """End the server and remove everything that it kept on disk, but its logs."""
        await self.end()
        if self._lock is None:  # never started, or somebody else's
            return
        for directory in (self.store, self.reports, self._temporary, self._home / "work"):
            shutil.rmtree(directory, ignore_errors=True)
        for file in ("config.properties", "log4j2.xml", "lock"):
            (self._home / file).unlink(missing_ok=True)
        self._lock.close()
        self._lock = None

    def _prepare_directories(self) -> None:
        """Empty directories, also after a predecessor that could not clean up: TorchServe never does."""
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._lock is None:
            lock = (self._home / "lock").open("wb")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                lock.close()
                raise BackendUnavailable(f"pool {self._name}: {self._home} is in use by another gateway") from error
            self._lock = lock
        if len(str(self._temporary)) > _MAX_SOCKET_PATH or re.search(r"\s", str(self._temporary)):
            # a unix socket's path has 107 bytes; TorchServe would fail at the first worker, not at start
            self._temporary = Path(tempfile.mkdtemp(prefix="penstock-ts-"))
        for directory in (self._temporary, self.store, self.reports, self._home / "work"):
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o700)
        self._logs.mkdir(mode=0o700, exist_ok=True)

    def _write_configuration(self, ports: _Ports) -> None:
        values = {
            "inference_address": f"http://{_LOOPBACK}:{ports.inference}",
            "management_address": f"http://{_LOOPBACK}:{ports.management}",
            "metrics_address": f"http://{_LOOPBACK}:{ports.metrics}",
            "grpc_inference_address": _LOOPBACK,
            "grpc_management_address": _LOOPBACK,
            "grpc_inference_port": ports.grpc_inference,
            "grpc_management_port": ports.grpc_management,
            # Only the names of unix sockets in a private directory; far from another server's all the same.
            "initial_worker_port": 10_000 + ports.management % 40 * 1_000,
            "disable_token_authorization": "true",  # loopback only, and tokens would expire every hour
            "enable_model_api": "true",
            "allowed_urls": f"file://{self.store}/.*",
            # The gateway limits bodies, and heap limits the sum; a limit here would only turn into "Worker died."
            "max_request_size": 2**31 - 1,
            "max_response_size": 2**31 - 1,
            "job_queue_size": max(2, self._settings.workers),
            "default_workers_per_model": self._settings.workers,
            "metrics_mode": "prometheus",
            "disable_system_metrics": "true",
            "decode_input_request": "false",
            "install_py_dep_per_model": "false",
            "vmargs": f"-Xmx{512 + 128 * self._settings.workers}m -XX:+ExitOnOutOfMemoryError",
        }
        if self._settings.device == "cpu":
            values["number_of_gpu"] = 0
        lines = [f"{key}={str(value).replace(chr(92), chr(92) * 2)}\n" for key, value in values.items()]
        (self._home / "config.properties").write_text("".join(lines))
        (self._home / "log4j2.xml").write_text(_LOG_CONFIG.format(logs=self._logs))

    async def _spawn(self) -> None:
        command = [
            *(sys.executable, "-m", "gateway.backends.torchserve_launcher", "--start", "--foreground", "--ncs"),
            *("--model-store", str(self.store), "--ts-config", str(self._home / "config.properties")),
            *("--log-config", str(self._home / "log4j2.xml")),
        ]
        with (self._logs / "console.log").open("wb") as console:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=console,
                stderr=console,
                cwd=self._home / "work",
                env=self._environment(),
                start_new_session=True,  # a Ctrl-C at the terminal is for the gateway, which drains first
            )

    def _environment(self) -> dict[str, str]:
        threads = str(self._settings.threads)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TS_")}
        return {
            **environment,
            "PATH": f"{sys.prefix}/bin{os.pathsep}{environment.get('PATH', os.defpath)}",
            "PYTHONPATH": os.pathsep.join([_packages(), *filter(None, [environment.get("PYTHONPATH")])]),
            "TMPDIR": str(self._temporary),
            "TEMP": str(self._temporary),
            "LOG_LOCATION": str(self._logs),
            "METRICS_LOCATION": str(self._logs),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PENSTOCK_WORKER_THREADS": threads,
            "PENSTOCK_WORKER_ENGINE": self._settings.engine,
            "PENSTOCK_WORKER_REPORTS": str(self.reports),
        }

    def _last_words(self) -> str:
        lines: list[str] = []
        for file in ("console.log", "server.log"):
            with contextlib.suppress(OSError):
                lines += (self._logs / file).read_text(errors="replace").splitlines()[-3:]
        return f"{' | '.join(lines) or 'it said nothing'} (more in {self._logs})"


def _request(port: int, method: str, path: str, timeout_s: float) -> Reply:
    # not urllib: a proxy from the environment has no business between two processes of one machine
    connection = http.client.HTTPConnection(_LOOPBACK, port, timeout=timeout_s)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return Reply(response.status, response.read())
    finally:
        connection.close()


async def _check_java() -> None:
    home = os.environ.get("JAVA_HOME")
    java = f"{home}/bin/java" if home else "java"
    needed = f"TorchServe needs Java {_MIN_JAVA} or newer"
    try:
        process = await asyncio.create_subprocess_exec(
            *(java, "-version"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        where = f"JAVA_HOME is {home}, which has no bin/java" if home else "no java is on the PATH"
        raise BackendUnavailable(f"{needed}; {where}") from error
    said = (await process.communicate())[0].decode(errors="replace")
    version = _java_version(said)
    if version < _MIN_JAVA:
        raise BackendUnavailable(f"{needed}; {java} is {version}: {said[:80].strip()}")


def _java_version(said: str) -> int:
    """Major version from `java -version`; 8 for `1.8.0_392`, 0 when it says something else."""
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(found[1]) if found else 0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((_LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _packages() -> str:
    """The directory that holds `handlers`, for workers that do not start in it."""
    found = importlib.util.find_spec("handlers")
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parent.parent)


def _signal_group(leader: int, number: int) -> bool:
    try:
        os.killpg(leader, number)
    except ProcessLookupError:
        return False
    return True


async def _group_gone(process: asyncio.subprocess.Process, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline and _signal_group(process.pid, 0):  # noqa: ASYNC110  nobody tells of its end
        await asyncio.sleep(0.05)
