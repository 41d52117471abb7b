"""Somebody else's graph as a bundle of algorithm `tensor`: served by name on its own inputs and outputs."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from exporters.row_independence import Array, Axes, Run, told_by_names, told_by_trying
from formats.signatures import describe
from formats.tensors import DATATYPES, datatype_of
from model_store.manifest import Batching, Graph, Manifest, Mode, TensorSpec
from model_store.store import seal

__all__ = ["export_graph", "parse_spec"]

_ZIP = b"PK\x03\x04"  # what torch.jit.save writes is a zip archive; an ONNX file is a bare protobuf message


def export_graph(
    model: Path,
    output: Path,
    *,
    inputs: Sequence[TensorSpec] = (),
    outputs: Sequence[TensorSpec] = (),
    batched: bool | None = None,
    limits: Mapping[str, Any] | None = None,
    write: Callable[[str], object] = lambda _: None,
) -> Path:
    """Write a bundle around an ONNX or a TorchScript file.

    Args:
        model: an ONNX file, or what `torch.jit.save` wrote.
        output: the directory to make.
        inputs: of a TorchScript file, in the order of its arguments; an ONNX file states its own.
        outputs: likewise, in the order of what it returns.
        batched: do first axes count independent rows, so that requests may share runs? None finds out, by the names of
            axes and by trying.
        limits: fields of `model_store.manifest.Batching` that are not to be the default.
        write: is told why requests will not share runs, where first axes would allow it.

    Raises:
        ValueError: neither of the two, a graph that has no tensors or other ones than stated, weights in other files,
            a signature where none belongs or none where one does, a limit out of range, or `batched` of a graph with a
            first axis that does not vary.
        FileNotFoundError: there is no such file.
    """
    with model.open("rb") as file:
        is_torchscript = file.read(len(_ZIP)) == _ZIP
    if is_torchscript:
        run = _check_torchscript(model, inputs, outputs)
        graph = Graph(torchscript="model.pt", inputs=list(inputs), outputs=list(outputs))
        axes: Axes = {}
    else:
        if inputs or outputs:
            raise ValueError(f"{model} is not TorchScript; an ONNX file states its own inputs and outputs")
        graph, axes = _onnx_graph(model)
        run = _onnx_run(model, graph)
    rows_are_free = _is_batched(graph, axes, run, batched, write)
    batching = Batching(**{"max_batch_size": 64 if rows_are_free else 1, **(limits or {})})
    mode = Mode(
        graph="model",
        placement=["cpu", "gpu"],
        content_types=["application/json"],
        accepts=["application/json"],
        batching=batching,
    )
    manifest = Manifest(
        algorithm="tensor",
        default_mode="predict",
        modes={"predict": mode},
        graphs={"model": graph.model_copy(update={"batched": rows_are_free})},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    output.mkdir(parents=True)
    shutil.copyfile(model, output / str(graph.torchscript or graph.onnx))
    seal(output, manifest)
    return output


def _is_batched(graph: Graph, axes: Axes, run: Run, wanted: bool | None, write: Callable[[str], object]) -> bool:
    """Shared runs are faster, but no client's rows may show in another's answer: what is not shown is not assumed."""
    fixed = [spec for spec in graph.inputs + graph.outputs if spec.shape[:1] != [-1]]
    if wanted and (fixed or not graph.inputs):
        found = f"'{fixed[0].name}' has shape {fixed[0].shape}" if fixed else "it has no input"
        raise ValueError(f"--batched needs first axes that may vary, of every input and output; {found}")
    if wanted is not None or fixed or not graph.inputs:
        return bool(wanted)
    why = told_by_names(axes) or told_by_trying(graph.inputs, run)
    if why:
        write(f"requests will not share runs of the graph: {why}; --batched says that its rows are independent")
    return not why


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


def _onnx_graph(model: Path) -> tuple[Graph, Axes]:
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
    values = [value for value in proto.graph.input if value.name not in weights]
    inputs = [_spec(value, onnx) for value in values]
    outputs = [_spec(value, onnx) for value in proto.graph.output]
    graph = Graph(onnx="model.onnx", inputs=inputs, outputs=outputs)
    axes = {f"input '{value.name}'": _axes(value) for value in values}
    axes |= {f"output '{value.name}'": _axes(value) for value in proto.graph.output}
    return graph, axes


def _onnx_run(model: Path, graph: Graph) -> Run:
    """The graph on ONNX Runtime, loaded when it is first run."""
    names = [spec.name for spec in graph.outputs]

    @cache
    def session() -> Any:
        # read once, at import: without it ONNX Runtime keeps a device id in the home directory and reports home
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime as ort  # noqa: PLC0415  slow to import

        options = ort.SessionOptions()
        options.log_severity_level = 4  # what a graph refuses is told by exceptions
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Array]) -> Sequence[Array]:
        results: Sequence[Array] = session().run(names, dict(inputs))
        return results

    return run


def _axes(value: Any) -> list[str]:
    return [dimension.dim_param for dimension in value.type.tensor_type.shape.dim]


def _spec(value: Any, onnx: Any) -> TensorSpec:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        raise ValueError(f"'{value.name}' is not a tensor; sequences and maps cannot be served")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    shape = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
    return TensorSpec(name=value.name, datatype=datatype_of(dtype), shape=shape)


def _check_torchscript(model: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Run:
    """Hold the stated signature against the module: by its arguments, and by one run on zeros where shapes allow it.

    Returns: the module.
    """
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
    run = _torchscript_run(module, inputs)
    # zeros of a length that nobody stated might be refused for good reasons
    if all(dimension != -1 for spec in inputs for dimension in spec.shape[1:]):
        _try(run, model, inputs, outputs)
    return run


def _torchscript_run(module: Any, inputs: Sequence[TensorSpec]) -> Run:
    import torch  # noqa: PLC0415

    def run(arrays: Mapping[str, Array]) -> Sequence[Array]:
        with torch.inference_mode():
            result = module(*(torch.tensor(arrays[spec.name]) for spec in inputs))
        results = result if isinstance(result, (tuple, list)) else (result,)
        if not all(isinstance(each, torch.Tensor) for each in results):
            found = ", ".join(type(each).__name__ for each in results)
            raise TypeError(f"returns {len(results)} values ({found})")
        return [each.numpy() for each in results]

    return run


def _try(run: Run, model: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    shapes = [[2 if dimension == -1 else dimension for dimension in spec.shape] for spec in inputs]
    zeros = {i.name: np.zeros(s, DATATYPES[i.datatype]) for s, i in zip(shapes, inputs, strict=True)}
    try:
        results = run(zeros)
    except TypeError as error:
        raise ValueError(f"{model} {error}; {len(outputs)} output tensors are stated") from error
    except RuntimeError as error:
        *_, last_line = str(error).strip().splitlines()
        raise ValueError(f"{model} does not run on zeros of the stated inputs, shapes {shapes}: {last_line}") from error
    if len(results) != len(outputs):
        raise ValueError(f"{model} returns {len(results)} values; {len(outputs)} output tensors are stated")
    for spec, value in zip(outputs, results, strict=True):
        datatype, shape = datatype_of(value.dtype), list(value.shape)
        fits = len(shape) == len(spec.shape) and all(e in (-1, a) for e, a in zip(spec.shape, shape, strict=True))
        if datatype != spec.datatype or not fits:
            stated = f"{spec.datatype} {spec.shape}"
            raise ValueError(f"output '{spec.name}': stated as {stated}, a run gave {datatype} {shape}")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
