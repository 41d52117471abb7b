"""The optimizers of the vision algorithms, by their hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

__all__ = ["OptimizerSettings", "make_optimizer", "set_rate"]


class OptimizerSettings(Protocol):
    """What an algorithm's hyperparameters hold."""

    @property
    def optimizer(self) -> str: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def momentum(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def beta_1(self) -> float: ...
    @property
    def beta_2(self) -> float: ...
    @property
    def eps(self) -> float: ...
    @property
    def gamma(self) -> float: ...


def make_optimizer(
    wanted: OptimizerSettings,
    network: nn.Module,
    *,
    rmsprop_decays: bool = False,
    rmsprop_momentum: float = 0.0,
    faster: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """sgd, nag, adam, adagrad, rmsprop or adadelta; settings of the others are ignored.

    Args:
        wanted: the hyperparameters.
        network: what is frozen in it stays out.
        rmsprop_decays: `weight_decay` counts for rmsprop too, as in the original's detector.
        rmsprop_momentum: of rmsprop alone.
        faster: by the beginning of parameters' names, how many times the learning rate they get; see `set_rate`.
    """
    decays = wanted.optimizer in ("sgd", "nag")
    groups = _groups(network, wanted.weight_decay if decays else 0.0, faster or {})
    rate = wanted.learning_rate
    if wanted.optimizer == "adam":
        return torch.optim.Adam(groups, rate, (wanted.beta_1, wanted.beta_2), wanted.eps)
    if wanted.optimizer == "adadelta":
        return torch.optim.Adadelta(groups, rate)
    if wanted.optimizer == "adagrad":
        return torch.optim.Adagrad(groups, rate)
    if wanted.optimizer == "rmsprop":
        if rmsprop_decays:
            groups = [{**group, "weight_decay": wanted.weight_decay} for group in groups]
        return torch.optim.RMSprop(groups, rate, wanted.gamma, wanted.eps, momentum=rmsprop_momentum)
    nesterov = wanted.optimizer == "nag" and wanted.momentum > 0
    return torch.optim.SGD(groups, rate, wanted.momentum, nesterov=nesterov)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let the next step be so long, and that of parameters that are `faster` longer."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["times"]


def _groups(network: nn.Module, weight_decay: float, faster: Mapping[str, float]) -> list[dict[str, Any]]:
    """The trainable parameters by how fast they learn and whether they decay."""
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            times = next((factor for prefix, factor in faster.items() if name.startswith(prefix)), 1.0)
            # MXNet decays weights and the scales of norms, and no bias
            decay = 0.0 if name.endswith("bias") else weight_decay
            found.setdefault((times, decay), []).append(parameter)
    return [{"params": each, "weight_decay": decay, "times": times} for (times, decay), each in found.items()]
