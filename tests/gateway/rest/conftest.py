"""Connections to a module's own gateway, its fixture `door`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.gateway.live import LiveGateway
from tests.gateway.rest.wire import Wire


@pytest.fixture
def connect(door: LiveGateway) -> Iterator[Callable[[], Wire]]:
    wires: list[Wire] = []

    def open_one() -> Wire:
        wires.append(Wire(door.http_port))
        return wires[-1]

    yield open_one
    for wire in wires:
        wire.close()


@pytest.fixture
def wire(connect: Callable[[], Wire]) -> Wire:
    return connect()
