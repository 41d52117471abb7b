"""Channels of images with labels, in File and Pipe mode, and the batches that are made of them."""

# B batch, H height, W width, K classes

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from formats import manifests
from formats.content_types import media_type_of
from formats.errors import InvalidBody
from trainers.distributed import World
from trainers.image_classification.hyperparameters import Hyperparameters
from trainers.job import ClientError, Job
from trainers.vision.augment import NUM_DRAWS, augment, centre_crop
from trainers.vision.batches import Batches, ImageChannel, Request, samples
from trainers.vision.sources import Labelled, ListedFiles, StoredImages, form_of, open_pipe, open_stored

__all__ = ["Batch", "make_batches", "open_channel"]

Label = int | NDArray[np.float32]


class Batch(NamedTuple):
    image: Tensor
    """(B, 3, H, W) uint8; channels last in memory."""
    label: Tensor
    """(B,) int64, or (B, K) float32 of 0 and 1 with `multi_label`."""
    bad: tuple[tuple[str, str], ...] = ()
    """Place and fault of images that could not be decoded and are not in the batch."""


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
        return ImageChannel(name, open_pipe(job, name), none, parse, None, shape, wanted.resize)
    if form_of(job, name) == "images" and wanted.resize is None:
        raise ClientError("Hyperparameter resize is required with image files: the shortest side before the crop.")
    stored, found = open_stored(job, name, parse)
    labels = np.stack(found) if wanted.multi_label else np.array(found, np.int64)
    class_names = _class_names(job.channel(name), stored, labels, wanted)
    return ImageChannel(name, stored, labels, parse, class_names, shape, wanted.resize)


def make_batches(
    train: ImageChannel, validation: ImageChannel, wanted: Hyperparameters, world: World
) -> Batches[Batch]:
    """The batches of a run, for this process."""
    maker = _Maker(train, validation, wanted.augmentation_type, wanted.crop_padding)
    return Batches(train, validation, wanted, world, maker, NUM_DRAWS)


@dataclass(slots=True)
class _Maker:
    """Makes batches; a copy of it works in each process of the loader."""

    train: ImageChannel
    validation: ImageChannel
    augmentation_type: str | None
    padding: int

    def __call__(self, request: Request) -> Batch:
        channel = self.train if request.channel == "train" else self.validation
        bad: list[tuple[str, str]] = []
        height, width = channel.shape
        images, labels = [], []
        for at, pixels, label in samples(channel, request, bad):
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


@dataclass(frozen=True, slots=True)
class _ReadsLabels:
    """Raw labels to a class index, or to a vector of 0 and 1; can be pickled."""

    channel: str
    num_classes: int
    multi_label: bool
    label_format: str

    def __call__(self, raw: Labelled) -> Label:
        if isinstance(raw.label, bytes):
            raise ClientError(f"{raw.place}: its label is an image; expected the number of a class.")
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
        assert isinstance(raw.label, np.ndarray)
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
