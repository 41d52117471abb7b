"""A model of Triton's Python backend that runs ONNX Runtime; copied into the model repository and run by Triton."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

__all__ = ["TritonPythonModel"]


class TritonPythonModel:
    """The class that Triton looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # Triton starts an instance per core
        graph = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self._session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """What waited together becomes one run of the graph."""
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        (y,) = self._session.run(None, {"x": inputs[0] if len(inputs) == 1 else np.concatenate(inputs)})
        answers = []
        for x in inputs:
            rows, y = y[: len(x)], y[len(x) :]
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", rows)]))
        return answers
