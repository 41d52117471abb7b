"""A trained segmenter as a bundle: pixels of any size in, a class for each of them out.

The graph gives two things: the mask, at the image's own size, and the network's logits at an eighth or sixteenth of it.
Probabilities of every pixel are many times the mask's size, and few ask for them: handlers make them from the logits.
"""

# B batch, H height, W width, K classes

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from exporters.graphs import PARITY_TOLERANCE, ParityError, load_script, onnx_session, write_onnx, write_script
from formats.images import encode_png
from model_store.manifest import Batching, Golden, Graph, Manifest, Mode, ParityCase, TensorSpec
from trainers.checkpoints import load
from trainers.earlier_model import MODEL_WEIGHTS
from trainers.job import ClientError
from trainers.semantic_segmentation.hyperparameters import STRIDE
from trainers.semantic_segmentation.model import MEAN_COLOUR, Segmenter, upsampled

__all__ = ["LEAST_EQUAL_SHARE", "Masks", "load_masks", "write_bundle"]

LEAST_EQUAL_SHARE = 0.9999
"""Of a mask's pixels, between two forms of one model: where two classes are equally probable, last bits decide."""

_GRAPH = "model"
_CONTENT_TYPES = ["image/jpeg", "image/png", "application/x-image"]
_ACCEPTS = [
    "image/png",
    "application/x-protobuf",
    "application/x-recordio-protobuf",
    "application/json",
    "application/x-npy",
]
_PARITY_SIZES = ((1, 64, 96), (2, 121, 83), (1, 240, 240))
"""Batch, height and width."""
Pixels = NDArray[np.uint8]


class Masks(nn.Module):
    """Pixels to the most probable class of each, and the logits that say so."""

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.network = network
        self.stride = STRIDE
        self.around: Tensor
        self.register_buffer("around", torch.tensor(MEAN_COLOUR).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, image_BHW3: Tensor) -> tuple[Tensor, Tensor]:
        """Grey is put around the right and lower side, up to the next multiple of 8, and cut off again.

        Args:
            image_BHW3: RGB uint8 of any size.

        Returns:
            (B, H, W) uint8 class ids; (B, K, H', W') float32 logits, one for each 8 or 16 pixels of the padded image.
        """
        height, width = image_BHW3.shape[1], image_BHW3.shape[2]
        down = (self.stride - height % self.stride) % self.stride
        right = (self.stride - width % self.stride) % self.stride
        shifted_B3HW = image_BHW3.permute(0, 3, 1, 2).float() - self.around
        padded_B3HW = functional.pad(shifted_B3HW, [0, right, 0, down]) + self.around
        scores_BKHW = self.network(padded_B3HW).float()
        full_BKHW = upsampled(scores_BKHW, padded_B3HW.shape[2], padded_B3HW.shape[3])
        mask_BHW = full_BKHW[:, :, :height, :width].argmax(dim=1).to(torch.uint8)
        return mask_BHW, scores_BKHW


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
    module = load_masks(checkpoint, description)
    values = description["hyperparameters"]
    sample = (torch.from_numpy(_made_images(1, 64, 96)),)
    write_script(directory / f"{_GRAPH}.pt", module)
    image_axes = {0: "batch", 1: "height", 2: "width"}
    write_onnx(
        directory / f"{_GRAPH}.onnx",
        module,
        sample,
        inputs=["image"],
        outputs=["mask", "logits"],
        varying={"image": image_axes, "mask": image_axes, "logits": {0: "batch", 2: "rows", 3: "columns"}},
        traced=True,
    )
    parity = [_compare(directory, module, _made_images(*size)) for size in _PARITY_SIZES]
    classes = values["num_classes"]
    mode = Mode(
        graph=_GRAPH,
        placement=["gpu", "cpu"],
        content_types=_CONTENT_TYPES,
        accepts=_ACCEPTS,
        batching=Batching(max_batch_size=8),
    )
    return Manifest(
        algorithm="semantic_segmentation",
        default_mode="predict",
        modes={"predict": mode},
        graphs={
            _GRAPH: Graph(
                onnx=f"{_GRAPH}.onnx",
                torchscript=f"{_GRAPH}.pt",
                inputs=[TensorSpec(name="image", datatype="UINT8", shape=[-1, -1, -1, 3])],
                outputs=[
                    TensorSpec(name="mask", datatype="UINT8", shape=[-1, -1, -1]),
                    TensorSpec(name="logits", datatype="FP32", shape=[-1, classes, -1, -1]),
                ],
            )
        },
        golden=_write_golden(directory, module),
        hyperparameters=values,
        settings={"num_classes": classes},
        metrics=description["metrics"],
        parity_tolerance=PARITY_TOLERANCE,
        parity=parity,
    )


def load_masks(checkpoint: Path, description: dict[str, Any]) -> Masks:
    """The trained model as it is served.

    Raises:
        ClientError: the weights are not of the network that the description names.
    """
    values = description["hyperparameters"]
    network = Segmenter(
        algorithm=values["algorithm"],
        backbone=values["backbone"],
        num_classes=values["num_classes"],
        output_stride=values["output_stride"],
        plain_stem=bool(description.get("plain_stem")),
        auxiliary=False,
    )
    weights = checkpoint / MODEL_WEIGHTS
    state = {name: value for name, value in load(weights).items() if not name.startswith("auxiliary.")}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ClientError(f"{weights} does not fit the network that model.json describes: {error}") from error
    return Masks(network).eval()


def _compare(directory: Path, module: Masks, pixels_BHW3: Pixels) -> ParityCase:
    """Run the files as they lie on disk against the eager module, on the CPU.

    Raises:
        ParityError: probabilities differ by more than the tolerance, or masks in more than 1 of 10,000 pixels.
    """
    image = torch.from_numpy(pixels_BHW3)
    script = load_script(directory / f"{_GRAPH}.pt")
    session = onnx_session(directory / f"{_GRAPH}.onnx")
    with torch.inference_mode():
        mask, scores = module(image)
        answers = {"TorchScript": script(image)}
    answers["ONNX"] = tuple(map(torch.from_numpy, session.run(["mask", "logits"], {"image": pixels_BHW3})))
    errors = {}
    for form, (found_mask, found_scores) in answers.items():
        if found_mask.shape != mask.shape or found_scores.shape != scores.shape:
            raise ParityError(f"graph '{_GRAPH}' as {form}: answers of shape {tuple(found_mask.shape)}")
        errors[form] = float((found_scores.softmax(1) - scores.softmax(1)).abs().max())
        share = float((found_mask == mask).double().mean())
        if not (errors[form] <= PARITY_TOLERANCE and share >= LEAST_EQUAL_SHARE):
            raise ParityError(
                f"graph '{_GRAPH}' as {form}, images of {tuple(image.shape)}: probabilities stray by {errors[form]:g} "
                f"from the trained model, tolerance {PARITY_TOLERANCE:g}, and {100 * share:.3f} % of the mask is "
                "equal; nothing is exported"
            )
    return ParityCase(
        graph=_GRAPH,
        batch_size=len(image),
        torchscript_max_abs_error=errors["TorchScript"],
        onnx_max_abs_error=errors["ONNX"],
    )


def _made_images(count: int, height: int, width: int) -> Pixels:
    """(count, height, width, 3): smooth grounds with discs and rectangles on them."""
    random = np.random.default_rng(height)
    y_H1, x_1W = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    images = []
    for _ in range(count):
        image = 128 + 60 * np.stack([np.sin(3 * y_H1 + c) * np.cos(2 * x_1W - c) for c in range(3)], axis=2)
        for number in range(8):
            y, x, size = random.random(), random.random(), random.uniform(0.05, 0.3)
            far = np.hypot if number % 2 else np.maximum
            image[far(abs(y_H1 - y), abs(x_1W - x)) < size] = random.uniform(0, 255, 3)
        images.append(image + random.normal(0, 4, image.shape))
    return np.clip(np.rint(np.stack(images)), 0, 255).astype(np.uint8)


def _write_golden(directory: Path, module: Masks) -> Golden:
    """The classes' shares of an image: a pixel more or less on a border, by another engine's last bits, is allowed."""
    pixels_1HW3 = _made_images(1, 48, 64)
    with torch.inference_mode():
        mask_1HW, scores_1KHW = module(torch.from_numpy(pixels_1HW3))
    counts = torch.bincount(mask_1HW.long().ravel(), minlength=scores_1KHW.shape[1])
    answer = {"shape": list(mask_1HW.shape[1:]), "shares": (counts / mask_1HW.numel()).tolist()}
    (directory / "golden.png").write_bytes(encode_png(pixels_1HW3[0]))
    (directory / "golden.json").write_text(json.dumps(answer) + "\n")
    return Golden(
        request="golden.png",
        content_type="image/png",
        accept="application/json;shares=1",
        mode="predict",
        response="golden.json",
        tolerance=0.01,
    )
