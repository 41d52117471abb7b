"""A pool: a device class and a backend, the slots its batches run in, and what happens when one is lost."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Protocol

from formats.envelope import Outcome
from formats.errors import BackendFailed
from gateway.backends.backend import Answer, Backend, BatchLost, BatchRefused
from gateway.batcher import Batcher, Flight, Pending, Timer
from gateway.settings import PoolSettings
from gateway.timing import CallTiming, Timing

__all__ = ["Loop", "Pool"]

_log = logging.getLogger("penstock.pool")

_MAX_LOSSES = 2
"""A request inside two calls that were lost is taken for the cause: it is not tried a third time."""
_REFUSED_PAUSE_S = 0.02
_TIMER_S = 0.001
"""What event loops count time in: a timer may be off by as much."""

_timing = partial(tuple.__new__, Timing)
"""Makes one in half the time that its constructor takes."""


class Loop(Protocol):
    """What a pool needs of an event loop."""

    def call_soon(self, callback: Callable[[], None], /) -> object: ...

    def call_later(self, delay: float, callback: Callable[[], None], /) -> Timer: ...


class Pool:
    """Runs batches in the order their batchers lined up, as many at once as the backend has capacity for.

    Args:
        name: of the configuration.
        settings: likewise.
        backend: where the batches run.
        clock: seconds that deadlines are counted in.
        loop: the event loop, asked for when it is needed; by default the running one.
        lone: tells when only one client asks, one thing after the other: nobody can be about to join it in a batch.
    """

    def __init__(
        self,
        name: str,
        settings: PoolSettings,
        backend: Backend,
        clock: Callable[[], float],
        loop: Callable[[], Loop] = asyncio.get_running_loop,
        lone: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name = name
        self.settings = settings
        self.backend = backend
        self.healthy = False
        self.in_flight = 0
        """Batches that run now."""
        self._clock = clock
        self._loop = loop
        self._lone = lone
        self._line: deque[Batcher] = deque()
        self._pump_scheduled = False
        self._pumping = False
        self._look_at = inf
        """When the next timer looks whether one that was held back may go."""

    def offer(self, batcher: Batcher) -> None:
        """Put a batcher that has work in line; each stands there once."""
        if not batcher.in_line:
            batcher.in_line = True
            self._line.append(batcher)
        if self._pumping or self._pump_scheduled or not self._lone():
            self._schedule()
        else:
            self.pump()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Never early; late by what the event loop's timers are."""
        return self._loop().call_later(max(delay_s, 0.0) + _TIMER_S, callback)

    def pump(self) -> None:
        """Fill the free slots."""
        self._pump_scheduled, self._pumping = False, True
        line, held = self._line, []
        while line and (free := self.backend.capacity - self.in_flight) > 0:
            batcher = line.popleft()
            if until := batcher.not_before():
                held.append(batcher)
                self._look_again(batcher, until)
                continue
            batch = batcher.take(free if not line else 1)
            if len(batcher):
                line.append(batcher)
            else:
                batcher.in_line = False
            if batch:
                self._launch(batcher, batch)
        if held:
            line.extendleft(reversed(held))
        self._pumping = False

    def _schedule(self) -> None:
        # at the end of this turn of the loop, so that all that arrived in it can share a batch
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop().call_soon(self.pump)

    def _look_again(self, batcher: Batcher, until: float) -> None:
        """See to it that what is held back is looked at in time, even if nothing else happens."""
        delay_s = until - self._clock()
        if delay_s < _TIMER_S and not batcher.flights:
            self._schedule()  # turn by turn: no timer is as fine
        elif until < self._look_at:
            self._look_at = until
            self._loop().call_later(max(delay_s, _TIMER_S), self._look)

    def _look(self) -> None:
        self._look_at = inf
        self.pump()

    def _launch(self, batcher: Batcher, batch: list[Pending]) -> None:
        flight = Flight(batcher, batch, self._clock())
        self.in_flight += 1
        batcher.flights.add(flight)
        land = partial(self._landed, flight)
        try:
            self.backend.run([pending.prediction for pending in batch], land)
        except Exception as error:  # noqa: BLE001  even a broken backend gives its slot back
            land(error)

    def _landed(self, flight: Flight, answer: Answer) -> None:
        batcher, batch = flight.batcher, flight.batch
        if flight not in batcher.flights:
            _log.error("pool %s: the backend answered a batch twice", self.name)
            return
        batcher.flights.remove(flight)
        self.in_flight -= 1
        if isinstance(answer, BatchRefused):
            batcher.rest(batch, _REFUSED_PAUSE_S)
        elif isinstance(answer, BaseException):
            self._lost(flight, answer)
        elif len(answer) != len(batch):
            self._lost(flight, ValueError(f"{len(answer)} outcomes for {len(batch)} predictions"))
        else:
            waiting, launched = len(batcher), flight.launched
            call = CallTiming(launched, self._clock(), answer[0].stages, batcher.observer)
            for pending, outcome in zip(batch, answer, strict=True):
                pending.answer(outcome, _timing((launched - pending.enqueued, call)))
            batcher.landed(len(batch), waiting, call)
        if self._line:
            self._schedule()

    def _lost(self, flight: Flight, error: BaseException) -> None:
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
