"""Slots, losses and refusals, with a backend that does as the test says."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial

from formats.envelope import Outcome, Prediction
from formats.errors import NotFound
from gateway.backends.backend import BatchLost, BatchRefused, Land
from gateway.batcher import Batcher
from gateway.pool import Pool
from gateway.settings import PoolSettings
from gateway.timing import Timing
from model_store.manifest import Batching
from model_store.store import Bundle
from tests.gateway.observed import Observed
from tests.gateway.virtual_loop import VirtualLoop

Answer = Callable[[str], list[Outcome] | BaseException | None]


class ToldBackend:
    """Answers each batch, written as its request ids, by a function; None leaves it running."""

    def __init__(self, answer: Answer, capacity: int = 1) -> None:
        self.capacity = capacity
        self.batches: list[str] = []
        self.running: list[Land] = []
        self._answer = answer

    def run(self, batch: Sequence[Prediction], land: Land) -> None:
        text = "".join(prediction.request_id for prediction in batch)
        self.batches.append(text)
        answer = self._answer(text)
        if answer is None:
            self.running.append(land)
        else:
            land(answer)

    async def start(self) -> None: ...

    async def load(self, bundle: Bundle) -> None: ...

    async def unload(self, name: str, version: str) -> None: ...

    async def healthy(self) -> bool:
        return True

    async def close(self) -> None: ...


class Bench:
    def __init__(self, answer: Answer, *, capacity: int = 1, max_batch_size: int = 8) -> None:
        self.loop = VirtualLoop()
        self.answers: dict[str, str] = {}
        self.order: list[str] = []
        self.backend = ToldBackend(answer, capacity)
        self.pool = Pool("p", PoolSettings(device="cpu"), self.backend, self.loop.clock, lambda: self.loop)
        self.batcher = self.new_batcher(max_batch_size)

    def new_batcher(self, max_batch_size: int = 8) -> Batcher:
        batcher = Batcher(
            self.pool,
            clock=self.loop.clock,
            limits=Batching(max_batch_size=max_batch_size),
            max_queue=1000,
            observer=Observed(),
        )
        batcher.open()
        return batcher

    def submit(self, names: str, batcher: Batcher | None = None, deadline: float = 60.0) -> None:
        target = self.batcher if batcher is None else batcher
        for name in names:
            prediction = Prediction("m", "1", request_id=name, deadline=deadline)
            target.submit(prediction, partial(self._answered, name))

    def _answered(self, name: str, outcome: Outcome, _: Timing | None) -> None:
        assert name not in self.answers, f"{name} is answered twice"
        self.answers[name] = outcome.error_code or "ok"
        self.order.append(name)

    def settle(self) -> None:
        self.loop.settle()


def fine(batch: str) -> list[Outcome]:
    return [Outcome() for _ in batch]


def break_on_x(answer: list[Outcome] | BaseException, batch: str) -> list[Outcome] | BaseException:
    return answer if "X" in batch else fine(batch)


def test_what_arrives_in_one_turn_of_the_loop_shares_a_batch() -> None:
    bench = Bench(fine)

    bench.submit("abc")
    bench.settle()

    assert bench.backend.batches == ["abc"]
    assert bench.answers == {"a": "ok", "b": "ok", "c": "ok"}


def test_under_load_a_batch_grows_to_what_arrived_while_the_last_one_ran() -> None:
    bench = Bench(lambda _: None)
    bench.submit("a")
    bench.settle()
    bench.submit("b")
    bench.settle()
    bench.submit("cd")
    bench.settle()
    assert bench.backend.batches == ["a"]

    bench.backend.running.pop()([Outcome()])
    bench.settle()

    assert bench.backend.batches == ["a", "bcd"]


def test_no_more_batches_run_than_the_backend_has_capacity_for() -> None:
    bench = Bench(lambda _: None, capacity=2, max_batch_size=1)

    bench.submit("abcd")
    bench.settle()

    assert bench.backend.batches == ["a", "b"]
    assert bench.pool.in_flight == 2


def test_two_models_take_turns() -> None:
    bench = Bench(fine, max_batch_size=1)
    other = bench.new_batcher(1)

    bench.submit("abc")
    bench.submit("xyz", other)
    bench.settle()

    assert "".join(bench.backend.batches) == "axbycz"


def test_a_lost_batch_is_tried_again_each_alone() -> None:
    bench = Bench(lambda batch: BatchLost("died") if len(batch) > 1 else fine(batch))

    bench.submit("abc")
    bench.settle()

    assert bench.backend.batches == ["abc", "a", "b", "c"]
    assert bench.answers == {"a": "ok", "b": "ok", "c": "ok"}


def test_a_request_that_kills_twice_is_not_tried_a_third_time_and_harms_nobody() -> None:
    bench = Bench(lambda batch: BatchLost("died") if "X" in batch else fine(batch))

    bench.submit("abXc")
    bench.settle()

    assert bench.backend.batches == ["abXc", "a", "b", "X", "c"]
    assert bench.answers == {"a": "ok", "b": "ok", "X": "BackendFailed", "c": "ok"}
    assert bench.pool.in_flight == 0


def test_a_refused_batch_is_put_back_in_order_and_costs_no_attempt() -> None:
    refusals = iter([BatchRefused("full")] * 3)
    bench = Bench(lambda batch: next(refusals, None) or fine(batch))

    bench.submit("abc")
    bench.loop.run(until=0.2)

    assert bench.backend.batches == ["abc"] * 4
    assert bench.order == ["a", "b", "c"]


def test_a_deadline_that_passes_while_the_batch_runs_is_answered() -> None:
    bench = Bench(lambda _: None)
    bench.submit("a", deadline=1.0)
    bench.submit("b", deadline=9.0)
    bench.settle()
    bench.loop.run(until=2.0)

    assert bench.answers == {"a": "DeadlineExceeded"}
    bench.backend.running.pop()(fine("ab"))
    bench.settle()

    assert bench.answers == {"a": "DeadlineExceeded", "b": "ok"}


def test_what_expired_is_not_tried_again() -> None:
    bench = Bench(lambda _: None)
    bench.submit("a", deadline=1.0)
    bench.settle()
    bench.loop.run(until=2.0)

    bench.backend.running.pop()(BatchLost("died"))
    bench.settle()

    assert bench.backend.batches == ["a"]


def test_a_backend_that_breaks_its_contract_costs_no_slot() -> None:
    """Too few outcomes, a foreign exception: answered as errors, and the next batch runs."""
    broken: list[list[Outcome] | BaseException] = [[Outcome()] * 3, RuntimeError("surprise")]
    for answer in broken:
        bench = Bench(partial(break_on_x, answer))
        bench.submit("Xa")
        bench.settle()
        bench.submit("b")
        bench.settle()

        assert bench.answers["b"] == bench.answers["a"] == "ok"
        assert bench.pool.in_flight == 0


def test_a_backend_that_raises_at_once_costs_no_slot() -> None:
    def refuse(batch: str) -> list[Outcome]:
        if "X" in batch:
            raise RuntimeError("surprise")
        return fine(batch)

    bench = Bench(refuse)
    bench.submit("X")
    bench.settle()
    bench.submit("a")
    bench.settle()

    assert bench.answers == {"X": "BackendFailed", "a": "ok"}
    assert bench.pool.in_flight == 0


def test_no_capacity_means_waiting_until_there_is_some() -> None:
    bench = Bench(fine, capacity=0)
    bench.submit("a")
    bench.settle()
    assert bench.answers == {}

    bench.backend.capacity = 1
    bench.pool.pump()
    bench.settle()

    assert bench.answers == {"a": "ok"}


def test_a_backend_that_answers_twice_is_heard_once() -> None:
    bench = Bench(lambda _: None)
    bench.submit("a")
    bench.settle()
    land = bench.backend.running.pop()

    land(fine("a"))
    land(fine("a"))

    assert bench.answers == {"a": "ok"}
    assert bench.pool.in_flight == 0


def test_a_refused_batch_of_a_model_that_is_gone_is_answered_at_once() -> None:
    bench = Bench(lambda _: BatchRefused("the model is not loaded"))
    bench.submit("a")
    bench.settle()

    bench.batcher.retire(NotFound("model 'm' version 1 was removed"))
    bench.submit("b")

    assert bench.answers == {"a": "NotFound", "b": "NotFound"}


def test_a_batch_that_comes_back_refused_from_a_model_that_is_gone_is_answered_at_once() -> None:
    bench = Bench(lambda _: None)
    bench.submit("a")
    bench.settle()
    bench.batcher.retire(NotFound("model 'm' version 1 was removed"))

    bench.backend.running.pop()(BatchRefused("the model is not loaded"))

    assert bench.answers == {"a": "NotFound"}


def test_while_a_model_rests_after_a_refusal_others_run_and_its_own_deadlines_are_kept() -> None:
    bench = Bench(lambda batch: BatchRefused("full") if "x" in batch else fine(batch))
    other = bench.new_batcher()

    bench.submit("x", deadline=0.05)
    bench.submit("a", other)
    bench.loop.run(until=0.052)

    assert bench.answers == {"a": "ok", "x": "DeadlineExceeded"}
    assert bench.backend.batches == ["x", "a", "x", "x"]


def test_the_real_event_loop_serves_as_one() -> None:
    async def answered() -> dict[str, str]:
        bench = Bench(fine)
        pool = Pool("p", PoolSettings(device="cpu"), bench.backend, time.monotonic)
        batcher = Batcher(pool, clock=time.monotonic, limits=Batching(), max_queue=9, observer=Observed())
        bench.submit("late", batcher, deadline=time.monotonic() + 0.01)  # not open yet
        await asyncio.sleep(0.05)
        batcher.open()
        bench.submit("xyz", batcher, deadline=time.monotonic() + 60.0)
        await asyncio.sleep(0.01)
        return bench.answers

    answers = asyncio.run(answered())

    assert {answers[name] for name in "late"} == {"DeadlineExceeded"}
    assert {answers[name] for name in "xyz"} == {"ok"}
