"""What is asked: a model and the wire that its numbers travel on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CASES", "CONNECTIONS", "MANY", "MODELS", "NUM_BODIES", "Case", "Wire"]

Wire = Literal["json", "oip", "binary", "grpc", "image"]

MODELS = ("mlp", "mean", "resnet18")
"""Graphs with input `x` and output `y`. The fourth, `classifier`, is a bundle that Penstock trains and exports."""
CONNECTIONS = (1, 8, 32, 256)
MANY = 1024
"""Connections at which Penstock alone is measured, with the tiny model as JSON."""
NUM_BODIES = 8
"""Different requests of a case, each with its own answer, so that answers that were mixed up show."""


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    model: str
    wire: Wire
    """`json`: what each server's own users send; Open Inference Protocol where a server knows nothing else."""
    quick_up_to: int
    """Largest number of connections at which everybody answers in a small part of a second."""
    connections: tuple[int, ...] = CONNECTIONS
    """Unless others are asked for."""


_TENSOR = "1 x 3 x 224 x 224 into a graph that takes the means of its channels"
_RESNET = "ResNet-18 of a 1 x 3 x 224 x 224 tensor"
_EVERY = (
    Case("mlp-json", "Tiny model, JSON", "mlp", "json", quick_up_to=1024, connections=(*CONNECTIONS, MANY)),
    Case("mlp-oip", "Tiny model, Open Inference Protocol as JSON", "mlp", "oip", quick_up_to=1024),
    Case("mlp-grpc", "Tiny model, gRPC with raw tensors", "mlp", "grpc", quick_up_to=1024),
    Case("jpeg", "ResNet-18 of a JPEG of 30 kB", "classifier", "image", quick_up_to=0),
    Case("tensor-json", f"{_TENSOR}, JSON", "mean", "json", quick_up_to=0),
    Case("tensor-binary", f"{_TENSOR}, REST with binary tensors", "mean", "binary", quick_up_to=32),
    Case("tensor-grpc", f"{_TENSOR}, gRPC with raw tensors", "mean", "grpc", quick_up_to=32),
    Case("resnet-json", f"{_RESNET}, JSON", "resnet18", "json", quick_up_to=0, connections=(8,)),
    Case(
        "resnet-binary", f"{_RESNET}, REST with binary tensors", "resnet18", "binary", quick_up_to=0, connections=(8,)
    ),
    Case("resnet-grpc", f"{_RESNET}, gRPC with raw tensors", "resnet18", "grpc", quick_up_to=0, connections=(8,)),
)
CASES = {case.name: case for case in _EVERY}
