"""One request per case and kind of peer, and how its answer is read: the same numbers in, the same numbers out."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import grpc
import numpy as np

from formats.protos import open_inference_pb2, torchserve_pb2
from loadtests.bench.cases import Case

__all__ = ["FRAME_SUFFIX", "Dialect", "Request", "ask", "build"]

Array = np.ndarray[Any, np.dtype[Any]]
Headers = Mapping[str, str]
Dialect = Literal["bare", "open_inference", "penstock", "torchserve"]
"""Who is asked: a server of one model without protocol, one of the Open Inference Protocol alone, or the two others."""

FRAME_SUFFIX = ".frame"
"""Beside the file of a gRPC message lies the same message with the prefix that it has on the wire."""
_TOLERANCE = 1e-3
_RAW = {"Content-Type": "application/octet-stream"}
_JSON = {"Content-Type": "application/json"}
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(frozen=True)
class Request:
    path: str
    """Of HTTP, or gRPC's full name of the method."""
    headers: Headers
    body_file: Path
    """The body or message, where a load generator of another language can read it."""
    expected: Array
    read: Callable[[bytes, Headers], Array]
    """Body and lower-case headers of an answer to its numbers."""
    quick_up_to: int
    """As of its case."""
    is_grpc: bool = False


def build(directory: Path, case: Case, dialect: Dialect) -> Request:
    """What a user of such a server would send; its body is written into `directory`."""
    if case.wire == "grpc":
        made = _torchserve_call(directory, case) if dialect == "torchserve" else _open_inference_call(directory, case)
    elif case.wire == "image":
        made = _Made(_path(dialect, case), {"Content-Type": "image/jpeg"}, _image(directory), _list_of)
    elif case.wire == "binary" and dialect in {"penstock", "open_inference"}:
        made = _binary(directory, case)
    elif case.wire == "binary":
        made = _Made(_path(dialect, case), _RAW, _x(directory, case).tobytes(), _floats_of)
    elif case.wire == "oip" or dialect == "open_inference":
        path = _path(dialect, case) if dialect == "bare" else f"/v2/models/{case.model}/infer"
        made = _Made(path, _JSON, _open_inference_json(directory, case), _outputs_of)
    else:
        body = json.dumps({"x": _numbers(directory, case)}).encode()
        made = _Made(_path(dialect, case), _JSON, body, lambda body, _: np.array(json.loads(body)["y"]))
    return made.request(directory, case, dialect)


@dataclass(frozen=True)
class _Made:
    path: str
    headers: Headers
    body: bytes
    read: Callable[[bytes, Headers], Array]

    def request(self, directory: Path, case: Case, dialect: Dialect) -> Request:
        body_file = directory / f"{case.name}.{dialect}.body"
        body_file.write_bytes(self.body)
        is_grpc = case.wire == "grpc"
        if is_grpc:
            frame = b"\0" + len(self.body).to_bytes(4, "big") + self.body
            body_file.with_suffix(FRAME_SUFFIX).write_bytes(frame)
        expected = np.load(directory / f"{case.model}.y.npy")
        return Request(self.path, self.headers, body_file, expected, self.read, case.quick_up_to, is_grpc)


def ask(port: int, request: Request) -> int:
    """Send it once and hold the answer against what torch computed.

    Returns:
        The size of the answer's body or message in bytes.

    Raises:
        OSError, http.client.HTTPException, grpc.RpcError: nobody answers, or a call failed.
        ValueError: the answer has another status, or other numbers.
    """
    body, headers = (_call if request.is_grpc else _post)(port, request)
    found = request.read(body, headers)
    if found.shape != request.expected.shape or not np.allclose(found, request.expected, _TOLERANCE, _TOLERANCE):
        raise ValueError(f"{request.path}: answered {found.ravel()[:4]}, expected {request.expected.ravel()[:4]}")
    return len(body)


def _post(port: int, request: Request) -> tuple[bytes, Headers]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", request.path, request.body_file.read_bytes(), dict(request.headers))
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise ValueError(f"POST {request.path}: status {answer.status}, {body[:300]!r}")
    return body, {name.lower(): value for name, value in answer.getheaders()}


def _call(port: int, request: Request) -> tuple[bytes, Headers]:
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=_UNLIMITED) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(request.path)
        return call(request.body_file.read_bytes(), timeout=60), {}


def _path(dialect: Dialect, case: Case) -> str:
    paths = {"penstock": f"/endpoints/{case.model}/invocations", "torchserve": f"/predictions/{case.model}"}
    return paths.get(dialect, "/predict")


def _x(directory: Path, case: Case) -> Array:
    x: Array = np.load(directory / f"{case.model}.x.npy")
    return x


def _numbers(directory: Path, case: Case) -> Any:
    """As nested lists of few digits, as in people's JSON."""
    return np.round(_x(directory, case).astype(np.float64), 4).tolist()


def _image(directory: Path) -> bytes:
    return (directory / "classifier.jpg").read_bytes()


def _open_inference_json(directory: Path, case: Case) -> bytes:
    x = _x(directory, case)
    data = np.round(x.astype(np.float64), 4).ravel().tolist()
    return json.dumps({"inputs": [{"name": "x", "shape": x.shape, "datatype": "FP32", "data": data}]}).encode()


def _binary(directory: Path, case: Case) -> _Made:
    x = _x(directory, case)
    tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {**_RAW, "Inference-Header-Content-Length": str(len(header))}
    return _Made(f"/v2/models/{case.model}/infer", headers, header + x.tobytes(), _binary_of)


def _open_inference_call(directory: Path, case: Case) -> _Made:
    x = _x(directory, case)
    message = open_inference_pb2.ModelInferRequest(model_name=case.model, raw_input_contents=[x.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return _Made("/inference.GRPCInferenceService/ModelInfer", {}, message.SerializeToString(), _inferred_of)


def _torchserve_call(directory: Path, case: Case) -> _Made:
    message = torchserve_pb2.PredictionsRequest(model_name=case.model, input={"body": _x(directory, case).tobytes()})
    path = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
    return _Made(path, {}, message.SerializeToString(), _predicted_of)


def _list_of(body: bytes, _: Headers) -> Array:
    return np.array(json.loads(body))


def _outputs_of(body: bytes, _: Headers) -> Array:
    (output,) = json.loads(body)["outputs"]
    return np.array(output["data"]).reshape(output["shape"])


def _binary_of(body: bytes, headers: Headers) -> Array:
    return _floats(body[int(headers["inference-header-content-length"]) :])


def _floats_of(body: bytes, _: Headers) -> Array:
    return _floats(body)


def _inferred_of(body: bytes, _: Headers) -> Array:
    return _floats(open_inference_pb2.ModelInferResponse.FromString(body).raw_output_contents[0])


def _predicted_of(body: bytes, _: Headers) -> Array:
    return _floats(torchserve_pb2.PredictionResponse.FromString(body).prediction)


def _floats(raw: bytes) -> Array:
    return np.frombuffer(raw, np.float32).reshape(1, -1)
