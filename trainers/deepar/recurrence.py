"""An LSTM layer over whole windows with zoneout: units keep their old state at random (Krueger et al., 1606.01305).

On CPUs a compiled kernel unrolls it and its derivative, one window after the other: a step of 40 cells is so little
arithmetic that PyTorch's calls cost more than it. Elsewhere PyTorch does.
"""

# T steps, N windows, H cells, G = 4 H gates: input, forget, output, candidate

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.deepar import recurrence_kernels

__all__ = ["unroll", "unroll_by_torch"]

_FEWEST_WINDOWS_PER_THREAD = 8

kernels: Any = recurrence_kernels  # their types are those of the functions that numba makes of them


def unroll(gates_TNG: Tensor, weight_GH: Tensor, zoneout: float, part: tuple[int, int] | None = None) -> Tensor:
    """The hidden states, (T, N, H), from zero states.

    Args:
        gates_TNG: what the inputs add to the gates, the bias included; float32.
        weight_GH: of the hidden state.
        zoneout: share of the units, of hidden and cell state each, that stay as they are in a step.
        part: the first window's number in a batch of so many, of which others have the rest; by default all are here.
            Which units stay is drawn for the whole batch, so that several processes draw what one would.
    """
    steps, windows, width = gates_TNG.shape
    first, whole = part or (0, windows)
    drawn = torch.rand(2, steps, whole, width // 4, device=gates_TNG.device)
    stays = drawn[:, :, first : first + windows] < zoneout
    if gates_TNG.device.type == "cpu" and gates_TNG.dtype == torch.float32:
        hidden_TNH: Tensor = _Unrolled.apply(gates_TNG, weight_GH, stays)
        return hidden_TNH
    return unroll_by_torch(gates_TNG, weight_GH, stays)


def unroll_by_torch(gates_TNG: Tensor, weight_GH: Tensor, stays_2TNH: Tensor) -> Tensor:
    """As `unroll`; `stays_2TNH` says which units of hidden and cell state stay."""
    size = weight_GH.shape[1]
    hidden = cell = torch.zeros_like(gates_TNG[0, :, :size])
    outputs = []
    for gates, hidden_stays, cell_stays in zip(gates_TNG, *stays_2TNH, strict=True):
        both = torch.addmm(gates, hidden, weight_GH.t())
        opened = torch.sigmoid(both[:, : 3 * size])
        new = opened[:, size : 2 * size] * cell + opened[:, :size] * torch.tanh(both[:, 3 * size :])
        hidden = torch.where(hidden_stays, hidden, opened[:, 2 * size :] * torch.tanh(new))
        cell = torch.where(cell_stays, cell, new)
        outputs.append(hidden)
    return torch.stack(outputs)


class _Unrolled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates_TNG: Tensor, weight_GH: Tensor, stays_2TNH: Tensor) -> Tensor:
        steps, windows, width = gates_TNG.shape
        size = width // 4
        gates = gates_TNG.detach().contiguous().numpy()
        weight_HG = weight_GH.detach().t().contiguous().numpy()
        stays = stays_2TNH.numpy()
        opened, squashed = np.empty_like(gates), np.empty((steps, windows, size), np.float32)
        hidden, cell = (np.zeros((steps + 1, windows, size), np.float32) for _ in range(2))
        _in_parts(windows, lambda a, b: kernels.forward(gates, weight_HG, *stays, opened, squashed, hidden, cell, a, b))
        ctx.kept = (weight_HG, stays, opened, squashed, hidden, cell)
        return torch.from_numpy(hidden[1:])

    @staticmethod
    def backward(ctx: Any, slope_TNH: Tensor) -> tuple[Tensor, Tensor, None]:
        weight_HG, stays, opened, squashed, hidden, cell = ctx.kept
        slope: NDArray[np.float32] = slope_TNH.contiguous().numpy()
        slopes = np.empty_like(opened)
        _in_parts(
            opened.shape[1],
            lambda a, b: kernels.backward(slope, weight_HG, *stays, opened, squashed, cell, slopes, a, b),
        )
        gates_slope = torch.from_numpy(slopes)
        before = torch.from_numpy(hidden[:-1]).flatten(0, 1)
        return gates_slope, gates_slope.flatten(0, 1).t() @ before, None


def _in_parts(windows: int, work: Callable[[int, int], None]) -> None:
    """The windows in as many parts as PyTorch has threads; the kernels release the interpreter's lock."""
    parts = max(1, min(torch.get_num_threads(), windows // _FEWEST_WINDOWS_PER_THREAD))
    bounds = np.linspace(0, windows, parts + 1).astype(int).tolist()
    if parts == 1:
        work(0, windows)
        return
    with ThreadPoolExecutor(parts - 1) as pool:
        others = [pool.submit(work, *each) for each in pairwise(bounds[1:])]
        work(0, bounds[1])
        for each in others:
            each.result()
