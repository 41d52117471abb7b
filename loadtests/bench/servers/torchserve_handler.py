"""What a TorchServe user writes around ONNX Runtime; packed into the benchmark's archives and run by TorchServe.

JSON, raw float32 or a JPEG, as the case has it; a batch becomes one run of the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

__all__ = ["handle"]

_state: dict[str, Any] = {}
_SHAPES = {4 * 16: (1, 16), 4 * 3 * 224 * 224: (1, 3, 224, 224)}
"""Of raw float32, by its size in bytes."""
_JPEG = b"\xff\xd8\xff"


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[Any] | None:
    """TorchServe's module-level entry point; called once without data to load the model."""
    if data is None:
        (graph,) = Path(context.system_properties["model_dir"]).glob("*.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # TorchServe starts a worker per core
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        _state.update(session=session, input=session.get_inputs()[0])
        return None
    bodies = [row["body"] for row in data]
    x = np.concatenate([_tensor(body) for body in bodies])
    (y,) = _state["session"].run(None, {_state["input"].name: x})
    if isinstance(bodies[0], dict):
        return [{"y": [row]} for row in y.tolist()]
    if bodies[0][:3] == _JPEG:
        return list(y.tolist())
    return [row.tobytes() for row in y]


def _tensor(body: Any) -> Any:
    if isinstance(body, dict):  # TorchServe has parsed it
        return np.array(body["x"], np.float32)
    if body[:3] == _JPEG:
        from formats.images import decode, resize  # noqa: PLC0415  what the other cases do not need

        _, height, width, _ = _state["input"].shape
        return resize(decode(bytes(body)), height, width)[None]
    return np.frombuffer(body, np.float32).reshape(_SHAPES[len(body)])
