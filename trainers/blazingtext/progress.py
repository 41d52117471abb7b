"""The log lines of the original's word2vec and fastText (BlazingText contract, section 4)."""

from __future__ import annotations

import time

from rich.progress import Progress

from trainers.progress import log

__all__ = ["Meter"]

_SECONDS_PER_LINE = 1.0


class Meter:
    """Counts a run's progress in `total` steps of `words` words each; `began` is when reading did."""

    def __init__(self, bar: Progress | None, *, total: int, rate: float, began: float, words: float = 1.0) -> None:
        self._bar, self._total, self._rate, self._words = bar, max(total, 1), rate, words
        self._reading_began = began
        self._line = bar.add_task("training", total=total) if bar else None
        self._began = self._told = time.perf_counter()
        self._first = self._done = 0
        self._seconds = self._all_seconds = 0.0

    def start(self, done: int) -> None:
        """Training begins now, with so many steps done by an earlier run."""
        self._first = self._done = done
        self._began = self._told = time.perf_counter()

    def tell(self, done: int) -> None:
        now = time.perf_counter()
        if now - self._told < _SECONDS_PER_LINE:
            return
        self._told = now
        self._show(done, now)

    def epoch_ended(self, epoch: int, done: int) -> None:
        self._done = done
        if self._bar and self._line is not None:
            self._bar.update(self._line, completed=done)
        log.info("-------------- End of epoch: %d", epoch + 1)

    def finish(self, text: str) -> None:
        now = time.perf_counter()
        self._seconds, self._all_seconds = now - self._began, now - self._reading_began
        self._show(self._done, time.perf_counter())
        log.info("%s", text)
        log.info("Average throughput in Million words/sec: %.2f", self.words_per_second / 1e6)
        log.info("Total training time in seconds: %.2f", self._seconds)

    def figures(self) -> dict[str, float]:
        """Of the finished run."""
        return {"words_per_second": self.words_per_second, "reading_and_training_s": self._all_seconds}

    @property
    def words_per_second(self) -> float:
        return (self._done - self._first) * self._words / max(self._seconds, 1e-9)

    def _show(self, done: int, now: float) -> None:
        if self._bar and self._line is not None:
            self._bar.update(self._line, completed=done)
            return
        share = done / self._total
        speed = (done - self._first) * self._words / max(now - self._began, 1e-9) / 1e6
        log.info("##### Alpha: %.4f  Progress: %.2f%%  Million Words/sec: %.2f #####",
                 self._rate * (1 - share), 100 * share, speed)  # fmt: skip
