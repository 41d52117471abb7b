"""An LSTM layer over whole windows with zoneout: units keep their old state at random (Krueger et al., 1606.01305).

On CPUs a compiled kernel unrolls it and its derivative: a step of 40 cells is so little arithmetic that PyTorch's calls
cost more than it. Elsewhere PyTorch does.
"""

# T steps, N windows, I inputs, H cells, G = 4 H gates: input, forget, output, candidate

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from trainers.deepar import recurrence_kernels
from trainers.deepar.threads import in_parts

__all__ = ["draw_stays", "unroll", "unroll_by_torch"]

_FEWEST_WINDOWS, _FEWEST_ROWS = 8, 1000
"""Of a thread."""

kernels: Any = recurrence_kernels  # their types are those of the functions that numba makes of them


def unroll(
    inputs_TNI: Tensor, constant_NG: Tensor, weight_GI: Tensor, weight_GH: Tensor, zoneout: float,
    part: tuple[int, int] | None = None,
) -> Tensor:  # fmt: skip
    """The hidden states, (T, N, H), from zero states.

    Args:
        inputs_TNI: float32.
        constant_NG: what adds to the gates of a window at every step, the bias included.
        weight_GI: of the inputs.
        weight_GH: of the hidden state.
        zoneout: share of the units, of hidden and cell state each, that stay as they are in a step.
        part: the first window's number in a batch of so many, of which others have the rest; by default all are here.
            Which units stay is drawn for the whole batch, so that several processes draw what one would.
    """
    steps, windows, _ = inputs_TNI.shape
    first, whole = part or (0, windows)
    stays = draw_stays((2, steps, whole, weight_GH.shape[1]), zoneout, inputs_TNI.device)[:, :, first : first + windows]
    if inputs_TNI.device.type == "cpu" and inputs_TNI.dtype == torch.float32:
        hidden_TNH: Tensor = _Unrolled.apply(inputs_TNI, constant_NG, weight_GI, weight_GH, stays)
        return hidden_TNH
    return unroll_by_torch(inputs_TNI, constant_NG, weight_GI, weight_GH, stays)


def draw_stays(shape: tuple[int, ...], zoneout: float, device: torch.device) -> Tensor:
    """Bool, each True with this chance, to 1 / 2**16.

    Four are drawn at once, and numpy compares them: one by one, as floats, they took a tenth of a training step.
    """
    size, bound = math.prod(shape), min(round(zoneout * 2**16), 2**16 - 1) - 2**15
    fours = torch.empty(-(-size // 4), dtype=torch.int64, device=device).random_(-(2**63), None)
    drawn = fours.view(torch.int16)[:size].view(shape)
    return torch.from_numpy(drawn.numpy() < bound) if device.type == "cpu" else drawn < bound


def unroll_by_torch(
    inputs_TNI: Tensor, constant_NG: Tensor, weight_GI: Tensor, weight_GH: Tensor, stays_2TNH: Tensor
) -> Tensor:
    """As `unroll`; `stays_2TNH` says which units of hidden and cell state stay."""
    size = weight_GH.shape[1]
    gates_TNG = torch.matmul(inputs_TNI, weight_GI.t()) + constant_NG
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
    def forward(
        ctx: Any, inputs_TNI: Tensor, constant_NG: Tensor, weight_GI: Tensor, weight_GH: Tensor, stays_2TNH: Tensor
    ) -> Tensor:
        steps, windows, _ = inputs_TNI.shape
        width, size = weight_GH.shape
        # other threads know nothing of this one's not asking for derivatives
        inputs_RI, weight_IG = inputs_TNI.detach().flatten(0, 1), weight_GI.detach().t()
        gates_RG = torch.empty(steps * windows, width)
        in_parts(len(gates_RG), _FEWEST_ROWS, lambda a, b: torch.mm(inputs_RI[a:b], weight_IG, out=gates_RG[a:b]))
        gates = gates_RG.view(steps, windows, width).numpy()
        constant = constant_NG.contiguous().numpy()
        weight_HG = weight_GH.t().contiguous().numpy()
        stays = stays_2TNH.numpy()
        squashed, hidden, cell = (torch.empty(steps + more, windows, size).numpy() for more in (0, 1, 1))
        in_parts(
            windows, _FEWEST_WINDOWS,
            lambda a, b: kernels.forward(gates, constant, weight_HG, *stays, squashed, hidden, cell, a, b),
        )  # fmt: skip
        ctx.save_for_backward(weight_GI, weight_GH)
        ctx.kept = (inputs_RI, stays, gates, squashed, hidden, cell)
        return torch.from_numpy(hidden[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_TNH: Tensor) -> tuple[Tensor | None, Tensor, Tensor, Tensor, None]:
        inputs_RI, stays, gates, squashed, hidden, cell = ctx.kept
        del ctx.kept  # the gates' slopes take their place
        weight_GI, weight_GH = (each.detach() for each in ctx.saved_tensors)
        slope: NDArray[np.float32] = slope_TNH.contiguous().numpy()
        weight = weight_GH.contiguous().numpy()
        sums_NG = torch.zeros(gates.shape[1:])
        sums = sums_NG.numpy()
        in_parts(
            len(sums), _FEWEST_WINDOWS,
            lambda a, b: kernels.backward(slope, weight, *stays, gates, squashed, cell, sums, a, b),
        )  # fmt: skip
        slopes_RG, hidden_RH = torch.from_numpy(gates).flatten(0, 1), torch.from_numpy(hidden[:-1]).flatten(0, 1)
        inputs_slope_RI = torch.empty_like(inputs_RI) if ctx.needs_input_grad[0] else None

        def products(a: int, b: int) -> tuple[Tensor, Tensor]:
            some_RG = slopes_RG[a:b]
            if inputs_slope_RI is not None:
                torch.mm(some_RG, weight_GI, out=inputs_slope_RI[a:b])
            return some_RG.t() @ inputs_RI[a:b], some_RG.t() @ hidden_RH[a:b]

        parts = zip(*in_parts(len(slopes_RG), _FEWEST_ROWS, products), strict=True)
        slopes = [functools.reduce(Tensor.add_, each) for each in parts]
        inputs_slope = None if inputs_slope_RI is None else inputs_slope_RI.view(*gates.shape[:2], weight_GI.shape[1])
        return inputs_slope, sums_NG, slopes[0], slopes[1], None
