"""Kernels on all cores: threads take slices of the work from one queue, so that a busy core delays nobody."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable

__all__ = ["num_threads", "on_all_cores", "seed_of"]


def num_threads() -> int:
    """The cores that this process may use; OMP_NUM_THREADS may say fewer."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(usable, int(asked))) if asked.isdecimal() else usable


def on_all_cores(work: Callable[[int, int], None], size: int, slice_size: int, tell: Callable[[int], None]) -> None:
    """Call `work(start, stop)` for each slice of range(size); `tell(start)` once in a while, by the first thread.

    Raises:
        Exception: the first that a slice raised; slices that have not begun are left out.
    """
    lock, starts = threading.Lock(), iter(range(0, size, slice_size))
    failures: list[BaseException] = []

    def take(*, first: bool) -> None:
        while not failures:
            with lock:
                start = next(starts, None)
            if start is None:
                return
            try:
                work(start, min(start + slice_size, size))
            except BaseException as error:  # noqa: BLE001  raised again below, in the thread that waits
                failures.append(error)
            if first:
                tell(start)

    count = min(num_threads(), -(-size // slice_size))
    others = [threading.Thread(target=take, kwargs={"first": False}, daemon=True) for _ in range(count - 1)]
    for thread in others:
        thread.start()
    take(first=True)
    for thread in others:
        thread.join()
    if failures:
        raise failures[0]


def seed_of(seed: int, place: int) -> int:
    """A random state of its own for each slice, the same in each run."""
    return (zlib.crc32(f"{seed}:{place}".encode()) << 20) | (place & 0xFFFFF)
