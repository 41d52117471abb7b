"""What the Open Inference Protocol means, whether it came over REST or gRPC: signatures, checks, metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from formats.envelope import Tensor
from formats.errors import InvalidBody
from gateway.router import Deployment, Router
from model_store.manifest import Graph, TensorSpec
from model_store.signature import check_inputs, check_outputs

__all__ = [
    "EXTENSIONS",
    "SERVER_NAME",
    "KnownSignature",
    "check_inputs",
    "check_outputs",
    "check_parameters",
    "deadline_of",
    "graph_of",
    "mode_in",
    "model_metadata",
    "server_metadata",
    "server_version",
]

SERVER_NAME = "penstock"
EXTENSIONS = ["binary_tensor_data"]
_RESERVED = "triton_"


class KnownSignature:
    """Names, types and shapes of requests that repeat each other but for their numbers (docs/adr/0011)."""

    __slots__ = ("_graph", "_outputs", "_wanted")

    def __init__(self, wanted: Sequence[str]) -> None:
        """`wanted` names the outputs asked for, none for all."""
        self._wanted = wanted
        self._graph: Graph | None = None
        """The one that the tensors have been held against."""
        self._outputs: tuple[str, ...] = ()

    def outputs_of(self, graph: Graph, tensors: Sequence[Tensor]) -> tuple[str, ...]:
        """Hold one such request's tensors against the graph that answers, if another one did before.

        Raises:
            InvalidBody: as `check_inputs` and `check_outputs`.
        """
        if self._graph is not graph:
            check_inputs(graph, tensors)
            self._outputs = check_outputs(graph, self._wanted)
            self._graph = graph
        return self._outputs


def server_version() -> str:
    from importlib.metadata import version  # noqa: PLC0415  asked for once in a while

    return version("penstock")


def server_metadata() -> dict[str, Any]:
    return {"name": SERVER_NAME, "version": server_version(), "extensions": EXTENSIONS}


def graph_of(deployment: Deployment) -> Graph:
    """The graph that tensors of this deployment are for."""
    return deployment.manifest.graphs[deployment.spec.graph]


def model_metadata(deployment: Deployment, router: Router) -> dict[str, Any]:
    """Section 1.2; versions are those that this gateway serves."""
    name = deployment.manifest.name
    versions = sorted({version for model, version, _ in router.deployments if model == name})
    graph = graph_of(deployment)
    return {
        "name": name,
        "versions": versions,
        "platform": "onnx_onnxv1" if graph.onnx else "pytorch_torchscript",
        "inputs": [_spec(spec) for spec in graph.inputs],
        "outputs": [_spec(spec) for spec in graph.outputs],
        "properties": {"algorithm": deployment.manifest.algorithm, "mode": deployment.mode},
    }


def check_parameters(names: Sequence[str]) -> None:
    """Raises `InvalidBody` for a parameter of a reserved kind that nobody here understands."""
    for name in names:
        if name.startswith(_RESERVED):
            raise InvalidBody(f"parameter '{name}' is reserved and not supported")


def mode_in(parameters: Mapping[str, object]) -> str:
    """The request's `mode`, by which it reaches another graph of the same model; empty for none.

    Raises:
        InvalidBody: the parameter is not a text.
    """
    mode = parameters.get("mode", "")
    if not isinstance(mode, str):
        raise InvalidBody(f"parameter 'mode' must be a text, got {mode!r:.40}")
    return mode


def deadline_of(received: float, timeout_s: float, timeout_us: object) -> float:
    """The earlier of the gateway's own limit and the request's `timeout` in microseconds.

    Raises:
        InvalidBody: the parameter is not a whole number of at least 0.
    """
    if timeout_us is None:
        return received + timeout_s
    if type(timeout_us) is not int or timeout_us < 0:
        raise InvalidBody(f"parameter 'timeout' must be whole microseconds of 0 or more, got {timeout_us!r}")
    return received + (min(timeout_s, timeout_us / 1e6) if timeout_us else timeout_s)


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
