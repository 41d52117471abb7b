"""Channels of sentence pairs: read into long rows of token ids, checked, and cut into batches of like lengths."""

# N pairs, B of a batch, T tokens

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats import vocabulary
from formats.errors import InvalidBody
from formats.record_lists import Lists, read_lists
from formats.source import list_files, open_file
from formats.vocabulary import BOS, EOS, PAD
from trainers.job import ClientError, Job
from trainers.progress import log
from trainers.seq2seq.hyperparameters import Hyperparameters

__all__ = ["Pairs", "Side", "Vocabularies", "batches", "buckets", "read_channel", "read_vocabularies"]

_FILES = ("vocab.src.json", "vocab.trg.json")
_SIDES = ("source", "target")


class Vocabularies(NamedTuple):
    source: dict[str, int]
    target: dict[str, int]


@dataclass(frozen=True, slots=True)
class Side:
    """One side of all pairs, as far as it is read."""

    ids: NDArray[np.int32]
    begins: NDArray[np.int64]
    """(N,)."""
    lengths: NDArray[np.int64]
    """(N,)."""

    def padded(self, pairs: NDArray[np.int64], width: int, *, end: bool = False) -> NDArray[np.int64]:
        """(B, T) ids of some pairs, 0 behind the end, as wide as the longest but at least `width`.

        Args:
            pairs: their numbers.
            width: 0 for no more than is needed.
            end: put `</s>` behind each.
        """
        length_B = self.lengths[pairs]
        place_T = np.arange(max(width, int(length_B.max(initial=1)) + end))
        there_BT = place_T < length_B[:, None]
        found = np.full(there_BT.shape, PAD, np.int64)
        found[there_BT] = self.ids[(self.begins[pairs][:, None] + place_T)[there_BT]]
        if end:
            found[np.arange(len(pairs)), length_B] = EOS
        return found

    def kept(self, which: NDArray[np.bool_]) -> Side:
        return Side(self.ids, self.begins[which], self.lengths[which])


@dataclass(frozen=True, slots=True)
class Pairs:
    source: Side
    target: Side

    def __len__(self) -> int:
        return len(self.source.begins)

    def identity(self) -> str:
        """Same text, same data."""
        digest = hashlib.sha256()
        for side in (self.source, self.target):
            digest.update(side.ids.tobytes() + side.begins.tobytes() + side.lengths.tobytes())
        return digest.hexdigest()

    @property
    def length_ratios(self) -> NDArray[np.float64]:
        """(N,) target tokens per source token."""
        return self.target.lengths / self.source.lengths


def read_vocabularies(job: Job) -> Vocabularies:
    """Both files of the vocab channel.

    Raises:
        ClientError: one is missing or not a vocabulary.
    """
    directory = job.channel("vocab")
    found = []
    for name in _FILES:
        file = directory / name
        if not file.is_file():
            raise ClientError(f"Channel 'vocab': {file} is missing; expected {' and '.join(_FILES)}.")
        try:
            found.append(vocabulary.read(file))
        except InvalidBody as error:
            raise ClientError(f"Channel 'vocab': {error}") from error
    return Vocabularies(*found)


def read_channel(job: Job, name: str, wanted: Hyperparameters, known: Vocabularies) -> Pairs:
    """All pairs of all files in a channel's tree; what is too long is cut, and pairs with an empty side are left out.

    Raises:
        ClientError: a file is damaged, a token is not in the vocabulary, or there is no pair; names file and record.
    """
    parts: list[tuple[Lists, ...]] = []
    origins = []
    for file in list_files(job.channel(name)):
        before = sum(len(part[0].offsets) - 1 for part in parts)
        try:
            with open_file(file) as stream:
                parts += read_lists(stream, file)
        except InvalidBody as error:
            raise ClientError(
                f"Channel '{name}': {error}. Expected RecordIO-protobuf records with int32 features source and target."
            ) from error
        origins.append((file, sum(len(part[0].offsets) - 1 for part in parts) - before))
    sides = []
    limits = (wanted.max_seq_len_source, wanted.max_seq_len_target)
    for number, (words, limit) in enumerate(zip(known, limits, strict=True)):
        ids, ends = _joined([part[number] for part in parts])
        _check(ids, ends, len(words), f"Channel '{name}'", _SIDES[number], origins)
        side = _without_specials(ids, ends)
        cut = int((side.lengths > limit).sum())
        if cut:
            log.warning(
                "Channel '%s': %d of %d %s sequences are longer than max_seq_len_%s=%d and were cut",
                *(name, cut, len(side.lengths), _SIDES[number], _SIDES[number], limit),
            )
        sides.append(Side(side.ids, side.begins, np.minimum(side.lengths, limit)))
    full = (sides[0].lengths > 0) & (sides[1].lengths > 0)
    if not full.all():
        log.warning("Channel '%s': left out %d pairs with an empty side", name, int((~full).sum()))
    if not full.any():
        raise ClientError(f"Channel '{name}' holds no sentence pairs.")
    pairs = Pairs(sides[0].kept(full), sides[1].kept(full))
    log.info("Channel '%s': %d pairs, %d source and %d target tokens",
             name, len(pairs), pairs.source.lengths.sum(), pairs.target.lengths.sum())  # fmt: skip
    return pairs


def buckets(wanted: Hyperparameters, ratio: float) -> list[tuple[int, int]]:
    """Lengths of source and target up to which sequences share batches (contract, section 2.5), ascending.

    Args:
        wanted: `bucketing_enabled`, `bucket_width` and the longest lengths are read.
        ratio: mean number of target tokens per source token.
    """
    longest = (wanted.max_seq_len_source, wanted.max_seq_len_target)
    if not wanted.bucketing_enabled:
        return [longest]
    width = wanted.bucket_width
    steps = (max(1, int(width / ratio)), width) if ratio >= 1 else (width, max(1, int(width * ratio)))
    source, target = (
        [max(2, min(length, most)) for length in range(step, most + step, step)]
        for step, most in zip(steps, longest, strict=True)
    )
    number = max(len(source), len(target))
    source += source[-1:] * (number - len(source))
    target += target[-1:] * (number - len(target))
    return list(dict.fromkeys(zip(source, target, strict=True)))


def batches(
    pairs: Pairs, bounds: list[tuple[int, int]], size: int, random: np.random.Generator | None
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Bucket number and pair numbers of each batch; every pair is in one of them, and a batch within one bucket.

    Args:
        pairs: to be cut up.
        bounds: of `buckets`.
        size: of a batch; the last one of each bucket may be smaller.
        random: shuffles pairs and batches; without it, pairs go from short to long.
    """
    bound = np.array(bounds)
    # bounds of both sides ascend together: the first bucket that is wide enough for both sides
    place = np.maximum(
        np.searchsorted(bound[:, 0], pairs.source.lengths), np.searchsorted(bound[:, 1], pairs.target.lengths)
    ).clip(max=len(bounds) - 1)
    found: list[tuple[int, NDArray[np.int64]]] = []
    for bucket in np.unique(place).tolist():
        members = np.flatnonzero(place == bucket)
        if random is None:
            members = members[np.lexsort((pairs.target.lengths[members], pairs.source.lengths[members]))]
        else:
            random.shuffle(members)
        found += [(bucket, members[at : at + size]) for at in range(0, len(members), size)]
    order = np.arange(len(found)) if random is None else random.permutation(len(found))
    yield from (found[number] for number in order)


def _joined(parts: list[Lists]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """All ids, and where each list begins and the last one ends."""
    ids = np.concatenate([part.values for part in parts])
    lengths = np.concatenate([np.diff(part.offsets) for part in parts])
    return ids, np.concatenate([[0], np.cumsum(lengths)])


def _check(
    ids: NDArray[np.int32],
    ends: NDArray[np.int64],
    num_words: int,
    channel: str,
    side: str,
    origins: list[tuple[str, int]],
) -> None:
    wrong = np.flatnonzero((ids < 0) | (ids >= num_words) | (ids == PAD))
    if not len(wrong):
        return
    at = int(wrong[0])
    record = int(np.searchsorted(ends, at, side="right")) - 1
    token = int(ids[at])
    while record >= origins[0][1]:
        record -= origins[0][1]
        origins = origins[1:]
    file = origins[0][0]
    expected = f"an id from 1 to {num_words - 1} of the vocabulary"
    hint = "; padding is added in training" if token == PAD else ""
    raise ClientError(f"{channel}: {file}, record {record}: a {side} token is {token}, expected {expected}{hint}.")


def _without_specials(ids: NDArray[np.int32], ends: NDArray[np.int64]) -> Side:
    """Lists without a first `<s>` and a last `</s>`, which are added in training, and need not be sent."""
    begins, lengths = ends[:-1].copy(), np.diff(ends)
    padded = np.append(ids, PAD)
    has_bos = (lengths > 0) & (padded[begins] == BOS)
    begins += has_bos
    lengths = lengths - has_bos
    lengths = lengths - ((lengths > 0) & (padded[np.maximum(begins + lengths - 1, 0)] == EOS))
    return Side(ids, begins, lengths)
