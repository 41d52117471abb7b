"""object2vec's JSON Lines: pairs of token id lists with a label, or one list to embed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from formats import jsonlines
from formats.errors import InvalidBody

__all__ = ["TokenPair", "parse_pair", "read", "write"]

_MAX_ID = 2**31 - 1


@dataclass(frozen=True, slots=True)
class TokenPair:
    in0: list[int] | None
    """Token ids; may be empty; None in an instance that asks for the embedding of `in1`."""
    in1: list[int] | None
    label: float | None = None
    """Class or value; None in a request."""


def read(stream: BinaryIO, name: str = "stream", *, labelled: bool = True) -> Iterator[TokenPair]:
    """Yield the pairs of a file.

    Args:
        stream: plain or gzip JSON Lines.
        name: of the file, for error texts.
        labelled: require both sides and a label, as in training data.

    Raises:
        InvalidBody: names file, line and field.
    """
    for number, row in jsonlines.read(stream, name):
        try:
            yield parse_pair(row, labelled=labelled)
        except InvalidBody as error:
            raise InvalidBody(f"{name}, line {number}: {error}") from error


def parse_pair(row: Mapping[str, Any], *, labelled: bool = False) -> TokenPair:
    """One pair, or one instance of a request; fields of other names are ignored.

    Raises:
        InvalidBody: names the field, its value, and what was expected.
    """
    in0, in1 = _tokens(row, "in0"), _tokens(row, "in1")
    if in0 is None and in1 is None:
        raise InvalidBody(f"neither 'in0' nor 'in1' is there; present: {_names(row)}")
    label = row.get("label")
    if labelled:
        for field, value in (("in0", in0), ("in1", in1), ("label", label)):
            if value is None:
                raise InvalidBody(f"'{field}' is missing; present: {_names(row)}")
    if label is not None and (type(label) not in (int, float) or abs(label) > 3.4e38):
        raise InvalidBody(f"'label' is {label!r}, expected a number")
    return TokenPair(in0, in1, None if label is None else float(label))


def write(stream: BinaryIO, pairs: Iterable[TokenPair]) -> int:
    """Write pairs as lines and return their number; whole labels are written as integers."""
    return jsonlines.write(stream, map(_row, pairs))


def _row(pair: TokenPair) -> dict[str, Any]:
    # beyond 2**53 a float is no exact count any more, and beyond 2**63 JSON writers refuse the integer
    whole = pair.label is not None and pair.label.is_integer() and abs(pair.label) < 2**53
    label = int(pair.label) if whole and pair.label is not None else pair.label
    row = {"in0": pair.in0, "in1": pair.in1, "label": label}
    return {field: value for field, value in row.items() if value is not None}


def _tokens(row: Mapping[str, Any], field: str) -> list[int] | None:
    tokens = row.get(field)
    if tokens is None:
        return None
    if type(tokens) is not list:
        raise InvalidBody(f"'{field}' is {str(tokens)[:40]!r}, expected a list of token ids")
    # the set is cheap and the usual answer; only a bad list is visited item by item
    if not set(map(type, tokens)) <= {int} or (tokens and not 0 <= min(tokens) <= max(tokens) <= _MAX_ID):
        for at, token in enumerate(tokens):
            if type(token) is not int or not 0 <= token <= _MAX_ID:
                raise InvalidBody(f"'{field}'[{at}] is {str(token)[:40]!r}, expected a token id of 0 to {_MAX_ID}")
    return tokens


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name[:40]}'" for name in sorted(row)[:10]) or "nothing"
