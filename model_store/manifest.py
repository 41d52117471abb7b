"""What a published model says of itself: the only thing that passes from the training side to the serving side."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from formats.errors import CorruptBundle
from formats.tensors import DATATYPES

__all__ = [
    "MANIFEST",
    "Batching",
    "Golden",
    "Graph",
    "Manifest",
    "Mode",
    "ParityCase",
    "StoredFile",
    "TensorSpec",
    "place_of",
    "read_manifest",
    "sha256_of",
    "write_manifest",
]

MANIFEST = "manifest.json"
MANIFEST_CHECKSUM = "manifest.sha256"

# A bundle is flat: TorchServe unpacks archives flat, and a name without a slash cannot leave its directory.
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=255)]
# The intersection of what SageMaker, TorchServe and the Open Inference Protocol can route.
ModelName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$")]
Version = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$")]
Device = Literal["cpu", "gpu"]


class _Frozen(BaseModel):
    # a metric may be NaN: JSON has no such number, and null would not read back
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class TensorSpec(_Frozen):
    """An input or output of a graph, batch axis included."""

    name: str
    datatype: str
    """Open Inference Protocol name: `FP32`, `INT64`, ..."""
    shape: list[Annotated[int, Field(ge=-1)]]
    """-1 for a dimension that may vary."""

    @field_validator("datatype")
    @classmethod
    def _known(cls, datatype: str) -> str:
        if datatype not in DATATYPES:
            raise ValueError(f"unknown datatype '{datatype}'; known: {', '.join(DATATYPES)}")
        return datatype


class Graph(_Frozen):
    """One computation, as ONNX and as TorchScript, with the same inputs and outputs in the same order."""

    onnx: FileName | None = None
    torchscript: FileName | None = None
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    batched: bool = True
    """The first axis of every input and output counts independent rows."""


class Batching(_Frozen):
    """Limits for the gateway's batcher."""

    max_batch_size: Annotated[int, Field(ge=1)] = 32
    """Requests."""
    max_batch_seconds: Annotated[float, Field(gt=0)] = 0.1
    """A batch stops growing where one call would take longer than this, by what recent calls took."""
    bucket_bytes: list[Annotated[int, Field(ge=1)]] = []
    """Upper bounds of body sizes, ascending: only requests within the same two bounds share a batch, for models that
    pad a batch to its longest member. Empty: any may share one."""

    @field_validator("bucket_bytes")
    @classmethod
    def _ascending(cls, bounds: list[int]) -> list[int]:
        if bounds != sorted(set(bounds)):
            raise ValueError(f"bounds must ascend, got {bounds}")
        return bounds


class Mode(_Frozen):
    """One way to ask the model: which graph answers, and where it should run."""

    graph: str
    placement: Annotated[list[Device], Field(min_length=1)]
    """Device classes in order of preference."""
    content_types: list[str]
    """Request media types; the tensor protocols are always possible."""
    accepts: list[str]
    """Response media types, the default first."""
    batching: Batching = Batching()


class Golden(_Frozen):
    """A request with its known answer: a model is ready when the pool that will serve it has reproduced it."""

    request: FileName
    content_type: str
    accept: str
    mode: str = ""
    response: FileName
    """The answer in the algorithm's JSON form."""
    tolerance: Annotated[float, Field(ge=0)]
    """Largest absolute difference of any number in the answer."""


class ParityCase(_Frozen):
    """How far the exported graphs stray from the eager model on one fixed input."""

    graph: str
    batch_size: int
    torchscript_max_abs_error: float
    onnx_max_abs_error: float


class StoredFile(_Frozen):
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: int


class Manifest(_Frozen):
    """See DESIGN of the bundle: everything serving needs to know, and nothing executable."""

    schema_version: Literal[1] = 1
    name: ModelName | Literal[""] = ""
    """Given at publish."""
    version: Version | Literal[""] = ""
    """Given at publish; immutable afterwards."""
    algorithm: str
    default_mode: str
    modes: dict[str, Mode]
    graphs: dict[str, Graph]
    golden: Golden | None = None
    hyperparameters: dict[str, str | int | float | bool | None] = {}
    settings: dict[str, str | int | float | bool | list[int] | list[str]] = {}
    """What the algorithm's handler needs beyond the graph, such as the image size."""
    metrics: dict[str, float] = {}
    parity_tolerance: float = 0.0
    parity: list[ParityCase] = []
    created: str = ""
    """ISO 8601, UTC."""
    files: dict[FileName, StoredFile] = {}
    """Every file of the bundle but the manifest and its checksum."""

    @model_validator(mode="after")
    def _names_what_it_holds(self) -> Manifest:
        if self.default_mode not in self.modes:
            raise ValueError(f"default_mode '{self.default_mode}' is none of the modes: {', '.join(self.modes)}")
        for name, mode in self.modes.items():
            if mode.graph not in self.graphs:
                raise ValueError(f"mode '{name}' runs graph '{mode.graph}', not one of: {', '.join(self.graphs)}")
        return self


def place_of(directory: Path) -> str:
    """How errors name a bundle, `name/version` in a store: clients read them, and the whole path is not for them."""
    return "/".join(directory.parts[-2:])


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` and the checksum that guards it."""
    text = manifest.model_dump_json(indent=2).encode() + b"\n"
    (directory / MANIFEST).write_bytes(text)
    (directory / MANIFEST_CHECKSUM).write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n")


def read_manifest(directory: Path) -> Manifest:
    """Read and check `manifest.json`.

    Raises:
        CorruptBundle: missing, a link, altered since it was written, or not a manifest.
    """
    place = place_of(directory)
    for name in (MANIFEST, MANIFEST_CHECKSUM):
        if (directory / name).is_symlink() or not (directory / name).is_file():  # to read a pipe would wait for ever
            raise CorruptBundle(f"{place}: {name} is missing or not a plain file")
    try:
        text = (directory / MANIFEST).read_bytes()
        guard = (directory / MANIFEST_CHECKSUM).read_bytes()
    except OSError as error:
        raise CorruptBundle(
            f"{place_of(directory)}: cannot read {Path(error.filename).name}: {error.strerror}"
        ) from error
    expected = f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n".encode()
    if guard != expected:
        raise CorruptBundle(
            f"{place_of(directory)}: {MANIFEST} does not match {MANIFEST_CHECKSUM}: one of the two was altered"
        )
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise CorruptBundle(f"{place}: {MANIFEST} is not a manifest: {_first(error)}") from error


def _first(error: ValidationError) -> str:
    detail = error.errors()[0]
    return re.sub(r"[^ -~]", "?", f"{'.'.join(map(str, detail['loc'])) or 'manifest'}: {detail['msg']}")
