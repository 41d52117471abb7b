"""Somebody else's graph as a bundle of algorithm `tensor`: served by name on its own inputs and outputs."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from formats.signatures import describe
from formats.tensors import DATATYPES, datatype_of
from model_store.manifest import Batching, Graph, Manifest, Mode, TensorSpec
from model_store.store import seal

__all__ = ["export_graph", "parse_spec"]

_ZIP = b"PK\x03\x04"  # what torch.jit.save writes is a zip archive; an ONNX file is a bare protobuf message


def export_graph(
    model: Path, output: Path, *, inputs: Sequence[TensorSpec] = (), outputs: Sequence[TensorSpec] = ()
) -> Path:
    """Write a bundle around an ONNX or a TorchScript file.

    Args:
        model: an ONNX file, or what `torch.jit.save` wrote.
        output: the directory to make.
        inputs: of a TorchScript file, in the order of its arguments; an ONNX file states its own.
        outputs: likewise, in the order of what it returns.

    Raises:
        ValueError: neither of the two, a graph that has no tensors or other ones than stated, weights in other files,
            or a signature where none belongs or none where one does.
        FileNotFoundError: there is no such file.
    """
    with model.open("rb") as file:
        is_torchscript = file.read(len(_ZIP)) == _ZIP
    if is_torchscript:
        _check_torchscript(model, inputs, outputs)
        graph = Graph(torchscript="model.pt", inputs=list(inputs), outputs=list(outputs), batched=False)
    else:
        if inputs or outputs:
            raise ValueError(f"{model} is not TorchScript; an ONNX file states its own inputs and outputs")
        graph = _onnx_graph(model)
    # independent rows are the custom where every first axis may vary; nothing in a graph says so
    batched = bool(graph.inputs) and all(spec.shape[:1] == [-1] for spec in graph.inputs + graph.outputs)
    mode = Mode(
        graph="model",
        placement=["cpu", "gpu"],
        content_types=["application/json"],
        accepts=["application/json"],
        batching=Batching(max_batch_size=64 if batched else 1),
    )
    manifest = Manifest(
        algorithm="tensor",
        default_mode="predict",
        modes={"predict": mode},
        graphs={"model": graph.model_copy(update={"batched": batched})},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    output.mkdir(parents=True)
    shutil.copyfile(model, output / str(graph.torchscript or graph.onnx))
    seal(output, manifest)
    return output


def parse_spec(text: str) -> TensorSpec:
    """An input or output as `NAME:DATATYPE:SHAPE`, such as `image:FP32:-1,3,224,224`; a scalar has an empty shape.

    Raises:
        ValueError: names what is wrong with it.
    """
    name, datatype, dimensions = (["", "", *text.rsplit(":", 2)])[-3:]
    expected = f"'{text}': expected NAME:DATATYPE:SHAPE, such as image:FP32:-1,3,32,32"
    if not name:
        raise ValueError(f"{expected}: three parts are needed")
    if datatype not in DATATYPES:
        raise ValueError(f"{expected}: unknown datatype '{datatype}'; known: {', '.join(DATATYPES)}")
    if not re.fullmatch(r"((-1|[1-9][0-9]{0,18})(,(?!$)|$))*", dimensions, re.ASCII):
        raise ValueError(f"{expected}: a dimension is a whole number of at least 1, or -1 where it may vary")
    return TensorSpec(name=name, datatype=datatype, shape=[int(d) for d in dimensions.split(",") if d])


def _onnx_graph(model: Path) -> Graph:
    import onnx  # noqa: PLC0415  slow to import

    try:
        proto = onnx.load(str(model), load_external_data=False)
        # first: the checker would look for the other file in the current directory
        outside = [t.name for t in proto.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
        if not outside:
            onnx.checker.check_model(proto)
    except Exception as error:
        head = model.read_bytes()[:64]
        raise ValueError(f"{model} is not a valid ONNX file ({describe(head)}): {_first_line(error)}") from error
    if outside:
        raise ValueError(f"{model}: weight '{outside[0]}' lies in another file; save the model as one file")
    weights = {tensor.name for tensor in proto.graph.initializer}
    inputs = [_spec(value, onnx) for value in proto.graph.input if value.name not in weights]
    outputs = [_spec(value, onnx) for value in proto.graph.output]
    return Graph(onnx="model.onnx", inputs=inputs, outputs=outputs)


def _spec(value: Any, onnx: Any) -> TensorSpec:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ValueError(f"'{value.name}' is not a tensor; sequences and maps cannot be served")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    shape = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
    return TensorSpec(name=value.name, datatype=datatype_of(dtype), shape=shape)


def _check_torchscript(model: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """Hold the stated signature against the module: by its arguments, and by one run on zeros where shapes allow it."""
    import torch  # noqa: PLC0415  slow to import

    if not inputs or not outputs:
        raise ValueError(f"{model} is TorchScript, which does not name its tensors: state every input and every output")
    names = [spec.name for spec in inputs], [spec.name for spec in outputs]
    for spec in (*inputs, *outputs):
        if spec.datatype == "BYTES":
            raise ValueError(f"'{spec.name}': TorchScript has no BYTES tensors")
        if any(each.count(spec.name) > 1 for each in names):
            raise ValueError(f"'{spec.name}' is stated twice")
    try:
        with warnings.catch_warnings():
            # torch.export has no form that serves without pickles and without the model's Python
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
            module = torch.jit.load(str(model), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ValueError(f"{model} is not a valid TorchScript file: {_first_line(error)}") from error
    arguments = module.forward.schema.arguments[1:]  # without self
    required = sum(not argument.has_default_value() for argument in arguments)
    if not required <= len(inputs) <= len(arguments):
        taken = ", ".join(argument.name for argument in arguments)
        raise ValueError(f"{model} takes {len(arguments)} inputs ({taken}); {len(inputs)} are stated")
    # zeros of a length that nobody stated might be refused for good reasons
    if all(dimension != -1 for spec in inputs for dimension in spec.shape[1:]):
        _try(module, model, inputs, outputs)


def _try(module: Any, model: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    import torch  # noqa: PLC0415

    shapes = [[2 if dimension == -1 else dimension for dimension in spec.shape] for spec in inputs]
    zeros = [torch.tensor(np.zeros(s, DATATYPES[i.datatype])) for s, i in zip(shapes, inputs, strict=True)]
    try:
        with torch.inference_mode():
            result = module(*zeros)
    except RuntimeError as error:
        *_, last_line = str(error).strip().splitlines()
        raise ValueError(f"{model} does not run on zeros of the stated inputs, shapes {shapes}: {last_line}") from error
    results = result if isinstance(result, (tuple, list)) else (result,)
    if len(results) != len(outputs) or not all(isinstance(each, torch.Tensor) for each in results):
        found = ", ".join(type(each).__name__ for each in results)
        raise ValueError(f"{model} returns {len(results)} values ({found}); {len(outputs)} output tensors are stated")
    for spec, value in zip(outputs, results, strict=True):
        datatype, shape = datatype_of(value.numpy().dtype), list(value.shape)
        fits = len(shape) == len(spec.shape) and all(e in (-1, a) for e, a in zip(spec.shape, shape, strict=True))
        if datatype != spec.datatype or not fits:
            stated = f"{spec.datatype} {spec.shape}"
            raise ValueError(f"output '{spec.name}': stated as {stated}, a run gave {datatype} {shape}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
