"""Tensors held against a graph's signature, wherever they come in: at the front door and in a worker."""

from __future__ import annotations

from collections.abc import Sequence

from formats.envelope import Tensor
from formats.errors import InvalidBody
from model_store.manifest import Graph, TensorSpec

__all__ = ["check_inputs", "check_outputs"]


def check_inputs(graph: Graph, tensors: Sequence[Tensor]) -> None:
    """Hold the sent tensors against the graph's signature, before they meet anybody else's in a batch.

    Whether a tensor's bytes are as many as its shape says is for `formats.tensors.array_of`.

    Raises:
        InvalidBody: names the input, what was sent, and what was expected.
    """
    specs = graph.inputs
    if len(tensors) == len(specs) == 1 and tensors[0].name == specs[0].name:  # nearly always
        _check_input(specs[0], tensors[0])
        if not graph.batched or tensors[0].shape[0]:
            return
    for spec, tensor in _paired(graph, tensors):
        _check_input(spec, tensor)
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


def _paired(graph: Graph, tensors: Sequence[Tensor]) -> list[tuple[TensorSpec, Tensor]]:
    sent = [tensor.name for tensor in tensors]
    if len(set(sent)) != len(sent):
        raise InvalidBody(f"inputs {sent} hold a name twice")
    specs = {spec.name: spec for spec in graph.inputs}
    pairs = []
    for tensor in tensors:
        spec = specs.pop(tensor.name, None)
        if spec is None:
            known = ", ".join(each.name for each in graph.inputs)
            raise InvalidBody(f"unexpected inference input '{tensor.name}'; the model takes: {known}")
        pairs.append((spec, tensor))
    if specs:
        raise InvalidBody(f"expected {len(graph.inputs)} inputs but got {len(sent)}; missing: {', '.join(specs)}")
    return pairs


def _check_input(spec: TensorSpec, tensor: Tensor) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidBody(f"input '{tensor.name}': datatype {tensor.datatype}, the model takes {spec.datatype}")
    fits = len(tensor.shape) == len(spec.shape)
    for expected, actual in zip(spec.shape, tensor.shape, strict=False):
        fits = fits and expected in (-1, actual)
    if not fits:
        raise InvalidBody(f"input '{tensor.name}': shape {list(tensor.shape)}, the model takes {spec.shape}")
