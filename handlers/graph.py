"""A graph of a bundle, ready to run on ONNX Runtime or, when asked for, as TorchScript."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from model_store.manifest import Graph

__all__ = ["Array", "Arrays", "Engine", "RunnableGraph", "Runtime", "load_graph"]

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = Mapping[str, Array]
Engine = Literal["onnx", "torchscript"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """How graphs run in one worker."""

    engine: Engine = "onnx"
    """The form to run where a graph has both; a graph that has one form runs as that."""
    device: Literal["cpu", "gpu"] = "cpu"
    device_index: int = 0
    """Which GPU, counted from 0; ignored on the CPU."""
    threads: int = 1
    """Threads inside one operator; workers beside each other must share the cores, not fight for them."""


class RunnableGraph(Protocol):
    def run(self, inputs: Arrays) -> dict[str, Array]:
        """All outputs by name. Input arrays have the dtypes and ranks of the graph's signature."""
        ...


def load_graph(directory: Path, graph: Graph, runtime: Runtime) -> RunnableGraph:
    """Build the runnable form of a graph.

    Raises:
        ValueError: the bundle holds no form of the graph.
    """
    wanted: Engine = "onnx" if graph.onnx and (runtime.engine == "onnx" or not graph.torchscript) else "torchscript"
    if wanted == "onnx" and graph.onnx:
        return OnnxGraph(directory / graph.onnx, graph, runtime)
    if graph.torchscript:
        return TorchScriptGraph(directory / graph.torchscript, graph, runtime)
    raise ValueError(f"{directory}: this bundle holds neither an ONNX nor a TorchScript form of the graph")


class OnnxGraph:
    def __init__(self, path: Path, graph: Graph, runtime: Runtime) -> None:
        # read once, at import: without it ONNX Runtime keeps a device id in the home directory and reports home
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime as ort  # noqa: PLC0415  only workers pay for it

        options = ort.SessionOptions()
        options.intra_op_num_threads = runtime.threads
        options.inter_op_num_threads = 1
        # a spinning thread takes a core away from the worker beside it
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        if runtime.device == "gpu":
            providers: list[Any] = [("CUDAExecutionProvider", {"device_id": runtime.device_index})]
        else:
            providers = ["CPUExecutionProvider"]
        session = ort.InferenceSession(str(path), options, providers=providers)
        # what ONNX Runtime's own `run` does before this costs a quarter of a small graph's run, and looks for missing
        # inputs, which have been looked for
        self._run: Callable[..., list[Array]] = session._sess.run  # noqa: SLF001
        self._options = ort.RunOptions()  # or every run makes its own
        self._outputs = [spec.name for spec in graph.outputs]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        feed = inputs if type(inputs) is dict else dict(inputs)
        return dict(zip(self._outputs, self._run(self._outputs, feed, self._options), strict=True))


class TorchScriptGraph:
    def __init__(self, path: Path, graph: Graph, runtime: Runtime) -> None:
        import torch  # noqa: PLC0415  only when TorchScript is served

        self._torch = torch
        self._device = torch.device(f"cuda:{runtime.device_index}" if runtime.device == "gpu" else "cpu")
        if runtime.device == "cpu":
            torch.set_num_threads(runtime.threads)
        with warnings.catch_warnings():
            # torch.export has no form that serves without pickles and without the model's Python
            warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated", DeprecationWarning)
            self._module = torch.jit.load(str(path), map_location=self._device).eval()  # type: ignore[no-untyped-call]
        self._inputs = [spec.name for spec in graph.inputs]
        self._outputs = [spec.name for spec in graph.outputs]

    def run(self, inputs: Arrays) -> dict[str, Array]:
        torch = self._torch
        with torch.inference_mode():
            # as_tensor would alias read-only request memory and warn about it
            tensors = [torch.tensor(inputs[name], device=self._device) for name in self._inputs]
            result = self._module(*tensors)
        results = result if isinstance(result, (tuple, list)) else (result,)
        return {name: value.cpu().numpy() for name, value in zip(self._outputs, results, strict=True)}
