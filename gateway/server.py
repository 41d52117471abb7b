"""The life of a gateway process: open the doors, load the models, watch, drain, stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from uvicorn.server import ServerState

from formats.garbage_collection import put_aside
from gateway.admin import build_admin
from gateway.backends.backend import find_backend
from gateway.busy_poll import BusyPoll
from gateway.catalog import Catalog
from gateway.grpc.server import GrpcFront
from gateway.grpc.service import Predictor
from gateway.listening import asgi_config, asgi_protocol, listen, stop_signals
from gateway.metrics import Metrics
from gateway.pool import Pool
from gateway.readiness import Readiness
from gateway.rest.app import build_app
from gateway.rest.front_door import Door, FrontDoor
from gateway.settings import PoolSettings, Settings, share_of

__all__ = ["Gateway", "run"]

_log = logging.getLogger("penstock.gateway")

_TICK_S = 0.1
_TURN_S = 0.02
_HEALTH_S = 1.0
_LARGEST_KEPT_BYTES = 16 * 2**20
_TURN_AWAY_S = 0.25


def default_pools(processes: int = 1) -> dict[str, PoolSettings]:
    """`cpu`, and `gpu` where the machine has one: the share of each of so many gateway processes."""
    pools = {"cpu": PoolSettings(device="cpu")}
    if processes > 1:
        pools["cpu"] = PoolSettings(device="cpu", workers=share_of(pools["cpu"].workers, processes))
    num_gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if num_gpus:
        pools["gpu"] = PoolSettings(device="gpu", workers=share_of(num_gpus, processes))
    else:
        _log.info("no GPU on this machine: no gpu pool; models that prefer one run on the next of their placement")
    return pools


async def run(settings: Settings, on_started: Callable[[Gateway], None] | None = None) -> None:
    """Serve until SIGTERM or SIGINT, drain, stop."""
    await Gateway(settings).run(on_started)


class Gateway:
    """One process, made inside its event loop. `start`, wait for a signal or call `drain`, then `stop`.

    Args:
        admin_socket: given to one of several gateways on the same ports. Management listens on that path, and the
            ports open last, when the models are loaded: until then the others answer better.
    """

    def __init__(self, settings: Settings, admin_socket: Path | None = None) -> None:
        self.settings = settings
        self._admin_socket = admin_socket
        self.http_port = self.grpc_port = self.admin_port = 0
        self._run_dir = Path(settings.run_dir or tempfile.mkdtemp(prefix="penstock-"))
        self._metrics = Metrics()
        pools = settings.pools or default_pools(settings.processes)
        self._poll = poll = BusyPoll(asyncio.get_running_loop(), settings.busy_poll_us * 1e-6)
        self._pools = {name: self._build_pool(name, pool) for name, pool in pools.items()}
        self.catalog = Catalog(settings, self._pools, self._metrics, time.monotonic)
        self.readiness = Readiness(self.catalog, self._pools)
        self._door = Door(settings, self.catalog.router, self._metrics, poll)
        self._predictor = Predictor(settings, self.catalog.router, self._metrics)
        self._grpc = GrpcFront(settings, self._predictor, self.readiness, poll, reuse_port=admin_socket is not None)
        self._state = ServerState()
        self._http: asyncio.Server | None = None
        self._servers: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._set_aside: set[tuple[str, str, str]] = set()
        """What was loaded when the collector of garbage was last told to leave it alone."""

    async def start(self) -> None:
        """Listen, start the pools, and begin to load models. Returns when the pools are up, before models are.

        One of several gateways begins to listen when its models have been loaded, and returns then.

        Raises:
            OSError: a port is taken; the text says which.
            BackendUnavailable: a pool could not start.
        """
        # glibc keeps blocks as large as the largest it has seen freed, instead of asking the kernel for fresh pages for
        # every large body: taken and given back once, untouched
        bytearray(_LARGEST_KEPT_BYTES)
        try:
            if self._admin_socket is None:
                await self._open_doors()
            await self._open_management()
            await asyncio.gather(*(self._start_pool(pool) for pool in self._pools.values()))
            await self.catalog.refresh()
            self.readiness.started = True
            if self._admin_socket is not None:
                while not self.catalog.settled:  # noqa: ASYNC110  many small steps lead there
                    await asyncio.sleep(_TURN_S)
                await self._open_doors()
        except BaseException:
            await self.stop()
            raise
        self._tasks = [
            asyncio.create_task(self.catalog.watch(), name="store"),
            asyncio.create_task(self._tick(), name="tick"),
            asyncio.create_task(self._watch_health(), name="health"),
        ]
        for task in self._tasks:
            task.add_done_callback(_report)

    async def run(self, on_started: Callable[[Gateway], None] | None = None) -> None:
        """Start, serve until SIGTERM or SIGINT, drain, stop. A second signal ends the drain at once."""
        stop, hurry = stop_signals()
        await self.serve(stop, hurry, on_started)

    async def serve(
        self, stop: asyncio.Event, hurry: asyncio.Event, on_started: Callable[[Gateway], None] | None = None
    ) -> None:
        """As `run`, told by events instead of signals."""
        starting = asyncio.create_task(self.start())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await starting
            return
        await starting
        if on_started is not None:
            on_started(self)
        await stop.wait()
        draining = asyncio.create_task(self.drain())
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        await self.stop()

    async def drain(self) -> None:
        """Take no new connections, answer what was accepted, say goodbye to clients as they ask.

        An idle connection stays open for a moment: a request may be on its way on it already.
        """
        settings = self.settings
        give_up = time.monotonic() + settings.drain_timeout_s
        _log.info("draining: %d predictions in flight", self._in_flight)
        self.readiness.draining = self._door.draining = True
        await self._grpc.refresh_health()
        self.close_door()
        linger = time.monotonic() + settings.drain_linger_s
        stopping = asyncio.create_task(self._stop_grpc(settings.drain_linger_s, settings.drain_timeout_s))
        while time.monotonic() < give_up:
            connections: Any = list(self._state.connections)
            if time.monotonic() > linger:
                for connection in connections:
                    if isinstance(connection, FrontDoor) and connection.quiet:
                        connection.transport.close()
                if not self._in_flight and not connections and stopping.done():
                    break
            await asyncio.sleep(_TURN_S)
        if self._in_flight:
            _log.warning("drain limit of %g s reached with %d in flight", settings.drain_timeout_s, self._in_flight)
        stopping.cancel()

    def close_door(self) -> None:
        """Take no new HTTP connections; those that there are go on."""
        if self._http is not None:
            self._http.close()

    async def stop(self) -> None:
        """Close everything that `start` opened, whatever state it is in."""
        self.readiness.draining = self._door.draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            server.close()
        connections: Any = list(self._state.connections)
        for connection in connections:
            connection.transport.close()
        await self._grpc.stop(0)
        await asyncio.gather(*(pool.backend.close() for pool in self._pools.values()), return_exceptions=True)
        if self.settings.run_dir is None:
            shutil.rmtree(self._run_dir, ignore_errors=True)

    @property
    def empty(self) -> bool:
        """Nothing is published."""
        return not self.catalog.versions and not self.catalog.errors

    @property
    def _in_flight(self) -> int:
        return self._door.in_flight + self._predictor.in_flight

    def _build_pool(self, name: str, settings: PoolSettings) -> Pool:
        run_dir = self._run_dir / name
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        factory = find_backend(settings.backend)
        backend = factory(name, settings, run_dir, partial(self._metrics.event, name))
        return Pool(name, settings, backend, time.monotonic, lone=self._poll.lone)

    async def _start_pool(self, pool: Pool) -> None:
        await pool.backend.start()
        pool.healthy = await pool.backend.healthy()
        text = "pool %s: backend %s on %s, %d batches at once"
        _log.info(text, pool.name, pool.settings.backend, pool.settings.device, pool.backend.capacity)

    async def _stop_grpc(self, linger_s: float, grace_s: float) -> None:
        await asyncio.sleep(linger_s)  # health watchers move on before the port closes
        # gRPC answers CANCELLED to calls that meet its stop: turn callers away first, with a status they may retry
        self._predictor.draining = True
        await asyncio.sleep(_TURN_AWAY_S)
        await self._grpc.stop(grace_s)

    async def _open_doors(self) -> None:
        settings = self.settings
        config = asgi_config(build_app(settings, self.catalog.router, self.readiness))
        await self._grpc.refresh_health()
        self._http, self.http_port = await listen(
            lambda: FrontDoor(config, self._state, self._door),
            settings.host,
            settings.http_port,
            reuse_port=self._admin_socket is not None,
        )
        self._servers.append(self._http)
        self.grpc_port = await self._grpc.start(settings.host, settings.grpc_port)

    async def _open_management(self) -> None:
        protocol = asgi_protocol(build_admin(self.catalog, self._pools, self._metrics, self.readiness))
        if self._admin_socket is not None:
            server = await asyncio.get_running_loop().create_unix_server(protocol, self._admin_socket)
        else:
            server, self.admin_port = await listen(protocol, self.settings.admin_host, self.settings.admin_port)
        self._servers.append(server)

    async def _tick(self) -> None:
        """Time-outs of connections; and slots that a restarted worker gave back."""
        while True:
            await asyncio.sleep(_TICK_S)
            for pool in self._pools.values():
                pool.pump()
            now = time.monotonic()
            self._grpc.enforce(now)
            connections: Any = list(self._state.connections)
            for connection in connections:
                if isinstance(connection, FrontDoor):
                    connection.enforce(now)

    async def _watch_health(self) -> None:
        changed = True
        while True:
            for pool in self._pools.values():
                healthy = await pool.backend.healthy()
                if healthy != pool.healthy:
                    _log.warning("pool %s is %s", pool.name, "healthy again" if healthy else "not healthy")
                    pool.healthy, changed = healthy, True
            if changed:
                await self._grpc.refresh_health()
                self._put_aside()
            with contextlib.suppress(TimeoutError):  # at once when a model has become ready
                await asyncio.wait_for(self.catalog.changed.wait(), _HEALTH_S)
            changed = self.catalog.changed.is_set()
            self.catalog.changed.clear()

    def _put_aside(self) -> None:
        """What has been loaded stays: see `formats.garbage_collection`."""
        if self.catalog.settled and (loaded := self.catalog.loaded) != self._set_aside:
            put_aside(again=not loaded >= self._set_aside)
            self._set_aside = loaded


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _log.critical("task %s ended", task.get_name(), exc_info=task.exception())
