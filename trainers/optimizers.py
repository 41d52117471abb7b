"""The optimizers of the vision algorithms, by their hyperparameters."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

__all__ = ["OptimizerSettings", "make_optimizer"]


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
    wanted: OptimizerSettings, network: nn.Module, *, rmsprop_decays: bool = False
) -> torch.optim.Optimizer:
    """sgd, nag, adam, rmsprop or adadelta; settings of the others are ignored.

    Args:
        wanted: the hyperparameters.
        network: what is frozen in it stays out.
        rmsprop_decays: `weight_decay` counts for rmsprop too, as in the original's detector.
    """
    trainable = {name: value for name, value in network.named_parameters() if value.requires_grad}
    rate = wanted.learning_rate
    if wanted.optimizer == "adam":
        return torch.optim.Adam(trainable.values(), rate, (wanted.beta_1, wanted.beta_2), wanted.eps)
    if wanted.optimizer == "adadelta":
        return torch.optim.Adadelta(trainable.values(), rate)
    if wanted.optimizer == "rmsprop":
        decay = wanted.weight_decay if rmsprop_decays else 0.0
        return torch.optim.RMSprop(trainable.values(), rate, wanted.gamma, wanted.eps, decay)
    # MXNet decays weights and the scales of norms, and no bias
    groups = [
        {"params": [v for k, v in trainable.items() if not k.endswith("bias")], "weight_decay": wanted.weight_decay},
        {"params": [v for k, v in trainable.items() if k.endswith("bias")], "weight_decay": 0.0},
    ]
    nesterov = wanted.optimizer == "nag" and wanted.momentum > 0
    return torch.optim.SGD(groups, rate, wanted.momentum, nesterov=nesterov)
