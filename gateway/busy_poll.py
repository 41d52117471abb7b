"""Looking for the next request instead of sleeping until it comes, where it comes at once.

A process that sleeps is woken 30 to 60 us after a request has arrived, and finds its caches cold: half of what a small
model costs one client that asks again and again. So while one connection's requests follow its answers within a
fraction of a millisecond, the event loop keeps looking (as Linux's busy polling of sockets does), for at most twice
that time after the last one. Requests further apart never cost a look, and neither do several connections at once: they
leave little time to sleep anyway, and the processors that the looking takes are needed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["BusyPoll"]

_WEIGHT = 0.1
_MAX_GAPS = 10
"""One long gap counts as so many of the longest that are worth it: a pause ends the polling, not for long."""


class _Loop(Protocol):
    def call_soon(self, callback: Callable[[], None]) -> object: ...


class BusyPoll:
    """Tells one event loop when not to sleep.

    Args:
        loop: whose turns they are.
        gap_s: longest mean time between an answer and the same connection's next request that is waited for; 0
            switches it off.
        clock: seconds, of a resolution far below `gap_s`.
    """

    def __init__(self, loop: _Loop, gap_s: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._call_soon = loop.call_soon
        self._gap_s = gap_s
        self._clock = clock
        self._mean_gap = _MAX_GAPS * gap_s
        self._last = 0.0
        self._who = 0
        self._polling = False
        # another process that wants this core gets it: the sender of the next request may be one
        self._make_way = getattr(os, "sched_yield", lambda: None)

    def lone(self) -> bool:
        """One connection asks again and again, and no other."""
        return self._mean_gap < self._gap_s

    def heard(self, connection: object) -> None:
        """Something has arrived on a connection."""
        limit = self._gap_s
        if not limit:
            return
        now, who = self._clock(), id(connection)
        gap = min(now - self._last, _MAX_GAPS * limit) if who == self._who else _MAX_GAPS * limit
        self._mean_gap += _WEIGHT * (gap - self._mean_gap)
        self._last, self._who = now, who
        if self._mean_gap < limit and not self._polling:
            self._polling = True
            self._call_soon(self._look)

    def spoke(self) -> None:
        """An answer has been sent: the next request may follow."""
        if self._gap_s:
            self._last = self._clock()

    def _look(self) -> None:
        """A turn of the loop that has another one behind it polls its sockets without waiting."""
        if self._mean_gap < self._gap_s and self._clock() - self._last < 2 * self._gap_s:
            self._make_way()
            self._call_soon(self._look)
        else:
            self._polling = False
