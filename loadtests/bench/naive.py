"""What people write first: FastAPI around ONNX Runtime, one process: `python -m loadtests.bench.naive PORT DIR`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

from loadtests.bench.requests import NAMES

__all__ = ["build"]


def build(directory: Path) -> FastAPI:
    """`POST /mlp` takes and gives JSON, `POST /resnet18` raw float32."""
    sessions = {
        name: ort.InferenceSession(str(directory / f"{name}.onnx"), providers=["CPUExecutionProvider"])
        for name in NAMES
    }
    app = FastAPI()

    @app.post("/mlp")
    async def mlp(request: Request) -> Response:
        x = np.array(orjson.loads(await request.body())["x"], np.float32)
        (y,) = sessions["mlp"].run(None, {"x": x})
        return Response(orjson.dumps({"y": y}, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    @app.post("/resnet18")
    async def resnet18(request: Request) -> Response:
        x = np.frombuffer(await request.body(), np.float32).reshape(1, 3, 224, 224)
        (y,) = sessions["resnet18"].run(None, {"x": x})
        return Response(y.tobytes(), media_type="application/octet-stream")

    return app


if __name__ == "__main__":
    app = build(Path(sys.argv[2]))
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
