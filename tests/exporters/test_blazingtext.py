"""fastText models as bundles: the same numbers in every form, whatever made the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from exporters import blazingtext
from exporters.export import export
from exporters.graphs import ParityError, load_script, write_graph
from formats import fasttext_model
from handlers.algorithms import load_handler
from handlers.graph import Engine, Runtime
from model_store.golden import check_golden, golden_prediction
from model_store.store import Bundle
from trainers.job import ClientError

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")
FIXTURES = Path(__file__).parents[1] / "formats" / "fixtures" / "fasttext"
NAMES = sorted(json.loads((FIXTURES / "expected.json").read_text())["models"])


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    directory = tmp_path_factory.mktemp("fasttext")
    return {name: Bundle.open(export(FIXTURES / name, directory / name)) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_bundle_says_what_serving_needs(bundles: dict[str, Bundle], name: str) -> None:
    bundle, model = bundles[name], fasttext_model.read(FIXTURES / name)
    bundle.verify()
    manifest = bundle.manifest
    supervised = model.arguments.model == fasttext_model.SUPERVISED

    assert manifest.algorithm == "blazingtext"
    assert manifest.graphs["model"].inputs[0].shape == [-1, -1]
    output = manifest.graphs["model"].outputs[0]
    assert (output.name, output.shape[1]) == (
        ("probabilities", len(model.labels)) if supervised else ("vector", model.arguments.dim)
    )
    assert manifest.modes["predict"].placement == ["cpu"]
    assert len(manifest.parity) == 3
    assert max(max(c.torchscript_max_abs_error, c.onnx_max_abs_error) for c in manifest.parity) <= 1e-5


@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
@pytest.mark.parametrize("name", NAMES)
def test_the_golden_request_is_reproduced(bundles: dict[str, Bundle], name: str, engine: Engine) -> None:
    prediction = golden_prediction(bundles[name])
    assert prediction is not None
    (outcome,) = load_handler(bundles[name], Runtime(engine=engine)).predict([prediction])

    check_golden(bundles[name], outcome)


@pytest.mark.parametrize("name", NAMES)
def test_padding_never_changes_an_answer(bundles: dict[str, Bundle], name: str) -> None:
    units = np.array([[1, 2, 0]], np.int64)
    padded = np.array([[-1, 1, -1, 2, 0, -1, -1], [3, 3, 3, 3, 3, 3, 3]], np.int64)
    session: Any = ort.InferenceSession(bundles[name].path / "model.onnx")
    script: Any = load_script(bundles[name].path / "model.pt")

    for form in (lambda x: session.run(None, {"units": x})[0], lambda x: script(torch.from_numpy(x))[0].numpy()):
        run: Any = form
        assert run(padded)[0] == pytest.approx(run(units)[0], abs=1e-6)


def test_units_outside_the_table_take_nothing_down(bundles: dict[str, Bundle]) -> None:
    session: Any = ort.InferenceSession(bundles["softmax.bin"].path / "model.onnx")
    answer: Any = session.run(None, {"units": np.array([[1 << 40, -(1 << 40)]], np.int64)})[0]

    assert np.isfinite(answer).all()


def test_a_graph_that_answers_otherwise_is_not_exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def write_slanted(directory: Path, graph: Any) -> Any:
        graph.module.output += 1
        written = write_graph(directory, graph)
        graph.module.output[0] -= 1
        return written

    monkeypatch.setattr(blazingtext, "write_graph", write_slanted)
    with pytest.raises(ParityError):
        export(FIXTURES / "softmax.bin", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    (tmp_path / "cut.bin").write_bytes((FIXTURES / "softmax.bin").read_bytes()[:200])
    (tmp_path / "other.bin").write_bytes(b"PK\x03\x04" + bytes(100))
    for name in ("cut.bin", "other.bin"):
        with pytest.raises(ClientError, match=name):
            export(tmp_path / name, tmp_path / f"{name}-bundle")


def test_a_table_beyond_what_onnx_can_hold_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(blazingtext, "_LARGEST_TABLE_BYTES", 100)
    with pytest.raises(ClientError, match=r"at most 100 can be exported"):
        export(FIXTURES / "softmax.bin", tmp_path / "bundle")


def test_huffman_paths_of_a_hand_made_tree() -> None:
    """Counts 4, 2, 1: the two rare labels share a node below the root, worked by hand."""
    path, sign = blazingtext.huffman_paths(np.array([4, 2, 1]))

    assert path.tolist() == [[1, 0], [0, 1], [0, 1]]
    assert (sign[0] != 0).sum() == 1
    assert (sign[1:] != 0).all()
    assert sign[1, 0] == -sign[2, 0]
