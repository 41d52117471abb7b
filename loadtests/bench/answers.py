"""Asking a server and holding its answers against torch's: one request, or many different ones at once."""

from __future__ import annotations

import http
import http.client
from collections.abc import Iterator

import grpc

from loadtests.bench.requests import Headers, Request

__all__ = ["AT_ONCE", "ask", "ask_at_once"]

AT_ONCE = 32
_TIMEOUT_S = 60
_NUM_CHANNELS = 8
"""So that every one of several processes gets calls, and each gets several."""
_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),  # or all channels share one connection
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]


def ask(port: int, request: Request) -> int:
    """Send the first body and hold the answer against what torch computed.

    Returns:
        The size of the answer's body or message in bytes.

    Raises:
        OSError, http.client.HTTPException, grpc.RpcError: nobody answers, or a call failed.
        ValueError: the answer has another status, or other numbers.
    """
    return ask_at_once(port, request, at_once=1, turns=1)


def ask_at_once(port: int, request: Request, at_once: int = AT_ONCE, turns: int = 2) -> int:
    """So many requests of different bodies under way together, each answer held against its own request's numbers.

    A server that batches and hands out rows in the wrong order answers every one of them with status 200.

    Returns, raises: as `ask`; the size is that of the first answer.
    """
    answers = (_calls if request.is_grpc else _posts)(port, request, at_once, turns)
    sizes = []
    for number, (body, headers) in answers:
        request.check(number, body, headers)
        sizes.append(len(body))
    return sizes[0]


Answers = Iterator[tuple[int, tuple[bytes, Headers]]]
"""The number of a body with what was answered to it."""


def _posts(port: int, request: Request, at_once: int, turns: int) -> Answers:
    """All are sent before the first answer is read; on the same connections in every turn."""
    messages = [request.message(number, f"127.0.0.1:{port}") for number in range(len(request.bodies))]
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S) for _ in range(at_once)]
    try:
        for connection in connections:
            connection.connect()
        for turn in range(turns):
            numbers = [(turn + place) % len(messages) for place in range(at_once)]
            for connection, number in zip(connections, numbers, strict=True):
                connection.send(messages[number])
            for connection, number in zip(connections, numbers, strict=True):
                yield number, _read(connection, request)
    finally:
        for connection in connections:
            connection.close()


def _read(connection: http.client.HTTPConnection, request: Request) -> tuple[bytes, Headers]:
    answer = http.client.HTTPResponse(connection.sock, method="POST")
    answer.begin()
    body = answer.read()
    if answer.status != http.HTTPStatus.OK:
        raise ValueError(f"POST {request.path}: status {answer.status}, {body[:300]!r}")
    return body, {name.lower(): value for name, value in answer.getheaders()}


def _calls(port: int, request: Request, at_once: int, turns: int) -> Answers:
    messages = [file.read_bytes() for file in request.bodies]
    channels = [
        grpc.insecure_channel(f"127.0.0.1:{port}", options=_OPTIONS) for _ in range(min(at_once, _NUM_CHANNELS))
    ]
    try:
        calls: list[grpc.UnaryUnaryMultiCallable[bytes, bytes]] = [
            channel.unary_unary(request.path) for channel in channels
        ]
        for turn in range(turns):
            numbers = [(turn + place) % len(messages) for place in range(at_once)]
            under_way = [
                (number, calls[place % len(calls)].future(messages[number], timeout=_TIMEOUT_S))
                for place, number in enumerate(numbers)
            ]
            for number, call in under_way:
                yield number, (call.result(), {})
    finally:
        for channel in channels:
            channel.close()
