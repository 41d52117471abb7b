"""FCN, PSPNet and DeepLabV3 on dilated residual networks, as GluonCV builds them (contract, section 1).

Long et al. 2015 (arXiv:1411.4038), Zhao et al. 2017 (arXiv:1612.01105), Chen et al. 2017 (arXiv:1706.05587).
"""

# B batch, C channels, H height, W width, K classes, P places along one side of a pooled map

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.semantic_segmentation.hyperparameters import STRIDE, Algorithm, Backbone
from trainers.vision.resnet import ResNetV1b

__all__ = ["DEPTHS", "MEAN_COLOUR", "Segmenter", "upsampled"]

DEPTHS: dict[Backbone, int] = {"resnet-50": 50, "resnet-101": 101, "resnet-18": 18}
MEAN_COLOUR = (123.675, 116.28, 103.53)
"""Of ImageNet, RGB: what lies around an image, for the backbone sees 0 there, as convolutions do around their maps."""

_PYRAMID = (1, 2, 3, 6)
_RATES = (12, 24, 36)


class Segmenter(nn.Module):
    """Pixels to class scores of every place.

    Args:
        algorithm: the head.
        backbone: resnet-50 and resnet-101 have the stem of three convolutions, as the original's.
        num_classes: K.
        output_stride: 8 or 16, of the backbone's last stage.
        plain_stem: the ResNet's usual stem, a 7 x 7 convolution, which published weights mostly have.
        auxiliary: a second head on the third stage, for training.
    """

    def __init__(
        self,
        *,
        algorithm: Algorithm,
        backbone: Backbone,
        num_classes: int,
        output_stride: int = STRIDE,
        plain_stem: bool = False,
        auxiliary: bool = True,
    ) -> None:
        super().__init__()
        self.base = ResNetV1b(
            num_layers=DEPTHS[backbone],
            num_classes=0,
            output_stride=output_stride,
            deep_stem=backbone != "resnet-18" and not plain_stem,
        )
        _, _, third, fourth = self.base.widths
        heads = {"fcn": _FcnHead, "psp": _PspHead, "deeplab": _DeepLabHead}
        self.head = heads[algorithm](fourth, num_classes)
        self.auxiliary: nn.Module | None = _FcnHead(third, num_classes) if auxiliary else None

    def forward(self, image_B3HW: Tensor) -> Tensor:
        """Args: image_B3HW: RGB, 0 to 255, sides multiples of 8. Returns: (B, K, H / stride, W / stride) logits."""
        scores_BKHW: Tensor = self.head(self.base.layer4(self._third(image_B3HW)))
        return scores_BKHW

    @torch.jit.ignore  # type: ignore[untyped-decorator]
    def both(self, image_B3HW: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits of `forward`, and those of the auxiliary head, for training."""
        third_BCHW = self._third(image_B3HW)
        scores_BKHW = self.head(self.base.layer4(third_BCHW))
        return scores_BKHW, None if self.auxiliary is None else self.auxiliary(third_BCHW)

    def _third(self, image_B3HW: Tensor) -> Tensor:
        third_BCHW: Tensor = self.base.layer3(self.base.layer2(self.base.layer1(self.base.stem(image_B3HW))))
        return third_BCHW


def upsampled(scores_BKHW: Tensor, height: int, width: int) -> Tensor:
    """(B, K, height, width): bilinear, with half-pixel centres."""
    return functional.interpolate(scores_BKHW, size=(height, width), mode="bilinear", align_corners=False)


class _FcnHead(nn.Module):
    """3 x 3 to a quarter of the width, then 1 x 1."""

    def __init__(self, inner: int, num_classes: int) -> None:
        super().__init__()
        self.mix = _block(inner, inner // 4, 3, padding=1)
        self.dropout = nn.Dropout(0.1)
        self.score = _score(inner // 4, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BKHW: Tensor = self.score(self.dropout(self.mix(x_BCHW)))
        return y_BKHW


class _PspHead(nn.Module):
    """Means over grids of 1, 2, 3 and 6 places a side beside the map itself."""

    def __init__(self, inner: int, num_classes: int) -> None:
        super().__init__()
        self.pyramid = nn.ModuleList(_block(inner, inner // 4, 1) for _ in _PYRAMID)
        self.grids = _PYRAMID
        self.mix = _block(inner * 2, inner // 4, 3, padding=1)
        self.dropout = nn.Dropout(0.1)
        self.score = _score(inner // 4, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        maps = [x_BCHW]
        for number, level in enumerate(self.pyramid):
            pooled_BCPP = level(_grid_means(x_BCHW, self.grids[number]))
            maps.append(upsampled(pooled_BCPP, x_BCHW.shape[2], x_BCHW.shape[3]))
        y_BKHW: Tensor = self.score(self.dropout(self.mix(torch.cat(maps, dim=1))))
        return y_BKHW


class _DeepLabHead(nn.Module):
    """Atrous spatial pyramid pooling: 1 x 1, 3 x 3 at three rates, and the image's mean."""

    def __init__(self, inner: int, num_classes: int) -> None:
        super().__init__()
        width = 256
        self.near = _block(inner, width, 1)
        self.far = nn.ModuleList(_block(inner, width, 3, padding=rate, dilation=rate) for rate in _RATES)
        self.whole = _block(inner, width, 1)
        self.join = _block(width * (2 + len(_RATES)), width, 1)
        self.first_dropout = nn.Dropout(0.5)
        self.mix = _block(width, width, 3, padding=1)
        self.dropout = nn.Dropout(0.1)
        self.score = _score(width, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        near_BCHW = self.near(x_BCHW)
        maps = [near_BCHW]
        for branch in self.far:
            maps.append(branch(x_BCHW))  # noqa: PERF401  TorchScript
        maps.append(self.whole(x_BCHW.mean(dim=(2, 3), keepdim=True)).expand_as(near_BCHW))
        joined_BCHW = self.first_dropout(self.join(torch.cat(maps, dim=1)))
        y_BKHW: Tensor = self.score(self.dropout(self.mix(joined_BCHW)))
        return y_BKHW


def _grid_means(x_BCHW: Tensor, places: int) -> Tensor:
    """(B, C, P, P): adaptive average pooling, as two matrix products, for ONNX knows it of fixed sizes only."""
    rows_PH = _shares(x_BCHW.shape[2], places, x_BCHW)
    columns_PW = _shares(x_BCHW.shape[3], places, x_BCHW)
    return torch.matmul(torch.matmul(rows_PH, x_BCHW), columns_PW.transpose(0, 1))


def _shares(size: int, places: int, like: Tensor) -> Tensor:
    """(P, size): which part each of `size` cells has in each place's mean; places overlap where they do not fit."""
    place_P1 = torch.arange(places, device=like.device).unsqueeze(1)
    begin_P1 = torch.div(place_P1 * size, places, rounding_mode="floor")
    end_P1 = torch.div((place_P1 + 1) * size + places - 1, places, rounding_mode="floor")
    # counted along a column of the map itself, so that the exported graph takes any size
    cell_1H = torch.arange(size, device=like.device).unsqueeze(0)
    inside_PH = ((cell_1H >= begin_P1) & (cell_1H < end_P1)).to(like.dtype)
    return inside_PH / (end_P1 - begin_P1).to(like.dtype)


def _block(inner: int, outer: int, side: int, *, padding: int = 0, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inner, outer, side, padding=padding, dilation=dilation, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outer), nn.ReLU())


def _score(inner: int, num_classes: int) -> nn.Conv2d:
    conv = nn.Conv2d(inner, num_classes, 1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
