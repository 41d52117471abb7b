"""The networks: their shapes, their pooling, and what they share with the original's description."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from trainers.semantic_segmentation.hyperparameters import Algorithm, Backbone
from trainers.semantic_segmentation.model import Segmenter, _grid_means, upsampled

ALL: tuple[Algorithm, ...] = ("fcn", "psp", "deeplab")


@pytest.mark.parametrize("algorithm", ALL)
@pytest.mark.parametrize("stride", [8, 16])
def test_maps_have_the_stride_that_was_asked_for(algorithm: Algorithm, stride: int) -> None:
    network = Segmenter(algorithm=algorithm, backbone="resnet-18", num_classes=5, output_stride=stride).eval()
    scores, aside = network.both(torch.zeros(2, 3, 64, 96))

    assert scores.shape == (2, 5, 64 // stride, 96 // stride)
    assert aside is not None
    assert aside.shape == scores.shape
    assert torch.equal(network(torch.zeros(2, 3, 64, 96)), scores)


@pytest.mark.parametrize(("backbone", "depth"), [("resnet-50", (3, 4, 6, 3)), ("resnet-101", (3, 4, 23, 3))])
def test_backbones_are_dilated_and_have_the_deep_stem(backbone: Backbone, depth: tuple[int, ...]) -> None:
    network = Segmenter(algorithm="fcn", backbone=backbone, num_classes=3)
    base = network.base

    assert tuple(map(len, (base.layer1, base.layer2, base.layer3, base.layer4))) == depth
    assert base.widths[2:] == (1024, 2048)
    dilations = {m.dilation for m in base.layer4.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}
    assert dilations == {(2, 2), (4, 4)}
    assert isinstance(base.conv1, nn.Sequential)
    assert sum(isinstance(each, nn.Conv2d) for each in base.conv1) == 3


def test_heads_have_the_originals_widths() -> None:
    """Contract, section 1: 512, 4096 to 512, and 1280 to 256 channels."""
    fcn, psp, deeplab = (Segmenter(algorithm=name, backbone="resnet-50", num_classes=21).state_dict() for name in ALL)

    assert fcn["head.mix.0.weight"].shape == (512, 2048, 3, 3)
    assert fcn["auxiliary.mix.0.weight"].shape == (256, 1024, 3, 3)
    assert psp["head.mix.0.weight"].shape == (512, 4096, 3, 3)
    assert psp["head.pyramid.3.0.weight"].shape == (512, 2048, 1, 1)
    assert deeplab["head.join.0.weight"].shape == (256, 1280, 1, 1)
    assert deeplab["head.far.2.0.weight"].shape == (256, 2048, 3, 3)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (6, 6), (13, 20), (30, 45)])
@pytest.mark.parametrize("places", [1, 2, 3, 6])
def test_grid_means_are_adaptive_average_pooling(size: tuple[int, int], places: int) -> None:
    maps = torch.randn(2, 3, *size)

    torch.testing.assert_close(_grid_means(maps, places), functional.adaptive_avg_pool2d(maps, places))


def test_an_image_in_a_batch_is_seen_as_alone() -> None:
    torch.manual_seed(0)
    network = Segmenter(algorithm="psp", backbone="resnet-18", num_classes=4, output_stride=16).eval()
    images = torch.randint(0, 256, (3, 3, 48, 64)).float()

    torch.testing.assert_close(network(images)[1:2], network(images[1:2]), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("algorithm", ALL)
def test_the_gradient_reaches_every_parameter(algorithm: Algorithm) -> None:
    torch.manual_seed(0)
    network = Segmenter(algorithm=algorithm, backbone="resnet-18", num_classes=3, output_stride=8)
    scores, aside = network.both(torch.randint(0, 256, (2, 3, 40, 56)).float())
    assert aside is not None
    (scores.square().sum() + aside.square().sum()).backward()
    dead = [name for name, each in network.named_parameters() if each.grad is None or not each.grad.any()]

    assert dead == []


@pytest.mark.parametrize("algorithm", ALL)
def test_one_batch_is_learnt_by_heart(algorithm: Algorithm) -> None:
    torch.manual_seed(0)
    network = Segmenter(algorithm=algorithm, backbone="resnet-18", num_classes=3, output_stride=8)
    patches_B366, class_B66 = torch.randint(0, 256, (2, 3, 6, 6)).float(), torch.randint(0, 3, (2, 6, 6))
    image_B3HW = functional.interpolate(patches_B366, scale_factor=8.0)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(20):
        loss = functional.cross_entropy(network(image_B3HW), class_B66)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    assert loss < 0.3  # 1.1 before the first step


def test_upsampling_keeps_a_constant_map() -> None:
    assert torch.equal(upsampled(torch.full((1, 2, 3, 4), 7.0), 24, 32), torch.full((1, 2, 24, 32), 7.0))
