"""The management application: what runs where, metrics, probes. On loopback unless configured otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import fastapi
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST

from gateway.catalog import Catalog, ServedVersion
from gateway.metrics import Metrics
from gateway.pool import Pool
from gateway.readiness import Readiness
from gateway.tensor_protocol import server_version

__all__ = ["build_admin"]


def build_admin(catalog: Catalog, pools: Mapping[str, Pool], metrics: Metrics, readiness: Readiness) -> FastAPI:
    """The application of the management port."""
    app = FastAPI(title="Penstock management", version=server_version())

    @app.get("/metrics", summary="Prometheus metrics", response_class=fastapi.Response)
    async def exposition() -> fastapi.Response:
        return fastapi.Response(metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz", summary="The process answers")
    async def healthz() -> dict[str, bool]:
        return {"live": True}

    @app.get("/readyz", summary="Predictions would be answered", responses={503: {"description": "Not ready"}})
    async def readyz() -> fastapi.Response:
        return fastapi.Response(status_code=200 if readiness.ready else 503)

    @app.get("/models", summary="Every version in the store: where it runs, or why it does not")
    async def models() -> list[dict[str, Any]]:
        broken = [
            {"name": name, "version": version, "ready": False, "error": reason}
            for (name, version), reason in catalog.errors.items()
        ]
        return [_describe(catalog, served) for served in catalog.versions.values()] + broken

    @app.get("/pools", summary="Every pool: its backend and its state")
    async def pools_() -> list[dict[str, Any]]:
        return [
            {
                "name": pool.name,
                "device": pool.settings.device,
                "backend": pool.settings.backend,
                "healthy": pool.healthy,
                "capacity": pool.backend.capacity,
                "in_flight": pool.in_flight,
            }
            for pool in pools.values()
        ]

    return app


def _describe(catalog: Catalog, served: ServedVersion) -> dict[str, Any]:
    manifest = served.bundle.manifest
    endpoints = [
        endpoint.name
        for endpoint in catalog.router.endpoints.values()
        if any(variant.deployment.manifest is manifest for variant in endpoint.variants.values())
    ]
    return {
        "name": manifest.name,
        "version": manifest.version,
        "algorithm": manifest.algorithm,
        "ready": served.ready,
        "endpoints": endpoints,
        "modes": list(manifest.modes),
        "pools": [{"name": r.pool.name, "state": r.state, "reason": r.reason} for r in served.residences],
        "error": served.error,
    }
