"""Tables of which a step reads and writes a few rows: updates that cost what the batch costs, not what the table does.

sgd and adagrad leave rows without a gradient alone anyway. Adam moves them on, by what it remembers: what a row has
missed is made up when it is read next, in one step that is what the many would have been (see `_Missed`), so that the
losses are those of an ordinary Adam.
"""

# V rows of the table, R rows of a batch, D numbers of a row

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RowOptimizer"]

_ADAGRAD_EPS = 1e-10
_ROWS_AT_ONCE = 1 << 15


class RowOptimizer:
    """sgd, adagrad or adam for one table.

    Args:
        table_VD: updated in place.
        optimizer: its name.
        learning_rate: constant.
        weight_decay: L2, of the rows that have a gradient.
        betas: of adam.
        eps: of adam.
    """

    def __init__(
        self,
        table_VD: Tensor,
        optimizer: str,
        learning_rate: float,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self._table, self._kind = table_VD, optimizer
        self._rate, self._decay = learning_rate, weight_decay
        self._betas, self._eps = betas, eps
        self._steps = 0
        self._missed = _Missed(*betas)
        names = {"adam": ("mean", "square"), "adagrad": ("square",), "sgd": ()}[optimizer]
        self._memory = {name: torch.zeros_like(table_VD) for name in names}
        size = len(table_VD) if optimizer == "adam" else 0
        self._last = torch.zeros(size, dtype=torch.int64, device=table_VD.device)

    @torch.no_grad()
    def catch_up(self, row_R: Tensor) -> None:
        """Bring rows, each named once, to where all steps so far leave them; to be called before they are read."""
        if self._kind != "adam":
            return
        last_R = self._last[row_R]
        behind_R = last_R < self._steps
        if not bool(behind_R.any()):
            return
        row_R, last_R = row_R[behind_R], last_R[behind_R]
        beta1, beta2 = self._betas
        missed_R, eps_R = self._missed.moves(last_R, self._steps)
        missed_R1, eps_R1 = missed_R.to(self._table)[:, None], (self._eps * eps_R).to(self._table)[:, None]
        count_R1 = (self._steps - last_R).to(torch.float64)[:, None]
        mean_RD, square_RD = self._memory["mean"][row_R], self._memory["square"][row_R]
        move_RD = mean_RD / (square_RD.sqrt() + eps_R1) * missed_R1
        self._table[row_R] = self._table[row_R] - self._rate * move_RD
        self._memory["mean"][row_R] = mean_RD * (beta1**count_R1).to(mean_RD)
        self._memory["square"][row_R] = square_RD * (beta2**count_R1).to(mean_RD)
        self._last[row_R] = self._steps

    @torch.no_grad()
    def step(self, row_R: Tensor, gradient_RD: Tensor) -> None:
        """One step of the rows that were caught up; rows named here are unique."""
        self._steps += 1
        weight_RD = self._table[row_R]
        if self._decay:
            gradient_RD = gradient_RD + self._decay * weight_RD
        if self._kind == "adam":
            weight_RD -= self._adam(row_R, gradient_RD)
        elif self._kind == "adagrad":
            square_RD = self._memory["square"][row_R] + gradient_RD.square()
            self._memory["square"][row_R] = square_RD
            weight_RD -= self._rate * gradient_RD / (square_RD.sqrt() + _ADAGRAD_EPS)
        else:
            weight_RD -= self._rate * gradient_RD
        self._table[row_R] = weight_RD

    def _adam(self, row_R: Tensor, gradient_RD: Tensor) -> Tensor:
        beta1, beta2 = self._betas
        mean_RD = self._memory["mean"][row_R].lerp_(gradient_RD, 1 - beta1)
        square_RD = self._memory["square"][row_R].mul_(beta2).addcmul_(gradient_RD, gradient_RD, value=1 - beta2)
        self._memory["mean"][row_R], self._memory["square"][row_R] = mean_RD, square_RD
        self._last[row_R] = self._steps
        corrected_RD = square_RD.sqrt_().div_((1 - beta2**self._steps) ** 0.5).add_(self._eps)
        return mean_RD.div_(corrected_RD).mul_(self._rate / (1 - beta1**self._steps))

    def settle(self) -> None:
        """Catch up every row: before the table is scored or saved."""
        if self._kind == "adam":
            for start in range(0, len(self._table), _ROWS_AT_ONCE):
                stop = min(start + _ROWS_AT_ONCE, len(self._table))
                self.catch_up(torch.arange(start, stop, device=self._table.device))

    def state(self) -> dict[str, Any]:
        return {"steps": self._steps, "last": self._last.cpu(), **{k: v.cpu() for k, v in self._memory.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        self._steps = state["steps"]
        self._last.copy_(state["last"])
        for name, memory in self._memory.items():
            memory.copy_(state[name])


class _Missed:
    """How far Adam carries a row whose gradient is 0 for a while, in units of rate * mean / (sqrt(square) + eps).

    Step i after step t adds r^(i-t) * c(i), r = beta1 / sqrt(beta2), c(i) = sqrt(1 - beta2^i) / (1 - beta1^i) (Kingma
    and Ba 2015, algorithm 1, where eps is small beside the root). With U(t) = sum over j >= 1 of r^j c(t + j), steps
    t + 1 to t + k add U(t) - r^k U(t + k): two numbers of one list. Beside the root of step t, step i's eps counts
    sqrt(1 - beta2^i) / sqrt(beta2)^(i-t) times; the mean of that over the steps, each by what it adds, is right to
    first order in eps. It is two numbers of another such list, of r = beta1 / beta2 and c(i) = (1 - beta2^i) /
    (1 - beta1^i).
    """

    def __init__(self, beta1: float, beta2: float) -> None:
        self._beta1, self._beta2 = beta1, beta2
        self._ratios = beta1 / beta2**0.5, beta1 / beta2
        self._ahead = self._listed(1024)

    def moves(self, last_R: Tensor, now: int) -> tuple[Tensor, Tensor]:
        """The move of rows that were last moved at step `last_R`, up to step `now`; what eps counts. (R,) float64."""
        if now >= self._ahead.shape[1]:
            self._ahead = self._listed(2 * now)
        ahead = self._ahead.to(last_R.device)
        count_R = (now - last_R).to(torch.float64)
        move_R, of_eps_R = (
            of_all[last_R] - ratio**count_R * of_all[now] for of_all, ratio in zip(ahead, self._ratios, strict=True)
        )
        return move_R, of_eps_R / move_R

    def _listed(self, size: int) -> Tensor:
        """(2, size) float64."""
        lists = []
        for ratio, power in zip(self._ratios, (0.5, 1.0), strict=True):
            reach = int(np.ceil(np.log(1e-18) / np.log(ratio)))
            step = np.arange(1, size + reach + 1, dtype=np.float64)
            factor = (1 - self._beta2**step) ** power / (1 - self._beta1**step)
            weight = ratio ** np.arange(1, reach + 1)
            lists.append(torch.from_numpy(np.correlate(factor, weight, mode="valid")[:size]))
        return torch.stack(lists)
