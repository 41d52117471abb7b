"""The network against the structure table of the contract, section 1."""

from __future__ import annotations

import pytest
import torch

from trainers.image_classification.model import build
from trainers.vision.resnet import ResNetV2


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152, 200, 20, 32, 44, 56, 110])
def test_every_depth_has_that_many_layers_and_one_score_per_class(depth: int) -> None:
    network = build(num_layers=depth, image_shape=(3, 28, 28), num_classes=7).eval()
    counted = [n for n, p in network.named_parameters() if p.ndim > 1 and ".sc." not in n]
    with torch.inference_mode():
        score_BK = network(torch.zeros(2, 3, 28, 28, dtype=torch.uint8))

    assert score_BK.shape == (2, 7)
    assert len(counted) == depth  # the name of a residual network counts its weights, shortcuts aside


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_small_networks_have_the_size_of_the_paper(depth: int, millions: float) -> None:
    """Table 6 of arXiv:1512.03385; projection shortcuts and the input norm add a little."""
    network = build(num_layers=depth, image_shape=(3, 32, 32), num_classes=10)

    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize(("depth", "millions"), [(18, 11.7), (34, 21.8), (50, 25.6), (101, 44.5), (152, 60.2)])
def test_large_networks_have_the_size_of_their_kin(depth: int, millions: float) -> None:
    network = build(num_layers=depth, image_shape=(3, 224, 224), num_classes=1000)

    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


@pytest.mark.parametrize(("height", "side"), [(28, 28), (32, 32), (33, 9), (64, 16), (224, 56)])
def test_the_stem_keeps_small_images_and_quarters_large_ones(height: int, side: int) -> None:
    network = build(num_layers=18, image_shape=(3, height, height), num_classes=2)
    assert isinstance(network, ResNetV2)
    stem = torch.nn.Sequential(network.conv0, network.bn0, network.pool0)

    assert stem(torch.zeros(1, 3, height, height)).shape == (1, 64, side, side)


@pytest.mark.parametrize("depth", [20, 18, 50])
def test_the_gradient_reaches_every_parameter(depth: int) -> None:
    torch.manual_seed(0)
    network = build(num_layers=depth, image_shape=(3, 40, 40), num_classes=3)
    network(torch.randint(0, 256, (4, 3, 40, 40))).square().sum().backward()
    dead = [n for n, p in network.named_parameters() if p.requires_grad and not (p.grad is not None and p.grad.any())]

    assert dead == []
    assert [n for n, p in network.named_parameters() if not p.requires_grad] == ["bn_data.weight"]


def test_one_batch_is_learnt_by_heart() -> None:
    torch.manual_seed(0)
    network = build(num_layers=20, image_shape=(3, 16, 16), num_classes=4)
    image_B3HW, label_B = torch.randint(0, 256, (16, 3, 16, 16)), torch.arange(16) % 4
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(network(image_B3HW), label_B)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    assert loss.item() < 0.05


def test_a_grey_network_sees_luma_alone() -> None:
    """ITU-R BT.601: this red and this grey are equally bright."""
    network = build(num_layers=20, image_shape=(1, 16, 16), num_classes=2).eval()
    red, grey = torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 0.299 * 200)
    red[:, 0] = 200

    assert torch.allclose(network(red), network(grey), atol=1e-4)


def test_an_answer_does_not_depend_on_its_neighbours() -> None:
    network = build(num_layers=20, image_shape=(3, 16, 16), num_classes=5).eval()
    image_B3HW = torch.randint(0, 256, (6, 3, 16, 16))
    with torch.inference_mode():
        together, alone = network(image_B3HW), torch.cat([network(image[None]) for image in image_B3HW])

    assert torch.allclose(together, alone, atol=1e-4)
