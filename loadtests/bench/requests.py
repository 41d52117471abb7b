"""One request per model and kind of peer, and how its answer is read: the same numbers in, the same numbers out."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["NAMES", "Request", "ask", "naive_requests", "penstock_requests", "torchserve_requests"]

NAMES = ("mlp", "resnet18")
_TOLERANCE = 1e-3
_RAW = {"Content-Type": "application/octet-stream"}
_JSON = {"Content-Type": "application/json"}

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Request:
    path: str
    headers: Mapping[str, str]
    body_file: Path
    """The body, where a load generator of another language can read it."""
    expected: Array
    read: Callable[[bytes, Mapping[str, str]], Array]
    """Body and lower-case headers of an answer to its numbers."""
    quick: bool
    """Is it answered in a small part of a second, whatever the load?"""


def penstock_requests(directory: Path) -> dict[str, Request]:
    """SageMaker's protocol with JSON for the small model, Open Inference Protocol, binary, for the large."""
    x = np.load(directory / "resnet18.x.npy")
    tensor = {"name": "x", "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {**_RAW, "Inference-Header-Content-Length": str(len(header))}
    return {
        "mlp": _json_request(directory, "/endpoints/mlp/invocations"),
        "resnet18": _request(directory, "resnet18", "/v2/models/resnet18/infer", headers, header + x.tobytes(), _oip),
    }


def torchserve_requests(directory: Path) -> dict[str, Request]:
    return {
        "mlp": _json_request(directory, "/predictions/mlp"),
        "resnet18": _raw_request(directory, "/predictions/resnet18"),
    }


def naive_requests(directory: Path) -> dict[str, Request]:
    return {"mlp": _json_request(directory, "/mlp"), "resnet18": _raw_request(directory, "/resnet18")}


def ask(port: int, request: Request) -> None:
    """Send it once and hold the answer against what torch computed.

    Raises:
        OSError, http.client.HTTPException: nobody answers.
        ValueError: the answer has another status, or other numbers.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", request.path, request.body_file.read_bytes(), dict(request.headers))
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise ValueError(f"POST {request.path}: status {answer.status}, {body[:300]!r}")
    found = request.read(body, {name.lower(): value for name, value in answer.getheaders()})
    if found.shape != request.expected.shape or not np.allclose(found, request.expected, _TOLERANCE, _TOLERANCE):
        raise ValueError(f"POST {request.path}: answered {found.ravel()[:4]}, expected {request.expected.ravel()[:4]}")


def _json_request(directory: Path, path: str) -> Request:
    body = json.dumps({"x": [[round(float(value), 4) for value in np.load(directory / "mlp.x.npy")[0]]]})
    return _request(directory, "mlp", path, _JSON, body.encode(), lambda body, _: np.array(json.loads(body)["y"]))


def _raw_request(directory: Path, path: str) -> Request:
    body = np.load(directory / "resnet18.x.npy").tobytes()
    return _request(directory, "resnet18", path, _RAW, body, lambda body, _: _floats(body))


def _request(
    directory: Path,
    model: str,
    path: str,
    headers: Mapping[str, str],
    body: bytes,
    read: Callable[[bytes, Mapping[str, str]], Array],
) -> Request:
    body_file = directory / f"{path.strip('/').replace('/', '-')}.body"
    body_file.write_bytes(body)
    return Request(path, headers, body_file, np.load(directory / f"{model}.y.npy"), read, quick=model == "mlp")


def _oip(body: bytes, headers: Mapping[str, str]) -> Array:
    return _floats(body[int(headers["inference-header-content-length"]) :])


def _floats(raw: bytes) -> Array:
    return np.frombuffer(raw, np.float32).reshape(1, -1)
