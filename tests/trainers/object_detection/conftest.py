"""Small made channels: squares and discs on a ground."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from formats.detection import Annotation, corners, decode_annotation, encode_annotation, pack_labels
from formats.image_record import image_record
from formats.image_record import write as write_records
from formats.images import encode_png
from trainers.job import ChannelSettings, Job

Values = dict[str, object]
HEIGHT, WIDTH = 90, 120


def write_channel(directory: Path, name: str, count: int) -> dict[str, Path]:
    """`<name>` with images in two folders, and `<name>_annotation`: one light square (0) and one disc (1) each."""
    random = np.random.default_rng(len(name))
    given = {each: directory / each for each in (name, f"{name}_annotation")}
    for index in range(count):
        pixels = random.integers(0, 60, (HEIGHT, WIDTH, 3))
        y_H1, x_1W = np.mgrid[0:HEIGHT, 0:WIDTH]
        boxes = []
        for number, left in enumerate(random.integers(2, 20, 2) + np.array([0, 60])):
            top, size = int(random.integers(2, 40)), int(random.integers(20, 40))
            inside = np.maximum(abs(y_H1 - top - size / 2), abs(x_1W - left - size / 2)) < size / 2
            if number:
                inside = np.hypot(y_H1 - top - size / 2, x_1W - left - size / 2) < size / 2
            pixels[inside] = (230, 220, 90) if number else (90, 200, 230)
            boxes.append([number, left, top, size, size])
        path = f"{'ab'[index % 2]}/{index}.png"
        for place in given.values():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
        (given[name] / path).write_bytes(encode_png(pixels.astype(np.uint8)))
        annotation = Annotation(np.array(boxes, float), HEIGHT, WIDTH, 3, path, {0: "square", 1: "disc"})
        (given[f"{name}_annotation"] / path).with_suffix(".json").write_bytes(encode_annotation(annotation))
    return given


def as_records(given: Mapping[str, Path], name: str) -> dict[str, Path]:
    """The same images and boxes, in the same order, as one RecordIO file."""
    directory = given[name].with_name(f"{name}-records")
    directory.mkdir()
    with (directory / "data.rec").open("wb") as stream:
        for index, image in enumerate(sorted(given[name].rglob("*.png"))):
            text = (given[f"{name}_annotation"] / image.relative_to(given[name])).with_suffix(".json").read_bytes()
            labels = pack_labels(corners(decode_annotation(text)))
            write_records(stream, [image_record(index, labels.tolist(), image.read_bytes())])
    return {name: directory}


@pytest.fixture
def channels(tmp_path: Path) -> dict[str, Path]:
    """8 training and 3 validation images."""
    given: dict[str, Path] = {}
    for name, count in (("train", 8), ("validation", 3)):
        given |= write_channel(tmp_path / "data", name, count)
    return given


@pytest.fixture
def values() -> Values:
    return {
        "num_classes": 2,
        "num_training_samples": 8,
        "base_network": "resnet-18",
        "mini_batch_size": 4,
        "epochs": 2,
        "learning_rate": 0.01,
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
            algorithm="object_detection",
            channels=given,
            settings=settings or {},
            hyperparameters={k: v for k, v in (values | changed).items() if v is not None},
            output=tmp_path / output,
            checkpoints=tmp_path / output / "checkpoints",
        )

    return make
