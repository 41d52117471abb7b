"""A reserved port: kept from everybody else, open to our own."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from gateway.listening import reserve

HOST = "127.0.0.1"


@pytest.fixture
def held() -> Iterator[int]:
    sockets, port = reserve(HOST, 0)
    yield port
    for each in sockets:
        each.close()


def listener(port: int, *options: int) -> socket.socket:
    made = socket.socket()
    for option in options:
        made.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        made.bind((HOST, port))
        made.listen()
    except OSError:
        made.close()
        raise
    return made


@pytest.mark.parametrize("options", [[], [socket.SO_REUSEADDR]])
def test_nobody_else_can_listen_on_it(held: int, options: list[int]) -> None:
    with pytest.raises(OSError, match="in use"):
        listener(held, *options)


def test_it_cannot_be_reserved_twice(held: int) -> None:
    with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1:{held}"):
        reserve(HOST, held)


def test_our_own_can_listen_and_get_every_connection(held: int) -> None:
    ours = socket.SO_REUSEADDR, socket.SO_REUSEPORT
    with listener(held, *ours) as one, listener(held, *ours) as other:
        clients = [socket.create_connection((HOST, held), timeout=5) for _ in range(40)]
        accepted = []
        while waiting := select.select([one, other], [], [], 0.2)[0]:
            accepted += [server.accept()[0] for server in waiting]

        assert len(accepted) == 40
        for each in clients + accepted:
            each.close()


def test_without_a_listener_connections_are_refused_and_not_kept_waiting(held: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, held), timeout=5)


@pytest.mark.parametrize("options", [[], [socket.SO_REUSEADDR], [socket.SO_REUSEPORT]])
def test_a_port_on_which_somebody_listens_is_refused(options: list[int]) -> None:
    """SO_REUSEPORT included: two gateways of one user would share the traffic in secret."""
    with listener(0, *options) as holder, pytest.raises(OSError, match="cannot listen on 127"):
        reserve(HOST, holder.getsockname()[1])


def test_old_connections_of_a_single_gateway_do_not_keep_the_port() -> None:
    """Its sockets in TIME_WAIT have no SO_REUSEPORT."""
    with listener(0, socket.SO_REUSEADDR) as single:
        port = single.getsockname()[1]
        client = socket.create_connection((HOST, port))
        server = single.accept()[0]
        server.close()  # the side that closes first is the one that waits
        client.close()

    sockets, reserved = reserve(HOST, port)

    assert reserved == port
    with pytest.raises(OSError, match="in use"):
        listener(port, socket.SO_REUSEADDR)
    for each in sockets:
        each.close()


def test_a_host_that_is_not_of_this_machine_is_named() -> None:
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:8080"):
        reserve("192.0.2.1", 8080)
