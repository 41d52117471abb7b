"""An eager module as TorchScript and ONNX, and the proof that the three answer alike."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from model_store.manifest import Graph, ParityCase, TensorSpec

__all__ = [
    "PARITY_TOLERANCE",
    "ExportableGraph",
    "ParityError",
    "load_script",
    "measure_parity",
    "onnx_session",
    "write_graph",
    "write_onnx",
    "write_script",
    "write_traced",
]

PARITY_TOLERANCE = 1e-4
"""Largest absolute difference of any output, float32."""
_OPSET = 18


class ParityError(ValueError):
    """An exported graph does not answer as the model did in training."""


Outputs = Sequence[np.ndarray[tuple[int, ...], np.dtype[Any]]]
Compare = Callable[[tuple[Tensor, ...], Outputs, Outputs], float]
"""Of a sample, what the module answers to it, and what an exported form does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportableGraph:
    name: str
    """The files' stem and the manifest's key."""
    module: nn.Module
    """In eval mode, scriptable; takes the inputs in order and returns the output, or a tuple of them."""
    inputs: list[TensorSpec]
    """-1 marks an axis that may vary."""
    outputs: list[TensorSpec]
    samples: Sequence[tuple[Tensor, ...]]
    """Fixed inputs to compare on, of several sizes along the axes that may vary."""
    compare: Compare | None = None
    """How far an answer strays, where a choice between equals may fall either way; by default, the largest absolute
    difference of any output."""


def write_graph(directory: Path, graph: ExportableGraph) -> Graph:
    """Write `<name>.pt` and `<name>.onnx`; see `measure_parity` for the proof."""
    write_script(directory / f"{graph.name}.pt", graph.module)
    write_onnx(
        directory / f"{graph.name}.onnx",
        graph.module,
        graph.samples[0],
        inputs=[spec.name for spec in graph.inputs],
        outputs=[spec.name for spec in graph.outputs],
        varying={spec.name: _varying(spec) for spec in [*graph.inputs, *graph.outputs]},
    )
    return Graph(onnx=f"{graph.name}.onnx", torchscript=f"{graph.name}.pt", inputs=graph.inputs, outputs=graph.outputs)


def write_script(file: Path, module: nn.Module, kept: Sequence[str] = ()) -> None:
    """A module in eval mode as frozen TorchScript; `kept` names exported methods beside `forward`."""
    with _quiet():
        scripted = torch.jit.script(module.eval())
        torch.jit.save(torch.jit.freeze(scripted, preserved_attrs=list(kept)), str(file))


def write_traced(file: Path, module: nn.Module, sample: tuple[Tensor, ...]) -> None:
    """What a module in eval mode does to a sample, as frozen TorchScript: loops are unrolled, sizes stay open."""
    with _quiet():
        traced = torch.jit.trace(module.eval(), sample, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(torch.jit.freeze(traced), str(file))


def write_onnx(
    file: Path,
    module: nn.Module,
    sample: tuple[Tensor, ...],
    *,
    inputs: list[str],
    outputs: list[str],
    varying: Mapping[str, Mapping[int, str]],
    traced: bool = False,
) -> None:
    """A module in eval mode as ONNX.

    Args:
        file: to write.
        module: scriptable, or traceable.
        sample: its inputs.
        inputs: names.
        outputs: names.
        varying: by input or output, the axes that are not fixed, with their names.
        traced: record what happens to the sample, instead of what the code says: for modules without loops over data
            that keep lists of tensors, which ONNX has no good form for.
    """
    with _quiet():
        torch.onnx.export(
            # not frozen: its weights would become nameless constants
            module.eval() if traced else torch.jit.script(module.eval()),
            sample,
            str(file),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes={name: dict(axes) for name, axes in varying.items()},
            opset_version=_OPSET,
            dynamo=False,
        )


def load_script(file: Path) -> torch.jit.ScriptModule:
    """TorchScript from a file."""
    with _quiet():
        return torch.jit.load(str(file))  # type: ignore[no-untyped-call,no-any-return]


def onnx_session(file: Path, extra_outputs: Sequence[str] = ()) -> Any:
    """An ONNX Runtime session on the CPU.

    Args:
        file: the graph.
        extra_outputs: values inside it that are to be seen too.
    """
    # read once, at import: without it ONNX Runtime keeps a device id in the home directory and reports home
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort  # noqa: PLC0415

    if not extra_outputs:
        return ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    model = onnx.load(str(file))
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in extra_outputs)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@contextmanager
def _quiet() -> Iterator[None]:
    """TorchScript is one of the two forms that bundles promise; torch announces its successor at each call."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\..* is deprecated.*", DeprecationWarning)
        warnings.filterwarnings("ignore", r".*legacy TorchScript-based ONNX export.*", DeprecationWarning)
        warnings.filterwarnings("ignore", r"The feature will be removed\.", DeprecationWarning)
        warnings.filterwarnings("ignore", r"Constant folding - Only steps=1 can be constant folded", UserWarning)
        # which rows a step reads is meant to be fixed
        warnings.filterwarnings("ignore", r"torch\.tensor results are registered as constants")
        # first states are given, as wide as the batch
        warnings.filterwarnings("ignore", r"Exporting a model to ONNX with a batch_size other than 1", UserWarning)
        warnings.filterwarnings("ignore", r"no signature found for <torch\.ScriptMethod", UserWarning)
        yield


def measure_parity(directory: Path, graph: ExportableGraph, tolerance: float = PARITY_TOLERANCE) -> list[ParityCase]:
    """Run the files as they lie on disk against the eager module, on the CPU.

    Raises:
        ParityError: a difference passes the tolerance, or is NaN; names graph, form and figure.
    """
    script = load_script(directory / f"{graph.name}.pt")
    session = onnx_session(directory / f"{graph.name}.onnx")
    cases = []
    for sample in graph.samples:
        with torch.inference_mode():
            expected = _arrays(graph.module(*sample))
            scripted = _arrays(script(*sample))
        feed = {spec.name: value.numpy() for spec, value in zip(graph.inputs, sample, strict=True)}
        answered = session.run([spec.name for spec in graph.outputs], feed)
        compare = graph.compare or _compare_all
        case = ParityCase(
            graph=graph.name,
            batch_size=len(sample[0]),
            torchscript_max_abs_error=compare(sample, expected, scripted),
            onnx_max_abs_error=compare(sample, expected, answered),
        )
        _refuse(case, {"TorchScript": case.torchscript_max_abs_error, "ONNX": case.onnx_max_abs_error}, tolerance)
        cases.append(case)
    return cases


def _varying(spec: TensorSpec) -> dict[int, str]:
    return {axis: "batch" if axis == 0 else f"{spec.name}_{axis}" for axis, size in enumerate(spec.shape) if size == -1}


def _arrays(result: Tensor | tuple[Tensor, ...]) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    results = result if isinstance(result, tuple) else (result,)
    return [value.numpy() for value in results]


def _compare_all(_sample: tuple[Tensor, ...], expected: Outputs, actual: Outputs) -> float:
    if any(e.shape != a.shape for e, a in zip(expected, actual, strict=True)):
        return float("inf")
    differences = (np.abs(e.astype(np.float64) - a).max(initial=0) for e, a in zip(expected, actual, strict=True))
    return float(np.max(list(differences)))  # numpy's max keeps NaN; Python's may lose it


def _refuse(case: ParityCase, errors: Mapping[str, float], tolerance: float) -> None:
    for form, error in errors.items():
        if not error <= tolerance:
            raise ParityError(
                f"graph '{case.graph}' as {form}, batch of {case.batch_size}: answers stray by {error:g} from the "
                f"trained model, tolerance {tolerance:g}; nothing is exported"
            )
