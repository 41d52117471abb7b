"""Pictures of forecasts: what is drawn, and what cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from formats.errors import InvalidBody
from formats.forecast_plot import bands_of, draw

pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
SERIES = {"start": "2024-03-01 00:00:00", "target": [1, 2, "NaN", 4] * 10}
QUANTILES = {"quantiles": {"0.1": [1, 2], "0.50": [2, 3], "0.9": [3, 4]}}


def pixels_of(file: Path) -> Any:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return np.array(image.convert("RGB")).astype(int)


def test_each_series_is_a_panel(tmp_path: Path) -> None:
    for count in (1, 3):
        request = json.dumps({"instances": [SERIES] * count}).encode()
        draw(request, json.dumps({"predictions": [QUANTILES] * count}).encode(), tmp_path / f"{count}.png")

    one, three = (pixels_of(tmp_path / f"{count}.png") for count in (1, 3))
    assert len(three) == pytest.approx(3 * len(one), abs=3)
    pixels = one.reshape(-1, 3)
    assert (np.abs(pixels - [31, 119, 180]).sum(axis=1) < 30).sum() > 50  # the median's blue
    assert (pixels.sum(axis=1) < 60).sum() > 200  # what was known, and the axes


def test_lines_are_drawn_too_and_series_without_history(tmp_path: Path) -> None:
    request = b"".join(json.dumps(each).encode() + b"\n" for each in (SERIES, SERIES | {"target": []}))
    answer = b"".join(json.dumps(QUANTILES).encode() + b"\n" for _ in range(2))
    draw(request, answer, tmp_path / "a.png")

    assert pixels_of(tmp_path / "a.png").std() > 10


def test_bands_come_from_samples_where_there_are_any() -> None:
    samples = np.arange(11.0)[:, None].repeat(2, 1)
    low, middle, high = bands_of({"samples": samples.tolist()} | QUANTILES, "x")

    assert (low[0], middle[0], high[0]) == pytest.approx((1, 5, 9))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"predictions": [{"mean": [1, 2]}]}, "prediction 0 has no quantiles 0.1, 0.5 and 0.9"),
        ({"predictions": [QUANTILES] * 2}, "1 series were sent and 2 forecasts came back"),
        ([1], "expected an object of 'predictions'"),
    ],
)
def test_what_cannot_be_drawn_is_told(tmp_path: Path, answer: object, text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        draw(json.dumps({"instances": [SERIES]}).encode(), json.dumps(answer).encode(), tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=r"--plot needs matplotlib: pip install 'penstock\[plot\]'"):
        draw(b"{}", b"{}", tmp_path / "a.png")
