"""Small ONNX graphs for the tensor protocols: obvious answers, and one that takes as long as it is told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exporters.archive import write_archive
from exporters.tensor import export_graph
from formats.tensors import DATATYPES
from model_store.store import Bundle, Store

__all__ = ["IDENTITY_TYPES", "publish_arithmetic", "publish_echo", "publish_identity", "publish_slow"]

IDENTITY_TYPES = [name for name in DATATYPES if name != "BYTES"]
"""Datatypes of the inputs of `publish_identity`: input `fp32` comes back as output `fp32_out`, and so on."""

Value = Callable[[str, int, Sequence[Any]], Any]
_value: Value = helper.make_tensor_value_info


def publish_arithmetic(root: Path) -> Bundle:
    """`a` and `b`, (N, 2) FP32, to `quotient` = a / b, (N, 2) FP32, and `whole` = a without its fraction, INT64."""
    nodes = [
        helper.make_node("Div", ["a", "b"], ["quotient"]),
        helper.make_node("Cast", ["a"], ["whole"], to=TensorProto.INT64),
    ]
    inputs = [_value(name, TensorProto.FLOAT, ["N", 2]) for name in ("a", "b")]
    outputs = [_value("quotient", TensorProto.FLOAT, ["N", 2]), _value("whole", TensorProto.INT64, ["N", 2])]
    return _publish(root, "arithmetic", helper.make_graph(nodes, "arithmetic", inputs, outputs))


def publish_echo(root: Path) -> Bundle:
    """`text`, (N,) BYTES, comes back as `text_out`."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["text"], ["text_out"])],
        "echo",
        [_value("text", TensorProto.STRING, ["N"])],
        [_value("text_out", TensorProto.STRING, ["N"])],
    )
    return _publish(root, "echo", graph)


def publish_identity(root: Path) -> Bundle:
    """One input of shape (N,) for each of `IDENTITY_TYPES`, and each of them back."""
    kinds = {name: helper.np_dtype_to_tensor_dtype(DATATYPES[name]) for name in IDENTITY_TYPES}
    graph = helper.make_graph(
        [helper.make_node("Identity", [name.lower()], [f"{name.lower()}_out"]) for name in kinds],
        "identity",
        [_value(name.lower(), kind, ["N"]) for name, kind in kinds.items()],
        [_value(f"{name.lower()}_out", kind, ["N"]) for name, kind in kinds.items()],
    )
    return _publish(root, "identity", graph)


def publish_slow(root: Path) -> Bundle:
    """`rounds`, (N,) INT64, to `done`, (N,) FP32, the same numbers; a round takes a fraction of a millisecond."""
    size = 256
    weight = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32) / 16
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["before", "weight"], ["product"]),
            helper.make_node("Tanh", ["product"], ["after"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "round",
        [
            _value("round", TensorProto.INT64, []),
            _value("go", TensorProto.BOOL, []),
            _value("before", TensorProto.FLOAT, [size, size]),
        ],
        [_value("go_on", TensorProto.BOOL, []), _value("after", TensorProto.FLOAT, [size, size])],
    )
    nodes = [
        helper.make_node("ReduceMax", ["rounds"], ["trips"], keepdims=0),
        helper.make_node("Loop", ["trips", "yes", "weight"], ["state"], body=body),
        helper.make_node("ReduceMean", ["state"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["trace"]),  # or the loop would be optimised away
        helper.make_node("Cast", ["rounds"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["real", "trace"], ["done"]),
    ]
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.asarray(True), "yes"),
        numpy_helper.from_array(np.asarray(1e-20, np.float32), "nothing"),
    ]
    inputs, outputs = [_value("rounds", TensorProto.INT64, ["N"])], [_value("done", TensorProto.FLOAT, ["N"])]
    return _publish(root, "slow", helper.make_graph(nodes, "slow", inputs, outputs, constants))


def _publish(root: Path, name: str, graph: Any) -> Bundle:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    source = root.parent / f".{root.name}-{name}.onnx"
    onnx.save(model, str(source))
    bundle = export_graph(source, source.with_suffix(""))
    return Store(root).publish(bundle, name=name, archive=write_archive)
