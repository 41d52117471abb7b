"""A body that arrives in pieces: what it may take besides its bytes, and how its pieces are kept.

Only requests whose body comes in several reads, or in chunks, get so far.
"""

from __future__ import annotations

__all__ = ["MAX_CHUNKS", "MAX_PIECES", "Upload", "merge"]

MAX_CHUNKS = 65_536
"""Of one body (protocol contract, section 1.5): each costs calls, however few bytes it holds."""
_CHUNK_LINES = 16
"""Bytes that the lines around one chunk may take: its size in hexadecimal and two ends of lines, with some to spare."""
MAX_PIECES = 1024
"""Pieces that are kept as they came, to be joined once; more of them cost more than what they hold."""


class Upload:
    """What one body has cost so far."""

    __slots__ = ("_before", "_wire_bytes", "began", "num_chunks")

    def __init__(self, began: float) -> None:
        self.began = began
        """Monotonic second; moved on while it is us who do not read."""
        self.num_chunks = 0
        self._before: int | None = None
        self._wire_bytes = 0

    def read(self, num_bytes: int, body_bytes: int) -> int:
        """After a read that did not end the body: what was neither body nor needed by its chunks, in bytes.

        That is extensions of chunks, and trailers. The first read is passed over, because the headers came with it.

        Args:
            num_bytes: of this read.
            body_bytes: of the body so far.
        """
        if self._before is None:
            self._before = body_bytes
            return 0
        self._wire_bytes += num_bytes
        return self._wire_bytes - (body_bytes - self._before) - _CHUNK_LINES * self.num_chunks


def merge(pieces: list[bytes], piece: bytes) -> None:
    """Append a piece to `MAX_PIECES` or fewer: they become one, at a cost in proportion to their bytes."""
    first = pieces[0]
    merged = first if isinstance(first, bytearray) else bytearray(first)
    merged += b"".join(pieces[1:])
    # never the array alone: whoever joins the pieces makes bytes of it
    pieces[:] = [merged, piece]  # type: ignore[list-item]
