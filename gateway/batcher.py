"""Concurrent predictions for one model version and mode become one backend call.

An idle pool takes whatever there is at once, so nobody waits for company; a busy one leaves arrivals in the queue, and
the batch grows by itself to what arrived while the last one ran. Only where calls cost much whatever is in them, and
clients have been seen to come back at once, the next call waits a moment for those who were just answered.
"""

from __future__ import annotations

import logging
import sys
from bisect import bisect_left, insort_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal, Protocol

from formats.envelope import Outcome, Prediction
from formats.errors import BackendFailed, DeadlineExceeded, Overloaded, PenstockError
from gateway.call_cost import CallCost
from gateway.timing import CallTiming, Timing
from model_store.manifest import Batching

__all__ = ["Batcher", "Deliver", "Flight", "Memory", "Observer", "Pending", "Reason", "Timer"]

_log = logging.getLogger("penstock.batcher")

Deliver = Callable[[Outcome, Timing | None], None]
"""Gets the outcome, and where its time went when it reached a backend."""

Reason = Literal["full", "idle", "awaited", "deadline", "retry"]
"""Why a batch ended where it did: a limit was reached (requests, seconds, or its share of the idle slots); nothing more
was waiting, or not even after a moment's wait for those just answered; one more would have made one of them late; a
prediction that was lost once runs alone."""

_SPLIT_S = 0.005
"""Work that takes longer than this is shared between idle slots; below, the second call costs more than it saves."""
_OVERTAKEN_S = 10.0
"""A prediction that has waited this long is overtaken by nobody, however soon others are due."""
_USUAL_CALLS = 2.0
"""Where the second call rarely pays, it is held back for so many times what calls take: the first may hang."""
_SLOW_CALL_S = 0.0002
"""Calls that cost less than this, whatever is in them, wait for nobody."""
_AWAIT = 0.25
"""Of what a call costs whatever is in it: the longest that the next one waits for those just answered."""
_FAITHFUL = 0.5
"""Share of those just answered that must have come back within that time, of late, before anyone is waited for."""
_WEIGHT = 0.2
"""Of the newest call in that share."""
_NEVER = sys.maxsize


@dataclass(slots=True, eq=False)
class Memory:
    """What predictions that nobody has answered yet hold together."""

    limit: int
    """Bytes; what would make it more is refused."""
    held: int = 0
    """Bytes."""


@dataclass(slots=True, eq=False)
class Pending:
    """A prediction on its way, and who is to be told."""

    prediction: Prediction
    deliver: Deliver
    enqueued: float
    """Monotonic second of arrival."""
    due: float
    """Its place in the queue: its deadline, or how long it may be overtaken."""
    size: int
    """Bytes of what was sent."""
    memory: Memory
    """Where these bytes are counted until it is answered."""
    attempts: int = 0
    """Backend calls that were lost with this prediction in them."""
    answered: bool = False

    def answer(self, outcome: Outcome, timing: Timing | None = None) -> None:
        """Deliver once; what comes later (an answer after its deadline) has nobody waiting."""
        if self.answered:
            return
        self.answered = True
        self.memory.held -= self.size
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

    def expire(self, now: float) -> bool:
        """Answer with an error if the deadline has passed."""
        if now < self.prediction.deadline:
            return False
        waited = now - self.enqueued
        self.answer(Outcome.of_error(DeadlineExceeded(f"no answer within {waited:.2f} s; the deadline has passed")))
        return True


@dataclass(slots=True, eq=False)
class Flight:
    """One backend call under way."""

    batcher: Batcher
    batch: list[Pending]
    launched: float
    """Monotonic second."""


class Timer(Protocol):
    def cancel(self) -> None: ...


class Line(Protocol):
    """Where batchers with work stand in line for a free slot: a pool."""

    def offer(self, batcher: Batcher) -> None:
        """It has work."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Never early; late by what the event loop's timers are."""


class Observer(Protocol):
    """Who is told of every batch."""

    def released(self, size: int, reason: Reason, waited_s: float) -> None:
        """A batch is on its way; its oldest prediction waited that long."""

    def landed(self, call: CallTiming) -> None:
        """It is back."""

    def answered(self, total_s: float, timing: Timing) -> None:
        """One of its predictions is answered, so many seconds after it came in; see `gateway.timing.Keeper`."""


class Batcher:
    """The queue of one model version and mode on one pool. Not thread-safe: it lives on the event loop."""

    def __init__(
        self,
        line: Line,
        *,
        clock: Callable[[], float],
        limits: Batching,
        max_queue: int,
        observer: Observer,
        memory: Memory | None = None,
    ) -> None:
        self.in_line = False
        """Kept by the line: does it stand there?"""
        self.flights: set[Flight] = set()
        """Kept by the line: calls under way."""
        self.cost = CallCost()
        self._line = line
        self._clock = clock
        self._max_size, self._max_seconds = limits.max_batch_size, limits.max_batch_seconds
        self._bounds = limits.bucket_bytes
        self._max_queue = max_queue
        self.observer = observer
        self._memory = Memory(_NEVER) if memory is None else memory
        self._queue: deque[Pending] = deque()
        """The next first: by `due`, and by arrival where that is the same."""
        self._open = False
        self._retired: PenstockError | None = None
        self._alarm: Timer | None = None
        self._alarm_at = inf
        """No deadline of what is here passes before this."""
        self._rest_until = 0.0
        self._enough = _NEVER
        """While it is held back: so many waiting end that."""
        self._answered = 0
        """Size of the call that landed last, where calls are slow."""
        self._came_back = 0
        """Arrivals since, until `_await_until`."""
        self._faithful = 0.0
        """Running mean of the share of those just answered that came back in time."""
        self._awaited = 0
        """How many are expected to wait before the next call is worth its price; 0 when none is expected."""
        self._await_until = 0.0

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
        queue, memory = self._queue, self._memory
        size = len(prediction.body)
        if prediction.tensors is not None:
            for tensor in prediction.tensors:
                size += len(tensor.data)
        if len(queue) >= self._max_queue or (memory.held + size > memory.limit and memory.held):
            deliver(Outcome.of_error(self._refusal(prediction, size)), None)
            return
        memory.held += size
        now, deadline = self._clock(), prediction.deadline
        due = now + _OVERTAKEN_S
        if deadline < due:  # noqa: PLR1730  min() takes three times as long
            due = deadline
        pending = Pending(prediction, deliver, now, due, size, memory)
        if queue and due < queue[-1].due:
            insort_right(queue, pending, key=_due)
        else:
            queue.append(pending)
        if deadline < self._alarm_at:
            self._set_alarm(deadline, now)
        if now < self._await_until:
            self._came_back += 1
        if self._open and (not self.in_line or len(queue) >= self._enough):
            self._line.offer(self)

    def not_before(self) -> float:
        """The second until which what waits is better held back; 0.0 to take it now.

        The line is offered the batcher again as soon as enough are waiting.
        """
        if not self.flights and not self._awaited and not self._rest_until:
            return 0.0
        waiting = len(self._queue)
        if self._rest_until:
            enough, until = _NEVER, self._rest_until
        elif self.flights:
            enough = self._enough_for_another()
            until = max(flight.launched for flight in self.flights) + _USUAL_CALLS * self.cost.seconds
        else:
            enough, until = self._awaited, self._await_until
        if waiting >= enough or not waiting:
            return 0.0
        if not self._rest_until:  # leaves who is in a hurry a usual call more than the own one
            until = min(until, self._queue[0].prediction.deadline - self.cost.of(waiting) - self.cost.seconds)
        if self._clock() >= until:
            self._rest_until = 0.0
            return 0.0
        self._enough = enough
        return until

    def take(self, free_slots: int = 1) -> list[Pending]:
        """The next batch, soonest due first; empty when nothing live is waiting or the model is not loaded."""
        queue, cost = self._queue, self.cost
        if not self._open or not queue:
            return []
        now, waiting, limit = self._clock(), len(queue), self._max_size
        if free_slots > 1 or cost.seconds_each * waiting > self._max_seconds:
            limit = self._limit(free_slots)
        reason: Reason | None = None
        if self._bounds or queue[0].due <= now + cost.of(waiting):
            batch, reason = self._choose(now, limit)
        elif waiting <= limit:  # nobody is due before all of them are back
            batch = list(queue)
            queue.clear()
        else:
            batch, reason = [queue.popleft() for _ in range(limit)], "full"
        if batch:
            if reason is None:  # nothing more was waiting
                reason = "awaited" if self._awaited and self._awaited == self._enough else "idle"
            self.observer.released(len(batch), reason, now - batch[0].enqueued)
        self._enough, self._awaited = _NEVER, 0
        return batch

    def landed(self, size: int, waiting: int, call: CallTiming) -> None:
        """Learn from a call whose answers were just delivered; `waiting` were here before that."""
        self.cost.learn(size, call.landed - call.launched, 0.0 if call.stages is None else call.hop)
        if self.cost.fixed > _SLOW_CALL_S:
            self._await(size, waiting)
        else:
            self._await_until = 0.0
        self.observer.landed(call)

    def put_back(self, batch: list[Pending]) -> None:
        """Return an unanswered batch to the front, in its order."""
        if self._retired is not None:
            for pending in batch:
                pending.answer(Outcome.of_error(self._retired))
            return
        for pending in batch:
            pending.due = -inf
        self._queue.extendleft(reversed(batch))
        if self._open:
            self._line.offer(self)

    def rest(self, batch: list[Pending], pause_s: float) -> None:
        """Return a batch that nobody would take, and try again after a pause."""
        self._rest_until = self._clock() + pause_s
        self.put_back(batch)

    def expire(self) -> None:
        """Answer everything whose deadline has passed, waiting or under way, and set the alarm for the next."""
        now = self._clock()
        late = [pending for pending in self._queue if pending.prediction.deadline <= now]
        if late:  # out of the queue first: to answer one may bring the next
            self._queue = deque(pending for pending in self._queue if pending.prediction.deadline > now)
        under_way = [pending for flight in self.flights for pending in flight.batch if not pending.answered]
        for pending in (*late, *under_way):
            pending.expire(now)
        left = [pending.prediction.deadline for pending in (*self._queue, *under_way) if not pending.answered]
        self._alarm_at = inf
        if left and (earliest := min(left)) < inf:
            self._set_alarm(earliest, now)

    def fail(self, error: PenstockError) -> None:
        """Answer everything that waits with one error."""
        queue, self._queue = self._queue, deque()
        for pending in queue:
            pending.answer(Outcome.of_error(error))

    def retire(self, error: PenstockError) -> None:
        """The model is gone: answer what waits, what comes back unanswered and what still comes with one error."""
        self._retired = error
        self._max_queue = 0
        self.fail(error)

    def _refusal(self, prediction: Prediction, size: int) -> PenstockError:
        if self._retired is not None:
            return self._retired
        waiting, memory = len(self._queue), self._memory
        if waiting >= self._max_queue:
            text = f"{waiting} predictions are waiting for model '{prediction.model}' already (limit: max_queue)"
        else:
            text = f"{memory.held} bytes wait for answers; {size} more would pass max_pending_bytes = {memory.limit}"
        return Overloaded(f"{text}; try again later")

    def _set_alarm(self, deadline: float, now: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = self._line.call_later(deadline - now, self.expire)

    def _limit(self, free_slots: int) -> int:
        """How many may share the next call: no more than fit the time of one, and a fair part where slots are idle."""
        limit, waiting, cost = self._max_size, len(self._queue), self.cost
        if cost.seconds_each * waiting > self._max_seconds:
            limit = min(limit, cost.fitting(self._max_seconds, waiting))
        if free_slots > 1 and cost.each * waiting > _SPLIT_S:
            limit = min(limit, -(-waiting // free_slots))
        return limit

    def _choose(self, now: float, limit: int) -> tuple[list[Pending], Reason | None]:
        """One by one, where somebody may be late, lost once, or of another length than the others."""
        queue, alone = self._queue, self.cost.of(1)
        batch: list[Pending] = []
        passed_over: list[Pending] = []
        reason: Reason | None = None
        earliest = inf
        while queue:
            pending = queue[0]
            deadline = pending.prediction.deadline
            if pending.answered or now >= deadline:
                queue.popleft()
                pending.expire(now)
                continue
            apart = bool(batch) and self._bucket(pending) != self._bucket(batch[0])
            if apart:
                deadline -= alone  # its own call comes after this one
            if deadline >= now + alone:  # who is late even alone is spared nothing by a shorter batch
                earliest = min(earliest, deadline)
            if batch and (reason := self._end(batch, pending, limit, earliest - now)):
                break
            queue.popleft()
            (passed_over if apart else batch).append(pending)
        queue.extendleft(reversed(passed_over))
        return batch, reason

    def _end(self, batch: list[Pending], following: Pending, limit: int, left_s: float) -> Reason | None:
        """Why the batch ends before `following`, if it does; `left_s` until the first of them all is late."""
        if len(batch) >= limit:
            return "full"
        # lost once already: alone, so that a poisonous one cannot take others with it
        if batch[0].attempts or following.attempts:
            return "retry"
        return "deadline" if self.cost.of(len(batch) + 1) > left_s else None

    def _bucket(self, pending: Pending) -> int:
        """Lengths in different buckets stay apart: padding the shorter to the longer would waste work."""
        return bisect_left(self._bounds, pending.size)

    def _enough_for_another(self) -> int:
        """So many waiting are worth a second call beside the first.

        Where the way there and back costs more than their work, they are not: they share the next call, which is about
        to come, and the machine carries one message instead of two.
        """
        cost = self.cost
        if not cost.hop:
            return 0
        work_s = 2 * cost.hop - cost.fixed
        if work_s < 0.0:
            return 0
        return int(work_s / cost.each) + 1 if cost.each else _NEVER

    def _await(self, size: int, waiting: int) -> None:
        """Expect those just answered to come back, as far as they did of late.

        Clients that ask again and again would else fall into step badly: whoever came while the call ran goes alone in
        the next one, for the same price, and all others wait for that.
        """
        if self._answered:
            share = min(self._came_back / self._answered, 1.0)
            self._faithful += _WEIGHT * (share - self._faithful)
        self._answered, self._came_back = size, 0
        expected = round(self._faithful * size) if self._faithful >= _FAITHFUL else 0
        self._awaited = min(waiting + expected, self._max_size) if expected else 0
        self._await_until = self._clock() + _AWAIT * self.cost.fixed


def _due(pending: Pending) -> float:
    return pending.due
