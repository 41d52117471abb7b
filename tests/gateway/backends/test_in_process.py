"""Models in the gateway's own process: what runs at once, what runs on the thread, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from formats.envelope import Outcome, Prediction, Tensor
from formats.errors import CorruptBundle
from formats.tensors import tensor_of
from gateway.backends import in_process
from gateway.backends.backend import Answer, BatchLost, BatchRefused, answer_of, find_backend
from gateway.backends.in_process import InProcessBackend
from gateway.settings import PoolSettings
from model_store.store import Bundle, Store
from tests.bundles import golden_image, image_png, publish_tiny
from tests.gateway.graphs import publish_arithmetic, publish_slow

GOLDEN = image_png(golden_image(4, 4))


def run(test: Callable[[InProcessBackend], Coroutine[Any, Any, Any]], path: Path, **settings: Any) -> Any:
    async def in_loop() -> Any:
        async with started(path, **settings) as backend:
            return await test(backend)

    return asyncio.run(in_loop())


@contextlib.asynccontextmanager
async def started(path: Path, **settings: Any) -> AsyncIterator[InProcessBackend]:
    factory = find_backend("embedded")
    backend = factory("cpu", PoolSettings(device="cpu", workers=0, **settings), path, lambda _: None)
    assert isinstance(backend, InProcessBackend)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


@pytest.fixture
def tiny(tmp_path: Path) -> Bundle:
    return publish_tiny(tmp_path / "store")


@pytest.fixture
def slow(tmp_path: Path) -> Bundle:
    return publish_slow(tmp_path / "store")


def ask(body: bytes = GOLDEN, content_type: str = "image/png") -> Prediction:
    return Prediction("tiny", "1", body, content_type)


def take_long(rounds: int) -> Prediction:
    return Prediction("slow", "1", tensors=(Tensor("rounds", "INT64", (1,), np.int64(rounds).tobytes()),))


async def ran_at_once(backend: InProcessBackend, *batch: Prediction) -> bool:
    """Runs a batch to its end; was it answered on the loop?"""
    landed = asyncio.Event()
    backend.run(batch, lambda _: landed.set())
    found = landed.is_set()
    await landed.wait()
    return found


def numbers(num_rows: int) -> Prediction:
    rows = np.ones((num_rows, 2), np.float32)
    return Prediction("arithmetic", "1", tensors=(tensor_of("a", rows), tensor_of("b", rows)))


def codes(outcomes: list[Outcome]) -> list[str]:
    return [outcome.error_code or "ok" for outcome in outcomes]


def test_a_model_known_to_be_quick_is_answered_before_run_returns(tiny: Bundle, tmp_path: Path) -> None:
    async def ask_three(backend: InProcessBackend) -> list[Answer]:
        await backend.load(tiny)
        for _ in range(20):  # on a busy machine the first few take long
            await answer_of(backend, [ask()])
        answers: list[Answer] = []
        backend.run([ask(), ask(b"no image"), ask()], answers.append)
        return answers

    (answer,) = run(ask_three, tmp_path)

    assert isinstance(answer, list)
    assert codes(answer) == ["ok", "InvalidBody", "ok"]
    assert answer[0].stages == answer[2].stages
    assert answer[0].stages is not None
    assert answer[0].stages.graph > 0


def test_a_model_nobody_has_timed_runs_on_the_thread_and_the_loop_goes_on(slow: Bundle, tmp_path: Path) -> None:
    async def ask_slow(backend: InProcessBackend) -> tuple[int, Answer]:
        await backend.load(slow)
        answers: list[Answer] = []
        backend.run([take_long(400)], answers.append)
        turns = 0
        while not answers:
            turns += 1
            await asyncio.sleep(0.001)
        return turns, answers[0]

    turns, answer = run(ask_slow, tmp_path)

    assert turns > 5
    assert isinstance(answer, list)
    assert codes(answer) == ["ok"]


def test_a_large_body_never_holds_up_the_loop(tiny: Bundle, tmp_path: Path) -> None:
    async def ask_large(backend: InProcessBackend) -> list[Answer]:
        await backend.load(tiny)
        answers: list[Answer] = []
        backend.run([ask(bytes(200_000))], answers.append)
        at_once = list(answers)
        await asyncio.sleep(0.5)
        return [*at_once, "later", *answers]  # type: ignore[list-item]

    later, answer = run(ask_large, tmp_path)

    assert later == "later"
    assert codes(answer) == ["InvalidBody"]


def test_large_tensors_are_tried_on_the_thread_before_they_may_hold_up_the_loop(tmp_path: Path) -> None:
    bundle = publish_arithmetic(tmp_path / "store")

    async def ask_growing(backend: InProcessBackend) -> dict[str, list[bool]]:
        await backend.load(bundle)
        return {
            "the first": [await ran_at_once(backend, numbers(1))],
            "like it": [await ran_at_once(backend, numbers(rows)) for rows in (1, 100)],
            "25 MB": [await ran_at_once(backend, numbers(1_600_000)) for _ in range(3)],
            "small again": [await ran_at_once(backend, numbers(1)) for _ in range(3)],
            "larger": [await ran_at_once(backend, numbers(4000)) for _ in range(3)],
        }

    assert run(ask_growing, tmp_path) == {
        "the first": [False],
        "like it": [True, True],
        "25 MB": [False, False, False],
        "small again": [True, True, True],
        "larger": [False, True, True],
    }


def test_a_large_body_that_is_refused_does_not_open_the_loop_to_large_ones(tiny: Bundle, tmp_path: Path) -> None:
    async def ask_twice(backend: InProcessBackend) -> list[bool]:
        await backend.load(tiny)
        return [await ran_at_once(backend, ask(bytes(200_000))) for _ in range(2)]

    assert run(ask_twice, tmp_path) == [False, False]


def test_a_model_whose_work_depends_on_what_is_asked_holds_up_the_loop_once(slow: Bundle, tmp_path: Path) -> None:
    async def ask_mixed(backend: InProcessBackend) -> list[list[bool]]:
        await backend.load(slow)
        quick = [await ran_at_once(backend, take_long(0)) for _ in range(100)]
        turns = []
        for _ in range(5):
            turns.append(await ran_at_once(backend, take_long(200)))
            turns += [await ran_at_once(backend, take_long(0)) for _ in range(30)]
        return [quick, turns]

    quick, turns = run(ask_mixed, tmp_path)

    assert quick == [False] + [True] * 99
    assert turns.count(True) <= 1


def test_a_model_that_was_slow_comes_back_to_the_loop(
    slow: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "_WARY", 2)

    async def ask_later(backend: InProcessBackend) -> list[bool]:
        await backend.load(slow)
        await ran_at_once(backend, take_long(0))
        before = await ran_at_once(backend, take_long(200))
        soon = await ran_at_once(backend, take_long(0))
        while not await ran_at_once(backend, take_long(0)):
            pass
        return [before, soon]

    assert run(ask_later, tmp_path) == [True, False]


def test_a_core_that_others_use_does_not_make_a_model_slow(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lose_the_core(backend: InProcessBackend) -> list[bool]:
        await backend.load(tiny)
        for _ in range(20):
            await answer_of(backend, [ask()])
        handler = backend._models["tiny", "1"].handler
        predict = handler.predict

        def preempted(batch: Sequence[Prediction]) -> list[Outcome]:
            time.sleep(0.01)
            return predict(batch)

        monkeypatch.setattr(handler, "predict", preempted)
        return [await ran_at_once(backend, ask()) for _ in range(10)]

    assert run(lose_the_core, tmp_path) == [True] * 10


def test_what_is_not_loaded_is_refused(tiny: Bundle, tmp_path: Path) -> None:
    async def unload(backend: InProcessBackend) -> list[str]:
        found = []
        for step in (None, backend.load(tiny), backend.unload("tiny", "1"), backend.unload("tiny", "1")):
            if step is not None:
                await step
            try:
                found += codes(await answer_of(backend, [ask()]))
            except BatchRefused:
                found.append("refused")
        return found

    assert run(unload, tmp_path) == ["refused", "ok", "refused", "refused"]


def test_a_damaged_model_is_not_loaded_and_says_why(tiny: Bundle, tmp_path: Path) -> None:
    (tiny.path / "golden.json").write_bytes(b"[0.9, 0.05, 0.05]")

    async def load(backend: InProcessBackend) -> None:
        await backend.load(tiny)

    with pytest.raises(CorruptBundle, match=r"golden\.json"):
        run(load, tmp_path)


def test_a_handler_that_fails_as_a_whole_loses_its_batch_and_nothing_else(
    tiny: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail_once(backend: InProcessBackend) -> list[str]:
        await backend.load(tiny)
        hosted = backend._models["tiny", "1"]
        with monkeypatch.context() as patched:
            patched.setattr(hosted.handler, "predict", lambda _: 1 / 0)
            with pytest.raises(BatchLost, match="ZeroDivisionError"):
                await answer_of(backend, [ask()])
        return codes(await answer_of(backend, [ask()]))

    assert run(fail_once, tmp_path) == ["ok"]


def test_a_batch_that_computes_for_too_long_makes_the_pool_ill_until_it_ends(slow: Bundle, tmp_path: Path) -> None:
    async def hang(backend: InProcessBackend) -> list[bool]:
        await backend.load(slow)
        before = await backend.healthy()
        running = asyncio.ensure_future(answer_of(backend, [take_long(800)]))
        began = time.monotonic()
        while await backend.healthy() and time.monotonic() < began + 20:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        during = await backend.healthy()
        await running
        return [before, during, await backend.healthy()]

    assert run(hang, tmp_path, run_timeout_s=0.02) == [True, False, True]


def test_torchserve_cannot_do_without_workers() -> None:
    with pytest.raises(ValueError, match="workers = 0 is for backend 'embedded'"):
        PoolSettings(device="cpu", backend="torchserve", workers=0)


def test_two_versions_live_side_by_side(tmp_path: Path) -> None:
    root = tmp_path / "store"
    publish_tiny(root, num_classes=3)
    publish_tiny(root, num_classes=4)

    async def ask_both(backend: InProcessBackend) -> list[int]:
        for version in ("1", "2"):
            await backend.load(Store(root).open("tiny", version))
        lengths = []
        for version in ("1", "2"):
            (outcome,) = await answer_of(backend, [Prediction("tiny", version, GOLDEN, "image/png")])
            lengths.append(outcome.body.count(b",") + 1)
        return lengths

    assert run(ask_both, tmp_path) == [3, 4]
