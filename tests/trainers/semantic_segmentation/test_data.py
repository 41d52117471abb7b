"""Channels of images and masks in every form, and what is wrong with them in words."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from formats.images import encode_png
from formats.masks import IGNORE, encode_mask
from tests.trainers.semantic_segmentation.conftest import MANIFEST, as_manifest, as_stream, pairs_of
from trainers.distributed import ALONE
from trainers.hyperparameter_schema import parse
from trainers.job import ChannelSettings, ClientError, Job
from trainers.semantic_segmentation.data import Batch, make_batches, open_channel
from trainers.semantic_segmentation.hyperparameters import Hyperparameters

MakeJob = Callable[..., Job]


def batches(asked: Job) -> tuple[list[Batch], list[Batch]]:
    wanted = parse(Hyperparameters, asked.hyperparameters)
    made = make_batches(open_channel(asked, "train", wanted), open_channel(asked, "validation", wanted), wanted, ALONE)
    return list(made.train(0)), list(made.validation())


def classes(mask: Tensor) -> set[int]:
    return set(np.unique(mask.numpy()).tolist())


def test_masks_follow_their_images(job: MakeJob) -> None:
    train, validation = batches(job())

    assert [tuple(batch.image.shape) for batch in train] == [(4, 3, 48, 48)] * 2
    assert [tuple(batch.mask.shape) for batch in validation] == [(3, 48, 48)]
    for batch in [*train, *validation]:
        light = batch.image.float().mean(dim=1)
        assert classes(batch.mask[light > 170]) <= {1, 2, IGNORE}
        assert classes(batch.mask[light < 50]) <= {0, IGNORE}


def test_one_at_a_time_whole_images_are_validated(job: MakeJob) -> None:
    _, validation = batches(job(validation_mini_batch_size=1))

    assert [tuple(batch.mask.shape) for batch in validation] == [(1, 64, 80)] * 3


def test_every_form_gives_the_same_batches(job: MakeJob, channels: dict[str, Path]) -> None:
    expected = batches(job())
    streams = {name: as_stream(channels, name) for name in ("train", "validation")}
    manifests = {name: as_manifest(channels, name) for name in ("train", "validation")}
    settings = dict.fromkeys(manifests, MANIFEST)

    for found in (batches(job(given=streams)), batches(job(given=manifests, settings=settings))):
        for ours, theirs in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
            assert ours.image.equal(theirs.image)
            assert ours.mask.equal(theirs.mask)


def test_a_label_map_translates_pixel_values(job: MakeJob, channels: dict[str, Path], tmp_path: Path) -> None:
    expected = batches(job())
    for _, mask in pairs_of(channels, "train"):
        values = np.array(Image.open(mask))
        mask.write_bytes(encode_png(np.array([10, 20, 30, *[0] * 252, 255], np.uint8)[values]))
    for _, mask in pairs_of(channels, "validation"):
        values = np.array(Image.open(mask))
        mask.write_bytes(encode_mask(np.where(values == IGNORE, IGNORE, values * 60).astype(np.uint8)))
    directory = tmp_path / "label_map"
    directory.mkdir()
    (directory / "train_label_map.json").write_text(json.dumps({"map": {"0": 10, "1": 20, "2": 30}}))
    (directory / "validation_label_map.json").write_text(json.dumps({"scale": "60"}))
    found = batches(job(given=channels | {"label_map": directory}))

    for ours, theirs in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        assert ours.mask.equal(theirs.mask)


def test_masks_of_colours_are_read_by_the_manifests_own_map(job: MakeJob, channels: dict[str, Path]) -> None:
    """Ground Truth's masks are coloured; the colours stand in the metadata."""
    expected = batches(job())
    manifests = {name: as_manifest(channels, name) for name in ("train", "validation")}
    colours = {"0": "#ffffff", "1": "#2acf59", "2": "#102030", "255": "#000000"}
    table = np.zeros((256, 3), np.uint8)
    for key, code in colours.items():
        table[int(key)] = list(bytes.fromhex(code[1:]))
    for directory in manifests.values():
        for mask in directory.glob("*.png"):
            mask.write_bytes(encode_png(table[np.array(Image.open(mask))]))
        rows = [json.loads(line) for line in (directory / "data.manifest").read_text().splitlines()]
        metadata = {"internal-color-map": {key: {"hex-color": code} for key, code in colours.items()}}
        text = "\n".join(json.dumps(row | {"shapes-ref-metadata": metadata}) for row in rows)
        (directory / "data.manifest").write_text(text + "\n")
    found = batches(job(given=manifests, settings=dict.fromkeys(manifests, MANIFEST)))

    for ours, theirs in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        assert ours.mask.equal(theirs.mask)


def test_shares_of_classes_are_told(job: MakeJob, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        batches(job(num_classes=4))

    assert "Channel 'train': percent of pixels by class: 0: " in caplog.text
    assert "Channel 'train': no pixel of class 3" in caplog.text


def refused(asked: Job) -> str:
    with pytest.raises(ClientError) as caught:
        batches(asked)
    return str(caught.value)


def first_mask(channels: dict[str, Path]) -> Path:
    return pairs_of(channels, "train")[0][1]


def test_values_that_are_no_class_are_refused_before_training(job: MakeJob, channels: dict[str, Path]) -> None:
    told = refused(job(num_classes=2))

    assert "pixel values that are no class from 0 to num_classes - 1 (1) and not 255: 2 (" in told
    train, _ = batches(job(num_classes=2, unknown_labels="ignore"))
    assert classes(train[0].mask) == {0, 1, IGNORE}


def test_a_mask_of_another_size_is_refused(job: MakeJob, channels: dict[str, Path]) -> None:
    first_mask(channels).write_bytes(encode_mask(np.zeros((60, 79), np.uint8)))

    assert "is 60 x 80 (height x width) and its mask 60 x 79" in refused(job())


def test_a_mask_of_colours_is_refused_with_its_mode(job: MakeJob, channels: dict[str, Path]) -> None:
    first_mask(channels).write_bytes(encode_png(np.zeros((60, 80, 3), np.uint8)))

    assert "mask has mode RGB, expected P or L" in refused(job())


def test_a_damaged_mask_is_named(job: MakeJob, channels: dict[str, Path]) -> None:
    file = first_mask(channels)
    file.write_bytes(file.read_bytes()[:100])

    assert "0.jpg: mask" in refused(job())


def test_an_image_without_a_mask_is_skipped_and_named(
    job: MakeJob, channels: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    first_mask(channels).unlink()
    with caplog.at_level(logging.INFO):
        batches(job())

    assert "1 images without a mask are skipped, first: a/0.jpg" in caplog.text


def test_no_mask_at_all_is_an_error(job: MakeJob, channels: dict[str, Path]) -> None:
    for _, mask in pairs_of(channels, "train"):
        mask.unlink()

    assert "none of its 8 images has a mask of its name" in refused(job())


def test_masks_that_are_all_255_are_an_error(job: MakeJob, channels: dict[str, Path]) -> None:
    for _, mask in pairs_of(channels, "train"):
        mask.write_bytes(encode_mask(np.full((60, 80), IGNORE, np.uint8)))

    assert "no pixel of any mask is of a class" in refused(job())


def test_a_manifest_whose_second_attribute_is_no_image_is_refused(job: MakeJob, tmp_path: Path) -> None:
    for name in ("train", "validation"):
        (tmp_path / name).mkdir()
        image = io.BytesIO()
        Image.new("RGB", (80, 60)).save(image, "PNG")
        (tmp_path / name / "a.png").write_bytes(image.getvalue())
        (tmp_path / name / "data.manifest").write_text('{"source-ref": "s3://b/a.png", "class": "3"}\n')
    given = {name: tmp_path / name for name in ("train", "validation")}
    settings = ChannelSettings(attribute_names=("source-ref", "class"), local_roots={"s3://b/": "."})

    assert "its label is '3'; expected a PNG file" in refused(job(given=given, settings=dict.fromkeys(given, settings)))
