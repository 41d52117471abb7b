"""The real pool and its batchers on a virtual loop, before a backend whose costs are known."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from formats.envelope import Outcome, Prediction, Stages
from gateway.backends.backend import Answer, BatchLost, Land
from gateway.batcher import Batcher, Memory
from gateway.pool import Pool
from gateway.settings import PoolSettings
from gateway.timing import Timing
from model_store.manifest import Batching
from model_store.store import Bundle
from tests.gateway.observed import Observed
from tests.gateway.virtual_loop import VirtualLoop

__all__ = ["Asked", "Client", "Model", "SimulatedBackend", "Simulation", "poisson"]


def poisson(per_second: float, seconds: float, seed: int = 3, start: float = 0.0) -> list[float]:
    """Seconds of arrival of requests that know nothing of each other."""
    generator, now, found = random.Random(seed), 0.0, []
    while (now := now + generator.expovariate(per_second)) < seconds:
        found.append(start + now)
    return found


class SimulatedBackend:
    """A call takes `call_s`, and `each_s` more for each prediction in it; `hop_s` of that is the way there and back."""

    def __init__(self, loop: VirtualLoop, call_s: float, each_s: float, hop_s: float | None, slots: int) -> None:
        self.capacity = slots
        self.calls: list[list[str]] = []
        self.beside = 0
        """Of these, how many were launched while another was under way."""
        self._running = 0
        self.extra_s: Callable[[int], float] = lambda _: 0.0
        """What the call of that number takes besides."""
        self.loses: Callable[[list[str]], bool] = lambda _: False
        self._loop, self._call_s, self._each_s, self._hop_s = loop, call_s, each_s, hop_s

    def run(self, batch: Sequence[Prediction], land: Land) -> None:
        names = [prediction.request_id for prediction in batch]
        self.beside += self._running > 0
        self._running += 1
        seconds = self._call_s + self._each_s * len(batch) + self.extra_s(len(self.calls))
        self.calls.append(names)
        stages = None if self._hop_s is None else Stages(0.0, seconds - self._hop_s, 0.0)
        answer: Answer = BatchLost("died") if self.loses(names) else [Outcome(stages=stages) for _ in batch]
        self._loop.call_later(seconds, partial(self._land, land, answer))

    def _land(self, land: Land, answer: Answer) -> None:
        self._running -= 1
        land(answer)

    async def start(self) -> None: ...

    async def load(self, bundle: Bundle) -> None: ...

    async def unload(self, name: str, version: str) -> None: ...

    async def healthy(self) -> bool:
        return True

    async def close(self) -> None: ...


@dataclass
class Asked:
    """One request and what became of it."""

    name: str
    arrived: float
    answered: float = 0.0
    code: str = ""
    queue_s: float = 0.0
    """Before its call."""

    @property
    def seconds(self) -> float:
        return self.answered - self.arrived


@dataclass
class Model:
    """A batcher, and all that was asked of it."""

    batcher: Batcher
    seen: Observed
    asked: list[Asked] = field(default_factory=list)

    @property
    def slowest(self) -> float:
        return max(asked.seconds for asked in self.asked)

    def codes(self) -> dict[str, str]:
        return {asked.name: asked.code for asked in self.asked}


class Simulation:
    """One pool. Predictions are named by number unless told otherwise."""

    def __init__(self, *, call_s: float, each_s: float, hop_s: float | None = None, slots: int = 1) -> None:
        self.loop = VirtualLoop(when_quiet=self._quiet)
        self.backend = SimulatedBackend(self.loop, call_s, each_s, hop_s, slots)
        self.pool = Pool("p", PoolSettings(device="cpu"), self.backend, self.loop.clock, lambda: self.loop)
        self.memory = Memory(1 << 40)
        self.models: list[Model] = []
        self._numbers = count()
        self.idle_waits = 0
        """Moments at which a prediction waited beside a free slot."""

    def model(self, *, limits: Batching | None = None, max_queue: int = 10**6) -> Model:
        seen = Observed()
        limits = limits or Batching(max_batch_size=64, max_batch_seconds=10.0)
        batcher = Batcher(
            self.pool,
            clock=self.loop.clock,
            limits=limits,
            max_queue=max_queue,
            observer=seen,
            memory=self.memory,
        )
        batcher.open()
        self.models.append(Model(batcher, seen))
        return self.models[-1]

    def ask(
        self,
        model: Model,
        times: list[float],
        *,
        budget_s: float = 1e6,
        body: bytes = b"",
        names: Sequence[str] = (),
    ) -> None:
        """Plan requests; each is answered exactly once or the simulation fails."""
        for number, at in enumerate(times):
            name = names[number] if names else str(next(self._numbers))
            self.loop.call_at(at, partial(self.submit, model, name, budget_s, body))

    def submit(
        self,
        model: Model,
        name: str,
        budget_s: float = 1e6,
        body: bytes = b"",
        then: Callable[[], object] = lambda: None,
    ) -> None:
        asked = Asked(name, self.loop.now)
        model.asked.append(asked)

        def deliver(outcome: Outcome, timing: Timing | None) -> None:
            assert not asked.code, f"{name} is answered twice"
            asked.answered, asked.code = self.loop.now, outcome.error_code or "ok"
            asked.queue_s = timing.queue_s if timing else 0.0
            then()

        deadline = self.loop.now + budget_s
        model.batcher.submit(Prediction("m", "1", body, request_id=name, deadline=deadline), deliver)

    def run(self, until: float = float("inf")) -> None:
        self.loop.run(until)

    def _quiet(self) -> None:
        if self.pool.in_flight < self.backend.capacity:
            self.idle_waits += any(len(model.batcher) for model in self.models)


class Client:
    """Asks again a moment after each answer, until told to stop."""

    def __init__(
        self, simulation: Simulation, model: Model, think_s: float, stop_at: float, start_at: float = 0.0
    ) -> None:
        self.answers: list[Asked] = []
        self._simulation, self._model, self._think_s, self._stop_at = simulation, model, think_s, stop_at
        simulation.loop.call_at(start_at, self._ask)

    def _ask(self) -> None:
        if self._simulation.loop.now < self._stop_at:
            self._simulation.submit(self._model, str(len(self._model.asked)), then=self._answered)
            self.answers.append(self._model.asked[-1])

    def _answered(self) -> None:
        self._simulation.loop.call_later(self._think_s, self._ask)
