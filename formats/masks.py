"""Segmentation masks: single-channel PNGs whose pixel values are classes, and the maps that translate them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from formats.errors import InvalidBody
from formats.images import MAX_PIXELS, check_header, decode, encode_png
from formats.jsonlines import parse_json
from formats.signatures import describe

__all__ = ["IGNORE", "PALETTE", "colours_to_classes", "decode_label_map", "decode_mask", "encode_mask"]

IGNORE = 255
"""Pixels of this value count neither in the loss nor in a metric."""


def _voc_palette() -> NDArray[np.uint8]:
    """(256, 3): Pascal VOC's colours, which spread the bits of an index over the high bits of R, G and B."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


PALETTE = _voc_palette()


def decode_mask(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """(H, W) uint8 class ids of a mask: the values of a grey PNG, the indices (never the colours) of a palette PNG.

    Raises:
        InvalidBody: not a PNG, too large, damaged, or of a mode that does not hold classes; names the mode.
    """
    if not data.startswith(b"\x89PNG"):
        raise InvalidBody(f"mask is not a PNG file; it looks like {describe(data)}")
    try:
        check_header(data, max_pixels=max_pixels)
    except InvalidBody as error:
        raise InvalidBody(f"mask: {error}") from error
    mode = "?"
    try:
        image = PngImageFile(io.BytesIO(data))
        mode = image.mode
        if mode in ("P", "L", "1"):
            image.load()
            return np.array(image, np.uint8)
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError) as error:
        raise InvalidBody(f"mask of {len(data)} bytes is truncated or damaged: {error}") from error
    raise InvalidBody(
        f"mask has mode {mode}, expected P or L: one channel whose values are class ids; a mask of colours must be "
        f"translated with its colour list first"
    )


def encode_mask(mask: NDArray[np.uint8], *, colours: bool = True) -> bytes:
    """A PNG of (H, W) uint8 class ids.

    With `colours`, it has a palette: viewers show colours, array readers still get the ids. Without, it is grey, for
    readers that would turn indices into colours.
    """
    return encode_png(mask, palette=PALETTE if colours else None, flat=True)


def decode_label_map(data: bytes, what: str = "label map") -> NDArray[np.uint8]:
    """(256,) uint8: the class of each pixel value; use it as `table[mask]`.

    `{"scale": 60}` divides, keeping 255 as ignore; `{"map": {"0": 5, "1": 0}}` makes pixels of 5 class 0 and of 0
    class 1, and every pixel value that it does not name ignore.

    Raises:
        InvalidBody: names the entry and what was expected.
    """
    found = parse_json(data, what)
    if not isinstance(found, Mapping) or ("scale" in found) == ("map" in found):
        raise InvalidBody(f"{what}: expected a JSON object with either 'scale' or 'map'")
    if "scale" in found:
        scale = _number(found["scale"], f"{what}: 'scale'", least=1)
        table = (np.arange(256) // scale).astype(np.uint8)
        table[IGNORE] = IGNORE
        return table
    entries = found["map"]
    if not isinstance(entries, Mapping):
        raise InvalidBody(f"{what}: 'map' is {str(entries)[:40]!r}, expected an object of class -> pixel value")
    table = np.full(256, IGNORE, np.uint8)
    seen: dict[int, str] = {}
    for text, pixel in entries.items():
        value = int(_number(pixel, f"{what}: map['{text}']"))
        if value in seen:
            raise InvalidBody(f"{what}: classes '{seen[value]}' and '{text}' share pixel value {value}")
        seen[value] = text
        table[value] = int(_number(text, f"{what}: class"))
    return table


def colours_to_classes(
    data: bytes, colour_map: Mapping[str, Any], *, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """(H, W) uint8 class ids of a mask of colours, by Ground Truth's `internal-color-map`.

    Args:
        data: a PNG file.
        colour_map: `{"1": {"class-name": "lane", "hex-color": "#2acf59"}, ...}`.
        max_pixels: largest accepted height x width.

    Raises:
        InvalidBody: a bad entry, or colours that the map does not name.
    """
    pixels = decode(data, max_pixels=max_pixels).astype(np.uint32)
    codes = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    classes = np.full(codes.shape, IGNORE, np.uint8)
    known = np.zeros(codes.shape, np.bool_)
    for key, entry in colour_map.items():
        colour = entry.get("hex-color") if isinstance(entry, Mapping) else None
        try:
            code = int(str(colour).removeprefix("#"), 16)
        except ValueError:
            raise InvalidBody(
                f"colour map['{key}'] is {str(entry)[:60]!r}, expected a 'hex-color' of #rrggbb"
            ) from None
        matching = codes == code
        classes[matching] = int(_number(key, "colour map: class"))
        known |= matching
    if not known.all():
        code = int(codes[~known][0])
        raise InvalidBody(f"mask has {int((~known).sum())} pixels of colours that the map lacks, such as #{code:06x}")
    return classes


def _number(value: Any, where: str, *, least: float = 0) -> float:
    """A pixel value or class, which both real files and the guide also write as text."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1
    whole = least == 0
    if isinstance(value, bool) or not least <= number <= 255 or (whole and number != int(number)):
        raise InvalidBody(f"{where} is {str(value)[:40]!r}, expected a {'whole ' * whole}number of {least:g} to 255")
    return number
