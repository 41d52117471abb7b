"""The event loop stays awake between quick requests, and sleeps everywhere else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest

from gateway.busy_poll import BusyPoll

US = 1e-6
GAP = 50 * US


class Loop:
    """Turns and time that pass when they are told to; a turn takes 2 us."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ready: deque[Callable[[], None]] = deque()

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.ready.append(callback)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> float:
        """Time passes; returns how much of it the loop was awake."""
        end, awake = self.now + seconds, 0.0
        while self.ready and self.now < end:
            self.ready.popleft()()
            self.now += 2 * US
            awake += 2 * US
        self.now = max(self.now, end)
        return awake


@pytest.fixture
def loop() -> Loop:
    return Loop()


def ask(
    loop: Loop,
    poll: BusyPoll,
    times: int,
    gap: float,
    work: float = 20 * US,
    connections: tuple[object, ...] = ("one",),
) -> float:
    """So many requests, each so long after the answer before it; returns how long the loop was awake between them."""
    awake = 0.0
    for number in range(times):
        poll.heard(connections[number % len(connections)])
        loop.now += work
        poll.spoke()
        awake += loop.sleep(gap)
    return awake


def test_quick_requests_keep_it_awake(loop: Loop) -> None:
    poll = BusyPoll(loop, GAP, loop.clock)
    ask(loop, poll, 100, 30 * US)

    assert ask(loop, poll, 100, 30 * US) >= 100 * 30 * US


@pytest.mark.parametrize("gap", [60 * US, 200 * US, 5_000 * US, 1.0])
def test_slower_ones_cost_nothing(gap: float, loop: Loop) -> None:
    poll = BusyPoll(loop, GAP, loop.clock)

    assert ask(loop, poll, 200, gap) == 0


def test_several_connections_cost_nothing(loop: Loop) -> None:
    poll = BusyPoll(loop, GAP, loop.clock)

    assert ask(loop, poll, 200, 10 * US, connections=("one", "two")) == 0


def test_a_second_connection_ends_it_and_its_end_brings_it_back(loop: Loop) -> None:
    poll = BusyPoll(loop, GAP, loop.clock)
    ask(loop, poll, 200, 10 * US)
    ask(loop, poll, 4, 10 * US, connections=("one", "two"))

    assert ask(loop, poll, 100, 10 * US, connections=("one", "two")) == 0
    ask(loop, poll, 30, 10 * US)
    assert ask(loop, poll, 10, 10 * US) >= 10 * 10 * US


def test_it_sleeps_when_they_end(loop: Loop) -> None:
    poll = BusyPoll(loop, GAP, loop.clock)
    ask(loop, poll, 200, 30 * US)

    assert loop.sleep(10.0) <= 2 * GAP
    assert not loop.ready


def test_a_slow_model_between_them_is_no_gap(loop: Loop) -> None:
    poll = BusyPoll(loop, GAP, loop.clock)
    ask(loop, poll, 200, 30 * US, work=20_000 * US)

    assert loop.ready


def test_one_pause_does_not_end_it_for_long(loop: Loop) -> None:
    poll = BusyPoll(loop, GAP, loop.clock)
    ask(loop, poll, 200, 20 * US)
    loop.sleep(1.0)

    assert ask(loop, poll, 30, 20 * US) > 10 * 20 * US


def test_bursts_rarely_enough_cost_next_to_nothing(loop: Loop) -> None:
    """Four at once, ten times a second: awake for less than a thousandth of the time."""
    poll = BusyPoll(loop, GAP, loop.clock)
    awake = 0.0
    for _ in range(100):
        for _ in range(4):
            poll.heard("one")
        loop.now += 100 * US
        poll.spoke()
        awake += loop.sleep(0.1)

    assert awake < 100 * 0.1 / 1000


def test_zero_switches_it_off(loop: Loop) -> None:
    poll = BusyPoll(loop, 0.0, loop.clock)

    assert ask(loop, poll, 200, 1 * US) == 0
