"""The encoded images of a channel and their raw labels, whatever the form: image files, RecordIO, manifest, pipe.

Stored forms are read in any order, by any process: what is pickled to a worker is paths and offsets, never an image.
A pipe is read once per epoch, from its beginning to its end.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from formats import image_record, manifests
from formats.content_types import media_type_of
from formats.errors import InvalidBody
from formats.image_record import looks_like_image
from formats.lst import read_lst
from formats.recordio import RawRecord, decode_records
from formats.source import attribute_fetcher, epoch_pipe, list_files, open_file, read_raw
from trainers.job import ChannelSettings, ClientError, Job
from trainers.progress import log

__all__ = [
    "IMAGE_TYPES",
    "Labelled",
    "ListedFiles",
    "PipedImages",
    "RecordFiles",
    "ReferredObjects",
    "StoredImages",
    "form_of",
    "open_pipe",
    "open_stored",
]

Form = Literal["images", "records", "manifest"]
Label = TypeVar("Label")

RECORDS = "application/x-recordio"
IMAGE_TYPES = ("application/x-image", "image/jpeg", "image/png")
_MANIFEST_SUFFIXES = (".manifest", ".jsonl")
_LISTED = 10  # missing files named in one message
_OPEN_FILES = 64


class Labelled(NamedTuple):
    """The label of one image as it is stored."""

    label: NDArray[np.float32] | str | bytes
    """Numbers of a list's row or a record; the text of a manifest's attribute, or the image that it refers to."""
    place: str
    """For messages, such as `a.lst, row 3 (roses/1.jpg)`."""
    listed: bool = False
    """Whether it stood in a `.lst`: its faults are told in the original's words."""
    metadata: str = ""
    """Of a label that a manifest refers to: JSON of the attribute's `-metadata`, if there is any."""


class StoredImages(Protocol):
    """Encoded images by number, from 0; can be pickled."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The encoded image. Raises OSError or InvalidBody when it cannot be had."""
        ...

    def place(self, index: int) -> str:
        """Where it lies, for messages."""
        ...

    def identity(self) -> bytes:
        """The same for the same images in the same order, as far as can be told without reading them."""
        ...


@dataclass(frozen=True)
class ListedFiles:
    """Image files that a `.lst` names."""

    directory: Path
    paths: Sequence[str]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        return (self.directory / self.paths[index]).read_bytes()

    def place(self, index: int) -> str:
        return str(self.directory / self.paths[index])

    def identity(self) -> bytes:
        return "\n".join(self.paths).encode()


@dataclass(frozen=True)
class RecordFiles:
    """Images in RecordIO files, by the byte ranges of their records."""

    files: Sequence[str]
    file_of: NDArray[np.int32]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    bare: bool
    """Whether a record is the image itself, as manifests' streams have them."""

    def __len__(self) -> int:
        return len(self.starts)

    def read(self, index: int) -> bytes:
        descriptor = _descriptor(self.files[self.file_of[index]])
        start, stop = int(self.starts[index]), int(self.stops[index])
        (payload,) = decode_records(os.pread(descriptor, stop - start, start), "record")
        return payload if self.bare else image_record.decode(payload).image

    def place(self, index: int) -> str:
        return f"{self.files[self.file_of[index]]}, record at byte {self.starts[index]}"

    def identity(self) -> bytes:
        return self.starts.tobytes()


@dataclass(frozen=True)
class ReferredObjects:
    """Images that a manifest's `-ref` attributes point to."""

    name: str
    uris: Sequence[str]
    roots: dict[str, str]

    def __len__(self) -> int:
        return len(self.uris)

    @cached_property
    def _fetch(self) -> Callable[[str], bytes]:
        return attribute_fetcher(self.roots)

    def read(self, index: int) -> bytes:
        return self._fetch(self.uris[index])

    def place(self, index: int) -> str:
        return f"{self.name}, {self.uris[index]}"

    def identity(self) -> bytes:
        return "\n".join(self.uris).encode()

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_fetch"}  # a closure stays here


@dataclass
class PipedImages:
    """A channel in Pipe mode: each call of `epoch` opens the next pipe."""

    directory: Path
    name: str
    attribute_names: tuple[str, ...]
    num_opened: int = 0

    def epoch(self) -> Iterator[tuple[bytes, Labelled]]:
        """The images and labels of the next pipe; leaving early is no fault.

        Raises:
            ClientError: the pipe does not come, or what comes is damaged.
        """
        # pipes are counted by the job that reads them: a resumed job begins at 0 again
        with told(f"Channel '{self.name}'"):
            pipe = epoch_pipe(self.directory, self.name, self.num_opened)
            self.num_opened += 1
            records = read_raw([str(pipe)])
            first = next(records, None)
            if first is None:
                return
            if self.attribute_names or looks_like_image(first.payload):
                yield from _samples(pipe, (raw.payload for raw in chain([first], records)))
                return
            for raw in chain([first], records):
                place = f"{pipe}, record {raw.number} at byte {raw.offset}"
                with told(place):
                    record = image_record.decode(raw.payload)
                yield record.image, Labelled(record.labels, place)


def form_of(job: Job, name: str) -> Form:
    """What a channel holds: by its content type and attribute names, else by its files' names.

    Raises:
        ClientError: a content type that this is not for, or no files that are known.
    """
    settings = job.settings_of(name)
    if settings.attribute_names and not settings.pipe:
        return "manifest"
    media_type, _ = media_type_of(settings.content_type)
    if media_type and media_type not in (RECORDS, *IMAGE_TYPES):
        raise ClientError(
            f"Channel '{name}': content type {settings.content_type} is not supported; "
            f"expected one of {RECORDS}, {', '.join(IMAGE_TYPES)}."
        )
    if settings.pipe:
        if media_type in IMAGE_TYPES:
            raise ClientError(f"Channel '{name}': Pipe mode carries {RECORDS}, not {media_type}; use File mode.")
        return "records"
    directory = job.channel(name)
    if media_type in IMAGE_TYPES:
        return "images"
    suffixes = {Path(file).suffix.lower() for file in _files(name, directory)}
    if suffixes & set(_MANIFEST_SUFFIXES):
        return "manifest"
    return "records" if media_type == RECORDS or ".rec" in suffixes else "images"


def open_stored(job: Job, name: str, label_of: Callable[[Labelled], Label]) -> tuple[StoredImages, list[Label]]:
    """The images and labels of a channel in File mode; everything but the pixels is checked.

    Args:
        job: whose channel it is.
        name: of the channel.
        label_of: what to keep of each label; raises ClientError for a bad one.

    Raises:
        ClientError: missing, empty, malformed; names file and row, record or line.
    """
    form = form_of(job, name)
    if form == "records":
        return _open_records(name, job.channel(name), label_of)
    if form == "manifest":
        return _open_manifest(name, job.channel(name), job.settings_of(name), label_of)
    return _open_list(job, name, label_of)


def open_pipe(job: Job, name: str) -> PipedImages:
    """A channel in Pipe mode; nothing is opened yet."""
    form_of(job, name)
    path = job.path_of(name)
    return PipedImages(path.parent, path.name, job.settings_of(name).attribute_names)


@contextmanager
def told(where: str) -> Iterator[None]:
    """Damaged data is the user's to mend: say where it lies."""
    try:
        yield
    except InvalidBody as error:
        raise ClientError(f"{where}: {error}") from error


# ---- image files and their list ----------------------------------------------------------------------------------


def _open_list(job: Job, name: str, label_of: Callable[[Labelled], Label]) -> tuple[StoredImages, list[Label]]:
    directory = job.channel(name)
    list_file = _find_list(job, name, directory)
    try:
        entries = list(read_lst(list_file))
    except InvalidBody as error:
        raise ClientError(f"Invalid lst file in the {name} channel. {error}") from error
    if not entries:
        raise ClientError(f"Invalid lst file in the {name} channel. {list_file} has no rows.")
    missing = [entry.path for entry in entries if not (directory / entry.path).is_file()]
    if missing:
        shown = ", ".join(missing[:_LISTED])
        raise ClientError(f"Channel '{name}': {len(missing)} files of the list are not in {directory}, first: {shown}.")
    labels = [
        label_of(Labelled(np.array(entry.labels, np.float32), f"{list_file}, row {row} ({entry.path})", listed=True))
        for row, entry in enumerate(entries, start=1)
    ]
    return ListedFiles(directory, [entry.path for entry in entries]), labels


def _find_list(job: Job, name: str, directory: Path) -> Path:
    searched = job.channel(f"{name}_lst") if f"{name}_lst" in job.channels else directory
    log.info("Searching for .lst files in %s.", searched)
    lists = sorted(searched.rglob("*.lst"))
    if len(lists) == 1:
        return lists[0]
    if lists:
        names = ", ".join(path.name for path in lists)
        raise ClientError(
            f"Channel '{name}': {searched} holds {len(lists)} .lst files ({names}); expected exactly one."
        )
    raise ClientError(
        f"Channel '{name}': no .rec file, no manifest, and no .lst file in {searched}, "
        f"and no channel '{name}_lst' with one."
    )


# ---- RecordIO ----------------------------------------------------------------------------------------------------


def _open_records(
    name: str, directory: Path, label_of: Callable[[Labelled], Label]
) -> tuple[StoredImages, list[Label]]:
    """Read every record once, for its place and its label: damage is found now, and any order is possible later."""
    files = [file for file in _files(name, directory) if file.lower().endswith(".rec")] or _files(name, directory)
    file_of: list[int] = []
    starts: list[int] = []
    stops: list[int] = []
    labels: list[Label] = []
    bare: bool | None = None
    for number, file in enumerate(files):
        with told(f"Channel '{name}'"):
            records = read_raw([file])
            for raw, stop in _with_stops(records, Path(file).stat().st_size):
                bare = looks_like_image(raw.payload) if bare is None else bare
                if bare and len(labels) < len(starts):  # the record behind an image is its label
                    place = f"{file}, record {raw.number} at byte {raw.offset}"
                    labels.append(label_of(Labelled(_label(raw.payload, place), place)))
                    continue
                if not bare:
                    labels.append(label_of(_record_label(file, raw)))
                file_of.append(number)
                starts.append(raw.offset)
                stops.append(stop)
        if len(labels) < len(starts):
            raise ClientError(f"Channel '{name}': {file} is truncated: its last image has no label record.")
    stored = RecordFiles(
        files, np.array(file_of, np.int32), np.array(starts, np.int64), np.array(stops, np.int64), bool(bare)
    )
    return stored, labels


def _with_stops(records: Iterator[RawRecord], size: int) -> Iterator[tuple[RawRecord, int]]:
    """Each record with the byte where the next one begins."""
    before = next(records, None)
    for record in records:
        assert before is not None
        yield before, record.offset
        before = record
    if before is not None:
        yield before, size


def _record_label(file: str, raw: RawRecord) -> Labelled:
    place = f"{file}, record {raw.number} at byte {raw.offset}"
    with told(place):
        return Labelled(image_record.decode(raw.payload).labels.copy(), place)  # a view would keep the image


@lru_cache(_OPEN_FILES)
def _descriptor(file: str) -> int:
    return os.open(file, os.O_RDONLY)  # for the life of the process; positional reads need no lock


# ---- augmented manifest ------------------------------------------------------------------------------------------


def _open_manifest(
    name: str, directory: Path, settings: ChannelSettings, label_of: Callable[[Labelled], Label]
) -> tuple[StoredImages, list[Label]]:
    files = [file for file in _files(name, directory) if Path(file).suffix.lower() in _MANIFEST_SUFFIXES]
    if len(files) != 1:
        raise ClientError(f"Channel '{name}': {directory} holds {len(files)} manifests; expected exactly one.")
    attributes = settings.attribute_names or ("source-ref", "class")
    if len(attributes) != 2 or not attributes[0].endswith("-ref"):
        raise ClientError(
            f"Channel '{name}': AttributeNames are {', '.join(attributes)}; expected two: the image (a name that ends "
            "in -ref), then the label."
        )
    roots = {prefix: str(directory / root) for prefix, root in settings.local_roots.items()}
    fetch = attribute_fetcher(roots)
    uris, labels = [], []
    with told(f"Channel '{name}'"), open_file(files[0]) as stream:
        for row in manifests.read(stream, _with_metadata(files[0], attributes), files[0]):
            image, label, *metadata = row.values
            assert isinstance(image, manifests.Reference)
            place = f"{files[0]}, line {row.line}"
            uris.append(image.uri)
            if isinstance(label, manifests.Reference):
                with told(f"{place}, {label.uri}"):
                    labels.append(label_of(Labelled(fetch(label.uri), place, metadata=str(*metadata))))
            else:
                labels.append(label_of(Labelled(label, place)))
    if not uris:
        raise ClientError(f"Channel '{name}': {files[0]} has no rows.")
    return ReferredObjects(files[0], uris, roots), labels


def _with_metadata(file: str, attributes: tuple[str, ...]) -> tuple[str, ...]:
    """The attributes, and the metadata of a label that is an object of its own, where rows have them."""
    metadata = f"{attributes[1]}-metadata"
    if not attributes[1].endswith("-ref"):
        return attributes
    with open_file(file) as stream:
        return (*attributes, metadata) if f'"{metadata}"'.encode() in stream.readline() else attributes


def _samples(pipe: Path, payloads: Iterator[bytes]) -> Iterator[tuple[bytes, Labelled]]:
    for number, (image, label) in enumerate(manifests.grouped(payloads, 2, str(pipe))):
        place = f"{pipe}, sample {number}"
        yield image, Labelled(_label(label, place), place)


def _label(payload: bytes, place: str) -> str | bytes:
    """What follows an image in a stream: text, or another image, such as a mask."""
    if looks_like_image(payload):
        return payload
    try:
        return payload.decode()
    except UnicodeDecodeError as error:
        raise ClientError(f"{place}: the label is not UTF-8 text: {payload[:40]!r}.") from error


def _files(name: str, directory: Path) -> list[str]:
    with told(f"Channel '{name}'"):
        return list_files(directory)
