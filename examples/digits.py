"""Real images for a first run: scikit-learn's 1,797 handwritten digits (UCI, Alpaydin and Kaynak), as PNG and `.lst`.

    python examples/digits.py DIR

writes `DIR/train` and `DIR/validation`: `<class>/<number>.png`, 32 x 32 RGB, and one `.lst` each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from formats.images import encode_png
from formats.lst import ListEntry, write_lst

__all__ = ["CLASS_NAMES", "write_digits"]

CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SCALE = 4
_FOLDS = 5


def write_digits(directory: Path) -> dict[str, int]:
    """Write both channels and return their numbers of images.

    The split needs no random numbers: of each class, every fifth image in the data set's order is for validation.
    """
    pixels, classes = load_digits(return_X_y=True)
    seen = [0] * len(CLASS_NAMES)
    channels: dict[str, list[ListEntry]] = {"train": [], "validation": []}
    for number, (values, label) in enumerate(zip(pixels.reshape(-1, 8, 8), classes.tolist(), strict=True)):
        channel = "validation" if seen[label] % _FOLDS == _FOLDS - 1 else "train"
        seen[label] += 1
        path = f"{CLASS_NAMES[label]}/{number:04d}.png"
        target = directory / channel / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode_png(_picture(values)))
        channels[channel].append(ListEntry(number, (float(label),), path))
    for channel, entries in channels.items():
        write_lst(directory / channel / f"{channel}.lst", entries)
    return {channel: len(entries) for channel, entries in channels.items()}


def _picture(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(8, 8) of 0 to 16 as (32, 32, 3) uint8, each value a square of 4 x 4 pixels."""
    grey = np.rint(values * (255 / 16)).astype(np.uint8)
    large = grey.repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
    return np.repeat(large[:, :, None], 3, axis=2)


if __name__ == "__main__":
    print(write_digits(Path(sys.argv[1])))
