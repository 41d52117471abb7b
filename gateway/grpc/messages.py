"""Messages of gRPC in the body of a request, compressed or not ("gRPC over HTTP/2", "Length-Prefixed-Message")."""

from __future__ import annotations

import struct
import zlib
from typing import NoReturn, TypeVar

import grpc

__all__ = ["ACCEPTED", "PREFIX", "BadMessage", "MessageReader"]

PREFIX = struct.Struct(">BI")
"""Before each message: compressed or not, and its length."""
ACCEPTED = b"identity,deflate,gzip"
MessageT = TypeVar("MessageT", bytes, bytearray)
_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}
"""Of zlib, by `grpc-encoding`."""


class BadMessage(Exception):
    """The client's message cannot be read: the status that says so, and the text."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class MessageReader:
    """Reads messages of at most so many bytes, before and after decompression."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def size(self, body: bytearray) -> int:
        """How many bytes the first message of a body takes with its prefix, as far as that is known.

        Raises `BadMessage` when it is too large, as all here do when they do not like what they see.
        """
        return PREFIX.size + self._length(body) if len(body) >= PREFIX.size else PREFIX.size

    def size_of_only(self, body: bytearray) -> int:
        """The same of a body that is to hold one message. Raises `BadMessage` when it holds more."""
        size = self.size(body)
        if len(body) > size:
            raise BadMessage(grpc.StatusCode.INTERNAL, f"a request is one message of {size} bytes: more came")
        return size

    def only(self, body: bytearray, encoding: bytes) -> bytes | bytearray:
        """The message of a body that is complete; the body becomes it, or is of no use any more."""
        size = self.size_of_only(body)
        if len(body) < size:
            raise BadMessage(grpc.StatusCode.INTERNAL, f"a request is one message: {len(body)} bytes are less")
        flag = body[0]
        del body[: PREFIX.size]  # which moves nothing
        return self.decoded(flag, body, encoding)

    def first(self, body: bytearray, encoding: bytes) -> bytes | None:
        """The first message of a body; None when it is not complete."""
        size = self.size(body)
        if len(body) < size:
            return None
        return self.decoded(body[0], bytes(memoryview(body)[PREFIX.size : size]), encoding)

    def decoded(self, flag: int, message: MessageT, encoding: bytes) -> MessageT | bytes:
        if flag == 0:
            return message
        if flag != 1:
            raise BadMessage(grpc.StatusCode.INTERNAL, f"a message is compressed (1) or not (0), not {flag}")
        if encoding == b"identity":
            raise BadMessage(grpc.StatusCode.INTERNAL, "a compressed message, but no grpc-encoding")
        if encoding not in _WINDOW_BITS:
            text = f"compression '{encoding.decode('latin-1')[:50]}' is not supported; {ACCEPTED.decode()} are"
            raise BadMessage(grpc.StatusCode.UNIMPLEMENTED, text)
        inflater = zlib.decompressobj(_WINDOW_BITS[encoding])
        try:
            plain = inflater.decompress(message, self._max_bytes + 1)
        except zlib.error as error:
            raise BadMessage(grpc.StatusCode.INTERNAL, f"the message is not {encoding.decode()}: {error}") from error
        if len(plain) > self._max_bytes:
            self._too_large(f"more than {self._max_bytes} once decompressed")
        if not inflater.eof or inflater.unused_data:
            raise BadMessage(grpc.StatusCode.INTERNAL, f"the message is not one whole of {encoding.decode()}")
        return plain

    def _length(self, body: bytearray) -> int:
        length: int = PREFIX.unpack_from(body)[1]
        if length > self._max_bytes:
            self._too_large(str(length))
        return length

    def _too_large(self, size: str) -> NoReturn:
        text = f"received message larger than max ({size} vs. {self._max_bytes})"
        raise BadMessage(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
