"""A picture of DeepAR's answer: what was known, the median, and the band that holds four of five outcomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from formats import jsonlines
from formats.errors import InvalidBody
from formats.timeseries import Series, parse_series

__all__ = ["bands_of", "draw"]

_MOST_PANELS = 12
_SHOWN_BEFORE = 4
"""Times the forecast's length, so much of the history is drawn."""
_INCHES = (9.0, 2.4)


def draw(request: bytes, answer: bytes, file: Path) -> None:
    """Draw each series of a request with its forecast, at most twelve, below each other, as a PNG.

    Args:
        request: of `instances`, as JSON or JSON lines.
        answer: to it, with quantiles or samples.
        file: to write.

    Raises:
        InvalidBody: not such a request or answer, or it holds nothing to draw.
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  an extra of its own
    except ImportError as error:
        raise ValueError("--plot needs matplotlib: pip install 'penstock[plot]'") from error
    series, forecasts = _rows(request, "instances"), _rows(answer, "predictions")
    if len(series) != len(forecasts):
        raise InvalidBody(f"{len(series)} series were sent and {len(forecasts)} forecasts came back")
    shown = list(zip(series, forecasts, strict=True))[:_MOST_PANELS]
    figure = Figure(figsize=(_INCHES[0], _INCHES[1] * len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), squeeze=False)[:, 0]
    for number, (panel, (row, forecast)) in enumerate(zip(panels, shown, strict=True)):
        _panel(panel, parse_series(row), *bands_of(forecast, f"prediction {number}"))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", frameon=False, ncols=3)
    figure.savefig(file, format="png", dpi=110)


def bands_of(forecast: dict[str, Any], where: str) -> tuple[NDArray[np.float64], ...]:
    """The 0.1, 0.5 and 0.9 quantiles of a prediction, from its samples where it has them; (P,) each.

    Raises:
        InvalidBody: it has neither samples nor these quantiles.
    """
    if "samples" in forecast:
        low, middle, high = np.quantile(np.array(forecast["samples"], float), [0.1, 0.5, 0.9], axis=0)
        return low, middle, high
    quantiles = {float(name): values for name, values in forecast.get("quantiles", {}).items()}
    if not {0.1, 0.5, 0.9} <= set(quantiles):
        raise InvalidBody(
            f"{where} has no quantiles 0.1, 0.5 and 0.9 and no samples to draw; ask for output_types "
            '["quantiles"] with them, or ["samples"]'
        )
    return tuple(np.array(quantiles[each], float) for each in (0.1, 0.5, 0.9))


def _panel(
    panel: Any, series: Series, low: NDArray[np.float64], middle: NDArray[np.float64], high: NDArray[np.float64]
) -> None:
    length = len(middle)
    known = series.target[-_SHOWN_BEFORE * length :]
    at = len(series.target)
    ahead = np.arange(at, at + length)
    panel.plot(np.arange(at - len(known), at), known, color="black", linewidth=1, label="known")
    panel.fill_between(ahead, low, high, color="tab:blue", alpha=0.25, linewidth=0, label="80 % interval")
    panel.plot(ahead, middle, color="tab:blue", linewidth=1.5, label="median")
    panel.axvline(at - 0.5, color="grey", linewidth=0.8, linestyle=":")
    panel.set_xlabel(f"steps since {series.start}", fontsize="small")
    panel.margins(x=0.01)
    panel.spines[["top", "right"]].set_visible(False)


def _rows(body: bytes, name: str) -> list[dict[str, Any]]:
    """Of an object with a list of that name, or of lines."""
    try:
        whole = json.loads(body)
    except ValueError:
        return jsonlines.decode(body)
    rows = whole.get(name, [whole]) if isinstance(whole, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InvalidBody(f"expected an object of '{name}' or JSON lines to draw, found {body[:80]!r}")
    return rows
