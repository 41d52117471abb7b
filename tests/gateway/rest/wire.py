"""HTTP/1.1 over a raw socket, and the requests that tests of the front door send on it."""

from __future__ import annotations

import json
import socket
from typing import Any, NamedTuple

import numpy as np

from tests.bundles import image_png, tiny_answer

__all__ = ["PING", "POOL", "Answer", "Wire", "assert_right", "head", "picture", "post"]

POOL = '[pools.cpu]\ndevice = "cpu"\nworkers = 1\n'
PING = b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._file = self.socket.makefile("rb")

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> Answer:
        """Read one answer; fails when the connection closes first."""
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        headers = {}
        while (header := self._file.readline()) not in (b"\r\n", b""):
            name, _, value = header.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = self._file.read(int(headers.get("content-length", "0")))
        return Answer(int(line.split()[1]), headers, body)

    def is_closed(self, timeout_s: float = 5) -> bool:
        """Does the other side close, and say nothing more?"""
        self.socket.settimeout(timeout_s)
        try:
            return self._file.read(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self._file.close()
        self.socket.close()


def picture(shade: int) -> np.ndarray[Any, np.dtype[Any]]:
    return np.full((4, 4, 3), (shade, 255 - shade, 60), np.uint8)


def head(path: str = "/invocations", *lines: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"POST {path} HTTP/{version}", "Host: x", "Content-Type: image/png", *lines, "", ""]).encode()


def post(shade: int = 0, *lines: str, version: str = "1.1") -> bytes:
    body = image_png(picture(shade))
    return head("/invocations", f"Content-Length: {len(body)}", *lines, version=version) + body


def assert_right(answer: Answer, shade: int = 0, num_classes: int = 3) -> None:
    assert answer.status == 200, answer
    np.testing.assert_allclose(json.loads(answer.body), tiny_answer(picture(shade), num_classes), atol=1e-5)
