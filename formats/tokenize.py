"""Parallel text into seq2seq's training files: two vocabularies and framed protobuf records of token ids.

The rules are those of AWS's `create_vocab_proto.py`: one sentence a line, tokens between blanks, no special tokens in
the records (the trainer adds them), and a pair with an empty side is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

from formats import record, subwords, vocabulary
from formats.errors import InvalidBody
from formats.lines import read_lines
from formats.record import Record, Tensor

__all__ = ["TokenizeReport", "tokenize"]


Split = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True)
class TokenizeReport:
    vocab_source: int
    """Number of tokens, the four specials included."""
    vocab_target: int
    train_pairs: int
    val_pairs: int
    dropped: int
    """Pairs with an empty side, in both files."""


def tokenize(
    *,
    train_source: Path,
    train_target: Path,
    output_dir: Path,
    val_source: Path | None = None,
    val_target: Path | None = None,
    train_output: str = "train.rec",
    val_output: str = "val.rec",
    vocab_source: Path | None = None,
    vocab_target: Path | None = None,
    single_vocab: bool = False,
    num_words_source: int = 50_000,
    num_words_target: int = 50_000,
    min_count_source: int = 1,
    min_count_target: int = 1,
    num_subwords: int | None = None,
    subwords_model: Path | None = None,
    write: Callable[[str], object] = print,
) -> TokenizeReport:
    """Write `train.rec`, `val.rec` (when validation texts are given), `vocab.src.json` and `vocab.trg.json`.

    Args:
        train_source: tokenised UTF-8 text, plain or gzip; bytes that are not UTF-8 are replaced.
        train_target: its translation, line by line.
        output_dir: made if it is not there.
        val_source, val_target: the same for validation.
        train_output, val_output: names of the files of records.
        vocab_source, vocab_target: existing vocabularies to use instead of building them.
        single_vocab: one vocabulary, built of both sides with the source's limits, written under both names.
        num_words_source, num_words_target: most frequent tokens to keep, before the four specials.
        min_count_source, min_count_target: rarer tokens are left out.
        num_subwords: the texts are plain, and are split into so many parts of words, learned from both sides of the
            training text and written as `subwords.model`.
        subwords_model: the same, by an existing SentencePiece model.
        write: told the results, one line at a time.

    Raises:
        InvalidBody: two files of different numbers of lines, no pair at all, or a bad vocabulary.
        ValueError: only one of the two validation texts, or both kinds of subwords.
    """
    if (val_source is None) != (val_target is None):
        raise ValueError("validation needs both its source and its target text")
    output_dir.mkdir(parents=True, exist_ok=True)
    split = _splitter([train_source, train_target], output_dir, num_subwords, subwords_model)
    texts = [train_source, train_target] if single_vocab else [train_source]
    source = target = _vocabulary(texts, split, vocab_source, num_words_source, min_count_source)
    if not single_vocab:
        target = _vocabulary([train_target], split, vocab_target, num_words_target, min_count_target)
    vocabulary.write(output_dir / "vocab.src.json", source)
    vocabulary.write(output_dir / "vocab.trg.json", target)
    write(f"vocabulary: {len(source)} source and {len(target)} target tokens")

    train, dropped = _write_pairs(train_source, train_target, split, source, target, output_dir / train_output, write)
    val = 0
    if val_source is not None and val_target is not None:
        val, more = _write_pairs(val_source, val_target, split, source, target, output_dir / val_output, write)
        dropped += more
    return TokenizeReport(len(source), len(target), train, val, dropped)


def _splitter(texts: list[Path], output_dir: Path, size: int | None, model: Path | None) -> Split:
    """How lines become tokens: at blanks, or into parts of words, which are learned here if a size is given."""
    if size is not None and model is not None:
        raise ValueError("subwords are either learned or given, not both")
    if size is not None:
        model = output_dir / "subwords.model"
        subwords.learn(chain.from_iterable(map(_texts, texts)), model, size)
    return str.split if model is None else subwords.Subwords(model).split


def _vocabulary(texts: list[Path], split: Split, given: Path | None, num_words: int, min_count: int) -> dict[str, int]:
    if given is not None:
        return vocabulary.read(given)
    lines = map(split, chain.from_iterable(map(_texts, texts)))
    return vocabulary.build(lines, num_words=num_words, min_count=min_count)


def _texts(path: Path) -> Iterator[str]:
    with path.open("rb") as stream:
        for _, line in read_lines(stream, str(path)):
            yield line.decode("utf-8", "replace")


def _write_pairs(
    source_text: Path,
    target_text: Path,
    split: Split,
    source: Mapping[str, int],
    target: Mapping[str, int],
    output: Path,
    write: Callable[[str], object],
) -> tuple[int, int]:
    dropped = 0

    def pairs() -> Iterator[Record]:
        nonlocal dropped
        for number, (left, right) in enumerate(zip_longest(_texts(source_text), _texts(target_text)), 1):
            if left is None or right is None:
                short, long = (source_text, target_text) if left is None else (target_text, source_text)
                raise InvalidBody(f"{short} ends at line {number - 1}, {long} goes on: the two must be parallel")
            tokens = split(left), split(right)
            if all(tokens):
                yield Record({"source": _tensor(source, tokens[0]), "target": _tensor(target, tokens[1])})
            else:
                dropped += 1

    partial = output.with_name(output.name + ".partial")
    try:
        with partial.open("wb") as stream:
            count = record.write(stream, pairs())
        if count == 0:
            raise InvalidBody(f"{source_text}: no pair with both sides")
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    write(f"{output}: {count} pairs, {dropped} dropped for an empty side")
    return count, dropped


def _tensor(words: Mapping[str, int], tokens: list[str]) -> Tensor:
    return Tensor(np.array(vocabulary.ids_of(words, tokens), np.int32))
