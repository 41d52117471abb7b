"""Where training starts from: random weights, published ImageNet weights, or an earlier job's model."""

from __future__ import annotations

from pathlib import Path

import torch

from trainers.earlier_model import MODEL_WEIGHTS, read_model
from trainers.hyperparameter_schema import plain_values
from trainers.job import ClientError, Job
from trainers.progress import log
from trainers.semantic_segmentation.hyperparameters import Hyperparameters
from trainers.semantic_segmentation.model import DEPTHS, Segmenter
from trainers.vision.pretrained import architecture_of, find_weights, load_backbone, read_weights

__all__ = ["make_network"]

_SAME = ("algorithm", "backbone", "num_classes")


def make_network(job: Job, wanted: Hyperparameters) -> tuple[Segmenter, bool]:
    """The network to train, and whether it has the plain stem.

    Raises:
        ClientError: the weights, or the earlier model, do not fit the hyperparameters.
    """
    torch.manual_seed(wanted.seed)
    if "model" in job.channels:
        if wanted.use_pretrained_model:
            log.info("use_pretrained_model has no effect: training goes on from the model in channel 'model'")
        return _earlier(job.channel("model"), wanted)
    if "weights" in job.channels and wanted.use_pretrained_model is not False:
        return _pretrained(find_weights(job.channel("weights")), wanted)
    if wanted.use_pretrained_model:
        raise ClientError(
            "use_pretrained_model=True: no ImageNet weights are installed; give a channel 'weights' that holds the "
            f"file of a {wanted.backbone} (safetensors or a PyTorch state dict, as torchvision and timm publish them)."
        )
    log.warning("use_pretrained_model=False: the backbone starts from random weights")
    return _network(wanted, plain_stem=False), False


def _network(wanted: Hyperparameters, *, plain_stem: bool) -> Segmenter:
    return Segmenter(
        algorithm=wanted.algorithm,
        backbone=wanted.backbone,
        num_classes=wanted.num_classes,
        output_stride=wanted.output_stride,
        plain_stem=plain_stem,
        auxiliary=wanted.auxiliary_weight > 0,
    )


def _pretrained(file: Path, wanted: Hyperparameters) -> tuple[Segmenter, bool]:
    state = read_weights(file)
    if architecture_of(state, file) != "resnet_v1b":
        raise ClientError(f"{file}: weights of a pre-activation ResNet; expected those of torchvision's kind.")
    # published networks nearly all begin with one 7 x 7 convolution, where the original's have three of 3 x 3
    plain_stem = "conv1.weight" in state
    network = _network(wanted, plain_stem=plain_stem)
    load_backbone(network.base, state, num_layers=DEPTHS[wanted.backbone], file=file)
    log.info("The backbone starts from %s", file)
    return network, plain_stem


def _earlier(directory: Path, wanted: Hyperparameters) -> tuple[Segmenter, bool]:
    description, state = read_model(directory)
    if description.get("algorithm") != "semantic_segmentation":
        raise ClientError(
            f"Channel 'model': {directory} holds a model of algorithm {description.get('algorithm')!r}; "
            "expected semantic_segmentation."
        )
    earlier, now = description["hyperparameters"], plain_values(wanted)
    for name in _SAME:
        if earlier.get(name) != now[name]:
            raise ClientError(
                f"Channel 'model': {name} is {now[name]}, and was {earlier.get(name)} in the earlier job; "
                f"{', '.join(_SAME)} must be the same."
            )
    if earlier.get("crop_size") != now["crop_size"]:
        log.warning("crop_size is %s, and was %s in the earlier job", now["crop_size"], earlier.get("crop_size"))
    plain_stem = bool(description.get("plain_stem"))
    network = _network(wanted, plain_stem=plain_stem)
    auxiliary = {name for name in network.state_dict() if name.startswith("auxiliary.")}
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise ClientError(f"Channel 'model': {MODEL_WEIGHTS} does not fit its description: {error}") from error
    # the auxiliary head may have been left out before, or be now
    wrong = [*set(missing) - auxiliary, *(name for name in unexpected if not name.startswith("auxiliary."))]
    if wrong:
        raise ClientError(f"Channel 'model': {MODEL_WEIGHTS} does not fit its description: {', '.join(wrong[:5])}")
    log.info("Training goes on from the model in %s", directory)
    return network, plain_stem
