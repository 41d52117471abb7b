"""Somebody else's ONNX graph as a bundle of algorithm `tensor`: served by name on its own inputs and outputs."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from formats.tensors import datatype_of
from model_store.manifest import Batching, Graph, Manifest, Mode, TensorSpec
from model_store.store import seal

__all__ = ["export_graph"]


def export_graph(model: Path, output: Path) -> Path:
    """Write a bundle around an ONNX file; its signature is read from the graph.

    Raises:
        ValueError: not an ONNX graph of tensors, or its weights lie in other files.
    """
    import onnx  # noqa: PLC0415  slow to import

    try:
        proto = onnx.load(str(model), load_external_data=False)
        onnx.checker.check_model(proto)
    except Exception as error:
        raise ValueError(f"{model} is not a valid ONNX file: {error}") from error
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ValueError(f"{model}: weight '{tensor.name}' lies in another file; save the model as one file")
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [_spec(value, onnx) for value in proto.graph.input if value.name not in weights]
    outputs = [_spec(value, onnx) for value in proto.graph.output]
    batched = all(spec.shape[:1] == [-1] for spec in inputs + outputs)
    mode = Mode(
        graph="model",
        placement=["cpu", "gpu"],
        content_types=["application/json"],
        accepts=["application/json"],
        batching=Batching(max_batch_size=64 if batched else 1),
    )
    output.mkdir(parents=True)
    shutil.copyfile(model, output / "model.onnx")
    manifest = Manifest(
        algorithm="tensor",
        default_mode="predict",
        modes={"predict": mode},
        graphs={"model": Graph(onnx="model.onnx", inputs=inputs, outputs=outputs, batched=batched)},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    seal(output, manifest)
    return output


def _spec(value: Any, onnx: Any) -> TensorSpec:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ValueError(f"'{value.name}' is not a tensor; sequences and maps cannot be served")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    shape = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
    return TensorSpec(name=value.name, datatype=datatype_of(dtype), shape=shape)
