"""Small made image channels: a class is a brightness, so a few steps learn it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from formats.image_record import image_record
from formats.image_record import write as write_records
from formats.images import encode_png
from formats.lst import ListEntry, read_lst, write_lst
from formats.recordio import encode_record
from trainers.job import ChannelSettings, Job

Values = dict[str, object]


def write_channel(directory: Path, name: str, count: int, side: int = 16) -> Path:
    """`<directory>/<name>` with `count` images of two classes, `dark` and `light`, and the list."""
    random, entries = np.random.default_rng(len(name)), []
    channel = directory / name
    for index in range(count):
        label = index % 2
        path = f"{('dark', 'light')[label]}/{index}.png"
        (channel / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 100, (side, side, 3)) + 120 * label
        (channel / path).write_bytes(encode_png(pixels.astype(np.uint8)))
        entries.append(ListEntry(index, (float(label),), path))
    write_lst(channel / f"{name}.lst", entries)
    return channel


def as_records(channel: Path) -> Path:
    """The same images and labels, in the same order, as one RecordIO file."""
    directory = channel.with_name(f"{channel.name}-records")
    directory.mkdir()
    with (directory / "data.rec").open("wb") as stream:
        entries = read_lst(next(channel.glob("*.lst")))
        write_records(
            stream,
            [
                image_record(e.index, e.labels[0] if len(e.labels) == 1 else e.labels, (channel / e.path).read_bytes())
                for e in entries
            ],
        )
    return directory


def as_manifest(
    channel: Path, prefix: str = "s3://bucket/", label: Callable[[ListEntry], object] | None = None
) -> Path:
    """The same as an augmented manifest whose objects lie in `objects/` beside it."""
    directory = channel.with_name(f"{channel.name}-manifest")
    directory.mkdir()
    (directory / "objects").symlink_to(channel)
    rows = []
    for entry in read_lst(next(channel.glob("*.lst"))):
        value = label(entry) if label else str(int(entry.labels[0]))
        rows.append(json.dumps({"source-ref": f"{prefix}{entry.path}", "class": value, "class-metadata": {"job": "x"}}))
    (directory / "data.manifest").write_text("\n".join(rows) + "\n")
    return directory


def as_attribute_records(channel: Path) -> Path:
    """The same as the stream that a manifest becomes: an image record, then a label record."""
    directory = channel.with_name(f"{channel.name}-attributes")
    directory.mkdir()
    entries = read_lst(next(channel.glob("*.lst")))
    pairs = (((channel / e.path).read_bytes(), str(int(e.labels[0])).encode()) for e in entries)
    (directory / "data.rec").write_bytes(b"".join(encode_record(part, split=False) for pair in pairs for part in pair))
    return directory


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Images this small gain nothing from a second thread, and two that wait for each other starve on busy cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def channels(tmp_path: Path) -> dict[str, Path]:
    """24 training and 9 validation images, 16 x 16."""
    return {name: write_channel(tmp_path / "data", name, n) for name, n in (("train", 24), ("validation", 9))}


@pytest.fixture
def values() -> Values:
    """The smallest network on those channels."""
    return {
        "num_classes": 2,
        "num_training_samples": 24,
        "num_layers": 20,
        "image_shape": "3,12,12",
        "resize": 16,
        "mini_batch_size": 8,
        "epochs": 2,
        "learning_rate": 0.05,
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
            algorithm="image_classification",
            channels=given,
            settings=settings or {},
            hyperparameters=values | changed,
            output=tmp_path / output,
            checkpoints=tmp_path / output / "checkpoints",
        )

    return make
