"""The benchmark's graphs, with weights from a seed: `python -m loadtests.bench.models DIR MODEL`.

A process of its own writes one, so that torch's memory is gone before anything is measured: `<model>.onnx` with one
input `x` and one output `y`, both with a batch dimension; beside it lie `<model>.x.npy`, a request in each row, and
`<model>.y.npy`, their answers as torch computes them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from loadtests.bench.cases import NUM_BODIES

__all__ = ["write_model"]


class Block(nn.Module):
    """Two convolutions and a shortcut (He et al. 2015, arXiv:1512.03385, figure 2)."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(num_out),
            nn.ReLU(),
            nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(num_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or num_in != num_out:
            self.shortcut = nn.Sequential(nn.Conv2d(num_in, num_out, 1, stride, bias=False), nn.BatchNorm2d(num_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.path(x) + self.shortcut(x))


def resnet18() -> nn.Module:
    """(N, 3, 224, 224) to (N, 1000)."""
    blocks: list[nn.Module] = []
    num_in = 64
    for num_out, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [Block(num_in, num_out, stride), Block(num_out, num_out, 1)]
        num_in = num_out
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def mlp() -> nn.Module:
    """(N, 16) to (N, 10): so little work that what is measured is everything around it."""
    return nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 10))


class ChannelMeans(nn.Module):
    """(N, 3, 224, 224) to (N, 10): reads every number once, so that what is measured is the way that they took."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(x.mean(dim=(2, 3)))
        return scores


_MODULES: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (16,)),
    "mean": (ChannelMeans, (3, 224, 224)),
    "resnet18": (resnet18, (3, 224, 224)),
}


def write_model(directory: Path, name: str) -> None:
    torch.manual_seed(20)
    build, shape = _MODULES[name]
    # about another mean in each row, or rows of many numbers would all have nearly the same answer
    middle = torch.linspace(-1, 1, NUM_BODIES).reshape(-1, *(1 for _ in shape))
    x = torch.randn(NUM_BODIES, *shape).add(middle).mul(1e4).round().div(1e4)  # few digits, as in people's JSON
    module = _normalised(build(), x)
    with warnings.catch_warnings(), torch.inference_mode():
        # the newer exporter needs a package more, for the same graph
        warnings.simplefilter("ignore", DeprecationWarning)
        y = module(x)
        torch.onnx.export(
            module,
            (x[:1],),
            str(directory / f"{name}.onnx"),
            dynamo=False,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}},
        )
    np.save(directory / f"{name}.x.npy", x.numpy())
    np.save(directory / f"{name}.y.npy", y.numpy())


def _normalised(module: nn.Module, x: Tensor) -> nn.Module:
    """With the statistics of `x` in its batch norms: without, random layers make all answers alike."""
    norms = [each for each in module.modules() if isinstance(each, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of what it has seen
    if norms:
        with torch.no_grad():
            module.train()(x)
    return module.eval()


if __name__ == "__main__":
    write_model(Path(sys.argv[1]), sys.argv[2])
