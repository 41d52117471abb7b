"""Which graphs may answer several clients in one run, and that those which mix rows never do."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporters.tensor import export_graph, parse_spec
from formats.envelope import Prediction
from handlers.algorithms import load_handler
from handlers.graph import Runtime
from model_store.store import Bundle

Dimensions = Sequence[int | str | None]
Nodes = list[tuple[str, list[str], str, dict[str, Any]]]
FLOAT, INT64, TEXT = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
ZERO = numpy_helper.from_array(np.array([0], np.int64), "zero")


def write(
    directory: Path,
    nodes: Nodes,
    x: Dimensions,
    y: Dimensions,
    constants: Sequence[Any] = (),
    *,
    kinds: tuple[int, int] = (FLOAT, FLOAT),
    more: Dimensions | None = None,
) -> Path:
    """A graph from `x`, and `z` where `more` gives its shape, to `y`."""
    made = [helper.make_node(kind, inputs, [output], **attributes) for kind, inputs, output, attributes in nodes]
    inputs = [helper.make_tensor_value_info("x", kinds[0], x)]
    if more is not None:
        inputs.append(helper.make_tensor_value_info("z", kinds[0], more))
    graph = helper.make_graph(made, "g", inputs, [helper.make_tensor_value_info("y", kinds[1], y)], constants)
    file = directory / "m.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    file.write_bytes(model.SerializeToString())
    return file


def published(file: Path, **options: Any) -> tuple[Bundle, str]:
    """The bundle, and what was said about its rows."""
    said: list[str] = []
    bundle = Bundle.open(export_graph(file, file.parent / "bundle", write=said.append, **options))
    return bundle, " ".join(said)


GRAM: Nodes = [("Transpose", ["x"], "t", {"perm": [1, 0]}), ("MatMul", ["x", "t"], "y", {})]
CENTRED: Nodes = [("ReduceMean", ["x", "zero"], "mean", {}), ("Sub", ["x", "mean"], "y", {})]
TWICE: Nodes = [("Add", ["x", "x"], "y", {})]
FIRST: Nodes = [("Gather", ["x", "zero"], "row", {"axis": 0}), ("Add", ["x", "row"], "y", {})]
WEIGHT = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "w")


@pytest.mark.parametrize("n", ["N", None])
@pytest.mark.parametrize("m", ["N", "M", None])
def test_a_clients_answer_never_holds_a_neighbours_numbers(tmp_path: Path, n: str | None, m: str | None) -> None:
    """`x xᵀ` of two requests in one run would be [[1, 7]] and [[7, 52]]."""
    bundle, _ = published(write(tmp_path, GRAM, [n, 4], [n, m]))
    bodies = [orjson.dumps({"x": x}) for x in ([[1, 0, 0, 0]], [[7, 1, 1, 1]])]

    outcomes = load_handler(bundle, Runtime()).predict([Prediction("m", "1", b, "application/json") for b in bodies])

    assert [orjson.loads(outcome.body) for outcome in outcomes] == [{"y": [[1]]}, {"y": [[52]]}]


@pytest.mark.parametrize(
    ("nodes", "x", "y", "more", "why"),
    [
        (GRAM, ["N", 4], ["N", "N"], None, "axis 'N', the first of input 'x', is also a later one"),
        (TWICE, ["N", 4], ["M", 4], None, "input 'x' and output 'y' have first axes of different names, 'N' and 'M'"),
        ([("Add", ["x", "z"], "y", {})], ["N", 4], ["N", 4], ["M", 4], "different names, 'N' and 'M'"),
        (GRAM, ["N", 4], [None, None], None, "has shapes (1, 1) and (1, 1) alone, (2, 2) together"),
        (CENTRED, ["N", 4], ["N", 4], None, "differs between rows alone and rows together"),
        (CENTRED, ["unk__1", 4], ["unk__2", 4], None, "differs between rows alone and rows together"),
        (FIRST, [None, 4], [None, 4], None, "differs between rows alone and rows together"),
        ([("Softmax", ["x"], "y", {"axis": 0})], [None, None], [None, None], None, "differs between rows alone"),
        ([("ReduceSum", ["x", "zero"], "y", {})], [None, 4], [None, 4], None, "not a row for a row"),
    ],
)
def test_a_graph_that_mixes_its_rows_is_told(
    tmp_path: Path, nodes: Nodes, x: Dimensions, y: Dimensions, more: Dimensions | None, why: str
) -> None:
    bundle, said = published(write(tmp_path, nodes, x, y, [ZERO], more=more))

    assert not bundle.manifest.graphs["model"].batched
    assert bundle.manifest.modes["predict"].batching.max_batch_size == 1
    assert said.startswith("requests will not share runs of the graph: ")
    assert why in said


@pytest.mark.parametrize(
    ("nodes", "x", "y", "kinds"),
    [
        ([("MatMul", ["x", "w"], "y", {})], ["N", 4], ["N", 3], (FLOAT, FLOAT)),
        ([("MatMul", ["x", "w"], "y", {})], [None, 4], [None, 3], (FLOAT, FLOAT)),
        ([("MatMul", ["x", "w"], "y", {})], ["unk__1", 4], ["unk__2", 3], (FLOAT, FLOAT)),
        ([("MatMul", ["x", "w"], "y", {})], ["x_dynamic_axes_1", 4], ["y_dynamic_axes_1", 3], (FLOAT, FLOAT)),
        ([("Softmax", ["x"], "y", {"axis": 1})], ["N", "T"], ["N", "T"], (FLOAT, FLOAT)),
        ([("Log", ["x"], "y", {})], ["N"], ["N"], (FLOAT, FLOAT)),  # NaN of half of the numbers tried
        ([("Gather", ["w", "x"], "y", {})], ["N", "T"], ["N", "T", 3], (INT64, FLOAT)),  # four rows to look up
        ([("Identity", ["x"], "y", {})], ["N"], ["N"], (TEXT, TEXT)),
    ],
)
def test_a_graph_of_independent_rows_shares_runs(
    tmp_path: Path, nodes: Nodes, x: Dimensions, y: Dimensions, kinds: tuple[int, int]
) -> None:
    bundle, said = published(write(tmp_path, nodes, x, y, [WEIGHT], kinds=kinds))

    assert bundle.manifest.graphs["model"].batched
    assert bundle.manifest.modes["predict"].batching.max_batch_size == 64
    assert said == ""


def test_what_cannot_be_tried_is_not_assumed(tmp_path: Path) -> None:
    """A row of seven is the only one that fits, and seven is no length that is tried."""
    seven = numpy_helper.from_array(np.zeros(7, np.float32), "seven")
    file = write(tmp_path, [("MatMul", ["x", "seven"], "y", {})], ["N", "T"], ["N"], [seven])

    bundle, said = published(file)

    assert not bundle.manifest.graphs["model"].batched
    assert "could not be tried on random inputs" in said


def test_the_publisher_has_the_last_word(tmp_path: Path) -> None:
    file = write(tmp_path, CENTRED, ["N", 4], ["N", 4], [ZERO])
    said: list[str] = []

    yes = export_graph(file, tmp_path / "yes", batched=True, limits={"max_batch_size": 5}, write=said.append)
    no = export_graph(file, tmp_path / "no", batched=False, limits={"bucket_bytes": [10, 20]}, write=said.append)

    for path, batched, size, bounds in ((yes, True, 5, []), (no, False, 1, [10, 20])):
        manifest = Bundle.open(path).manifest
        assert manifest.graphs["model"].batched == batched
        batching = manifest.modes["predict"].batching
        assert (batching.max_batch_size, batching.bucket_bytes) == (size, bounds)
    assert said == []


def test_a_first_axis_that_does_not_vary_cannot_be_batched(tmp_path: Path) -> None:
    file = write(tmp_path, TWICE, [2, 4], [2, 4])

    with pytest.raises(ValueError, match=r"--batched needs first axes that may vary.* 'x' has shape \[2, 4\]"):
        export_graph(file, tmp_path / "bundle", batched=True)


class Centred(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0)


@pytest.mark.parametrize(("module", "batched"), [(Centred(), False), (torch.nn.Linear(4, 4), True)])
@pytest.mark.parametrize("shape", ["-1,4", "-1,-1"])
def test_torchscript_is_tried_too(tmp_path: Path, module: torch.nn.Module, shape: str, *, batched: bool) -> None:
    if shape == "-1,-1" and batched:
        module = torch.nn.ReLU()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit, which is what is served
        torch.jit.script(module).save(str(tmp_path / "m.pt"))  # type: ignore[no-untyped-call]

    signature = {"inputs": [parse_spec(f"x:FP32:{shape}")], "outputs": [parse_spec(f"y:FP32:{shape}")]}
    bundle, said = published(tmp_path / "m.pt", **signature)

    assert bundle.manifest.graphs["model"].batched == batched
    assert ("differs between rows alone and rows together" in said) == (not batched)
