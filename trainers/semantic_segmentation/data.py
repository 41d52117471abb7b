"""Channels of images with masks (contract, section 2), and the batches that are made of them."""

# B batch, H height, W width, S side of a crop

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from formats.errors import InvalidBody
from formats.images import size_of
from formats.masks import IGNORE, colours_to_classes, decode_label_map, decode_mask, encode_mask
from formats.source import list_files
from trainers.distributed import World
from trainers.job import ClientError, Job
from trainers.progress import log
from trainers.semantic_segmentation.augment import Pair, augment, centre, padded
from trainers.semantic_segmentation.hyperparameters import Hyperparameters
from trainers.vision.batches import Batches, ImageChannel, Request, samples
from trainers.vision.sources import Labelled, ListedFiles, StoredImages, form_of, open_pipe, open_stored

__all__ = ["Batch", "make_batches", "open_channel"]

Mask = NDArray[np.uint8]

_IMAGES = (".jpg", ".jpeg", ".png")
_NUM_DRAWS = 2  # float32 numbers, of which an image's own generator is seeded
_SHOWN = 10  # places, or pixel values, named in one message
_THREADS = 4  # that look at all masks before training


class Batch(NamedTuple):
    image: Tensor
    """(B, 3, H, W) uint8; channels last in memory."""
    mask: Tensor
    """(B, H, W) uint8 class ids, 255 where nothing is known."""
    bad: tuple[tuple[str, str], ...] = ()
    """Place and fault of images that could not be decoded and are not in the batch."""


@dataclass(frozen=True, slots=True)
class _Masks:
    """From a label as it is stored to class ids; can be pickled."""

    table: bytes
    """By pixel value, the class: the label map."""
    num_classes: int
    unknown: str
    """`error` or `ignore`."""

    def __call__(self, raw: Labelled) -> bytes:
        """The mask's file, one channel of class ids.

        Raises:
            ClientError: no mask.
        """
        if not isinstance(raw.label, bytes):
            raise ClientError(
                f"{raw.place}: its label is {str(raw.label)[:60]!r}; expected a PNG file: AttributeNames are the image "
                "and the mask, both of which end in -ref."
            )
        colours = json.loads(raw.metadata).get("internal-color-map") if raw.metadata else None
        try:
            decode_mask(raw.label)
        except InvalidBody as error:
            if not colours:
                raise ClientError(f"{raw.place}: {error}") from error
            try:
                return encode_mask(colours_to_classes(raw.label, colours))
            except InvalidBody as fault:
                raise ClientError(f"{raw.place}: {fault}") from fault
        return raw.label

    def read(self, label: bytes | Path, place: str) -> Mask:
        """(H, W) class ids.

        Raises:
            ClientError: damaged, or values that are no class.
        """
        raw = self.raw(label, place)
        mask = np.frombuffer(self.table, np.uint8)[raw]
        odd = (mask >= self.num_classes) & (mask != IGNORE)
        if odd.any():
            if self.unknown == "error":
                values = ", ".join(map(str, np.unique(raw[odd])[:_SHOWN].tolist()))
                raise ClientError(
                    f"{place}: pixel values {values} are no class from 0 to num_classes - 1 ({self.num_classes - 1}) "
                    "and not 255; name them in the channel 'label_map', or set unknown_labels=ignore."
                )
            mask[odd] = IGNORE
        return mask

    @staticmethod
    def raw(label: bytes | Path, place: str) -> Mask:
        """(H, W) pixel values."""
        try:
            return decode_mask(label.read_bytes() if isinstance(label, Path) else label)
        except InvalidBody as error:
            raise ClientError(f"{place}: {error}") from error


def open_channel(job: Job, name: str, wanted: Hyperparameters) -> ImageChannel:
    """Find a channel's images and masks, and look at all masks.

    Raises:
        ClientError: missing or malformed data, masks of another size than their images, values that are no class.
    """
    masks = _Masks(_label_map(job, name).tobytes(), wanted.num_classes, wanted.unknown_labels)
    if job.settings_of(name).pipe:
        return ImageChannel(name, open_pipe(job, name), [], masks)
    stored: StoredImages
    labels: Sequence[bytes | Path]
    if form_of(job, name) == "images":
        stored, labels = _open_pairs(job, name)
    else:
        stored, labels = open_stored(job, name, masks)
    _look_at(name, stored, labels, masks)
    return ImageChannel(name, stored, labels, masks)


def make_batches(
    train: ImageChannel, validation: ImageChannel, wanted: Hyperparameters, world: World
) -> Batches[Batch]:
    """The batches of a run, for this process."""
    masks = train.label_of, validation.label_of
    assert isinstance(masks[0], _Masks)
    assert isinstance(masks[1], _Masks)
    maker = _Maker(
        train, validation, (masks[0], masks[1]),
        wanted.base_size, wanted.crop, wanted.flips, whole=wanted.validation_mini_batch_size == 1,
    )  # fmt: skip
    return Batches(
        train, validation, wanted, world, maker, _NUM_DRAWS, validation_size=wanted.validation_mini_batch_size
    )


@dataclass(slots=True)
class _Maker:
    """Makes batches; a copy of it works in each process of the loader."""

    train: ImageChannel
    validation: ImageChannel
    masks: tuple[_Masks, _Masks]
    base_size: int
    side: int
    flips: str
    whole: bool

    def __call__(self, request: Request) -> Batch:
        training = request.channel == "train"
        channel, masks = (self.train, self.masks[0]) if training else (self.validation, self.masks[1])
        bad: list[tuple[str, str]] = []
        images, labels = [], []
        for at, pixels, label in samples(channel, request, bad):
            place = str(label) if isinstance(label, Path) else f"Channel '{channel.name}': a mask"
            mask = masks.read(label, place)
            if mask.shape != pixels.shape[:2]:
                raise ClientError(f"{place} is {_by(mask.shape)} and its image {_by(pixels.shape)}; expected one size.")
            image, truth = self._seen(pixels, mask, None if request.draws is None else request.draws[at])
            images.append(image)
            labels.append(truth)
        if not images:
            return Batch(torch.empty(0), torch.empty(0), tuple(bad))
        # a view: NHWC in memory is torch's channels_last
        stacked_B3HW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return Batch(stacked_B3HW, torch.from_numpy(np.stack(labels)), tuple(bad))

    def _seen(self, pixels: Mask, mask: Mask, draws: NDArray[np.float32] | None) -> Pair:
        if draws is None:
            return padded(pixels, mask) if self.whole else centre(pixels, mask, self.side)
        random = np.random.default_rng(draws.view(np.uint32))
        return augment(pixels, mask, self.base_size, self.side, self.flips, random)


def _by(shape: Sequence[int]) -> str:
    return f"{shape[0]} x {shape[1]} (height x width)"


# ---- channels -----------------------------------------------------------------------------------------------------


def _label_map(job: Job, name: str) -> Mask:
    """(256,) class of each pixel value; without a map, the value itself."""
    if "label_map" not in job.channels:
        return np.arange(256, dtype=np.uint8)
    file = job.channel("label_map") / f"{name}_label_map.json"
    if not file.is_file():
        log.info("Channel 'label_map' holds no %s: pixel values of channel '%s' are classes", file.name, name)
        return np.arange(256, dtype=np.uint8)
    try:
        return decode_label_map(file.read_bytes(), str(file))
    except InvalidBody as error:
        raise ClientError(str(error)) from error


def _open_pairs(job: Job, name: str) -> tuple[StoredImages, list[Path]]:
    """One mask per image, of the same stem at the same relative place in the annotation channel."""
    images, annotations = job.channel(name), job.channel(f"{name}_annotation")
    paths, masks, missing = [], [], []
    for path in _relative(name, images, _IMAGES):
        mask = (annotations / path).with_suffix(".png")
        if mask.is_file():
            paths.append(path)
            masks.append(mask)
        else:
            missing.append(path)
    if not paths:
        raise ClientError(
            f"Channel '{name}': none of its {len(missing)} images has a mask of its name in {annotations}; "
            f"expected {Path(missing[0]).with_suffix('.png')} for {missing[0]}."
        )
    if missing:
        shown = ", ".join(missing[:_SHOWN])
        log.warning("Channel '%s': %d images without a mask are skipped, first: %s", name, len(missing), shown)
    return ListedFiles(images, paths), masks


def _relative(name: str, directory: Path, suffixes: tuple[str, ...]) -> list[str]:
    try:
        files = list_files(directory, suffixes=suffixes)
    except InvalidBody as error:
        raise ClientError(f"Channel '{name}': {error}; expected image files ({', '.join(suffixes)}).") from error
    return [str(Path(file).relative_to(directory)) for file in files]


def _look_at(name: str, stored: StoredImages, labels: Sequence[bytes | Path], masks: _Masks) -> None:
    """Refuse what does not fit before hours of training, and say which share each class has."""

    def look(index: int) -> NDArray[np.int64]:
        place = stored.place(index)
        mask = masks.raw(labels[index], place)
        try:
            size = size_of(stored.read(index))
        except (InvalidBody, OSError):  # told when it is decoded
            size = mask.shape
        if size != mask.shape:
            raise ClientError(f"{place} is {_by(size)} and its mask {_by(mask.shape)}; expected one size.")
        return np.bincount(mask.ravel(), minlength=256)

    with ThreadPoolExecutor(_THREADS) as pool:
        by_value = np.sum(list(pool.map(look, range(len(labels)))), axis=0)
    table = np.frombuffer(masks.table, np.uint8)
    counts = np.bincount(table, weights=by_value, minlength=256).astype(np.int64)
    _refuse_unknown(name, by_value, table, masks)
    _tell(name, counts, masks.num_classes)


def _refuse_unknown(name: str, by_value: NDArray[np.int64], table: Mask, masks: _Masks) -> None:
    odd = (table >= masks.num_classes) & (table != IGNORE) & (by_value > 0)
    if not odd.any():
        return
    shown = _listed((f"{value} ({by_value[value]} pixels)" for value in np.flatnonzero(odd).tolist()), int(odd.sum()))
    if masks.unknown == "error":
        raise ClientError(
            f"Channel '{name}': masks hold pixel values that are no class from 0 to num_classes - 1 "
            f"({masks.num_classes - 1}) and not 255: {shown}. Name them in the channel 'label_map', set num_classes, "
            "or set unknown_labels=ignore."
        )
    log.warning("Channel '%s': pixels of other values are left out: %s", name, shown)


def _tell(name: str, counts: NDArray[np.int64], num_classes: int) -> None:
    total = int(counts[:num_classes].sum())
    if not total:
        raise ClientError(f"Channel '{name}': no pixel of any mask is of a class; all are 255 (ignore).")
    shares = _listed((f"{number}: {100 * counts[number] / total:.1f}" for number in range(num_classes)), num_classes)
    log.info("Channel '%s': percent of pixels by class: %s", name, shares)
    absent = np.flatnonzero(counts[:num_classes] == 0).tolist()
    if absent:
        log.warning("Channel '%s': no pixel of class %s", name, _listed(map(str, absent), len(absent)))


def _listed(items: Iterable[str], count: int) -> str:
    several = [item for _, item in zip(range(2 * _SHOWN), items, strict=False)]
    return ", ".join(several) + (" ..." if count > len(several) else "")
