"""What a job says while it runs: log lines that existing scrapers read, or a moving bar on a terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["EpochLog", "QualityLog", "speaking"]

log = logging.getLogger("penstock.train")

_LINE = "[%(asctime)s %(levelname)s %(thread)d] %(message)s"
_DATE = "%m/%d/%Y %H:%M:%S"
_BATCHES_PER_LINE = 20


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.0f} samples/s")


class _ConsoleHandler(logging.Handler):
    """Log lines above the bar."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def speaking(rank: int = 0) -> Iterator[Progress | None]:
    """Send the trainer's log to standard error while inside; gives the bar when that is a terminal.

    Of several processes the first one speaks; the others tell errors alone.
    """
    console = Console(stderr=True)
    bar = None
    handler: logging.Handler
    if console.is_terminal and rank == 0:
        columns = (TextColumn("{task.description}"), BarColumn(), _Rate(), TimeRemainingColumn())
        bar = Progress(*columns, console=console)
        handler = _ConsoleHandler(console)
        bar.start()
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_LINE, _DATE))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.ERROR if rank else logging.INFO)
    try:
        yield bar
    finally:
        if bar:
            bar.stop()
        log.removeHandler(handler)
        log.setLevel(level)


class EpochLog:
    """The lines of one run, in the form of the original's containers."""

    def __init__(self, bar: Progress | None, *, num_samples: int, epochs: int, first_epoch: int) -> None:
        self._bar = bar
        self._num_samples = num_samples
        self._epochs = epochs
        self._epoch = first_epoch
        self._started = self._window_started = time.perf_counter()
        self._num_batches = self._window_samples = 0
        total = (epochs - first_epoch) * num_samples
        self._line = bar.add_task(f"epoch {first_epoch}", total=total) if bar else None

    def begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._started = self._window_started = time.perf_counter()
        self._num_batches = self._window_samples = 0
        if self._bar and self._line is not None:
            self._bar.update(self._line, description=f"epoch {epoch}")

    def batch(self, num_samples: int, accuracy: Callable[[], float]) -> None:
        """One training batch is done; `accuracy` is the epoch's so far, asked for only when a line is due."""
        self._num_batches += 1
        self._window_samples += num_samples
        if self._bar and self._line is not None:
            self._bar.advance(self._line, num_samples)
        elif self._num_batches > 1 and (self._num_batches - 1) % _BATCHES_PER_LINE == 0:
            now = time.perf_counter()
            speed = self._window_samples / (now - self._window_started)
            log.info(
                "Epoch[%d] Batch [%d]\tSpeed: %.3f samples/sec\taccuracy=%f",
                self._epoch,
                self._num_batches - 1,
                speed,
                accuracy(),
            )
            self._window_started, self._window_samples = now, 0

    def trained(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            log.info("Epoch[%d] Train-%s=%f", self._epoch, name, value)
        log.info("Epoch[%d] Time cost=%.3f", self._epoch, time.perf_counter() - self._started)

    def validated(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            log.info("Epoch[%d] Validation-%s=%f", self._epoch, name, value)

    def improved(self, objective: str, value: float) -> None:
        log.info("Storing the best model with validation %s: %f", objective, value)

    def not_improved(self) -> None:
        """Most of the originals say nothing then."""

    @property
    def seconds(self) -> float:
        """Since the epoch began."""
        return time.perf_counter() - self._started


class QualityLog(EpochLog):
    """The lines of the original's detector: `#quality_metric: host=..., epoch=..., ...` (its contract, section 4)."""

    _HOST = "algo-1"
    _SIGNS: Mapping[str, str] = {"mAP": "score"}
    """What kind a metric is, where it is no loss."""
    _NAMES_BATCHES = True
    _RATE = "#throughput_metric: host=%s, train throughput=%s records/second"

    def batch(self, num_samples: int, accuracy: Callable[[], float]) -> None:  # noqa: ARG002
        self._num_batches += 1
        self._window_samples += num_samples
        if self._bar and self._line is not None:
            self._bar.advance(self._line, num_samples)

    def trained(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            sign = self._SIGNS.get(name, "loss")
            when = f"epoch={self._epoch}, " + (f"batch={self._num_batches} " if self._NAMES_BATCHES else "")
            log.info("#quality_metric: host=%s, %strain %s <%s>=(%s)", self._HOST, when, name, sign, value)
        rate = self._window_samples / max(time.perf_counter() - self._started, 1e-9)
        where = self._HOST if self._NAMES_BATCHES else f"{self._HOST}, epoch={self._epoch}"
        log.info(self._RATE, where, rate)

    def validated(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            sign = self._SIGNS.get(name, "loss")
            log.info("#quality_metric: host=%s, epoch=%d, validation %s <%s>=(%s)",
                     self._HOST, self._epoch, name, sign, value)  # fmt: skip
        done = 100 * (self._epoch + 1) // self._epochs
        log.info("#progress_metric: host=%s, completed %d %% of epochs", self._HOST, done)

    def improved(self, objective: str, value: float) -> None:
        log.info("Updating the best model with validation-%s=%s", objective, value)
