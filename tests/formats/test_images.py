from __future__ import annotations

import io
import struct
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from formats.errors import InvalidBody
from formats.images import Pixels, decode, encode_jpeg, encode_png, resize, size_of

RNG = np.random.default_rng(7)
RGB: Pixels = RNG.integers(0, 256, (5, 7, 3), np.uint8)
GREY = RGB[..., 0]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def smooth(height: int = 40, width: int = 60) -> Pixels:
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (height + width)], -1).astype(np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(height: int, width: int) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}, {"optimize": True}]
)
def test_a_jpeg_gives_the_pixels_that_pillow_gives(options: dict[str, Any]) -> None:
    data = saved(Image.fromarray(smooth()), "JPEG", **options)

    assert np.array_equal(decode(data), np.array(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_of_another_colour_space_becomes_rgb(mode: str) -> None:
    data = saved(Image.fromarray(smooth()).convert(mode), "JPEG")

    assert np.array_equal(decode(data), np.array(Image.open(io.BytesIO(data)).convert("RGB")))


def test_an_rgb_png_is_lossless() -> None:
    assert np.array_equal(decode(encode_png(RGB)), RGB)


def test_grey_is_repeated_three_times() -> None:
    assert np.array_equal(decode(encode_png(GREY)), np.stack([GREY] * 3, -1))


def test_a_palette_is_looked_up() -> None:
    palette = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)

    pixels = decode(encode_png(np.array([[0, 1], [1, 0]], np.uint8), palette=palette))

    assert np.array_equal(pixels, palette[[[0, 1], [1, 0]]])


def test_a_palette_with_transparency_keeps_its_colours() -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60])

    pixels = decode(saved(image, "PNG", transparency=bytes([0, 128])))

    assert pixels.tolist() == [[[10, 20, 30], [40, 50, 60]]]


def test_alpha_is_dropped_over_the_pixels_own_colour() -> None:
    rgba = np.dstack([RGB, np.zeros_like(GREY)])

    assert np.array_equal(decode(saved(Image.fromarray(rgba), "PNG")), RGB)


def test_grey_with_alpha_keeps_its_grey() -> None:
    la = np.dstack([GREY, np.zeros_like(GREY)])

    assert np.array_equal(decode(saved(Image.fromarray(la, "LA"), "PNG")), np.stack([GREY] * 3, -1))


def test_16_bit_grey_keeps_its_high_byte() -> None:
    wide = (np.arange(35, dtype=np.uint16) * 1800).reshape(5, 7)

    assert np.array_equal(decode(saved(Image.fromarray(wide), "PNG"))[..., 1], wide >> 8)


@pytest.mark.parametrize("colour_type", [2, 6])
def test_16_bit_colour_keeps_its_high_byte(colour_type: int) -> None:
    channels = {2: 3, 6: 4}[colour_type]
    wide = RNG.integers(0, 2**16, (3, 4, channels), np.uint16)
    body = b"".join(b"\0" + row.astype(">u2").tobytes() for row in wide)
    head = struct.pack(">IIBBBBB", 4, 3, 16, colour_type, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")

    assert np.array_equal(decode(data), wide[..., :3] >> 8)


def test_one_bit_is_black_and_white() -> None:
    bits = np.array([[True, False, True]])

    assert decode(saved(Image.fromarray(bits), "PNG"))[..., 0].tolist() == [[255, 0, 255]]


def test_an_animated_png_gives_its_default_image() -> None:
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]

    assert np.array_equal(decode(saved(frames[0], "PNG", save_all=True, append_images=frames[1:])), RGB)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = smooth(24, 16)
    # Pillow's own transposition of the stored picture is the reference
    undo = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[orientation]
    data = saved(
        Image.fromarray(upright), kind, exif=exif, **({"quality": 100, "subsampling": 0} if kind == "JPEG" else {})
    )
    stored = Image.open(io.BytesIO(data))
    expected = stored if undo is None else stored.transpose(Image.Transpose(undo))

    assert np.array_equal(decode(data), np.array(expected))
    assert size_of(data) == decode(data).shape[:2]


def test_a_damaged_exif_block_is_ignored() -> None:
    data = saved(Image.fromarray(smooth()), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\x01\x02")

    assert decode(data).shape == (40, 60, 3)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty"),
        (b"hello, not an image", "looks like text: 'hello"),
        (b'{"a": 1}', "looks like JSON"),
        (b"GIF89a.......", "a GIF image"),
        (b"\x1f\x8b\x08" + bytes(20), "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer"),
        (b"\x00\x01\x02\xff\xfe", "unknown binary data: 00 01 02"),
        (b"\xff\xd8\xff", "JPEG of 3 bytes is truncated"),
        (b"\x89PNG\r\n\x1a\n", "PNG of 8 bytes is truncated"),
    ],
)
def test_what_is_not_an_image_is_refused_by_what_it_looks_like(data: bytes, text: str) -> None:
    with pytest.raises(InvalidBody, match=text):
        decode(data)


@pytest.mark.parametrize("data", [encode_jpeg(smooth()), encode_png(RGB)], ids=["jpeg", "png"])
def test_a_truncated_file_is_an_error_at_every_length(data: bytes) -> None:
    for length in range(0, len(data) - 2, max(1, len(data) // 60)):
        with pytest.raises(InvalidBody):
            decode(data[:length])


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([encode_jpeg(smooth()), encode_png(smooth())]), st.data())
def test_a_changed_byte_gives_pixels_or_a_clean_error(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data) - 1))
    damaged = data[:at] + bytes([draw.draw(st.integers(0, 255))]) + data[at + 1 :]
    try:
        pixels = decode(damaged, max_pixels=1_000_000)
    except InvalidBody:
        return
    assert pixels.ndim == 3
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize(
    "bomb",
    [
        png_claiming(30_000, 30_000),
        png_claiming(2**31 - 1, 2**31 - 1),
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" + bytes(40),
    ],
)
def test_a_bomb_is_refused_by_its_header(bomb: bytes) -> None:
    tracemalloc.start()
    begin = time.perf_counter()
    with pytest.raises(InvalidBody, match="at most 40000000 are accepted"):
        decode(bomb)
    took = time.perf_counter() - begin
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert took < 0.1
    assert peak < 1_000_000


def test_a_progressive_jpeg_of_a_thousand_scans_is_refused() -> None:
    data = saved(Image.fromarray(smooth()), "JPEG", progressive=True)

    with pytest.raises(InvalidBody, match="scans"):
        decode(data + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" * 1000)


def test_the_limit_counts_pixels_of_height_times_width() -> None:
    assert decode(encode_png(RGB), max_pixels=35).shape == (5, 7, 3)
    with pytest.raises(InvalidBody, match=r"5 x 7 \(height x width\), 35 pixels; at most 34"):
        decode(encode_png(RGB), max_pixels=34)


def bilinear(array: Pixels, size: int, axis: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The definition, one axis: a triangle around each half-pixel centre, as wide as the scale when shrinking."""
    old = array.shape[axis]
    scale = old / size
    support = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale
    weights = np.maximum(0, 1 - np.abs(np.arange(old)[None] + 0.5 - centres[:, None]) / support)
    weights /= weights.sum(1, keepdims=True)
    return np.moveaxis(np.tensordot(weights, array.astype(float), (1, axis)), 0, axis)


@pytest.mark.parametrize("size", [(10, 14), (3, 4), (5, 20), (40, 2)])
def test_resize_is_the_documented_bilinear(size: tuple[int, int]) -> None:
    """Against the plain definition; each of the two passes rounds halves its own way: below 1.5 levels."""
    expected = bilinear(np.round(bilinear(RGB, size[1], 1)), size[0], 0)

    assert np.abs(resize(RGB, *size) - expected).max() < 1.5


def test_resize_to_the_same_size_changes_nothing() -> None:
    assert resize(RGB, 5, 7) is RGB


def test_grey_is_resized_as_colour_is() -> None:
    assert np.array_equal(resize(GREY, 9, 3), resize(RGB, 9, 3)[..., 0])


def test_jpeg_quality_trades_size_for_error() -> None:
    good, poor = encode_jpeg(smooth(), 95), encode_jpeg(smooth(), 10)

    assert len(poor) < len(good)
    assert np.abs(decode(good).astype(int) - smooth()).max() <= 8
    assert decode(encode_jpeg(GREY)).shape == (5, 7, 3)
