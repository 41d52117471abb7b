"""Channels and their errors (image classification contract, sections 2.1 and 2.4)."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from formats.images import encode_png
from trainers.distributed import ALONE
from trainers.hyperparameter_schema import parse
from trainers.image_classification.data import Batch, make_batches, open_channel
from trainers.image_classification.hyperparameters import Hyperparameters
from trainers.image_classification.train import train
from trainers.job import ClientError, Job
from trainers.vision.batches import Batches, ImageChannel

MakeJob = Callable[..., Job]


def opened(job: Job, name: str = "train") -> ImageChannel:
    return open_channel(job, name, parse(Hyperparameters, job.hyperparameters))


def batches_of(job: Job, **changed: object) -> Batches[Batch]:
    wanted = parse(Hyperparameters, job.hyperparameters | changed)  # type: ignore[operator]
    return make_batches(open_channel(job, "train", wanted), open_channel(job, "validation", wanted), wanted, ALONE)


def list_of(job: Job, name: str = "train") -> Path:
    return job.channels[name] / f"{name}.lst"


def test_labels_and_class_names_come_from_list_and_directories(job: MakeJob) -> None:
    images = opened(job())

    assert np.asarray(images.labels).tolist() == [0, 1] * 12
    assert images.class_names == ["dark", "light"]


def test_class_names_may_be_given_in_a_file(job: MakeJob) -> None:
    asked = job()
    (asked.channels["train"] / "labels.json").write_text('["night", "day"]')

    assert opened(asked).class_names == ["night", "day"]


def test_a_list_may_have_a_channel_of_its_own(job: MakeJob, tmp_path: Path) -> None:
    asked = job()
    (tmp_path / "lists").mkdir()
    list_of(asked).rename(tmp_path / "lists" / "any-name.lst")

    assert len(opened(replace(asked, channels={**asked.channels, "train_lst": tmp_path / "lists"}))) == 24


def test_multi_label_rows_hold_one_column_per_class(job: MakeJob) -> None:
    asked = job(multi_label=1, num_classes=3, num_training_samples=2)
    list_of(asked).write_text("0\t1\t0\t1\tdark/0.png\n1\t0\t0\t0\tlight/1.png\n")

    assert np.asarray(opened(asked).labels).tolist() == [[1, 0, 1], [0, 0, 0]]


def _malform(job: Job) -> None:
    list_of(job).write_text("0\tdark/0.png\n")


def _two_labels(job: Job) -> None:
    list_of(job).write_text("0\t1\t0\tdark/0.png\n")


def _label_out_of_range(job: Job) -> None:
    list_of(job).write_text("0\t0\tdark/0.png\n1\t2\tlight/1.png\n")


def _fractional_label(job: Job) -> None:
    list_of(job).write_text("0\t0.5\tdark/0.png\n")


def _lose_files(job: Job) -> None:
    shutil.rmtree(job.channels["train"] / "dark")


def _lose_list(job: Job) -> None:
    list_of(job).unlink()


def _two_lists(job: Job) -> None:
    shutil.copy(list_of(job), job.channels["train"] / "second.lst")


def _empty(job: Job) -> None:
    shutil.rmtree(job.channels["train"])
    job.channels["train"].mkdir()


def _no_rows(job: Job) -> None:
    list_of(job).write_text("\n")


def _damage_images(job: Job) -> None:
    (job.channels["train"] / "dark" / "0.png").write_bytes(b"not an image")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_malform, r"Invalid lst file in the train channel\. .*line 1: 2 tab separated columns.*dark/0\.png"),
        (_two_labels, r"Invalid lst file in the train channel\. .*row 1 .*has 2 labels"),
        (_no_rows, r"Invalid lst file in the train channel\. .*no rows"),
        (_label_out_of_range, r"row 2 \(light/1\.png\): label 2 is not a class index from 0 to num_classes - 1 \(1\)"),
        (_fractional_label, r"label 0\.5 is not a class index"),
        (_lose_files, r"12 files of the list are not in .*first: (dark/\d+\.png, ){9}dark/\d+\.png\."),
        (_lose_list, "no .rec file, no manifest, and no .lst file in .*and no channel 'train_lst'"),
        (_two_lists, r"holds 2 .lst files \(second.lst, train.lst\)"),
        (_empty, "holds no files"),
        (_damage_images, r"1 of 24 images cannot be decoded, more than 1%.*0\.png: image is not a JPEG or PNG"),
    ],
)
def test_a_bad_channel_is_told_before_training(job: MakeJob, spoil: Callable[[Job], None], told: str) -> None:
    asked = job()
    spoil(asked)

    with pytest.raises(ClientError, match=told):
        train(asked)
    assert not asked.output.exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"mini_batch_size": 25}, "number of input images must be bigger or equal to the mini_batch_size"),
        ({"resize": None}, "resize is required with image files"),
        (
            {"multi_label": 1, "num_classes": 3},
            r"Mismatch between number of labels in the multi-label data \(1\) and the num_classes parameter \(3\)",
        ),
        (
            {"image_shape": "3,224,224", "resize": 224, "num_layers": 18, "use_pretrained_model": 1},
            "no ImageNet weights",
        ),
    ],
)
def test_hyperparameters_that_do_not_fit_the_data_are_told(job: MakeJob, changed: dict[str, object], told: str) -> None:
    with pytest.raises(ClientError, match=told):
        train(job(**changed))


def test_the_validation_channel_is_required(job: MakeJob) -> None:
    asked = job()

    with pytest.raises(ClientError, match="Missing required channel 'validation'; channels given: train"):
        train(replace(asked, channels={"train": asked.channels["train"]}))


def test_training_and_validation_images_must_not_be_the_same(job: MakeJob) -> None:
    asked = job()

    with pytest.raises(ClientError, match="are the same directory"):
        train(replace(asked, channels=dict.fromkeys(("train", "validation"), asked.channels["train"])))


def test_one_undecodable_image_in_a_hundred_is_skipped(job: MakeJob, caplog: pytest.LogCaptureFixture) -> None:
    asked = job(num_training_samples=120)
    rows = [f"{i}\t{i % 2}\t{('dark', 'light')[i % 2]}/{i % 24}.png" for i in range(119)]
    list_of(asked).write_text("\n".join([*rows, "119\t0\tbroken.png"]))
    (asked.channels["train"] / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with caplog.at_level(logging.WARNING, "penstock.train"):
        batches = list(batches_of(asked).train(epoch=0))

    assert {len(batch.label) for batch in batches} == {8}
    assert "broken.png is skipped" in caplog.text


def test_an_image_is_resized_by_its_shortest_side(job: MakeJob) -> None:
    asked = job()
    (asked.channels["train"] / "dark" / "0.png").write_bytes(encode_png(np.zeros((40, 90, 3), np.uint8)))

    assert opened(asked).pixels(0).shape == (16, 36, 3)


def test_an_epoch_shows_every_image_in_full_batches(job: MakeJob) -> None:
    batches = list(batches_of(job(mini_batch_size=7)).train(epoch=0))

    assert [tuple(batch.image.shape) for batch in batches] == [(7, 3, 12, 12)] * 4


def test_validation_shows_every_image_once(job: MakeJob) -> None:
    batches = list(batches_of(job(mini_batch_size=4)).validation())

    assert [len(batch.label) for batch in batches] == [4, 4, 1]


@pytest.mark.parametrize("kind", [None, "crop", "crop_color", "crop_color_transform"])
def test_order_and_augmentation_follow_from_seed_and_epoch(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, kind: str | None
) -> None:
    def pixels(seed: int, epoch: int, cache_bytes: int = 0) -> bytes:
        monkeypatch.setattr("trainers.vision.batches.CACHE_BYTES", cache_bytes)
        batches = batches_of(job(augmentation_type=kind), seed=seed)
        return b"".join(batch.image.numpy().tobytes() for batch in batches.train(epoch))

    assert pixels(1, 3) == pixels(1, 3, cache_bytes=10**9)
    assert len({pixels(1, 3), pixels(1, 4), pixels(2, 3)}) == 3


def test_the_cache_stays_within_its_budget(job: MakeJob) -> None:
    images = opened(job())
    images.fill_cache(5 * 16 * 16 * 3)

    assert len(images.cached) == 5
