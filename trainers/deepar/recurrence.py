"""An LSTM layer over whole windows with zoneout: units keep their old state at random (Krueger et al., 1606.01305)."""

# T steps, N windows, H cells, G = 4 H gates: input, forget, output, candidate

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["unroll"]


def unroll(gates_TNG: Tensor, weight_GH: Tensor, zoneout: float) -> Tensor:
    """The hidden states, (T, N, H), from zero states.

    Args:
        gates_TNG: what the inputs add to the gates, the bias included.
        weight_GH: of the hidden state.
        zoneout: share of the units, of hidden and cell state each, that stay as they are in a step.
    """
    steps, windows, width = gates_TNG.shape
    if zoneout:
        stays = torch.rand(2, steps, windows, width // 4, device=gates_TNG.device) < zoneout
        hidden_TNH: Tensor = _unroll_with_zoneout(gates_TNG, weight_GH.t(), stays)
    else:
        hidden_TNH = _unroll(gates_TNG, weight_GH.t())
    return hidden_TNH


@torch.jit.script
def _unroll(gates_TNG: Tensor, weight_HG: Tensor) -> Tensor:
    size = weight_HG.shape[0]
    hidden = torch.zeros_like(gates_TNG[0, :, :size])
    cell = hidden
    outputs: list[Tensor] = []
    for gates in gates_TNG.unbind(0):
        all_gates = torch.addmm(gates, hidden, weight_HG)
        opened = torch.sigmoid(all_gates[:, : 3 * size])
        cell = opened[:, size : 2 * size] * cell + opened[:, :size] * torch.tanh(all_gates[:, 3 * size :])
        hidden = opened[:, 2 * size :] * torch.tanh(cell)
        outputs.append(hidden)
    return torch.stack(outputs)


@torch.jit.script
def _unroll_with_zoneout(gates_TNG: Tensor, weight_HG: Tensor, stays: Tensor) -> Tensor:
    size = weight_HG.shape[0]
    hidden = torch.zeros_like(gates_TNG[0, :, :size])
    cell = hidden
    outputs: list[Tensor] = []
    for step, gates in enumerate(gates_TNG.unbind(0)):
        all_gates = torch.addmm(gates, hidden, weight_HG)
        opened = torch.sigmoid(all_gates[:, : 3 * size])
        new = opened[:, size : 2 * size] * cell + opened[:, :size] * torch.tanh(all_gates[:, 3 * size :])
        hidden = torch.where(stays[0, step], hidden, opened[:, 2 * size :] * torch.tanh(new))
        cell = torch.where(stays[1, step], cell, new)
        outputs.append(hidden)
    return torch.stack(outputs)
