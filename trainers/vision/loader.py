"""Batches made ahead of their use, in order: on threads of this process, or in processes of their own.

Threads are enough where decoding and resizing, which release the interpreter lock, are all there is to do and the
device is this CPU anyway; a GPU wants more cores than one interpreter can keep busy.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from trainers.job import ClientError

__all__ = ["Loader", "usable_cores"]

Request = TypeVar("Request")
Made = TypeVar("Made")

_THREADS = 4  # more than cores: some wait for the disk
_AHEAD_PER_THREAD = 2
_AHEAD_PER_WORKER = 4
_LARGEST_NUM_WORKERS = 16


def usable_cores() -> int:
    """Cores that this process may use; torch and `os.cpu_count` tell the machine's."""
    return len(os.sched_getaffinity(0))


class Loader(Generic[Request, Made]):
    """Turns requests into batches by `make`.

    Args:
        make: called in other threads or processes, so it can be pickled and keeps no state that matters; what it
            raises as ClientError is raised again where batches are taken.
        num_workers: processes; 0 for threads.
        pinned: leave batches in memory that a GPU can copy from while it computes.
    """

    def __init__(self, make: Callable[[Request], Made], *, num_workers: int, pinned: bool = False) -> None:
        self._make = make
        self._requests: _Requests[Request] = _Requests()
        self._processes: DataLoader[Any] | None = None
        if num_workers:
            self._processes = DataLoader(
                _Maker(make),
                batch_size=None,
                sampler=self._requests,
                num_workers=min(num_workers, _LARGEST_NUM_WORKERS),
                prefetch_factor=_AHEAD_PER_WORKER,
                persistent_workers=True,
                pin_memory=pinned,
                collate_fn=_as_it_is,
                # forking a process that has threads, or a GPU, may hang it
                multiprocessing_context="forkserver",
                generator=torch.Generator(),  # it draws a seed for each epoch, and must not disturb ours
            )

    def run(self, requests: Iterable[Request]) -> Iterator[Made]:
        """The batches of these requests, in their order; memory stays flat however many they are."""
        if self._processes is None:
            yield from self._run_threads(requests)
            return
        self._requests.items = requests
        for made in self._processes:
            if isinstance(made, _Refused):
                raise ClientError(made.text)
            yield cast("Made", made)

    def _run_threads(self, requests: Iterable[Request]) -> Iterator[Made]:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="images") as pool:
            waiting: deque[Future[Made]] = deque()
            try:
                for request in requests:
                    waiting.append(pool.submit(self._make, request))
                    if len(waiting) > _AHEAD_PER_THREAD * _THREADS:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


@dataclass(frozen=True)
class _Refused:
    """A ClientError on its way out of a process: DataLoader would wrap its text into a traceback."""

    text: str


class _Maker(Dataset[Any]):
    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make

    def __getitem__(self, request: Any) -> Any:
        try:
            return self._make(request)
        except ClientError as error:
            return _Refused(str(error))


class _Requests(Sampler[Request]):
    def __init__(self) -> None:
        self.items: Iterable[Request] = ()

    def __iter__(self) -> Iterator[Request]:
        return iter(self.items)


def _as_it_is(made: Made) -> Made:
    return made
