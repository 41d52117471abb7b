"""Worker processes and large bodies: both ways through shared memory, batch after batch, and after a death."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from formats.arena import ARENA_BYTES, LARGE_BYTES
from formats.envelope import Outcome, Prediction, Tensor
from formats.frames import Kind, encode_frame
from formats.tensors import tensor_of
from gateway.backends.backend import BatchLost, BatchRefused, answer_of
from gateway.backends.embedded import EmbeddedBackend
from gateway.settings import PoolSettings
from model_store.store import Bundle
from tests.gateway.graphs import publish_echo

TEXT = "água" * LARGE_BYTES


@pytest.fixture
def echo(tmp_path: Path) -> Bundle:
    return publish_echo(tmp_path / "store")


def run(test: Callable[[EmbeddedBackend], Coroutine[Any, Any, Any]], bundle: Bundle, path: Path) -> Any:
    async def in_loop() -> Any:
        backend = EmbeddedBackend("cpu", PoolSettings(device="cpu", workers=1), path, lambda _: None)
        await backend.start()
        try:
            await backend.load(bundle)
            return await test(backend)
        finally:
            await backend.close()

    return asyncio.run(in_loop())


def raw(text: str) -> Prediction:
    return Prediction("echo", "1", tensors=(tensor_of("text", np.array([text], dtype=object)),))


def plain(text: str) -> Prediction:
    return Prediction("echo", "1", orjson.dumps({"text": [text]}), "application/json")


def said(outcome: Outcome) -> str:
    if outcome.tensors is None:
        return str(orjson.loads(outcome.body)["text_out"][0])
    (tensor,) = outcome.tensors
    return bytes(tensor.data)[4:].decode()


def test_large_and_small_neighbours_come_back_whole(echo: Bundle, tmp_path: Path) -> None:
    texts = [TEXT, "small", TEXT[::-1], TEXT + "more"]

    async def ask(backend: EmbeddedBackend) -> list[Outcome]:
        return await answer_of(backend, [raw(texts[0]), plain(texts[1]), plain(texts[2]), raw(texts[3])])

    assert [said(outcome) for outcome in run(ask, echo, tmp_path)] == texts


def test_an_answer_is_not_overwritten_by_the_next_batch(echo: Bundle, tmp_path: Path) -> None:
    async def ask_twice(backend: EmbeddedBackend) -> list[Outcome]:
        return [(await answer_of(backend, [raw(text)]))[0] for text in (TEXT, TEXT[::-1])]

    assert [said(outcome) for outcome in run(ask_twice, echo, tmp_path)] == [TEXT, TEXT[::-1]]


def test_more_than_shared_memory_holds_is_answered_too(echo: Bundle, tmp_path: Path) -> None:
    text = "x" * (ARENA_BYTES // 3)

    async def ask(backend: EmbeddedBackend) -> list[Outcome]:
        return await answer_of(backend, [raw(text + str(index)) for index in range(4)])

    assert [len(said(outcome)) for outcome in run(ask, echo, tmp_path)] == [len(text) + 1] * 4


def test_a_broken_large_body_fails_alone(echo: Bundle, tmp_path: Path) -> None:
    broken = Prediction("echo", "1", tensors=(Tensor("text", "BYTES", (1,), b"\xff" * LARGE_BYTES * 2),))

    async def ask(backend: EmbeddedBackend) -> list[Outcome]:
        return await answer_of(backend, [raw(TEXT), broken, raw(TEXT)])

    assert [outcome.error_code for outcome in run(ask, echo, tmp_path)] == ["", "InvalidBody", ""]


def test_a_new_worker_has_memory_of_its_own(echo: Bundle, tmp_path: Path) -> None:
    async def kill_and_ask(backend: EmbeddedBackend) -> list[Outcome]:
        (first,) = backend._workers  # nobody else knows its pid
        os.kill(first.process.pid, signal.SIGKILL)
        with pytest.raises(BatchLost):
            await answer_of(backend, [raw(TEXT)])
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(BatchRefused):
                    return await answer_of(backend, [raw(TEXT)])
                await asyncio.sleep(0.05)

    assert [said(outcome) for outcome in run(kill_and_ask, echo, tmp_path)] == [TEXT]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not bind processes")
def test_workers_are_bound_to_processors_of_their_own(echo: Bundle, tmp_path: Path) -> None:
    there = sorted(os.sched_getaffinity(0))[:2]

    async def bound() -> list[set[int]]:
        settings = PoolSettings(device="cpu", workers=3, cpus=there)
        backend = EmbeddedBackend("cpu", settings, tmp_path, lambda _: None)
        await backend.start()
        try:
            await backend.load(echo)
            return [set(os.sched_getaffinity(each.process.pid)) for each in backend._workers]
        finally:
            await backend.close()

    found = asyncio.run(bound())
    expected = [{there[number % len(there)]} for number in range(3)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))


def test_a_batch_that_cannot_be_sent_is_landed_and_leaves_its_worker_idle(echo: Bundle, tmp_path: Path) -> None:
    """msgpack has no integers of 65 bits; an innocent worker must not be taken for one that hangs."""

    async def ask_wrongly(backend: EmbeddedBackend) -> list[Outcome]:
        wrong = raw("a")
        wrong.parameters = {"number": 2**64}  # type: ignore[dict-item]  # no protocol lets it in
        with pytest.raises(BatchLost, match="cannot be packed"):
            await answer_of(backend, [raw("b"), wrong])
        assert [worker.busy_since for worker in backend._workers] == [None]
        return await answer_of(backend, [raw("c")])

    assert [said(outcome) for outcome in run(ask_wrongly, echo, tmp_path)] == ["c"]


@pytest.mark.parametrize("kind", [Kind.DONE, Kind.FAILED])
def test_an_answer_that_cannot_be_read_gives_its_slot_back(echo: Bundle, tmp_path: Path, kind: Kind) -> None:
    async def answer_wrongly(backend: EmbeddedBackend) -> list[Outcome]:
        (worker,) = backend._workers
        asked = asyncio.ensure_future(answer_of(backend, [raw("a")]))
        await asyncio.sleep(0)
        (call,) = worker.connection._calls
        worker.connection.data_received(encode_frame(kind, call, 0, b"\xc1"))
        with pytest.raises(BatchLost, match="cannot be read"):
            await asyncio.wait_for(asked, 5)
        return await answer_of(backend, [raw("b")])

    assert [said(outcome) for outcome in run(answer_wrongly, echo, tmp_path)] == ["b"]
