"""Every training format of the contract, sections 2 and 2.1 to 2.3, in File and Pipe mode, gives the same run."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from formats.lst import ListEntry, read_lst, write_lst
from formats.source import feed_pipe
from tests.trainers.conftest import as_attribute_records, as_manifest, as_records
from trainers.image_classification.train import train
from trainers.job import ChannelSettings, ClientError, Job

MakeJob = Callable[..., Job]
ROOTS = {"s3://bucket/": "objects"}
MANIFEST = ChannelSettings(attribute_names=("source-ref", "class"), local_roots=ROOTS)


def metrics_of(job: Job) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (job.output / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "time_s"} for row in rows]


def both(settings: ChannelSettings) -> dict[str, ChannelSettings]:
    return {"train": settings, "validation": settings}


STORED = {
    "records": (as_records, ChannelSettings()),
    "records, by type": (as_records, ChannelSettings(content_type="application/x-recordio")),
    "attribute records": (as_attribute_records, ChannelSettings()),
    "manifest": (as_manifest, MANIFEST),
}


@pytest.mark.parametrize("form", STORED)
def test_every_stored_form_gives_the_run_of_the_image_files(job: MakeJob, channels: dict[str, Path], form: str) -> None:
    change, settings = STORED[form]
    files = job("files", augmentation_type="crop")
    other = job("other", {n: change(path) for n, path in channels.items()}, both(settings), augmentation_type="crop")
    train(files)
    train(other)

    assert metrics_of(other) == metrics_of(files)


@pytest.mark.parametrize(
    ("change", "settings"),
    [(as_records, ChannelSettings(pipe=True)), (as_manifest, ChannelSettings(pipe=True, local_roots=ROOTS))],
    ids=["records", "manifest"],
)
def test_a_pipe_is_fed_from_files_and_trains(
    job: MakeJob, channels: dict[str, Path], change: Callable[[Path], Path], settings: ChannelSettings
) -> None:
    """Nothing else than the order differs from File mode, so the same is learnt."""
    asked = job("piped", {n: change(path) for n, path in channels.items()}, both(settings), epochs=4)
    train(asked)

    assert metrics_of(asked)[-1]["validation:accuracy"] == 1.0
    assert len(metrics_of(asked)) == 4


def test_the_platforms_own_pipes_are_read_one_per_epoch(
    job: MakeJob, channels: dict[str, Path], tmp_path: Path
) -> None:
    """Contract of record formats, section 5: `<channel>_<epoch>`, from 0; the one after the last epoch is never made
    by a platform that counts, so nothing here may wait for it but the last look at the best model."""
    data = {name: (as_records(path) / "data.rec").read_bytes() for name, path in channels.items()}
    (tmp_path / "input").mkdir()
    opened = []

    def feed(name: str, epoch: int) -> None:
        feed_pipe(tmp_path / "input" / f"{name}_{epoch}", [data[name]])
        opened.append((name, epoch))

    threads = [
        threading.Thread(target=feed, args=(n, e))
        for n, times in (("train", 2), ("validation", 3))
        for e in range(times)
    ]
    for thread in threads:
        thread.start()
    asked = job("piped", {name: tmp_path / "input" / name for name in data}, both(ChannelSettings(pipe=True)))
    train(asked)
    for thread in threads:
        thread.join()

    assert sorted(opened) == [("train", 0), ("train", 1), ("validation", 0), ("validation", 1), ("validation", 2)]


def _multi_label(channel: Path) -> None:
    """Class 0 is `light`, class 2 is always there, class 1 never."""
    file = next(channel.glob("*.lst"))
    entries = [ListEntry(e.index, (e.labels[0], 0.0, 1.0), e.path) for e in read_lst(file)]
    write_lst(file, entries)


def _multi_hot(entry: ListEntry) -> object:
    return [int(label) for label in entry.labels]


def _quoted(entry: ListEntry) -> object:
    return json.dumps(_multi_hot(entry))


def _class_ids(entry: ListEntry) -> object:
    return [number for number, label in enumerate(entry.labels) if label]


@pytest.mark.parametrize("pipe", [False, True])
@pytest.mark.parametrize(
    ("label", "content_type"),
    [
        (None, ""),
        (_multi_hot, "application/x-recordio"),
        (_quoted, "application/x-recordio; label-format=multi-hot"),
        (_class_ids, "application/x-recordio;label-format=class-id"),
    ],
    ids=["records", "multi-hot", "quoted", "class-id"],
)
def test_several_labels_come_in_every_form(
    job: MakeJob, channels: dict[str, Path], pipe: bool, label: Callable[[ListEntry], object] | None, content_type: str
) -> None:
    for path in channels.values():
        _multi_label(path)
    plain = job("plain", multi_label=1, num_classes=3, epochs=1)
    given = {n: as_manifest(path, label=label) if label else as_records(path) for n, path in channels.items()}
    attributes = ("source-ref", "class") if label else ()
    settings = ChannelSettings(content_type=content_type, attribute_names=attributes, local_roots=ROOTS, pipe=pipe)
    other = job("other", given, both(settings), multi_label=1, num_classes=3, epochs=1)
    train(plain)
    train(other)

    if pipe:
        assert metrics_of(other)[0].keys() == metrics_of(plain)[0].keys()
    else:
        assert metrics_of(other) == metrics_of(plain)


def test_processes_make_the_same_batches_as_threads(job: MakeJob, channels: dict[str, Path]) -> None:
    given = {name: as_records(path) for name, path in channels.items()}
    threads = job("threads", given, augmentation_type="crop_color_transform", input_workers=0)
    processes = job("processes", given, augmentation_type="crop_color_transform", input_workers=1)
    train(threads)
    train(processes)

    assert metrics_of(processes) == metrics_of(threads)


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def _not_records(file: Path) -> None:
    file.write_bytes(b"\x1f\x8b" + bytes(100))


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _bad_class(file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"\x00\x00\x80\x3f", b"\x00\x00\x40\x40", 1))  # 1.0 -> 3.0


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_cut, r"data\.rec: record 23 at byte \d+: truncated"),
        (_not_records, r"data\.rec: record 0 at byte 0: not RecordIO.*gzip"),
        (_empty, r"data\.rec: no records"),
        (_bad_class, r"data\.rec, record 1 at byte \d+: label 3 is not a class index from 0 to num_classes - 1 \(1\)"),
    ],
)
@pytest.mark.parametrize("pipe", [False, True])
def test_damaged_records_are_told_with_their_place(
    job: MakeJob, channels: dict[str, Path], spoil: Callable[[Path], None], told: str, pipe: bool
) -> None:
    given = {name: as_records(path) for name, path in channels.items()}
    spoil(given["train"] / "data.rec")
    if pipe:
        told = told.replace(r"data\.rec", "train_0")
    if pipe and spoil is _empty:
        told = "no records"

    with pytest.raises(ClientError, match=told):
        train(job("other", given, both(ChannelSettings(pipe=pipe))))


def _no_label(file: Path) -> None:
    file.write_text(file.read_text().replace('"class": "1"', '"klass": "1"', 1))


def _no_object(file: Path) -> None:
    file.write_text(file.read_text().replace("light/1.png", "light/gone.png", 1))


def _outside(file: Path) -> None:
    file.write_text(file.read_text().replace("s3://bucket/dark", "s3://bucket/../dark", 1))


def _no_number(file: Path) -> None:
    file.write_text(file.read_text().replace('"class": "1"', '"class": "rose"', 1))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_no_label, r"data\.manifest, line 2: attribute 'class' is missing; present: 'class-metadata', 'klass'"),
        (_no_object, r"1 of 24 images cannot be decoded.*light/gone\.png: .*cannot be read: No such file"),
        (_outside, r"1 of 24 images cannot be decoded.*leaves its prefix"),
        (_no_number, r"data\.manifest, line 2: "),
    ],
)
def test_a_bad_manifest_is_told_with_its_line(
    job: MakeJob, channels: dict[str, Path], spoil: Callable[[Path], None], told: str
) -> None:
    given = {name: as_manifest(path) for name, path in channels.items()}
    spoil(given["train"] / "data.manifest")

    with pytest.raises(ClientError, match=told):
        train(job("other", given, both(MANIFEST)))


def test_what_breaks_a_fed_pipe_is_told(job: MakeJob, channels: dict[str, Path]) -> None:
    given = {name: as_manifest(path) for name, path in channels.items()}
    _no_object(given["train"] / "data.manifest")

    with pytest.raises(ClientError, match=r"light/gone\.png: cannot be read: No such file"):
        train(job("other", given, both(ChannelSettings(pipe=True, local_roots=ROOTS))))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (ChannelSettings(content_type="text/csv"), "content type text/csv is not supported; expected one of applica"),
        (ChannelSettings(content_type="image/png", pipe=True), "Pipe mode carries RecordIO files"),
        (ChannelSettings(pipe=True), "Image files need File mode"),
        (ChannelSettings(content_type="application/x-recordio; label-format=x"), "label-format=x; expected multi-hot"),
        (ChannelSettings(attribute_names=("class",)), "holds 0 manifests; expected exactly one"),
    ],
)
def test_a_channel_read_in_a_way_it_cannot_be_is_refused(job: MakeJob, settings: ChannelSettings, told: str) -> None:
    with pytest.raises(ClientError, match=told):
        train(job(settings=both(settings)))


def test_a_pipe_with_fewer_images_than_a_batch_is_refused(job: MakeJob, channels: dict[str, Path]) -> None:
    given = {name: as_records(path) for name, path in channels.items()}

    with pytest.raises(ClientError, match="number of input images must be bigger or equal to the mini_batch_size"):
        train(job("o", given, both(ChannelSettings(pipe=True)), mini_batch_size=25, num_training_samples=25))


def test_records_need_no_resize_when_they_are_large_enough(job: MakeJob, channels: dict[str, Path]) -> None:
    given = {name: as_records(path) for name, path in channels.items()}
    train(job("as they are", given, resize=None, epochs=1))

    with pytest.raises(ClientError, match=r"record at byte 0 is 16 x 16 .*smaller than image_shape 20 x 20"):
        train(job("too small", given, resize=None, image_shape="3,20,20"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_memory_stays_flat_as_records_grow(tmp_path: Path) -> None:
    """What is kept of a record is its place and its label; the image is read when its turn comes."""
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415

    program = """
import sys
from pathlib import Path
import numpy as np
from formats.image_record import image_record, write
from trainers.job import Job
from trainers.vision.sources import open_stored
directory, count = Path(sys.argv[1]), int(sys.argv[2])
directory.mkdir()
image = b"\\xff\\xd8\\xff" + bytes(20_000)
with (directory / "a.rec").open("wb") as stream:
    write(stream, (image_record(i, float(i % 7), image) for i in range(count)))
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
before = peak()
job = Job(algorithm="", channels={"train": directory}, hyperparameters={}, output=directory, checkpoints=directory)
stored, labels = open_stored(job, "train", lambda raw: int(raw.label[0]))
assert len(stored) == count and labels[:8] == [0, 1, 2, 3, 4, 5, 6, 0] and stored.read(count - 1) == image
print(peak() - before)
"""
    grown = [
        int(subprocess.run([sys.executable, "-c", program, str(tmp_path / str(n)), str(n)], check=True,
                           capture_output=True, env=os.environ).stdout)
        for n in (500, 5000)
    ]  # fmt: skip

    assert grown[1] - grown[0] < 8_000  # kB; the files are 10 and 100 MB
