"""The queue of one model version and mode, with a clock that only moves when told."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from formats.envelope import Outcome, Prediction, Tensor
from formats.errors import NotFound, NotReady
from gateway.batcher import Batcher, Memory, Pending, Timer
from gateway.timing import CallTiming, Timing
from model_store.manifest import Batching
from tests.gateway.observed import Observed
from tests.gateway.virtual_loop import VirtualLoop


@dataclass
class Bench:
    """A batcher, its clock, and everything that comes out of it."""

    max_batch_size: int = 4
    max_queue: int = 100
    now: float = 0.0
    offers: int = 0
    limits: Batching | None = None
    seen: Observed = field(default_factory=Observed)
    memory: Memory = field(default_factory=lambda: Memory(10**9))
    answers: dict[str, list[str]] = field(default_factory=dict)
    loop: VirtualLoop = field(default_factory=VirtualLoop)

    def __post_init__(self) -> None:
        self.batcher = Batcher(
            self,
            clock=lambda: self.now,
            limits=self.limits or Batching(max_batch_size=self.max_batch_size),
            max_queue=self.max_queue,
            observer=self.seen,
            memory=self.memory,
        )
        self.batcher.open()

    def _answered(self, name: str, outcome: Outcome, _: Timing | None) -> None:
        self.answers.setdefault(name, []).append(outcome.error_code or "ok")

    def offer(self, batcher: Batcher) -> None:  # noqa: ARG002
        self.offers += 1

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return self.loop.call_later(delay_s, callback)

    def submit(self, names: str, deadline: float = 60.0, body: bytes = b"") -> None:
        for name in names:
            self.batcher.submit(
                Prediction("m", "1", body, request_id=name, deadline=deadline),
                partial(self._answered, name),
            )

    def take(self, free_slots: int = 1) -> list[Pending]:
        return self.batcher.take(free_slots)

    def learn(self, seconds_each: float) -> None:
        """As after a call of one prediction that took so long."""
        self.batcher.landed(1, 0, CallTiming(0.0, seconds_each, None))


def names(batch: list[Pending]) -> str:
    return "".join(pending.prediction.request_id for pending in batch)


def test_a_first_prediction_may_run_at_once() -> None:
    bench = Bench()

    bench.submit("a")

    assert (bench.offers, names(bench.take())) == (1, "a")


def test_a_batch_grows_to_what_arrived_meanwhile_within_its_limit() -> None:
    bench = Bench(max_batch_size=4)

    bench.submit("abcdef")

    assert [names(bench.take()) for _ in range(3)] == ["abcd", "ef", ""]
    assert (bench.seen.sizes, bench.seen.reasons) == ([4, 2], ["full", "idle"])


def test_the_wait_of_the_oldest_is_observed() -> None:
    bench = Bench()
    bench.submit("a")
    bench.now = 2.5
    bench.submit("b")
    bench.now = 3.0

    bench.take()

    assert bench.seen.waits == [3.0]


def test_who_has_less_time_is_taken_first() -> None:
    bench = Bench()
    bench.submit("ab", deadline=9.0)
    bench.submit("c", deadline=3.0)
    bench.submit("d", deadline=4.0)

    assert names(bench.take()) == "cdab"


def test_who_has_waited_ten_seconds_is_not_overtaken() -> None:
    bench = Bench()
    bench.submit("a", deadline=60.0)
    bench.now = 9.0
    bench.submit("b", deadline=60.0)
    bench.submit("c", deadline=11.0)

    assert names(bench.take()) == "acb"


def test_what_nobody_has_answered_is_bounded_in_bytes() -> None:
    bench = Bench(memory=Memory(250))
    bench.submit("abc", body=bytes(100))
    assert bench.answers == {"c": ["Overloaded"]}

    batch = bench.take()
    bench.submit("d", body=bytes(100))
    assert bench.answers["d"] == ["Overloaded"]  # on its way, and still held
    for pending in batch:
        pending.answer(Outcome())

    bench.submit("e", body=bytes(400))  # alone, whatever its size
    assert names(bench.take()) == "e"


def test_tensors_count_by_their_data() -> None:
    bench = Bench(memory=Memory(250))
    tensors = (Tensor("x", "FP32", (50,), bytes(200)), Tensor("y", "FP32", (10,), bytes(40)))

    bench.batcher.submit(Prediction("m", "1", tensors=tensors), lambda *_: None)

    assert bench.memory.held == 240


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_queue": 1}, "limit: max_queue"),
        ({"memory": Memory(10)}, "100 bytes .* 100 more .* max_pending_bytes"),
    ],
)
def test_a_refusal_names_the_limit(limits: dict[str, Any], expected: str) -> None:
    bench, said = Bench(**limits), []
    bench.submit("a", body=bytes(100))

    bench.batcher.submit(Prediction("m", "1", bytes(100)), lambda outcome, _: said.append(outcome.error_message))

    assert re.search(expected, said[0])


def test_one_too_many_is_refused_as_overload() -> None:
    bench = Bench(max_queue=2)

    bench.submit("abc")

    assert bench.answers == {"c": ["Overloaded"]}
    assert names(bench.take()) == "ab"


def test_the_expired_are_answered_and_not_sent() -> None:
    bench = Bench()
    bench.submit("a", deadline=1.0)
    bench.submit("b", deadline=9.0)
    bench.now = 1.0

    assert names(bench.take()) == "b"
    assert bench.answers == {"a": ["DeadlineExceeded"]}


def test_waiting_past_the_deadline_is_answered_without_being_taken() -> None:
    bench = Bench()
    bench.submit("ab", deadline=1.0)
    bench.submit("c", deadline=9.0)
    bench.now = 2.0

    bench.batcher.expire()

    assert bench.answers == {"a": ["DeadlineExceeded"], "b": ["DeadlineExceeded"]}
    assert len(bench.batcher) == 1


def test_an_answer_to_the_late_may_bring_the_next_request() -> None:
    """A connection that has sent several at once goes on with the next when the first is answered."""
    bench = Bench()
    again = partial(bench.submit, "n", deadline=9.0)
    bench.batcher.submit(Prediction("m", "1", deadline=1.0), lambda *_: again())
    bench.submit("b", deadline=8.0)
    bench.now = 2.0

    bench.batcher.expire()

    assert names(bench.take()) == "bn"


def test_an_answer_is_delivered_once() -> None:
    bench = Bench()
    bench.submit("a", deadline=1.0)
    (pending,) = bench.take()
    bench.now = 2.0

    pending.expire(bench.now)
    pending.answer(Outcome())

    assert bench.answers == {"a": ["DeadlineExceeded"]}


def test_what_was_lost_once_goes_alone() -> None:
    bench = Bench()
    bench.submit("abcd")
    batch = bench.take()
    batch[1].attempts = batch[2].attempts = 1

    bench.batcher.put_back(batch)

    assert [names(bench.take()) for _ in range(4)] == ["a", "b", "c", "d"]


def test_what_is_put_back_keeps_its_order_and_goes_first() -> None:
    bench = Bench()
    bench.submit("abc")
    batch = bench.take()
    bench.submit("de")

    bench.batcher.put_back(batch)

    assert names(bench.take()) + names(bench.take()) == "abcde"


def test_a_closed_batcher_holds_back_until_it_is_opened() -> None:
    bench = Bench()
    bench.batcher.close()
    bench.submit("a")
    assert (bench.offers, bench.take()) == (0, [])

    bench.batcher.open()

    assert (bench.offers, names(bench.take())) == (1, "a")


def test_a_failing_model_answers_everything_that_waits() -> None:
    bench = Bench()
    bench.submit("ab")

    bench.batcher.fail(NotReady("no"))

    assert bench.answers == {"a": ["NotReady"], "b": ["NotReady"]}
    assert len(bench.batcher) == 0


def test_a_model_that_is_gone_answers_what_waits_what_comes_back_and_what_still_comes() -> None:
    bench = Bench()
    bench.submit("a")
    batch = bench.take()
    bench.submit("b")

    bench.batcher.retire(NotFound("gone"))
    bench.batcher.put_back(batch)
    bench.submit("c")

    assert bench.answers == {"a": ["NotFound"], "b": ["NotFound"], "c": ["NotFound"]}
    assert bench.take() == []


def test_an_answer_that_cannot_be_written_becomes_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A neighbour's broken answer must not stop the loop that hands out a batch's answers."""
    said = []

    def deliver(outcome: Outcome, _: Timing | None) -> None:
        said.append(outcome.error_code)
        if outcome.ok:
            raise TypeError("cannot be written")

    Pending(Prediction("m", "1", request_id="x"), deliver, 0.0, 0.0, 0, Memory(0)).answer(Outcome())

    assert said == ["", "BackendFailed"]
    assert "request x" in caplog.text


def test_one_more_that_would_make_the_first_late_waits_for_the_next_call() -> None:
    bench = Bench(max_batch_size=10)
    bench.learn(0.02)
    bench.submit("a", deadline=0.05)
    bench.submit("bcdef", deadline=9.0)

    assert names(bench.take()) == "ab"
    assert bench.seen.reasons == ["deadline"]


def test_a_batch_takes_no_longer_than_its_limit_by_what_calls_took() -> None:
    bench = Bench(limits=Batching(max_batch_size=10, max_batch_seconds=0.1))
    bench.learn(0.03)
    bench.submit("abcdef")

    assert (names(bench.take()), bench.seen.reasons) == ("abc", ["full"])


def test_the_slowest_model_still_runs_one_at_a_time() -> None:
    bench = Bench()
    bench.learn(40.0)
    bench.submit("ab")

    assert names(bench.take()) == "a"


def test_what_takes_long_is_shared_between_idle_slots() -> None:
    bench = Bench(max_batch_size=10)
    bench.learn(0.003)
    bench.submit("abcde")

    assert (names(bench.take(2)), names(bench.take(1))) == ("abc", "de")


def test_what_takes_no_time_is_not_worth_two_calls() -> None:
    bench = Bench(max_batch_size=10)
    bench.learn(0.0001)
    bench.submit("abcde")

    assert names(bench.take(2)) == "abcde"


def test_only_bodies_of_like_length_share_a_batch_and_none_is_overtaken_by_its_own_kind() -> None:
    bench = Bench(limits=Batching(max_batch_size=10, bucket_bytes=[10, 100]))
    for name, length in (("a", 5), ("L", 1000), ("b", 10), ("M", 11), ("c", 0), ("N", 100), ("K", 101)):
        body = bytes(length)
        bench.batcher.submit(Prediction("m", "1", body, request_id=name, deadline=60.0), lambda *_: None)

    assert [names(bench.take()) for _ in range(4)] == ["abc", "LK", "MN", ""]


def test_who_is_late_even_alone_does_not_cut_the_batch_of_the_others() -> None:
    bench = Bench(max_batch_size=10)
    bench.learn(0.02)
    bench.submit("a", deadline=0.01)
    bench.submit("bcd", deadline=9.0)

    assert names(bench.take()) == "abcd"


def test_who_is_passed_over_for_its_length_still_gets_its_own_call_in_time() -> None:
    """At 10 ms each, the long one needs 10 of its 45 ms for itself: three short ones may go before it."""
    bench = Bench(limits=Batching(max_batch_size=10, bucket_bytes=[10]))
    bench.learn(0.01)
    bench.submit("a", deadline=0.04)
    bench.submit("L", deadline=0.045, body=bytes(100))
    bench.submit("bcde", deadline=9.0)

    assert [names(bench.take()), names(bench.take())] == ["abc", "L"]
