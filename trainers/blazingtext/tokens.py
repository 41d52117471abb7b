"""Text to word numbers and hashes, compiled: splitting, counting and hashing as fastText does, byte for byte."""

# ruff: noqa: C901, SIM110  one loop nest each: a call inside it would cost what it saves

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["count_words", "grown_table", "line_features", "look_up", "renumber", "subword_hashes"]

_compiled = njit(nogil=True, cache=True, error_model="numpy")
_OFFSET, _PRIME = np.uint32(2166136261), np.uint32(16777619)
_LONGEST = 1 << 20


@_compiled
def _hashed(h, byte):
    """One step of FNV-1a of 32 bits, over bytes that are extended with their sign."""
    signed = np.uint32(byte) | np.uint32(0xFFFFFF00) if byte > 127 else np.uint32(byte)
    return np.uint32((h ^ signed) * _PRIME)  # numba multiplies in 64 bits


@_compiled
def _hash(text, begin, end):
    h = _OFFSET
    for i in range(begin, end):
        byte = text[i]
        h = _hashed(h, byte)
    return h


@_compiled
def _is_space(byte):
    return byte == 32 or byte == 10 or byte == 13 or byte == 9 or byte == 11 or byte == 12 or byte == 0  # noqa: PLR1714


@_compiled
def _same(text, begin, end, other, at, length):
    if end - begin != length:
        return False
    for i in range(length):
        if text[begin + i] != other[at + i]:
            return False
    return True


@_compiled
def grown_table(hashes, count, size):
    table = np.full(size, -1, np.int32)
    mask = np.uint32(size - 1)
    for number in range(count):
        place = hashes[number] & mask
        while table[place] >= 0:
            place = (place + np.uint32(1)) & mask
        table[place] = number
    return table


@_compiled
def count_words(text, ids, known_text, known_ats, known_lengths, hashes, counts, table, num_known, num_bytes):
    """Number the words of a text by first occurrence; a line end is word 0, which must be there already.

    The arrays of the vocabulary have room for what may come; where it does not suffice, the count ends early.

    Returns: bytes read, ids written, words known, bytes of words.
    """
    size = len(text)
    at = 0
    written = 0
    mask = np.uint32(len(table) - 1)
    while at < size:
        byte = text[at]
        if byte == 10:
            ids[written] = 0
            counts[0] += 1
            written += 1
            at += 1
            continue
        if _is_space(byte):
            at += 1
            continue
        begin = at
        h = _OFFSET
        while at < size:
            byte = text[at]
            if _is_space(byte):
                break
            h = _hashed(h, byte)
            at += 1
        place = h & mask
        number = table[place]
        while number >= 0 and not (
            hashes[number] == h and _same(text, begin, at, known_text, known_ats[number], known_lengths[number])
        ):
            place = (place + np.uint32(1)) & mask
            number = table[place]
        if number < 0:
            full = num_known * 2 >= len(table) or num_known >= len(counts)
            if full or num_bytes + at - begin > len(known_text):
                return begin, written, num_known, num_bytes
            number = num_known
            table[place] = number
            hashes[number] = h
            known_ats[number] = num_bytes
            known_lengths[number] = at - begin
            for i in range(begin, at):
                known_text[num_bytes + i - begin] = text[i]
            num_bytes += at - begin
            num_known += 1
        counts[number] += 1
        ids[written] = number
        written += 1
    return at, written, num_known, num_bytes


@_compiled
def look_up(text, ids, found_hashes, known_text, known_ats, known_lengths, hashes, table, prefix):
    """The numbers and hashes of a text's words by a vocabulary that does not grow.

    Words that it lacks are -1, labels -2.

    Returns: ids written. The line end is word 0.
    """
    size = len(text)
    at = 0
    written = 0
    mask = np.uint32(len(table) - 1)
    while at < size:
        byte = text[at]
        if byte == 10 or not _is_space(byte):
            begin = at
            if byte == 10:
                number, h = 0, hashes[0]
                at += 1
            else:
                while at < size and not _is_space(text[at]):
                    at += 1
                h = _hash(text, begin, at)
                place = h & mask
                number = table[place]
                while number >= 0 and not (
                    hashes[number] == h and _same(text, begin, at, known_text, known_ats[number], known_lengths[number])
                ):
                    place = (place + np.uint32(1)) & mask
                    number = table[place]
            if number < 0 and at - begin > 8 and _same(text, begin, begin + 9, prefix, 0, 9):
                number = -2
            ids[written] = number
            found_hashes[written] = h
            written += 1
        else:
            at += 1
    return written


@_compiled
def renumber(ids, numbers):
    """Put final numbers in place, leave out words below 0 unless they end a line. Returns: how many stay."""
    kept = 0
    for i in range(len(ids)):
        number = numbers[ids[i]]
        if number >= -1:
            ids[kept] = number
            kept += 1
    return kept


@_compiled
def line_features(
    ids, hashes, numbers, num_words, num_ngrams, buckets, rows, num_rows, grow, starts, features, label_starts, labels
):
    """The rows of each line: its words, then its n-grams of words by hash; and its labels.

    Args:
        ids, hashes: of each token; `numbers[id]` is a word's row, `num_words + label` of a label, -1 of what is rare;
            token -1 is a word that nobody knows, -2 such a label.
        rows: (buckets,) int32, the row of each bucket or 0 where it has none yet; unless `grow`, such n-grams are
            left out.
        starts, features, label_starts, labels: filled; sized beforehand.

    Returns: lines, features, labels, rows in use.
    """
    num_lines = num_features = num_labels = 0
    line = np.empty(1024, np.int32)
    size = 0
    tokens = 0
    starts[0] = label_starts[0] = 0
    for i in range(len(ids)):
        token = ids[i]
        number = numbers[token] if token >= 0 else token
        tokens += 1
        if number >= num_words:
            labels[num_labels] = number - num_words
            num_labels += 1
        elif number != -2:
            if number >= 0:
                features[num_features] = number
                num_features += 1
            if size == len(line):
                longer = np.empty(2 * size, np.int32)
                longer[:size] = line
                line = longer
            line[size] = np.int32(hashes[i])
            size += 1
        if token == 0 or i == len(ids) - 1:
            for a in range(size):
                h = np.uint64(np.int64(line[a]))
                for b in range(a + 1, min(size, a + num_ngrams)):
                    h = h * np.uint64(116049371) + np.uint64(np.int64(line[b]))
                    bucket = np.int64(h % np.uint64(buckets))
                    row = rows[bucket]
                    if row == 0:
                        if not grow:
                            continue
                        row = num_rows
                        rows[bucket] = row
                        num_rows += 1
                    features[num_features] = row
                    num_features += 1
            if tokens > 1 or token != 0:  # blank lines are skipped
                num_lines += 1
                starts[num_lines] = num_features
                label_starts[num_lines] = num_labels
            else:
                num_features, num_labels = starts[num_lines], label_starts[num_lines]
            size = tokens = 0
    return num_lines, num_features, num_labels, num_rows


@_compiled
def subword_hashes(text, begin, end, shortest, longest, found):
    """Hashes of the character n-grams of `<word>`, UTF-8 characters kept whole. Returns: how many.

    Args:
        text, begin, end: where `<word>` is, brackets included.
        shortest, longest: in characters; of single characters the brackets are left out.
        found: room for them.
    """
    count = 0
    for i in range(begin, end):
        if (text[i] & 0xC0) == 0x80:
            continue
        h = _OFFSET
        j = i
        n = 1
        while j < end and n <= longest:
            while True:
                byte = text[j]
                h = _hashed(h, byte)
                j += 1
                if j >= end or (text[j] & 0xC0) != 0x80:
                    break
            if n >= shortest and not (n == 1 and (i == begin or j == end)):
                found[count] = h
                count += 1
            n += 1
    return count
