"""Where training starts from: random weights, published ImageNet weights, or an earlier job's model."""

from __future__ import annotations

from pathlib import Path

import torch

from trainers.earlier_model import MODEL_WEIGHTS, read_model
from trainers.hyperparameter_schema import plain_values
from trainers.image_classification.hyperparameters import Hyperparameters
from trainers.image_classification.model import build
from trainers.job import ClientError, Job
from trainers.progress import log
from trainers.vision.pretrained import architecture_of, find_weights, load_backbone, read_weights
from trainers.vision.resnet import Architecture, ResNetV1b, ResNetV2

__all__ = ["make_network"]

_SAME = ("num_layers", "image_shape", "num_classes")


def make_network(job: Job, wanted: Hyperparameters) -> tuple[ResNetV2 | ResNetV1b, Architecture]:
    """The network to train, and its family, which follows from the weights it starts from.

    Raises:
        ClientError: the weights, or the earlier model, do not fit the hyperparameters.
    """
    torch.manual_seed(wanted.seed)
    if "model" in job.channels:
        if wanted.use_pretrained_model:
            log.info("use_pretrained_model=1 has no effect: training goes on from the model in channel 'model'")
        return _from_model(job.channel("model"), wanted)
    if not wanted.use_pretrained_model:
        return _build(wanted, "resnet_v2"), "resnet_v2"
    if "weights" not in job.channels:
        raise ClientError(
            "use_pretrained_model=1: no ImageNet weights are installed; give a channel 'weights' that holds a "
            "ResNet's file (safetensors or a PyTorch state dict, as torchvision and timm publish them)."
        )
    file = find_weights(job.channel("weights"))
    state = read_weights(file)
    architecture = architecture_of(state, file)
    network = _build(wanted, architecture)
    load_backbone(network, state, num_layers=wanted.num_layers, file=file)
    log.info("Starting from %s (%s); the last layer is new", file, architecture)
    return network, architecture


def _build(wanted: Hyperparameters, architecture: Architecture) -> ResNetV2 | ResNetV1b:
    return build(
        num_layers=wanted.num_layers,
        image_shape=wanted.image_shape,
        num_classes=wanted.num_classes,
        architecture=architecture,
    )


def _from_model(directory: Path, wanted: Hyperparameters) -> tuple[ResNetV2 | ResNetV1b, Architecture]:
    description, state = read_model(directory)
    if description.get("algorithm") != "image_classification":
        raise ClientError(
            f"Channel 'model': {directory} holds a model of algorithm {description.get('algorithm')!r}; "
            "expected image_classification."
        )
    earlier, now = description["hyperparameters"], plain_values(wanted)
    for name in _SAME:
        if earlier.get(name) != now[name]:
            raise ClientError(
                f"Channel 'model': {name} is {now[name]}, and was {earlier.get(name)} in the earlier job; "
                f"{', '.join(_SAME)} must be the same."
            )
    architecture: Architecture = description.get("architecture", "resnet_v2")
    network = _build(wanted, architecture)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ClientError(f"Channel 'model': {MODEL_WEIGHTS} does not fit its description: {error}") from error
    log.info("Training goes on from the model in %s", directory)
    return network, architecture
