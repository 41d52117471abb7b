"""Keeps what a batcher tells of its batches."""

from dataclasses import dataclass, field

from gateway.batcher import Reason
from gateway.timing import CallTiming, Timing


@dataclass
class Observed:
    sizes: list[int] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    calls: list[CallTiming] = field(default_factory=list)

    def released(self, size: int, reason: Reason, waited_s: float) -> None:
        self.sizes.append(size)
        self.reasons.append(reason)
        self.waits.append(waited_s)

    def landed(self, call: CallTiming) -> None:
        self.calls.append(call)

    def answered(self, total_s: float, timing: Timing) -> None:
        """Nobody asks for it here: it is the front doors that tell."""
