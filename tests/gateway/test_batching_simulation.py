"""The batcher under load, with a clock that jumps from event to event: the same numbers on every machine."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from statistics import mean

import pytest

from formats.envelope import Outcome, Prediction
from gateway.batcher import Batcher, Pending
from gateway.timing import CallTiming, Timing
from model_store.manifest import Batching
from tests.gateway.observed import Observed


@dataclass
class Simulation:
    """Slots that take `call_s` for a call and `each_s` more for each prediction in it."""

    call_s: float
    each_s: float
    slots: int = 1
    limits: Batching = field(default_factory=lambda: Batching(max_batch_size=64, max_batch_seconds=10.0))
    now: float = 0.0
    busy: int = 0
    idle_waits: int = 0
    """Predictions that waited at a moment when a slot was free."""
    codes: dict[int, str] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seen = Observed()
        self.batcher = Batcher(self, clock=lambda: self.now, limits=self.limits, max_queue=10**6, observer=self.seen)
        self.batcher.open()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()

    def offer(self, batcher: Batcher) -> None:
        """The batcher has work; it is taken at the end of the event."""

    def run(self, arrivals: list[float], budget_s: float = 1e6) -> None:
        for at in arrivals:
            number = next(self._numbers)
            self._plan(at, number, partial(self._arrive, number, budget_s))
        while self._events:
            self.now = self._events[0][0]
            while self._events and self._events[0][0] <= self.now:  # what happens at once is one turn of the loop
                heapq.heappop(self._events)[2]()
            self._fill()

    def _plan(self, at: float, number: int, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at, number, event))

    def _arrive(self, number: int, budget_s: float) -> None:
        prediction = Prediction("m", "1", request_id=str(number), deadline=self.now + budget_s)
        self.batcher.submit(prediction, partial(self._answered, number, self.now))

    def _fill(self) -> None:
        while self.busy < self.slots and (batch := self.batcher.take(self.slots - self.busy)):
            self.busy += 1
            land = partial(self._land, batch, self.now)
            duration = self.call_s + self.each_s * len(batch)
            self._plan(self.now + duration, next(self._numbers), land)
        if self.busy < self.slots:
            self.idle_waits += len(self.batcher)

    def _land(self, batch: list[Pending], launched: float) -> None:
        self.busy -= 1
        call = CallTiming(launched, self.now, None)
        self.batcher.landed(len(batch), call)
        for pending in batch:
            pending.answer(Outcome(), Timing(launched - pending.enqueued, call))

    def _answered(self, number: int, arrived: float, outcome: Outcome, _: Timing | None) -> None:
        assert number not in self.codes, f"{number} is answered twice"
        self.codes[number] = outcome.error_code or "ok"
        self.order.append(number)
        self.seconds.append(self.now - arrived)


def arrivals(per_second: float, seconds: float, seed: int = 3) -> list[float]:
    """A Poisson process."""
    generator, now, found = random.Random(seed), 0.0, []
    while (now := now + generator.expovariate(per_second)) < seconds:
        found.append(now)
    return found


def test_an_idle_model_answers_at_once() -> None:
    """One a second, 10 ms each: nobody waits for company."""
    simulation = Simulation(call_s=0.009, each_s=0.001)

    simulation.run([float(number) for number in range(20)])

    assert simulation.seen.sizes == [1] * 20
    assert simulation.seconds == pytest.approx([0.010] * 20)


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("per_second", [20, 200, 2000, 20_000])
def test_nobody_waits_while_a_slot_is_free_and_everybody_is_answered(slots: int, per_second: float) -> None:
    simulation = Simulation(call_s=0.004, each_s=0.0001, slots=slots)
    times = arrivals(per_second, 1.0)

    simulation.run(times)

    assert simulation.idle_waits == 0
    assert set(simulation.codes.values()) == {"ok"}
    assert len(simulation.codes) == len(times)


def test_batches_grow_with_the_load_and_carry_it() -> None:
    """5 ms a call alone allows 200 a second; batches carry 40 times that, and nobody waits for three."""
    sizes, worst = [], []
    for per_second in (50, 500, 5000, 8000):
        simulation = Simulation(call_s=0.005, each_s=0.00002)
        simulation.run(arrivals(per_second, 2.0))
        sizes.append(mean(simulation.seen.sizes))
        worst.append(max(simulation.seconds))

    assert sizes == sorted(sizes)
    assert sizes[0] < 1.3
    assert sizes[-1] > 30
    assert max(worst) < 3 * (0.005 + 0.00002 * 64)


def test_one_slot_answers_in_the_order_of_arrival() -> None:
    simulation = Simulation(call_s=0.003, each_s=0.0005)

    simulation.run(arrivals(3000, 0.5))

    assert simulation.order == sorted(simulation.order)


def test_a_burst_is_cut_so_that_those_with_a_budget_are_in_time() -> None:
    """40 at once, 10 ms each, 85 ms to spare: batches of 8 answer 8; one batch of 40 would answer nobody."""
    simulation = Simulation(call_s=0.0, each_s=0.010)
    simulation.run([0.0])  # it learns what one takes

    simulation.run([1.0] * 40, budget_s=0.085)

    assert simulation.seen.sizes == [1, 8, 1]
    assert simulation.seen.reasons[1] == "deadline"
    assert sum(seconds <= 0.085 for seconds in simulation.seconds) == 1 + 8


def test_without_a_gain_batches_stay_within_their_time() -> None:
    """A graph that gains nothing by batching: 20 ms each, whatever the batch; 100 ms a call allows 5."""
    limits = Batching(max_batch_size=64, max_batch_seconds=0.1)
    simulation = Simulation(call_s=0.0, each_s=0.020, limits=limits)

    simulation.run([0.0] * 50)

    assert simulation.seen.sizes[0] == 50  # it knows nothing yet
    simulation.run([2.0] * 50)
    assert max(simulation.seen.sizes[1:]) == 5


def test_slow_work_is_spread_over_idle_slots() -> None:
    """8 at once on 2 slots at 20 ms: both work, and the last is done after 4 of them instead of 8."""
    simulation = Simulation(call_s=0.0, each_s=0.020, slots=2)
    simulation.run([0.0])

    simulation.run([1.0] * 8)

    assert max(simulation.seconds) == pytest.approx(0.080, abs=0.021)
