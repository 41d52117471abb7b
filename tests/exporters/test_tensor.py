"""Somebody else's graph file becomes a bundle: ONNX by its own word, TorchScript by a stated signature."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import orjson
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from exporters.tensor import export_graph, parse_spec
from formats.envelope import Prediction
from handlers.algorithms import load_handler
from handlers.graph import Runtime
from model_store.manifest import TensorSpec
from model_store.store import Bundle

X, Y = parse_spec("x:FP32:-1,3"), parse_spec("y:FP32:-1,3")
SUM, DOT = parse_spec("sum:FP32:-1,3"), parse_spec("dot:FP32:-1")


class Pair(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + y, (x * y).sum(1)


class Loose(torch.nn.Module):
    def forward(self, x: torch.Tensor, scale: float = 2.0) -> torch.Tensor:
        return x * scale


def save(module: torch.nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit, which is what is served
        torch.jit.script(module).save(str(path))  # type: ignore[no-untyped-call]
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(Pair(), tmp_path_factory.mktemp("torchscript") / "pair.pt")


@pytest.fixture
def linear(tmp_path: Path) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_onnx_file_states_its_own_signature(tmp_path: Path, linear: onnx.ModelProto) -> None:
    (tmp_path / "m.onnx").write_bytes(linear.SerializeToString())

    bundle = Bundle.open(export_graph(tmp_path / "m.onnx", tmp_path / "bundle"))

    bundle.verify()
    graph = bundle.manifest.graphs["model"]
    assert graph.inputs == [TensorSpec(name="x", datatype="FP32", shape=[-1, 3])]
    assert graph.outputs == [TensorSpec(name="y", datatype="FP32", shape=[-1, 2])]
    assert graph.batched


def test_a_graph_of_fixed_size_is_not_batched(tmp_path: Path, linear: onnx.ModelProto) -> None:
    linear.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    (tmp_path / "m.onnx").write_bytes(linear.SerializeToString())

    manifest = Bundle.open(export_graph(tmp_path / "m.onnx", tmp_path / "bundle")).manifest

    assert not manifest.graphs["model"].batched
    assert manifest.modes["predict"].batching.max_batch_size == 1


def test_weights_in_another_file_are_refused(tmp_path: Path, linear: onnx.ModelProto) -> None:
    big = numpy_helper.from_array(np.zeros((3, 2000), np.float32), "w")
    linear.graph.initializer[0].CopyFrom(big)
    linear.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2000
    onnx.save_model(linear, str(tmp_path / "m.onnx"), save_as_external_data=True, location="weights.bin")

    with pytest.raises(ValueError, match="'w' lies in another file; save the model as one file"):
        export_graph(tmp_path / "m.onnx", tmp_path / "bundle")

    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"", "nothing"),
        (b"hello", "text: 'hello'"),
        (b"\xff\xd8\xff", "a JPEG image"),
        (b"\x08" * 50, "unknown binary"),
    ],
)
def test_what_is_no_graph_is_told_by_what_it_is(tmp_path: Path, content: bytes, seen: str) -> None:
    (tmp_path / "m").write_bytes(content)

    with pytest.raises(ValueError, match=f"is not a valid ONNX file .{seen}"):
        export_graph(tmp_path / "m", tmp_path / "bundle")

    assert not (tmp_path / "bundle").exists()


def test_a_signature_for_an_onnx_file_is_refused(tmp_path: Path, linear: onnx.ModelProto) -> None:
    (tmp_path / "m.onnx").write_bytes(linear.SerializeToString())

    with pytest.raises(ValueError, match="an ONNX file states its own inputs and outputs"):
        export_graph(tmp_path / "m.onnx", tmp_path / "bundle", inputs=[X])


def test_a_torchscript_file_is_served_with_its_stated_signature(tmp_path: Path, pair: Path) -> None:
    bundle = Bundle.open(export_graph(pair, tmp_path / "bundle", inputs=[X, Y], outputs=[SUM, DOT]))
    body = orjson.dumps({"x": [[1, 2, 3], [0, 0, 1]], "y": [[1, 1, 1], [2, 2, 2]]})

    handler = load_handler(bundle, Runtime())  # asks for ONNX, gets what there is
    first, second = handler.predict([Prediction("m", "1", body, "application/json")] * 2)

    assert orjson.loads(first.body) == {"sum": [[2, 3, 4], [2, 2, 3]], "dot": [6, 2]}
    assert second == first
    assert bundle.manifest.graphs["model"].batched


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        ([], [], "state every input and every output"),
        ([X, Y], [], "state every input and every output"),
        ([X], [SUM, DOT], r"takes 2 inputs \(x, y\); 1 are stated"),
        ([X, X], [SUM, DOT], "'x' is stated twice"),
        ([X, Y], [SUM], "returns 2 values; 1 output tensors are stated"),
        ([X, Y], [SUM, SUM], "'sum' is stated twice"),
        ([X, parse_spec("y:FP32:-1,2")], [SUM, DOT], "does not run on zeros of the stated inputs"),
        ([X, Y], [SUM, parse_spec("dot:INT64:-1")], r"'dot': stated as INT64 \[-1\], a run gave FP32 \[2\]"),
        ([X, Y], [parse_spec("sum:FP32:-1,4"), DOT], r"'sum': stated as FP32 \[-1, 4\], a run gave FP32 \[2, 3\]"),
        ([X, Y], [parse_spec("sum:FP32:-1"), DOT], r"'sum': stated as FP32 \[-1\]"),
        ([parse_spec("x:BYTES:-1"), Y], [SUM, DOT], "TorchScript has no BYTES"),
    ],
)
def test_a_signature_that_the_module_does_not_keep_is_refused(
    tmp_path: Path, pair: Path, inputs: list[TensorSpec], outputs: list[TensorSpec], text: str
) -> None:
    with pytest.raises(ValueError, match=text) as caught:
        export_graph(pair, tmp_path / "bundle", inputs=inputs, outputs=outputs)

    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_an_argument_with_a_default_need_not_be_stated(tmp_path: Path) -> None:
    file = save(Loose(), tmp_path / "loose.pt")

    export_graph(file, tmp_path / "bundle", inputs=[parse_spec("x:FP32:2")], outputs=[parse_spec("y:FP32:2")])

    assert not Bundle.open(tmp_path / "bundle").manifest.graphs["model"].batched


def test_lengths_that_nobody_stated_are_not_tried(tmp_path: Path, pair: Path) -> None:
    free = [parse_spec("x:FP32:-1,-1"), parse_spec("y:FP32:-1,-1")]

    assert export_graph(pair, tmp_path / "bundle", inputs=free, outputs=[SUM, DOT]).is_dir()


def test_a_checkpoint_is_not_torchscript_and_is_never_unpickled(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "checkpoint.pt")

    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a valid TorchScript file"):
        export_graph(tmp_path / "checkpoint.pt", tmp_path / "bundle", inputs=[X], outputs=[SUM])


@pytest.mark.parametrize(
    ("text", "shape"), [("x:FP32:-1,3,224", [-1, 3, 224]), ("x:INT64:", []), ("x:BYTES:1", [1]), ("a:b:0:UINT8:7", [7])]
)
def test_a_signature_is_name_datatype_shape(text: str, shape: list[int]) -> None:
    assert parse_spec(text) == TensorSpec(name=text.rsplit(":", 2)[0], datatype=text.rsplit(":", 2)[1], shape=shape)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *(("", "three parts"), ("x", "three parts"), ("x:FP32", "three parts"), (":FP32:1", "three parts")),
        *(("x:float:1", "unknown datatype 'float'; known: BOOL"), ("x::1", "unknown datatype ''")),
        *(
            (f"x:FP32:{shape}", "a dimension is")
            for shape in ("0", "-2", "a", "1.5", "1,", ",1", "1 2", "1,,2", "٣", "1\n")
        ),
    ],
)
def test_another_signature_is_refused_with_an_example(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=r"expected NAME:DATATYPE:SHAPE, such as image:FP32:-1,3,32,32: " + why):
        parse_spec(text)
