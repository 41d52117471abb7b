"""The queue of one model version and mode, with a clock that only moves when told."""

from dataclasses import dataclass, field
from functools import partial

import pytest

from formats.envelope import Outcome, Prediction
from formats.errors import NotReady
from gateway.batcher import Batcher, Pending


@dataclass
class Bench:
    """A batcher, its clock, and everything that comes out of it."""

    max_batch_size: int = 4
    max_queue: int = 100
    now: float = 0.0
    offers: int = 0
    sizes: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    answers: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.batcher = Batcher(
            self,
            clock=lambda: self.now,
            max_batch_size=self.max_batch_size,
            max_queue=self.max_queue,
            observe_size=self.sizes.append,
            observe_wait=self.waits.append,
        )
        self.batcher.open()

    def _answered(self, name: str, outcome: Outcome) -> None:
        self.answers.setdefault(name, []).append(outcome.error_code or "ok")

    def offer(self, batcher: Batcher) -> None:  # noqa: ARG002
        self.offers += 1

    def submit(self, names: str, deadline: float = 60.0) -> None:
        for name in names:
            self.batcher.submit(
                Prediction("m", "1", request_id=name, deadline=deadline),
                partial(self._answered, name),
            )

    def take(self) -> list[Pending]:
        return self.batcher.take()


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
    assert bench.sizes == [4, 2]


def test_the_wait_of_the_oldest_is_observed() -> None:
    bench = Bench()
    bench.submit("a")
    bench.now = 2.5
    bench.submit("b")
    bench.now = 3.0

    bench.take()

    assert bench.waits == [3.0]


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


def test_an_answer_that_cannot_be_written_becomes_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """A neighbour's broken answer must not stop the loop that hands out a batch's answers."""
    said = []

    def deliver(outcome: Outcome) -> None:
        said.append(outcome.error_code)
        if outcome.ok:
            raise TypeError("cannot be written")

    Pending(Prediction("m", "1", request_id="x"), deliver, 0.0).answer(Outcome())

    assert said == ["", "BackendFailed"]
    assert "request x" in caplog.text
