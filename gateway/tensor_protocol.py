"""What the Open Inference Protocol means, whether it came over REST or gRPC: signatures, checks, metadata."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from formats.envelope import Tensor
from formats.errors import InvalidBody
from formats.tensors import num_elements
from gateway.router import Deployment, Router
from model_store.manifest import Graph, TensorSpec

__all__ = [
    "EXTENSIONS",
    "SERVER_NAME",
    "check_inputs",
    "check_outputs",
    "check_parameters",
    "deadline_of",
    "graph_of",
    "model_metadata",
    "server_metadata",
    "server_version",
]

SERVER_NAME = "penstock"
EXTENSIONS = ["binary_tensor_data"]
_RESERVED = "triton_"


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


def check_inputs(graph: Graph, tensors: Sequence[Tensor]) -> None:
    """Hold the sent tensors against the graph's signature, before they meet anybody else's in a batch.

    Raises:
        InvalidBody: names the input, what was sent, and what was expected.
    """
    sent = [tensor.name for tensor in tensors]
    if len(set(sent)) != len(sent):
        raise InvalidBody(f"inputs {sent} hold a name twice")
    specs = {spec.name: spec for spec in graph.inputs}
    for tensor in tensors:
        spec = specs.pop(tensor.name, None)
        if spec is None:
            known = ", ".join(each.name for each in graph.inputs)
            raise InvalidBody(f"unexpected inference input '{tensor.name}'; the model takes: {known}")
        _check_input(spec, tensor)
    if specs:
        raise InvalidBody(f"expected {len(graph.inputs)} inputs but got {len(sent)}; missing: {', '.join(specs)}")
    if graph.batched:
        rows = {tensor.name: tensor.shape[0] for tensor in tensors}
        if len(set(rows.values())) != 1 or 0 in rows.values():
            raise InvalidBody(f"inputs must share one batch size of at least 1; got {rows}")


def check_outputs(graph: Graph, wanted: Sequence[str]) -> tuple[str, ...]:
    """Raises `InvalidBody` for an output that the graph does not have."""
    known = [spec.name for spec in graph.outputs]
    for name in wanted:
        if name not in known:
            raise InvalidBody(f"unexpected inference output '{name}'; the model gives: {', '.join(known)}")
    return tuple(wanted)


def check_parameters(names: Sequence[str]) -> None:
    """Raises `InvalidBody` for a parameter of a reserved kind that nobody here understands."""
    for name in names:
        if name.startswith(_RESERVED):
            raise InvalidBody(f"parameter '{name}' is reserved and not supported")


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


def _check_input(spec: TensorSpec, tensor: Tensor) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidBody(f"input '{tensor.name}': datatype {tensor.datatype}, the model takes {spec.datatype}")
    num_elements(tensor.name, tensor.shape)
    fits = len(tensor.shape) == len(spec.shape) and all(
        expected in (-1, actual) for expected, actual in zip(spec.shape, tensor.shape, strict=True)
    )
    if not fits:
        raise InvalidBody(f"input '{tensor.name}': shape {list(tensor.shape)}, the model takes {spec.shape}")


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}
