"""Concurrent predictions for one model version and mode become one backend call.

An idle pool takes whatever there is at once, so nobody waits for company; a busy one leaves arrivals in the queue, and
the batch grows by itself to what arrived while the last one ran.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from formats.envelope import Outcome, Prediction
from formats.errors import BackendFailed, DeadlineExceeded, Overloaded, PenstockError

__all__ = ["Batcher", "Deliver", "Pending"]

_log = logging.getLogger("penstock.batcher")

Deliver = Callable[[Outcome], None]


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

    def answer(self, outcome: Outcome) -> None:
        """Deliver once; what comes later (an answer after its deadline) has nobody waiting."""
        if self.answered:
            return
        self.answered = True
        try:
            self.deliver(outcome)
        except Exception:  # noqa: BLE001  it must not hold up the answers behind it in the batch
            _log.exception("the answer to request %s", self.prediction.request_id)
            self._apologise()

    def _apologise(self) -> None:
        text = "the answer cannot be written; see the log of the gateway"
        try:
            self.deliver(Outcome.of_error(BackendFailed(text)))
        except Exception:  # noqa: BLE001
            _log.exception("the error to request %s", self.prediction.request_id)

    def expire(self, now: float) -> bool:
        """Answer with an error if the deadline has passed."""
        if now < self.prediction.deadline:
            return False
        waited = now - self.enqueued
        self.answer(Outcome.of_error(DeadlineExceeded(f"no answer within {waited:.2f} s; the deadline has passed")))
        return True


class Line(Protocol):
    """Where batchers with work stand in line for a free slot: a pool."""

    def offer(self, batcher: Batcher) -> None: ...


class Batcher:
    """The queue of one model version and mode on one pool. Not thread-safe: it lives on the event loop."""

    def __init__(
        self,
        line: Line,
        *,
        clock: Callable[[], float],
        max_batch_size: int,
        max_queue: int,
        observe_size: Callable[[float], None],
        observe_wait: Callable[[float], None],
    ) -> None:
        self._line = line
        self._clock = clock
        self._max_batch_size = max_batch_size
        self._max_queue = max_queue
        self._observe_size = observe_size
        self._observe_wait = observe_wait
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
            deliver(Outcome.of_error(Overloaded(text)))
            return
        self._queue.append(Pending(prediction, deliver, self._clock()))
        if self._open:
            self._line.offer(self)

    def take(self) -> list[Pending]:
        """The next batch, oldest first; empty when nothing live is waiting or the model is not loaded."""
        now = self._clock()
        batch: list[Pending] = []
        queue = self._queue
        while self._open and queue and len(batch) < self._max_batch_size:
            pending = queue.popleft()
            if pending.answered or pending.expire(now):
                continue
            batch.append(pending)
            if pending.attempts:  # lost once already: alone, so that a poisonous one cannot take others with it
                break
            if queue and queue[0].attempts:
                break
        if batch:
            self._observe_size(len(batch))
            self._observe_wait(now - batch[0].enqueued)
        return batch

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
