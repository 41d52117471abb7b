"""Supervised worker processes on this machine that host the handlers: no JVM, no ports, a socket pair each."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import msgpack

from formats.arena import Arena
from formats.envelope import Outcome, Prediction
from formats.errors import BackendFailed, BackendUnavailable, PenstockError, error_from_code
from formats.frames import Frame, FrameParser, Kind, encode_frame
from formats.packed import pack_predictions, unpack_outcomes
from gateway.backends.backend import Answer, Backend, BatchLost, BatchRefused, Land
from gateway.backends.in_process import InProcessBackend
from gateway.settings import PoolSettings
from model_store.store import Bundle

__all__ = ["EmbeddedBackend", "embedded_backend"]

_log = logging.getLogger("penstock.embedded")

_FIRST_BACKOFF_S = 0.1
_MAX_BACKOFF_S = 10.0
_HUNG_CHECK_S = 1.0
_STABLE_S = 30.0
"""A worker that lived this long starts its next life without back-off."""


OnAnswer = Callable[[Frame | None], None]
"""Gets the answer to a call, or None when the worker is gone."""


class _Connection(asyncio.Protocol):
    """The gateway's end of one worker's socket: calls out, answers in."""

    def __init__(self) -> None:
        self.lost = asyncio.get_running_loop().create_future()
        self._calls: dict[int, OnAnswer] = {}
        self._numbers = itertools.cycle(range(1, 2**32))
        self._parser = FrameParser()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        for frame in self._parser.feed(data):
            on_answer = self._calls.pop(frame.call, None)
            if on_answer is not None:
                on_answer(frame)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        calls, self._calls = self._calls, {}
        for on_answer in calls.values():
            on_answer(None)
        if not self.lost.done():
            self.lost.set_result(None)

    def send(self, kind: Kind, slot: int, payload: bytes, on_answer: OnAnswer) -> None:
        """Send a frame; `on_answer` is called exactly once, at once when the worker is gone already."""
        if self.lost.done() or self._transport is None:
            on_answer(None)
            return
        number = next(self._numbers)
        self._calls[number] = on_answer
        self._transport.write(encode_frame(kind, number, slot, payload))

    def call(self, kind: Kind, slot: int, payload: bytes = b"") -> asyncio.Future[Frame]:
        """Send a frame; the future holds the answer, or raises `BatchLost` when the worker is gone."""
        future: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()

        def on_answer(frame: Frame | None) -> None:
            if future.done():
                return
            if frame is None:
                future.set_exception(BatchLost("the worker died"))
            else:
                future.set_result(frame)

        self.send(kind, slot, payload, on_answer)
        return future

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


@dataclass(eq=False)
class _Worker:
    """One process and what it has loaded."""

    process: asyncio.subprocess.Process
    connection: _Connection
    started: float
    requests: Arena | None
    answers: Arena | None
    """Large bodies to and from it: one batch at a time is what keeps them whole."""
    slots: set[int] = field(default_factory=set)
    busy_since: float | None = None
    """Loop time at which its batch was sent; None while it has none."""


@dataclass(frozen=True)
class _Loaded:
    slot: int
    bundle: Bundle
    order: bytes
    """The LOAD payload, kept for workers that start later."""


def embedded_backend(name: str, settings: PoolSettings, run_dir: Path, count: Callable[[str], None]) -> Backend:
    """Worker processes, or none: then the models live in the gateway's own."""
    backend = EmbeddedBackend if settings.workers else InProcessBackend
    return backend(name, settings, run_dir, count)


class EmbeddedBackend:
    """See `gateway.backends.backend.Backend`."""

    def __init__(self, name: str, settings: PoolSettings, run_dir: Path, count: Callable[[str], None]) -> None:
        self._name = name
        self._settings = settings
        self._run_dir = run_dir
        self._count = count
        self._workers: list[_Worker] = []
        self._models: dict[tuple[str, str], _Loaded] = {}
        self._next_slot = itertools.count()
        self._keepers: list[asyncio.Task[None]] = []
        self._closing = False
        self._loop = asyncio.get_running_loop()

    @property
    def capacity(self) -> int:
        return len(self._workers)

    async def start(self) -> None:
        first_ready = [self._loop.create_future() for _ in range(self._settings.workers)]
        self._keepers = [
            asyncio.create_task(self._keep(index, ready), name=f"{self._name}-worker-{index}")
            for index, ready in enumerate(first_ready)
        ]
        self._keepers.append(asyncio.create_task(self._watch_hung(), name=f"{self._name}-hung"))
        try:
            async with asyncio.timeout(self._settings.startup_timeout_s):
                await asyncio.gather(*first_ready)
        except TimeoutError as error:
            text = f"pool {self._name}: workers did not start within {self._settings.startup_timeout_s:g} s"
            raise BackendUnavailable(text) from error

    async def load(self, bundle: Bundle) -> None:
        key = (bundle.manifest.name, bundle.manifest.version)
        order = msgpack.packb({"path": str(bundle.path), "runtime": self._settings.runtime})
        loaded = _Loaded(next(self._next_slot), bundle, order)
        # remembered first: a worker that starts meanwhile loads it too
        self._models[key] = loaded
        results = await asyncio.gather(
            *(self._load_into(worker, loaded) for worker in list(self._workers)), return_exceptions=True
        )
        if any(result is None for result in results):
            return
        # forgotten again: a model that kills its workers must not meet every new one
        del self._models[key]
        for result in results:
            if isinstance(result, PenstockError):
                raise result
        text = "every worker died of it" if results else "no live worker"
        raise BackendUnavailable(f"pool {self._name}: cannot load {' version '.join(key)}: {text}")

    async def unload(self, name: str, version: str) -> None:
        loaded = self._models.pop((name, version), None)
        if loaded is None:
            return
        for worker in list(self._workers):
            worker.slots.discard(loaded.slot)
            with contextlib.suppress(BatchLost):
                await worker.connection.call(Kind.UNLOAD, loaded.slot)

    def run(self, batch: Sequence[Prediction], land: Land) -> None:
        loaded = self._models.get((batch[0].model, batch[0].version))
        worker = None if loaded is None else self._idle_worker(loaded.slot)
        if worker is None or loaded is None:
            land(BatchRefused(f"pool {self._name}: no idle worker has the model"))
            return
        try:
            message = pack_predictions(batch, worker.requests)
        except Exception as error:  # noqa: BLE001  whatever it is, the worker has not seen it and is idle
            _log.exception("pool %s: a batch cannot be sent", self._name)
            land(BatchLost(f"the batch cannot be packed: {type(error).__name__}: {error}"))
            return
        worker.busy_since = self._loop.time()
        worker.connection.send(Kind.RUN, loaded.slot, message, partial(_settle, worker, land, len(batch)))

    async def healthy(self) -> bool:
        return bool(self._workers)

    async def close(self) -> None:
        self._closing = True
        workers = {worker: worker.busy_since is not None for worker in self._workers}
        for worker in workers:
            worker.connection.close()
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._workers.clear()
        # one that still computes has outlived the drain: nobody waits for its answer any more
        await asyncio.gather(*(_end(worker.process, kill=busy) for worker, busy in workers.items()))

    def _idle_worker(self, slot: int) -> _Worker | None:
        for worker in self._workers:
            if worker.busy_since is None and slot in worker.slots and not worker.connection.lost.done():
                return worker
        return None

    def _kill_hung(self, worker: _Worker) -> None:
        _log.error("pool %s: worker %d hangs; replacing it", self._name, worker.process.pid)
        self._count("worker_hung")
        with contextlib.suppress(ProcessLookupError):
            worker.process.kill()

    async def _watch_hung(self) -> None:
        """Replace workers that compute for too long; one look a second costs less than a timer per batch."""
        while True:
            await asyncio.sleep(_HUNG_CHECK_S)
            limit = self._loop.time() - self._settings.run_timeout_s
            for worker in list(self._workers):
                if worker.busy_since is not None and worker.busy_since < limit:
                    self._kill_hung(worker)

    async def _keep(self, index: int, first_ready: asyncio.Future[None]) -> None:
        """Keep one worker alive for ever: start, load, wait for its end, back off, again."""
        backoff = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(backoff)
            worker = await self._spawn(index)
            try:
                if await self._prepare(worker) and not first_ready.done():
                    first_ready.set_result(None)
                await worker.connection.lost
            finally:
                served = worker in self._workers
                if served:
                    self._workers.remove(worker)
                if not (self._closing and served):  # those are ended by `close`
                    worker.connection.close()
                    await _end(worker.process, kill=True)
            self._count("worker_died")
            lived = loop.time() - worker.started
            backoff = 0.0 if lived > _STABLE_S else min(max(backoff * 2, _FIRST_BACKOFF_S), _MAX_BACKOFF_S)
            _log.error(
                "pool %s: worker %d (pid %d) ended with status %s after %.1f s; starting another in %.1f s",
                *(self._name, index, worker.process.pid, worker.process.returncode, lived, backoff),
            )

    async def _spawn(self, index: int) -> _Worker:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with contextlib.ExitStack() as descriptors:
            passed = [descriptors.enter_context(theirs).fileno()]
            for _ in range(2 if Arena.supported() else 0):
                passed.append(Arena.create())
                descriptors.callback(os.close, passed[-1])
            threads = str(self._settings.threads)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "handlers.host", *map(str, passed)),
                pass_fds=passed,
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            )
            self._bind(process.pid, index)
            requests, answers = map(Arena, passed[1:]) if passed[1:] else (None, None)
        _, connection = await loop.create_connection(_Connection, sock=ours)
        self._count("worker_started")
        return _Worker(process, connection, loop.time(), requests, answers)

    def _bind(self, pid: int, index: int) -> None:
        """Bind a worker that has no threads yet: those it starts inherit its processors."""
        if self._settings.cpus and sys.platform == "linux":
            with contextlib.suppress(ProcessLookupError):  # its end is told elsewhere
                os.sched_setaffinity(pid, self._settings.cpus_of(index))

    async def _prepare(self, worker: _Worker) -> bool:
        """Load every model into a fresh worker, then let it take batches; False when it died on the way."""
        pending = dict(self._models)
        try:
            await self._ping(worker)
            while pending:
                for loaded in pending.values():
                    try:
                        await self._load_into(worker, loaded)
                    except PenstockError as error:  # the others are served all the same
                        _log.error("pool %s: %s", self._name, error)
                pending = {
                    key: m for key, m in self._models.items() if m.slot not in worker.slots and key not in pending
                }
        except BatchLost:
            return False
        self._workers.append(worker)
        return True

    async def _ping(self, worker: _Worker) -> None:
        """A worker answers its first frame when its imports are done."""
        hung = asyncio.get_running_loop().call_later(self._settings.startup_timeout_s, self._kill_hung, worker)
        try:
            await worker.connection.call(Kind.UNLOAD, 2**32 - 1)
        finally:
            hung.cancel()

    async def _load_into(self, worker: _Worker, loaded: _Loaded) -> None:
        try:
            async with asyncio.timeout(self._settings.startup_timeout_s):
                frame = await worker.connection.call(Kind.LOAD, loaded.slot, loaded.order)
        except TimeoutError as error:
            self._kill_hung(worker)
            name = loaded.bundle.manifest.name
            text = f"model '{name}' did not load within {self._settings.startup_timeout_s:g} s"
            raise BackendFailed(text) from error
        if frame.kind == Kind.FAILED:
            raise error_from_code(*msgpack.unpackb(frame.payload))
        worker.slots.add(loaded.slot)


def _settle(worker: _Worker, land: Land, size: int, frame: Frame | None) -> None:
    """Turn a worker's answer into the outcomes of its batch."""
    worker.busy_since = None
    if frame is None:
        land(BatchLost("the worker died"))
        return
    answer: Answer
    try:
        if frame.kind == Kind.FAILED:
            failure = error_from_code(*msgpack.unpackb(frame.payload))
            answer = [Outcome.of_error(failure) for _ in range(size)]
        else:
            answer = unpack_outcomes(frame.payload, worker.answers)
    except Exception as error:  # noqa: BLE001  the slot must come back, whatever the worker has sent
        _log.exception("worker %d sent an answer that cannot be read", worker.process.pid)
        answer = BatchLost(f"the answer cannot be read: {type(error).__name__}: {error}")
    land(answer)


async def _end(process: asyncio.subprocess.Process, *, kill: bool = False, patience_s: float = 5.0) -> None:
    """Wait for a worker whose socket is closed; one that does not end by itself is killed."""
    if kill and process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    try:
        async with asyncio.timeout(patience_s):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
