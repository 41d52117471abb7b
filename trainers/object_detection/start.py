"""Where training starts from: random weights, published ImageNet weights, or an earlier job's model."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from trainers.earlier_model import MODEL_WEIGHTS, read_model
from trainers.hyperparameter_schema import plain_values
from trainers.job import ClientError, Job
from trainers.object_detection.hyperparameters import Hyperparameters
from trainers.object_detection.model import SingleShotDetector, aliases
from trainers.object_detection.vgg import Vgg16, load_vgg
from trainers.progress import log
from trainers.vision.pretrained import architecture_of, find_weights, load_backbone, read_weights

__all__ = ["freeze", "make_network"]

_SAME = ("base_network", "num_classes", "image_shape")
_DEPTHS = {"resnet-50": 50, "resnet-18": 18}


def make_network(job: Job, wanted: Hyperparameters) -> SingleShotDetector:
    """The network to train, with what is frozen marked so.

    Raises:
        ClientError: the weights, or the earlier model, do not fit the hyperparameters.
    """
    torch.manual_seed(wanted.seed)
    network = SingleShotDetector(
        base_network=wanted.base_network, num_classes=wanted.num_classes, image_shape=wanted.image_shape
    )
    if "model" in job.channels:
        if wanted.use_pretrained_model:
            log.info("use_pretrained_model=1 has no effect: training goes on from the model in channel 'model'")
        _load_earlier(job.channel("model"), wanted, network)
    elif "weights" in job.channels and wanted.use_pretrained_model is not False:
        _load_pretrained(find_weights(job.channel("weights")), wanted, network)
    elif wanted.use_pretrained_model:
        raise ClientError(
            "use_pretrained_model=1: no ImageNet weights are installed; give a channel 'weights' that holds the file "
            f"of a {wanted.base_network} (safetensors or a PyTorch state dict, as torchvision and timm publish them)."
        )
    else:
        log.warning("use_pretrained_model=0: the base network starts from random weights")
    freeze(network, wanted.freeze_layer_pattern)
    return network


def freeze(network: SingleShotDetector, pattern: str | None) -> list[str]:
    """Take the base network's parameters whose name, or the original's name, begins like the pattern out of training.

    Returns:
        The names of those parameters.

    Raises:
        ClientError: the pattern fits none.
    """
    if pattern is None:
        return []
    frozen = []
    for name, parameter in network.named_parameters():
        if name.startswith("base.") and any(re.match(pattern, alias) for alias in aliases(name)):
            parameter.requires_grad_(False)
            frozen.append(name)
    if not frozen:
        known = ", ".join(list(aliases(name))[-1] for name, _ in list(network.base.named_parameters(prefix="base"))[:4])
        raise ClientError(
            f"hyperparameter freeze_layer_pattern: {pattern!r} fits no parameter of the base network; they are named "
            f"{known} and so on."
        )
    log.info("freeze_layer_pattern=%s: %d parameters stay as they are", pattern, len(frozen))
    return frozen


def _load_pretrained(file: Path, wanted: Hyperparameters, network: SingleShotDetector) -> None:
    state = read_weights(file)
    if isinstance(network.base, Vgg16):
        load_vgg(network.base, state, file)
    else:
        if architecture_of(state, file) != "resnet_v1b":
            raise ClientError(f"{file}: weights of a pre-activation ResNet; expected those of torchvision's kind.")
        inner = network.base.network
        assert isinstance(inner, torch.nn.Module)
        load_backbone(inner, state, num_layers=_DEPTHS[wanted.base_network], file=file)
    log.info("The base network starts from %s", file)


def _load_earlier(directory: Path, wanted: Hyperparameters, network: SingleShotDetector) -> None:
    description, state = read_model(directory)
    if description.get("algorithm") != "object_detection":
        raise ClientError(
            f"Channel 'model': {directory} holds a model of algorithm {description.get('algorithm')!r}; "
            "expected object_detection."
        )
    earlier, now = description["hyperparameters"], plain_values(wanted)
    for name in _SAME:
        if earlier.get(name) != now[name]:
            raise ClientError(
                f"Channel 'model': {name} is {now[name]}, and was {earlier.get(name)} in the earlier job; "
                f"{', '.join(_SAME)} must be the same."
            )
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ClientError(f"Channel 'model': {MODEL_WEIGHTS} does not fit its description: {error}") from error
    log.info("Training goes on from the model in %s", directory)
