"""Messages between the gateway and an embedded worker: a fixed header, then the payload.

| bytes | field |
|---|---|
| 4 | payload length, little-endian |
| 1 | kind |
| 4 | call: chosen by the gateway, repeated in the answer |
| 4 | slot: which loaded model |
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

__all__ = ["HEADER", "Frame", "FrameParser", "Kind", "encode_frame"]

HEADER = struct.Struct("<IBII")


class Kind(IntEnum):
    LOAD = 1
    """Payload: msgpack map for `handlers.host`; answered by DONE or FAILED."""
    UNLOAD = 2
    """No payload; answered by DONE."""
    RUN = 3
    """Payload: packed predictions; answered by DONE with packed outcomes."""
    DONE = 4
    FAILED = 5
    """Payload: msgpack pair of error code and text."""


class Frame(NamedTuple):
    kind: int
    call: int
    slot: int
    payload: bytes


def encode_frame(kind: Kind, call: int, slot: int, payload: bytes = b"") -> bytes:
    """Header and payload as one message.

    Raises:
        ValueError: the payload is too long for its length field.
    """
    if len(payload) > 0xFFFF_FFFF:
        raise ValueError(f"a message of {len(payload)} bytes does not fit a frame; send smaller batches")
    return HEADER.pack(len(payload), kind, call, slot) + payload


class FrameParser:
    """Cuts a byte stream into frames, however it was chopped on its way."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete now; the rest waits for more bytes."""
        buffer = self._buffer
        if not buffer and len(data) >= HEADER.size:
            length, kind, call, slot = HEADER.unpack_from(data)
            if len(data) == HEADER.size + length:  # nearly always: one frame, whole
                yield Frame(kind, call, slot, data[HEADER.size :])
                return
        buffer += data
        while len(buffer) >= HEADER.size:
            length, kind, call, slot = HEADER.unpack_from(buffer)
            end = HEADER.size + length
            if len(buffer) < end:
                return
            payload = bytes(memoryview(buffer)[HEADER.size : end])
            del buffer[:end]
            yield Frame(kind, call, slot, payload)
