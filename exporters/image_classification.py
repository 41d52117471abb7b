"""A trained image classifier as a bundle: pixels in, probabilities out, all arithmetic inside the graph."""

# B batch, H height, W width, K classes

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporters.graphs import PARITY_TOLERANCE, ExportableGraph, measure_parity, write_graph
from formats.images import encode_png
from model_store.manifest import Batching, Golden, Manifest, Mode, TensorSpec
from trainers.checkpoints import load
from trainers.earlier_model import MODEL_WEIGHTS
from trainers.image_classification.model import build
from trainers.job import ClientError

__all__ = ["InferenceGraph", "write_bundle"]

_GRAPH = "model"
_CONTENT_TYPES = ["application/x-image", "image/jpeg", "image/png", "application/x-recordio", "application/jsonlines"]
_ACCEPTS = ["application/json", "application/jsonlines"]
_PARITY_BATCHES = (1, 7)


class InferenceGraph(nn.Module):
    """What is served: decoded, resized pixels to probabilities, so that Python does nothing per pixel."""

    def __init__(self, network: nn.Module, *, multi_label: bool) -> None:
        super().__init__()
        self.network = network
        self.multi_label = multi_label

    def forward(self, image_BHW3: Tensor) -> Tensor:
        """Args: image_BHW3: RGB uint8. Returns: (B, K) float32; each row sums to 1 unless `multi_label`."""
        score_BK = self.network(image_BHW3.permute(0, 3, 1, 2))
        probability_BK: Tensor = torch.sigmoid(score_BK) if self.multi_label else torch.softmax(score_BK, dim=1)
        return probability_BK


def write_bundle(checkpoint: Path, description: dict[str, Any], directory: Path) -> Manifest:
    """Write every file of the bundle but its manifest, which is returned unsealed.

    Args:
        checkpoint: what training left in `OUTPUT/model`.
        description: its `model.json`.
        directory: an empty directory.

    Raises:
        ParityError: an exported graph answers differently from the model.
        ClientError: the weights are not of the network that the description names.
    """
    module = _load(checkpoint, description)
    _, height, width = description["image_shape"]
    num_classes = description["num_classes"]
    pixels_NHW3 = _made_images(height, width, max(_PARITY_BATCHES))
    graph = ExportableGraph(
        name=_GRAPH,
        module=module,
        inputs=[TensorSpec(name="image", datatype="UINT8", shape=[-1, height, width, 3])],
        outputs=[TensorSpec(name="probabilities", datatype="FP32", shape=[-1, num_classes])],
        samples=[(torch.from_numpy(pixels_NHW3[:size]),) for size in _PARITY_BATCHES],
    )
    described = write_graph(directory, graph)
    parity = measure_parity(directory, graph)
    golden = _write_golden(directory, module, pixels_NHW3[0])
    labels = description["labels"]
    if labels:
        (directory / "labels.json").write_text(json.dumps(labels) + "\n")
    mode = Mode(
        graph=_GRAPH,
        placement=["cpu", "gpu"],
        content_types=_CONTENT_TYPES,
        accepts=_ACCEPTS,
        batching=Batching(max_batch_size=32),
    )
    return Manifest(
        algorithm="image_classification",
        default_mode="predict",
        # the second one sees an image as validation did: resized by its shortest side, then cut
        modes={"predict": mode, "centre_crop": mode},
        graphs={_GRAPH: described},
        golden=golden,
        hyperparameters=description["hyperparameters"],
        settings=_settings(description),
        metrics=description["metrics"],
        parity_tolerance=PARITY_TOLERANCE,
        parity=parity,
    )


def _settings(description: dict[str, Any]) -> dict[str, str | int | float | bool | list[int] | list[str]]:
    known: dict[str, str | int | float | bool | list[int] | list[str]] = {
        "num_classes": description["num_classes"],
        "image_shape": description["image_shape"],
        "multi_label": description["multi_label"],
    }
    resize, labels = description["hyperparameters"].get("resize"), description["labels"]
    return known | ({"resize": resize} if resize else {}) | ({"labels": labels} if labels else {})


def _load(checkpoint: Path, description: dict[str, Any]) -> InferenceGraph:
    channels, height, width = description["image_shape"]
    network = build(
        num_layers=description["hyperparameters"]["num_layers"],
        image_shape=(channels, height, width),
        num_classes=description["num_classes"],
        architecture=description.get("architecture", "resnet_v2"),
    )
    weights = checkpoint / MODEL_WEIGHTS
    try:
        network.load_state_dict(load(weights))
    except RuntimeError as error:
        raise ClientError(f"{weights} does not fit the network that model.json describes: {error}") from error
    return InferenceGraph(network, multi_label=description["multi_label"]).eval()


def _made_images(height: int, width: int, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """(count, H, W, 3): smooth waves with some noise; noise alone would leave a trained network in its far corners."""
    random = np.random.default_rng(0)
    y_H1, x_1W = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    images = []
    for number in range(count):
        waves = [np.sin(2 * np.pi * ((number + 1) * y_H1 + colour * x_1W + colour / 3)) for colour in range(3)]
        images.append(127.5 + 100 * np.stack(waves, axis=2) + random.normal(0, 8, (height, width, 3)))
    return np.clip(np.rint(np.stack(images)), 0, 255).astype(np.uint8)


def _write_golden(
    directory: Path, module: InferenceGraph, pixels_HW3: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
) -> Golden:
    """An image of the network's own size as PNG: decoding gives these very pixels, and no resize blurs the answer."""
    with torch.inference_mode():
        (probability_K,) = module(torch.from_numpy(pixels_HW3)[None])
    (directory / "golden.png").write_bytes(encode_png(pixels_HW3))
    (directory / "golden.json").write_text(json.dumps(probability_K.tolist()) + "\n")
    return Golden(
        request="golden.png",
        content_type="image/png",
        accept="application/json",
        mode="predict",
        response="golden.json",
        tolerance=PARITY_TOLERANCE,
    )
