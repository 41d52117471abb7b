"""LitServe around ONNX Runtime; runs in LitServe's own virtual environment.

python -m loadtests.bench.servers.litserve_app PORT DIR MODEL WORKERS
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np

from loadtests.bench.servers.bare import session_of

__all__ = ["OnnxModel"]


class OnnxModel(litserve.LitAPI):  # type: ignore[misc]  # it is in no environment that is checked
    def __init__(self, graph: Path) -> None:
        super().__init__()
        self._graph = graph

    def setup(self, device: str) -> None:  # noqa: ARG002  the signature is LitServe's
        self._session = session_of(self._graph, num_threads=1)

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # LitServe reads annotations
        return np.array(request["x"], np.float32)

    def predict(self, x: Any) -> Any:
        return self._session.run(None, {"x": x})[0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"y": output.tolist()}


def main(port: str, directory: str, model: str, num_workers: str) -> None:
    server = litserve.LitServer(
        OnnxModel(Path(directory) / f"{model}.onnx"), accelerator="cpu", workers_per_device=int(num_workers)
    )
    server.run(host="127.0.0.1", port=int(port), generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
