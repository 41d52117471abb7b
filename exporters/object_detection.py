"""A trained detector as a bundle: pixels in, boxes out, decoding and suppression inside the graph.

TorchScript and ONNX share the network and the decoding. What follows, the choice of boxes, is TorchScript of
`trainers.object_detection.detection.select` on one side and ONNX's own NonMaxSuppression on the other.
"""

# B batch, A anchors, K classes without the background, D detections

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import Tensor

from exporters.graphs import PARITY_TOLERANCE, ParityError, load_script, onnx_session, write_onnx, write_script
from formats.images import encode_png
from model_store.manifest import Batching, Golden, Graph, Manifest, Mode, ParityCase, TensorSpec
from trainers.checkpoints import load
from trainers.earlier_model import MODEL_WEIGHTS
from trainers.job import ClientError
from trainers.object_detection.detection import LEAST_SCORE, Detections, select
from trainers.object_detection.model import SingleShotDetector

__all__ = ["add_selection", "load_detections", "write_bundle"]

_GRAPH = "model"
_CONTENT_TYPES = ["application/x-image", "image/jpeg", "image/png"]
_ACCEPTS = ["application/json", "application/jsonlines"]
_PARITY_BATCHES = (1, 3)
_ROUNDINGS = 4
"""Rounding errors of two forms may differ in sign, and in size by the order of their sums."""
_BOXES, _PROBABILITIES = "anchor_boxes", "anchor_probabilities"
Pixels = NDArray[np.uint8]


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
    module = load_detections(checkpoint, description)
    side = description["hyperparameters"]["image_shape"]
    pixels_N = _made_images(side, max(_PARITY_BATCHES))
    write_script(directory / f"{_GRAPH}.pt", module, kept=["anchors"])
    write_onnx(
        directory / f"{_GRAPH}.onnx",
        module.every_anchor,
        (torch.from_numpy(pixels_N[:1]),),
        inputs=["image"],
        outputs=[_BOXES, _PROBABILITIES],
        varying={name: {0: "batch"} for name in ("image", _BOXES, _PROBABILITIES)},
        traced=True,
    )
    add_selection(directory / f"{_GRAPH}.onnx", module.nms_threshold, module.nms_topk)
    parity = [_compare(directory, module, pixels_N[:size]) for size in _PARITY_BATCHES]
    mode = Mode(
        graph=_GRAPH,
        placement=["cpu", "gpu"],  # the design's own example: detection is served by the CPU pool
        content_types=_CONTENT_TYPES,
        accepts=_ACCEPTS,
        batching=Batching(max_batch_size=8),
    )
    return Manifest(
        algorithm="object_detection",
        default_mode="predict",
        modes={"predict": mode},
        graphs={
            _GRAPH: Graph(
                onnx=f"{_GRAPH}.onnx",
                torchscript=f"{_GRAPH}.pt",
                inputs=[TensorSpec(name="image", datatype="UINT8", shape=[-1, side, side, 3])],
                outputs=[TensorSpec(name="detections", datatype="FP32", shape=[-1, module.nms_topk, 6])],
            )
        },
        golden=_write_golden(directory, module, pixels_N[0], 10 * max(PARITY_TOLERANCE, *map(_worst, parity))),
        hyperparameters=description["hyperparameters"],
        settings={"image_shape": side, "num_classes": description["hyperparameters"]["num_classes"]},
        metrics=description["metrics"],
        parity_tolerance=PARITY_TOLERANCE,
        parity=parity,
    )


def load_detections(checkpoint: Path, description: dict[str, Any]) -> Detections:
    """The trained model with its selection of boxes, as it is served.

    Raises:
        ClientError: the weights are not of the network that the description names.
    """
    values = description["hyperparameters"]
    network = SingleShotDetector(
        base_network=values["base_network"], num_classes=values["num_classes"], image_shape=values["image_shape"]
    )
    weights = checkpoint / MODEL_WEIGHTS
    try:
        network.load_state_dict(load(weights))
    except RuntimeError as error:
        raise ClientError(f"{weights} does not fit the network that model.json describes: {error}") from error
    return Detections(network, nms_threshold=values["nms_threshold"], nms_topk=values["nms_topk"]).eval()


def add_selection(file: Path, nms_threshold: float, nms_topk: int) -> None:
    """Let an ONNX graph that gives all anchors' boxes and probabilities choose among them, as `select` does.

    Args:
        file: its outputs are `anchor_boxes`, (B, A, 4), and `anchor_probabilities`, (B, A, K); afterwards `detections`.
        nms_threshold: see `Detections`.
        nms_topk: D, at most A.
    """
    model = onnx.load(str(file))
    num_classes = model.graph.output[1].type.tensor_type.shape.dim[2].dim_value
    model.graph.initializer.extend(_constants(nms_threshold, nms_topk, num_classes))
    model.graph.node.extend(_selection())
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("detections", TensorProto.FLOAT, ["batch", nms_topk, 6]))
    onnx.checker.check_model(model)
    onnx.save(model, str(file))


def _constants(nms_threshold: float, nms_topk: int, num_classes: int) -> Iterator[onnx.TensorProto]:
    values: dict[str, Any] = {
        "select_one": np.array([1]),
        "select_two": np.array([2]),
        "select_first_and_last": np.array([0, 2]),
        "select_topk": np.array([nms_topk]),
        "select_overlap": np.array([nms_threshold], np.float32),
        "select_least": np.array([LEAST_SCORE], np.float32),
        "select_classes_1K1": np.arange(num_classes).reshape(1, num_classes, 1),
        "select_none": np.float32(0),
        "select_no_class": np.float32(-1),
        "select_yes": np.array([True]),
    }
    for name, value in values.items():
        yield onnx.numpy_helper.from_array(np.asarray(value), name)


def _selection() -> list[onnx.NodeProto]:
    """`trainers.object_detection.detection.select`, operator by operator."""
    make = helper.make_node
    return [
        # the most probable class of each anchor, and of those the D most probable ones
        make("ReduceMax", [_PROBABILITIES, "select_two"], ["select_best_BA"], keepdims=0),
        make("ArgMax", [_PROBABILITIES], ["select_class_BA"], axis=2, keepdims=0),
        make("TopK", ["select_best_BA", "select_topk"], ["select_score_BD", "select_place_BD"], axis=1),
        make("GatherElements", ["select_class_BA", "select_place_BD"], ["select_class_BD"], axis=1),
        make("Unsqueeze", ["select_place_BD", "select_two"], ["select_place_BD1"]),
        make("GatherND", [_BOXES, "select_place_BD1"], ["select_box_BD4"], batch_dims=1),
        # the operator wants scores by class: those of other classes are 0, below its threshold
        make("Unsqueeze", ["select_class_BD", "select_one"], ["select_class_B1D"]),
        make("Equal", ["select_class_B1D", "select_classes_1K1"], ["select_own_BKD"]),
        make("Unsqueeze", ["select_score_BD", "select_one"], ["select_score_B1D"]),
        make("Where", ["select_own_BKD", "select_score_B1D", "select_none"], ["select_score_BKD"]),
        make(
            "NonMaxSuppression",
            ["select_box_BD4", "select_score_BKD", "select_topk", "select_overlap", "select_least"],
            ["select_kept_X3"],
        ),
        # (image, class, place) of what is kept, to a mask
        make("Gather", ["select_kept_X3", "select_first_and_last"], ["select_kept_X2"], axis=1),
        make("Shape", ["select_kept_X2"], ["select_num_kept_1"], start=0, end=1),
        make("Expand", ["select_yes", "select_num_kept_1"], ["select_yes_X"]),
        make("Less", ["select_score_BD", "select_none"], ["select_nothing_BD"]),
        make("ScatterND", ["select_nothing_BD", "select_kept_X2", "select_yes_X"], ["select_kept_BD"]),
        make("Cast", ["select_class_BD"], ["select_number_BD"], to=TensorProto.FLOAT),
        make("Where", ["select_kept_BD", "select_number_BD", "select_no_class"], ["select_shown_BD"]),
        make("Where", ["select_kept_BD", "select_score_BD", "select_none"], ["select_counted_BD"]),
        make("Unsqueeze", ["select_shown_BD", "select_two"], ["select_shown_BD1"]),
        make("Unsqueeze", ["select_counted_BD", "select_two"], ["select_counted_BD1"]),
        make("Concat", ["select_shown_BD1", "select_counted_BD1", "select_box_BD4"], ["detections"], axis=2),
    ]


def _compare(directory: Path, module: Detections, pixels_BHW3: Pixels) -> ParityCase:
    """Run the files as they lie on disk against the eager module, on the CPU.

    The choice of boxes has edges: where two scores are nearly equal, a difference in the last bit reorders them. So the
    network's part is compared by itself, and each form's choice with the eager one's from the very same numbers.

    Raises:
        ParityError: a difference passes the tolerance, or is NaN. Where the eager model's own rounding errors are
            larger than the tolerance, a few times those are allowed.
    """
    image = torch.from_numpy(pixels_BHW3)
    script = load_script(directory / f"{_GRAPH}.pt")
    session = onnx_session(directory / f"{_GRAPH}.onnx", [_BOXES, _PROBABILITIES])
    onnx_found = session.run(["detections", _BOXES, _PROBABILITIES], {"image": pixels_BHW3})
    with torch.inference_mode():
        expected = module.anchors(image)
        answers = [(script(image), *script.anchors(image)), tuple(map(torch.from_numpy, onnx_found))]
        errors = []
        for found, boxes, probabilities in answers:
            chosen = select(boxes, probabilities, module.nms_threshold, module.nms_topk)
            errors.append(max(_distance((boxes, probabilities), expected), _distance((found,), (chosen,))))
    if not max(errors) <= PARITY_TOLERANCE:
        tolerance = max(PARITY_TOLERANCE, _ROUNDINGS * _rounding(module, image))
        for form, error in zip(("TorchScript", "ONNX"), errors, strict=True):
            if not error <= tolerance:
                raise ParityError(
                    f"graph '{_GRAPH}' as {form}, batch of {len(image)}: answers stray by {error:g} from the trained "
                    f"model, tolerance {tolerance:g}; nothing is exported"
                )
    return ParityCase(
        graph=_GRAPH,
        batch_size=len(image),
        torchscript_max_abs_error=errors[0],
        onnx_max_abs_error=errors[1],
    )


def _rounding(module: Detections, image: Tensor) -> float:
    """How far the eager model itself strays from double precision: after a few steps of training, its norms have
    hardly seen the data yet, offsets go into the hundreds, and their last bits are no longer small.
    """
    exact = copy.deepcopy(module).double()
    with torch.inference_mode():
        return _distance(module.anchors(image), exact.anchors(image))


def _distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))


def _made_images(side: int, count: int) -> Pixels:
    """(count, side, side, 3): smooth grounds with discs and rectangles on them, so that there is something to find."""
    random = np.random.default_rng(0)
    y_H1, x_1W = np.mgrid[0 : 1 : side * 1j, 0 : 1 : side * 1j]
    images = []
    for _ in range(count):
        image = 190 + 40 * np.stack([np.sin(3 * y_H1 + c) * np.cos(2 * x_1W - c) for c in range(3)], axis=2)
        for number in range(12):
            y, x, size = random.random(), random.random(), random.uniform(0.03, 0.2)
            far = np.hypot if number % 2 else np.maximum
            image[far(abs(y_H1 - y), abs(x_1W - x)) < size] = random.uniform(0, 255, 3)
        images.append(image + random.normal(0, 4, image.shape))
    return np.clip(np.rint(np.stack(images)), 0, 255).astype(np.uint8)


def _worst(case: ParityCase) -> float:
    return max(case.torchscript_max_abs_error, case.onnx_max_abs_error)


def _write_golden(directory: Path, module: Detections, pixels_HW3: Pixels, tolerance: float) -> Golden:
    """The answer above a score that lies in the widest gap between scores: another engine's last bits move no row."""
    with torch.inference_mode():
        (rows_D6,) = module(torch.from_numpy(pixels_HW3)[None])
    rows = rows_D6[rows_D6[:, 0] >= 0].numpy()
    scores = np.concatenate([[1.0], rows[:20, 1], [0.0]])
    widest = int(np.argmax(scores[:-1] - scores[1:]))
    least = float(scores[widest] + scores[widest + 1]) / 2
    shown = rows[rows[:, 1] >= least]
    (directory / "golden.png").write_bytes(encode_png(pixels_HW3))
    (directory / "golden.json").write_text(json.dumps({"prediction": shown.tolist()}) + "\n")
    return Golden(
        request="golden.png",
        content_type="image/png",
        accept=f"application/json;threshold={least:.4f}",
        mode="predict",
        response="golden.json",
        tolerance=tolerance,
    )
