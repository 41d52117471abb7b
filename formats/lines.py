"""Lines of a binary stream, bounded: what every text format here is read through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from formats.errors import InvalidBody

__all__ = ["MAX_LINE", "read_lines"]

MAX_LINE = 16 * 1024 * 1024
"""Longest accepted line in bytes: a file without line ends must not become one allocation."""


def read_lines(stream: BinaryIO, name: str, *, max_line: int = MAX_LINE) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line without its end); LF and CRLF both end a line.

    Args:
        stream: read to its end, never closed here.
        name: of the file, for error texts.
        max_line: longest accepted line in bytes.

    Raises:
        InvalidBody: a line is longer than `max_line`; the text names file and line.
    """
    number = 0
    while line := stream.readline(max_line + 1):
        number += 1
        if len(line) > max_line and not line.endswith(b"\n"):
            raise InvalidBody(f"{name}, line {number}: longer than {max_line} bytes; are line ends missing?")
        yield number, line.rstrip(b"\r\n")
