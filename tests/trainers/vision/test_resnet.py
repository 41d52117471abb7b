"""Backbones that detectors and segmenters stand on."""

from __future__ import annotations

import pytest
import torch

from trainers.vision.resnet import ResNetV1b, ResNetV2


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_v1b_has_exactly_the_parameters_of_torchvisions_networks(depth: int, parameters: int) -> None:
    """Counts of torchvision's weight metadata."""
    network = ResNetV1b(num_layers=depth, num_classes=1000)

    assert sum(p.numel() for p in network.parameters()) == parameters


def test_v1b_bears_torchvisions_names() -> None:
    names = set(ResNetV1b(num_layers=50, num_classes=10).state_dict())

    assert {
        "conv1.weight",
        "bn1.running_var",
        "layer1.0.downsample.1.bias",
        "layer4.2.conv3.weight",
        "fc.bias",
    } <= names
    assert len(names) == 320  # as many as resnet50's state dict has


@pytest.mark.parametrize(
    ("stride", "deep", "sides"), [(32, False, [16, 8, 4, 2]), (16, False, [16, 8, 4, 4]), (8, True, [16, 8, 8, 8])]
)
def test_v1b_gives_features_at_the_wanted_stride(stride: int, deep: bool, sides: list[int]) -> None:
    network = ResNetV1b(num_layers=50, num_classes=0, output_stride=stride, deep_stem=deep).eval()
    with torch.inference_mode():
        found = network.features(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))

    assert [tuple(map_BCHW.shape[1:]) for map_BCHW in found] == [
        (width, side, side) for width, side in zip(network.widths, sides, strict=True)
    ]


@pytest.mark.parametrize("depth", [18, 50])
def test_dilation_sees_what_the_stride_it_replaces_saw(depth: int) -> None:
    """Every fourth pixel at stride 8 is what the same weights give at stride 32, borders included."""
    coarse, fine = (ResNetV1b(num_layers=depth, num_classes=0, output_stride=s).eval() for s in (32, 8))
    fine.load_state_dict(coarse.state_dict())
    image_B3HW = torch.randint(0, 256, (1, 3, 129, 129), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        small_BCHW, large_BCHW = (network.features(image_B3HW)[-1] for network in (coarse, fine))

    assert large_BCHW.shape[-1] == 17
    assert torch.allclose(large_BCHW[..., ::4, ::4], small_BCHW, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("network", [ResNetV1b(num_layers=18, num_classes=4),
                                     ResNetV2(num_layers=18, image_shape=(3, 64, 64), num_classes=4)])  # fmt: skip
def test_scores_come_from_the_last_features(network: ResNetV1b | ResNetV2) -> None:
    network.eval()
    image_B3HW = torch.randint(0, 256, (2, 3, 64, 64))
    with torch.inference_mode():
        features_BC = network.features(image_B3HW)[-1].mean(dim=(2, 3))
        last = network.fc if isinstance(network, ResNetV1b) else network.fc1

        assert torch.allclose(network(image_B3HW), last(features_BC), atol=1e-5)


def test_the_gradient_reaches_every_parameter_of_v1b() -> None:
    network = ResNetV1b(num_layers=50, num_classes=3)
    network(torch.randint(0, 256, (4, 3, 64, 64))).square().sum().backward()

    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []
