"""Where the numbers of many framed protobuf records lie: the ground of the bulk readers.

Records of one file repeat a few layouts: the same tags and names in the same order, and between them numbers of
varying count. A layout is learned from one record by walking through it; then all records of a block are compared
with it at once, each step one NumPy operation over all of them. What fits no layout that can be learned is left to the
ordinary decoder, so that an answer never depends on which way was taken.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from formats.record_layout import LONGEST_HEAD, Layout, learn
from formats.record_numbers import SPARE, Bytes, Positions
from formats.recordio import MAX_RECORD, Window, warn_padding

__all__ = ["Flags", "Slots", "Spans", "Walker"]

Flags = NDArray[np.bool_]

_BLOCK = 1 << 20
_LEAST = 1 << 12
_MAGIC = 0xCED7230A
_KEEP = 16 << 20
_FEW = 16
_MOST_LAYOUTS = 32
_MOST_LEARNED = 8
# what may be read behind a position: a head, or a piece of a span
_SPARE = max(SPARE, LONGEST_HEAD)


class Slots(NamedTuple):
    """What a reader wants of a layout."""

    bodies: tuple[int | None, ...]
    """For each of the reader's slots the body that fills it; None leaves it empty."""
    tag: Hashable = None
    """Records of different tags do not come in one piece."""


class Spans(NamedTuple):
    """Where the bodies of the next records lie."""

    data: Bytes
    """The bytes from the window's position on, and zeros behind them."""
    ends: Positions
    """(N,) of the records' payloads."""
    first: Positions
    """(slots, N); equal to `last` where a slot is empty."""
    last: Positions
    tag: Hashable

    @property
    def num_records(self) -> int:
        return len(self.ends)

    def up_to(self, count: int) -> Spans:
        """Those of the first `count` records."""
        return self._replace(ends=self.ends[:count], first=self.first[:, :count], last=self.last[:, :count])


@dataclass(slots=True)
class _Known:
    layout: Layout
    slots: Slots
    hits: int = 0


class Walker:
    """Finds the records' bodies block by block.

    Args:
        slots_of: what the reader wants of a layout; None leaves such records to the ordinary decoder.
        num_slots: length of `Slots.bodies`.
        max_record: longer records are left to the ordinary decoder.
    """

    def __init__(
        self, slots_of: Callable[[Layout], Slots | None], num_slots: int, max_record: int = MAX_RECORD
    ) -> None:
        self._slots_of = slots_of
        self._num_slots = num_slots
        self._max_record = max_record
        # freeing one large block makes glibc keep later ones of that size, which it would otherwise give back to the
        # system and have zeroed again, block after block: a third of the time. Never touched, it takes no memory
        np.empty(_KEEP, np.uint8)
        self._known: list[_Known] = []
        self._reach = _BLOCK
        self._pause = self._rest = 0

    def spans(self, window: Window) -> Spans | None:
        """Those of the next records that have known layouts and one tag; None when the next one has not.

        The window does not move: `consume` does that, when the reader has understood the numbers too.
        """
        if self._rest:
            self._rest -= 1
            return None
        data, starts, ends = _block(window, self._reach, self._max_record)
        if len(starts) == 0 and self._reach < _BLOCK:
            data, starts, ends = _block(window, _BLOCK, self._max_record)
        found = self._matched(data, starts, ends) if len(starts) else None
        if found is None:
            self.consume(window, None, 0)
        return found

    def consume(self, window: Window, spans: Spans | None, count: int) -> None:
        """Move the window past the first `count` records of the spans; 0 when the next one was not understood."""
        size = int(spans.ends[count - 1]) + 3 & ~3 if spans is not None and count else 0
        window.at += size
        if 2 * size >= self._reach or count >= _FEW:
            # a file where every hundredth record is odd should not pay for all the records behind that
            self._reach = min(2 * self._reach, _BLOCK) if 2 * size >= self._reach else max(2 * size, _LEAST)
            self._pause = 0
        else:
            # and one of changing structures not for a walk at every record
            self._pause = self._rest = min(2 * self._pause + 1, 1024)
            self._reach = _LEAST

    def _matched(self, data: Bytes, starts: Positions, ends: Positions) -> Spans | None:
        count = len(starts)
        which = np.full(count, -1, np.int64)
        first = np.zeros((self._num_slots, count), np.int64)
        last = np.zeros((self._num_slots, count), np.int64)
        left = np.arange(count)
        used: list[_Known] = []

        def match(known: _Known, left: Positions) -> Positions:
            fits, begins, stops = _fitting(known.layout, data, starts[left], ends[left])
            mine = left[fits]
            known.hits = len(mine)
            which[mine] = len(used)
            used.append(known)
            for slot, body in enumerate(known.slots.bodies):
                if body is not None:
                    first[slot, mine], last[slot, mine] = begins[body], stops[body]
            return left[~fits]

        for known in self._known:
            if len(left) == 0:
                break
            left = match(known, left)
        for _ in range(_MOST_LEARNED):
            if len(left) == 0 or (new := self._new(data[starts[left[0]] : ends[left[0]]].tobytes())) is None:
                break
            left = match(new, left)
            self._known.append(new)
        self._known = sorted(self._known, key=lambda known: -known.hits)[:_MOST_LAYOUTS]
        if len(left):
            count = int(left[0])
        if count == 0:
            return None
        tag = used[which[0]].slots.tag
        same = np.array([known.slots.tag == tag for known in used])[which[:count]]
        count = count if same.all() else int(same.argmin())
        return Spans(data, ends[:count], first[:, :count], last[:, :count], tag)

    def _new(self, payload: bytes) -> _Known | None:
        layout = learn(payload)
        slots = self._slots_of(layout) if layout is not None else None
        return _Known(layout, slots) if layout is not None and slots is not None else None


def _block(window: Window, size: int, max_record: int) -> tuple[Bytes, Positions, Positions]:
    """The next bytes and some more to read over into, and the payloads of the whole records in them."""
    window.fill(size + _SPARE)
    missing = size + _SPARE - window.available
    if missing > 0:  # the end of the stream: zeros stand behind it
        data = np.frombuffer(window.data[window.at :] + bytes(min(missing, _SPARE)), np.uint8)
    else:
        data = np.frombuffer(window.data, np.uint8, size + _SPARE, window.at)
    return data, *_frames(window, data[: len(data) - _SPARE], max_record)


def _frames(window: Window, data: Bytes, max_record: int) -> tuple[Positions, Positions]:
    """(start, end) of the payloads of the whole records from the beginning of the data on."""
    words = data[: len(data) & ~3].view("<u4")
    heads = np.flatnonzero(words[:-1] == _MAGIC)
    lengths = words[heads + 1].astype(np.int64)
    following = heads + 2 + (lengths + 3 >> 2)
    # flags make a length word huge, and a magic inside a payload breaks the chain
    good = (lengths <= min(max_record, MAX_RECORD)) & (following <= len(words))
    good[:1] &= heads[:1] == 0
    good[1:] &= heads[1:] == following[:-1]
    count = len(good) if good.all() else int(good.argmin())
    starts, lengths = 4 * (heads[:count] + 2), lengths[:count]
    if not window.warned:
        padded = np.flatnonzero(lengths & 3)
        dirty = words[following[padded] - 1] >> (8 * (lengths[padded] & 3)).astype(np.uint32)
        if dirty.any():
            warn_padding(window, window.offset + int(starts[padded[dirty.argmax()]]) - 8)
    return starts, starts + lengths


def _fitting(
    layout: Layout, data: Bytes, at: Positions, ends: Positions
) -> tuple[Flags, list[Positions], list[Positions]]:
    """Which records have the layout; and where in those, and only those, each of its bodies begins and ends."""
    # the first head tells most of them apart
    fits, after = _read_head(layout, 0, data, at)
    at, ends, after = at[fits], ends[fits], [end[fits] for end in after]
    heads, claims, stops = [at], list(after), []
    still = np.ones(len(at), np.bool_)
    limit = len(data) - _SPARE
    for number in range(1, len(layout.heads)):
        # the last length of a head is that of the body behind it
        at = np.minimum(claims[-1], limit)
        stops.append(at)
        heads.append(at)
        same, after = _read_head(layout, number, data, at)
        still &= same
        claims += after
    still &= at + layout.heads[-1].size == ends
    for end, field in zip(claims, layout.lengths, strict=True):
        still &= end == heads[field.end_head] + field.end_offset
    fits[fits] = still
    begins = [head + size.size for head, size in zip(heads, layout.heads, strict=True)]
    return fits, [begin[still] for begin in begins[:-1]], [stop[still] for stop in stops]


def _read_head(layout: Layout, number: int, data: Bytes, at: Positions) -> tuple[Flags, list[Positions]]:
    """Which records have this head at that place; and the ends that its lengths claim."""
    head = layout.heads[number]
    same = np.ones(len(at), np.bool_)
    if not head.words:
        return same, []
    size = 8 * len(head.words)
    # items of any alignment, one from each place
    items = np.ndarray((len(data) - size + 1,), f"V{size}", data, strides=(1,))[at]
    words = items.view(np.uint64).reshape(len(at), len(head.words))
    for column, (mask, template) in enumerate(head.words):
        same &= words[:, column] & mask == template
    read = items.view(np.uint8).reshape(len(at), size)
    claims = []
    for field in layout.lengths:
        if field.head == number:
            length = (read[:, field.offset] & 0x7F).astype(np.int64)
            for place in range(1, field.width):
                length |= (read[:, field.offset + place] & np.int64(0x7F)) << 7 * place
            claims.append(at + (field.offset + field.width) + length)
    return same, claims
