"""VGG-16 as SSD uses it: no classifier, the two fully connected layers as convolutions, the second one's hole wide.

Simonyan and Zisserman 2014 (arXiv:1409.1556); reduced as in Liu et al. 2015 (arXiv:1506.04579). Modules bear the names
of the original's symbols, `conv1_1` to `fc7`, which `freeze_layer_pattern` is written for.
"""

# B batch, C channels, H height, W width

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from trainers.job import ClientError

__all__ = ["ScaledNorm", "Vgg16", "load_vgg"]

_LAYERS = [f"conv{block}_{number}" for block, count in enumerate((2, 2, 3, 3, 3), 1) for number in range(1, count + 1)]
_MEAN = (123.0, 117.0, 104.0)
# of torchvision's `features`, where convolutions, activations and pools are counted together
_TORCHVISION = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_REDUCED = (*_TORCHVISION, 31, 33)
"""Of the reduced network's published state dict."""


class Vgg16(nn.Module):
    """Pixels to the maps of conv4_3, normalised, at stride 8, and of fc7 at stride 16."""

    widths = (512, 1024)

    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.conv1_1, self.conv1_2 = _conv(3, 64), _conv(64, 64)
        self.conv2_1, self.conv2_2 = _conv(64, 128), _conv(128, 128)
        self.conv3_1, self.conv3_2, self.conv3_3 = _conv(128, 256), _conv(256, 256), _conv(256, 256)
        self.conv4_1, self.conv4_2, self.conv4_3 = _conv(256, 512), _conv(512, 512), _conv(512, 512)
        self.conv5_1, self.conv5_2, self.conv5_3 = _conv(512, 512), _conv(512, 512), _conv(512, 512)
        self.fc6 = nn.Conv2d(512, 1024, 3, padding=6, dilation=6)
        self.fc7 = nn.Conv2d(1024, 1024, 1)
        self.norm4 = ScaledNorm(512, 20.0)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                assert module.bias is not None
                nn.init.zeros_(module.bias)

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        """Args: image_B3HW: RGB, 0 to 255, uint8 or float. Returns: (B, 512, H/8, W/8), (B, 1024, H/16, W/16)."""
        x = image_B3HW.float() - self.mean
        x = torch.relu(self.conv1_2(torch.relu(self.conv1_1(x))))
        x = torch.max_pool2d(x, 2, 2)
        x = torch.relu(self.conv2_2(torch.relu(self.conv2_1(x))))
        x = torch.max_pool2d(x, 2, 2)
        x = torch.relu(self.conv3_3(torch.relu(self.conv3_2(torch.relu(self.conv3_1(x))))))
        x = torch.max_pool2d(x, 2, 2, ceil_mode=True)  # 75 to 38 at a side of 300
        fine = torch.relu(self.conv4_3(torch.relu(self.conv4_2(torch.relu(self.conv4_1(x))))))
        x = torch.max_pool2d(fine, 2, 2)
        x = torch.relu(self.conv5_3(torch.relu(self.conv5_2(torch.relu(self.conv5_1(x))))))
        x = torch.max_pool2d(x, 3, 1, 1)
        return [self.norm4(fine), torch.relu(self.fc7(torch.relu(self.fc6(x))))]


def _conv(inner: int, outer: int) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, padding=1)


class ScaledNorm(nn.Module):
    """Each place's features divided by their L2 norm, times a learnt scale per channel (arXiv:1506.04579)."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1, width, 1, 1), scale))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        # in float32 whatever the precision: a sum of 512 squares
        norm_B1HW = x_BCHW.float().square().sum(dim=1, keepdim=True).add(1e-10).sqrt()
        return (x_BCHW / norm_B1HW * self.scale).to(x_BCHW.dtype)


def load_vgg(network: Vgg16, state: Mapping[str, Tensor], file: Path) -> None:
    """Fill the network with ImageNet weights: torchvision's VGG-16, the reduced one's state dict, or MXNet's names.

    Of a whole VGG-16 the fully connected layers are thinned out as in the paper: every third row and column of 7 x 7,
    every fourth unit.

    Raises:
        ClientError: a tensor is missing, or has another shape.
    """
    found = {re.sub(r"^(module\.|arg:|aux:)", "", name): value for name, value in state.items()}
    renamed = {re.sub(r"_(weight|bias)$", r".\1", name): value for name, value in found.items()}
    if "features.0.weight" in found:
        renamed = {
            f"{name}.{part}": found[f"features.{at}.{part}"]
            for name, at in zip(_LAYERS, _TORCHVISION, strict=True)
            for part in ("weight", "bias")
            if f"features.{at}.{part}" in found
        } | _thinned(found)
    elif "33.weight" in found:
        renamed = {
            f"{name}.{part}": found[f"{at}.{part}"]
            for name, at in zip([*_LAYERS, "fc6", "fc7"], _REDUCED, strict=True)
            for part in ("weight", "bias")
            if f"{at}.{part}" in found
        }
    own = {name: value for name, value in network.state_dict().items() if not name.startswith("norm4")}
    faults = [name for name, value in own.items() if name not in renamed or renamed[name].shape != value.shape]
    if faults:
        have = f"shape {tuple(renamed[faults[0]].shape)}" if faults[0] in renamed else "nothing"
        raise ClientError(
            f"{file} does not fit VGG-16: {len(faults)} of {len(own)} tensors; first: {faults[0]}, expected "
            f"{tuple(own[faults[0]].shape)}, found {have}."
        )
    network.load_state_dict({name: renamed[name].float() for name in own}, strict=False)


def _thinned(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    try:
        first, second = found["classifier.0.weight"], found["classifier.3.weight"]
        biases = found["classifier.0.bias"][::4], found["classifier.3.bias"][::4]
        sixth = first.reshape(4096, 512, 7, 7)[::4, :, ::3, ::3]
        seventh = second.reshape(4096, 4096, 1, 1)[::4, ::4]
    except (KeyError, RuntimeError):
        return {}
    return {"fc6.weight": sixth, "fc6.bias": biases[0], "fc7.weight": seventh, "fc7.bias": biases[1]}
