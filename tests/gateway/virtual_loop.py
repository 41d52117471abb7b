"""An event loop for tests whose time moves only from event to event: the same numbers on every machine."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from math import inf

__all__ = ["TURN_S", "VirtualLoop"]

TURN_S = 1e-6
"""What one turn of the loop takes, so that whoever looks turn by turn does get on."""


@dataclass(eq=False)
class Timer:
    callback: Callable[[], object]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class VirtualLoop:
    """What `gateway.pool.Loop` asks for, and a clock."""

    now: float = 0.0
    when_quiet: Callable[[], None] = lambda: None
    """Called whenever nothing is left to do at the present moment."""
    _ready: list[Callable[[], object]] = field(default_factory=list)
    _timers: list[tuple[float, int, Timer]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    def clock(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], object], /) -> None:
        self._ready.append(callback)

    def call_later(self, delay: float, callback: Callable[[], object], /) -> Timer:
        return self.call_at(self.now + delay, callback)

    def call_at(self, when: float, callback: Callable[[], object], /) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    @property
    def timers(self) -> int:
        """How many are set."""
        return sum(not timer.cancelled for _, _, timer in self._timers)

    def run(self, until: float = inf) -> None:
        """Go on until nothing is left to do, or the clock shows so much."""
        while self.now <= until:
            self._collect_due()
            if self._ready:
                ready, self._ready = self._ready, []
                for callback in ready:
                    callback()
                self.now += TURN_S
                continue
            self.when_quiet()
            if self._ready:
                continue
            if not self._timers or self._timers[0][0] > until:
                break
            self.now = max(self.now, self._timers[0][0])
        if until < inf:
            self.now = max(self.now, until)

    def settle(self) -> None:
        """Do what is left to do now, at most twenty turns of it, without time passing."""
        for _ in range(20):
            self._collect_due()
            ready, self._ready = self._ready, []
            for callback in ready:
                callback()

    def _collect_due(self) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            _, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self._ready.append(timer.callback)
