"""The management application of several gateway processes: asks each over its own socket and tells one story."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastapi
import orjson
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from gateway.aggregate import Rows, Totals, exposition, merge_rows
from gateway.tensor_protocol import server_version

__all__ = ["Member", "build_shared_admin"]

_TIMEOUT_S = 3.0
"""How long one process may take to answer; Prometheus gives up after 10 s."""


@dataclass(frozen=True)
class Member:
    """One of the gateway processes, at this moment."""

    index: int
    restarts: int
    life: int | None
    """A number that no other process ever had; None while none runs."""
    pid: int | None
    started: bool
    """It listens."""
    admin_socket: Path


def build_shared_admin(members: Callable[[], Sequence[Member]]) -> FastAPI:
    """The application of the management port."""
    app = FastAPI(title="Penstock management", version=server_version())
    totals, turn = Totals(), asyncio.Lock()

    @app.get("/metrics", summary="Prometheus metrics, summed over the processes", response_class=fastapi.Response)
    async def metrics() -> fastapi.Response:
        async with turn:  # sums must not go back and forth
            answers = await _ask(now := members(), "/metrics")
            alive = {member.life: member.index for member in now if member.life is not None}
            texts = {life: answers[index].decode() for life, index in alive.items() if index in answers}
            families = await asyncio.to_thread(totals.merge, texts, alive.keys())
            text = exposition([*families, *_of_processes(now, answers)])
        return fastapi.Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz", summary="The supervisor answers")
    async def healthz() -> dict[str, bool]:
        return {"live": True}

    @app.get("/readyz", summary="Predictions would be answered", responses={503: {"description": "Not ready"}})
    async def readyz() -> fastapi.Response:
        # one that does not listen gets no traffic, so it does not count; one that listens and is ill gets its share
        listening = [member for member in members() if member.started]
        ready = await _ask(listening, "/readyz")
        return fastapi.Response(status_code=200 if listening and len(ready) == len(listening) else 503)

    @app.get("/models", summary="Every version in the store: where it runs, or why it does not; and where that differs")
    async def models() -> Rows:
        return merge_rows(await _tables(members(), "/models"), ("name", "version"), {"ready": all})

    @app.get("/pools", summary="Every pool: its backend and its state; capacities and batches are sums")
    async def pools() -> Rows:
        combine: dict[str, Callable[[list[Any]], Any]] = {"healthy": all, "capacity": sum, "in_flight": sum}
        return merge_rows(await _tables(members(), "/pools"), ("name",), combine)

    @app.get("/processes", summary="Every gateway process")
    async def processes() -> Rows:
        now = members()
        answers, ready = await asyncio.gather(_ask(now, "/healthz"), _ask(now, "/readyz"))
        return [
            {
                "process": member.index,
                "pid": member.pid,
                "listens": member.started,
                "answers": member.index in answers,
                "ready": member.index in ready,
                "restarts": member.restarts,
            }
            for member in now
        ]

    return app


def _of_processes(members: Sequence[Member], answers: dict[int, bytes]) -> list[Metric]:
    up = GaugeMetricFamily("penstock_process_up", "Does the gateway process answer", labels=["process"])
    text = "Times the gateway process was started again"
    restarts = CounterMetricFamily("penstock_process_restarts", text, labels=["process"])
    for member in members:
        up.add_metric([str(member.index)], float(member.index in answers))
        restarts.add_metric([str(member.index)], member.restarts)
    return [up, restarts]


async def _tables(members: Sequence[Member], path: str) -> dict[int, Any]:
    return {index: orjson.loads(body) for index, body in (await _ask(members, path)).items()}


async def _ask(members: Sequence[Member], path: str) -> dict[int, bytes]:
    """Bodies by process, of those that answer 200 in time."""
    running = [member for member in members if member.pid is not None]
    answers = await asyncio.gather(*(_get(member.admin_socket, path) for member in running))
    return {member.index: body for member, body in zip(running, answers, strict=True) if body is not None}


async def _get(socket: Path, path: str) -> bytes | None:
    """One HTTP/1.0 request: its answer ends where the connection ends."""
    writer = None
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            reader, writer = await asyncio.open_unix_connection(socket)
            writer.write(f"GET {path} HTTP/1.0\r\nHost: penstock\r\n\r\n".encode())
            answer = await reader.read()
    except (OSError, TimeoutError):
        return None
    finally:
        if writer is not None:
            writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return body if head.split(b" ", 2)[1:2] == [b"200"] and _whole(head, body) else None


def _whole(head: bytes, body: bytes) -> bool:
    """A process that dies while it answers must not look as if it had counted less."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2]) == len(body)
    return True
