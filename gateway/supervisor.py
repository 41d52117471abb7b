"""Several gateway processes on one port: holds the port, starts them, keeps them alive, ends them together.

No request passes through here: each process listens for itself with SO_REUSEPORT, and the kernel spreads connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from gateway.listening import asgi_protocol, listen, reserve, stop_signals
from gateway.settings import Settings
from gateway.shared_admin import Member, build_shared_admin

__all__ = ["Supervisor", "run_several"]

_log = logging.getLogger("penstock.supervisor")

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 10.0
_STABLE_S = 30.0
"""A process that lived this long starts its next life without back-off."""
_DOOR_S = 1.0
"""How long a busy process may take to stop accepting connections."""
_GRACE_S = 10.0
"""Beyond the drain limit: workers end, a JVM too."""
_MAX_SOCKET_PATH = 107


async def run_several(settings: Settings, on_started: Callable[[Supervisor], None] | None = None) -> None:
    """Serve with `settings.processes` processes until SIGTERM or SIGINT, drain, stop.

    Raises:
        OSError: a port is taken; the text says which.
        ChildProcessError: a process could not start, or did not end well; the text says which and why.
    """
    await Supervisor(settings).run(on_started)


class _Child:
    """One process, from its start to its end."""

    def __init__(self, life: int, process: asyncio.subprocess.Process, writer: asyncio.StreamWriter) -> None:
        self.life = life
        self.process = process
        self.born = asyncio.get_running_loop().time()
        self.started = False
        self.failure = ""
        self.door_closed = asyncio.Event()
        self._writer = writer

    def tell(self, order: object) -> None:
        if not self._writer.is_closing():
            self._writer.write(orjson.dumps(order) + b"\n")

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    def close(self) -> None:
        self._writer.close()

    @property
    def end(self) -> str:
        """How it ended."""
        return self.failure or f"ended with status {self.process.returncode}"


class Supervisor:
    """Made inside its event loop. Ports are 0 until `run` has opened them."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.http_port = self.grpc_port = self.admin_port = 0
        self.empty = False
        """No model was published when the processes started."""
        self._temporary = settings.run_dir is None
        self._run_dir = Path(settings.run_dir or tempfile.mkdtemp(prefix="penstock-"))
        self._held: list[socket.socket] = []
        self._admin: asyncio.Server | None = None
        self._lives = itertools.count(1)
        self._children: dict[int, _Child] = {}
        self._restarts = [0] * settings.processes
        self._keepers: list[asyncio.Task[None]] = []
        self._begun = [asyncio.get_running_loop().create_future() for _ in range(settings.processes)]
        self._all_begun = False
        self._stopping = asyncio.Event()
        self._bad_ends: list[str] = []

    async def run(self, on_started: Callable[[Supervisor], None] | None = None) -> None:
        """Start, serve until SIGTERM or SIGINT, drain, stop. A second signal ends the drain at once."""
        stop, hurry = stop_signals()
        starting = asyncio.create_task(self._start())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                if on_started is not None:
                    on_started(self)
                await stopping
            starting.cancel()
            await self._drain(hurry)
        except BaseException:
            hurry.set()
            await self._drain(hurry)
            raise
        finally:
            stopping.cancel()
            await self._close()
        if self._bad_ends:
            raise ChildProcessError("; ".join(self._bad_ends))

    async def _start(self) -> None:
        """Take the ports, start every process, wait until all listen."""
        settings = self.settings
        longest = self._admin_socket(settings.processes)
        if len(os.fsencode(longest)) > _MAX_SOCKET_PATH:
            raise ValueError(f"run_dir {self._run_dir} is too long: sockets in it may have {_MAX_SOCKET_PATH} bytes")
        held, self.http_port = reserve(settings.host, settings.http_port)
        self._held += held
        held, self.grpc_port = reserve(settings.host, settings.grpc_port)
        self._held += held
        protocol = asgi_protocol(build_shared_admin(self._members))
        self._admin, self.admin_port = await listen(protocol, settings.admin_host, settings.admin_port)
        self._keepers = [
            asyncio.create_task(self._keep(index), name=f"process-{index}") for index in range(settings.processes)
        ]
        self.empty = all(await asyncio.gather(*self._begun))
        self._all_begun = True

    def _members(self) -> list[Member]:
        members = []
        for index, restarts in enumerate(self._restarts):
            child, path = self._children.get(index), self._admin_socket(index)
            if child is None:
                members.append(Member(index, restarts, None, None, started=False, admin_socket=path))
            else:
                listens = child.started and not self._stopping.is_set()
                members.append(Member(index, restarts, child.life, child.process.pid, listens, path))
        return members

    async def _keep(self, index: int) -> None:
        """Keep one process alive until all stop: start, listen to it, wait for its end, back off, again.

        One that ends before all have started for the first time is a fault of the configuration or the machine: it
        ends the whole, with its reason. Later, the others serve while it is tried again.
        """
        loop = asyncio.get_running_loop()
        backoff = 0.0
        while not self._stopping.is_set():
            child = await self._live_once(index)
            if self._stopping.is_set():
                if child.process.returncode != 0:
                    self._bad_ends.append(f"gateway process {index} {child.end} while stopping")
                return
            if not self._all_begun:
                error = ChildProcessError(f"gateway process {index}: {child.end}")
                if not self._begun[index].done():
                    self._begun[index].set_exception(error)
                    return
            lived = loop.time() - child.born
            backoff = 0.0 if lived > _STABLE_S else min(max(backoff * 2, _FIRST_BACKOFF_S), _MAX_BACKOFF_S)
            _log.error(
                "gateway process %d (pid %d): %s after %.1f s; starting another in %.1f s",
                *(index, child.process.pid, child.end, lived, backoff),
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff)
            self._restarts[index] += 1

    async def _live_once(self, index: int) -> _Child:
        """Start a process and follow it to its end."""
        child, reader = await self._spawn(index)
        self._children[index] = child
        if self._stopping.is_set():
            child.tell("drain")
        try:
            async for line in reader:
                self._hear(index, child, orjson.loads(line))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_GRACE_S):
                    await child.process.wait()
        except (OSError, ValueError) as error:
            _log.error("gateway process %d: %s", index, error)
        finally:
            del self._children[index]
            child.door_closed.set()
            child.close()
            if child.process.returncode is None:
                child.kill()
        await child.process.wait()
        return child

    async def _spawn(self, index: int) -> tuple[_Child, asyncio.StreamReader]:
        directory = self._directory(index)
        if self._temporary:
            shutil.rmtree(directory, ignore_errors=True)  # what one that was killed has left
        for path in (self._run_dir, directory):
            path.mkdir(mode=0o700, exist_ok=True)
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "gateway.process", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                # a terminal's Ctrl-C is for the supervisor, which tells the others when to stop
                start_new_session=True,
                env={"GRPC_ENABLE_FORK_SUPPORT": "0", **os.environ},
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        child = _Child(next(self._lives), process, writer)
        pools = {name: pool.of_process(index) for name, pool in self.settings.pools.items()}
        changes = {"http_port": self.http_port, "grpc_port": self.grpc_port, "run_dir": directory, "pools": pools}
        child.tell(
            {
                "settings": self.settings.model_copy(update=changes).model_dump_json(),
                "index": index,
                "admin_socket": str(self._admin_socket(index)),
                "temporary": self._temporary,
            }
        )
        return child, reader

    def _hear(self, index: int, child: _Child, message: dict[str, Any]) -> None:
        if "failed" in message:
            child.failure = message["failed"]
        elif "door" in message:
            child.door_closed.set()
        elif "started" in message:
            child.started = True
            _log.info("gateway process %d (pid %d) listens", index, child.process.pid)
            if not self._begun[index].done():
                self._begun[index].set_result(message["started"]["empty"])

    async def _drain(self, hurry: asyncio.Event) -> None:
        """End every process, each as a single gateway ends.

        First all stop accepting, then all drain: a client that one has told to close must not come back to another
        whose door closes in that moment, and be reset.
        """
        self._stopping.set()
        children = list(self._children.values())
        for child in children:
            child.tell("close_door")
        if children and not hurry.is_set():
            doors = [asyncio.create_task(child.door_closed.wait()) for child in children if child.started]
            if doors:
                await asyncio.wait(doors, timeout=_DOOR_S)
        for child in list(self._children.values()):
            child.tell("drain")
        ends = asyncio.create_task(self._all_ended())
        hurried = asyncio.create_task(hurry.wait())
        limit = self.settings.drain_timeout_s + _GRACE_S
        await asyncio.wait((ends, hurried), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        for child in self._children.values():
            child.tell("hurry")
        await asyncio.wait((ends,), timeout=_GRACE_S)
        for child in self._children.values():
            child.kill()
        hurried.cancel()
        await ends

    async def _all_ended(self) -> bool:
        await asyncio.gather(*self._keepers, return_exceptions=True)
        return True

    async def _close(self) -> None:
        if self._admin is not None:
            self._admin.close()
        for each in self._held:
            each.close()
        if self._temporary:
            shutil.rmtree(self._run_dir, ignore_errors=True)

    def _directory(self, index: int) -> Path:
        return self._run_dir / f"process-{index}"

    def _admin_socket(self, index: int) -> Path:
        return self._directory(index) / "admin.sock"
