"""What all HTTP connections of one gateway process share: where requests go, and how much of them is held."""

from __future__ import annotations

from formats.errors import Overloaded
from gateway.busy_poll import BusyPoll
from gateway.metrics import Metrics
from gateway.rest.heads import KnownHeads
from gateway.router import Router
from gateway.settings import Settings

__all__ = ["Door"]


class Door:
    def __init__(self, settings: Settings, router: Router, metrics: Metrics, poll: BusyPoll) -> None:
        self.settings = settings
        self.router = router
        self.metrics = metrics
        self.poll = poll
        self.heads = KnownHeads()
        self.timeout_s = settings.request_timeout_s
        self.tells_timing = settings.server_timing
        self.max_held_bytes = settings.max_held_bytes
        self.draining = False
        self.in_flight = 0
        """Predictions accepted and not yet answered."""
        self.held_bytes = 0
        """Bodies of predictions that are arriving, wait, or are being answered."""
        self.turned_away = 0
        """Connections beyond the limit that are still open, so that their clients can read why."""

    def hold(self, num_bytes: int) -> None:
        """Count bytes that are held from now on, or with a number below 0 no longer.

        Raises:
            Overloaded: they would be too many; they are not counted.
        """
        if num_bytes > 0 and self.held_bytes + num_bytes > self.max_held_bytes:
            raise self.full()
        self.held_bytes += num_bytes

    def full(self) -> Overloaded:
        return Overloaded(f"{self.max_held_bytes} bytes of request bodies are held already; try again later")
