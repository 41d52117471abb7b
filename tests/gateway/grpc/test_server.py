"""The standard health service, reflection, and what the server refuses by itself."""

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.gateway.live import LiveGateway

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
