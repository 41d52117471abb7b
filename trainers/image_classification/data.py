"""Channels of images with labels, in File and Pipe mode, and the batches that are made of them."""

# B batch, H height, W width, K classes

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from formats import manifests
from formats.content_types import media_type_of
from formats.errors import InvalidBody
from formats.images import decode, resize, size_of
from formats.source import shuffled
from trainers.distributed import World
from trainers.image_classification.hyperparameters import Hyperparameters
from trainers.job import ClientError, Job
from trainers.progress import log
from trainers.vision.augment import NUM_DRAWS, augment, centre_crop
from trainers.vision.loader import Loader, usable_cores
from trainers.vision.sources import Labelled, ListedFiles, PipedImages, StoredImages, form_of, open_pipe, open_stored

__all__ = ["CACHE_BYTES", "Batch", "Batches", "ImageChannel", "open_channel"]

Pixels = NDArray[np.uint8]
Label = int | NDArray[np.float32]
Item = tuple[bytes, Label, str]
T = TypeVar("T")

CACHE_BYTES = 1 << 30
"""Decoded images beyond this, over both channels, are decoded again in each epoch."""
_LARGEST_BAD_SHARE = 0.01
_TRIES = 100  # images in a row that may be undecodable
_SHUFFLE_BUFFER = 1024  # encoded images of a pipe
_MEASURED = 64  # images whose headers tell how much memory all would take
_CACHING_THREADS = 4


class Batch(NamedTuple):
    image: Tensor
    """(B, 3, H, W) uint8; channels last in memory."""
    label: Tensor
    """(B,) int64, or (B, K) float32 of 0 and 1 with `multi_label`."""
    bad: tuple[tuple[str, str], ...] = ()
    """Place and fault of images that could not be decoded and are not in the batch."""


class _Stored(NamedTuple):
    """A request for images by number."""

    channel: Literal["train", "validation"]
    indices: NDArray[np.int64]
    draws: NDArray[np.float32] | None
    """(B, NUM_DRAWS); None for validation."""


class _Carried(NamedTuple):
    """A request that carries what came through a pipe."""

    channel: Literal["train", "validation"]
    items: list[Item]
    draws: NDArray[np.float32] | None
    """(B, NUM_DRAWS); None for validation."""


@dataclass(slots=True)
class ImageChannel:
    """The images of one channel; of a pipe there are neither labels nor length."""

    name: str
    source: StoredImages | PipedImages
    labels: NDArray[np.int64] | NDArray[np.float32]
    """(N,) class indices, or (N, K) of 0 and 1."""
    class_names: list[str] | None
    shape: tuple[int, int]
    """Height and width of the network's input."""
    shortest_side: int | None
    """None leaves images in their own size."""
    label_of: Callable[[Labelled], Label]
    cached: dict[int, Pixels] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def stored(self) -> StoredImages:
        assert not isinstance(self.source, PipedImages)
        return self.source

    @property
    def is_pipe(self) -> bool:
        return isinstance(self.source, PipedImages)

    def decoded_bytes(self) -> int:
        """About how much memory all images would take when they are decoded and resized."""
        some = np.linspace(0, len(self) - 1, min(_MEASURED, len(self)), dtype=np.int64)
        sizes: list[int] = []
        for index in some.tolist():
            try:
                height, width = self._resized(size_of(self.stored.read(index)))
                sizes.append(3 * height * width)
            except (InvalidBody, OSError):
                continue  # found and told when it is decoded
        return int(np.mean(sizes or [0]) * len(self))

    def fill_cache(self, budget_bytes: int) -> int:
        """Decode images until the budget is spent; returns what is left of it."""
        with ThreadPoolExecutor(_CACHING_THREADS) as pool:
            for start in range(0, len(self), _MEASURED):
                numbers = range(start, min(start + _MEASURED, len(self)))
                for index, pixels in zip(numbers, pool.map(self._pixels_or_none, numbers), strict=True):
                    if budget_bytes <= 0:
                        return 0
                    if pixels is not None:
                        self.cached[index] = pixels
                        budget_bytes -= pixels.nbytes
        return budget_bytes

    def pixels(self, index: int) -> Pixels:
        """(h, w, 3), resized as `prepare` says.

        Raises:
            InvalidBody: it cannot be decoded.
            ClientError: it is smaller than the network's input.
        """
        cached = self.cached.get(index)
        if cached is not None:
            return cached
        try:
            data = self.stored.read(index)
        except OSError as error:
            raise InvalidBody(f"cannot be read: {error.strerror or error}") from error
        return self.prepare(data, partial(self.stored.place, index))

    def prepare(self, data: bytes, place: Callable[[], str]) -> Pixels:
        """Decode, and bring the shortest side to `shortest_side`."""
        pixels = decode(data)
        height, width = self._resized(pixels.shape[:2])
        if height < self.shape[0] or width < self.shape[1]:
            raise ClientError(
                f"Channel '{self.name}': {place()} is {height} x {width} (height x width) after resize, "
                f"smaller than image_shape {self.shape[0]} x {self.shape[1]}."
            )
        return resize(pixels, height, width)

    def _resized(self, size: tuple[int, ...]) -> tuple[int, int]:
        if self.shortest_side is None:
            return size[0], size[1]
        scale = self.shortest_side / min(size)
        height, width = (max(self.shortest_side, round(side * scale)) for side in size)
        return height, width

    def _pixels_or_none(self, index: int) -> Pixels | None:
        try:
            return self.pixels(index)
        except InvalidBody:
            return None


def open_channel(job: Job, name: str, wanted: Hyperparameters) -> ImageChannel:
    """Find a channel's images and labels, and check all that can be checked without decoding.

    Raises:
        ClientError: missing or malformed data; labels that do not fit.
    """
    _, parameters = media_type_of(job.settings_of(name).content_type)
    label_format = parameters.get("label-format", "multi-hot")
    if label_format not in ("multi-hot", "class-id"):
        raise ClientError(f"Channel '{name}': label-format={label_format}; expected multi-hot or class-id.")
    parse = _ReadsLabels(name, wanted.num_classes, wanted.multi_label, label_format)
    shape = (wanted.image_shape[1], wanted.image_shape[2])
    none = np.zeros(0, np.int64)
    if job.settings_of(name).pipe:
        return ImageChannel(name, open_pipe(job, name), none, None, shape, wanted.resize, parse)
    if form_of(job, name) == "images" and wanted.resize is None:
        raise ClientError("Hyperparameter resize is required with image files: the shortest side before the crop.")
    stored, found = open_stored(job, name, parse)
    labels = np.stack(found) if wanted.multi_label else np.array(found, np.int64)
    class_names = _class_names(job.channel(name), stored, labels, wanted)
    return ImageChannel(name, stored, labels, class_names, shape, wanted.resize, parse)


class Batches:
    """The batches of one run, for this process.

    Order and augmentation follow from (seed, epoch) alone, so a resumed run sees what an unbroken one would have seen,
    and several processes together see what one would have seen.
    """

    def __init__(self, train: ImageChannel, validation: ImageChannel, wanted: Hyperparameters, world: World) -> None:
        self._train, self._validation, self._wanted, self._world = train, validation, wanted, world
        self._bad: dict[str, set[str]] = {train.name: set(), validation.name: set()}
        self.size = wanted.mini_batch_size * world.num_hosts
        """Images per update, over all processes."""
        num_workers = _choose_workers(train, wanted, world)
        if num_workers == 0:
            budget = CACHE_BYTES // world.local_size
            for channel in (train, validation):
                if not channel.is_pipe:
                    budget = channel.fill_cache(budget)
        maker = _Maker(train, validation, wanted.augmentation_type, wanted.crop_padding)
        self._loader: Loader[_Stored | _Carried, Batch] = Loader(
            maker, num_workers=num_workers, pinned=world.device.type == "cuda"
        )

    @property
    def per_epoch(self) -> int:
        num_samples = self._wanted.num_training_samples if self._train.is_pipe else len(self._train)
        return -(-num_samples // self.size)

    def train(self, epoch: int) -> Iterator[Batch]:
        """The shuffled, augmented batches of one epoch, all of them full.

        The last one is filled up from the epoch's first images, as MXNet's iterator does.

        Raises:
            ClientError: too many undecodable images, too small ones, or a pipe with fewer images than a batch.
        """
        make = self._piped_train if self._train.is_pipe else self._stored_train
        yield from self._told(self._train, make(epoch))

    def validation(self) -> Iterator[Batch]:
        """This process's part of the images, in their order, centre crop; the last batch may be smaller."""
        size, rank, num_ranks = self._wanted.mini_batch_size, self._world.rank, self._world.size
        requests: Iterator[_Stored | _Carried]
        if self._validation.is_pipe:
            mine = islice(_items(self._validation), rank, None, num_ranks)
            requests = (_Carried("validation", items, None) for items in _groups(mine, size))
        else:
            order = np.arange(rank, len(self._validation), num_ranks)
            parts = (order[start : start + size] for start in range(0, len(order), size))
            requests = (_Stored("validation", part, None) for part in parts)
        yield from self._told(self._validation, requests)

    def _stored_train(self, epoch: int) -> Iterator[_Stored]:
        random = np.random.default_rng([self._wanted.seed, epoch])
        order = random.permutation(len(self._train))
        order = np.concatenate([order, order[: -len(order) % self.size]])
        draws = random.random((len(self._train), NUM_DRAWS), dtype=np.float32)
        for start in range(0, len(order), self.size):
            mine = self._world.share(order[start : start + self.size])
            yield _Stored("train", mine, draws[mine])

    def _piped_train(self, epoch: int) -> Iterator[_Carried]:
        random = np.random.default_rng([self._wanted.seed, epoch])
        items = shuffled(_items(self._train), _SHUFFLE_BUFFER, self._wanted.seed, epoch)
        first: list[Item] = []
        for group in _groups(items, self.size):
            first = first or group
            if len(first) < self.size:
                raise ClientError(_too_few(len(first), self.size))
            full = group + first[: self.size - len(group)]
            mine = self._world.share(np.arange(self.size))
            draws = random.random((self.size, NUM_DRAWS), dtype=np.float32)
            yield _Carried("train", [full[at] for at in mine.tolist()], draws[mine])

    def _told(self, channel: ImageChannel, requests: Iterable[_Stored | _Carried]) -> Iterator[Batch]:
        """The batches, with a word about each image that could not be decoded."""
        bad = self._bad[channel.name]
        for batch in self._loader.run(requests):
            for place, fault in batch.bad:
                if place in bad:
                    continue
                bad.add(place)
                log.warning("Channel '%s': %s is skipped: %s", channel.name, place, fault)
                all_of_them = self._wanted.num_training_samples if channel.is_pipe else len(channel)
                if len(bad) > _LARGEST_BAD_SHARE * all_of_them:
                    raise ClientError(
                        f"Channel '{channel.name}': {len(bad)} of {all_of_them} images cannot be decoded, more than "
                        f"{_LARGEST_BAD_SHARE:.0%}; the last one is {place}: {fault}"
                    )
            if len(batch.label):
                yield batch


@dataclass(slots=True)
class _Maker:
    """Makes batches; a copy of it works in each process of the loader."""

    train: ImageChannel
    validation: ImageChannel
    augmentation_type: str | None
    padding: int

    def __call__(self, request: _Stored | _Carried) -> Batch:
        channel = self.train if request.channel == "train" else self.validation
        bad: list[tuple[str, str]] = []
        made = self._stored(channel, request, bad) if isinstance(request, _Stored) else _carried(channel, request, bad)
        height, width = channel.shape
        images, labels = [], []
        for at, (pixels, label) in made:
            if request.draws is None:
                images.append(centre_crop(pixels, height, width))
            else:
                draws = request.draws[at]
                images.append(augment(pixels, self.augmentation_type, draws, height, width, self.padding))
            labels.append(label)
        if not images:
            return Batch(torch.empty(0), torch.empty(0), tuple(bad))
        # a view: NHWC in memory is torch's channels_last
        stacked_B3HW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return Batch(stacked_B3HW, torch.from_numpy(np.array(labels)), tuple(bad))

    def _stored(
        self, channel: ImageChannel, request: _Stored, bad: list[tuple[str, str]]
    ) -> Iterator[tuple[int, tuple[Pixels, Label]]]:
        for at, index in enumerate(request.indices.tolist()):
            # training batches stay full: in place of an undecodable image comes the next one
            tries = 1 if request.channel == "validation" else min(_TRIES, len(channel))
            for number in (np.arange(index, index + tries) % len(channel)).tolist():
                try:
                    yield at, (channel.pixels(number), channel.labels[number])
                except InvalidBody as error:
                    bad.append((channel.stored.place(number), str(error)))
                else:
                    break


def _carried(
    channel: ImageChannel, request: _Carried, bad: list[tuple[str, str]]
) -> Iterator[tuple[int, tuple[Pixels, Label]]]:
    last: tuple[Pixels, Label] | None = None
    missing = 0
    for at, (data, label, place) in enumerate(request.items):
        try:
            last = channel.prepare(data, partial(str, place)), label
        except InvalidBody as error:
            bad.append((place, str(error)))
            missing += 1
            continue
        yield at, last
    if last is not None and request.channel == "train":  # batches stay full
        yield from ((at, last) for at in range(missing))


@dataclass(frozen=True, slots=True)
class _ReadsLabels:
    """Raw labels to a class index, or to a vector of 0 and 1; can be pickled."""

    channel: str
    num_classes: int
    multi_label: bool
    label_format: str

    def __call__(self, raw: Labelled) -> Label:
        if isinstance(raw.label, str):
            return self._of_text(raw.label, raw.place)
        return self._of_many(raw.label, raw.place) if self.multi_label else self._of_one(raw)

    def _of_text(self, text: str, place: str) -> Label:
        try:
            if not self.multi_label:
                return manifests.class_of(text, self.num_classes)
            form: manifests.LabelFormat = "class-id" if self.label_format == "class-id" else "multi-hot"
            return manifests.classes_of(text, self.num_classes, form)
        except InvalidBody as error:
            raise ClientError(f"{place}: {error}") from error

    def _of_one(self, raw: Labelled) -> int:
        assert not isinstance(raw.label, str)
        if len(raw.label) != 1:
            invalid = f"Invalid lst file in the {self.channel} channel. " if raw.listed else ""
            raise ClientError(f"{invalid}{raw.place} has {len(raw.label)} labels; expected 1, or multi_label=1.")
        label = float(raw.label[0])
        if label != int(label) or not 0 <= label < self.num_classes:
            raise ClientError(
                f"{raw.place}: label {label:g} is not a class index from 0 to num_classes - 1 ({self.num_classes - 1})."
            )
        return int(label)

    def _of_many(self, labels: NDArray[np.float32], place: str) -> NDArray[np.float32]:
        if len(labels) != self.num_classes:
            raise ClientError(
                f"Mismatch between number of labels in the multi-label data ({len(labels)}) and the num_classes "
                f"parameter ({self.num_classes}). First at {place}."
            )
        if not np.isin(labels, (0, 1)).all():
            raise ClientError(f"{place}: labels must be 0 or 1 for each class.")
        return labels


def _choose_workers(train: ImageChannel, wanted: Hyperparameters, world: World) -> int:
    """Processes of the input pipeline; 0 for threads of this one."""
    if wanted.input_workers is not None:
        return min(wanted.input_workers, usable_cores())
    # on a CPU the network itself takes all cores; a process more would not add any
    if world.device.type == "cpu":
        return 0
    in_memory = not train.is_pipe and train.decoded_bytes() * world.local_size <= CACHE_BYTES
    return 0 if in_memory else max(1, usable_cores() // world.local_size - 1)


def _items(channel: ImageChannel) -> Iterator[Item]:
    assert isinstance(channel.source, PipedImages)
    for data, raw in channel.source.epoch():
        yield data, channel.label_of(raw), raw.place


def _groups(items: Iterator[T], size: int) -> Iterator[list[T]]:
    while group := list(islice(items, size)):
        yield group


def _too_few(number: int, size: int) -> str:
    return (
        "The number of input images must be bigger or equal to the mini_batch_size. "
        f"There are {number}, and mini_batch_size is {size} over all machines."
    )


def _class_names(
    directory: Path, stored: StoredImages, labels: NDArray[np.int64] | NDArray[np.float32], wanted: Hyperparameters
) -> list[str] | None:
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
    if wanted.multi_label or not isinstance(stored, ListedFiles):
        return None
    by_class: dict[int, set[str]] = {}
    for label, path in zip(labels.tolist(), stored.paths, strict=True):
        by_class.setdefault(label, set()).add(path.partition("/")[0] if "/" in path else "")
    found = [by_class.get(label, set()) for label in range(wanted.num_classes)]
    names = [next(iter(folder)) for folder in found if len(folder) == 1]
    return names if len(set(names)) == wanted.num_classes and "" not in names else None
