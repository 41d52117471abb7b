"""BlazingText's texts: `__label__` lines for classification, plain lines for word vectors, and their manifest form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from formats import jsonlines
from formats.errors import InvalidBody
from formats.lines import MAX_LINE, read_blocks, read_lines

__all__ = ["PREFIX", "LabelledText", "parse_line", "parse_row", "read", "read_manifest", "read_texts", "write"]

PREFIX = "__label__"
_MAX_WORD = 1 << 20
# fastText's own set of separators; a newline ends the line before it gets here
_SPACES = re.compile(r"[ \t\r\v\f\0]+")


@dataclass(frozen=True, slots=True)
class LabelledText:
    labels: tuple[str, ...]
    """With their prefix, in the order of the line."""
    tokens: tuple[str, ...]


def read(stream: BinaryIO, name: str = "stream", *, max_line: int = MAX_LINE) -> Iterator[LabelledText]:
    """Yield the lines of a classification file; blank lines are skipped.

    Bytes that are not UTF-8 are kept (as surrogates), since the text is used as it is.

    Raises:
        InvalidBody: no line of the file has a label, a line is too long, or gzip data is damaged.
    """
    labelled = 0
    for _, line in read_lines(stream, name, max_line=max_line):
        example = parse_line(_text(line))
        if example.labels or example.tokens:
            labelled += bool(example.labels)
            yield example
    if not labelled:
        raise InvalidBody(f"{name}: no line has a token that starts with '{PREFIX}'")


def read_texts(stream: BinaryIO, name: str = "stream", *, max_tokens: int = 1024) -> Iterator[tuple[str, ...]]:
    """Yield the tokens of each line that has any, at most `max_tokens` at a time.

    A corpus of one giant line is valid (text8 is one); fastText too goes on as with a new line after 1024 tokens.

    Raises:
        InvalidBody: a single word is longer than 1 MiB, or gzip data is damaged.
    """
    rest, line = b"", list[str]()
    for block in read_blocks(stream, name):
        # cut behind the last separator, so that no word and no character is torn
        cut = max(map(block.rfind, (b" ", b"\n", b"\t", b"\r"))) + 1
        text, rest = (rest + block[:cut], block[cut:]) if cut else (b"", rest + block)
        if len(rest) > _MAX_WORD:
            raise InvalidBody(f"{name}: a word is longer than {_MAX_WORD} bytes; is this a text file?")
        for at, part in enumerate(text.split(b"\n")):
            if at and line:
                yield tuple(line)
                line = []
            line += _tokens(_text(part))
            while len(line) >= max_tokens:
                yield tuple(line[:max_tokens])
                line = line[max_tokens:]
    line += _tokens(_text(rest))
    for at in range(0, len(line), max_tokens):
        yield tuple(line[at : at + max_tokens])


def read_manifest(stream: BinaryIO, name: str = "stream") -> Iterator[LabelledText]:
    """Yield the rows of an augmented manifest of `source` and `label`.

    Raises:
        InvalidBody: names file, line and field.
    """
    for number, row in jsonlines.read(stream, name, strict=True):
        try:
            yield parse_row(row)
        except InvalidBody as error:
            raise InvalidBody(f"{name}, line {number}: {error}") from error


def parse_line(line: str) -> LabelledText:
    """One line; labels may stand anywhere in it."""
    tokens = _tokens(line)
    labels = tuple(token for token in tokens if token.startswith(PREFIX))
    return LabelledText(labels, tuple(token for token in tokens if not token.startswith(PREFIX)) if labels else tokens)


def parse_row(row: Mapping[str, Any]) -> LabelledText:
    """One manifest row: `{"source": "text", "label": 1}`, with a number, a string, or an array of them.

    Raises:
        InvalidBody: a field is missing or of another type.
    """
    source, label = row.get("source"), row.get("label")
    if not isinstance(source, str):
        raise InvalidBody(f"'source' is {source!r}, expected a text" if "source" in row else "'source' is missing")
    if label is None:
        raise InvalidBody("'label' is missing")
    values = [int(v) if type(v) is float and v.is_integer() else v for v in _listed(label)]
    for value in values:
        if type(value) not in (int, str) or value == "" or _SPACES.search(str(value)):
            raise InvalidBody(f"'label' is {str(label)[:80]!r}, expected a number, a word, or an array of them")
    return LabelledText(tuple(f"{PREFIX}{value}" for value in values), _tokens(source))


def write(stream: BinaryIO, examples: Iterable[LabelledText]) -> int:
    """Write lines, labels first, and return their number.

    Raises:
        ValueError: a label without its prefix, or a word that would be read back as several.
    """
    count = 0
    for example in examples:
        line = " ".join((*example.labels, *example.tokens))
        if "\n" in line or parse_line(line) != example:
            raise ValueError(f"example {count}: {example!r} would not be read back as it is")
        stream.write(line.encode("utf-8", "surrogateescape") + b"\n")
        count += 1
    return count


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(line: bytes) -> str:
    return line.decode("utf-8", "surrogateescape")


def _tokens(text: str) -> tuple[str, ...]:
    return tuple(filter(None, _SPACES.split(text)))
