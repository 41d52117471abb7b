"""Images and their labels into one `.rec` file with its `.idx` and `.lst`: what im2rec does, with every fault named.

Labels come from a list, from one JSON annotation per image, or from the directories (one class each, sorted).
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from formats import image_record, images
from formats.detection import corners, decode_annotation, pack_labels
from formats.errors import InvalidBody
from formats.lst import ListEntry, read_lst, write_lst
from formats.recordio import RecordWriter, write_index

__all__ = ["PackReport", "pack"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
_PROGRESS = 1000


@dataclass(frozen=True, slots=True)
class PackReport:
    records: int
    skipped: int
    """Images that could not be read, each told of by name."""
    bytes: int
    """Of the `.rec` file."""
    classes: tuple[str, ...]
    """Names in the order of their numbers; empty unless the classes came from directories."""


def pack(
    *,
    output: Path,
    images_root: Path,
    lst: Path | None = None,
    annotations: Path | None = None,
    pack_label: bool = False,
    resize: int | None = None,
    quality: int = 95,
    encoding: str = "",
    verify: bool = True,
    skip_bad: bool = False,
    shuffle_seed: int | None = None,
    write: Callable[[str], object] = print,
) -> PackReport:
    """Write `output` (.rec), and beside it `.idx` and `.lst`; nothing appears under these names before all is done.

    Args:
        output: path of the `.rec` file.
        images_root: directory that the images' paths are relative to.
        lst: image list; all its images must exist.
        annotations: directory of one JSON per image (same relative path, `.json`); labels become packed boxes.
        pack_label: keep all label columns of the list, as multi-label and detection need; else only the first.
        resize: length of the shorter side in pixels; images of another size are encoded anew.
        quality: 1 to 100, of images that are encoded as JPEG.
        encoding: `.jpg` or `.png` to encode every image anew; empty to keep files as they are where possible.
        verify: decode every image, so that a damaged one is found now and not in training.
        skip_bad: leave out images and annotations that cannot be read, and tell of each.
        shuffle_seed: shuffle the records; None keeps the order of the list, or of the sorted paths.
        write: told the progress and each fault, one line at a time.

    Raises:
        InvalidBody: a bad list, a missing image (the first ten are named), or a bad image without `skip_bad`.
        ValueError: arguments that contradict each other.
    """
    _check_arguments(lst, annotations, encoding)
    entries, classes = _entries(images_root, lst, annotations)
    _all_there(images_root, entries)
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(entries)
    for number, name in enumerate(classes):
        write(f"class {number}: {name}")

    recode = _Recode(resize, quality, encoding, verify)
    readable = _readable(entries, images_root, annotations, recode, skipped=write if skip_bad else None)
    all_labels = pack_label or annotations is not None
    partial = output.with_name(output.name + ".partial")
    try:
        done, index, size = _write_records(
            partial, readable, all_labels, lambda n: write(f"packed {n} of {len(entries)}")
        )
    except InvalidBody:
        partial.unlink()
        raise
    _publish(output, partial, index, done)
    report = PackReport(len(done), len(entries) - len(done), size, classes)
    write(f"{output}: {report.records} records, {report.bytes} bytes, {report.skipped} skipped")
    return report


def _write_records(
    path: Path, images_: Iterator[tuple[ListEntry, bytes]], all_labels: bool, progress: Callable[[int], object]
) -> tuple[list[ListEntry], list[tuple[int, int]], int]:
    """The entries written, the offset of each by its number, and the size of the file in bytes."""
    done: list[ListEntry] = []
    index: list[tuple[int, int]] = []
    with path.open("wb") as stream:
        writer = RecordWriter(stream)
        for entry, image in images_:
            labels = entry.labels if all_labels else entry.labels[0]
            record = image_record.image_record(entry.index, labels, image)
            index.append((entry.index, writer.write(image_record.encode(record))))
            done.append(entry)
            if len(done) % _PROGRESS == 0:
                progress(len(done))
    return done, index, writer.offset


def _check_arguments(lst: Path | None, annotations: Path | None, encoding: str) -> None:
    if lst is not None and annotations is not None:
        raise ValueError("labels come from a list or from annotations, not from both")
    if encoding not in ("", ".jpg", ".png"):
        raise ValueError(f"encoding is '{encoding}', expected '.jpg', '.png' or nothing")


def _readable(
    entries: list[ListEntry],
    images_root: Path,
    annotations: Path | None,
    recode: _Recode,
    *,
    skipped: Callable[[str], object] | None,
) -> Iterator[tuple[ListEntry, bytes]]:
    """Each entry with its labels and its encoded image; told of those that cannot be read, or ended by the first."""
    for entry in entries:
        try:
            labels = _boxes(annotations, entry, images_root) if annotations is not None else entry.labels
            image = recode.apply((images_root / entry.path).read_bytes())
        except (InvalidBody, OSError) as error:
            if skipped is None:
                raise InvalidBody(f"{images_root / entry.path}: {error}") from error
            skipped(f"skipped {entry.path}: {error}")
            continue
        yield ListEntry(entry.index, labels, entry.path), image


@dataclass(frozen=True, slots=True)
class _Recode:
    resize: int | None
    quality: int
    encoding: str
    verify: bool

    def apply(self, data: bytes) -> bytes:
        height, width = images.size_of(data)
        fits = self.resize is None or min(height, width) == self.resize
        if fits and not self.encoding:
            if self.verify:
                images.decode(data)
            return data
        pixels = images.decode(data)
        if self.resize is not None and not fits:
            scale = self.resize / min(height, width)
            pixels = images.resize(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
        as_png = self.encoding == ".png" or (not self.encoding and data.startswith(b"\x89PNG"))
        return images.encode_png(pixels) if as_png else images.encode_jpeg(pixels, self.quality)


def _entries(root: Path, lst: Path | None, annotations: Path | None) -> tuple[list[ListEntry], tuple[str, ...]]:
    if lst is not None:
        entries = list(read_lst(lst))
        _check_indices(entries, lst)
        if not entries:
            raise InvalidBody(f"{lst}: no rows")
        return entries, ()
    paths = list(_image_paths(root))
    if not paths:
        raise InvalidBody(f"{root}: no {', '.join(IMAGE_SUFFIXES)} file is there")
    if annotations is not None:
        return [ListEntry(number, (), path) for number, path in enumerate(paths)], ()
    flat = [path for path in paths if "/" not in path]
    if flat:
        raise InvalidBody(f"{root}: '{flat[0]}' lies in no class directory; give a list or annotations")
    classes = tuple(sorted({path.rpartition("/")[0] for path in paths}))
    number_of = {name: float(number) for number, name in enumerate(classes)}
    return [ListEntry(n, (number_of[path.rpartition("/")[0]],), path) for n, path in enumerate(paths)], classes


def _image_paths(root: Path) -> Iterator[str]:
    found = (Path(directory) / name for directory, _, names in os.walk(root) for name in names)
    kept = (file.relative_to(root).as_posix() for file in found if file.suffix.lower() in IMAGE_SUFFIXES)
    return iter(sorted(path for path in kept if not any(part.startswith(".") for part in path.split("/"))))


def _check_indices(entries: Sequence[ListEntry], lst: Path) -> None:
    seen: dict[int, str] = {}
    for entry in entries:
        if entry.index in seen:
            raise InvalidBody(f"{lst}: index {entry.index} stands for both {seen[entry.index]} and {entry.path}")
        seen[entry.index] = entry.path


def _all_there(root: Path, entries: Sequence[ListEntry]) -> None:
    missing = [entry.path for entry in entries if not (root / entry.path).is_file()]
    if missing:
        more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
        raise InvalidBody(f"{root}: {len(missing)} listed images are missing: {', '.join(missing[:10])}{more}")


def _boxes(annotations: Path, entry: ListEntry, root: Path) -> tuple[float, ...]:
    file = (annotations / entry.path).with_suffix(".json")
    annotation = decode_annotation(file.read_bytes(), str(file))
    # the image is trusted more than what its annotation says about it
    height, width = images.size_of((root / entry.path).read_bytes())
    return tuple(np.asarray(pack_labels(corners(annotation, height, width)), np.float64).tolist())


def _publish(output: Path, partial: Path, index: list[tuple[int, int]], done: list[ListEntry]) -> None:
    if not done:
        partial.unlink()
        raise InvalidBody(f"{output}: no image could be packed")
    write_index(output.with_suffix(".idx"), index)
    write_lst(output.with_suffix(".lst"), done)
    partial.replace(output)
