"""A classifier's bundle: same answers in every form, and none at all when they differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from exporters import graphs
from exporters.export import export
from exporters.graphs import ExportableGraph, ParityError
from formats.envelope import Prediction
from formats.images import decode
from handlers.algorithms import load_handler
from handlers.graph import Engine, Runtime
from model_store.golden import check_golden, golden_prediction
from model_store.manifest import Graph
from model_store.store import Bundle
from trainers.job import ClientError

MakeCheckpoint = Callable[..., Path]

# the tests read and make TorchScript too; the exporter silences its own warnings
pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")


def test_the_bundle_verifies_and_says_what_serving_needs(bundle: Bundle) -> None:
    bundle.verify()
    manifest = bundle.manifest

    assert manifest.settings == {
        "num_classes": 3,
        "image_shape": [3, 12, 16],
        "multi_label": False,
        "labels": ["ash", "elm", "oak"],
    }
    assert manifest.graphs["model"].inputs[0].model_dump() == {
        "name": "image",
        "datatype": "UINT8",
        "shape": [-1, 12, 16, 3],
    }
    assert manifest.graphs["model"].outputs[0].shape == [-1, 3]
    assert manifest.modes["predict"].placement == ["cpu", "gpu"]
    assert list(manifest.modes) == ["predict", "centre_crop"]
    assert manifest.metrics == {"validation:accuracy": 0.5}
    assert set(manifest.files) == {"model.onnx", "model.pt", "golden.png", "golden.json", "labels.json"}


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"multi_label": 1, "image_shape": "1,12,16"},
        {"num_layers": 50, "image_shape": "3,40,16"},  # bottleneck units, the large stem
        {"num_layers": 50, "image_shape": "3,40,16", "architecture": "resnet_v1b"},
    ],
    ids=str,
)
def test_three_forms_answer_alike(checkpoint: MakeCheckpoint, tmp_path: Path, changed: dict[str, object]) -> None:
    manifest = Bundle.open(export(checkpoint(**changed), tmp_path / "bundle")).manifest
    errors = [(c.batch_size, max(c.torchscript_max_abs_error, c.onnx_max_abs_error)) for c in manifest.parity]

    assert [size for size, _ in errors] == [1, 7]
    assert max(error for _, error in errors) <= manifest.parity_tolerance == 1e-4


@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
def test_the_handler_reproduces_the_golden_answer(bundle: Bundle, engine: Engine) -> None:
    golden = golden_prediction(bundle)
    assert isinstance(golden, Prediction)
    (outcome,) = load_handler(bundle, Runtime(engine=engine)).predict([golden])

    check_golden(bundle, outcome)
    assert sum(json.loads(outcome.body)) == pytest.approx(1, abs=1e-5)


def test_the_golden_image_has_the_networks_own_size(bundle: Bundle) -> None:
    assert decode((bundle.path / "golden.png").read_bytes()).shape == (12, 16, 3)


def test_any_batch_size_goes_through_both_graphs(bundle: Bundle) -> None:
    session = ort.InferenceSession(bundle.path / "model.onnx")
    script = torch.jit.load(bundle.path / "model.pt")  # type: ignore[no-untyped-call]
    for size in (1, 2, 33):
        image = np.random.default_rng(size).integers(0, 256, (size, 12, 16, 3), dtype=np.uint8)
        (answer,) = session.run(None, {"image": image})

        assert answer.shape == (size, 3)
        assert np.allclose(answer, script(torch.from_numpy(image)).numpy(), atol=1e-4)


def test_a_training_output_is_taken_for_the_model_inside(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    assert export(checkpoint().parent, tmp_path / "bundle") == tmp_path / "bundle"


def _tamper_with_onnx(directory: Path) -> None:
    model = onnx.load(directory / "model.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "network.fc1.weight")
    swapped = np.ascontiguousarray(onnx.numpy_helper.to_array(weight)[::-1])  # two classes change places
    weight.CopyFrom(onnx.numpy_helper.from_array(swapped, weight.name))
    onnx.save(model, directory / "model.onnx")


def _tamper_with_torchscript(directory: Path) -> None:
    class Other(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.float().mean(dim=(1, 2))

    torch.jit.save(torch.jit.script(Other()), str(directory / "model.pt"))


@pytest.mark.parametrize(("tamper", "form"), [(_tamper_with_onnx, "ONNX"), (_tamper_with_torchscript, "TorchScript")])
def test_a_graph_that_answers_otherwise_is_never_a_bundle(
    checkpoint: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tamper: Callable[[Path], None],
    form: str,
) -> None:
    """The fault is put in between writing and measuring, where a faulty exporter would make it."""
    source = checkpoint()

    def write_and_tamper(directory: Path, graph: ExportableGraph) -> Graph:
        written = graphs.write_graph(directory, graph)
        tamper(directory)
        return written

    monkeypatch.setattr("exporters.image_classification.write_graph", write_and_tamper)

    with pytest.raises(
        ParityError, match=rf"graph 'model' as {form}, batch of 1: answers stray by .*tolerance 0\.0001"
    ):
        export(source, tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match=r"holds no model\.json; has training ended"):
        export(tmp_path, tmp_path / "bundle")


def test_an_unknown_algorithm_is_refused(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    source = checkpoint()
    (source / "model.json").write_text('{"algorithm": "os"}')

    with pytest.raises(ClientError, match=r"no algorithm that can be exported; known: .*image_classification"):
        export(source, tmp_path / "bundle")


def test_weights_of_another_network_are_refused(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    source = checkpoint()
    description = (source / "model.json").read_text()
    checkpoint(num_layers=32)
    (source / "model.json").write_text(description)

    with pytest.raises(ClientError, match=r"model\.pt does not fit the network"):
        export(source, tmp_path / "bundle")


def test_an_output_that_is_there_already_is_left_alone(checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "precious").touch()

    with pytest.raises(ClientError, match="exists already"):
        export(checkpoint(), tmp_path / "bundle")
    assert (tmp_path / "bundle" / "precious").exists()
