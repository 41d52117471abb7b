"""Models in the gateway process itself: no worker to wake, and none to shield the gateway from a crash.

What is known to be quick runs at once, on the event loop: handing it to a thread and back takes longer than a small
model. Anything else runs on a thread, one batch at a time, while the loop goes on with other requests.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter
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
_GROWTH = 2
"""A batch of more than so many times the bytes of any that was quick is tried on the thread first, ..."""
_SMALL_BYTES = 16 * 1024
"""... but not one as small as this."""
_LONG_S = 0.005
"""A call that held up the loop for longer, though nothing told so before, ..."""
_WARY = 100
"""... keeps its model on the thread for so many times as long: where the work depends on what is asked (a loop, a
picture's true size), that holds up the loop for one part in a hundred at most."""
_FRESH_S = 0.005
"""How old the last reading of the processor clock may be: what held up the loop for longer than this is always known
for what it is. Each reading costs a microsecond, and several where other threads want the cores: too much for
every call."""
_WEIGHT = 0.2


class _Hosted:
    """One loaded model version, and what is known of the time that its calls take.

    A prediction passes `predict_on_loop` and little else, and counts fractions of a microsecond: what is rare is told
    in methods of its own.
    """

    def __init__(self, handler: Handler, clock: Callable[[], float]) -> None:
        """`clock` gives the seconds that the calling thread has worked."""
        self.handler = handler
        self.seconds_each = float("inf")
        """Running mean of what one prediction takes, those of unusual size left out."""
        self.quick_bytes = -1
        """Of the largest batch that may run on the loop; none before one was answered within `_QUICK_S`."""
        self.wary_until = 0.0
        """Second until which all runs on the thread, by `perf_counter`; 0 for none."""
        self._largest_bytes = -1
        self._clock = clock
        self._read_at = self._worked = 0.0
        """When the event loop's clock was read, and what it said."""

    def predict_on_loop(self, batch: Sequence[Prediction], size: int) -> list[Outcome]:
        """Answer a batch of so many bytes that will hardly hold up the loop."""
        began = perf_counter()
        if began - self._read_at > _FRESH_S:
            self._read_at, self._worked = began, self._clock()
        outcomes = self.handler.predict(batch)
        seconds = perf_counter() - began
        if seconds > _QUICK_S:
            self._learn_surprise(outcomes, size, began)
        else:
            self.seconds_each += _WEIGHT * (seconds / len(batch) - self.seconds_each)
            if size > self._largest_bytes:
                self._learn_size(outcomes, size)
        return outcomes

    def predict_on_thread(self, batch: Sequence[Prediction], size: int) -> list[Outcome]:
        began = self._clock()
        outcomes = self.handler.predict(batch)
        self._learn(outcomes, size, self._clock() - began)
        return outcomes

    def no_longer_wary(self) -> bool:
        if perf_counter() < self.wary_until:
            return False
        self.wary_until = 0.0
        return True

    def _learn_surprise(self, outcomes: list[Outcome], size: int, began: float) -> None:
        # so much of it was the model's, at least; the rest went to others on the same core, and says nothing
        seconds = self._clock() - self._worked - (began - self._read_at)
        if seconds > _QUICK_S:
            self._learn(outcomes, size, seconds)

    def _learn(self, outcomes: list[Outcome], size: int, seconds: float) -> None:
        if seconds < _QUICK_S:
            self._learn_size(outcomes, size)
        elif size > self.quick_bytes:
            return
        elif seconds > _LONG_S:
            self.wary_until = perf_counter() + _WARY * seconds
        each, known = seconds / len(outcomes), self.seconds_each
        self.seconds_each = each if known == float("inf") else known + _WEIGHT * (each - known)

    def _learn_size(self, outcomes: list[Outcome], size: int) -> None:
        # what was refused was hardly looked at
        if size > self._largest_bytes and all(outcome.ok for outcome in outcomes):
            self._largest_bytes = size
            self.quick_bytes = max(_GROWTH * size, _SMALL_BYTES)


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
        if self._settings.cpus and sys.platform == "linux":
            # this thread, and those that it starts from now on
            os.sched_setaffinity(0, self._settings.cpus_of(0))
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
            return
        size = 0
        for prediction in batch:
            if prediction.tensors is None:
                size += len(prediction.body)
            else:
                for tensor in prediction.tensors:
                    size += len(tensor.data)
        if (
            hosted.seconds_each * len(batch) < _QUICK_S
            and size <= hosted.quick_bytes
            and (not hosted.wary_until or hosted.no_longer_wary())
        ):
            try:
                answer: Answer = hosted.predict_on_loop(batch, size)
            except Exception as error:  # noqa: BLE001  the gateway lives on
                answer = _lost(error)
            land(answer)
        else:
            self._busy_since = time.monotonic()
            self._thread.submit(self._run_on_thread, hosted, batch, size, land)

    async def healthy(self) -> bool:
        """False while one batch computes for longer than it may: a thread cannot be stopped from outside."""
        return self._busy_since is None or time.monotonic() - self._busy_since < self._settings.run_timeout_s

    async def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._models.clear()

    def _run_on_thread(self, hosted: _Hosted, batch: Sequence[Prediction], size: int, land: Land) -> None:
        try:
            answer: Answer = hosted.predict_on_thread(batch, size)
        except Exception as error:  # noqa: BLE001  the gateway lives on
            answer = _lost(error)
        self._loop.call_soon_threadsafe(partial(self._come_back, land, answer))

    def _come_back(self, land: Land, answer: Answer) -> None:
        self._busy_since = None
        land(answer)


def _lost(error: Exception) -> BatchLost:
    lost = BatchLost(f"the handler failed: {type(error).__name__}: {error}")
    lost.__cause__ = error
    return lost


def _import_host() -> None:
    import handlers.host  # noqa: F401, PLC0415  a gateway that hosts nothing needs no ONNX Runtime


def _load(bundle: Bundle, settings: PoolSettings) -> _Hosted:
    from handlers.host import open_handler  # noqa: PLC0415

    # where nothing but the calling thread computes, its own time is right also on a core that is shared
    alone = settings.threads == 1 and settings.runtime["device"] == "cpu"
    hosted = _Hosted(open_handler(bundle.path, settings.runtime), time.thread_time if alone else perf_counter)
    golden = golden_prediction(bundle)
    if golden is not None:  # the second time: the first, while it was opened, has paid for what is made once
        hosted.predict_on_thread([golden], len(golden.body))
    return hosted
