"""Figures and tables of the load tests and the benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

__all__ = ["markdown_table", "paired_ratio", "percentile", "spread", "three_digits"]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed (nearest rank).

    Args:
        values: at least one, in any order.
        share: above 0, at most 1.

    Raises:
        ValueError: no values, or a share out of range.
    """
    if not values or not 0 < share <= 1:
        raise ValueError(f"{len(values)} values, share {share}: expected at least one value and a share in (0, 1]")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of the rounds' own ratios: what disturbs the machine for one round disturbs both sides of it.

    Raises:
        ValueError: different numbers of rounds, none, or a zero on the other side.
    """
    if len(ours) != len(theirs) or not ours or 0 in theirs:
        raise ValueError(f"expected as many rounds on both sides, none of theirs zero; got {ours} and {theirs}")
    return median(a / b for a, b in zip(ours, theirs, strict=True))


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median: how far the rounds disagree; 0 for one round."""
    return (max(values) - min(values)) / middle if (middle := median(values)) else 0.0


def three_digits(value: float) -> str:
    """Three significant digits, whole numbers whole: 0.0123, 4.57, 89.1, 12345."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well as text too; the first column is left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [_line(header, widths), "|" + "|".join(f" {each} " for each in rule) + "|"]
    return "\n".join([*lines, *(_line(row, widths) for row in rows)]) + "\n"


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = (
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "| " + " | ".join([first, *others]) + " |"
