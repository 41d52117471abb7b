"""Residual networks with identity mappings, pre-activation (He et al. 2016, arXiv:1603.05027), BatchNorm on the input.

Modules bear the names of the MXNet example that the original derives from, dots in place of underscores, so that its
published weights map one to one: `stage1_unit1_conv1_weight` is `stages.stage1.0.conv1.weight`.
"""

# B batch, C channels, H height, W width, K classes

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainers.image_classification.hyperparameters import IMAGENET_DEPTHS, SMALL_DEPTHS

__all__ = ["ResNet", "build"]

_UNITS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
_SMALL_WIDTHS = (16, 16, 32, 64)
_BASIC_WIDTHS = (64, 64, 128, 256, 512)
_BOTTLENECK_WIDTHS = (64, 256, 512, 1024, 2048)
_FIRST_BOTTLENECK_DEPTH = 50
_LARGEST_PLAIN_STEM = 32  # pixels: up to this height the stem keeps the resolution
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


class ResNet(nn.Module):
    """Pixels to class scores (logits)."""

    def __init__(
        self, *, units: tuple[int, ...], widths: tuple[int, ...], bottleneck: bool, image_shape: tuple[int, int, int],
        num_classes: int,
    ) -> None:  # fmt: skip
        super().__init__()
        channels, height, _ = image_shape
        self.grey = channels == 1
        self.luma: Tensor
        self.register_buffer("luma", torch.tensor(_GREY).reshape(1, 3, 1, 1), persistent=False)
        self.bn_data = _norm(channels)
        self.bn_data.weight.requires_grad_(False)  # the scale is fixed at 1: it would be redundant with conv0's
        self.plain_stem = height <= _LARGEST_PLAIN_STEM
        if self.plain_stem:
            self.conv0 = _conv(channels, widths[0], 3)
            self.bn0: nn.Module = nn.Identity()
            self.pool0: nn.Module = nn.Identity()
        else:
            self.conv0 = _conv(channels, widths[0], 7, stride=2)
            self.bn0 = nn.Sequential(_norm(widths[0]), nn.ReLU())
            self.pool0 = nn.MaxPool2d(3, stride=2, padding=1)
        unit = BottleneckUnit if bottleneck else BasicUnit
        self.stages = nn.Sequential()
        for number, (count, inner, outer) in enumerate(zip(units, widths, widths[1:], strict=False), start=1):
            first = unit(inner, outer, stride=1 if number == 1 else 2)
            rest = [unit(outer, outer) for _ in range(count - 1)]
            self.stages.add_module(f"stage{number}", nn.Sequential(first, *rest))
        self.bn1 = _norm(widths[-1])
        self.fc1 = nn.Linear(widths[-1], num_classes)
        self.apply(_initialise)

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Args: image_B3HW: RGB, 0 to 255, uint8 or float. Returns: (B, K) float."""
        image_BCHW = image_B3HW.float()
        if self.grey:
            image_BCHW = (image_BCHW * self.luma).sum(dim=1, keepdim=True)
        features_BCHW = self.pool0(self.bn0(self.conv0(self.bn_data(image_BCHW))))
        features_BCHW = torch.relu(self.bn1(self.stages(features_BCHW)))
        scores_BK: Tensor = self.fc1(features_BCHW.mean(dim=(2, 3)))
        return scores_BK


class BasicUnit(nn.Module):
    """Two 3x3 convolutions; the first unit of a stage changes width and resolution."""

    def __init__(self, inner: int, outer: int, stride: int | None = None) -> None:
        super().__init__()
        self.changes_shape = stride is not None
        self.bn1, self.conv1 = _norm(inner), _conv(inner, outer, 3, stride or 1)
        self.bn2, self.conv2 = _norm(outer), _conv(outer, outer, 3)
        self.sc: nn.Module = nn.Identity() if stride is None else _conv(inner, outer, 1, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        active_BCHW = torch.relu(self.bn1(x_BCHW))
        shortcut_BCHW = self.sc(active_BCHW) if self.changes_shape else x_BCHW
        y_BCHW: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(active_BCHW))))
        return y_BCHW + shortcut_BCHW


class BottleneckUnit(nn.Module):
    """1x1 to a quarter of the width, 3x3, 1x1 back."""

    def __init__(self, inner: int, outer: int, stride: int | None = None) -> None:
        super().__init__()
        narrow = outer // 4
        self.changes_shape = stride is not None
        self.bn1, self.conv1 = _norm(inner), _conv(inner, narrow, 1)
        self.bn2, self.conv2 = _norm(narrow), _conv(narrow, narrow, 3, stride or 1)
        self.bn3, self.conv3 = _norm(narrow), _conv(narrow, outer, 1)
        self.sc: nn.Module = nn.Identity() if stride is None else _conv(inner, outer, 1, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        active_BCHW = torch.relu(self.bn1(x_BCHW))
        shortcut_BCHW = self.sc(active_BCHW) if self.changes_shape else x_BCHW
        y_BCHW = self.conv2(torch.relu(self.bn2(self.conv1(active_BCHW))))
        y_BCHW = self.conv3(torch.relu(self.bn3(y_BCHW)))
        z_BCHW: Tensor = y_BCHW + shortcut_BCHW
        return z_BCHW


def build(*, num_layers: int, image_shape: tuple[int, int, int], num_classes: int) -> ResNet:
    """A freshly initialised network: the family follows from the depth, the stem from the height.

    Args:
        num_layers: one of IMAGENET_DEPTHS (four stages) or SMALL_DEPTHS (three stages).
        image_shape: channels, height, width; grey (1 channel) is computed from RGB inside.
        num_classes: number of scores.
    """
    units: tuple[int, ...] = ((num_layers - 2) // 6,) * 3
    widths: tuple[int, ...] = _SMALL_WIDTHS
    bottleneck = False
    if num_layers not in SMALL_DEPTHS:
        assert num_layers in IMAGENET_DEPTHS
        units, bottleneck = _UNITS[num_layers], num_layers >= _FIRST_BOTTLENECK_DEPTH
        widths = _BOTTLENECK_WIDTHS if bottleneck else _BASIC_WIDTHS
    return ResNet(units=units, widths=widths, bottleneck=bottleneck, image_shape=image_shape, num_classes=num_classes)


def _conv(inner: int, outer: int, side: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, side, stride=stride, padding=side // 2, bias=False)


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=2e-5, momentum=0.1)


def _initialise(module: nn.Module) -> None:
    """Gaussian with variance 2 / fan-in, as the MXNet example's Xavier(magnitude=2, factor_type="in")."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
