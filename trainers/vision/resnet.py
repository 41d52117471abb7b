"""Residual networks as backbones: with pre-activation as the original's classifier, and as published weights have them.

`resnet_v2` is He et al. 2016 (arXiv:1603.05027) with a BatchNorm on the pixels; modules bear the names of the MXNet
example that the original derives from, dots in place of underscores: `stage1_unit1_conv1_weight` is
`stages.stage1.0.conv1.weight`. `resnet_v1b` is He et al. 2015 (arXiv:1512.03385) with the stride in the 3 x 3
convolution, under torchvision's names, so that ImageNet weights load; it normalises the pixels itself.
"""

# B batch, C channels, H height, W width, K classes

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

__all__ = [
    "IMAGENET_DEPTHS",
    "SMALL_DEPTHS",
    "Architecture",
    "BasicUnit",
    "BottleneckUnit",
    "ResNetV1b",
    "ResNetV2",
    "units_of",
]

Architecture = Literal["resnet_v2", "resnet_v1b"]

IMAGENET_DEPTHS = (18, 34, 50, 101, 152, 200)
SMALL_DEPTHS = (20, 32, 44, 56, 110)

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
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, 0 to 1: published weights expect them


def units_of(num_layers: int) -> tuple[int, ...]:
    """Residual units of each stage."""
    return ((num_layers - 2) // 6,) * 3 if num_layers in SMALL_DEPTHS else _UNITS[num_layers]


class ResNetV2(nn.Module):
    """Pixels to class scores (logits), or to the feature maps of its stages.

    Args:
        num_layers: one of IMAGENET_DEPTHS (four stages) or SMALL_DEPTHS (three thin stages).
        image_shape: channels, height, width; the stem follows from the height. Grey (1 channel) is computed from RGB.
        num_classes: number of scores.
    """

    def __init__(self, *, num_layers: int, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, _ = image_shape
        bottleneck = num_layers in IMAGENET_DEPTHS and num_layers >= _FIRST_BOTTLENECK_DEPTH
        widths: tuple[int, ...] = _BOTTLENECK_WIDTHS if bottleneck else _BASIC_WIDTHS
        if num_layers in SMALL_DEPTHS:
            widths = _SMALL_WIDTHS
        self.grey = channels == 1
        self.luma: Tensor
        self.register_buffer("luma", torch.tensor(_GREY).reshape(1, 3, 1, 1), persistent=False)
        self.bn_data = _norm(channels)
        self.bn_data.weight.requires_grad_(False)  # the scale is fixed at 1: it would be redundant with conv0's
        if height <= _LARGEST_PLAIN_STEM:
            self.conv0 = _conv(channels, widths[0], 3)
            self.bn0: nn.Module = nn.Identity()
            self.pool0: nn.Module = nn.Identity()
        else:
            self.conv0 = _conv(channels, widths[0], 7, stride=2)
            self.bn0 = nn.Sequential(_norm(widths[0]), nn.ReLU())
            self.pool0 = nn.MaxPool2d(3, stride=2, padding=1)
        unit = BottleneckUnit if bottleneck else BasicUnit
        self.stages = nn.Sequential()
        for number, (count, inner, outer) in enumerate(
            zip(units_of(num_layers), widths, widths[1:], strict=False), start=1
        ):
            first = unit(inner, outer, stride=1 if number == 1 else 2)
            rest = [unit(outer, outer) for _ in range(count - 1)]
            self.stages.add_module(f"stage{number}", nn.Sequential(first, *rest))
        self.widths = widths[1:]
        self.bn1 = _norm(widths[-1])
        self.fc1 = nn.Linear(widths[-1], num_classes)
        self.apply(_initialise)

    def features(self, image_B3HW: Tensor) -> list[Tensor]:
        """The output of each stage, finest first; the last one normalised and active. See `forward` for the image."""
        features_BCHW = self.stem(image_B3HW)
        found: list[Tensor] = []
        for stage in self.stages:
            features_BCHW = stage(features_BCHW)
            found.append(features_BCHW)
        found[-1] = torch.relu(self.bn1(features_BCHW))
        return found

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Args: image_B3HW: RGB, 0 to 255, uint8 or float. Returns: (B, K) float."""
        # not through `features`: lists of tensors have no good form in ONNX
        features_BCHW = torch.relu(self.bn1(self.stages(self.stem(image_B3HW))))
        scores_BK: Tensor = self.fc1(features_BCHW.mean(dim=(2, 3)))
        return scores_BK

    def stem(self, image_B3HW: Tensor) -> Tensor:
        """What the first stage sees."""
        image_BCHW = image_B3HW.float()
        if self.grey:
            image_BCHW = (image_BCHW * self.luma).sum(dim=1, keepdim=True)
        features_BCHW: Tensor = self.pool0(self.bn0(self.conv0(self.bn_data(image_BCHW))))
        return features_BCHW


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


class ResNetV1b(nn.Module):
    """Pixels to class scores (logits), or to the feature maps of its four stages.

    Args:
        num_layers: one of IMAGENET_DEPTHS.
        num_classes: number of scores; 0 leaves the classifier away, for detectors and segmenters.
        output_stride: 32, 16 or 8; below 32 the last stages keep the resolution and dilate instead.
        deep_stem: three 3 x 3 convolutions in place of the 7 x 7 one (GluonCV's v1s), for segmenters.
    """

    def __init__(
        self, *, num_layers: int, num_classes: int, output_stride: int = 32, deep_stem: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        bottleneck = num_layers >= _FIRST_BOTTLENECK_DEPTH
        widths = _BOTTLENECK_WIDTHS if bottleneck else _BASIC_WIDTHS
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", 255 * torch.tensor(_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", 1 / (255 * torch.tensor(_DEVIATION).reshape(1, 3, 1, 1)), persistent=False)
        stem_width = 128 if deep_stem else 64
        self.conv1: nn.Module = _deep_stem(stem_width) if deep_stem else _conv(3, 64, 7, stride=2)
        self.bn1 = _norm(stem_width, eps=1e-5)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inner, stride_so_far, dilation = stem_width, 4, 1
        stages = []
        for number, (count, outer) in enumerate(zip(units_of(num_layers), widths[1:], strict=True)):
            stride, first_dilation = (1 if number == 0 else 2), dilation
            if number and stride_so_far * stride > output_stride:
                stride, dilation = 1, dilation * 2
            stride_so_far *= stride
            # where dilation replaces a stride, the convolution that had it still sees its finer input
            first = _PostUnit(inner, outer, stride, (first_dilation, dilation), bottleneck=bottleneck)
            rest = [_PostUnit(outer, outer, 1, (dilation, dilation), bottleneck=bottleneck) for _ in range(count - 1)]
            stages.append(nn.Sequential(first, *rest))
            inner = outer
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.widths = widths[1:]
        self.fc: nn.Module = nn.Linear(inner, num_classes) if num_classes else nn.Identity()
        self.apply(_initialise)

    def features(self, image_B3HW: Tensor) -> list[Tensor]:
        """The output of each stage, finest first. See `forward` for the image."""
        first_BCHW = self.layer1(self.stem(image_B3HW))
        second_BCHW = self.layer2(first_BCHW)
        third_BCHW = self.layer3(second_BCHW)
        return [first_BCHW, second_BCHW, third_BCHW, self.layer4(third_BCHW)]

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Args: image_B3HW: RGB, 0 to 255, uint8 or float. Returns: (B, K) float."""
        features_BCHW = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(image_B3HW)))))
        scores_BK: Tensor = self.fc(features_BCHW.mean(dim=(2, 3)))
        return scores_BK

    def stem(self, image_B3HW: Tensor) -> Tensor:
        """What the first stage sees."""
        x_BCHW = (image_B3HW.float() - self.mean) * self.scale
        features_BCHW: Tensor = self.maxpool(torch.relu(self.bn1(self.conv1(x_BCHW))))
        return features_BCHW


class _PostUnit(nn.Module):
    """Convolution, norm, activation: basic (two 3x3) or bottleneck; a projection where the shape changes.

    `dilations` are those of the first 3x3 convolution, which has the stride, and of the second one.
    """

    def __init__(self, inner: int, outer: int, stride: int, dilations: tuple[int, int], *, bottleneck: bool) -> None:
        super().__init__()
        self.bottleneck = bottleneck
        narrow = outer // 4 if bottleneck else outer
        if bottleneck:
            self.conv1, self.bn1 = _conv(inner, narrow, 1), _norm(narrow, eps=1e-5)
            self.conv2, self.bn2 = _conv(narrow, narrow, 3, stride, dilations[0]), _norm(narrow, eps=1e-5)
            self.conv3: nn.Module = _conv(narrow, outer, 1)
            self.bn3: nn.Module = _norm(outer, eps=1e-5)
        else:
            self.conv1, self.bn1 = _conv(inner, outer, 3, stride, dilations[0]), _norm(outer, eps=1e-5)
            self.conv2, self.bn2 = _conv(outer, outer, 3, 1, dilations[1]), _norm(outer, eps=1e-5)
            self.conv3 = self.bn3 = nn.Identity()
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(_conv(inner, outer, 1, stride), _norm(outer, eps=1e-5))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = torch.relu(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = self.bn2(self.conv2(y_BCHW))
        if self.bottleneck:
            y_BCHW = self.bn3(self.conv3(torch.relu(y_BCHW)))
        z_BCHW: Tensor = torch.relu(y_BCHW + self.downsample(x_BCHW))
        return z_BCHW


def _deep_stem(width: int) -> nn.Sequential:
    narrow = width // 2
    return nn.Sequential(
        _conv(3, narrow, 3, stride=2), _norm(narrow, eps=1e-5), nn.ReLU(),
        _conv(narrow, narrow, 3), _norm(narrow, eps=1e-5), nn.ReLU(), _conv(narrow, width, 3),
    )  # fmt: skip


def _conv(inner: int, outer: int, side: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = side // 2 * dilation
    return nn.Conv2d(inner, outer, side, stride=stride, padding=padding, dilation=dilation, bias=False)


def _norm(width: int, eps: float = 2e-5) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=eps, momentum=0.1)


def _initialise(module: nn.Module) -> None:
    """Gaussian with variance 2 / fan-in, as the MXNet example's Xavier(magnitude=2, factor_type="in")."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
