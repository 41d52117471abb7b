"""What a file looks like from its first bytes, for error texts that tell a user which file was sent by mistake."""

from __future__ import annotations

__all__ = ["describe"]

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"%PDF", "a PDF document"),
    (b"\x1f\x8b", "gzip data; decompress it first"),
    (b"BZh", "bzip2 data; decompress it first"),
    (b"\xfd7zXZ", "xz data; decompress it first"),
    (b"\x28\xb5\x2f\xfd", "zstd data; decompress it first"),
    (b"PK\x03\x04", "a zip archive"),
    (b"PAR1", "a Parquet file"),
    (b"\x93NUMPY", "a NumPy array file"),
    (b"\x0a\x23\xd7\xce", "RecordIO"),
    (b"version https://git-lfs", "a git-LFS pointer; fetch the real file with `git lfs pull`"),
    (b"<!DOCTYPE", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "an XML document"),
    (b"\xef\xbb\xbf", "text with a byte order mark"),
)


def describe(head: bytes) -> str:
    """A phrase for error texts; 64 bytes of `head` are enough.

    >>> describe(b"hello, world")
    "text: 'hello, world'"
    """
    head = head[:64]
    if not head:
        return "nothing (0 bytes)"
    for signature, phrase in _SIGNATURES:
        if head.startswith(signature):
            return phrase
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "a WebP image"
    if head[4:12] in {b"ftypavif", b"ftypheic", b"ftypmif1"}:
        return "a HEIF or AVIF image"
    text = _as_text(head)
    if text is None:
        return f"unknown binary data: {head[:8].hex(' ')}"
    if text.lstrip().startswith(("{", "[")):
        return f"JSON text: {text[:32]!r}"
    return f"text: {text[:32]!r}"


def _as_text(head: bytes) -> str | None:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character was cut at the end of the head
            return None
        text = head[: error.start].decode()
    return text if text and all(c.isprintable() or c in "\t\r\n" for c in text) else None
