"""The gRPC front door: inference services, the standard health service, and reflection where it is switched on."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gateway.grpc import oip, torchserve
from gateway.grpc.service import Predictor
from gateway.readiness import Readiness
from gateway.settings import Settings

__all__ = ["GrpcFront"]

_OVERHEAD = 64 * 1024
"""What a message may hold beside the body that the limit is meant for."""
_MAX_METADATA_BYTES = 16 * 1024


class GrpcFront:
    """The server and its health service, which follows the gateway's readiness."""

    def __init__(
        self, settings: Settings, predictor: Predictor, readiness: Readiness, *, reuse_port: bool = False
    ) -> None:
        limit = settings.max_body_bytes + _OVERHEAD
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", 1000),
                ("grpc.max_metadata_size", _MAX_METADATA_BYTES),
                # two gateways on one port would split the traffic in secret; a supervisor has made sure of its own
                ("grpc.so_reuseport", int(reuse_port)),
            ]
        )
        self._readiness = readiness
        self._predictor = predictor
        self._health = health.aio.HealthServicer()
        self._known: dict[str, bool] = {}
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for service, methods in (
            (oip.SERVICE, oip.handlers(predictor, readiness)),
            (torchserve.SERVICE, torchserve.handlers(predictor, readiness)),
        ):
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        if settings.grpc_reflection:
            _add_reflection(self._server)

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port. Raises `OSError` when it is taken."""
        try:
            bound = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{port} for gRPC: {error}") from error
        await self._server.start()
        return bound

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

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls; those in flight may finish within the grace."""
        await self._server.stop(grace_s)


def _add_reflection(server: grpc.aio.Server) -> None:
    from google.protobuf.descriptor_pool import DescriptorPool  # noqa: PLC0415  off by default: it reveals the API
    from grpc_reflection.v1alpha import reflection  # noqa: PLC0415

    from formats.protos import open_inference_pb2, torchserve_pb2  # noqa: PLC0415

    pool = DescriptorPool()
    for file in (open_inference_pb2.DESCRIPTOR, torchserve_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)  # type: ignore[no-untyped-call]
    names = [oip.SERVICE, torchserve.SERVICE, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server, pool=pool)
