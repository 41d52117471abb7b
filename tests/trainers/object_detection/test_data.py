"""Channels with boxes: the same objects from every form, and clear words about what is wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from formats.detection import corners, decode_annotation
from formats.image_record import image_record
from formats.image_record import write as write_records
from tests.trainers.object_detection.conftest import as_records
from trainers.distributed import ALONE
from trainers.hyperparameter_schema import parse
from trainers.job import ChannelSettings, ClientError, Job
from trainers.object_detection.data import Batch, make_batches, open_channel
from trainers.object_detection.hyperparameters import Hyperparameters
from trainers.vision.batches import Batches, ImageChannel

MakeJob = Callable[..., Job]


def opened(job: Job, name: str = "train") -> ImageChannel:
    return open_channel(job, name, parse(Hyperparameters, job.hyperparameters))


def batches_of(job: Job) -> Batches[Batch]:
    return make_batches(
        opened(job), opened(job, "validation"), parse(Hyperparameters, job.hyperparameters), ALONE
    )  # fmt: skip


def rewrite(annotation: Path, **changed: object) -> None:
    annotation.write_text(json.dumps(json.loads(annotation.read_text()) | changed))


def test_objects_are_shares_of_the_image(job: MakeJob, channels: dict[str, Path]) -> None:
    channel = opened(job())

    assert len(channel) == 8
    text = (channels["train_annotation"] / "a/0.json").read_bytes()
    assert np.array_equal(channel.labels[0], corners(decode_annotation(text)))
    assert channel.labels[0][:, 0].tolist() == [0, 1]
    assert channel.stored.place(0).endswith("a/0.png")


def test_records_hold_the_same(job: MakeJob, channels: dict[str, Path]) -> None:
    records = {name: path for part in ("train", "validation") for name, path in as_records(channels, part).items()}
    images, stored = opened(job()), opened(job(given=records))

    assert len(images) == len(stored) == 8
    for one, other in zip(images.labels, stored.labels, strict=True):
        assert np.allclose(one, other, atol=1e-6)
    assert np.array_equal(images.pixels(3), stored.pixels(3))


def test_a_manifest_holds_the_same(job: MakeJob, channels: dict[str, Path], tmp_path: Path) -> None:
    rows = []
    for image in sorted(channels["train"].rglob("*.png")):
        path = image.relative_to(channels["train"])
        annotation = json.loads((channels["train_annotation"] / path).with_suffix(".json").read_text())
        box = {key: annotation[key] for key in ("image_size", "annotations")}
        rows.append(json.dumps({"source-ref": f"s3://b/{path}", "bounding-box": box, "bounding-box-metadata": {}}))
    directory = tmp_path / "manifest"
    directory.mkdir()
    (directory / "data.manifest").write_text("\n".join(rows) + "\n")
    settings = {
        "train": ChannelSettings(attribute_names=("source-ref", "bounding-box"),
                                 local_roots={"s3://b/": str(channels["train"])})
    }  # fmt: skip

    channel = opened(job(given={"train": directory}, settings=settings))

    for one, other in zip(opened(job()).labels, channel.labels, strict=True):
        assert np.allclose(one, other, atol=1e-6)
    assert channel.pixels(0).shape == (90, 120, 3)


def test_training_batches_are_full_and_follow_from_seed_and_epoch(job: MakeJob) -> None:
    one, same, other = (batches_of(job(seed=seed)) for seed in (1, 1, 2))
    first = list(one.train(0))

    assert [len(batch.image) for batch in first] == [4, 4]
    assert all(batch.image.shape == (4, 3, 300, 300) for batch in first)
    assert all((batch.image == again.image).all() for batch, again in zip(first, same.train(0), strict=True))
    assert not all((batch.image == again.image).all() for batch, again in zip(first, other.train(0), strict=True))
    assert not all((batch.image == again.image).all() for batch, again in zip(first, one.train(1), strict=True))


def test_validation_is_whole_and_in_order(job: MakeJob) -> None:
    batches = batches_of(job(mini_batch_size=2))
    found = list(batches.validation())

    assert [len(batch.image) for batch in found] == [2, 1]
    objects = np.concatenate([batch.objects.numpy() for batch in found])
    assert np.array_equal(objects, np.stack(list(opened(job(), "validation").labels)))


def test_images_without_objects_are_background_or_left_out(job: MakeJob, channels: dict[str, Path]) -> None:
    rewrite(channels["train_annotation"] / "a/0.json", annotations=[])

    assert [len(objects) for objects in opened(job()).labels] == [0] + [2] * 7
    assert [len(objects) for objects in opened(job(drop_empty_images=1)).labels] == [2] * 7


def test_a_missing_annotation_is_told_and_its_image_skipped(
    job: MakeJob, channels: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    (channels["train_annotation"] / "a/2.json").unlink()
    with caplog.at_level(logging.WARNING):
        channel = opened(job())

    assert len(channel) == 7
    assert "1 images without a JSON file in the annotation channel are skipped, first: a/2.png" in caplog.text


def test_without_any_annotation_nothing_is_trained(job: MakeJob, channels: dict[str, Path], tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "readme").write_text("x")

    with pytest.raises(ClientError, match=r"none of its 8 images has a JSON file .* expected a/0.json"):
        opened(job(given=channels | {"train_annotation": empty}))
    with pytest.raises(ClientError, match="Missing required channel 'train_annotation'"):
        opened(job(given={"train": channels["train"]}))


def test_the_images_own_size_counts(job: MakeJob, channels: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    before = opened(job()).labels[0]
    rewrite(channels["train_annotation"] / "a/0.json", image_size=[{"width": 9, "height": 9, "depth": 3}])
    with caplog.at_level(logging.WARNING):
        after = opened(job()).labels[0]

    assert np.array_equal(before, after)
    assert "1 images have another size than their annotation says" in caplog.text


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"label_width": 11}, "Invalid parameter value 'label_width'. Please ensure that it is at least 12: .*a/0.png"),
        ({"num_classes": 1}, r"a/0.json: class_id 1 is not a class from 0 to num_classes - 1 \(0\).*shifted by one\?"),
    ],
)
def test_hyperparameters_that_do_not_fit_the_data(job: MakeJob, changed: dict[str, object], told: str) -> None:
    with pytest.raises(ClientError, match=told):
        opened(job(**changed))


@pytest.mark.parametrize(
    ("annotations", "told"),
    [
        ("x", "'annotations' is 'x', expected a list"),
        ([{"class_id": 0, "left": 1, "top": 1, "width": 5}], "'height' is 'None', expected a number"),
        ([{"class_id": -1, "left": 1, "top": 1, "width": 5, "height": 5}], "'class_id' is '-1'"),
    ],
)
def test_a_broken_annotation_is_named(job: MakeJob, channels: dict[str, Path], annotations: object, told: str) -> None:
    rewrite(channels["train_annotation"] / "b/3.json", annotations=annotations)

    with pytest.raises(ClientError, match=f"b/3.json.*{told}"):
        opened(job())


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([1.0], "1 label: no boxes; was the file packed without --pack-label"),
        ([2.0, 5.0, 0.0, 10.0, 10.0, 60.0, 60.0], "Not enough annotation packed .* expected fractions"),
        ([2.0, 4.0, 0.0, 0.1, 0.1, 0.6], "Not enough annotation packed"),
    ],
)
def test_records_that_hold_no_boxes(job: MakeJob, tmp_path: Path, labels: list[float], told: str) -> None:
    directory = tmp_path / "rec"
    directory.mkdir()
    with (directory / "data.rec").open("wb") as stream:
        write_records(stream, [image_record(0, labels, b"\xff\xd8\xff")])

    with pytest.raises(ClientError, match=told):
        opened(job(given={"train": directory}))


def test_boxes_beyond_the_image_are_clipped_and_empty_ones_dropped(job: MakeJob, channels: dict[str, Path]) -> None:
    boxes = [[0, -20, -20, 80, 80], [1, 5, 5, 0, 30], [1, 500, 5, 20, 20]]
    names = ("class_id", "left", "top", "width", "height")
    rewrite(channels["train_annotation"] / "a/0.json", annotations=[dict(zip(names, b, strict=True)) for b in boxes])

    assert opened(job()).labels[0].tolist() == [[0, 0, 0, 0.5, pytest.approx(60 / 90)]]
