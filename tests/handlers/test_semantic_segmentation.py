"""Answers of a segmenter: masks, probabilities, runs, shares; whatever the picture is."""

from __future__ import annotations

import io

import numpy as np
import orjson
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from exporters.export import export
from formats import record
from formats.envelope import Outcome, Prediction, Tensor
from formats.images import encode_jpeg
from formats.recordio import decode_records
from handlers import semantic_segmentation
from handlers.algorithms import load_handler
from handlers.graph import Runtime
from handlers.handler import Handler
from handlers.semantic_segmentation import probabilities
from model_store.store import Bundle
from tests.bundles import image_png
from tests.segmenters import write_checkpoint

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    directory = tmp_path_factory.mktemp("segmenter")
    return Bundle.open(export(write_checkpoint(directory / "model", algorithm="psp"), directory / "bundle"))


@pytest.fixture(scope="module")
def handler(bundle: Bundle) -> Handler:
    return load_handler(bundle, Runtime())


def scene(height: int = 61, width: int = 83, seed: int = 3) -> Pixels:
    small = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return small.repeat(-(-height // 9), axis=0).repeat(-(-width // 9), axis=1)[:height, :width]


def ask(pixels: Pixels, accept: str = "") -> Prediction:
    return Prediction("roads", "1", image_png(pixels), "image/png", accept)


def only(outcomes: list[Outcome]) -> Outcome:
    (outcome,) = outcomes
    assert outcome.ok, outcome.error_message
    return outcome


def mask_of(outcome: Outcome) -> NDArray[np.uint8]:
    """As the original's notebook reads it."""
    return np.array(Image.open(io.BytesIO(outcome.body)))


def test_a_mask_has_the_images_size_and_holds_classes(handler: Handler) -> None:
    outcome = only(handler.predict([ask(scene(61, 83))]))
    image = Image.open(io.BytesIO(outcome.body))

    assert outcome.content_type == "image/png"
    assert image.mode == "P"  # viewers show colours
    mask = mask_of(outcome)
    assert mask.shape == (61, 83)
    assert mask.dtype == np.uint8
    assert len(np.unique(mask)) > 1
    assert mask.max() < 4


def test_a_mask_can_be_grey(handler: Handler) -> None:
    outcome = only(handler.predict([ask(scene(), 'image/png; palette="0"')]))

    assert outcome.content_type == "image/png"
    assert Image.open(io.BytesIO(outcome.body)).mode == "L"
    assert np.array_equal(mask_of(outcome), mask_of(only(handler.predict([ask(scene())]))))


@pytest.mark.parametrize("accept", ["application/x-protobuf", "application/x-recordio-protobuf"])
def test_probabilities_come_channel_first_in_one_record(handler: Handler, accept: str) -> None:
    """Contract, section 6: reshape, drop the first axis, argmax over the next gives the mask."""
    outcome = only(handler.predict([ask(scene(), accept)]))
    (payload,) = decode_records(outcome.body)
    features = record.decode(payload).features
    shape, target = features["shape"], features["target"]
    assert isinstance(shape, record.Tensor)
    assert isinstance(target, record.Tensor)

    assert outcome.content_type == accept
    assert shape.values.tolist() == [1, 4, 61, 83]
    found = target.values.reshape(shape.values.tolist())[0]
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)
    assert (found.argmax(axis=0) == mask_of(only(handler.predict([ask(scene())])))).mean() > 0.9999


def test_the_made_up_example_of_the_contract_has_its_bytes() -> None:
    body = semantic_segmentation._record(np.array([[[0.9, 0.2]], [[0.1, 0.8]]], np.float32))
    (payload,) = decode_records(body)

    assert payload.hex() == (
        "0a110a05736861706512083a060a04010201020a1e0a06746172676574121412120a106666663fcdcc4c3ecdcccc3dcdcc4c3f"
    )  # fmt: skip


def test_npy_holds_the_same_probabilities(handler: Handler) -> None:
    outcome = only(handler.predict([ask(scene(), "application/x-npy")]))
    found = np.load(io.BytesIO(outcome.body), allow_pickle=False)

    assert (found.shape, found.dtype) == ((4, 61, 83), np.float32)
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=1e-5)


def test_json_holds_runs_along_the_rows(handler: Handler) -> None:
    answer = orjson.loads(only(handler.predict([ask(scene(), "application/json")])).body)
    classes, lengths = np.array(answer["runs"]).T

    assert answer["shape"] == [61, 83]
    assert (np.diff(classes) != 0).all()
    mask = np.repeat(classes, lengths).reshape(61, 83)
    assert np.array_equal(mask, mask_of(only(handler.predict([ask(scene())]))))


def test_json_can_hold_the_shares_of_classes_alone(handler: Handler) -> None:
    answer = orjson.loads(only(handler.predict([ask(scene(), "application/json;shares=1")])).body)
    mask = mask_of(only(handler.predict([ask(scene())])))

    assert answer == {"shape": [61, 83], "shares": (np.bincount(mask.ravel(), minlength=4) / mask.size).tolist()}


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (61, 83), (120, 33)])
@pytest.mark.parametrize("stride", [8, 16])
def test_probabilities_are_what_torch_interpolates(size: tuple[int, int], stride: int) -> None:
    padded = [-(-side // 8) * 8 for side in size]
    logits = torch.randn(5, *(-(-side // stride) for side in padded), generator=torch.Generator().manual_seed(0))
    full = functional.interpolate(logits[None], size=padded, mode="bilinear", align_corners=False)
    expected = full[0, :, : size[0], : size[1]].softmax(0)

    np.testing.assert_allclose(probabilities(logits.numpy(), *size), expected.numpy(), atol=1e-5)


def test_images_of_unlike_sizes_share_a_batch_and_change_nothing(handler: Handler) -> None:
    asked = [ask(scene(*size, seed=seed)) for seed, size in enumerate([(61, 83), (40, 24), (61, 83), (9, 200)])]
    together = [mask_of(outcome) for outcome in handler.predict(asked)]
    alone = [mask_of(only(handler.predict([each]))) for each in asked]

    assert [mask.shape for mask in together] == [(61, 83), (40, 24), (61, 83), (9, 200)]
    for ours, theirs in zip(together, alone, strict=True):
        assert (ours == theirs).mean() > 0.999


def test_large_images_run_one_by_one(handler: Handler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semantic_segmentation, "_ALONE_PIXELS", 61 * 83 - 1)
    inputs = [handler.decode(ask(scene(*size))) for size in [(61, 83), (61, 83), (40, 24), (40, 24)]]
    first, second, third, fourth = map(handler.likeness, inputs)

    assert first != second
    assert third == fourth
    assert all(outcome.ok for outcome in handler.predict([ask(scene())] * 3))


@pytest.mark.parametrize(
    ("prediction", "code", "told"),
    [
        (Prediction("r", "1", b"no picture", "image/jpeg"), "InvalidBody", "no picture"),
        (Prediction("r", "1", b"{}", "application/json"), "UnsupportedContentType", "image/jpeg"),
        (ask(scene(), "text/csv"), "NotAcceptable", "application/x-recordio-protobuf"),
        (ask(scene(), "application/json;shares=yes"), "NotAcceptable", "shares=yes; expected 0 or 1"),
        (ask(scene(), "image/png; palette=voc"), "NotAcceptable", "palette=voc; expected 0 or 1"),
    ],
)
def test_what_is_wrong_fails_alone(handler: Handler, prediction: Prediction, code: str, told: str) -> None:
    first, bad, last = handler.predict([ask(scene()), prediction, ask(scene())])

    assert (first.ok, bad.error_code, last.ok) == (True, code, True)
    assert told in bad.error_message


def test_too_large_an_image_is_refused_before_it_is_decoded(handler: Handler, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = ask(np.zeros((1, 4001, 3), np.uint8))
    monkeypatch.setattr(semantic_segmentation, "MAX_PIXELS", 4000)
    (bad,) = handler.predict([wide])
    assert "1 x 4001 (height x width), 4001 pixels; at most 4000 are segmented" in bad.error_message

    monkeypatch.undo()
    monkeypatch.setattr(semantic_segmentation, "MAX_ANSWER_BYTES", 4000)
    mask, refused = handler.predict([ask(scene()), ask(scene(), "application/x-npy")])
    assert mask.ok
    assert "accept image/png" in refused.error_message


def test_any_picture_gets_a_mask_of_classes(handler: Handler) -> None:
    random = np.random.default_rng(4)
    bodies = [(np.zeros((300, 300, 3), np.uint8)), np.full((1, 1, 3), 255, np.uint8), np.zeros((1, 900, 3), np.uint8)]
    bodies += [random.integers(0, 256, (*random.integers(1, 150, 2), 3), np.uint8) for _ in range(30)]
    for pixels in bodies:
        jpeg = Prediction("r", "1", encode_jpeg(pixels), "image/jpeg")
        for outcome in handler.predict([ask(pixels), jpeg]):
            mask = mask_of(only([outcome]))
            assert mask.shape == pixels.shape[:2]
            assert mask.max() < 4


def test_raw_tensors_reach_the_graph(handler: Handler) -> None:
    pixels = scene(24, 40)
    raw = Prediction("r", "1", tensors=(Tensor("image", "UINT8", (1, 24, 40, 3), pixels.tobytes()),))
    (outcome,) = handler.predict([raw])
    assert outcome.tensors is not None
    mask, logits = outcome.tensors

    assert (mask.name, mask.datatype, mask.shape) == ("mask", "UINT8", (1, 24, 40))
    assert (logits.name, logits.shape) == ("logits", (1, 4, 2, 3))
    shown = mask_of(only(handler.predict([ask(pixels)])))
    assert np.array_equal(np.frombuffer(mask.data, np.uint8).reshape(24, 40), shown)


def test_a_bundle_without_its_classes_is_refused(bundle: Bundle) -> None:
    broken = bundle.manifest.model_copy(update={"settings": {}})

    with pytest.raises(ValueError, match=r"settings\.num_classes is None"):
        load_handler(Bundle(bundle.path, broken), Runtime())


def test_weights_that_requests_share_cannot_be_written_to() -> None:
    weights = semantic_segmentation._interpolation(3, 24)

    with pytest.raises(ValueError, match="read-only"):
        weights[0, 0] = 1
