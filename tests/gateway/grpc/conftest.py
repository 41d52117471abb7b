"""The gateway with either of its gRPC servers, and one of them without sockets."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.conftest import ENDPOINTS, IN_PROCESS, TOP, TORCHSERVE
from tests.gateway.grpc.peer import Peer, Server
from tests.gateway.live import EMBEDDED, LiveGateway, serving

SERVERS = {
    "embedded": (EMBEDDED, ""),
    "in_process": (IN_PROCESS, ""),
    "torchserve": (TORCHSERVE, ""),
    "grpcio": (IN_PROCESS, 'grpc_server = "grpcio"\n'),
}


@pytest.fixture(
    scope="session",
    params=["embedded", "in_process", "grpcio", pytest.param("torchserve", marks=pytest.mark.torchserve)],
)
def live(request: pytest.FixtureRequest, zoo: Path) -> Iterator[LiveGateway]:
    """A real gateway over the zoo: once for each backend, and once with grpcio's server."""
    if request.param == "torchserve" and shutil.which("java") is None:
        pytest.skip("TorchServe needs Java")
    pools, top = SERVERS[request.param]
    with serving(zoo, pools + ENDPOINTS, top=TOP + top, wait_s=150) as gateway:
        yield gateway


@pytest.fixture
def server() -> Iterator[Server]:
    with asyncio.Runner() as runner:
        yield Server(runner.get_loop())


@pytest.fixture
def peer(server: Server) -> Peer:
    return server.connect()
