"""BentoML around ONNX Runtime; runs in BentoML's own virtual environment.

bentoml serve loadtests.bench.servers.bentoml_app:OnnxModel, with what to serve in `PENSTOCK_BENCH_BENTOML`.
"""

from __future__ import annotations

import os
from pathlib import Path

import bentoml
import numpy as np

from loadtests.bench.servers.bare import session_of

__all__ = ["OnnxModel"]

_SETTING = "PENSTOCK_BENCH_BENTOML"
"""The graph and the number of workers."""
_GRAPH, _NUM_WORKERS = os.environ[_SETTING].split(os.pathsep)


@bentoml.service(workers=int(_NUM_WORKERS))
class OnnxModel:
    def __init__(self) -> None:
        self._session = session_of(Path(_GRAPH), num_threads=1)

    @bentoml.api  # type: ignore[untyped-decorator]  # it is in no environment that is checked
    def predict(self, x: list[list[float]]) -> dict[str, list[list[float]]]:
        (y,) = self._session.run(None, {"x": np.array(x, np.float32)})
        return {"y": y.tolist()}
