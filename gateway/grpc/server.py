"""The gRPC front door: inference services, the standard health service, and reflection where it is switched on."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gateway.busy_poll import BusyPoll
from gateway.grpc import oip, torchserve
from gateway.grpc.calls import GrpcApplication
from gateway.grpc.patience import Patience
from gateway.grpc.service import PredictionMethod, Predictor
from gateway.grpc.streams import Limits
from gateway.listening import listen
from gateway.readiness import Readiness
from gateway.settings import Settings

__all__ = ["GrpcFront"]

_OVERHEAD = 64 * 1024
"""What a message may hold beside the body that the limit is meant for."""
_MAX_METADATA_BYTES = 16 * 1024
_MAX_STREAMS = 100
"""Calls at once on one connection; a client's further ones wait for these, or it connects once more."""
_TURN_S = 0.02


class GrpcFront:
    """The server and its health service, which follows the gateway's readiness."""

    def __init__(
        self,
        settings: Settings,
        predictor: Predictor,
        readiness: Readiness,
        poll: BusyPoll,
        *,
        reuse_port: bool = False,
    ) -> None:
        if settings.grpc_server == "grpcio":
            self._server: _Server = _Grpcio(settings, predictor, reuse_port)
        else:
            self._server = _Http2(settings, predictor, poll, reuse_port)
        self._readiness = readiness
        self._predictor = predictor
        self._health = health.aio.HealthServicer()
        self._known: dict[str, bool] = {}
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)  # type: ignore[arg-type]
        self._server.add(
            oip.SERVICE, oip.handlers(predictor.router, readiness), oip.prediction_methods(predictor.router)
        )
        self._server.add(
            torchserve.SERVICE, torchserve.handlers(readiness), torchserve.prediction_methods(predictor.router)
        )
        if settings.grpc_reflection:
            _add_reflection(self._server)

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises `OSError` when it is taken."""
        return await self._server.start(host, port)

    async def refresh_health(self) -> None:
        """Tell the health service what changed: the server, the inference service, and `model/<name>` for each."""
        router = self._predictor.router
        now = dict.fromkeys(("", oip.SERVICE, torchserve.SERVICE), self._readiness.ready)
        for name, endpoint in router.endpoints.items():
            ready = any(variant.deployment.ready for variant in endpoint.variants.values())
            now[f"model/{name}"] = ready and not self._readiness.draining
        for name in self._known.keys() - now.keys():
            now[name] = False
        for name, ready in now.items():
            if self._known.get(name) != ready:
                status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
                await self._health.set(name, status)
        self._known = now

    def enforce(self, now: float) -> None:
        """End what takes too long."""
        self._server.enforce(now)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls; those in flight may finish within the grace."""
        await self._server.stop(grace_s)


def _patience(settings: Settings) -> Patience:
    return Patience(
        header_s=settings.header_timeout_s,
        body_s=settings.body_timeout_s,
        request_s=settings.request_timeout_s,
        idle_s=settings.idle_timeout_s,
        grace_s=settings.request_timeout_s,
    )


class _Server(Protocol):
    """Who speaks HTTP/2."""

    def add(self, service: str, methods: dict[str, Any], predicting: dict[str, PredictionMethod]) -> None: ...

    def add_registered_method_handlers(self, service: str, methods: Any, /) -> None: ...

    def add_generic_rpc_handlers(self, handlers: Any, /) -> None: ...

    async def start(self, host: str, port: int) -> int: ...

    def enforce(self, now: float) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


class _Http2:
    """Our own, close to the socket."""

    def __init__(self, settings: Settings, predictor: Predictor, poll: BusyPoll, reuse_port: bool) -> None:
        limit = settings.max_body_bytes + _OVERHEAD
        limits = Limits(max_header_bytes=_MAX_METADATA_BYTES, max_body_bytes=4 * limit, max_streams=_MAX_STREAMS)
        self._application = GrpcApplication(
            limits,
            max_message_bytes=limit,
            patience=_patience(settings),
            poll=poll,
        )
        self._predictor = predictor
        self._reuse_port = reuse_port
        self._listener: asyncio.Server | None = None
        self.add_registered_method_handlers = self._application.add_registered_method_handlers
        self.add_generic_rpc_handlers = self._application.add_generic_rpc_handlers

    def add(self, service: str, methods: dict[str, Any], predicting: dict[str, PredictionMethod]) -> None:
        self._application.add_registered_method_handlers(service, methods)
        hot = {name: self._predictor.hot(method) for name, method in predicting.items()}
        self._application.add_hot(service, hot)

    async def start(self, host: str, port: int) -> int:
        connection: Any = self._application.connection  # no `asyncio.Protocol`, but as good
        self._listener, bound = await listen(connection, host, port, reuse_port=self._reuse_port)
        return bound

    def enforce(self, now: float) -> None:
        self._application.enforce(now)

    async def stop(self, grace_s: float) -> None:
        application = self._application
        if self._listener is not None:
            self._listener.close()
        for connection in list(application.connections):
            connection.go_away()
        tasks = application.end_tasks()
        await asyncio.gather(*tasks, return_exceptions=True)
        give_up = time.monotonic() + grace_s
        while application.connections and time.monotonic() < give_up:  # noqa: ASYNC110  many small steps lead there
            await asyncio.sleep(_TURN_S)
        for connection in list(application.connections):
            connection.close()


class _Grpcio:
    """grpcio's, for whoever needs what ours does not speak; several times as dear."""

    def __init__(self, settings: Settings, predictor: Predictor, reuse_port: bool) -> None:
        self._predictor = predictor
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_body_bytes + _OVERHEAD),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", _MAX_STREAMS),
                ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
                # two gateways on one port would split the traffic in secret; a supervisor has made sure of its own
                ("grpc.so_reuseport", int(reuse_port)),
                *_patience(settings).grpcio_options,
            ]
        )
        self.add_registered_method_handlers = self._server.add_registered_method_handlers
        self.add_generic_rpc_handlers = self._server.add_generic_rpc_handlers

    def add(self, service: str, methods: dict[str, Any], predicting: dict[str, PredictionMethod]) -> None:
        every = methods | {name: self._predictor.unary(method) for name, method in predicting.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, every),))

    async def start(self, host: str, port: int) -> int:
        try:
            bound = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{port} for gRPC: {error}") from error
        await self._server.start()
        return bound

    def enforce(self, now: float) -> None:
        """It keeps its own time."""

    async def stop(self, grace_s: float) -> None:
        await self._server.stop(grace_s)


def _add_reflection(server: _Server) -> None:
    from google.protobuf.descriptor_pool import DescriptorPool  # noqa: PLC0415  off by default: it reveals the API
    from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc  # noqa: PLC0415

    from formats.protos import open_inference_pb2, torchserve_pb2  # noqa: PLC0415

    pool = DescriptorPool()
    for file in (open_inference_pb2.DESCRIPTOR, torchserve_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)  # type: ignore[no-untyped-call]
    names = [oip.SERVICE, torchserve.SERVICE, reflection.SERVICE_NAME]
    servicer = reflection.aio.ReflectionServicer(names, pool=pool)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
