"""From text to the rows of a fastText model that it is the mean of: splitting and hashing, exact to the bit.

Plain Python and numpy, for the serving side: known words cost one look-up, n-grams of words are hashed all at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["END", "LABEL_PREFIX", "Units", "hash_of", "subwords_of"]

END = b"</s>"
LABEL_PREFIX = b"__label__"
_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1
_MULTIPLIER = 116049371
_MOST_CACHED = 1 << 16


def hash_of(word: bytes) -> int:
    """FNV-1a of 32 bits over bytes that are extended with their sign."""
    value = 2166136261
    for byte in word:
        value = ((value ^ (byte if byte < 128 else byte | 0xFFFFFF00)) * 16777619) & _MASK32
    return value


def subwords_of(word: bytes, shortest: int, longest: int) -> list[bytes]:
    """The character n-grams of `<word>`, UTF-8 characters kept whole, in fastText's order."""
    text = b"<" + word + b">"
    heads = [at for at, byte in enumerate(text) if byte & 0xC0 != 0x80] + [len(text)]
    num_characters = len(heads) - 1
    return [
        text[heads[first] : heads[first + length]]
        for first in range(num_characters)
        for length in range(max(shortest, 1), min(longest, num_characters - first) + 1)
        if length > 1 or 0 < first < num_characters - 1
    ]


@dataclass(frozen=True, slots=True)
class _Word:
    hash: int
    """As a signed number: so n-grams of words take it in."""
    units: tuple[int, ...]


class Units:
    """What a model's texts consist of.

    Args:
        words: the vocabulary, by row.
        bucket: how many hash buckets the model was trained with.
        keys: the buckets that have a row, ascending, (K,); bucket `keys[i]` is row `len(words) + i`.
        absent: the row of any other bucket, or -1 where such n-grams are left out.
        word_ngrams: up to so many words make an n-gram.
        minn, maxn: shortest and longest character n-gram; maxn 0 for none.
    """

    def __init__(
        self, words: Sequence[bytes], *, bucket: int, keys: NDArray[np.int64], absent: int, word_ngrams: int,
        minn: int, maxn: int,
    ) -> None:  # fmt: skip
        self._numbers = {word: number for number, word in enumerate(words)}
        self._first = len(words)
        self._bucket, self._keys, self._absent = bucket, keys, absent
        self._word_ngrams, self._minn, self._maxn = word_ngrams, minn, maxn
        self._cache: dict[bytes, _Word | None] = {}

    def of_line(self, text: str) -> NDArray[np.int64]:
        """The rows of one line of text, its end included, as fastText's `predict` sees it; (n,) int64."""
        data = text.encode()
        if b"\0" in data:
            data = data.replace(b"\0", b" ")
        tokens = data.split()
        if END in tokens:  # what follows is another line
            del tokens[tokens.index(END) :]
        tokens.append(END)
        cache = self._cache
        units: list[int] = []
        hashes: list[int] = []
        for token in tokens:
            try:
                word = cache[token]
            except KeyError:
                word = self._look_up(token)
            if word is not None:
                units += word.units
                hashes.append(word.hash)
        known = np.array(units, np.int64)
        if self._word_ngrams < 2 or len(hashes) < 2 or not self._may_hash():
            return known
        return np.concatenate([known, self._ngrams(hashes)])

    def of_word(self, word: str) -> NDArray[np.int64]:
        """The rows of one word, known or not: a word itself if known, and its character n-grams; (n,) int64."""
        token = word.encode()
        return np.array(self._units_of(token), np.int64)

    def _look_up(self, token: bytes) -> _Word | None:
        word = None
        if token in self._numbers or not token.startswith(LABEL_PREFIX):
            signed = hash_of(token)
            signed -= (signed & 0x80000000) << 1
            word = _Word(signed, tuple(self._units_of(token)))
        if len(self._cache) < _MOST_CACHED and len(token) < 64:
            self._cache[token] = word
        return word

    def _units_of(self, token: bytes) -> list[int]:
        number = self._numbers.get(token)
        units = [] if number is None else [number]
        # the end of a line has no inside
        if self._maxn and token != END and self._may_hash():
            grams = np.array([hash_of(gram) for gram in subwords_of(token, self._minn, self._maxn)], np.uint64)
            units += self._rows(grams).tolist()
        return units

    def _may_hash(self) -> bool:
        """Whether there is any row behind the words' own."""
        return self._bucket > 0 and (self._absent >= 0 or len(self._keys) > 0)

    def _ngrams(self, hashes: list[int]) -> NDArray[np.int64]:
        hash_T = np.array(hashes, np.int64).view(np.uint64)
        running = hash_T
        found = np.empty((len(hashes), self._word_ngrams - 1), np.uint64)
        present = np.zeros(found.shape, bool)
        multiplier = np.uint64(_MULTIPLIER)
        for length in range(1, min(self._word_ngrams, len(hashes))):
            running = running[:-1] * multiplier + hash_T[length:]
            found[: len(running), length - 1] = running
            present[: len(running), length - 1] = True
        return self._rows(found[present])

    def _rows(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        bucket = (hashes % np.uint64(self._bucket)).astype(np.int64)
        if len(self._keys) == self._bucket:
            return bucket + self._first
        if not len(self._keys):
            return np.full(len(bucket) if self._absent >= 0 else 0, self._absent, np.int64)
        place = np.minimum(np.searchsorted(self._keys, bucket), len(self._keys) - 1)
        rows = np.where(self._keys[place] == bucket, place + self._first, self._absent)
        return rows if self._absent >= 0 else rows[rows >= 0]
