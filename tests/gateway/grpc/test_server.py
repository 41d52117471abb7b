"""The standard health service, reflection, and what the server refuses by itself."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from gateway.grpc.frames import PREFACE, Flag, Kind, frame, settings
from tests.gateway.conftest import IN_PROCESS, TOP
from tests.gateway.live import LiveGateway, eventually, serving

SERVING = health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService", "model/tiny", "model/shop"])
def test_what_serves_is_reported_as_serving(channel: grpc.Channel, service: str) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods are set at run time

    assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=60).status == SERVING


def test_health_of_the_unknown_is_not_found(channel: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods are set at run time

    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="model/nothing"), timeout=60)

    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_health_can_be_watched(channel: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods are set at run time
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""), timeout=60)

    assert next(iter(watch)).status == SERVING
    watch.cancel()


def test_reflection_describes_the_services_when_it_is_on(channel: grpc.Channel) -> None:
    database = ProtoReflectionDescriptorDatabase(channel)

    assert "inference.GRPCInferenceService" in database.get_services()
    file = database.FindFileContainingSymbol("inference.GRPCInferenceService")
    methods = {method.name: method.input_type for method in file.service[0].method}
    assert methods["ModelInfer"] == ".inference.ModelInferRequest"


def test_metadata_beyond_the_limit_is_refused(live: LiveGateway) -> None:
    with grpc.insecure_channel(live.grpc_target) as channel:
        ping: Any = channel.unary_unary("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping")
        with pytest.raises(grpc.RpcError) as caught:
            ping(b"", timeout=60, metadata=(("x", "a" * 40_000),))

    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


HASTY = "idle_timeout_s = 0.3\nheader_timeout_s = 0.3\nbody_timeout_s = 0.3\n"


@pytest.fixture(scope="module", params=["http2", "grpcio"])
def hasty(request: pytest.FixtureRequest, zoo: Path) -> Iterator[LiveGateway]:
    with serving(zoo, IN_PROCESS, top=f'{TOP}{HASTY}grpc_server = "{request.param}"\n') as gateway:
        yield gateway


def test_a_client_does_not_notice_that_its_idle_connection_was_ended(hasty: LiveGateway) -> None:
    def connections() -> int:
        found = psutil.Process(hasty.process.pid).net_connections("tcp")
        return sum(each.laddr.port == hasty.grpc_port and each.status == "ESTABLISHED" for each in found)

    with grpc.insecure_channel(hasty.grpc_target) as channel:
        ping: Any = channel.unary_unary("/org.pytorch.serve.grpc.inference.InferenceAPIsService/Ping")
        for _ in range(3):
            assert ping(b"", timeout=60)
            eventually(lambda: connections() == 0)


@pytest.mark.parametrize(
    "sent",
    [b"", frame(Kind.HEADERS, 0, 1, b"\x82"), frame(Kind.HEADERS, Flag.END_HEADERS, 1, b"\x82")[:-1]],
    ids=["nothing", "block", "frame"],
)
def test_who_falls_silent_is_cut_off(hasty: LiveGateway, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", hasty.grpc_port), timeout=30) as client:
        client.sendall(PREFACE + settings() + sent)
        while client.recv(1000):
            pass
