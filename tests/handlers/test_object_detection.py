"""Answers of a detector: rows, pixels, thresholds; whatever the picture is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest
from numpy.typing import NDArray
from PIL import Image

from exporters.export import export
from formats.envelope import Outcome, Prediction, Tensor
from handlers.algorithms import load_handler
from handlers.graph import Runtime
from handlers.handler import Handler
from model_store.store import Bundle
from tests.bundles import image_png
from tests.detectors import write_checkpoint

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    directory = tmp_path_factory.mktemp("detector")
    return Bundle.open(export(write_checkpoint(directory / "model", nms_topk=30), directory / "bundle"))


@pytest.fixture(scope="module")
def handler(bundle: Bundle) -> Handler:
    return load_handler(bundle, Runtime())


def ask(body: bytes, accept: str = "", content_type: str = "image/png") -> Prediction:
    return Prediction("cells", "1", body, content_type, accept)


def only(outcomes: list[Outcome]) -> Outcome:
    (outcome,) = outcomes
    assert outcome.ok, outcome.error_message
    return outcome


def scene(height: int = 120, width: int = 200, seed: int = 3) -> Pixels:
    random = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), random.integers(0, 256, 3), np.uint8)
    for _ in range(8):
        top, left = random.integers(0, height), random.integers(0, width)
        pixels[top : top + 30, left : left + 40] = random.integers(0, 256, 3)
    return pixels


def rows_of(outcome: Outcome) -> NDArray[np.float64]:
    return np.array(orjson.loads(outcome.body)["prediction"], np.float64).reshape(-1, 6)


def encoded(found: list[list[float]], handler: Handler, accept: str, pixels: Pixels) -> Outcome:
    """What the handler makes of a graph's answer."""
    rows = np.array([*found, *[[-1, 0, 0.1, 0.1, 0.2, 0.2]] * 3], np.float32)[None]
    answer = handler.encode(ask(image_png(pixels), accept), {"detections": rows})
    return Outcome(body=answer.body, content_type=answer.content_type)


FOUND = [[2, 0.75, 0.125, 0.25, 0.5, 0.75], [0, 0.25, 0.0, 0.0, 1.0, 0.5]]


def test_rows_are_class_score_and_corners(handler: Handler) -> None:
    """Contract, section 6.1: what clients loop over; empty rows of the graph are left out."""
    outcome = encoded(FOUND, handler, "", scene())

    assert outcome.content_type == "application/json"
    assert orjson.loads(outcome.body) == {"prediction": FOUND}


def test_batch_transform_gets_lines(handler: Handler) -> None:
    outcome = encoded(FOUND, handler, "application/jsonlines", scene())

    assert outcome.content_type == "application/jsonlines"
    assert outcome.body.endswith(b"}\n")
    assert orjson.loads(outcome.body) == {"prediction": FOUND}


def test_annotations_are_whole_pixels_of_the_image_as_sent(handler: Handler) -> None:
    outcome = encoded(FOUND, handler, "application/json;annotation=1", scene(120, 200))

    assert orjson.loads(outcome.body) == {
        "image_size": [{"width": 200, "height": 120, "depth": 3}],
        "annotations": [
            {"class_id": 2, "score": 0.75, "left": 25, "top": 30, "width": 75, "height": 60},
            {"class_id": 0, "score": 0.25, "left": 0, "top": 0, "width": 200, "height": 60},
        ],
    }


def test_a_threshold_leaves_lower_scores_out(handler: Handler) -> None:
    outcome = encoded(FOUND, handler, "application/json; threshold=0.5", scene())

    assert orjson.loads(outcome.body) == {"prediction": FOUND[:1]}


def test_nothing_found_is_an_empty_list(handler: Handler) -> None:
    assert encoded([], handler, "", scene()).body == b'{"prediction":[]}'


@pytest.mark.parametrize(
    ("accept", "told"),
    [
        ("application/json;annotation=yes", "annotation=yes; expected 0 or 1"),
        ("application/json;threshold=high", "threshold=high; expected a number from 0 to 1"),
        ("application/json;threshold=1.5", "threshold=1.5; expected a number from 0 to 1"),
        ("application/json;threshold=nan", "threshold=nan; expected a number from 0 to 1"),
        ("text/csv", "text/csv"),
    ],
)
def test_a_wish_that_makes_no_sense_fails_alone(handler: Handler, accept: str, told: str) -> None:
    good = ask(image_png(scene()))
    first, bad, last = handler.predict([good, ask(good.body, accept), good])

    assert (first.ok, bad.error_code, last.ok) == (True, "NotAcceptable", True)
    assert told in bad.error_message


def test_what_is_no_picture_fails_alone(handler: Handler) -> None:
    good = ask(image_png(scene()))
    outcomes = handler.predict([good, ask(b"no picture"), ask(good.body, content_type="text/csv"), good])

    assert [each.error_code or "ok" for each in outcomes] == ["ok", "InvalidBody", "UnsupportedContentType", "ok"]
    assert outcomes[0].body == outcomes[3].body


def test_rows_come_with_the_highest_score_first(handler: Handler) -> None:
    rows = rows_of(only(handler.predict([ask(image_png(scene()))])))

    assert len(rows) > 3
    assert (np.diff(rows[:, 1]) <= 0).all()


def test_a_neighbour_in_the_batch_changes_nothing(handler: Handler) -> None:
    """The network's last bits depend on the size of the batch, so scores that close may change places."""
    asked = [ask(image_png(scene(seed=seed)), "application/json;threshold=0.3") for seed in range(5)]
    together = [rows_of(outcome) for outcome in handler.predict(asked)]
    alone = [rows_of(only(handler.predict([each]))) for each in asked]

    for some, others in zip(together, alone, strict=True):
        assert len(some) == len(others)
        np.testing.assert_allclose(np.sort(some, axis=0), np.sort(others, axis=0), atol=1e-3)


def test_raw_tensors_reach_the_graph(handler: Handler) -> None:
    pixels = scene(300, 300)
    raw = Prediction("cells", "1", tensors=(Tensor("image", "UINT8", (1, 300, 300, 3), pixels.tobytes()),))
    (outcome,) = handler.predict([raw])
    assert outcome.tensors is not None
    (answer,) = outcome.tensors
    rows = np.frombuffer(answer.data, "<f4").reshape(30, 6)

    assert (answer.name, answer.shape) == ("detections", (1, 30, 6))
    shown = rows_of(only(handler.predict([ask(image_png(pixels))])))
    np.testing.assert_allclose(rows[rows[:, 0] >= 0], shown, atol=1e-6)


def adversarial(count: int) -> Iterator[bytes]:
    """Files of all sizes and kinds: even, noise, stripes, extreme aspects, grey, with alpha, JPEG of any quality."""
    yield image_png(np.zeros((300, 300, 3), np.uint8))
    yield image_png(np.full((300, 300, 3), 255, np.uint8))
    yield image_png(np.zeros((1, 1, 3), np.uint8))
    yield image_png(np.full((1, 5000, 3), 200, np.uint8))
    yield image_png(np.full((5000, 1, 3), 200, np.uint8))
    random = np.random.default_rng(11)
    for number in range(count - 5):
        height, width = random.integers(1, 400, 2) if number % 5 else (1, int(random.integers(1, 5000)))
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        if number % 3 == 1:
            pixels[:: 1 + number % 7] = 255 * (number % 2)
        elif number % 3 == 2:
            pixels[:] = pixels[0, 0]
        mode = ("RGB", "L", "RGBA", "1")[number % 4]
        buffer = io.BytesIO()
        image = Image.fromarray(pixels).convert(mode)
        if mode in ("RGB", "L") and number % 2:
            image.save(buffer, "JPEG", quality=int(random.integers(1, 100)))
        else:
            image.save(buffer, "PNG", compress_level=1)
        yield buffer.getvalue()


def expect_sound_answers(handler: Handler, bodies: Iterator[bytes]) -> int:
    """No box outside 0 to 1, none inside out, no NaN, no failure; returns how many boxes there were."""
    total = 0
    while batch := [body for _, body in zip(range(8), bodies, strict=False)]:
        for outcome in handler.predict([ask(body) for body in batch]):
            rows = rows_of(only([outcome]))  # JSON knows no NaN
            assert ((rows[:, 2:] >= 0) & (rows[:, 2:] <= 1)).all()
            assert (rows[:, 4:] >= rows[:, 2:4]).all()
            assert ((rows[:, 1] > 0.01) & (rows[:, 1] <= 1)).all()
            assert np.isin(rows[:, 0], [0, 1, 2]).all()
            total += len(rows)
    return total


def test_no_picture_gives_a_box_that_is_none(handler: Handler) -> None:
    assert expect_sound_answers(handler, adversarial(40)) > 40


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_pictures_give_no_box_that_is_none(handler: Handler) -> None:
    assert expect_sound_answers(handler, adversarial(10_000)) > 10_000


def test_a_bundle_without_its_side_is_refused(tmp_path: Path, bundle: Bundle) -> None:
    broken = bundle.manifest.model_copy(update={"settings": {"num_classes": 3}})

    with pytest.raises(ValueError, match=r"settings\.image_shape is None"):
        load_handler(Bundle(bundle.path, broken), Runtime())
