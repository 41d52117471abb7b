"""What people write first as a gateway: FastAPI that passes requests on with httpx.

python -m loadtests.bench.servers.proxy_app PORT PORT-BEHIND
"""

from __future__ import annotations

import sys

import httpx
import uvicorn
from fastapi import FastAPI, Request, Response

__all__ = ["app"]


def app(port_behind: int) -> FastAPI:
    client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port_behind}", timeout=60)
    application = FastAPI()

    @application.post("/{path:path}")
    async def forward(path: str, request: Request) -> Response:
        headers = {"content-type": request.headers.get("content-type", "application/octet-stream")}
        answer = await client.post(f"/{path}", content=await request.body(), headers=headers)
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    return application


def main(port: str, port_behind: str) -> None:
    uvicorn.run(app(int(port_behind)), host="127.0.0.1", port=int(port), access_log=False, log_level="warning")


if __name__ == "__main__":
    main(*sys.argv[1:])
