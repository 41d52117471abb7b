"""A request that offers to speak another protocol, as the same request without the offer (RFC 9110, section 7.8).

A server may ignore `Upgrade`, and curl's `--http2` and Java's HttpClient offer h2c with their first request; but the
parser stops at one, and takes what follows its headers for the other protocol.
"""

from __future__ import annotations

from collections.abc import Iterable

import httptools

__all__ = ["new_parser", "without_upgrade"]


def new_parser(protocol: object) -> httptools.HttpRequestParser:
    """As uvicorn makes one: the old one hears nothing more where the offer came with `Connection: close`."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


def without_upgrade(method: bytes, target: bytes, version: str, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Request line and headers once more, for the parser; names in lower case."""
    lines = [b"%b %b HTTP/%b" % (method, target, version.encode())]
    for name, value in headers:
        if name == b"connection":
            others = [option for option in value.split(b",") if option.strip().lower() != b"upgrade"]
            lines.append(b"connection:" + b",".join(others))
        elif name != b"upgrade":
            lines.append(b"%b: %b" % (name, value))
    lines += (b"", b"")
    return b"\r\n".join(lines)
