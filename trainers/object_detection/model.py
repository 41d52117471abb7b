"""The Single Shot MultiBox Detector (Liu et al. 2016, arXiv:1512.02325; contract, section 1)."""

# B batch, C channels, H height, W width, A anchors, K classes without the background

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from trainers.object_detection.anchors import anchor_boxes, levels_of
from trainers.object_detection.vgg import Vgg16
from trainers.vision.resnet import ResNetV1b

__all__ = ["BASE_NETWORKS", "BaseNetwork", "SingleShotDetector", "aliases"]

BaseNetwork = Literal["vgg-16", "resnet-50", "resnet-18"]
BASE_NETWORKS: tuple[BaseNetwork, ...] = ("vgg-16", "resnet-50", "resnet-18")

_DEPTHS = {"resnet-50": 50, "resnet-18": 18}
# width, stride and padding of each further feature map
_OF_VGG_300 = ((512, 2, 1), (256, 2, 1), (256, 1, 0), (256, 1, 0))
# the last one has stride 1 and a 4 x 4 kernel in the paper; from 2 x 2 to one place it comes to the same
_OF_VGG_512 = ((512, 2, 1), (256, 2, 1), (256, 2, 1), (256, 2, 1), (256, 2, 1))
_OF_RESNET_50 = ((512, 2, 1), (256, 2, 1), (256, 2, 1), (128, 2, 1))
_OF_RESNET_18 = ((256, 2, 1), (256, 2, 1), (128, 2, 1))


class SingleShotDetector(nn.Module):
    """Pixels to class scores and box offsets of every anchor.

    Args:
        base_network: `vgg-16` and `resnet-50` as in the original; `resnet-18`, not in the original, is for CPUs.
        num_classes: without the background.
        image_shape: side of the square image, in pixels.
    """

    def __init__(self, *, base_network: BaseNetwork, num_classes: int, image_shape: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.base: nn.Module = Vgg16() if base_network == "vgg-16" else _Stages(_DEPTHS[base_network])
        levels = levels_of(base_network, image_shape)
        extras = {"resnet-50": _OF_RESNET_50, "resnet-18": _OF_RESNET_18}.get(
            base_network, _OF_VGG_512 if len(levels) == 7 else _OF_VGG_300
        )
        # batch norm makes training from random weights possible (DSOD, arXiv:1708.01241); VGG's own layers have none
        normed = base_network != "vgg-16"
        widths = [*self.base.widths, *(width for width, _, _ in extras)]
        self.extras = nn.ModuleList(
            _Extra(inner, outer, stride, padding, normed=normed)
            for inner, (outer, stride, padding) in zip(widths[len(self.base.widths) - 1 :], extras, strict=False)
        )
        self.scores = nn.ModuleList(
            nn.Conv2d(width, level.num_anchors * (num_classes + 1), 3, padding=1)
            for width, level in zip(widths, levels, strict=True)
        )
        self.offsets = nn.ModuleList(
            nn.Conv2d(width, level.num_anchors * 4, 3, padding=1) for width, level in zip(widths, levels, strict=True)
        )
        for head in [*self.scores, *self.offsets]:
            assert isinstance(head, nn.Conv2d)
            nn.init.xavier_uniform_(head.weight)
            assert head.bias is not None
            nn.init.zeros_(head.bias)
        self.anchors: Tensor
        self.register_buffer("anchors", self._anchors(base_network, image_shape), persistent=False)

    def forward(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """What the network says of each anchor.

        Args:
            image_B3HW: RGB, 0 to 255, uint8 or float; H and W are the network's `image_shape`.

        Returns:
            (B, A, 1 + K) logits, the background first, and (B, A, 4) offsets; see `boxes.apply_offsets`.
        """
        feature_maps = self.features(image_B3HW)
        scores, offsets = [], []
        for number, (score, offset) in enumerate(zip(self.scores, self.offsets)):  # noqa: B905  TorchScript knows no more
            x_BCHW = feature_maps[number]
            # anchors of a place lie side by side, as `anchor_boxes` has them
            scores.append(score(x_BCHW).permute(0, 2, 3, 1).reshape(x_BCHW.shape[0], -1, self.num_classes + 1))
            offsets.append(offset(x_BCHW).permute(0, 2, 3, 1).reshape(x_BCHW.shape[0], -1, 4))
        return torch.cat(scores, dim=1), torch.cat(offsets, dim=1)

    def features(self, image_B3HW: Tensor) -> list[Tensor]:
        """The maps that anchors lie on, finest first."""
        feature_maps: list[Tensor] = self.base(image_B3HW)
        for extra in self.extras:
            feature_maps.append(extra(feature_maps[-1]))
        return feature_maps

    def _anchors(self, base_network: BaseNetwork, image_shape: int) -> Tensor:
        training = self.training
        with torch.no_grad():
            maps = self.eval().features(torch.zeros(1, 3, image_shape, image_shape))
        self.train(training)
        sides = [(int(each.shape[2]), int(each.shape[3])) for each in maps]
        return anchor_boxes(levels_of(base_network, image_shape), sides)


class _Stages(nn.Module):
    """A residual network's last stages: from stride 8 for `resnet-18`, from stride 16 for `resnet-50`."""

    def __init__(self, num_layers: int) -> None:
        super().__init__()
        self.network = ResNetV1b(num_layers=num_layers, num_classes=0)
        self.fine = num_layers == 18
        self.widths = tuple(self.network.widths[1:] if self.fine else self.network.widths[2:])

    def forward(self, image_B3HW: Tensor) -> list[Tensor]:
        second_BCHW = self.network.layer2(self.network.layer1(self.network.stem(image_B3HW)))
        third_BCHW = self.network.layer3(second_BCHW)
        fourth_BCHW = self.network.layer4(third_BCHW)
        return [second_BCHW, third_BCHW, fourth_BCHW] if self.fine else [third_BCHW, fourth_BCHW]


class _Extra(nn.Module):
    """1 x 1 to half the width, 3 x 3 with stride to the next, coarser map."""

    def __init__(self, inner: int, outer: int, stride: int, padding: int, *, normed: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer // 2, 1, bias=not normed)
        self.bn1: nn.Module = nn.BatchNorm2d(outer // 2) if normed else nn.Identity()
        self.conv2 = nn.Conv2d(outer // 2, outer, 3, stride=stride, padding=padding, bias=not normed)
        self.bn2: nn.Module = nn.BatchNorm2d(outer) if normed else nn.Identity()
        for conv in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW: Tensor = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x_BCHW))))))
        return y_BCHW


def aliases(name: str) -> Iterator[str]:
    """The names that a parameter goes by: our own, and that of the original's symbol, for `freeze_layer_pattern`."""
    yield name
    short = name.removeprefix("base.").removeprefix("network.")
    yield short
    matched = re.match(r"^layer(\d)\.(\d+)\.(?:(conv|bn)(\d)|downsample\.(\d))\.(.+)$", short)
    if matched:
        stage, unit, kind, number, shortcut, part = matched.groups()
        place = f"{kind}{number}" if kind else ("sc" if shortcut == "0" else "sc_bn")
        yield f"stage{stage}_unit{int(unit) + 1}_{place}_{part}"
    elif matched := re.match(r"^(conv|bn)1\.(.+)$", short):
        yield f"{matched[1]}0_{matched[2]}"
    elif "." in short:
        yield short.replace(".", "_")
