"""What stands before a body: request line and headers, read once for all requests that repeat them.

Clients that keep their connection ask the same few things again and again, byte for byte but for the body. Such a
head need not be parsed again: that costs as much as everything else that the front door does.
"""

from __future__ import annotations

from gateway.rest.exchange import Head

__all__ = ["KnownHeads"]

_MAX_HEADS = 1024
_MAX_HEAD_BYTES = 2048
_NEVER = (b"authorization", b"proxy-authorization", b"cookie", b"expect", b"transfer-encoding", b"upgrade")
"""Secrets are not kept, and signatures are new with every request; the others ask for more than an answer."""


class KnownHeads:
    """Heads of well-formed requests for predictions, by their bytes. Shared by all connections of a process."""

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}

    def find(self, data: bytes) -> tuple[Head, int] | None:
        """A request's head, and where its body begins: if it is known, and all of the body, and no more, is there."""
        begin = data.find(b"\r\n\r\n") + 4
        head = self._heads.get(data[:begin])
        return (head, begin) if head is not None and len(data) - begin == head.size else None

    def remember(self, data: bytes, head: Head) -> None:
        """Keep a head that was just parsed at the beginning of `data`, if parsing it again could tell nothing else."""
        text = data[: data.find(b"\r\n\r\n") + 4]
        if text in self._heads or len(text) > _MAX_HEAD_BYTES:
            return
        headers = head.headers
        if not head.keep_alive or b"content-length" not in headers:
            return
        # a line is a header: no second one of a name, no folded ones, no bare line feeds, no empty lines before
        if text.count(b"\n") != text.count(b"\r\n") or text.count(b"\n") != len(headers) + 2:
            return
        if any(name in headers for name in _NEVER):
            return
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        self._heads[text] = head
