"""What a TorchServe user writes around ONNX Runtime; packed into the benchmark's archives and run by TorchServe.

JSON for the small model, raw float32 for the large one, as the other peers; a batch becomes one run of the graph.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

__all__ = ["handle"]

_state: dict[str, Any] = {}


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[Any] | None:
    """TorchServe's module-level entry point; called once without data to load the model."""
    if data is None:
        (graph,) = Path(context.system_properties["model_dir"]).glob("*.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # TorchServe starts a worker per core
        _state["session"] = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        return None
    bodies = [row["body"] for row in data]
    if isinstance(bodies[0], dict):  # TorchServe has parsed it
        (y,) = _state["session"].run(None, {"x": np.array([body["x"][0] for body in bodies], np.float32)})
        return [{"y": [row]} for row in y.tolist()]
    x = np.concatenate([np.frombuffer(body, np.float32).reshape(1, 3, 224, 224) for body in bodies])
    (y,) = _state["session"].run(None, {"x": x})
    return [row.tobytes() for row in y]
