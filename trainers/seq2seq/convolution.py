"""The block that convolutional encoders and decoders are made of."""

# B sentences, S tokens, K the kernel's width, C a state's numbers

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Convolution"]


class Convolution(nn.Module):
    """A convolution and its activation; glu halves twice as many numbers (arXiv:1612.08083)."""

    def __init__(self, size: int, width: int, activation: str) -> None:
        super().__init__()
        self.size, self.width, self.activation = size, width, activation
        self.of_window = nn.Linear(width * size, 2 * size if activation == "glu" else size)

    def forward(self, state_BSC: Tensor, before: int, behind: int) -> Tensor:
        """(B, S, C) of all windows of a sequence with so many zeros around it; K - 1 in all."""
        kernel = self.of_window.weight.reshape(-1, self.width, self.size).transpose(1, 2)
        padded = nn.functional.pad(state_BSC.transpose(1, 2), [before, behind])
        return self._activated(nn.functional.conv1d(padded, kernel, self.of_window.bias).transpose(1, 2))

    @torch.jit.export
    def of_one(self, window: Tensor) -> Tensor:
        """(..., C) of single windows (..., K, C)."""
        return self._activated(self.of_window(window.flatten(-2)))

    def _activated(self, made: Tensor) -> Tensor:
        if self.activation == "glu":
            return nn.functional.glu(made, dim=-1)
        if self.activation == "relu":
            return torch.relu(made)
        if self.activation == "softrelu":
            return nn.functional.softplus(made)
        return torch.sigmoid(made) if self.activation == "sigmoid" else torch.tanh(made)
