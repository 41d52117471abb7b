"""One feature and one label of many records at once, as both bulk readers of rows need them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats.record_layout import DTYPES, FEATURES, LABEL, Layout
from formats.record_numbers import Positions, numbers_in, varints_in
from formats.record_walk import Slots, Spans

__all__ = ["MAX_WIDTH", "NUM_SLOTS", "Tag", "Values", "slots_of", "values_in"]

MAX_WIDTH = 2**63 - 1
"""Widest row that is read in bulk: keys become int64."""
NUM_SLOTS = 3
"""The bytes of values, keys and label."""


class Tag(NamedTuple):
    """What all records of one block have in common."""

    kind: int
    """A key of DTYPES."""
    sparse: bool
    width: int | None
    """The product of the shape; None for dense rows without one."""
    label_kind: int | None
    """None without a label."""


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
    features = [tensor for tensor in layout.tensors if tensor.side == FEATURES]
    labels = [tensor for tensor in layout.tensors if tensor.side == LABEL]
    if len(features) != 1 or features[0].name != feature.encode() or len(labels) > 1:
        return None
    row = features[0]
    # a row of zeros has neither values nor keys when it is written sparse
    sparse = row.keys is not None or (row.values is None and bool(row.shape))
    width = math.prod(row.shape) if row.shape else None
    if (sparse and (width is None or (row.values is None) != (row.keys is None))) or (width or 0) > MAX_WIDTH:
        return None
    if not labels:
        return Slots((row.values, row.keys, None), Tag(row.kind, sparse, width, None))
    (found,) = labels
    if found.name != label.encode() or found.values is None or found.keys is not None or found.shape:
        return None
    return Slots((row.values, row.keys, found.values), Tag(row.kind, sparse, width, found.kind))


def values_in(spans: Spans, width: int | None) -> Values | None:
    """The rows up to the first that is not sound, for the ordinary decoder to say how; None when that is the first.

    Args:
        spans: of slots that `slots_of` gave.
        width: that all rows must have; None for that of the first.
    """
    tag = spans.tag
    assert isinstance(tag, Tag)
    (values, keys, labels), (values_end, keys_end, labels_end) = spans.first, spans.last
    try:
        found, offsets = numbers_in(spans.data, values, values_end, DTYPES[tag.kind])
        own_width = tag.width if tag.width is not None else int(offsets[1])
        if width not in (None, own_width):
            return None
        indices, sound = None, np.diff(offsets) == own_width
        if tag.sparse:
            indices, bounds = varints_in(spans.data, keys, keys_end, 64)
            sound = bounds[1:] == offsets[1:]
            if len(indices) and int(indices.max()) >= own_width:
                outside = int((indices >= np.uint64(own_width)).argmax())
                sound[np.searchsorted(bounds, outside, "right") - 1 :] = False
        label = None
        if tag.label_kind is not None:
            label, bounds = numbers_in(spans.data, labels, labels_end, DTYPES[tag.label_kind])
            sound &= bounds[1:] == np.arange(1, len(bounds))
    except ValueError:
        return None  # broken numbers
    # an unsound row shifts the offsets of all that follow
    count = len(sound) if sound.all() else int(sound.argmin())
    if count == 0:
        return None
    size = int(offsets[count])
    return Values(
        offsets[: count + 1],
        found[:size],
        None if indices is None else indices[:size].astype(np.int64),
        None if label is None else label[:count],
        own_width,
    )
