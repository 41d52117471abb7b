"""Channels of images with boxes (contract, section 2), and the batches that are made of them."""

# B batch, H height, W width, M objects of the image that has most, N objects of one image

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from formats.detection import corners, decode_annotation, unpack_labels
from formats.errors import InvalidBody
from formats.images import size_of
from formats.source import list_files
from trainers.distributed import World
from trainers.job import ClientError, Job
from trainers.object_detection.augment import augment, squeeze
from trainers.object_detection.hyperparameters import Hyperparameters
from trainers.progress import log
from trainers.vision.batches import Batches, ImageChannel, Request, samples
from trainers.vision.sources import Labelled, ListedFiles, StoredImages, form_of, open_pipe, open_stored

__all__ = ["Batch", "make_batches", "open_channel"]

Objects = NDArray[np.float32]
"""(N, 5): class, xmin, ymin, xmax, ymax as shares of the image's width and height."""

_IMAGES = (".jpg", ".jpeg", ".png")
_NUM_DRAWS = 2  # float32 numbers, of which an image's own generator is seeded
_SHOWN = 10  # places named in one message
_HEADER = 2  # numbers before the objects of a packed label


class Batch(NamedTuple):
    image: Tensor
    """(B, 3, S, S) uint8; channels last in memory."""
    objects: Tensor
    """(B, M, 5) float32: class, xmin, ymin, xmax, ymax; class -1 fills up."""
    bad: tuple[tuple[str, str], ...] = ()
    """Place and fault of images that could not be decoded and are not in the batch."""


def open_channel(job: Job, name: str, wanted: Hyperparameters) -> ImageChannel:
    """Find a channel's images and their objects, and check all that can be checked without decoding.

    Raises:
        ClientError: missing or malformed data; classes or numbers of objects that do not fit.
    """
    read = _ReadsObjects(wanted.num_classes)
    if job.settings_of(name).pipe:
        return ImageChannel(name, open_pipe(job, name), [], read)
    if form_of(job, name) == "images":
        stored, objects = _open_annotated(job, name, read)
    else:
        stored, objects = open_stored(job, name, read)
    _check_label_width(name, stored, objects, wanted)
    _check_classes(name, stored, objects, wanted.num_classes)
    if wanted.drop_empty_images:
        stored, objects = _without_empty(name, stored, objects)
    return ImageChannel(name, stored, objects, read)


def make_batches(
    train: ImageChannel, validation: ImageChannel, wanted: Hyperparameters, world: World
) -> Batches[Batch]:
    """The batches of a run, for this process."""
    maker = _Maker(train, validation, wanted.image_shape, wanted.flips)
    return Batches(train, validation, wanted, world, maker, _NUM_DRAWS)


@dataclass(slots=True)
class _Maker:
    """Makes batches; a copy of it works in each process of the loader."""

    train: ImageChannel
    validation: ImageChannel
    side: int
    flips: str

    def __call__(self, request: Request) -> Batch:
        channel = self.train if request.channel == "train" else self.validation
        bad: list[tuple[str, str]] = []
        images, objects = [], []
        for at, pixels, found in samples(channel, request, bad):
            if request.draws is None:
                images.append(squeeze(pixels, self.side))
                objects.append(found)
                continue
            random = np.random.default_rng(request.draws[at].view(np.uint32))
            augmented, seen = augment(pixels, found, self.side, self.flips, random)
            images.append(augmented)
            objects.append(seen)
        if not images:
            return Batch(torch.empty(0), torch.empty(0, 0, 5), tuple(bad))
        # a view: NHWC in memory is torch's channels_last
        stacked_B3HW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        filled_BM5 = np.full((len(objects), max(map(len, objects)), 5), -1, np.float32)
        for row, each in zip(filled_BM5, objects, strict=True):
            row[: len(each)] = each
        return Batch(stacked_B3HW, torch.from_numpy(filled_BM5), tuple(bad))


@dataclass(frozen=True, slots=True)
class _ReadsObjects:
    """Raw labels, packed numbers or a manifest's JSON, to objects; can be pickled."""

    num_classes: int

    def __call__(self, raw: Labelled) -> Objects:
        if isinstance(raw.label, bytes):
            raise ClientError(f"{raw.place}: its label is an image; expected an annotation.")
        try:
            if isinstance(raw.label, str):
                found = corners(decode_annotation(raw.label.encode(), "label"))
                return self.checked(found, raw.place)
            return self.checked(unpack_labels(raw.label)[:, :5], raw.place)
        except InvalidBody as error:
            raise ClientError(f"{raw.place}: {error}") from error

    def checked(self, objects_N5: Objects, place: str) -> Objects:
        """Every class is one; raises ClientError."""
        if len(objects_N5) and objects_N5[:, 0].max() >= self.num_classes:
            worst = int(objects_N5[:, 0].max())
            hint = " Classes count from 0: are yours shifted by one?" if worst == self.num_classes else ""
            raise ClientError(
                f"{place}: class_id {worst} is not a class from 0 to num_classes - 1 ({self.num_classes - 1}).{hint}"
            )
        return objects_N5.astype(np.float32)


# ---- image files and their annotations ----------------------------------------------------------------------------


def _open_annotated(job: Job, name: str, read: _ReadsObjects) -> tuple[StoredImages, list[Objects]]:
    """One JSON file per image, of the same stem at the same relative place in the annotation channel."""
    images, annotations = job.channel(name), job.channel(f"{name}_annotation")
    paths, objects, missing, odd = [], [], [], []
    for path in _relative(name, images):
        file = (annotations / path).with_suffix(".json")
        if not file.is_file():
            missing.append(path)
            continue
        found, fits = _read_annotation(images / path, file)
        paths.append(path)
        objects.append(read.checked(found, str(file)))
        if not fits:
            odd.append(path)
    if not paths:
        raise ClientError(
            f"Channel '{name}': none of its {len(missing)} images has a JSON file of its name in {annotations}; "
            f"expected {Path(missing[0]).with_suffix('.json')} for {missing[0]}."
        )
    _warn(name, missing, "images without a JSON file in the annotation channel are skipped")
    _warn(name, odd, "images have another size than their annotation says; the image's own counts")
    return ListedFiles(images, paths), objects


def _relative(name: str, directory: Path) -> list[str]:
    try:
        files = list_files(directory, suffixes=_IMAGES)
    except InvalidBody as error:
        raise ClientError(f"Channel '{name}': {error}; expected image files ({', '.join(_IMAGES)}).") from error
    return [str(Path(file).relative_to(directory)) for file in files]


def _read_annotation(image: Path, file: Path) -> tuple[Objects, bool]:
    """Its objects, and whether the image has the size that the annotation says."""
    try:
        annotation = decode_annotation(file.read_bytes(), str(file))
    except InvalidBody as error:
        raise ClientError(str(error)) from error
    try:
        height, width = size_of(image.read_bytes())
    except InvalidBody:  # told when it is decoded
        height, width = annotation.height, annotation.width
    return corners(annotation, height, width), (height, width) == (annotation.height, annotation.width)


def _warn(name: str, places: list[str], what: str) -> None:
    if places:
        log.warning("Channel '%s': %d %s, first: %s", name, len(places), what, ", ".join(places[:_SHOWN]))


# ---- what holds for every form ------------------------------------------------------------------------------------


def _check_label_width(name: str, stored: StoredImages, objects: list[Objects], wanted: Hyperparameters) -> None:
    counts = [len(each) for each in objects]
    most = int(np.argmax(counts))
    needed = _HEADER + 5 * counts[most]
    if needed > wanted.label_width:
        raise ClientError(
            f"Invalid parameter value 'label_width'. Please ensure that it is at least {needed}: "
            f"{stored.place(most)} in channel '{name}' has {counts[most]} objects, and label_width is "
            f"{wanted.label_width} (2 + 5 for each object)."
        )


def _check_classes(name: str, stored: StoredImages, objects: list[Objects], num_classes: int) -> None:
    used = Counter(int(number) for each in objects for number in each[:, 0].tolist())
    if not used:
        raise ClientError(f"Channel '{name}': none of its {len(stored)} images has an object.")
    unused = sorted(set(range(num_classes)) - used.keys())
    if unused:
        log.warning("Channel '%s': no object of class %s", name, ", ".join(map(str, unused[:_SHOWN])))


def _without_empty(name: str, stored: StoredImages, objects: list[Objects]) -> tuple[StoredImages, list[Objects]]:
    kept = [index for index, each in enumerate(objects) if len(each)]
    if len(kept) < len(objects):
        log.info("Channel '%s': %d images without objects are left out", name, len(objects) - len(kept))
    return _Some(stored, kept), [objects[index] for index in kept]


@dataclass(frozen=True)
class _Some:
    """Some of a channel's images; see `StoredImages`."""

    stored: StoredImages
    kept: list[int]

    def __len__(self) -> int:
        return len(self.kept)

    def read(self, index: int) -> bytes:
        return self.stored.read(self.kept[index])

    def place(self, index: int) -> str:
        return self.stored.place(self.kept[index])

    def identity(self) -> bytes:
        return self.stored.identity() + np.array(self.kept).tobytes()
