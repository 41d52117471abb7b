"""Models in the gateway process itself: no worker to wake, and none to shield the gateway from a crash.

What is known to be quick runs at once, on the event loop: handing it to a thread and back takes longer than a small
model. Anything else runs on a thread, one batch at a time, while the loop goes on with other requests.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from formats.envelope import Outcome, Prediction
from gateway.backends.backend import Answer, BatchLost, BatchRefused, Land
from gateway.settings import PoolSettings
from model_store.golden import golden_prediction
from model_store.store import Bundle

if TYPE_CHECKING:
    from handlers.handler import Handler

__all__ = ["InProcessBackend"]

_QUICK_S = 0.001
"""Longest batch that may hold up the event loop, by what the model's calls took so far."""
_QUICK_BYTES = 64 * 1024
"""A large body takes long to read whatever the model: never on the loop. (A tensor is not read, only looked at.)"""
_WEIGHT = 0.2


class _Hosted:
    """One loaded model version."""

    def __init__(self, handler: Handler, seconds_each: float) -> None:
        self.handler = handler
        self.seconds_each = seconds_each
        """Running mean of what one prediction takes."""

    def predict(self, batch: Sequence[Prediction]) -> list[Outcome]:
        began = time.perf_counter()
        outcomes = self.handler.predict(batch)
        seconds = (time.perf_counter() - began) / len(batch)
        known = self.seconds_each
        self.seconds_each = seconds if known == float("inf") else known + _WEIGHT * (seconds - known)
        return outcomes


class InProcessBackend:
    """See `gateway.backends.backend.Backend`."""

    capacity = 1

    def __init__(self, name: str, settings: PoolSettings, run_dir: Path, count: Callable[[str], None]) -> None:  # noqa: ARG002
        self._name = name
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._models: dict[tuple[str, str], _Hosted] = {}
        self._busy_since: float | None = None
        """Monotonic second at which the thread got its batch."""

    async def start(self) -> None:
        await self._loop.run_in_executor(self._thread, _import_host)

    async def load(self, bundle: Bundle) -> None:
        hosted = await self._loop.run_in_executor(self._thread, _load, bundle, self._settings)
        self._models[bundle.manifest.name, bundle.manifest.version] = hosted

    async def unload(self, name: str, version: str) -> None:
        self._models.pop((name, version), None)

    def run(self, batch: Sequence[Prediction], land: Land) -> None:
        hosted = self._models.get((batch[0].model, batch[0].version))
        if hosted is None:
            land(BatchRefused(f"pool {self._name}: the model is not loaded"))
        elif (
            hosted.seconds_each * len(batch) < _QUICK_S
            and sum(len(prediction.body) for prediction in batch) < _QUICK_BYTES
        ):
            land(_answer(hosted, batch))
        else:
            self._busy_since = time.monotonic()
            self._thread.submit(self._run_on_thread, hosted, batch, land)

    async def healthy(self) -> bool:
        """False while one batch computes for longer than it may: a thread cannot be stopped from outside."""
        return self._busy_since is None or time.monotonic() - self._busy_since < self._settings.run_timeout_s

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._models.clear()

    def _run_on_thread(self, hosted: _Hosted, batch: Sequence[Prediction], land: Land) -> None:
        answer = _answer(hosted, batch)
        self._loop.call_soon_threadsafe(partial(self._come_back, land, answer))

    def _come_back(self, land: Land, answer: Answer) -> None:
        self._busy_since = None
        land(answer)


def _answer(hosted: _Hosted, batch: Sequence[Prediction]) -> Answer:
    try:
        return hosted.predict(batch)
    except Exception as error:  # noqa: BLE001  the gateway lives on
        lost = BatchLost(f"the handler failed: {type(error).__name__}: {error}")
        lost.__cause__ = error
        return lost


def _import_host() -> None:
    import handlers.host  # noqa: F401, PLC0415  a gateway that hosts nothing needs no ONNX Runtime


def _load(bundle: Bundle, settings: PoolSettings) -> _Hosted:
    from handlers.host import open_handler  # noqa: PLC0415

    handler = open_handler(bundle.path, settings.runtime)
    golden = golden_prediction(bundle)
    if golden is None:
        return _Hosted(handler, float("inf"))
    began = time.perf_counter()
    handler.predict([golden])  # the second time: the first, while it was opened, has paid for what is made once
    return _Hosted(handler, time.perf_counter() - began)
