"""What the servers without a product around them have in common: a body in, a body out, ONNX Runtime between them."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson

__all__ = ["SHAPE", "Body", "answer_of", "fork", "session_of"]

Body = bytes | memoryview

SHAPE = (1, 3, 224, 224)
"""Of the tensors that travel as raw float32."""
_PR_SET_PDEATHSIG = 1


def session_of(graph: Path, num_threads: int) -> ort.InferenceSession:
    """Args: num_threads: 0 leaves ONNX Runtime its default, one per core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = num_threads
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def answer_of(directory: Path, model: str, wire: str, num_threads: int) -> Callable[[Body], bytes]:
    """A function that takes a request's body and gives the answer's."""
    session = session_of(directory / f"{model}.onnx", num_threads)
    if wire == "image":
        return _from_image(session)

    def json(body: Body) -> bytes:
        x = np.array(orjson.loads(body)["x"], np.float32)
        return orjson.dumps({"y": session.run(None, {"x": x})[0]}, option=orjson.OPT_SERIALIZE_NUMPY)

    def open_inference(body: Body) -> bytes:
        (tensor,) = orjson.loads(body)["inputs"]
        x = np.array(tensor["data"], np.float32).reshape(tensor["shape"])
        (y,) = session.run(None, {"x": x})
        output = {"name": "y", "datatype": "FP32", "shape": y.shape, "data": y.ravel()}
        return orjson.dumps({"model_name": model, "outputs": [output]}, option=orjson.OPT_SERIALIZE_NUMPY)

    def binary(body: Body) -> bytes:
        answer: bytes = session.run(None, {"x": np.frombuffer(body, np.float32).reshape(SHAPE)})[0].tobytes()
        return answer

    return {"json": json, "oip": open_inference, "binary": binary}[wire]


def _from_image(session: ort.InferenceSession) -> Callable[[Body], bytes]:
    """With Penstock's own decoder and resize, so that what differs is the server."""
    from formats.images import decode, resize  # noqa: PLC0415  other virtual environments lack its packages

    (described,) = session.get_inputs()
    _, height, width, _ = described.shape

    def image(body: Body) -> bytes:
        pixels: Any = resize(decode(bytes(body)), height, width)[None]
        return orjson.dumps(session.run(None, {described.name: pixels})[0][0], option=orjson.OPT_SERIALIZE_NUMPY)

    return image


def fork(num_processes: int) -> None:
    """Go on as so many processes; the others end with the first."""
    first = os.getpid()
    for _ in range(num_processes - 1):
        if os.fork() == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != first:  # it ended in between
                os._exit(1)
            return
