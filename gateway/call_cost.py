"""What one backend call costs, learned from the calls: so much for any call at all, and so much for each in it."""

from __future__ import annotations

from math import ceil

__all__ = ["CallCost"]

_WEIGHT = 0.2
"""Of the newest call in the running means."""
_KEPT = 1 - _WEIGHT
_OUTLIER = 4.0
"""A call counts for at most so many times what was expected of it: one that hung says nothing about the next."""
_FADE = 0.9
"""Of the largest size, from call to call."""
_SCATTER = 0.001
"""Sizes must scatter so much (variance over squared mean) before they tell more than the assumption does."""
_NOTHING = 1e-6
"""Likewise: less is none, which spares the reckoning where all calls are of one size."""
_STEP = 1.2
"""Where all calls were of one size, and more are waiting, the next is so many times as large: to see its cost."""
_NEARBY = 0.2


class CallCost:
    """Running least squares of seconds over size. Until sizes differ, what is not way there and back counts as work
    that grows with the size.
    """

    __slots__ = ("_covariance", "_largest", "_size", "_variance", "each", "fixed", "hop", "seconds", "seconds_each")

    def __init__(self) -> None:
        self.fixed = 0.0
        """Seconds that a call takes whatever is in it."""
        self.each = 0.0
        """Seconds more for each prediction in it."""
        self.hop = 0.0
        """Seconds of a call that the handler does not use, on the mean; 0 where the backend does not tell."""
        self.seconds = 0.0
        """Of a call, on the mean; 0 until there was one."""
        self.seconds_each = 0.0
        """Of that, for each of the predictions that share it."""
        self._size = 0.0
        self._largest = 0.0
        self._variance = 0.0
        self._covariance = 0.0

    def of(self, size: int) -> float:
        """Seconds that a call of so many will take."""
        return self.fixed + self.each * size

    def learn(self, size: int, seconds: float, hop: float) -> None:
        """From a call that was answered, which used `hop` of its seconds outside the handler."""
        if not self._size:
            self._size, self.seconds, self.hop = size, seconds, hop
        known = self.seconds
        if seconds > known:
            most = _OUTLIER * (self.fixed + self.each * size)
            if seconds > most > 0.0:
                seconds, hop = most, min(hop, _OUTLIER * self.hop, most)
        larger, longer = size - self._size, seconds - known
        self.seconds = seconds = known + _WEIGHT * longer
        self.hop = hop = self.hop + _WEIGHT * (hop - self.hop)
        if larger or self._variance:
            self._scatter(larger, longer)
        if size != self._largest:
            self._largest = max(size, _FADE * self._largest)
        mean = self._size
        self.seconds_each = seconds / mean
        if self._variance:
            self._draw_line()
        else:
            self.each = (seconds - hop) / mean
            self.fixed = hop

    def _scatter(self, larger: float, longer: float) -> None:
        self._size += _WEIGHT * larger
        self._covariance = _KEPT * (self._covariance + _WEIGHT * larger * longer)
        self._variance = _KEPT * (self._variance + _WEIGHT * larger * larger)
        if self._variance < _NOTHING * self._size * self._size:
            self._size, self._variance, self._covariance = float(round(self._size)), 0.0, 0.0

    def _draw_line(self) -> None:
        size = self._size
        doubt = _SCATTER * size * size
        assumed = self.seconds_each - self.hop / size
        each = (self._covariance + doubt * assumed) / (self._variance + doubt)
        self.each = each = 0.0 if each < 0.0 else min(each, self.seconds_each)
        self.fixed = self.seconds - each * size

    def fitting(self, seconds: float, waiting: int) -> int:
        """How many of those that wait should share a call that is to take no longer than `seconds`; at least 1.

        More than fit where there is a queue and a call costs much whatever is in it: small batches would only make the
        queue longer. Never more than twice what was tried, unless even by the piece it took no longer.
        """
        if not self.each:
            fits = float(waiting)
        else:
            fits = (seconds - self.fixed) / self.each
            if fits < waiting:
                fits = max(fits, self.fixed / self.each)
        tried = max(2 * self._largest, seconds / self.seconds_each)
        size = max(1, int(min(fits, tried, waiting) + 1e-6))  # a whole number of times may come out as a bit less
        if size < waiting and not self._sure and abs(size - self._size) < _NEARBY * self._size:
            return ceil(_STEP * size)
        return size

    @property
    def _sure(self) -> bool:
        return self._variance > _SCATTER * self._size * self._size
