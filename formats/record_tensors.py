"""The tensors of many records at once, checked as the ordinary decoder checks those of one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats.record_layout import DTYPES, Layout, TensorLayout
from formats.record_numbers import Positions, numbers_in, varints_in
from formats.record_walk import Flags, Slots, Spans

__all__ = ["MOST_TENSORS", "NUM_SLOTS", "Kind", "Numbers", "kind_of", "numbers_of", "slots_of"]

MOST_TENSORS = 4
"""Records with more of them are left to the ordinary decoder."""
NUM_SLOTS = 2 * MOST_TENSORS
"""The bytes of the values and of the keys of each."""

_UINT64 = np.dtype(np.uint64)


class Kind(NamedTuple):
    """What one tensor has in common in all records of a block."""

    side: int
    """FEATURES or LABEL."""
    name: bytes
    kind: int
    """A key of DTYPES."""
    sparse: bool
    shape: tuple[int, ...]


class Numbers(NamedTuple):
    """One tensor of N records; that of record i is `[offsets[i]:offsets[i + 1]]`."""

    offsets: Positions
    values: NDArray[Any]
    keys: NDArray[np.uint64] | None
    """None when dense."""


def slots_of(layout: Layout) -> Slots | None:
    """Those of all tensors, values and keys in turn; the tag is the tuple of their kinds."""
    kinds = tuple(kind_of(tensor) for tensor in layout.tensors)
    if len(kinds) > MOST_TENSORS or None in kinds:
        return None
    return Slots(tuple(body for tensor in layout.tensors for body in (tensor.values, tensor.keys)), kinds)


def kind_of(tensor: TensorLayout) -> Kind | None:
    """None for a tensor that contradicts itself, or may."""
    side, name, kind, values, keys, shape = tensor
    # a row of zeros has neither values nor keys when it is written sparse
    sparse = keys is not None or (values is None and bool(shape))
    if sparse and (not shape or (values is None) != (keys is None)):
        return None
    if not sparse and 0 in shape:
        return None
    return Kind(side, name, kind, sparse, shape)


def numbers_of(spans: Spans, number: int, kind: Kind) -> tuple[Numbers, Flags]:
    """The tensor in slots 2 * number and 2 * number + 1, and in which records it is sound.

    An unsound one shifts the offsets of all that follow.

    Raises:
        ValueError: broken numbers.
    """
    values, offsets = numbers_in(spans.data, spans.first[2 * number], spans.last[2 * number], DTYPES[kind.kind])
    size = math.prod(kind.shape)
    if not kind.sparse:
        sound = np.diff(offsets) == size if kind.shape else np.ones(len(offsets) - 1, np.bool_)
        return Numbers(offsets, values, None), sound
    keys, bounds = varints_in(spans.data, spans.first[2 * number + 1], spans.last[2 * number + 1], _UINT64)
    sound = bounds[1:] == offsets[1:]
    if len(keys) and int(keys.max()) >= size:
        outside = int((keys >= np.uint64(size)).argmax())
        sound[np.searchsorted(bounds, outside, "right") - 1 :] = False
    return Numbers(offsets, values, keys), sound
