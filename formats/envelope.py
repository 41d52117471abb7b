"""The internal request and its answer: every protocol translates into and out of these two types.

A `Prediction` carries either `body` (an algorithm's own request format) or `tensors` (the graph's own inputs, as the
tensor protocols send them). Nothing else travels between protocols, batcher, backends and handlers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from formats.errors import PenstockError, code_of, error_from_code

__all__ = ["Outcome", "Prediction", "Stages", "Tensor"]


class Tensor(NamedTuple):
    """A named array on the wire: row-major, little-endian (Open Inference Protocol v2, binary tensor data)."""

    name: str
    datatype: str
    """`FP32`, `INT64`, `BYTES`, ...: see `formats.tensors.DATATYPES`."""
    shape: tuple[int, ...]
    data: bytes | memoryview
    """Exactly product(shape) elements; `BYTES` elements are each preceded by their length (uint32)."""


class Stages(NamedTuple):
    """Seconds that a handler spent on one batch, by what it did."""

    pre: float
    """Bodies to arrays, and arrays to one batch."""
    graph: float
    post: float
    """Rows to response bodies."""


@dataclass(slots=True)
class Prediction:
    """One request for one answer, whatever protocol it came by."""

    model: str
    version: str
    body: bytes = b""
    content_type: str = ""
    """Media type as sent, parameters included; empty when the client sent none."""
    accept: str = ""
    mode: str = ""
    """Which of the model's graphs to run; empty for its default mode."""
    tensors: tuple[Tensor, ...] | None = None
    outputs: tuple[str, ...] = ()
    """Names of the wanted output tensors, in order; empty for all. Only with `tensors`."""
    checked: bool = False
    """This process has held `tensors` and `outputs` against the graph's signature. Does not travel."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Protocol extras that a handler may read, such as custom attributes."""
    deadline: float = float("inf")
    """`time.monotonic()` second after which nobody waits for the answer."""
    request_id: str = ""
    traceparent: str = ""


@dataclass(slots=True)
class Outcome:
    """What became of one `Prediction`: an answer, or the name and text of one error."""

    body: bytes = b""
    content_type: str = ""
    tensors: tuple[Tensor, ...] | None = None
    error_code: str = ""
    """Empty for success, else the class name of a leaf of `PenstockError`."""
    error_message: str = ""
    version: str = ""
    """The model version that answered."""
    stages: Stages | None = field(default=None, compare=False)
    """Of the whole batch that this was answered in, shared by its neighbours."""

    @classmethod
    def of_error(cls, error: PenstockError) -> Outcome:
        return cls(error_code=code_of(error), error_message=str(error))

    @property
    def ok(self) -> bool:
        return not self.error_code

    def error(self) -> PenstockError:
        """The error to raise or map; only meaningful when not `ok`."""
        return error_from_code(self.error_code, self.error_message)
