"""Images with labels from channels, in File and Pipe mode, and the batches that vision algorithms make of them."""

# B batch, D draws

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from formats.errors import InvalidBody
from formats.images import decode, resize, size_of
from formats.source import shuffled
from trainers.distributed import World
from trainers.job import ClientError
from trainers.progress import log
from trainers.vision.loader import Loader, usable_cores
from trainers.vision.sources import Labelled, PipedImages, StoredImages

__all__ = ["CACHE_BYTES", "BatchSettings", "Batches", "ImageChannel", "Request", "Sample", "samples"]

Pixels = NDArray[np.uint8]
Bad = list[tuple[str, str]]
"""Place and fault of images that could not be decoded."""
Item = tuple[bytes, Any, str]
T = TypeVar("T")

CACHE_BYTES = 1 << 30
"""Decoded images beyond this, over both channels, are decoded again in each epoch."""
_LARGEST_BAD_SHARE = 0.01
_TRIES = 100  # images in a row that may be undecodable
_SHUFFLE_BUFFER = 1024  # encoded images of a pipe
_MEASURED = 64  # images whose headers tell how much memory all would take
_CACHING_THREADS = 4


class BatchSettings(Protocol):
    """What an algorithm's hyperparameters hold."""

    @property
    def mini_batch_size(self) -> int: ...
    @property
    def num_training_samples(self) -> int: ...
    @property
    def input_workers(self) -> int | None: ...
    @property
    def seed(self) -> int: ...


class MadeBatch(Protocol):
    """What an algorithm makes of a request."""

    @property
    def image(self) -> Tensor: ...
    @property
    def bad(self) -> tuple[tuple[str, str], ...]: ...


Made = TypeVar("Made", bound=MadeBatch)


class Stored(NamedTuple):
    """A request for images by number."""

    channel: Literal["train", "validation"]
    indices: NDArray[np.int64]
    draws: NDArray[np.float32] | None
    """(B, D) uniform numbers in [0, 1); None for validation."""


class Carried(NamedTuple):
    """A request that carries what came through a pipe."""

    channel: Literal["train", "validation"]
    items: list[Item]
    draws: NDArray[np.float32] | None
    """(B, D) uniform numbers in [0, 1); None for validation."""


Request = Stored | Carried


class Sample(NamedTuple):
    """One decoded image of a batch."""

    at: int
    """Its place in the request, and so of its draws."""
    pixels: Pixels
    label: Any


@dataclass(slots=True)
class ImageChannel:
    """The images of one channel; of a pipe there are neither labels nor length."""

    name: str
    source: StoredImages | PipedImages
    labels: Sequence[Any] | NDArray[Any]
    """(N,): of each image what its algorithm makes of its label."""
    label_of: Callable[[Labelled], Any]
    class_names: list[str] | None = None
    shape: tuple[int, int] = (1, 1)
    """Height and width that an image must have at least, resized."""
    shortest_side: int | None = None
    """None leaves images in their own size."""
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


class Batches(Generic[Made]):
    """The batches of one run, for this process.

    Order and augmentation follow from (seed, epoch) alone, so a resumed run sees what an unbroken one would have seen,
    and several processes together see what one would have seen.

    Args:
        train: what is shuffled and augmented.
        validation: what is seen in its order.
        wanted: the hyperparameters.
        world: the processes that share each batch.
        make: a batch of what a request asks for; see `samples`. It can be pickled.
        num_draws: random numbers per image that augmentation takes.
        validation_size: images per batch of validation; by default `mini_batch_size`.
    """

    def __init__(
        self,
        train: ImageChannel,
        validation: ImageChannel,
        wanted: BatchSettings,
        world: World,
        make: Callable[[Request], Made],
        num_draws: int,
        validation_size: int | None = None,
    ) -> None:
        self._train, self._validation, self._wanted, self._world = train, validation, wanted, world
        self._num_draws = num_draws
        self._validation_size = validation_size or wanted.mini_batch_size
        self._bad: dict[str, set[str]] = {train.name: set(), validation.name: set()}
        self.size = wanted.mini_batch_size * world.num_hosts
        """Images per update, over all processes."""
        num_workers = _choose_workers(train, wanted, world)
        if num_workers == 0:
            budget = CACHE_BYTES // world.local_size
            for channel in (train, validation):
                if not channel.is_pipe:
                    budget = channel.fill_cache(budget)
        pinned = world.device.type == "cuda"
        self._loader: Loader[Request, Made] = Loader(make, num_workers=num_workers, pinned=pinned)

    @property
    def per_epoch(self) -> int:
        num_samples = self._wanted.num_training_samples if self._train.is_pipe else len(self._train)
        return -(-num_samples // self.size)

    def train(self, epoch: int) -> Iterator[Made]:
        """The shuffled, augmented batches of one epoch, all of them full.

        The last one is filled up from the epoch's first images, as MXNet's iterator does.

        Raises:
            ClientError: too many undecodable images, too small ones, or a pipe with fewer images than a batch.
        """
        make = self._piped_train if self._train.is_pipe else self._stored_train
        yield from self._told(self._train, make(epoch))

    def validation(self) -> Iterator[Made]:
        """This process's part of the images, in their order, centre crop; the last batch may be smaller."""
        size, rank, num_ranks = self._validation_size, self._world.rank, self._world.size
        requests: Iterator[Request]
        if self._validation.is_pipe:
            mine = islice(_items(self._validation), rank, None, num_ranks)
            requests = (Carried("validation", items, None) for items in _groups(mine, size))
        else:
            order = np.arange(rank, len(self._validation), num_ranks)
            parts = (order[start : start + size] for start in range(0, len(order), size))
            requests = (Stored("validation", part, None) for part in parts)
        yield from self._told(self._validation, requests)

    def _stored_train(self, epoch: int) -> Iterator[Stored]:
        random = np.random.default_rng([self._wanted.seed, epoch])
        order = random.permutation(len(self._train))
        order = np.concatenate([order, order[: -len(order) % self.size]])
        draws = random.random((len(self._train), self._num_draws), dtype=np.float32)
        for start in range(0, len(order), self.size):
            mine = self._world.share(order[start : start + self.size])
            yield Stored("train", mine, draws[mine])

    def _piped_train(self, epoch: int) -> Iterator[Carried]:
        random = np.random.default_rng([self._wanted.seed, epoch])
        items = shuffled(_items(self._train), _SHUFFLE_BUFFER, self._wanted.seed, epoch)
        first: list[Item] = []
        for group in _groups(items, self.size):
            first = first or group
            if len(first) < self.size:
                raise ClientError(_too_few(len(first), self.size))
            full = group + first[: self.size - len(group)]
            mine = self._world.share(np.arange(self.size))
            draws = random.random((self.size, self._num_draws), dtype=np.float32)
            yield Carried("train", [full[at] for at in mine.tolist()], draws[mine])

    def _told(self, channel: ImageChannel, requests: Iterable[Request]) -> Iterator[Made]:
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
            if len(batch.image):
                yield batch


def samples(channel: ImageChannel, request: Request, bad: Bad) -> Iterator[Sample]:
    """The images of a request; what cannot be decoded is put into `bad`, and in training another image takes its place.

    Raises:
        ClientError: one is too small.
    """
    return _stored(channel, request, bad) if isinstance(request, Stored) else _carried(channel, request, bad)


def _stored(channel: ImageChannel, request: Stored, bad: Bad) -> Iterator[Sample]:
    for at, index in enumerate(request.indices.tolist()):
        # training batches stay full: in place of an undecodable image comes the next one
        tries = 1 if request.channel == "validation" else min(_TRIES, len(channel))
        for number in (np.arange(index, index + tries) % len(channel)).tolist():
            try:
                yield Sample(at, channel.pixels(number), channel.labels[number])
            except InvalidBody as error:
                bad.append((channel.stored.place(number), str(error)))
            else:
                break


def _carried(channel: ImageChannel, request: Carried, bad: Bad) -> Iterator[Sample]:
    last: Sample | None = None
    missing = 0
    for at, (data, label, place) in enumerate(request.items):
        try:
            last = Sample(at, channel.prepare(data, partial(str, place)), label)
        except InvalidBody as error:
            bad.append((place, str(error)))
            missing += 1
            continue
        yield last
    if last is not None and request.channel == "train":  # batches stay full
        yield from [last] * missing


def _choose_workers(train: ImageChannel, wanted: BatchSettings, world: World) -> int:
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
