"""An eager module as TorchScript and ONNX, and the proof that the three answer alike."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from model_store.manifest import Graph, ParityCase, TensorSpec

__all__ = ["PARITY_TOLERANCE", "ExportableGraph", "ParityError", "measure_parity", "write_graph"]

PARITY_TOLERANCE = 1e-4
"""Largest absolute difference of any output, float32."""
_OPSET = 18


class ParityError(ValueError):
    """An exported graph does not answer as the model did in training."""


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


def write_graph(directory: Path, graph: ExportableGraph) -> Graph:
    """Write `<name>.pt` and `<name>.onnx`; see `measure_parity` for the proof."""
    described = Graph(
        onnx=f"{graph.name}.onnx", torchscript=f"{graph.name}.pt", inputs=graph.inputs, outputs=graph.outputs
    )
    with warnings.catch_warnings():
        # TorchScript is one of the two forms that bundles promise; torch announces its successor at each call
        warnings.filterwarnings("ignore", r".*torch\.jit\..* is deprecated.*", DeprecationWarning)
        warnings.filterwarnings("ignore", r".*legacy TorchScript-based ONNX export.*", DeprecationWarning)
        warnings.filterwarnings("ignore", r"The feature will be removed\.", DeprecationWarning)
        warnings.filterwarnings("ignore", r"no signature found for <torch\.ScriptMethod", UserWarning)
        scripted = torch.jit.script(graph.module.eval())
        torch.jit.save(torch.jit.freeze(scripted), str(directory / f"{graph.name}.pt"))
        torch.onnx.export(
            scripted,  # not the frozen one: its weights would become nameless constants
            graph.samples[0],
            str(directory / f"{graph.name}.onnx"),
            input_names=[spec.name for spec in graph.inputs],
            output_names=[spec.name for spec in graph.outputs],
            dynamic_axes={spec.name: _varying(spec) for spec in [*graph.inputs, *graph.outputs]},
            opset_version=_OPSET,
            dynamo=False,
        )
    return described


def measure_parity(directory: Path, graph: ExportableGraph, tolerance: float = PARITY_TOLERANCE) -> list[ParityCase]:
    """Run the files as they lie on disk against the eager module, on the CPU.

    Raises:
        ParityError: a difference passes the tolerance, or is NaN; names graph, form and figure.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\..* is deprecated.*", DeprecationWarning)
        script = torch.jit.load(str(directory / f"{graph.name}.pt"))  # type: ignore[no-untyped-call]
    # read once, at import: without it ONNX Runtime keeps a device id in the home directory and reports home
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime as ort  # noqa: PLC0415

    session = ort.InferenceSession(str(directory / f"{graph.name}.onnx"), providers=["CPUExecutionProvider"])
    cases = []
    for sample in graph.samples:
        with torch.inference_mode():
            expected = _arrays(graph.module(*sample))
            scripted = _arrays(script(*sample))
        feed = {spec.name: value.numpy() for spec, value in zip(graph.inputs, sample, strict=True)}
        answered = session.run([spec.name for spec in graph.outputs], feed)
        case = ParityCase(
            graph=graph.name,
            batch_size=len(sample[0]),
            torchscript_max_abs_error=_max_abs_error(expected, scripted),
            onnx_max_abs_error=_max_abs_error(expected, answered),
        )
        _refuse(case, {"TorchScript": case.torchscript_max_abs_error, "ONNX": case.onnx_max_abs_error}, tolerance)
        cases.append(case)
    return cases


def _varying(spec: TensorSpec) -> dict[int, str]:
    return {axis: "batch" if axis == 0 else f"{spec.name}_{axis}" for axis, size in enumerate(spec.shape) if size == -1}


def _arrays(result: Tensor | tuple[Tensor, ...]) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    results = result if isinstance(result, tuple) else (result,)
    return [value.numpy() for value in results]


def _max_abs_error(
    expected: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.float32]]],
    actual: Sequence[np.ndarray[tuple[int, ...], np.dtype[np.float32]]],
) -> float:
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
