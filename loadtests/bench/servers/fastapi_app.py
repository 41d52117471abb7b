"""What people write first: FastAPI around ONNX Runtime, with `uvicorn --workers` for more than one process.

python -m loadtests.bench.servers.fastapi_app PORT DIR MODEL WIRE PROCESSES
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response

from loadtests.bench.servers.bare import answer_of

__all__ = ["app"]

_SETTING = "PENSTOCK_BENCH_FASTAPI"
"""How uvicorn's processes learn what to serve."""


def app() -> FastAPI:
    directory, model, wire, num_processes = os.environ[_SETTING].split(os.pathsep)
    # one process has all cores to itself; several would fight for them
    answer = answer_of(Path(directory), model, wire, num_threads=0 if num_processes == "1" else 1)
    media_type = "application/octet-stream" if wire == "binary" else "application/json"
    application = FastAPI()

    @application.post("/predict")
    async def predict(request: Request) -> Response:
        return Response(answer(await request.body()), media_type=media_type)

    return application


def main(port: str, *arguments: str) -> None:
    os.environ[_SETTING] = os.pathsep.join(arguments)
    uvicorn.run(
        f"{__spec__.name}:app",
        factory=True,
        workers=int(arguments[-1]),
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
