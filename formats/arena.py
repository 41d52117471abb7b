"""Memory that two processes share, for bodies too large to send through a socket.

A socket moves a body in pieces of its buffer's size, each with a wake-up, and both ends copy every piece. In an arena
the sender copies it once and the receiver reads it where it lies. One arena serves one direction: the sender puts a
batch's bodies in, sends their places, and may put the next batch's only when it has the answer to the first.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct

import msgpack

__all__ = ["ARENA_BYTES", "LARGE_BYTES", "Arena"]

ARENA_BYTES = 64 * 1024 * 1024
"""Address space of one; memory is taken by the page, as far as the largest batch so far reached."""
LARGE_BYTES = 16 * 1024
"""Bodies from this size on are worth a place in it."""

_PLACE = struct.Struct("<II")  # offset, length
_CODE = 1  # msgpack's extension type
_ALIGNMENT = 64  # of a cache line: what a graph reads fastest


class Arena:
    """One direction between a gateway and one of its workers."""

    def __init__(self, descriptor: int) -> None:
        """Map an arena that another process has created; the descriptor may be closed afterwards."""
        self._memory = memoryview(mmap.mmap(descriptor, ARENA_BYTES))
        self._used = 0

    @staticmethod
    def create() -> int:
        """The descriptor of a new one, which neither side can shrink: a read beyond its end would kill the reader.

        Raises:
            OSError: the system has no memory, or no descriptors, left.
        """
        descriptor = os.memfd_create("penstock-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, ARENA_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return descriptor

    @staticmethod
    def supported() -> bool:
        """Linux has it; elsewhere every body goes through the socket."""
        return hasattr(os, "memfd_create")

    def clear(self) -> None:
        """Forget what was put: the other side has done with it."""
        self._used = 0

    def put(self, data: bytes | memoryview) -> bytes | memoryview | msgpack.ExtType:
        """What stands for `data` in a message: its place when it is large and there is room, else itself."""
        size = len(data) if type(data) is bytes else memoryview(data).nbytes
        start = self._used
        if size < LARGE_BYTES or start + size > ARENA_BYTES:
            return data
        self._memory[start : start + size] = data if type(data) is bytes else memoryview(data).cast("B")
        self._used = start + size + -(start + size) % _ALIGNMENT
        return msgpack.ExtType(_CODE, _PLACE.pack(start, size))

    def look_up(self, code: int, place: bytes) -> memoryview:
        """The `ext_hook` of a message's reader: what was put, without a copy, until the next batch overwrites it.

        Raises:
            ValueError: not a place in an arena.
        """
        if code != _CODE or len(place) != _PLACE.size:
            raise ValueError(f"extension {code} of {len(place)} bytes is not a place in shared memory")
        start, size = _PLACE.unpack(place)
        if start + size > ARENA_BYTES:
            raise ValueError(f"bytes {start} to {start + size} lie outside shared memory of {ARENA_BYTES}")
        return self._memory[start : start + size].toreadonly()
