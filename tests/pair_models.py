"""Small Object2Vec checkpoints of random weights, without any training."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from trainers.checkpoints import save
from trainers.hyperparameter_schema import parse, plain_values
from trainers.object2vec.hyperparameters import Hyperparameters
from trainers.object2vec.model import Network, Sizes

__all__ = ["SMALL", "write_checkpoint"]

SMALL: dict[str, object] = {
    "enc0_max_seq_len": 8, "enc0_vocab_size": 20, "enc0_token_embedding_dim": 6, "enc_dim": 10, "mlp_dim": 8,
    "mlp_layers": 1, "mlp_activation": "tanh", "num_classes": 3,
}  # fmt: skip


def write_checkpoint(directory: Path, **changed: object) -> Path:
    """`model.pt` and `model.json`; keyword arguments are hyperparameters."""
    wanted = parse(Hyperparameters, SMALL | changed)
    torch.manual_seed(0)
    network = Network(Sizes.of(wanted), output_bias=0.5)
    with torch.no_grad():
        for table in network.tables:
            table.normal_()
    directory.mkdir(parents=True)
    save(directory / "model.pt", network.state_dict())
    description = {
        "algorithm": "object2vec",
        "hyperparameters": plain_values(wanted),
        "epoch": 0,
        "metrics": {"train:cross_entropy": 0.5},
    }
    (directory / "model.json").write_text(json.dumps(description))
    return directory
