"""A detector's checkpoint that finds something, without any training."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from trainers.checkpoints import save
from trainers.hyperparameter_schema import parse, plain_values
from trainers.object_detection.hyperparameters import Hyperparameters
from trainers.object_detection.model import SingleShotDetector

__all__ = ["write_checkpoint"]


def write_checkpoint(directory: Path, **changed: object) -> Path:
    """`model.pt` and `model.json` of a random network whose scores are far apart, as a trained one's are."""
    given = {"num_classes": 3, "num_training_samples": 1, "base_network": "resnet-18", "nms_topk": 50}
    wanted = parse(Hyperparameters, given | changed)
    torch.manual_seed(0)
    network = SingleShotDetector(
        base_network=wanted.base_network, num_classes=wanted.num_classes, image_shape=wanted.image_shape
    ).eval()
    with torch.no_grad():
        settle(network)
        for head in network.scores:
            assert isinstance(head, nn.Conv2d)
            assert head.bias is not None
            head.bias.view(-1, wanted.num_classes + 1)[:, 0] += 3.0  # most anchors see background
    directory.mkdir(parents=True)
    save(directory / "model.pt", network.state_dict())
    description = {
        "algorithm": "object_detection",
        "hyperparameters": plain_values(wanted),
        "epoch": 0,
        "metrics": {"validation:mAP": 0.5},
    }
    (directory / "model.json").write_text(json.dumps(description))
    return directory


def settle(network: SingleShotDetector) -> None:
    """Scale the heads by what they say of noise: logits of deviation 3 (neither alike nor certain), offsets of 1."""
    side = 300
    noise = torch.randint(0, 256, (1, 3, side, side), generator=torch.Generator().manual_seed(1)).float()
    for feature_map, *heads in zip(network.features(noise), network.scores, network.offsets, strict=True):
        for head, deviation in zip(heads, (3.0, 1.0), strict=True):
            assert isinstance(head, nn.Conv2d)
            head.weight *= deviation / head(feature_map).std().clamp(min=1e-3)
