"""Image channels: a `.lst` and the files it names, decoded once and kept in memory as long as they fit."""

# B batch, H height, W width, K classes

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from formats.errors import InvalidBody
from formats.images import decode, resize
from formats.lst import ListEntry, read_lst
from trainers.image_classification.augment import NUM_DRAWS, augment, centre_crop
from trainers.image_classification.hyperparameters import Hyperparameters
from trainers.job import ClientError, Job

__all__ = ["ImageSet", "open_channel", "train_batches", "validation_batches"]

_log = logging.getLogger("penstock.train")

Pixels = NDArray[np.uint8]
Batch = tuple[Tensor, Tensor]
"""Images (B, 3, H, W) uint8, and labels: (B,) int64, or (B, K) float32 of 0 and 1 with `multi_label`."""
_Maker = Callable[[NDArray[np.int64]], Batch | None]

CACHE_BYTES = 1 << 30
"""Decoded images beyond this, over both channels, are decoded again in each epoch."""
_LISTED = 10  # missing files named in one message
_LARGEST_BAD_SHARE = 0.01
_THREADS = 4  # decoding releases the interpreter lock
_BATCHES_AHEAD = 4


@dataclass(slots=True)
class ImageSet:
    """The images of one channel."""

    name: str
    directory: Path
    entries: list[ListEntry]
    labels: NDArray[np.int64] | NDArray[np.float32]
    """(N,) class indices, or (N, K) of 0 and 1."""
    class_names: list[str] | None
    shape: tuple[int, int]
    """Height and width of the network's input."""
    shortest_side: int
    cached: dict[int, Pixels] = field(default_factory=dict)
    unreadable: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.entries)

    def fill_cache(self, budget_bytes: int) -> int:
        """Decode images until the budget is spent; returns what is left of it."""
        for index in range(len(self)):
            if budget_bytes <= 0:
                break
            pixels = self._read(index)
            if pixels is not None:
                self.cached[index] = pixels
                budget_bytes -= pixels.nbytes
        return budget_bytes

    def pixels(self, index: int) -> Pixels | None:
        """(h, w, 3) with its shortest side at `shortest_side`; None for an undecodable file.

        Raises:
            ClientError: the image is smaller than the network's input, or too many files are undecodable.
        """
        cached = self.cached.get(index)
        return self._read(index) if cached is None else cached

    def _read(self, index: int) -> Pixels | None:
        if index in self.unreadable:
            return None
        path = self.directory / self.entries[index].path
        try:
            pixels = decode(path.read_bytes())
        except (InvalidBody, OSError) as error:
            self._skip(index, path, error)
            return None
        scale = self.shortest_side / min(pixels.shape[:2])
        height, width = (max(self.shortest_side, round(side * scale)) for side in pixels.shape[:2])
        resized = resize(pixels, height, width)
        if height < self.shape[0] or width < self.shape[1]:
            raise ClientError(
                f"Channel '{self.name}': {path} is {height} x {width} (height x width) after resize, "
                f"smaller than image_shape {self.shape[0]} x {self.shape[1]}."
            )
        return resized

    def _skip(self, index: int, path: Path, error: Exception) -> None:
        self.unreadable.add(index)
        _log.warning("Channel '%s': %s is skipped: %s", self.name, path, error)
        if len(self.unreadable) > _LARGEST_BAD_SHARE * len(self):
            raise ClientError(
                f"Channel '{self.name}': {len(self.unreadable)} of {len(self)} images cannot be decoded, more than "
                f"{_LARGEST_BAD_SHARE:.0%}; the last one is {path}: {error}"
            ) from error


def open_channel(job: Job, name: str, wanted: Hyperparameters) -> ImageSet:
    """Read a channel's list and check all that can be checked without decoding.

    Raises:
        ClientError: the list is missing, malformed or speaks of files that are not there; labels do not fit.
    """
    directory = job.channel(name)
    list_file = _find_list(job, name, directory)
    try:
        entries = list(read_lst(list_file))
    except InvalidBody as error:
        raise ClientError(f"Invalid lst file in the {name} channel. {error}") from error
    if not entries:
        raise ClientError(f"Invalid lst file in the {name} channel. {list_file} has no rows.")
    if wanted.resize is None:
        raise ClientError("Hyperparameter resize is required with image files: the shortest side before the crop.")
    labels = (
        _multi_hot(entries, list_file, wanted) if wanted.multi_label else _classes(entries, name, list_file, wanted)
    )
    _check_files(name, directory, entries)
    class_names = _class_names(directory, entries, wanted)
    shape = (wanted.image_shape[1], wanted.image_shape[2])
    return ImageSet(name, directory, entries, labels, class_names, shape, wanted.resize)


def train_batches(images: ImageSet, wanted: Hyperparameters, epoch: int) -> Iterator[Batch]:
    """The shuffled, augmented batches of one epoch, all of them full.

    Order and augmentation follow from (seed, epoch) alone, so a resumed run sees what an unbroken one would have seen.
    The last batch is filled up from the epoch's first images, as MXNet's iterator does.
    """
    random = np.random.default_rng([wanted.seed, epoch])
    order = random.permutation(len(images))
    order = np.concatenate([order, order[: -len(order) % wanted.mini_batch_size]])
    draws = random.random((len(images), NUM_DRAWS), dtype=np.float32)
    height, width = images.shape

    def make(indices: NDArray[np.int64]) -> Batch | None:
        made = ((i, images.pixels(i)) for i in indices.tolist())
        kept = [
            (i, augment(pixels, wanted.augmentation_type, draws[i], height, width))
            for i, pixels in made
            if pixels is not None
        ]
        return _batch(images, kept)

    yield from _ahead(make, order, wanted.mini_batch_size)


def validation_batches(images: ImageSet, batch_size: int) -> Iterator[Batch]:
    """Every image once, in the list's order, centre crop; the last batch may be smaller."""
    height, width = images.shape

    def make(indices: NDArray[np.int64]) -> Batch | None:
        made = ((i, images.pixels(i)) for i in indices.tolist())
        return _batch(images, [(i, centre_crop(pixels, height, width)) for i, pixels in made if pixels is not None])

    yield from _ahead(make, np.arange(len(images)), batch_size)


def _ahead(make: _Maker, order: NDArray[np.int64], batch_size: int) -> Iterator[Batch]:
    """Make batches on threads, in order, a few ahead of their use; memory stays flat."""
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="images") as pool:
        waiting: deque[Future[Batch | None]] = deque()
        try:
            for start in range(0, len(order), batch_size):
                waiting.append(pool.submit(make, order[start : start + batch_size]))
                if len(waiting) > _BATCHES_AHEAD and (batch := waiting.popleft().result()):
                    yield batch
            while waiting:
                if batch := waiting.popleft().result():
                    yield batch
        finally:
            for future in waiting:
                future.cancel()


def _batch(images: ImageSet, kept: list[tuple[int, Pixels]]) -> Batch | None:
    if not kept:
        return None
    stacked_BHW3 = torch.from_numpy(np.stack([pixels for _, pixels in kept]))
    labels = torch.from_numpy(images.labels[[index for index, _ in kept]])
    return stacked_BHW3.permute(0, 3, 1, 2), labels  # a view: NHWC in memory is torch's channels_last


def _find_list(job: Job, name: str, directory: Path) -> Path:
    own = job.channels.get(f"{name}_lst")
    searched = directory if own is None else job.channel(f"{name}_lst")
    _log.info("Searching for .lst files in %s.", searched)
    lists = sorted(searched.rglob("*.lst"))
    if len(lists) == 1:
        return lists[0]
    if lists:
        names = ", ".join(path.name for path in lists)
        raise ClientError(
            f"Channel '{name}': {searched} holds {len(lists)} .lst files ({names}); expected exactly one."
        )
    if any(directory.glob("*.rec")):
        raise ClientError(f"Channel '{name}': {directory} holds RecordIO; only images with a .lst are supported yet.")
    if any(directory.glob("*.manifest")) or any(directory.glob("*.jsonl")):
        raise ClientError(
            f"Channel '{name}': {directory} holds an augmented manifest; only images with a .lst are supported yet."
        )
    raise ClientError(f"Channel '{name}': no .lst file in {searched}, and no channel '{name}_lst' with one.")


def _classes(entries: list[ListEntry], name: str, list_file: Path, wanted: Hyperparameters) -> NDArray[np.int64]:
    for row, entry in enumerate(entries, start=1):
        if len(entry.labels) != 1:
            raise ClientError(
                f"Invalid lst file in the {name} channel. {list_file}, row {row} ({entry.path}) has "
                f"{len(entry.labels)} labels; expected 1, or multi_label=1."
            )
        label = entry.labels[0]
        if label != int(label) or not 0 <= label < wanted.num_classes:
            raise ClientError(
                f"{list_file}, row {row} ({entry.path}): label {label:g} is not a class index "
                f"from 0 to num_classes - 1 ({wanted.num_classes - 1})."
            )
    return np.array([int(entry.labels[0]) for entry in entries], np.int64)


def _multi_hot(entries: list[ListEntry], list_file: Path, wanted: Hyperparameters) -> NDArray[np.float32]:
    for row, entry in enumerate(entries, start=1):
        if len(entry.labels) != wanted.num_classes:
            raise ClientError(
                f"Mismatch between number of labels in the multi-label data ({len(entry.labels)}) and the num_classes "
                f"parameter ({wanted.num_classes}). First at {list_file}, row {row} ({entry.path})."
            )
        if not set(entry.labels) <= {0.0, 1.0}:
            raise ClientError(f"{list_file}, row {row} ({entry.path}): labels must be 0 or 1 for each class.")
    return np.array([entry.labels for entry in entries], np.float32)


def _check_files(name: str, directory: Path, entries: list[ListEntry]) -> None:
    missing = [entry.path for entry in entries if not (directory / entry.path).is_file()]
    if missing:
        shown = ", ".join(missing[:_LISTED])
        raise ClientError(f"Channel '{name}': {len(missing)} files of the list are not in {directory}, first: {shown}.")


def _class_names(directory: Path, entries: list[ListEntry], wanted: Hyperparameters) -> list[str] | None:
    """From `labels.json` (a list of names) beside the images, or from one directory per class."""
    file = directory / "labels.json"
    if file.is_file():
        try:
            names = json.loads(file.read_bytes())
        except ValueError as error:
            raise ClientError(f"{file} is not JSON: {error}") from error
        if not (
            isinstance(names, list) and len(names) == wanted.num_classes and all(isinstance(n, str) for n in names)
        ):
            raise ClientError(f"{file}: expected a list of {wanted.num_classes} names (num_classes).")
        return names
    if wanted.multi_label:
        return None
    by_class: dict[int, set[str]] = {}
    for entry in entries:
        by_class.setdefault(int(entry.labels[0]), set()).add(entry.path.partition("/")[0] if "/" in entry.path else "")
    found = [by_class.get(label, set()) for label in range(wanted.num_classes)]
    names = [next(iter(folder)) for folder in found if len(folder) == 1]
    return names if len(set(names)) == wanted.num_classes and "" not in names else None
