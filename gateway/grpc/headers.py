"""Header blocks (RFC 7541): each that is new is decoded by the `hpack` library, and judged.

A client repeats the same few bytes for every call. What is sent never enters a compression table, so that all headers
of an answer are constants but a few.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import hpack

from gateway.grpc.frames import ConnectionFault, ErrorCode

__all__ = ["NO_TABLE", "Block", "BlockReader", "encode_headers"]

NO_TABLE = b"\x20"
"""Dynamic table size update to 0, before the first header block of a connection: we never use the table."""
_MAX_REMEMBERED = 64
"""Header blocks kept decoded per connection."""
_PSEUDO = frozenset({b":method", b":path", b":scheme", b":authority"})
_NEEDED = _PSEUDO - {b":authority"}
_OF_THE_CONNECTION = frozenset({b"connection", b"transfer-encoding", b"upgrade", b"keep-alive", b"proxy-connection"})
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_FORBIDDEN_IN_VALUES = re.compile(rb"[\0\r\n]")


class Block(NamedTuple):
    """A decoded header block."""

    headers: dict[bytes, bytes]
    """Names in lower case, pseudo-headers included; of a repeated one, the last."""
    size: int
    """By the rule of RFC 9113: 32 more for each."""
    begins: bool
    """It is fit to begin a request."""
    ends: bool
    """It is fit to end one, as trailers."""


class BlockReader:
    """Decodes the header blocks of one connection, all of them and in their order."""

    def __init__(self, max_bytes: int) -> None:
        self._decoder = hpack.Decoder(max_header_list_size=max_bytes)
        self.remembered: dict[bytes, Block] = {}
        """What is known to mean the same when it comes again: look here first."""

    def decode(self, block: bytes) -> Block:
        """Raises `ConnectionFault`: after that the two sides' tables differ."""
        try:
            pairs = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except hpack.OversizedHeaderListError as error:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "headers exceed every limit") from error
        except hpack.HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from error
        decoded = _judged(pairs)
        if min(block, default=0) >= 0x80:
            # nothing but references into the table: the same bytes mean the same as long as the table does not change
            if len(self.remembered) < _MAX_REMEMBERED:
                self.remembered[block] = decoded
        else:
            self.remembered.clear()
        return decoded


def _judged(pairs: list[tuple[bytes, bytes]]) -> Block:
    """Section 8 of RFC 9113: what makes a message malformed."""
    names = [name for name, _ in pairs]
    count = sum(name.startswith(b":") for name in names)
    pseudo, regular = names[:count], names[count:]
    fine = all(map(_NAME.fullmatch, regular)) and _OF_THE_CONNECTION.isdisjoint(regular)
    fine = fine and not any(_FORBIDDEN_IN_VALUES.search(value) for _, value in pairs)
    headers = dict(pairs)
    fine = fine and headers.get(b"te", b"trailers") == b"trailers"
    known = _PSEUDO.issuperset(pseudo) and len(set(pseudo)) == count  # after the others, they are no names
    begins = fine and known and _NEEDED.issubset(pseudo) and headers[b":path"] != b""
    size = sum(len(name) + len(value) + 32 for name, value in pairs)
    return Block(headers, size, begins, fine and not count)


def encode_headers(*headers: tuple[bytes, bytes]) -> bytes:
    """A header block of literals that enter no table (RFC 7541, section 6.2.2)."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in headers)


def _string(value: bytes) -> bytes:
    """Length with a prefix of 7 bits (section 5.1), and the bytes without Huffman coding."""
    length = len(value)
    if length < 0x7F:
        return bytes((length,)) + value
    encoded, rest = bytearray(b"\x7f"), length - 0x7F
    while rest >= 0x80:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded) + value
