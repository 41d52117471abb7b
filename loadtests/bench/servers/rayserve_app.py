"""Ray Serve around ONNX Runtime; runs in Ray's own virtual environment.

python -m loadtests.bench.servers.rayserve_app PORT DIR MODEL REPLICAS
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request

from loadtests.bench.servers.bare import session_of

__all__ = ["OnnxModel"]


class OnnxModel:
    def __init__(self, graph: str) -> None:
        self._session = session_of(Path(graph), num_threads=1)

    async def __call__(self, request: Request) -> dict[str, Any]:
        x = np.array((await request.json())["x"], np.float32)
        return {"y": self._session.run(None, {"x": x})[0].tolist()}


def main(port: str, directory: str, model: str, num_replicas: str) -> None:
    # no dashboard: it would work while others are measured
    ray.init(num_cpus=int(num_replicas), include_dashboard=False, log_to_driver=False, _temp_dir=f"{directory}/ray")
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    deployment = serve.deployment(num_replicas=int(num_replicas))(OnnxModel)
    serve.run(deployment.bind(str(Path(directory) / f"{model}.onnx")), route_prefix="/predict")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
