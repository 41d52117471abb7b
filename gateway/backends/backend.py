"""The contract of a backend: what a pool plugs in to run batches somewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

from formats.envelope import Outcome, Prediction
from gateway.settings import PoolSettings
from model_store.store import Bundle

__all__ = [
    "Answer",
    "Backend",
    "BackendFactory",
    "BatchLost",
    "BatchRefused",
    "Land",
    "answer_of",
    "find_backend",
    "land_later",
]


class BatchRefused(Exception):
    """Nothing of the batch was executed (saturated, or nobody to send it to): it may be sent elsewhere at once."""


class BatchLost(Exception):
    """The batch was sent and no answer will come (worker died, connection broke): it may be repeated once."""


Answer = list[Outcome] | BaseException
Land = Callable[[Answer], None]
"""Called once for each batch: with its outcomes, or with `BatchRefused` or `BatchLost` when it got none as a whole."""


class Backend(Protocol):
    """Runs batches for one pool; found by the entry point `penstock.backends`."""

    @property
    def capacity(self) -> int:
        """Batches that make sense to have in flight at once; the batcher keeps the rest in its own queue."""

    async def start(self) -> None:
        """Start or connect; returns when loads can be accepted. Raises `BackendUnavailable` with the reason."""

    async def load(self, bundle: Bundle) -> None:
        """Make one model version servable; returns when it is. Raises `PenstockError` with the reason."""

    async def unload(self, name: str, version: str) -> None:
        """Free one model version; unknown ones are ignored."""

    def run(self, batch: Sequence[Prediction], land: Land) -> None:
        """Answer a batch of one model version: same length, same order, an `Outcome` for each item's own error.

        `land` is called exactly once, on the event loop, possibly before this returns: a callback, because a future
        costs each batch another turn of the loop. A backend made of coroutines hands one to `land_later`.
        """

    async def healthy(self) -> bool:
        """Could a batch be answered now?"""

    async def close(self) -> None:
        """Stop everything that `start` started. The caller has drained: nothing is in flight."""


BackendFactory = Callable[[str, PoolSettings, Path, Callable[[str], None]], Backend]
"""Called with the pool's name, its settings, a private directory for sockets, logs and temporary files, and a function
that counts an event by name (`worker_started`, `worker_died`, ...) in the pool's metrics."""


async def answer_of(backend: Backend, batch: Sequence[Prediction]) -> list[Outcome]:
    """Run one batch and wait. Raises `BatchRefused` or `BatchLost`."""
    future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()

    def land(answer: Answer) -> None:
        if future.done():
            return
        if isinstance(answer, BaseException):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    backend.run(batch, land)
    return await future


def land_later(answer: Awaitable[list[Outcome]], land: Land) -> None:
    """Land what a coroutine returns or raises."""

    def done(future: asyncio.Future[list[Outcome]]) -> None:
        if future.cancelled():
            land(BatchLost("the call was cancelled"))
        else:
            land(future.exception() or future.result())

    asyncio.ensure_future(answer).add_done_callback(done)


def find_backend(name: str) -> BackendFactory:
    """The factory registered under a name.

    Raises:
        ValueError: nobody registered it.
    """
    found = {entry.name: entry for entry in entry_points(group="penstock.backends")}
    if name not in found:
        raise ValueError(f"backend '{name}' is not installed; found: {', '.join(sorted(found))}")
    factory: BackendFactory = found[name].load()
    return factory
