"""The threads of training steps and of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits

__all__ = ["in_parts", "one_thread_each", "threads_for"]

_FEWEST_PRODUCTS = 500_000_000

Result = TypeVar("Result")

_num_threads = ContextVar("num_threads", default=1)


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Within, PyTorch and BLAS compute with the thread that calls them; gives the number of threads that PyTorch had.

    Theirs would wait for each other at every small call, asleep or by asking for work on the cores that others need:
    either way steps and samples took up to twice as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield before
    finally:
        torch.set_num_threads(before)


@contextmanager
def threads_for(num_products: int) -> Iterator[None]:
    """Within, `in_parts` has as many threads as PyTorch had, where steps are large, and all else has one.

    A step of 32 windows of two layers of 40 cells is 10 ms of some hundred calls, and waking a thread for half of one
    costs more than it saves. How many there are follows from sizes alone, for the last digits of sums depend on it.

    Args:
        num_products: multiplications of a step.
    """
    with one_thread_each() as num_threads:
        entered = _num_threads.set(num_threads if num_products >= _FEWEST_PRODUCTS else 1)
        try:
            yield
        finally:
            _num_threads.reset(entered)


def in_parts(count: int, fewest: int, work: Callable[[int, int], Result]) -> list[Result]:
    """What `work` makes of the numbers from one bound to another, in threads; it should release the interpreter's lock.

    Args:
        count: of all.
        fewest: of a part, unless it is the only one.
        work: takes the first and the last number, which is left out.
    """
    parts = min(_num_threads.get(), count // fewest)
    if parts <= 1:
        return [work(0, count)]
    bounds = list(pairwise(np.linspace(0, count, parts + 1).astype(int).tolist()))
    with ThreadPoolExecutor(parts - 1) as pool:
        others = [pool.submit(work, *each) for each in bounds[1:]]
        return [work(*bounds[0]), *(each.result() for each in others)]
