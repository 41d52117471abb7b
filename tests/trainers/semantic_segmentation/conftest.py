"""Small made channels: a light square and a disc on a dark ground, and a border that nobody knows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from formats.images import encode_jpeg
from formats.masks import IGNORE, encode_mask
from formats.recordio import encode_record
from trainers.job import ChannelSettings, Job

Values = dict[str, object]
Pixels = NDArray[np.uint8]
HEIGHT, WIDTH = 60, 80


def scene(random: np.random.Generator, height: int = HEIGHT, width: int = WIDTH) -> tuple[Pixels, Pixels]:
    """Pixels and classes: ground 0, square 1, disc 2; the two lowest rows are 255."""
    pixels = random.integers(0, 60, (height, width, 3))
    mask = np.zeros((height, width), np.uint8)
    y_H1, x_1W = np.mgrid[0:height, 0:width]
    for number, distance in ((1, np.maximum), (2, np.hypot)):
        y, x = random.integers(12, height - 12), random.integers(12, width - 12)
        inside = distance(abs(y_H1 - y), abs(x_1W - x)) < 12
        pixels[inside] = ((90, 200, 230), (230, 220, 90))[number - 1]
        mask[inside] = number
    mask[-2:] = IGNORE
    return pixels.astype(np.uint8), mask


def write_channel(directory: Path, name: str, count: int) -> dict[str, Path]:
    """`<name>` with images in two folders, and `<name>_annotation` with their masks."""
    random = np.random.default_rng(len(name))
    given = {each: directory / each for each in (name, f"{name}_annotation")}
    for index in range(count):
        pixels, mask = scene(random)
        path = f"{'ab'[index % 2]}/{index}.jpg"
        for place in given.values():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
        (given[name] / path).write_bytes(encode_jpeg(pixels))
        (given[f"{name}_annotation"] / path).with_suffix(".png").write_bytes(encode_mask(mask))
    return given


def pairs_of(given: Mapping[str, Path], name: str) -> list[tuple[Path, Path]]:
    """Images and their masks, in the order in which a channel has them."""
    return [
        (image, (given[f"{name}_annotation"] / image.relative_to(given[name])).with_suffix(".png"))
        for image in sorted(given[name].rglob("*.jpg"))
    ]


def as_stream(given: Mapping[str, Path], name: str) -> Path:
    """The same as the stream that a manifest becomes: an image record, then a mask record."""
    directory = given[name].with_name(f"{name}-stream")
    directory.mkdir()
    parts = (part.read_bytes() for pair in pairs_of(given, name) for part in pair)
    (directory / "data.rec").write_bytes(b"".join(encode_record(part, split=False) for part in parts))
    return directory


def as_manifest(given: Mapping[str, Path], name: str) -> Path:
    """The same as an augmented manifest."""
    directory = given[name].with_name(f"{name}-manifest")
    directory.mkdir()
    rows = []
    for number, pair in enumerate(pairs_of(given, name)):
        for part in pair:
            (directory / f"{number}{part.suffix}").write_bytes(part.read_bytes())
        rows.append(json.dumps({"source-ref": f"s3://b/{number}.jpg", "shapes-ref": f"s3://b/{number}.png"}))
    (directory / "data.manifest").write_text("\n".join(rows) + "\n")
    return directory


MANIFEST = ChannelSettings(attribute_names=("source-ref", "shapes-ref"), local_roots={"s3://b/": "."})


@pytest.fixture
def channels(tmp_path: Path) -> dict[str, Path]:
    """8 training and 3 validation images, 60 x 80."""
    given: dict[str, Path] = {}
    for name, count in (("train", 8), ("validation", 3)):
        given |= write_channel(tmp_path / "data", name, count)
    return given


@pytest.fixture
def values() -> Values:
    """The smallest network on those channels."""
    return {
        "num_classes": 3,
        "num_training_samples": 8,
        "backbone": "resnet-18",
        "output_stride": 16,
        "base_size": 80,
        "crop_size": 48,
        "mini_batch_size": 4,
        "epochs": 2,
        "learning_rate": 0.005,
    }


@pytest.fixture
def job(tmp_path: Path, channels: dict[str, Path], values: Values) -> Callable[..., Job]:
    """Makes a job; keyword arguments replace hyperparameters."""

    def make(
        output: str = "out",
        given: Mapping[str, Path] = channels,
        settings: Mapping[str, ChannelSettings] | None = None,
        **changed: object,
    ) -> Job:
        return Job(
            algorithm="semantic_segmentation",
            channels=given,
            settings=settings or {},
            hyperparameters=values | changed,
            output=tmp_path / output,
            checkpoints=tmp_path / output / "checkpoints",
        )

    return make
