"""Mixed precision: arithmetic in 16 bits where the device gains by it, weights and sums in 32."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from trainers.progress import log

__all__ = ["Precision"]


class Precision:
    """How one run computes.

    Args:
        asked: `float32`, `bfloat16`, or `float16`, which scales the loss so that small gradients survive.
        device: a CPU has no float16 arithmetic worth the name: bfloat16 takes its place where the CPU has that.
    """

    def __init__(self, asked: str, device: torch.device) -> None:
        self.device = device
        self.dtype: torch.dtype | None = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(asked)
        if device.type == "cpu" and self.dtype is not None:
            has_it = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # noqa: SLF001  torch has no public name for it
            self.dtype = torch.bfloat16 if has_it else None
            log.info("precision_dtype=%s on this CPU: %s", asked, "bfloat16" if has_it else "no effect, float32")
        self._scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def step(
        self,
        loss: Tensor,
        optimizer: torch.optim.Optimizer,
        largest_gradient: float | None = None,
        largest_element: float | None = None,
    ) -> None:
        """Backward and update; with float16, an update whose gradients overflowed is left out.

        Args:
            loss: a scalar.
            optimizer: of the parameters to update.
            largest_gradient: L2 norm of all gradients together to which longer ones are cut.
            largest_element: absolute value to which each number of each gradient is cut.
        """
        optimizer.zero_grad(set_to_none=True)
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if largest_gradient is not None or largest_element is not None:
            self._scaler.unscale_(optimizer)
            parameters = [each for group in optimizer.param_groups for each in group["params"]]
            if largest_gradient is not None:
                torch.nn.utils.clip_grad_norm_(parameters, largest_gradient)
            if largest_element is not None:
                torch.nn.utils.clip_grad_value_(parameters, largest_element)
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state)
