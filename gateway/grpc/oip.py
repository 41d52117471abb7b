"""Open Inference Protocol v2 over gRPC (protocol contract, section 2)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from formats.envelope import Outcome, Prediction, Tensor
from formats.errors import InvalidBody, InvalidRequest
from formats.protos import open_inference_pb2 as pb
from formats.tensors import DATATYPES, array_of, num_elements
from gateway.grpc.oip_known import Known, KnownRequests, response_head
from gateway.grpc.service import Context, PredictionMethod, unary
from gateway.readiness import Readiness
from gateway.router import Deployment, Router
from gateway.tensor_protocol import (
    check_inputs,
    check_outputs,
    check_parameters,
    deadline_of,
    graph_of,
    mode_in,
    model_metadata,
    server_metadata,
)

__all__ = ["SERVICE", "handlers", "prediction_methods"]

SERVICE = "inference.GRPCInferenceService"

_FIELDS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_MAX_TENSORS = 1024
"""A few megabytes of empty messages would unfold to hundreds."""
_LONG = 16_384
"""Bytes of a message from which on it pays to look for the tensors that need no copy."""
_MAX_FIELDS = 64
_RAW_TAG = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER << 3 | 2


class _Request(NamedTuple):
    """A message and its raw tensors, which in a long one stay where they came."""

    message: pb.ModelInferRequest
    raw: Sequence[bytes | memoryview]
    data: bytes | bytearray
    """Both, as they came."""
    known: tuple[Known, tuple[Tensor, ...]] | None = None


def handlers(router: Router, readiness: Readiness) -> dict[str, Any]:
    """The methods that do not predict, by name."""

    async def server_live(_: pb.ServerLiveRequest, __: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(_: pb.ServerReadyRequest, __: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=readiness.ready)

    async def model_ready(request: pb.ModelReadyRequest, _: Context) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=router.deployment(request.name, request.version).ready)

    async def about_server(_: pb.ServerMetadataRequest, __: Context) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(**server_metadata())

    async def about_model(request: pb.ModelMetadataRequest, _: Context) -> pb.ModelMetadataResponse:
        metadata = model_metadata(router.deployment(request.name, request.version), router)
        return pb.ModelMetadataResponse(**{**metadata, "name": request.name})

    return {
        "ServerLive": unary(pb.ServerLiveRequest, server_live),
        "ServerReady": unary(pb.ServerReadyRequest, server_ready),
        "ModelReady": unary(pb.ModelReadyRequest, model_ready),
        "ServerMetadata": unary(pb.ServerMetadataRequest, about_server),
        "ModelMetadata": unary(pb.ModelMetadataRequest, about_model),
    }


def prediction_methods(router: Router) -> dict[str, PredictionMethod]:
    """The methods that predict, by name."""
    requests = KnownRequests()

    def parse(data: bytes | bytearray) -> _Request:
        found = requests.find(data)
        return _parse(data) if found is None else _Request(found[0].message, (), data, found)

    def prepare(request: _Request, received: float, limit_s: float) -> tuple[Deployment, Prediction]:
        if request.known is not None:
            return _prepare_known(*request.known, router, received + limit_s)
        deployment, prediction = _prepare(request, router, received, limit_s)
        if request.raw and prediction.tensors:
            requests.remember(request.data, request.message, prediction.tensors)
        return deployment, prediction

    return {"ModelInfer": PredictionMethod("oip-grpc", pb.ModelInferRequest, parse, prepare, _answer)}


def _parse(data: bytes | bytearray) -> _Request:
    """Raises as `FromString` does."""
    found = _split(data) if len(data) >= _LONG else None
    if found is not None:
        rest, raw = found
        return _Request(pb.ModelInferRequest.FromString(rest), raw, data)
    message = pb.ModelInferRequest.FromString(cast("bytes", data))  # a bytearray does
    return _Request(message, message.raw_input_contents, data)


def _split(data: bytes | bytearray) -> tuple[bytes, list[memoryview]] | None:
    """What protobuf is to parse, and views of the raw tensors, which it would copy twice.

    None when the fields do not look as serializers write them, or are many: then protobuf has to say what they mean.
    """
    whole, end, at = memoryview(data).toreadonly(), len(data), 0
    rest: list[memoryview] = []
    raw: list[memoryview] = []
    while at < end:
        begin, length, shift, byte = at, 0, 0, 0x80
        while byte & 0x80:
            at += 1
            if at == end or shift > 28:
                return None
            byte = data[at]
            length |= (byte & 0x7F) << shift
            shift += 7
        at += 1
        stop = at + length
        # a tag of one byte, for a field that has a length
        if data[begin] & 0x87 != 2 or stop > end or len(rest) + len(raw) >= _MAX_FIELDS:
            return None
        if data[begin] == _RAW_TAG:
            raw.append(whole[at:stop])
        else:
            rest.append(whole[begin:stop])
        at = stop
    return b"".join(rest), raw


def _prepare(parsed: _Request, router: Router, received: float, limit_s: float) -> tuple[Deployment, Prediction]:
    request = parsed.message
    deployment = router.deployment(request.model_name, request.model_version)
    tensors = _inputs(request, parsed.raw)
    parameters = _parameters(request.parameters)
    deployment = router.in_mode(deployment, mode_in(parameters))
    graph = graph_of(deployment)
    check_inputs(graph, tensors)
    prediction = Prediction(
        model=deployment.manifest.name,
        version=deployment.manifest.version,
        mode=deployment.mode,
        tensors=tuple(tensors),
        outputs=check_outputs(graph, _wanted(request)),
        checked=True,
        deadline=deadline_of(received, limit_s, parameters.get("timeout")),
        request_id=request.id,
    )
    return deployment, prediction


def _prepare_known(
    known: Known, tensors: tuple[Tensor, ...], router: Router, deadline: float
) -> tuple[Deployment, Prediction]:
    """As `_prepare`, of what was prepared before and has neither parameters nor an id."""
    message = known.message
    deployment = router.deployment(message.model_name, message.model_version)
    prediction = Prediction(
        model=deployment.manifest.name,
        version=deployment.manifest.version,
        mode=deployment.mode,
        tensors=tensors,
        outputs=known.outputs_of(graph_of(deployment), tensors),
        checked=True,
        deadline=deadline,
    )
    return deployment, prediction


def _answer(parsed: _Request, deployment: Deployment, outcome: Outcome) -> bytes:
    """Always raw: tritonclient cannot read typed numbers."""
    outputs, version = outcome.tensors or (), deployment.manifest.version
    if parsed.known is not None:
        return parsed.known[0].answer(version, outputs)
    response = response_head(parsed.message, version, outputs)
    response.raw_output_contents.extend(bytes(tensor.data) for tensor in outputs)
    return response.SerializeToString()


def _inputs(request: pb.ModelInferRequest, raw: Sequence[bytes | memoryview]) -> list[Tensor]:
    if max(len(request.inputs), len(request.outputs), len(request.parameters), len(raw)) > _MAX_TENSORS:
        raise InvalidBody(f"a request may hold {_MAX_TENSORS} inputs, outputs and parameters each")
    if not raw:
        return [_typed(tensor) for tensor in request.inputs]
    if len(raw) != len(request.inputs):
        raise InvalidBody(
            f"unable to find data for input tensor: {len(request.inputs)} inputs, {len(raw)} raw_input_contents"
        )
    tensors = []
    for described, data in zip(request.inputs, raw, strict=True):
        if described.HasField("contents"):
            raise InvalidBody(f"input '{described.name}' has contents although raw_input_contents are given")
        tensor = Tensor(described.name, described.datatype, tuple(described.shape), data)
        array_of(tensor)
        tensors.append(tensor)
    return tensors


def _typed(tensor: pb.ModelInferRequest.InferInputTensor) -> Tensor:
    """A tensor whose elements ride in the typed field that belongs to its datatype."""
    name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
    field = _FIELDS.get(datatype)
    if field is None:
        raise InvalidBody(f"input '{name}': datatype '{datatype}' is unknown or only possible in raw_input_contents")
    filled = [descriptor.name for descriptor, _ in tensor.contents.ListFields()]
    if filled not in ([field], []):
        raise InvalidBody(f"input '{name}': {datatype} rides in {field}, found {', '.join(filled)}")
    values = getattr(tensor.contents, field)
    count = num_elements(name, shape)
    if len(values) != count:
        raise InvalidBody(f"input '{name}': {len(values)} elements in contents, shape {list(shape)} has {count}")
    if datatype == "BYTES":
        return Tensor(name, datatype, shape, b"".join(struct.pack("<I", len(v)) + v for v in values))
    dtype = DATATYPES[datatype]
    # left to itself, numpy takes floats for a mix of small and very large unsigned numbers
    array = np.array(values, np.uint64 if field == "uint64_contents" else np.int64 if dtype.kind in "iu" else None)
    if dtype.kind in "iu" and len(values):
        limits = np.iinfo(dtype)
        if array.min() < limits.min or array.max() > limits.max:
            raise InvalidBody(f"input '{name}': a value is outside {datatype} ({limits.min} to {limits.max})")
    return Tensor(name, datatype, shape, array.astype(dtype).tobytes())


def _parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    check_parameters(list(parameters))
    values = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        values[name] = getattr(parameter, kind) if kind else None
    return values


def _wanted(request: pb.ModelInferRequest) -> list[str]:
    for output in request.outputs:
        if "classification" in output.parameters:
            raise InvalidRequest(f"output '{output.name}': the classification extension is not offered")
    return [output.name for output in request.outputs]
