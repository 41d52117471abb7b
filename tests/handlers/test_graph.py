"""Graphs run in the form that is asked for, or in the one there is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from handlers.graph import Engine, Runtime, load_graph
from model_store.store import Bundle
from tests.bundles import golden_image, tiny_answer, write_tiny_classifier


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(write_tiny_classifier(tmp_path_factory.mktemp("bundle") / "tiny"))


@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
@pytest.mark.parametrize("num_rows", [1, 3])
def test_both_forms_answer_as_the_formula(bundle: Bundle, engine: Engine, num_rows: int) -> None:
    graph = load_graph(bundle.path, bundle.manifest.graphs["model"], Runtime(engine=engine, threads=2))
    image = golden_image(4, 4)

    outputs = graph.run({"image": np.stack([image] * num_rows)})

    assert list(outputs) == ["probabilities"]
    np.testing.assert_allclose(outputs["probabilities"], [tiny_answer(image)] * num_rows, atol=1e-6)


@pytest.mark.parametrize(("missing", "engine"), [("onnx", "onnx"), ("torchscript", "torchscript")])
def test_a_graph_that_has_one_form_runs_as_that(bundle: Bundle, missing: str, engine: Engine) -> None:
    graph = bundle.manifest.graphs["model"].model_copy(update={missing: None})

    outputs = load_graph(bundle.path, graph, Runtime(engine=engine)).run({"image": golden_image(4, 4)[None]})

    np.testing.assert_allclose(outputs["probabilities"][0], tiny_answer(golden_image(4, 4)), atol=1e-6)


def test_a_graph_without_any_form_is_refused(bundle: Bundle) -> None:
    graph = bundle.manifest.graphs["model"].model_copy(update={"onnx": None, "torchscript": None})

    with pytest.raises(ValueError, match="neither an ONNX nor a TorchScript form"):
        load_graph(bundle.path, graph, Runtime())


@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04garbage"])
def test_a_file_that_is_no_graph_raises(tmp_path: Path, bundle: Bundle, engine: Engine, content: bytes) -> None:
    for name in ("model.onnx", "model.pt"):
        (tmp_path / name).write_bytes(content)

    with pytest.raises(Exception, match=r".+"):  # each engine has its own; the worker reports any
        load_graph(tmp_path, bundle.manifest.graphs["model"], Runtime(engine=engine))
