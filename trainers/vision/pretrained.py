"""Published weights into our networks, by name: torchvision and timm, Hugging Face, MXNet's example, and our own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.job import ClientError
from trainers.vision.resnet import IMAGENET_DEPTHS, Architecture, units_of

__all__ = ["SUFFIXES", "architecture_of", "depths_of", "find_weights", "load_backbone", "read_weights"]

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
_HEADS = ("fc.", "fc1.")
_WRAPPERS = ("state_dict", "model", "model_state")

_HUGGING_FACE = (
    (r"^resnet\.embedder\.embedder\.convolution\.", "conv1."),
    (r"^resnet\.embedder\.embedder\.normalization\.", "bn1."),
    (r"^classifier\.1\.", "fc."),
)
_HF_STAGE = re.compile(r"^resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(shortcut|layer\.(\d+))\.(\w+)\.(.+)$")
_MX_UNIT = re.compile(r"^stage(\d+)_unit(\d+)_(bn\d|conv\d|sc)_(\w+)$")
_MX_OUTER = re.compile(r"^(bn_data|conv0|bn0|bn1|fc1)_(\w+)$")
_MX_PARTS = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_var": "running_var"}


def find_weights(directory: Path) -> Path:
    """The one weights file of a channel.

    Raises:
        ClientError: none, or more than one.
    """
    files = sorted(file for file in directory.rglob("*") if file.suffix in SUFFIXES)
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise ClientError(
            f"Channel 'weights': expected exactly one file that ends in {', '.join(SUFFIXES)}; found {names}."
        )
    return files[0]


def read_weights(file: Path) -> dict[str, Tensor]:
    """Tensors by our names, from safetensors or a state dict; nothing in the file is ever run.

    Raises:
        ClientError: damaged, or without tensors under names.
    """
    found: Any
    if file.suffix == ".safetensors":
        found = _read_safetensors(file)
    else:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds: zip, unpickling, runtime, end of file
            raise ClientError(
                f"{file} is damaged, or holds more than tensors: {str(error).splitlines()[0]}; "
                "expected a state dict, or safetensors."
            ) from error
    for wrapper in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()) or not found:
        raise ClientError(f"{file}: expected tensors by name, found {type(found).__name__} of something else.")
    return {_our_name(name): value for name, value in found.items()}


def architecture_of(state: Mapping[str, Tensor], file: Path) -> Architecture:
    """Which of our networks a set of weights is for.

    Raises:
        ClientError: neither.
    """
    if "layer1.0.conv1.weight" in state:
        return "resnet_v1b"
    if "stages.stage1.0.conv1.weight" in state:
        return "resnet_v2"
    some = ", ".join(sorted(state)[:5])
    raise ClientError(f"{file} holds no ResNet known here: neither layer1.0.conv1.weight nor its kin; found {some}.")


def depths_of(state: Mapping[str, Tensor]) -> list[int]:
    """The depths of IMAGENET_DEPTHS that have as many units per stage, of the kind that is there."""
    numbers: dict[str, int] = {}
    for name in state:
        matched = re.match(r"^(?:layer|stages\.stage)(\d)\.(\d+)\.conv1\.weight$", name)
        if matched:
            numbers[matched[1]] = max(numbers.get(matched[1], 0), int(matched[2]) + 1)
    units = tuple(numbers[stage] for stage in sorted(numbers))
    bottleneck = any(re.match(r"^(?:layer|stages\.stage)1\.0\.conv3\.weight$", name) for name in state)
    return [depth for depth in IMAGENET_DEPTHS if units_of(depth) == units and (depth >= 50) == bottleneck]


def load_backbone(network: nn.Module, state: Mapping[str, Tensor], *, num_layers: int, file: Path) -> None:
    """Fill everything but the classifier, which keeps its fresh weights.

    Raises:
        ClientError: another depth, a tensor that is missing, or one of another shape.
    """
    depths = depths_of(state)
    if num_layers not in depths:
        held = " or ".join(map(str, depths)) or "an unknown number of"
        raise ClientError(f"{file} holds a ResNet of {held} layers; hyperparameter num_layers is {num_layers}.")
    own = network.state_dict()
    wanted = [name for name in own if not name.startswith(_HEADS) and not name.endswith("num_batches_tracked")]
    faults = [
        f"{name} is missing"
        if name not in state
        else f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in wanted
        if name not in state or state[name].shape != own[name].shape
    ]
    if faults:
        raise ClientError(f"{file} does not fit: {len(faults)} of {len(wanted)} tensors; first: {faults[0]}.")
    network.load_state_dict({name: state[name].float() for name in wanted}, strict=False)


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file  # noqa: PLC0415  only such files need it
    except ImportError as error:
        raise ClientError(f"{file}: reading safetensors needs the package safetensors.") from error
    try:
        return load_file(file)
    except Exception as error:  # its own error class, and OSError
        raise ClientError(f"{file} is damaged or not safetensors: {error}") from error


def _our_name(name: str) -> str:
    name = re.sub(r"^(module\.|backbone\.|arg:|aux:)", "", name)
    for pattern, ours in _HUGGING_FACE:
        name = re.sub(pattern, ours, name)
    if matched := _HF_STAGE.match(name):
        stage, unit, place, number, kind, rest = matched.groups()
        head = f"layer{int(stage) + 1}.{unit}"
        if place == "shortcut":
            return f"{head}.downsample.{0 if kind == 'convolution' else 1}.{rest}"
        return f"{head}.{'conv' if kind == 'convolution' else 'bn'}{int(number) + 1}.{rest}"
    if matched := _MX_UNIT.match(name):
        stage, unit, place, rest = matched.groups()
        return f"stages.stage{stage}.{int(unit) - 1}.{place}.{_MX_PARTS.get(rest, rest)}"
    if matched := _MX_OUTER.match(name):
        # our bn0 is a norm and its activation
        outer = "bn0.0" if matched[1] == "bn0" else matched[1]
        return f"{outer}.{_MX_PARTS.get(matched[2], matched[2])}"
    return name
