"""How long a prediction took and where: what `Server-Timing` tells the client and the metrics keep."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from formats.envelope import Stages

__all__ = ["CallTiming", "Keeper", "Timing", "server_timing"]


class Keeper(Protocol):
    """Who keeps the split of every prediction that was in a call."""

    def answered(self, total_s: float, timing: Timing) -> None: ...


class CallTiming:
    """One backend call, shared by the predictions that were in it."""

    __slots__ = ("_text", "hop", "keeper", "landed", "launched", "stages")

    def __init__(self, launched: float, landed: float, stages: Stages | None, keeper: Keeper | None = None) -> None:
        self.launched = launched
        self.landed = landed
        self.stages = stages
        hop = landed - launched
        if stages is not None:
            hop -= stages.pre + stages.graph + stages.post
        self.hop = max(hop, 0.0)
        """Seconds of the call that the handler did not use: the way there and back, and waiting on the other side."""
        self.keeper = keeper
        self._text = b""

    @property
    def text(self) -> bytes:
        """Its part of the header, written once for all that were in it."""
        if not self._text:
            milliseconds = (self.landed - self.launched) * 1e3
            if self.stages is None:
                self._text = b"batch;dur=%.3f" % milliseconds
            else:
                pre, graph, post = self.stages
                self._text = b"batch;dur=%.3f, pre;dur=%.3f, graph;dur=%.3f, post;dur=%.3f, hop;dur=%.3f" % (
                    *(milliseconds, pre * 1e3, graph * 1e3, post * 1e3),
                    self.hop * 1e3,
                )
        return self._text


class Timing(NamedTuple):
    """Of one prediction that reached a backend."""

    queue_s: float
    """From the queue's door to the call."""
    call: CallTiming


def server_timing(total_s: float, timing: Timing) -> bytes:
    """Value of `Server-Timing` (W3C), milliseconds: `gateway` is all that is neither queue nor batch."""
    call = timing.call
    gateway_s = total_s - timing.queue_s - (call.landed - call.launched)
    return b"gateway;dur=%.3f, queue;dur=%.3f, %b" % (max(gateway_s, 0.0) * 1e3, timing.queue_s * 1e3, call.text)
