"""A vision bundle in 8 bits: like the one it came from, and a bundle like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import orjson
import pytest

from exporters.export import export
from exporters.int8 import quantize
from formats.envelope import Prediction
from handlers.algorithms import load_handler
from handlers.graph import Runtime
from model_store.golden import check_golden, golden_prediction
from model_store.store import Bundle
from tests.bundles import image_png, write_tiny_classifier
from tests.detectors import write_checkpoint
from trainers.job import ClientError

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")


def picture(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    pixels = np.full((90, 120, 3), random.integers(0, 256, 3), np.uint8)
    for _ in range(6):
        top, left = random.integers(0, 80), random.integers(0, 100)
        pixels[top : top + 30, left : left + 40] = random.integers(0, 256, 3)
    return image_png(pixels)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pictures")
    (directory / "more").mkdir()
    for number in range(6):
        (directory / ("more" if number % 2 else "") / f"{number}.png").write_bytes(picture(number))
    return directory


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    directory = tmp_path_factory.mktemp("detector")
    return Bundle.open(export(write_checkpoint(directory / "model", nms_topk=30), directory / "bundle"))


@pytest.fixture(scope="module")
def int8(float32: Bundle, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(quantize(float32.path, pictures, tmp_path_factory.mktemp("int8") / "bundle"))


def test_the_result_is_a_bundle_that_reproduces_its_own_golden_answer(int8: Bundle) -> None:
    int8.verify()
    golden = golden_prediction(int8)
    assert golden is not None

    check_golden(int8, load_handler(int8, Runtime()).predict([golden])[0])
    assert int8.manifest.settings["quantized"] == "int8"
    assert int8.manifest.graphs["model"].torchscript is None
    assert int8.manifest.metrics == {}


def test_weights_take_a_quarter(float32: Bundle, int8: Bundle) -> None:
    sizes = [bundle.manifest.files["model.onnx"].size_bytes for bundle in (float32, int8)]

    assert sizes[1] < 0.32 * sizes[0]


def test_the_heads_and_the_choice_of_boxes_stay_in_float(int8: Bundle) -> None:
    graph = onnx.load(str(int8.path / "model.onnx")).graph
    makers = {output: node for node in graph.node for output in node.output}
    weights = [makers.get(node.input[1]) for node in graph.node if node.op_type == "Conv"]
    after = [node.op_type for node in graph.node].index("Softmax")

    assert sum(maker is None for maker in weights) == 12  # two heads on each of six maps: plain weights
    assert sum(maker is not None and maker.op_type == "DequantizeLinear" for maker in weights) > 20
    assert "QuantizeLinear" not in [node.op_type for node in list(graph.node)[after:]]


def test_scores_stay_near(float32: Bundle, int8: Bundle) -> None:
    """Random weights are the hardest case: a trained network's scores are further apart."""
    asked = [Prediction("", "", picture(seed), "image/png", "") for seed in range(10, 16)]
    best = [
        [orjson.loads(outcome.body)["prediction"][0][1] for outcome in load_handler(bundle, Runtime()).predict(asked)]
        for bundle in (float32, int8)
    ]

    assert np.abs(np.array(best[0]) - np.array(best[1])).max() < 0.1
    assert best[0] != best[1]


def test_a_directory_without_pictures_is_named(float32: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"no \.jpeg, \.jpg, \.png files"):
        quantize(float32.path, tmp_path, tmp_path / "out")


def test_a_broken_picture_is_named_and_leaves_nothing_behind(float32: Bundle, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "bad.jpg").write_bytes(b"no picture")

    with pytest.raises(ClientError, match=r"bad\.jpg: .*not a JPEG or PNG"):
        quantize(float32.path, tmp_path / "pictures", tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["pictures"]


def test_something_at_the_output_is_left_alone(float32: Bundle, pictures: Path) -> None:
    with pytest.raises(ClientError, match="exists already"):
        quantize(float32.path, pictures, pictures)


def test_a_graph_without_heavy_operators_is_refused(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="nothing to quantise"):
        quantize(write_tiny_classifier(tmp_path / "tiny"), pictures, tmp_path / "out")
