"""`.lst` image lists of MXNet: `index<TAB>label...<TAB>path`, one image a row, no header."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from formats.errors import InvalidBody
from formats.lines import read_lines

__all__ = ["ListEntry", "parse_row", "read_lst", "write_lst"]

_MAX_ROW = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ListEntry:
    index: int
    """Unique in its file; becomes the id of the image record."""
    labels: tuple[float, ...]
    """One class, one 0/1 per class, or the packed boxes of `formats.detection`."""
    path: str
    """Of the image, relative to its channel's directory, with forward slashes."""


def read_lst(source: str | Path | BinaryIO) -> Iterator[ListEntry]:
    """Yield the rows of a list; empty lines are skipped.

    Args:
        source: a path, or an open binary stream, which stays open.

    Raises:
        InvalidBody: a row is malformed; the text holds file, line number and row.
    """
    if isinstance(source, str | Path):
        with Path(source).open("rb") as stream:
            yield from _rows(stream, str(source))
    else:
        yield from _rows(source, str(getattr(source, "name", "list")))


def write_lst(path: str | Path, entries: Iterable[ListEntry]) -> int:
    """Write a list that `read_lst` and im2rec read, and return its number of rows.

    Raises:
        ValueError: an entry could not be read back.
    """
    count = 0
    with Path(path).open("w", encoding="utf-8", newline="\n") as stream:
        for entry in entries:
            row = "\t".join((str(entry.index), *map(_label_text, entry.labels), entry.path))
            try:
                same = "\n" not in row and parse_row(row) == entry
            except InvalidBody as error:
                raise ValueError(f"entry {count}: {error}") from error
            if not same:
                raise ValueError(f"entry {count}: {entry!r} cannot be written as one tab separated row")
            stream.write(row + "\n")
            count += 1
    return count


def parse_row(row: str) -> ListEntry:
    """One row without its line end.

    Raises:
        InvalidBody: too few columns, a bad number, or a path that could leave the channel.
    """
    fields = row.strip("\r\n").split("\t")
    if len(fields) < 3:
        raise InvalidBody(f"{len(fields)} tab separated columns, expected at least 3: index, label..., path")
    index = _number("index (column 1)", fields[0])
    if index != int(index) or index < 0:
        raise InvalidBody(f"index (column 1) is '{fields[0]}', expected an integer of 0 or more")
    labels = tuple(_number(f"label (column {at + 2})", text) for at, text in enumerate(fields[1:-1]))
    return ListEntry(int(index), labels, _relative(fields[-1]))


def _rows(stream: BinaryIO, name: str) -> Iterator[ListEntry]:
    for number, line in read_lines(stream, name, max_line=_MAX_ROW):
        if not line.strip():
            continue
        try:
            yield parse_row(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidBody(f"{name}, line {number}: not UTF-8 at byte {error.start}: {line[:80]!r}") from error
        except InvalidBody as error:
            raise InvalidBody(f"{name}, line {number}: {error}; row: {line[:200].decode()!r}") from error


def _number(field: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InvalidBody(f"{field} is '{text[:40]}', expected a number") from None
    if not math.isfinite(value):
        raise InvalidBody(f"{field} is '{text[:40]}', expected a finite number")
    return value


def _label_text(label: float) -> str:
    # im2rec writes %f; that would cut boxes to six digits, so only whole numbers are written its way
    return f"{label:.6f}" if label == int(label) and abs(label) < 1e15 else repr(float(label))


def _relative(path: str) -> str:
    path = path.strip()
    if not path:
        raise InvalidBody("path (last column) is empty")
    # a Windows drive or share is absolute too, and its backslashes separate parts
    if PurePosixPath(path).is_absolute() or PureWindowsPath(path).drive or path.startswith("\\"):
        raise InvalidBody(f"path '{path[:80]}' is absolute, expected one relative to the channel's directory")
    if ".." in PureWindowsPath(path).parts or "\0" in path:
        raise InvalidBody(f"path '{path[:80]}' leaves the channel's directory")
    return path
