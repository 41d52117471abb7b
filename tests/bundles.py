"""Published bundles of a few kilobytes for the tests: a real classifier whose answers can be worked out by hand."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from PIL import Image

from model_store.manifest import Batching, Golden, Graph, Manifest, Mode, TensorSpec
from model_store.store import Bundle, Store, seal

__all__ = ["image_png", "publish_tiny", "tiny_answer", "write_tiny_classifier"]

CONTENT_TYPES = ["application/x-image", "image/jpeg", "image/png", "application/x-recordio", "application/jsonlines"]
ACCEPTS = ["application/json", "application/jsonlines"]

Array = np.ndarray[Any, np.dtype[Any]]


def tiny_weights(num_classes: int) -> tuple[Array, Array]:
    """(3, num_classes) and (num_classes,) float32: class k leans towards colour k modulo 3, later ones less."""
    classes = np.arange(num_classes)
    weight = np.where(np.arange(3)[:, None] == classes % 3, 4.0 / (1 + classes // 3), -1.0)
    return weight.astype(np.float32), (-0.125 * classes).astype(np.float32)


def tiny_answer(image_HWC: Array, num_classes: int = 3) -> Array:
    """What the tiny classifier answers for one image of its own size: (num_classes,) float32, by plain numpy."""
    weight, bias = tiny_weights(num_classes)
    logits = (image_HWC.astype(np.float32).mean(axis=(0, 1)) / np.float32(255)) @ weight + bias
    exponents = np.exp(logits - logits.max())
    return np.asarray(exponents / exponents.sum(), np.float32)


def golden_image(height: int, width: int) -> Array:
    """A fixed picture, (height, width, 3) uint8: a gradient, mostly red."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = (200 + rows % 40, 40 + columns % 90, 20 + (rows + columns) % 50)
    return np.stack(channels, axis=-1).astype(np.uint8)


def image_png(image_HWC: Array) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "PNG")
    return buffer.getvalue()


def write_tiny_classifier(directory: Path, *, num_classes: int = 3, height: int = 4, width: int = 4) -> Path:
    """Write a sealed bundle of algorithm `image_classification`: mean colour, a linear layer, softmax."""
    directory.mkdir(parents=True, exist_ok=True)
    _write_onnx(directory / "model.onnx", num_classes, height, width)
    _write_torchscript(directory / "model.pt", num_classes)
    image = golden_image(height, width)
    (directory / "golden.png").write_bytes(image_png(image))
    (directory / "golden.json").write_bytes(orjson.dumps(tiny_answer(image, num_classes).tolist()))
    seal(directory, _manifest(num_classes, height, width))
    return directory


def publish_tiny(
    root: Path,
    name: str = "tiny",
    version: str | None = None,
    *,
    num_classes: int = 3,
    height: int = 4,
    width: int = 4,
) -> Bundle:
    """Publish the tiny classifier, TorchServe archive included, into the store at `root`."""
    from exporters.archive import write_archive  # noqa: PLC0415  many tests need the bundle without it

    source = root.parent / f".{root.name}-source-{name}-{num_classes}-{height}-{width}"
    write_tiny_classifier(source, num_classes=num_classes, height=height, width=width)
    return Store(root).publish(source, name=name, version=version, archive=write_archive)


def _manifest(num_classes: int, height: int, width: int) -> Manifest:
    graph = Graph(
        onnx="model.onnx",
        torchscript="model.pt",
        inputs=[TensorSpec(name="image", datatype="UINT8", shape=[-1, height, width, 3])],
        outputs=[TensorSpec(name="probabilities", datatype="FP32", shape=[-1, num_classes])],
    )
    mode = Mode(
        graph="model",
        placement=["cpu", "gpu"],
        content_types=CONTENT_TYPES,
        accepts=ACCEPTS,
        batching=Batching(max_batch_size=8),
    )
    return Manifest(
        algorithm="image_classification",
        default_mode="predict",
        modes={"predict": mode, "centre_crop": mode},
        graphs={"model": graph},
        golden=Golden(
            request="golden.png",
            content_type="image/png",
            accept="application/json",
            response="golden.json",
            tolerance=1e-4,
        ),
        settings={"num_classes": num_classes, "image_shape": [3, height, width], "multi_label": False},
        created="2026-01-01T00:00:00Z",
    )


def _write_onnx(path: Path, num_classes: int, height: int, width: int) -> None:
    import onnx  # noqa: PLC0415  slow to import
    from onnx import helper, numpy_helper  # noqa: PLC0415

    weight, bias = tiny_weights(num_classes)
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["real"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Div", ["mean", "white"], ["colour"]),
        helper.make_node("MatMul", ["colour", "weight"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    image = helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["N", height, width, 3])
    answer = helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, ["N", num_classes])
    constants = [
        numpy_helper.from_array(np.asarray(255, np.float32), "white"),
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(bias, "bias"),
    ]
    graph = helper.make_graph(nodes, "tiny", [image], [answer], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def _write_torchscript(path: Path, num_classes: int) -> None:
    import torch  # noqa: PLC0415  slow to import

    class Tiny(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            weight, bias = tiny_weights(num_classes)
            self.register_buffer("weight", torch.from_numpy(weight))
            self.register_buffer("bias", torch.from_numpy(bias))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            colour = image.float().mean(dim=[1, 2]) / 255
            return torch.softmax(colour @ self.weight + self.bias, dim=-1)  # type: ignore[operator]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit, which is what is served
        torch.jit.script(Tiny().eval()).save(str(path))  # type: ignore[no-untyped-call]
