"""The requests of each case and kind of peer, and how their answers are read: the same numbers in, the same out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from formats.protos import open_inference_pb2, torchserve_pb2
from loadtests.bench.cases import NUM_BODIES, Case

__all__ = ["FRAME_SUFFIX", "Array", "Dialect", "Headers", "Request", "build"]

Array = np.ndarray[Any, np.dtype[Any]]
Headers = Mapping[str, str]
Dialect = Literal["bare", "open_inference", "penstock", "torchserve"]
"""Who is asked: a server of one model without protocol, one of the Open Inference Protocol alone, or the two others."""

FRAME_SUFFIX = ".frame"
"""Beside the file of a gRPC message lies the same message with the prefix that it has on the wire."""
_TOLERANCE = 1e-3
_RAW = {"Content-Type": "application/octet-stream"}
_JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Request:
    path: str
    """Of HTTP, or gRPC's full name of the method."""
    headers: Headers
    bodies: Sequence[Path]
    """Files of different bodies or messages, where a load generator of another language can read them."""
    expected: Sequence[Array]
    """The right answer to each."""
    read: Callable[[bytes, Headers], Array]
    """Body and lower-case headers of an answer to its numbers."""
    quick_up_to: int
    """As of its case."""
    is_grpc: bool = False

    def check(self, number: int, body: bytes, headers: Headers) -> Array:
        """The numbers of the answer to body `number`.

        Raises:
            ValueError: they are not what torch computed; it names the request whose answer they are, if there is one.
        """
        found = self.read(body, headers)
        self.compare(number, found)
        return found

    def compare(self, number: int, found: Array) -> None:
        """As `check`, for numbers that somebody else has read."""
        if _same(found, self.expected[number]):
            return
        others = [other for other, expected in enumerate(self.expected) if _same(found, expected)]
        whose = f", the answer to request {others[0]}" if others else ""
        raise ValueError(
            f"{self.path}: request {number} was answered {found.ravel()[:4]}{whose}; expected "
            f"{self.expected[number].ravel()[:4]}"
        )

    def dump(self) -> str:
        """JSON text, for a client in a process of its own."""
        return json.dumps(
            {
                "path": self.path,
                "headers": dict(self.headers),
                "bodies": [str(file) for file in self.bodies],
                "expected": [each.tolist() for each in self.expected],
                "read": self.read.__name__,
                "quick_up_to": self.quick_up_to,
                "is_grpc": self.is_grpc,
            }
        )

    @classmethod
    def load(cls, text: str) -> Request:
        """What `dump` wrote."""
        fields = json.loads(text)
        bodies = [Path(file) for file in fields.pop("bodies")]
        expected = [np.array(each, np.float32) for each in fields.pop("expected")]
        return cls(**fields | {"bodies": bodies, "expected": expected, "read": _READERS[fields["read"]]})

    def message(self, number: int, host: str) -> bytes:
        """All bytes of body `number`'s HTTP request."""
        body = self.bodies[number].read_bytes()
        lines = [f"POST {self.path} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + body


def _same(one: Array, other: Array) -> bool:
    return one.shape == other.shape and np.allclose(one, other, _TOLERANCE, _TOLERANCE)


def build(directory: Path, case: Case, dialect: Dialect) -> Request:
    """What users of such a server would send; the bodies are written into `directory`."""
    answers = np.load(directory / f"{case.model}.y.npy")
    made = [_made(directory, case, dialect, number) for number in range(NUM_BODIES)]
    files = [directory / f"{case.name}.{dialect}.{number}.body" for number in range(NUM_BODIES)]
    for file, each in zip(files, made, strict=True):
        file.write_bytes(each.body)
        if case.wire == "grpc":
            file.with_suffix(FRAME_SUFFIX).write_bytes(b"\0" + len(each.body).to_bytes(4, "big") + each.body)
    expected = [answer if case.wire == "image" else answer[None] for answer in answers]
    first = made[0]
    return Request(first.path, first.headers, files, expected, first.read, case.quick_up_to, case.wire == "grpc")


@dataclass(frozen=True)
class _Made:
    path: str
    headers: Headers
    """The same for all bodies of a case: their shapes are."""
    body: bytes
    read: Callable[[bytes, Headers], Array]


def _made(directory: Path, case: Case, dialect: Dialect, number: int) -> _Made:
    if case.wire == "image":
        jpeg = (directory / f"classifier.{number}.jpg").read_bytes()
        return _Made(_path(dialect, case), {"Content-Type": "image/jpeg"}, jpeg, _list_of)
    x: Array = np.load(directory / f"{case.model}.x.npy")[number : number + 1]
    if case.wire == "grpc":
        return _torchserve_call(x, case) if dialect == "torchserve" else _open_inference_call(x, case)
    if case.wire == "binary" and dialect in {"penstock", "open_inference"}:
        return _binary(x, case)
    if case.wire == "binary":
        return _Made(_path(dialect, case), _RAW, x.tobytes(), _floats_of)
    # few digits, as in people's JSON
    numbers = np.round(x.astype(np.float64), 4)
    if case.wire == "oip" or dialect == "open_inference":
        path = _path(dialect, case) if dialect == "bare" else f"/v2/models/{case.model}/infer"
        tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "data": numbers.ravel().tolist()}
        return _Made(path, _JSON, json.dumps({"inputs": [tensor]}).encode(), _outputs_of)
    return _Made(_path(dialect, case), _JSON, json.dumps({"x": numbers.tolist()}).encode(), _y_of)


def _path(dialect: Dialect, case: Case) -> str:
    paths = {"penstock": f"/endpoints/{case.model}/invocations", "torchserve": f"/predictions/{case.model}"}
    return paths.get(dialect, "/predict")


def _binary(x: Array, case: Case) -> _Made:
    tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {**_RAW, "Inference-Header-Content-Length": str(len(header))}
    return _Made(f"/v2/models/{case.model}/infer", headers, header + x.tobytes(), _binary_of)


def _open_inference_call(x: Array, case: Case) -> _Made:
    message = open_inference_pb2.ModelInferRequest(model_name=case.model, raw_input_contents=[x.tobytes()])
    message.inputs.add(name="x", datatype="FP32", shape=x.shape)
    return _Made("/inference.GRPCInferenceService/ModelInfer", {}, message.SerializeToString(), _inferred_of)


def _torchserve_call(x: Array, case: Case) -> _Made:
    message = torchserve_pb2.PredictionsRequest(model_name=case.model, input={"body": x.tobytes()})
    path = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"
    return _Made(path, {}, message.SerializeToString(), _predicted_of)


def _y_of(body: bytes, _: Headers) -> Array:
    return np.array(json.loads(body)["y"])


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


_READERS = {
    each.__name__: each for each in (_y_of, _list_of, _outputs_of, _binary_of, _floats_of, _inferred_of, _predicted_of)
}
