"""One feature and one label of many records at once, as both bulk readers of rows need them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats.record_layout import FEATURES, LABEL, Layout
from formats.record_numbers import Positions
from formats.record_tensors import Kind, kind_of, numbers_of
from formats.record_walk import Slots, Spans

__all__ = ["MAX_WIDTH", "NUM_SLOTS", "Values", "slots_of", "values_in"]

MAX_WIDTH = 2**63 - 1
"""Widest row that is read in bulk: keys become int64."""
NUM_SLOTS = 4
"""The bytes of values and keys, of the feature and of the label."""


class Values(NamedTuple):
    """The rows of one block; those of row i are `[offsets[i]:offsets[i + 1]]`."""

    offsets: Positions
    values: NDArray[Any]
    keys: NDArray[np.int64] | None
    """As the records order them, each below the width; None when the rows are dense."""
    labels: NDArray[Any] | None
    """(N)"""
    width: int


def slots_of(layout: Layout, feature: str, label: str) -> Slots | None:
    """Those of records of this feature, perhaps this label, and nothing else."""
    tensors = {(tensor.side, tensor.name): tensor for tensor in layout.tensors}
    row = tensors.pop((FEATURES, feature.encode()), None)
    found = tensors.pop((LABEL, label.encode()), None)
    if row is None or tensors or (kind := kind_of(row)) is None or math.prod(kind.shape) > MAX_WIDTH:
        return None
    if found is None:
        return Slots((row.values, row.keys), (kind, None))
    label_kind = kind_of(found)
    if label_kind is None or label_kind.sparse:
        return None
    return Slots((row.values, row.keys, found.values), (kind, label_kind))


def values_in(spans: Spans, width: int | None) -> Values | None:
    """The rows up to the first that is not sound, for the ordinary decoder to say how; None when that is the first.

    Args:
        spans: of slots that `slots_of` gave.
        width: that all rows must have; None for that of the first.
    """
    kinds: tuple[Kind, Kind | None] = spans.tag  # type: ignore[assignment]  # as `slots_of` gives it
    kind, label_kind = kinds
    try:
        (offsets, values, keys), sound = numbers_of(spans, 0, kind)
        own_width = math.prod(kind.shape) if kind.shape else int(offsets[1])
        if width not in (None, own_width):
            return None
        if not kind.sparse:
            sound &= np.diff(offsets) == own_width
        labels = None
        if label_kind is not None:
            (bounds, labels, _), single = numbers_of(spans, 1, label_kind)
            sound &= single & (bounds[1:] == np.arange(1, len(bounds)))
    except ValueError:
        return None
    count = len(sound) if sound.all() else int(sound.argmin())
    if count == 0:
        return None
    size = int(offsets[count])
    return Values(
        offsets[: count + 1],
        values[:size],
        None if keys is None else keys[:size].view(np.int64),
        None if labels is None else labels[:count],
        own_width,
    )
