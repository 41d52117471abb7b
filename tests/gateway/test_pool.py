"""Slots, losses and refusals, with a backend that does as the test says."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from formats.envelope import Outcome, Prediction
from gateway.backends.backend import BatchLost, BatchRefused, Land
from gateway.batcher import Batcher
from gateway.pool import Pool
from gateway.settings import PoolSettings
from gateway.timing import Timing
from model_store.manifest import Batching
from model_store.store import Bundle
from tests.gateway.observed import Observed

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
        self.now = 0.0
        self.answers: dict[str, str] = {}
        self.order: list[str] = []
        self.backend = ToldBackend(answer, capacity)
        self.pool = Pool("p", PoolSettings(device="cpu"), self.backend, lambda: self.now)
        self.batcher = self.new_batcher(max_batch_size)

    def new_batcher(self, max_batch_size: int = 8) -> Batcher:
        batcher = Batcher(
            self.pool,
            clock=lambda: self.now,
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

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


def fine(batch: str) -> list[Outcome]:
    return [Outcome() for _ in batch]


def break_on_x(answer: list[Outcome] | BaseException, batch: str) -> list[Outcome] | BaseException:
    return answer if "X" in batch else fine(batch)


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run


@in_loop
async def test_what_arrives_in_one_turn_of_the_loop_shares_a_batch() -> None:
    bench = Bench(fine)

    bench.submit("abc")
    await bench.settle()

    assert bench.backend.batches == ["abc"]
    assert bench.answers == {"a": "ok", "b": "ok", "c": "ok"}


@in_loop
async def test_under_load_a_batch_grows_to_what_arrived_while_the_last_one_ran() -> None:
    bench = Bench(lambda _: None)
    bench.submit("a")
    await bench.settle()
    bench.submit("b")
    await bench.settle()
    bench.submit("cd")
    await bench.settle()
    assert bench.backend.batches == ["a"]

    bench.backend.running.pop()([Outcome()])
    await bench.settle()

    assert bench.backend.batches == ["a", "bcd"]


@in_loop
async def test_no_more_batches_run_than_the_backend_has_capacity_for() -> None:
    bench = Bench(lambda _: None, capacity=2, max_batch_size=1)

    bench.submit("abcd")
    await bench.settle()

    assert bench.backend.batches == ["a", "b"]
    assert bench.pool.in_flight == 2


@in_loop
async def test_two_models_take_turns() -> None:
    bench = Bench(fine, max_batch_size=1)
    other = bench.new_batcher(1)

    bench.submit("abc")
    bench.submit("xyz", other)
    await bench.settle()

    assert "".join(bench.backend.batches) == "axbycz"


@in_loop
async def test_a_lost_batch_is_tried_again_each_alone() -> None:
    bench = Bench(lambda batch: BatchLost("died") if len(batch) > 1 else fine(batch))

    bench.submit("abc")
    await bench.settle()

    assert bench.backend.batches == ["abc", "a", "b", "c"]
    assert bench.answers == {"a": "ok", "b": "ok", "c": "ok"}


@in_loop
async def test_a_request_that_kills_twice_is_not_tried_a_third_time_and_harms_nobody() -> None:
    bench = Bench(lambda batch: BatchLost("died") if "X" in batch else fine(batch))

    bench.submit("abXc")
    await bench.settle()

    assert bench.backend.batches == ["abXc", "a", "b", "X", "c"]
    assert bench.answers == {"a": "ok", "b": "ok", "X": "BackendFailed", "c": "ok"}
    assert bench.pool.in_flight == 0


@in_loop
async def test_a_refused_batch_is_put_back_in_order_and_costs_no_attempt() -> None:
    refusals = iter([BatchRefused("full")] * 3)
    bench = Bench(lambda batch: next(refusals, None) or fine(batch))

    bench.submit("abc")
    await asyncio.sleep(0.2)

    assert bench.backend.batches == ["abc"] * 4
    assert bench.order == ["a", "b", "c"]


@in_loop
async def test_a_deadline_that_passes_while_the_batch_runs_is_answered() -> None:
    bench = Bench(lambda _: None)
    bench.submit("a", deadline=1.0)
    bench.submit("b", deadline=9.0)
    await bench.settle()
    bench.now = 2.0

    bench.pool.expire()
    assert bench.answers == {"a": "DeadlineExceeded"}
    bench.backend.running.pop()(fine("ab"))
    await bench.settle()

    assert bench.answers == {"a": "DeadlineExceeded", "b": "ok"}


@in_loop
async def test_what_expired_is_not_tried_again() -> None:
    bench = Bench(lambda _: None)
    bench.submit("a", deadline=1.0)
    await bench.settle()
    bench.now = 2.0
    bench.pool.expire()

    bench.backend.running.pop()(BatchLost("died"))
    await bench.settle()

    assert bench.backend.batches == ["a"]


@in_loop
async def test_a_backend_that_breaks_its_contract_costs_no_slot() -> None:
    """Too few outcomes, a foreign exception: answered as errors, and the next batch runs."""
    broken: list[list[Outcome] | BaseException] = [[Outcome()] * 3, RuntimeError("surprise")]
    for answer in broken:
        bench = Bench(partial(break_on_x, answer))
        bench.submit("Xa")
        await bench.settle()
        bench.submit("b")
        await bench.settle()

        assert bench.answers["b"] == bench.answers["a"] == "ok"
        assert bench.pool.in_flight == 0


@in_loop
async def test_a_backend_that_raises_at_once_costs_no_slot() -> None:
    def refuse(batch: str) -> list[Outcome]:
        if "X" in batch:
            raise RuntimeError("surprise")
        return fine(batch)

    bench = Bench(refuse)
    bench.submit("X")
    await bench.settle()
    bench.submit("a")
    await bench.settle()

    assert bench.answers == {"X": "BackendFailed", "a": "ok"}
    assert bench.pool.in_flight == 0


@in_loop
async def test_no_capacity_means_waiting_until_there_is_some() -> None:
    bench = Bench(fine, capacity=0)
    bench.submit("a")
    await bench.settle()
    assert bench.answers == {}

    bench.backend.capacity = 1
    bench.pool.pump()
    await bench.settle()

    assert bench.answers == {"a": "ok"}


@in_loop
async def test_a_backend_that_answers_twice_is_heard_once() -> None:
    bench = Bench(lambda _: None)
    bench.submit("a")
    await bench.settle()
    land = bench.backend.running.pop()

    land(fine("a"))
    land(fine("a"))

    assert bench.answers == {"a": "ok"}
    assert bench.pool.in_flight == 0
