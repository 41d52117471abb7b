"""Concurrent predictions for one model version and mode become one backend call.

An idle pool takes whatever there is at once, so nobody waits for company; a busy one leaves arrivals in the queue, and
the batch grows by itself to what arrived while the last one ran.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal, Protocol

from formats.envelope import Outcome, Prediction
from formats.errors import BackendFailed, DeadlineExceeded, Overloaded, PenstockError
from gateway.timing import CallTiming, Timing
from model_store.manifest import Batching

__all__ = ["Batcher", "Deliver", "Observer", "Pending", "Reason"]

_log = logging.getLogger("penstock.batcher")

Deliver = Callable[[Outcome, Timing | None], None]
"""Gets the outcome, and where its time went when it reached a backend."""

Reason = Literal["full", "idle", "deadline", "retry"]
"""Why a batch ended where it did: a limit was reached (requests, seconds, or its share of the idle slots); nothing more
was waiting; one more would have made one of them late; a prediction that was lost once runs alone."""

_SPLIT_S = 0.005
"""A batch that takes longer than this is shared between idle slots; below, the second call costs more than it saves."""
_WEIGHT = 0.2
"""Of the newest call in the running mean of seconds per prediction."""


@dataclass(slots=True, eq=False)
class Pending:
    """A prediction on its way, and who is to be told."""

    prediction: Prediction
    deliver: Deliver
    enqueued: float
    """Monotonic second of arrival."""
    attempts: int = 0
    """Backend calls that were lost with this prediction in them."""
    answered: bool = False

    def answer(self, outcome: Outcome, timing: Timing | None = None) -> None:
        """Deliver once; what comes later (an answer after its deadline) has nobody waiting."""
        if self.answered:
            return
        self.answered = True
        try:
            self.deliver(outcome, timing)
        except Exception:  # noqa: BLE001  it must not hold up the answers behind it in the batch
            _log.exception("the answer to request %s", self.prediction.request_id)
            self._apologise()

    def _apologise(self) -> None:
        text = "the answer cannot be written; see the log of the gateway"
        try:
            self.deliver(Outcome.of_error(BackendFailed(text)), None)
        except Exception:  # noqa: BLE001
            _log.exception("the error to request %s", self.prediction.request_id)

    @property
    def size(self) -> int:
        """Bytes of what was sent."""
        tensors = self.prediction.tensors
        return len(self.prediction.body) if tensors is None else sum(len(tensor.data) for tensor in tensors)

    def expire(self, now: float) -> bool:
        """Answer with an error if the deadline has passed."""
        if now < self.prediction.deadline:
            return False
        waited = now - self.enqueued
        self.answer(Outcome.of_error(DeadlineExceeded(f"no answer within {waited:.2f} s; the deadline has passed")))
        return True


def _mean(known: float, newest: float) -> float:
    return known + _WEIGHT * (newest - known) if known else newest


class Line(Protocol):
    """Where batchers with work stand in line for a free slot: a pool."""

    def offer(self, batcher: Batcher) -> None: ...


class Observer(Protocol):
    """Who is told of every batch."""

    def released(self, size: int, reason: Reason, waited_s: float) -> None:
        """A batch is on its way; its oldest prediction waited that long."""

    def landed(self, call: CallTiming) -> None:
        """It is back."""


class Batcher:
    """The queue of one model version and mode on one pool. Not thread-safe: it lives on the event loop."""

    def __init__(
        self, line: Line, *, clock: Callable[[], float], limits: Batching, max_queue: int, observer: Observer
    ) -> None:
        self.in_line = False
        """Kept by the line: does it stand there?"""
        self.in_flight = 0
        """Kept by the line: calls under way."""
        self.seconds_each = 0.0
        """Running mean of what one prediction takes inside a batch of the present size."""
        self._work_each = 0.0
        """Of that, what the handler itself takes; 0 where the backend does not tell."""
        self._hop = 0.0
        """Running mean of what a call takes beside the handler's work."""
        self._line = line
        self._clock = clock
        self._limits = limits
        self._max_queue = max_queue
        self._observer = observer
        self._queue: deque[Pending] = deque()
        self._open = False

    def __len__(self) -> int:
        return len(self._queue)

    def open(self) -> None:
        """The model is loaded: what has queued up may run."""
        self._open = True
        if self._queue:
            self._line.offer(self)

    def close(self) -> None:
        """Hold back what arrives until `open`."""
        self._open = False

    def submit(self, prediction: Prediction, deliver: Deliver) -> None:
        """Queue a prediction; `deliver` is called exactly once, possibly before this returns."""
        if len(self._queue) >= self._max_queue:
            text = f"{len(self._queue)} predictions are waiting for model '{prediction.model}' already; try again later"
            deliver(Outcome.of_error(Overloaded(text)), None)
            return
        self._queue.append(Pending(prediction, deliver, self._clock()))
        if self._open and not self.in_line:
            self._line.offer(self)

    def take(self, free_slots: int = 1) -> list[Pending]:
        """The next batch, oldest first; empty when nothing live is waiting or the model is not loaded."""
        if not self._open:
            return []
        now = self._clock()
        limit = self._limit(free_slots)
        batch: list[Pending] = []
        passed_over: list[Pending] = []
        reason: Reason | None = None
        earliest = inf
        queue = self._queue
        while queue:
            pending = queue[0]
            if pending.answered or pending.expire(now):
                queue.popleft()
                continue
            earliest = min(earliest, pending.prediction.deadline)
            if batch and (reason := self._end(batch, pending, limit, earliest - now)):
                break
            queue.popleft()
            (passed_over if batch and self._apart(batch[0], pending) else batch).append(pending)
        queue.extendleft(reversed(passed_over))
        if batch:
            self._observer.released(len(batch), reason or "idle", now - batch[0].enqueued)
        return batch

    def landed(self, size: int, call: CallTiming) -> None:
        """Learn from a call that was answered."""
        seconds = (call.landed - call.launched) / size
        self.seconds_each = _mean(self.seconds_each, seconds)
        if call.stages is not None:
            self._work_each = _mean(self._work_each, sum(call.stages) / size)
            self._hop = _mean(self._hop, call.hop)
        self._observer.landed(call)

    @property
    def worth_another(self) -> bool:
        """Does a second call beside the first pay?

        Where the way there and back costs more than the work, it does not: what waits shares the next call, which is
        about to come, and the machine carries one message instead of two.
        """
        return not self.in_flight or not self._hop or self._work_each * len(self._queue) > self._hop

    def put_back(self, batch: list[Pending]) -> None:
        """Return an unanswered batch to the front, in its order."""
        self._queue.extendleft(reversed(batch))
        if self._open:
            self._line.offer(self)

    def expire(self) -> None:
        """Answer everything whose deadline has passed while it waited."""
        now = self._clock()
        if any(pending.prediction.deadline <= now for pending in self._queue):
            self._queue = deque(pending for pending in self._queue if not pending.expire(now))

    def fail(self, error: PenstockError) -> None:
        """Answer everything that waits with one error."""
        queue, self._queue = self._queue, deque()
        for pending in queue:
            pending.answer(Outcome.of_error(error))

    def _limit(self, free_slots: int) -> int:
        """How many may share the next call: no more than fit the time of one, and a fair part where slots are idle."""
        limit = self._limits.max_batch_size
        each = self.seconds_each
        if each * limit > self._limits.max_batch_seconds:
            limit = max(1, int(self._limits.max_batch_seconds / each))
        if free_slots > 1 and each * len(self._queue) > _SPLIT_S:
            limit = min(limit, -(-len(self._queue) // free_slots))
        return limit

    def _end(self, batch: list[Pending], following: Pending, limit: int, left_s: float) -> Reason | None:
        """Why the batch ends before `following`, if it does; `left_s` until the first of them all is late."""
        if len(batch) >= limit:
            return "full"
        # lost once already: alone, so that a poisonous one cannot take others with it
        if batch[0].attempts or following.attempts:
            return "retry"
        return "deadline" if self.seconds_each * (len(batch) + 1) > left_s else None

    def _apart(self, first: Pending, other: Pending) -> bool:
        """Are their lengths in different buckets? Padding the shorter to the longer would waste work."""
        bounds = self._limits.bucket_bytes
        return bool(bounds) and bisect_left(bounds, first.size) != bisect_left(bounds, other.size)
