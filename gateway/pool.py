"""A pool: a device class and a backend, the slots its batches run in, and what happens when one is lost."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial

from formats.envelope import Outcome
from formats.errors import BackendFailed
from gateway.backends.backend import Answer, Backend, BatchLost, BatchRefused
from gateway.batcher import Batcher, Pending
from gateway.settings import PoolSettings
from gateway.timing import CallTiming, Timing

__all__ = ["Pool"]

_log = logging.getLogger("penstock.pool")

_MAX_LOSSES = 2
"""A request inside two calls that were lost is taken for the cause: it is not tried a third time."""
_REFUSED_PAUSE_S = 0.02


class _Flight:
    """One backend call under way."""

    __slots__ = ("batch", "batcher", "launched")

    def __init__(self, batcher: Batcher, batch: list[Pending], launched: float) -> None:
        self.batcher = batcher
        self.batch = batch
        self.launched = launched


class Pool:
    """Runs batches in the order their batchers lined up, as many at once as the backend has capacity for."""

    def __init__(self, name: str, settings: PoolSettings, backend: Backend, clock: Callable[[], float]) -> None:
        self.name = name
        self.settings = settings
        self.backend = backend
        self.healthy = False
        self._clock = clock
        self._line: deque[Batcher] = deque()
        self._flights: set[_Flight] = set()
        self._pump_scheduled = False

    @property
    def in_flight(self) -> int:
        """Batches that run now."""
        return len(self._flights)

    def offer(self, batcher: Batcher) -> None:
        """Put a batcher that has work in line; each stands there once."""
        if not batcher.in_line:
            batcher.in_line = True
            self._line.append(batcher)
        self._schedule()

    def pump(self) -> None:
        """Fill the free slots."""
        self._pump_scheduled = False
        line, held = self._line, []
        while line and (free := self.backend.capacity - len(self._flights)) > 0:
            batcher = line.popleft()
            if not batcher.worth_another:
                held.append(batcher)
                continue
            batch = batcher.take(free if not line else 1)
            if len(batcher):
                line.append(batcher)
            else:
                batcher.in_line = False
            if batch:
                self._launch(batcher, batch)
        line.extend(held)

    def expire(self) -> None:
        """Tell those whose deadline passes while their batch is still running."""
        now = self._clock()
        for flight in self._flights:
            for pending in flight.batch:
                pending.expire(now)

    def _schedule(self) -> None:
        # at the end of this turn of the loop, so that all that arrived in it can share a batch
        if not self._pump_scheduled:
            self._pump_scheduled = True
            asyncio.get_running_loop().call_soon(self.pump)

    def _launch(self, batcher: Batcher, batch: list[Pending]) -> None:
        flight = _Flight(batcher, batch, self._clock())
        self._flights.add(flight)
        batcher.in_flight += 1
        land = partial(self._landed, flight)
        try:
            self.backend.run([pending.prediction for pending in batch], land)
        except Exception as error:  # noqa: BLE001  even a broken backend gives its slot back
            land(error)

    def _landed(self, flight: _Flight, answer: Answer) -> None:
        if flight not in self._flights:
            _log.error("pool %s: the backend answered a batch twice", self.name)
            return
        self._flights.remove(flight)
        flight.batcher.in_flight -= 1
        batch = flight.batch
        if not isinstance(answer, BaseException) and len(answer) != len(batch):
            answer = ValueError(f"{len(answer)} outcomes for {len(batch)} predictions")
        if not isinstance(answer, BaseException):
            call = CallTiming(flight.launched, self._clock(), answer[0].stages)
            flight.batcher.landed(len(batch), call)
            for pending, outcome in zip(batch, answer, strict=True):
                pending.answer(outcome, Timing(flight.launched - pending.enqueued, call))
        elif isinstance(answer, BatchRefused):
            asyncio.get_running_loop().call_later(_REFUSED_PAUSE_S, flight.batcher.put_back, batch)
        else:
            self._lost(flight, answer)
        if self._line:
            self._schedule()

    def _lost(self, flight: _Flight, error: BaseException) -> None:
        if not isinstance(error, BatchLost):
            _log.error("pool %s: a backend may raise BatchLost or BatchRefused only", self.name, exc_info=error)
        again = []
        for pending in flight.batch:
            pending.attempts += 1
            if pending.attempts < _MAX_LOSSES:
                again.append(pending)
            else:
                text = f"the backend died {pending.attempts} times on this request; it will not be tried again"
                pending.answer(Outcome.of_error(BackendFailed(text)))
        flight.batcher.put_back(again)
