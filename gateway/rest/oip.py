"""Open Inference Protocol v2 over REST, with the binary tensor data extension.

Facts: protocol contract, section 1. Never dispatched on Content-Type: tritonclient's synchronous client sends none.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import orjson

from formats.envelope import Outcome, Prediction, Tensor
from formats.errors import BackendFailed, InvalidBody, InvalidRequest, PenstockError
from formats.tensors import DATATYPES, array_of, num_elements
from gateway.rest.exchange import Reply, Request, Response, request_id
from gateway.rest.oip_known import Known, KnownRequests
from gateway.router import Deployment, Router
from gateway.status import RETRY_AFTER_S, http_status
from gateway.tensor_protocol import check_inputs, check_outputs, check_parameters, deadline_of, graph_of, mode_in
from gateway.timing import Timing

__all__ = ["error_response", "infer"]

_HEADER_LENGTH = b"inference-header-content-length"
_MAX_NESTING = 100
_FLOATS = {"FP16": "e", "FP32": "f", "FP64": "d"}
"""With their codes of `struct`, which packs a few numbers twice as fast as numpy."""
_NUMBERS = {int, float}
_NO_BYTES = memoryview(b"")
_JSON = [(b"content-type", b"application/json")]
_NO_PARAMETERS: dict[str, Any] = {}
_INTEGER_RANGES = {name: np.iinfo(dtype) for name, dtype in DATATYPES.items() if dtype.kind in "iu"}


def infer(request: Request, router: Router, timeout_s: float, reply: Reply) -> None:
    """`POST /v2/models/{model}[/versions/{version}]/infer`."""
    asked = _asked(request)
    deployment = router.deployment(asked.name, asked.version)
    request.endpoint = deployment.manifest.name
    found = _known(asked, request.body)
    if found is not None:
        _infer_known(request, timeout_s, reply, asked, deployment, *found)
        return
    header, binary = _split(request.body, asked.json_size)
    if header is None:
        header, tensors = {}, [_raw_input(deployment, binary)]
    else:
        tensors = _inputs(header, binary)
    parameters = _parameters(header, "the request")
    deployment = router.in_mode(deployment, mode_in(parameters))
    graph = graph_of(deployment)
    check_inputs(graph, tensors)
    wanted, as_binary = _wanted(header, parameters, default=not header)
    identifier = _string(header, "id")
    prediction = Prediction(
        model=deployment.manifest.name,
        version=deployment.manifest.version,
        mode=deployment.mode,
        tensors=tuple(tensors),
        outputs=check_outputs(graph, wanted) if wanted else (),
        checked=True,
        deadline=deadline_of(request.received, timeout_s, parameters.get("timeout")),
        request_id=identifier or request_id(request),
        traceparent=asked.traceparent,
    )
    if header:
        length = len(request.body) - len(binary) if asked.json_size else 0
        asked.known.remember(request.body, length, header, lambda: Known(tensors, wanted, as_binary))

    def deliver(outcome: Outcome, timing: Timing | None) -> None:
        try:
            reply(_answer(asked.name, deployment, identifier, outcome, as_binary), timing)
        except PenstockError as error:
            reply(error_response(error), timing)

    deployment.submit(prediction, deliver)


def _known(asked: _Asked, body: bytes) -> tuple[Known, tuple[Tensor, ...]] | None:
    """What is known of a request that repeats another one, and its tensors."""
    if asked.json_size:
        return asked.known.find_whole(body, asked.json_length) if asked.json_length else None
    found = asked.known.find_open(body)
    if found is None:
        return None
    known, numbers = found
    ((name, datatype, shape),) = known.described
    raw = _numbers(name, datatype, numbers)
    tensor = Tensor(name, datatype, shape, raw)
    return known, (_counted(tensor, len(raw) // DATATYPES[datatype].itemsize, known.count),)


def _infer_known(
    request: Request,
    timeout_s: float,
    reply: Reply,
    asked: _Asked,
    deployment: Deployment,
    known: Known,
    tensors: tuple[Tensor, ...],
) -> None:
    """As `infer` goes on, with what says the same each time looked at once."""
    prediction = Prediction(
        model=deployment.manifest.name,
        version=deployment.manifest.version,
        mode=deployment.mode,
        tensors=tensors,
        outputs=known.outputs_of(graph_of(deployment), tensors),
        checked=True,
        deadline=request.received + timeout_s,
        request_id=request_id(request),
        traceparent=asked.traceparent,
    )

    def deliver(outcome: Outcome, timing: Timing | None) -> None:
        try:
            response = _answer_known(asked.name, deployment, outcome, known)
        except PenstockError as error:
            response = error_response(error)
        reply(response, timing)

    deployment.submit(prediction, deliver)


def _answer_known(name: str, deployment: Deployment, outcome: Outcome, known: Known) -> Response:
    tensors = outcome.tensors
    if tensors and not any(known.as_binary.values()) and not any(each.datatype == "BYTES" for each in tensors):
        text = known.answer(name, deployment.manifest.version, tensors)
        if b"null" not in text:
            return Response(200, _JSON, text)
    return _answer(name, deployment, "", outcome, known.as_binary)


def error_response(error: PenstockError) -> Response:
    """`{"error": text}`: exactly this key, or tritonclient fails while it decodes the failure (section 1.4)."""
    status = http_status(error)
    headers = [(b"content-type", b"application/json")]
    if status == 503:
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
    return Response(status, headers, orjson.dumps({"error": str(error)}))


class _Asked:
    """What path and headers say."""

    __slots__ = ("json_length", "json_size", "known", "name", "traceparent", "version")

    def __init__(self, request: Request) -> None:
        parts = request.path.split("/")
        self.name = parts[3]
        self.version = parts[5] if parts[4] == "versions" else ""
        self.traceparent = request.header(b"traceparent")
        self.json_size = request.header(_HEADER_LENGTH)
        """As it is written; empty if all is JSON."""
        self.json_length = int(self.json_size) if _is_length(self.json_size) else 0
        self.known = KnownRequests()


def _asked(request: Request) -> _Asked:
    """Read once for all requests that repeat them."""
    asked: _Asked | None = request.head.asked
    if asked is None:
        asked = request.head.asked = _Asked(request)
    return asked


def _is_length(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 20


def _split(sent: bytes, text: str) -> tuple[dict[str, Any] | None, memoryview]:
    """The JSON part, `text` bytes of it, and the tensors behind; no JSON at all for a raw binary request."""
    if not text:
        return _load_json(sent), _NO_BYTES
    body = memoryview(sent)
    if not _is_length(text) or int(text) > len(body):
        raise InvalidBody(f"Inference-Header-Content-Length {text!r} must be a number from 0 to {len(body)}")
    length = int(text)
    return (_load_json(sent[:length]) if length else None), body[length:]


def _load_json(text: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except ValueError as error:
        value = _load_non_finite(text, error)
    if not isinstance(value, dict):
        raise InvalidBody(f"the request must be a JSON object, not {type(value).__name__}")
    return value


def _load_non_finite(text: bytes, error: ValueError) -> Any:
    """Once more for the bare tokens NaN and Infinity, which clients write and standard JSON forbids."""
    failure = InvalidBody(f"the request is not JSON: {error}")
    if b"NaN" not in text and b"Infinity" not in text:
        raise failure from error
    try:
        value = json.loads(text)
        orjson.dumps(value)  # as strict with the rest as for everybody: no lone surrogates, no numbers beyond 64 bits
    except (ValueError, TypeError, RecursionError) as again:
        raise failure from again
    return value


def _raw_input(deployment: Deployment, binary: memoryview) -> Tensor:
    """A body that is nothing but the tensor of a model with one input (section 1.5), as one row."""
    inputs = graph_of(deployment).inputs
    if len(inputs) != 1:
        raise InvalidBody(f"a raw binary request needs a model with exactly one input; this one has {len(inputs)}")
    spec = inputs[0]
    if spec.datatype == "BYTES":
        return Tensor(spec.name, "BYTES", (1,), struct.pack("<I", len(binary)) + bytes(binary))
    shape = [1 if axis == 0 and dimension == -1 else dimension for axis, dimension in enumerate(spec.shape)]
    if shape.count(-1) > 1:
        raise InvalidBody(f"a raw binary request needs at most one variable dimension; the model takes {spec.shape}")
    if -1 in shape:
        known = math.prod(d for d in shape if d != -1) * DATATYPES[spec.datatype].itemsize
        if not known or len(binary) % known:
            raise InvalidBody(f"unexpected size {len(binary)} for input '{spec.name}' of shape {spec.shape}")
        shape[shape.index(-1)] = len(binary) // known
    return _sized(Tensor(spec.name, spec.datatype, tuple(shape), binary))


def _inputs(header: Mapping[str, Any], binary: memoryview) -> list[Tensor]:
    inputs = header.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise InvalidBody("'inputs' must be a list of at least one tensor")
    tensors, at = [], 0
    for index, each in enumerate(inputs):
        if not isinstance(each, dict):
            raise InvalidBody(f"inputs[{index}] must be an object")
        size = None
        if "parameters" in each:
            size = _parameters(each, f"inputs[{index}]").get("binary_data_size")
        if size is None:
            tensors.append(_json_tensor(each, index))
            continue
        if type(size) is not int or size < 0 or at + size > len(binary):
            raise InvalidBody(f"inputs[{index}]: unexpected size {size} for input; {len(binary) - at} bytes are left")
        if "data" in each:
            raise InvalidBody(f"inputs[{index}] has both 'data' and 'binary_data_size'")
        tensors.append(_sized(Tensor(*_described(each, index)[:3], binary[at : at + size])))
        at += size
    if at != len(binary):
        raise InvalidBody(f"unexpected additional input data: {len(binary) - at} bytes behind the last input")
    return tensors


def _described(tensor: Mapping[str, Any], index: int) -> tuple[str, str, tuple[int, ...], int]:
    """Name, datatype, shape, and how many elements that is."""
    name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    if not isinstance(name, str) or not name:
        raise InvalidBody(f"inputs[{index}].name must be a string, got {name!r}")
    if datatype not in DATATYPES:
        raise InvalidBody(f"input '{name}': datatype {datatype!r} is none of {', '.join(DATATYPES)}")
    if not isinstance(shape, list):
        raise InvalidBody(f"input '{name}': shape must be a list of integers, got {shape!r}")
    return name, datatype, tuple(shape), num_elements(name, shape)


def _sized(tensor: Tensor) -> Tensor:
    """Reject a tensor whose bytes are not exactly its elements."""
    array_of(tensor)
    return tensor


def _json_tensor(tensor: Mapping[str, Any], index: int) -> Tensor:
    name, datatype, shape, count = _described(tensor, index)
    data = tensor.get("data")
    if not isinstance(data, list):
        raise InvalidBody(f"input '{name}': data must be a list, or parameters.binary_data_size be given")
    if datatype == "BYTES":
        elements = [_text(name, value).encode() for value in _flatten(name, data)]
        raw = b"".join(struct.pack("<I", len(element)) + element for element in elements)
        return _counted(Tensor(name, datatype, shape, raw), len(elements), count)
    raw = _numbers(name, datatype, data)
    return _counted(Tensor(name, datatype, shape, raw), len(raw) // DATATYPES[datatype].itemsize, count)


def _counted(tensor: Tensor, found: int, count: int) -> Tensor:
    if found != count:
        raise InvalidBody(f"input '{tensor.name}': {found} elements in data, shape {list(tensor.shape)} has {count}")
    return tensor


def _numbers(name: str, datatype: str, data: list[Any]) -> bytes:
    """Nested or flat JSON numbers as elements of the declared type; nothing is truncated silently."""
    flat, kinds = data, set(map(type, data))
    if list in kinds:
        flat = list(_flatten(name, data))
        kinds = set(map(type, flat))
    dtype = DATATYPES[datatype]
    if datatype == "BOOL":
        if not kinds <= {bool} and not all(value in (0, 1) for value in flat):
            raise InvalidBody(f"input '{name}': BOOL data must be true or false")
        return np.array(flat, dtype).tobytes()
    if datatype in _FLOATS:
        if not kinds <= _NUMBERS:
            raise InvalidBody(f"input '{name}': {datatype} data must be numbers, found {_names(kinds - _NUMBERS)}")
        try:
            return struct.pack(f"<{len(flat)}{_FLOATS[datatype]}", *flat)
        except OverflowError:  # too large for the type: infinity, as a cast makes it
            with np.errstate(over="ignore"):
                return np.array(flat, np.float64).astype(dtype).tobytes()
    if not kinds <= {int}:
        raise InvalidBody(f"input '{name}': {datatype} data must be integers, found {_names(kinds - {int})}")
    limits = _INTEGER_RANGES[datatype]
    if flat and (min(flat) < limits.min or max(flat) > limits.max):
        worst = min(flat) if min(flat) < limits.min else max(flat)
        raise InvalidBody(f"input '{name}': {worst} is outside {datatype} ({limits.min} to {limits.max})")
    return np.array(flat, dtype).tobytes()


def _flatten(name: str, data: list[Any], depth: int = 1) -> Iterable[Any]:
    if depth > _MAX_NESTING:
        raise InvalidBody(f"input '{name}': data is nested more than {_MAX_NESTING} deep")
    for value in data:
        if isinstance(value, list):
            yield from _flatten(name, value, depth + 1)
        else:
            yield value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidBody(f"input '{name}': BYTES data must be strings, found {type(value).__name__}")
    return value


def _names(kinds: Iterable[type]) -> str:
    return ", ".join(sorted("null" if kind is type(None) else kind.__name__ for kind in kinds))


def _parameters(owner: Mapping[str, Any], label: str) -> dict[str, Any]:
    parameters = owner.get("parameters", _NO_PARAMETERS)
    if parameters is _NO_PARAMETERS:
        return parameters
    if not isinstance(parameters, dict):
        raise InvalidBody(f"parameters of {label} must be an object")
    for name, value in parameters.items():
        if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
            raise InvalidBody(f"parameter '{name}' of {label} must be a string, a finite number or a boolean")
    check_parameters(list(parameters))
    return parameters


def _wanted(
    header: Mapping[str, Any], parameters: Mapping[str, Any], *, default: bool
) -> tuple[list[str], dict[str, bool]]:
    """Names of the outputs asked for (none for all), and which go out as binary; key '' holds the default."""
    outputs = header.get("outputs") or []
    if not outputs and not parameters:
        return [], {"": default}
    if not isinstance(outputs, list):
        raise InvalidBody("'outputs' must be a list")
    names, as_binary = [], {"": bool(parameters.get("binary_data_output", default))}
    for index, output in enumerate(outputs):
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise InvalidBody(f"outputs[{index}] must be an object with a name")
        own = _parameters(output, f"outputs[{index}]")
        if own.get("classification"):
            raise InvalidRequest(f"outputs[{index}]: the classification extension is not offered")
        names.append(output["name"])
        if "binary_data" in own:
            as_binary[output["name"]] = bool(own["binary_data"])
    return names, as_binary


def _string(owner: Mapping[str, Any], name: str) -> str:
    value = owner.get(name, "")
    if not isinstance(value, str):
        raise InvalidBody(f"'{name}' must be a string, got {value!r}")
    return value


def _answer(
    name: str, deployment: Deployment, identifier: str, outcome: Outcome, as_binary: Mapping[str, bool]
) -> Response:
    if not outcome.ok:
        return error_response(outcome.error())
    outputs, binary = [], []
    for tensor in outcome.tensors or ():
        described: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if as_binary.get(tensor.name, as_binary[""]):
            described["parameters"] = {"binary_data_size": len(tensor.data)}
            binary.append(tensor.data)
        else:
            described["data"] = _json_data(tensor)
        outputs.append(described)
    answer = {"model_name": name, "model_version": deployment.manifest.version, "outputs": outputs}
    if identifier:
        answer["id"] = identifier
    text = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in text:  # what is no number is written so
        _refuse_non_finite(outputs)
    if not binary:
        return Response(200, _JSON, text)
    headers = [(b"content-type", b"application/octet-stream"), (_HEADER_LENGTH, b"%d" % len(text))]
    return Response(200, headers, b"".join((text, *binary)))


def _json_data(tensor: Tensor) -> Any:
    if tensor.datatype == "BYTES":
        return [element.decode("utf-8", "replace") for element in array_of(tensor).ravel()]
    flat = np.frombuffer(tensor.data, DATATYPES[tensor.datatype])
    return flat.astype(np.float32) if tensor.datatype == "FP16" else flat


def _refuse_non_finite(outputs: list[dict[str, Any]]) -> None:
    for output in outputs:
        if output["datatype"] in _FLOATS and "data" in output and not np.isfinite(output["data"]).all():
            raise BackendFailed(f"output '{output['name']}' contains non-finite values; request binary_data")
