"""A detector's bundle: the same boxes in every form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from exporters import object_detection
from exporters.export import export
from exporters.graphs import ParityError, load_script
from exporters.object_detection import add_selection
from handlers.algorithms import load_handler
from handlers.graph import Engine, Runtime
from model_store.golden import check_golden, golden_prediction
from model_store.store import Bundle
from tests.detectors import write_checkpoint
from trainers.checkpoints import load, save
from trainers.job import ClientError
from trainers.object_detection.detection import select

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    directory = tmp_path_factory.mktemp("detector")
    return Bundle.open(export(write_checkpoint(directory / "model"), directory / "bundle"))


def test_the_bundle_says_what_serving_needs(bundle: Bundle) -> None:
    bundle.verify()
    manifest = bundle.manifest

    assert manifest.settings == {"image_shape": 300, "num_classes": 3}
    assert manifest.graphs["model"].inputs[0].shape == [-1, 300, 300, 3]
    assert manifest.graphs["model"].outputs[0].shape == [-1, 50, 6]
    assert manifest.modes["predict"].placement == ["cpu", "gpu"]
    assert set(manifest.files) == {"model.onnx", "model.pt", "golden.png", "golden.json"}
    assert [case.batch_size for case in manifest.parity] == [1, 3]
    assert max(max(c.torchscript_max_abs_error, c.onnx_max_abs_error) for c in manifest.parity) <= 1e-4


@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
def test_the_golden_request_is_reproduced(bundle: Bundle, engine: Engine) -> None:
    prediction = golden_prediction(bundle)
    assert prediction is not None
    (outcome,) = load_handler(bundle, Runtime(engine=engine)).predict([prediction])

    check_golden(bundle, outcome)
    assert json.loads(outcome.body)["prediction"]


def test_suppression_is_done_by_the_operator_that_is_made_for_it(bundle: Bundle) -> None:
    operators = [node.op_type for node in onnx.load(str(bundle.path / "model.onnx")).graph.node]

    assert operators.count("NonMaxSuppression") == 1
    assert "Loop" not in operators


@pytest.mark.parametrize(("base", "side"), [("vgg-16", 300), ("resnet-50", 320)])
def test_every_base_network_can_be_exported(tmp_path: Path, base: str, side: int) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", base_network=base, image_shape=side)
    manifest = Bundle.open(export(checkpoint, tmp_path / "bundle")).manifest

    assert manifest.graphs["model"].inputs[0].shape == [-1, side, side, 3]


@pytest.fixture(scope="module")
def choice(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The choice of boxes alone, as ONNX: boxes and probabilities in, rows out."""
    file = tmp_path_factory.mktemp("choice") / "choice.onnx"
    boxes = helper.make_tensor_value_info("b", TensorProto.FLOAT, ["batch", 40, 4])
    probabilities = helper.make_tensor_value_info("p", TensorProto.FLOAT, ["batch", 40, 3])
    nodes = [
        helper.make_node("Identity", ["b"], ["anchor_boxes"]),
        helper.make_node("Identity", ["p"], ["anchor_probabilities"]),
    ]
    outputs = [
        helper.make_tensor_value_info("anchor_boxes", TensorProto.FLOAT, ["batch", 40, 4]),
        helper.make_tensor_value_info("anchor_probabilities", TensorProto.FLOAT, ["batch", 40, 3]),
    ]
    graph = helper.make_graph(nodes, "choice", [boxes, probabilities], outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(file))
    add_selection(file, 0.45, 25)
    return ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def test_onnx_chooses_as_torch_does_in_a_thousand_random_cases(choice: Any) -> None:
    random = np.random.default_rng(0)
    kept = 0
    for _ in range(250):
        low = random.random((4, 40, 2), np.float32) * 0.6
        boxes = np.concatenate([low, low + random.random((4, 40, 2), np.float32) * 0.5], axis=2)
        # a third of the anchors is sure of the background; some scores lie below 0.01
        probabilities = random.random((4, 40, 3), np.float32) ** 4 * (random.random((4, 40, 1)) < 0.7)
        (found,) = choice.run(None, {"b": boxes, "p": probabilities.astype(np.float32)})
        expected = select(torch.from_numpy(boxes), torch.from_numpy(probabilities.astype(np.float32)), 0.45, 25)
        assert np.array_equal(found, expected.numpy())
        kept += int((found[:, :, 0] >= 0).sum())

    assert 5 * 1000 < kept < 24 * 1000


def test_nothing_worth_reporting_gives_empty_rows(choice: Any) -> None:
    boxes, probabilities = np.zeros((2, 40, 4), np.float32), np.zeros((2, 40, 3), np.float32)
    (found,) = choice.run(None, {"b": boxes, "p": probabilities})

    assert (found[:, :, 0] == -1).all()
    assert (found[:, :, 1] == 0).all()


def test_a_graph_that_strays_is_not_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(file: Path, nms_threshold: float, nms_topk: int) -> None:
        add_selection(file, nms_threshold + 0.4, nms_topk)

    monkeypatch.setattr(object_detection, "add_selection", wrong)
    with pytest.raises(ParityError, match=r"as ONNX, batch of 1: answers stray by"):
        export(write_checkpoint(tmp_path / "model"), tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    state = load(checkpoint / "model.pt")
    state.pop("extras.0.conv1.weight")
    save(checkpoint / "model.pt", state)

    with pytest.raises(ClientError, match=r"does not fit the network that model\.json describes"):
        export(checkpoint, tmp_path / "bundle")


def test_any_batch_size_will_do(bundle: Bundle) -> None:
    script = load_script(bundle.path / "model.pt")
    session = ort.InferenceSession(str(bundle.path / "model.onnx"), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).integers(0, 255, (5, 300, 300, 3), dtype=np.uint8)
    together = session.run(None, {"image": images})[0]

    for at in range(5):
        alone = session.run(None, {"image": images[at : at + 1]})[0][0]
        shown = alone[:, 1] > 0.2  # below, nearly equal scores may change places
        assert np.allclose(together[at][shown], alone[shown], atol=1e-4)
    assert script(torch.from_numpy(images)).shape == (5, 50, 6)
