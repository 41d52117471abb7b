"""JSON Lines: one JSON object per line, plain or gzip, read and written line by line."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import orjson

from formats.errors import InvalidBody
from formats.lines import MAX_LINE, line_blocks

__all__ = ["decode", "encode", "parse_json", "read", "write"]

_BOM = b"\xef\xbb\xbf"


def read(
    stream: BinaryIO,
    name: str = "stream",
    *,
    max_line: int = MAX_LINE,
    strict: bool = False,
    on_bad: Callable[[int, str], None] | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) of each line.

    Args:
        stream: plain or gzip; never closed here.
        name: of the file, for error texts.
        max_line: longest accepted line in bytes.
        strict: refuse empty lines and a byte order mark, as augmented manifests must be read.
        on_bad: told of each bad line, which is then skipped; by default the first one raises.

    Raises:
        InvalidBody: `name, line N: ...`.
    """
    loads = orjson.loads
    for first, lines in line_blocks(stream, name, max_line=max_line):
        for number, line in enumerate(lines, first):
            try:
                value = loads(line)
            except orjson.JSONDecodeError:
                value = None
            if type(value) is dict:
                yield number, value
            elif not (strict or line.strip()):
                continue
            else:
                try:
                    yield number, _second_look(line, number, strict)
                except InvalidBody as error:
                    if on_bad is None:
                        raise InvalidBody(f"{name}, line {number}: {error}") from error
                    on_bad(number, str(error))


def decode(data: bytes, name: str = "body") -> list[dict[str, Any]]:
    """The objects of a request body.

    Raises:
        InvalidBody: names the line; also for a body without any line.
    """
    objects = [value for _, value in read(io.BytesIO(data), name)]
    if not objects:
        raise InvalidBody(f"{name}: no JSON lines in {len(data)} bytes")
    return objects


def encode(values: Iterable[Mapping[str, Any]]) -> bytes:
    """Objects as lines; NumPy numbers and arrays are fine, NaN becomes null."""
    return b"".join(map(_line, values))


def write(stream: BinaryIO, values: Iterable[Mapping[str, Any]]) -> int:
    """Write objects as lines and return their number."""
    count = 0
    for value in values:
        stream.write(_line(value))
        count += 1
    return count


def parse_json(data: bytes, what: str = "body") -> Any:
    """One JSON text.

    Raises:
        InvalidBody: says where it breaks; nesting beyond 1024 levels is refused.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InvalidBody(f"{what}: {_fault(data, error)}") from error


def _line(value: Mapping[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)


def _second_look(line: bytes, number: int, strict: bool) -> dict[str, Any]:
    """What is wrong with a line, unless it only begins with a byte order mark."""
    if number == 1 and not strict:
        line = line.removeprefix(_BOM)
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise InvalidBody(_fault(line, error)) from error
    if not isinstance(value, dict):
        raise InvalidBody(f"expected a JSON object, got {_kind(value)}: {line[:80]!r}")
    return value


def _fault(line: bytes, error: orjson.JSONDecodeError) -> str:
    if line.startswith(_BOM):
        return "starts with a byte order mark, expected plain UTF-8"
    if not line.strip():
        return "empty, expected JSON"
    if not isinstance(error.doc, str) or not error.doc:  # orjson gives the text only when it is UTF-8
        return f"not valid JSON: {error.msg}: {line[:80]!r}"
    near = error.doc[max(0, error.pos - 20) : error.pos + 20]
    return f"not valid JSON: {error.msg} at column {error.colno}, near {near!r}"


def _kind(value: Any) -> str:
    return {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
