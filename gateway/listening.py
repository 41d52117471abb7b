"""Ports and signals: how a gateway process, or the supervisor of several, is reached from outside."""

from __future__ import annotations

import asyncio
import fcntl
import resource
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

__all__ = ["asgi_config", "asgi_protocol", "listen", "reserve", "stop_signals"]

_BACKLOG = 2048
_MAX_FILE = 65_536
"""A higher file number would cost more kernel memory than it is worth, 8 bytes for each below it."""
_SPARE_FILES = 64


def asgi_config(app: Any) -> uvicorn.Config:
    """An application as uvicorn's protocols want it."""
    config = uvicorn.Config(app, access_log=False, log_config=None, ws="none", lifespan="off", server_header=False)
    config.load()
    return config


def asgi_protocol(app: Any) -> Callable[[], asyncio.Protocol]:
    """Makes uvicorn's own connections to an application."""
    config, state = asgi_config(app), ServerState()
    return lambda: HttpToolsProtocol(config, state, {}, asyncio.get_running_loop())


async def listen(
    protocol: Callable[[], asyncio.Protocol], host: str, port: int, *, reuse_port: bool = False
) -> tuple[asyncio.Server, int]:
    """Listen on a host's addresses; returns the server and its port. Raises `OSError` that names both when taken.

    With `reuse_port`, beside other processes that do so too, on a port that a supervisor keeps with `reserve`.
    """
    loop = asyncio.get_running_loop()
    try:
        found = _addresses(host, port) if reuse_port else []
        if len(found) == 1:
            bound = _last(_bound(*found[0], socket.SO_REUSEPORT, socket.SO_REUSEADDR))
            server = await loop.create_server(protocol, sock=bound, backlog=_BACKLOG)
        else:  # a server has one such socket or none; a name with several addresses does without
            server = await loop.create_server(protocol, host, port, backlog=_BACKLOG, reuse_port=reuse_port or None)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return server, server.sockets[0].getsockname()[1]


def _last(made: socket.socket) -> socket.socket:
    """The same socket under a high number.

    When a process is killed, Linux releases its files from the highest number down. Clients whose connection breaks
    come back at once: then the dying listener must be gone, or a third of the kills reset some of them again.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    with made:
        return socket.socket(
            fileno=fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, max(min(soft, _MAX_FILE) - _SPARE_FILES, 3))
        )


def reserve(host: str, port: int) -> tuple[list[socket.socket], int]:
    """Keep a port for processes that will listen on it with SO_REUSEPORT; returns what holds it, and its number.

    SO_REUSEPORT lets any process of the same user join a port and take a share of its traffic. So the port is tried
    alone first: whoever holds it, another gateway included, is an error here and not a silent partner. The sockets
    returned are bound but do not listen: they get no connections, and keep the port while a child is down.

    Args:
        port: 0 takes a free one, the same on every address of the host.

    Raises:
        OSError: the port is taken, or the host has no such address; the text names both.
    """
    held: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            place = (address[0], port, *address[2:])
            with _socket(family, socket.SO_REUSEADDR) as alone:
                alone.bind(place)
                alone.listen(1)  # bind alone would not notice every holder
                port = alone.getsockname()[1]
            held.append(_hold(family, (address[0], port, *address[2:])))
    except OSError as error:
        for each in held:
            each.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return held, port


def stop_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Two events: the first SIGTERM or SIGINT sets the first, every later one the second."""
    stop, hurry = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _signalled, stop, hurry)
    return stop, hurry


def _signalled(stop: asyncio.Event, hurry: asyncio.Event) -> None:
    (hurry if stop.is_set() else stop).set()


def _addresses(host: str, port: int) -> list[tuple[int, tuple[Any, ...]]]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _hold(family: int, address: tuple[Any, ...]) -> socket.socket:
    try:
        return _bound(family, address, socket.SO_REUSEPORT)
    except OSError:
        # old connections of a listener without SO_REUSEPORT linger in TIME_WAIT: only SO_REUSEADDR passes them.
        # It must not stay on, or a rival with SO_REUSEADDR could bind beside this socket while nobody listens.
        holder = _bound(family, address, socket.SO_REUSEPORT, socket.SO_REUSEADDR)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        return holder


def _bound(family: int, address: tuple[Any, ...], *options: int) -> socket.socket:
    holder = _socket(family, *options)
    try:
        holder.bind(address)
    except OSError:
        holder.close()
        raise
    return holder


def _socket(family: int, *options: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    for option in options:
        made.setsockopt(socket.SOL_SOCKET, option, 1)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as asyncio does
    return made
