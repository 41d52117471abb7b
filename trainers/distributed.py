"""The processes of one job: who this one is, and what they do together. One process alone is the usual case.

`torchrun` starts them and says in the environment who is who (PyTorch's elastic launcher); tensors on the CPU travel
over gloo, those on GPUs over nccl.
"""

from __future__ import annotations

import ctypes
import gc
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["ALONE", "World", "joined"]

_PATIENCE = timedelta(minutes=30)  # one process may scan or write long while the others wait


@dataclass(frozen=True, slots=True)
class World:
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    """Processes of this machine."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    @property
    def num_hosts(self) -> int:
        return self.size // self.local_size

    @property
    def device(self) -> torch.device:
        return torch.device(f"cuda:{self.local_rank}" if torch.cuda.is_available() else "cpu")

    def share(self, items: NDArray[Any]) -> NDArray[Any]:
        """This process's part of what all of them handle together, such as one batch's indices."""
        return np.array_split(items, self.size)[self.rank] if self.size > 1 else items

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, in place and returned."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def gather(self, items: list[Tensor]) -> list[Tensor]:
        """The lists of all processes joined, in all of them, on the CPU."""
        if self.size == 1:
            return items
        buffer = io.BytesIO()
        torch.save(items, buffer)
        size = torch.tensor(buffer.tell())
        sizes = [torch.zeros_like(size) for _ in range(self.size)]
        dist.all_gather(sizes, size)
        padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
        padded[: int(size)] = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
        parts = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        joined_items: list[Tensor] = []
        for part in parts:
            joined_items += torch.load(io.BytesIO(part.numpy().tobytes()), map_location="cpu", weights_only=True)
        return joined_items

    def any(self, flag: bool) -> bool:
        """Whether it is true in any process; all must ask."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(int(flag))).item())

    def from_first(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """What the first process holds, tensors and plain values, for all; the others' argument is not looked at."""
        if self.size == 1:
            return state
        buffer = io.BytesIO()
        if self.is_first and state is not None:
            torch.save(state, buffer)
        size = torch.tensor(buffer.tell())
        dist.broadcast(size, 0)
        if not size.item():
            return None
        data = torch.frombuffer(bytearray(buffer.getvalue() or bytes(int(size))), dtype=torch.uint8)
        dist.broadcast(data, 0)
        if self.is_first:
            return state
        received: dict[str, Any] = torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True)
        return received

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network whose backward pass averages gradients over all processes."""
        if self.size == 1:
            return network
        ids = [self.local_rank] if self.device.type == "cuda" else None
        # norms keep their own running figures, as the original's devices do; see `average_buffers`
        return nn.parallel.DistributedDataParallel(
            network, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True
        )

    def average_buffers(self, network: nn.Module) -> None:
        """Let all processes go on with the mean of their norms' running figures."""
        if self.size == 1:
            return
        kept = network.state_dict()
        for name, buffer in network.named_buffers():
            if name in kept and buffer.is_floating_point():
                buffer.copy_(self.sum(buffer.clone()) / self.size)

    def meet(self) -> None:
        """Wait until all are here."""
        if self.size > 1:
            dist.barrier(device_ids=[self.local_rank] if self.device.type == "cuda" else None)


ALONE = World()


@contextmanager
def joined() -> Iterator[World]:
    """Meet the other processes when torchrun started this one; else be alone.

    Do the work in a function of its own, so that nothing of it is left at the end of the `with`: a wrapped network that
    outlives the group keeps gloo's threads, and now and then the process dies of them on its way out.
    """
    if not dist.is_torchelastic_launched():
        if torch.cuda.is_available():
            torch.cuda.set_device(0)
        yield ALONE
        return
    _die_with_launcher()
    world = World(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    try:
        yield world
    finally:
        gc.collect()  # wrapped networks lie in cycles
        dist.destroy_process_group()


def _die_with_launcher() -> None:
    """A launcher that is killed cannot end its processes, which would go on writing checkpoints beside a new run's."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, linux/prctl.h
