"""A pool: a device class and a backend, the slots its batches run in, and what happens when one is lost."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

from formats.envelope import Outcome
from formats.errors import BackendFailed
from gateway.backends.backend import Backend, BatchLost, BatchRefused
from gateway.batcher import Batcher, Pending
from gateway.settings import PoolSettings

__all__ = ["Pool"]

_log = logging.getLogger("penstock.pool")

_MAX_LOSSES = 2
"""A request inside two calls that were lost is taken for the cause: it is not tried a third time."""
_REFUSED_PAUSE_S = 0.02


class Pool:
    """Runs batches in the order their batchers lined up, as many at once as the backend has capacity for."""

    def __init__(self, name: str, settings: PoolSettings, backend: Backend, clock: Callable[[], float]) -> None:
        self.name = name
        self.settings = settings
        self.backend = backend
        self.healthy = False
        self.in_flight = 0
        self._clock = clock
        self._line: deque[Batcher] = deque()
        self._running: set[tuple[Pending, ...]] = set()
        self._pump_scheduled = False

    def offer(self, batcher: Batcher) -> None:
        """Put a batcher that has work in line; each stands there once."""
        if batcher not in self._line:
            self._line.append(batcher)
        self._schedule()

    def pump(self) -> None:
        """Fill the free slots."""
        self._pump_scheduled = False
        while self._line and self.in_flight < self.backend.capacity:
            batcher = self._line.popleft()
            batch = batcher.take()
            if len(batcher):
                self._line.append(batcher)
            if batch:
                self._launch(batcher, batch)

    def expire(self) -> None:
        """Tell those whose deadline passes while their batch is still running."""
        now = self._clock()
        for batch in self._running:
            for pending in batch:
                pending.expire(now)

    def _schedule(self) -> None:
        # at the end of this turn of the loop, so that all that arrived in it can share a batch
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self.pump)

    def _launch(self, batcher: Batcher, batch: list[Pending]) -> None:
        self.in_flight += 1
        key = tuple(batch)
        self._running.add(key)
        future = asyncio.ensure_future(self._run(batch))
        future.add_done_callback(partial(self._landed, batcher, key))

    def _run(self, batch: list[Pending]) -> Awaitable[list[Outcome]]:
        try:
            return self.backend.run([pending.prediction for pending in batch])
        except Exception as error:  # noqa: BLE001  even a broken backend gives its slot back
            failed: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed

    def _landed(self, batcher: Batcher, batch: tuple[Pending, ...], future: asyncio.Future[list[Outcome]]) -> None:
        self.in_flight -= 1
        self._running.discard(batch)
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is None and len(future.result()) != len(batch):
            error = ValueError(f"{len(future.result())} outcomes for {len(batch)} predictions")
        if error is None:
            for pending, outcome in zip(batch, future.result(), strict=True):
                pending.answer(outcome)
        elif isinstance(error, BatchRefused):
            asyncio.get_running_loop().call_later(_REFUSED_PAUSE_S, batcher.put_back, list(batch))
        else:
            self._lost(batcher, batch, error)
        if self._line:
            self._schedule()

    def _lost(self, batcher: Batcher, batch: tuple[Pending, ...], error: BaseException) -> None:
        if not isinstance(error, BatchLost):
            _log.error("pool %s: a backend may raise BatchLost or BatchRefused only", self.name, exc_info=error)
        again = []
        for pending in batch:
            pending.attempts += 1
            if pending.attempts < _MAX_LOSSES:
                again.append(pending)
            else:
                text = f"the backend died {pending.attempts} times on this request; it will not be tried again"
                pending.answer(Outcome.of_error(BackendFailed(text)))
        batcher.put_back(again)
