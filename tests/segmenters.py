"""A segmenter's checkpoint whose masks have several classes, without any training."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn

from trainers.checkpoints import save
from trainers.hyperparameter_schema import parse, plain_values
from trainers.semantic_segmentation.hyperparameters import Hyperparameters
from trainers.semantic_segmentation.model import Segmenter

__all__ = ["write_checkpoint"]


def write_checkpoint(directory: Path, **changed: object) -> Path:
    """`model.pt` and `model.json` of a random network whose logits are far apart, as a trained one's are."""
    given = {"num_classes": 4, "num_training_samples": 1, "backbone": "resnet-18", "output_stride": 16}
    wanted = parse(Hyperparameters, given | changed)
    torch.manual_seed(0)
    network = Segmenter(
        algorithm=wanted.algorithm,
        backbone=wanted.backbone,
        num_classes=wanted.num_classes,
        output_stride=wanted.output_stride,
    ).eval()
    _spread(network)
    directory.mkdir(parents=True)
    save(directory / "model.pt", network.state_dict())
    description = {
        "algorithm": "semantic_segmentation",
        "hyperparameters": plain_values(wanted),
        "plain_stem": False,
        "epoch": 0,
        "metrics": {"validation:mIOU": 0.5},
    }
    (directory / "model.json").write_text(json.dumps(description))
    return directory


@torch.no_grad()
def _spread(network: Segmenter) -> None:
    """Let every class have logits of mean 0 and deviation 3 on patches of colour."""
    random = torch.Generator().manual_seed(1)
    patches = torch.randint(0, 256, (2, 3, 8, 8), generator=random).float()
    logits = network(nn.functional.interpolate(patches, scale_factor=16.0))
    score = network.head.get_submodule("score")
    assert isinstance(score, nn.Conv2d)
    assert score.bias is not None
    scale = 3 / logits.std(dim=(0, 2, 3)).clamp(min=1e-6)
    score.bias.copy_(-logits.mean(dim=(0, 2, 3)) * scale)
    score.weight *= scale.reshape(-1, 1, 1, 1)
