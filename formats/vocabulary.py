"""Token vocabularies as seq2seq keeps them: UTF-8 JSON of token -> id, specials first, ids dense from 0."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from formats.errors import InvalidBody
from formats.jsonlines import parse_json

__all__ = ["BOS", "EOS", "PAD", "SPECIALS", "UNK", "build", "decode", "encode", "ids_of", "read", "tokens_of", "write"]

PAD, UNK, BOS, EOS = range(4)
SPECIALS = ("<pad>", "<unk>", "<s>", "</s>")
"""In the order of their ids."""

Vocabulary = dict[str, int]


def build(lines: Iterable[Sequence[str]], *, num_words: int = 50_000, min_count: int = 1) -> Vocabulary:
    """The vocabulary of tokenised lines, ordered as AWS's script does: by (count, token), descending.

    Args:
        lines: the tokens of each line.
        num_words: how many tokens to keep; the four specials come on top.
        min_count: rarer tokens are left out.
    """
    counts = Counter(token for line in lines for token in line)
    for special in SPECIALS:
        del counts[special]
    pairs = sorted(((count, token) for token, count in counts.items() if count >= min_count), reverse=True)
    words = [token for _, token in pairs[:num_words]]
    return {token: number for number, token in enumerate([*SPECIALS, *words])}


def decode(data: bytes, what: str = "vocabulary", *, specials: bool = True) -> Vocabulary:
    """A vocabulary from its JSON text.

    Args:
        data: the file.
        what: its name, for error texts.
        specials: require the four special tokens at their ids, as seq2seq does; object2vec's files need none.

    Raises:
        InvalidBody: not an object of whole numbers, an id twice, or a special at the wrong id.
    """
    found = parse_json(data, what)
    if not isinstance(found, dict) or not found:
        raise InvalidBody(f"{what}: expected a JSON object of token -> id with at least one token")
    _check_ids(found, what)
    if specials:
        for number, token in enumerate(SPECIALS):
            if found.get(token) != number:
                raise InvalidBody(f"{what}: token '{token}' has id {found.get(token)}, expected {number}")
        if max(found.values()) != len(found) - 1:
            raise InvalidBody(f"{what}: ids reach {max(found.values())} with {len(found)} tokens, expected no gaps")
    return found


def read(path: str | Path, *, specials: bool = True) -> Vocabulary:
    """A vocabulary file; errors as in `decode`."""
    return decode(Path(path).read_bytes(), str(path), specials=specials)


def encode(vocabulary: Mapping[str, int]) -> bytes:
    """Indented JSON in the order of ids, letters beyond ASCII as they are."""
    return orjson.dumps(dict(sorted(vocabulary.items(), key=lambda item: item[1])), option=orjson.OPT_INDENT_2)


def write(path: str | Path, vocabulary: Mapping[str, int]) -> None:
    Path(path).write_bytes(encode(vocabulary))


def ids_of(vocabulary: Mapping[str, int], tokens: Iterable[str]) -> list[int]:
    """The id of each token, `<unk>` for those that are not known."""
    return [vocabulary.get(token, UNK) for token in tokens]


def tokens_of(vocabulary: Mapping[str, int]) -> list[str]:
    """The token of each id: the inverse of a dense vocabulary."""
    return [token for token, _ in sorted(vocabulary.items(), key=lambda item: item[1])]


def _check_ids(found: Mapping[str, Any], what: str) -> None:
    seen: dict[int, str] = {}
    for token, number in found.items():
        if type(number) is not int or number < 0:
            raise InvalidBody(f"{what}: token '{token[:40]}' has id {number!r}, expected a whole number of 0 or more")
        if number in seen:
            raise InvalidBody(f"{what}: tokens '{seen[number][:40]}' and '{token[:40]}' share id {number}")
        seen[number] = token
