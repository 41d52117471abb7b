"""Channels of text to numbers: one pass over the bytes splits, counts and numbers the words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from formats import jsonlines, labelled_text, manifests
from formats.errors import InvalidBody
from formats.fasttext_units import LABEL_PREFIX
from formats.lines import gunzipped
from formats.recordio import read_records
from formats.source import epoch_pipe, list_files, open_file
from trainers.blazingtext import tokens
from trainers.job import ClientError, Job
from trainers.progress import log

__all__ = ["Lines", "Vocabulary", "WordList", "blocks_of", "char_ngrams", "number_lines", "read_corpus"]

Ids = NDArray[np.int32]
_BLOCK = 32 << 20
_WORDS_PER_LINE = 10_000_000  # of the log
_MANIFESTS = (".manifest", ".jsonl", ".json")
_SPACES = (b"\n", b" ", b"\t", b"\r")
_LONGEST_WORD = 1 << 20


class Vocabulary:
    """The words of a text by first occurrence, grown block by block; word 0 is the line end `</s>`."""

    def __init__(self) -> None:
        self.num_words, self._num_bytes = 1, 4
        self._text = np.zeros(1 << 16, np.uint8)
        self._text[:4] = np.frombuffer(b"</s>", np.uint8)
        size = 1 << 13
        self._ats, self._lengths = np.zeros(size, np.int64), np.zeros(size, np.int32)
        self._hashes, self._counts = np.zeros(size, np.uint32), np.zeros(size, np.int64)
        self._lengths[0] = 4
        self._hashes[0] = 3617362777  # of </s>
        self._grow_table()

    def number(self, block: NDArray[np.uint8]) -> Ids:
        """The words of a block that ends between words; new ones are taken in."""
        ids = np.empty(len(block) // 2 + 1 + int(np.count_nonzero(block == 10)), np.int32)
        at = written = 0
        while at < len(block):
            read, count, self.num_words, self._num_bytes = tokens.count_words(
                block[at:], ids[written:], self._text, self._ats, self._lengths, self._hashes, self._counts,
                self._table, self.num_words, self._num_bytes,
            )  # fmt: skip
            at, written = at + read, written + count
            if at < len(block):
                self._grow()
        return ids[:written]

    def look_up(self, block: NDArray[np.uint8]) -> tuple[Ids, NDArray[np.uint32]]:
        """The words of a block without taking in new ones, which are -1 (labels -2); and the hash of each."""
        size = len(block) // 2 + 1 + int(np.count_nonzero(block == 10))
        ids, hashes = np.empty(size, np.int32), np.empty(size, np.uint32)
        prefix = np.frombuffer(LABEL_PREFIX, np.uint8)
        written = tokens.look_up(
            block, ids, hashes, self._text, self._ats, self._lengths, self._hashes, self._table, prefix
        )
        return ids[:written], hashes[:written]

    @property
    def counts(self) -> NDArray[np.int64]:
        return self._counts[: self.num_words]

    @property
    def hashes(self) -> NDArray[np.uint32]:
        return self._hashes[: self.num_words]

    def are_labels(self) -> NDArray[np.bool_]:
        """(num_words,): which words begin with the label prefix."""
        long_enough = self._lengths[: self.num_words] >= len(LABEL_PREFIX)
        ats = np.where(long_enough, self._ats[: self.num_words], 0)
        places = ats[:, None] + np.arange(len(LABEL_PREFIX))
        same: NDArray[np.bool_] = (self._text[places] == np.frombuffer(LABEL_PREFIX, np.uint8)).all(axis=1)
        return same & long_enough

    def texts(self, numbers: NDArray[np.int64]) -> list[bytes]:
        data = self._text[: self._num_bytes].tobytes()
        begins = self._ats[numbers].tolist()
        lengths = self._lengths[numbers].tolist()
        return [data[begin : begin + length] for begin, length in zip(begins, lengths, strict=True)]

    def _grow(self) -> None:
        self._text = np.concatenate([self._text, np.zeros(max(len(self._text), 2 * _LONGEST_WORD), np.uint8)])
        if self.num_words * 2 >= len(self._counts):
            for name in ("_ats", "_lengths", "_hashes", "_counts"):
                array = getattr(self, name)
                setattr(self, name, np.concatenate([array, np.zeros(3 * len(array), array.dtype)]))
            self._grow_table()

    def _grow_table(self) -> None:
        self._table = tokens.grown_table(self._hashes, self.num_words, 4 * len(self._counts))


@dataclass(frozen=True, slots=True)
class WordList:
    """Which words have rows, most frequent first, and which labels."""

    numbers: Ids
    """By number of first occurrence: row; words + label; -1 of a line end and -2 of a word that is too rare."""
    words: list[bytes]
    word_counts: NDArray[np.int64]
    labels: list[bytes]
    label_counts: NDArray[np.int64]

    @classmethod
    def of(cls, vocabulary: Vocabulary, min_count: int, *, with_labels: bool) -> WordList:
        counts = vocabulary.counts
        are_labels = vocabulary.are_labels() if with_labels else np.zeros(len(counts), bool)
        order = np.argsort(-counts, kind="stable")
        kept = order[(counts[order] >= max(min_count, 1)) & ~are_labels[order]]
        labels = order[are_labels[order]]
        numbers = np.full(len(counts), -1 if with_labels else -2, np.int32)
        numbers[0] = -1
        numbers[kept] = np.arange(len(kept))
        numbers[labels] = len(kept) + np.arange(len(labels))
        if not len(kept):
            raise ClientError(
                f"The vocabulary is empty: none of {len(counts)} words occurs min_count = {min_count} times."
            )
        return cls(numbers, vocabulary.texts(kept), counts[kept], vocabulary.texts(labels), counts[labels])


@dataclass(frozen=True, slots=True)
class Lines:
    """Numbered lines: line i has features[starts[i]:starts[i + 1]] and labels[label_starts[i]:label_starts[i + 1]]."""

    starts: NDArray[np.int64]
    features: Ids
    """Rows: of words, then of n-grams in the order in which they first occur."""
    label_starts: NDArray[np.int64]
    labels: Ids

    def __len__(self) -> int:
        return len(self.starts) - 1


def blocks_of(job: Job, channel: str) -> Iterator[NDArray[np.uint8]]:
    """A channel's bytes as lines of tokens, in blocks that end between words; files in the order of their names.

    Raises:
        ClientError: nothing is there, or it is not what a text can be.
    """
    settings = job.settings_of(channel)
    try:
        if settings.pipe:
            yield from _block(_piped_lines(epoch_pipe(job.path_of(channel).parent, channel, 0)))
            return
        files = list_files(job.channel(channel))
        if len(files) > 1:
            log.warning("Channel '%s' holds %d files; all of them are read, in the order of their names",
                        channel, len(files))  # fmt: skip
        for file in files:
            with open_file(file) as stream:
                if file.lower().removesuffix(".gz").endswith(_MANIFESTS):
                    yield from _block(_manifest_lines(stream, file))
                else:
                    yield from _block(_raw(gunzipped(stream)))
    except InvalidBody as error:
        raise ClientError(f"Channel '{channel}': {error}") from error


def read_corpus(job: Job, channel: str) -> tuple[Vocabulary, Ids]:
    """Number a channel's words. Returns: the vocabulary, (tokens,) int32."""
    vocabulary, parts, num_read = Vocabulary(), list[Ids](), 0
    for block in blocks_of(job, channel):
        parts.append(vocabulary.number(block))
        before, num_read = num_read, num_read + len(parts[-1])
        if num_read // _WORDS_PER_LINE > before // _WORDS_PER_LINE:
            log.info("Read %dM words", num_read // _WORDS_PER_LINE * 10)
    return vocabulary, np.concatenate(parts) if parts else np.empty(0, np.int32)


def number_lines(
    ids: Ids, hashes: NDArray[np.uint32], words: WordList, rows: Ids, num_rows: int, *, word_ngrams: int, grow: bool
) -> tuple[Lines, int]:
    """The features of each line; see `tokens.line_features`. Returns: lines, rows in use."""
    num_line_ends = int(np.count_nonzero(ids == 0)) + 2
    starts, label_starts = np.zeros(num_line_ends, np.int64), np.zeros(num_line_ends, np.int64)
    features, labels = np.empty(len(ids) * word_ngrams, np.int32), np.empty(len(ids), np.int32)
    num_lines, num_features, num_labels, num_rows = tokens.line_features(
        ids, hashes, words.numbers, len(words.words), word_ngrams, len(rows), rows, num_rows, grow, starts, features,
        label_starts, labels,
    )  # fmt: skip
    return (
        Lines(starts[: num_lines + 1], features[:num_features], label_starts[: num_lines + 1], labels[:num_labels]),
        num_rows,
    )


def char_ngrams(
    words: list[bytes], buckets: int, shortest: int, longest: int
) -> tuple[NDArray[np.int64], Ids, NDArray[np.int64]]:
    """The units of each word: its own row, then those of its character n-grams.

    Returns: (words + 1,) where each word's units begin; the units; (K,) the buckets behind the words' rows, ascending.
    """
    lengths = np.array([0 if word == b"</s>" else len(word) + 2 for word in words])
    found = np.empty(int(lengths.max()) * (longest - shortest + 1) + 1, np.uint32)
    hashes, counts = [], np.zeros(len(words), np.int64)
    for number, word in enumerate(words):
        if word != b"</s>":
            text = np.frombuffer(b"<" + word + b">", np.uint8)
            counts[number] = tokens.subword_hashes(text, 0, len(text), shortest, longest, found)
            hashes.append(found[: counts[number]].copy())
    bucket = np.concatenate([*hashes, np.empty(0, np.uint32)]).astype(np.int64) % buckets
    keys, places = np.unique(bucket, return_inverse=True)
    starts = np.concatenate([[0], np.cumsum(counts + 1)])
    units = np.empty(starts[-1], np.int32)
    own = np.zeros(len(units), bool)
    own[starts[:-1]] = True
    units[own] = np.arange(len(words))
    units[~own] = len(words) + places
    return starts, units, keys


def _raw(stream: BinaryIO) -> Iterator[bytes]:
    while block := stream.read(_BLOCK):
        yield block


def _manifest_lines(stream: BinaryIO, name: str) -> Iterator[bytes]:
    for example in labelled_text.read_manifest(stream, name):
        yield _line(example)


def _piped_lines(pipe: Path) -> Iterator[bytes]:
    with open_file(pipe) as stream:
        payloads = (record.payload for record in read_records(stream, str(pipe)))
        for source, label in manifests.grouped(payloads, 2, str(pipe)):
            row = {"source": source.decode("utf-8", "surrogateescape"), "label": _label(label)}
            yield _line(labelled_text.parse_row(row))


def _label(data: bytes) -> object:
    try:
        return jsonlines.parse_json(data, "label")
    except InvalidBody:
        return data.decode("utf-8", "surrogateescape")  # a bare word


def _line(example: labelled_text.LabelledText) -> bytes:
    return " ".join((*example.labels, *example.tokens)).encode("utf-8", "surrogateescape") + b"\n"


def _block(parts: Iterator[bytes]) -> Iterator[NDArray[np.uint8]]:
    """Join small parts and cut large ones behind a space; the last line of a file is ended where it is not."""
    rest = list[bytes]()
    size = 0
    for part in parts:
        rest.append(part)
        size += len(part)
        if size < _BLOCK // 2:
            continue
        data = b"".join(rest)
        cut = max(map(data.rfind, _SPACES)) + 1
        if len(data) - cut > _LONGEST_WORD:
            raise InvalidBody(f"a word is longer than {_LONGEST_WORD} bytes; is this a text?")
        yield np.frombuffer(data[:cut], np.uint8)
        rest, size = [data[cut:]], len(data) - cut
    data = b"".join(rest)
    if data:
        yield np.frombuffer(data if data.endswith(b"\n") else data + b"\n", np.uint8)
