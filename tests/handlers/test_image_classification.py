import base64
import io
from pathlib import Path

import numpy as np
import orjson
import pytest
from PIL import Image

from formats.envelope import Outcome, Prediction, Tensor
from formats.image_record import encode as encode_image_record
from formats.image_record import image_record
from formats.recordio import encode_record
from handlers.algorithms import load_handler
from handlers.graph import Runtime
from handlers.handler import Handler
from handlers.image_classification import ImageClassification
from model_store.golden import check_golden, golden_prediction
from model_store.store import Bundle
from tests.bundles import golden_image, image_png, tiny_answer, write_tiny_classifier

SIDE = 4
RED = np.full((SIDE, SIDE, 3), (250, 10, 10), np.uint8)
BLUE = np.full((SIDE, SIDE, 3), (10, 10, 250), np.uint8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(write_tiny_classifier(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def handler(bundle: Bundle) -> Handler:
    return load_handler(bundle, Runtime())


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def ask(body: bytes, content_type: str = "image/png", accept: str = "") -> Prediction:
    return Prediction("tiny", "1", body, content_type, accept)


def tensor(shape: tuple[int, ...], name: str = "image", datatype: str = "UINT8") -> Tensor:
    return Tensor(name, datatype, shape, bytes(int(np.prod(shape))))


def only(outcomes: list[Outcome]) -> Outcome:
    (outcome,) = outcomes
    return outcome


def codes(outcomes: list[Outcome]) -> list[str]:
    return [outcome.error_code or "ok" for outcome in outcomes]


@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
def test_the_golden_request_is_reproduced(bundle: Bundle, engine: str) -> None:
    handler = load_handler(bundle, Runtime(engine=engine))  # type: ignore[arg-type]
    golden = golden_prediction(bundle)
    assert golden is not None

    check_golden(bundle, only(handler.predict([golden])))


def test_json_is_a_bare_array_of_probabilities(handler: Handler) -> None:
    """Contract section 6: clients do json.loads(body) and then argmax on it."""
    outcome = only(handler.predict([ask(image_png(RED))]))

    assert outcome.content_type == "application/json"
    assert orjson.loads(outcome.body) == pytest.approx(tiny_answer(RED).tolist(), abs=1e-6)


def test_jsonlines_is_one_line_with_a_prediction(handler: Handler) -> None:
    outcome = only(handler.predict([ask(image_png(RED), accept="application/jsonlines")]))

    assert outcome.content_type == "application/jsonlines"
    assert outcome.body.endswith(b"\n")
    assert orjson.loads(outcome.body) == {"prediction": pytest.approx(tiny_answer(RED).tolist(), abs=1e-6)}


def test_batch_transform_answers_in_lines_only_when_accept_is_unset(bundle: Bundle) -> None:
    handler = ImageClassification(bundle, Runtime(), {"SAGEMAKER_BATCH": "true"})
    unset, json = handler.predict([ask(image_png(RED)), ask(image_png(RED), accept="application/json")])

    assert orjson.loads(unset.body).keys() == {"prediction"}
    assert isinstance(orjson.loads(json.body), list)


@pytest.mark.parametrize(
    ("image", "form"),
    [
        (Image.fromarray(RED).convert("CMYK"), "JPEG"),
        (Image.fromarray(RED).convert("RGBA"), "PNG"),
        (Image.fromarray(RED).resize((1, 1)), "PNG"),
        (Image.fromarray(RED).resize((64, 16)), "JPEG"),
    ],
    ids=["cmyk", "rgba", "1x1", "another aspect"],
)
def test_unusual_images_keep_their_colour(handler: Handler, image: Image.Image, form: str) -> None:
    outcome = only(handler.predict([ask(encoded(image, form))]))

    assert outcome.ok, outcome.error_message
    assert orjson.loads(outcome.body) == pytest.approx(tiny_answer(RED).tolist(), abs=0.05)


def test_sixteen_bit_grey_keeps_its_brightness(handler: Handler) -> None:
    image = Image.fromarray(np.full((SIDE, SIDE), 0x8000, np.uint16))
    outcome = only(handler.predict([ask(encoded(image, "PNG"))]))

    grey = np.full((SIDE, SIDE, 3), 0x80, np.uint8)
    assert orjson.loads(outcome.body) == pytest.approx(tiny_answer(grey).tolist(), abs=1e-6)


def test_a_rotated_photo_is_answered_as_the_upright_one(tmp_path: Path) -> None:
    """EXIF 6: stored lying on its left side. Answers of mean colour cannot tell, so the pixels are looked at."""
    handler = load_handler(Bundle.open(write_tiny_classifier(tmp_path, height=16, width=8)), Runtime())
    upright = np.zeros((16, 8, 3), np.uint8)
    upright[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = encoded(Image.fromarray(upright).rotate(90, expand=True), "JPEG", exif=exif, quality=100)

    pixels = handler.decode(ask(photo))["image"][0]

    assert np.abs(pixels.astype(int) - upright).max() < 20


def test_the_type_is_read_from_the_bytes_not_from_the_header(handler: Handler) -> None:
    jpeg = encoded(Image.fromarray(RED), "JPEG", quality=100)

    assert codes(handler.predict([ask(jpeg, "image/png"), ask(image_png(RED), "image/jpeg; q=1")])) == ["ok", "ok"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"hello, I am a photo", "hello"),
        (encoded(Image.fromarray(RED).resize((64, 64)), "JPEG")[:300], "JPEG"),
        (image_png(RED)[:50], "PNG"),
    ],
    ids=["empty", "text called .jpg", "truncated jpeg", "truncated png"],
)
def test_what_is_no_image_is_the_clients_error(handler: Handler, body: bytes, says: str) -> None:
    outcome = only(handler.predict([ask(body, "image/jpeg")]))

    assert outcome.error_code == "InvalidBody"
    assert says.lower() in outcome.error_message.lower()


@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream", ""])
def test_other_content_types_are_refused_with_the_possible_ones(handler: Handler, content_type: str) -> None:
    outcome = only(handler.predict([ask(image_png(RED), content_type)]))

    assert outcome.error_code == "UnsupportedContentType"
    assert "image/jpeg" in outcome.error_message


@pytest.mark.parametrize("accept", ["text/csv", "application/json;q=0", "*/*;q=0"])
def test_an_answer_that_cannot_be_made_is_not_acceptable(handler: Handler, accept: str) -> None:
    assert codes(handler.predict([ask(image_png(RED), accept=accept)])) == ["NotAcceptable"]


def test_a_type_refused_by_name_is_not_given_by_wildcard(handler: Handler) -> None:
    outcome = only(handler.predict([ask(image_png(RED), accept="*/*, application/json;q=0")]))

    assert outcome.content_type == "application/jsonlines"


def records(*payloads: bytes, split: bool = True) -> bytes:
    return b"".join(encode_record(payload, split=split) for payload in payloads)


def lines(*bodies: bytes) -> bytes:
    return b"".join(orjson.dumps({"image": base64.b64encode(body).decode()}) + b"\n" for body in bodies)


RED_RECORD = encode_image_record(image_record(7, 1.0, image_png(RED)))
BLUE_RECORD = encode_image_record(image_record(8, [0.0, 1.0, 1.0], image_png(BLUE)))
MANY = {
    "image records": ("application/x-recordio", records(RED_RECORD, BLUE_RECORD)),
    "bare images": ("application/x-recordio", records(image_png(RED), image_png(BLUE), split=False)),
    "without the last padding": ("application/x-recordio", records(RED_RECORD, BLUE_RECORD).rstrip(b"\0")),
    "lines": ("application/jsonlines", lines(image_png(RED), image_png(BLUE))),
}


@pytest.mark.parametrize("form", MANY)
@pytest.mark.parametrize("accept", ["", "application/jsonlines", "application/json"])
def test_many_images_in_one_body_are_answered_in_order(handler: Handler, form: str, accept: str) -> None:
    content_type, body = MANY[form]
    outcome = only(handler.predict([ask(body, content_type, accept)]))

    assert outcome.ok, outcome.error_message
    assert outcome.content_type == (accept or "application/jsonlines")
    answers = (
        orjson.loads(outcome.body)
        if accept == "application/json"
        else [orjson.loads(line)["prediction"] for line in outcome.body.splitlines()]
    )
    assert answers == [pytest.approx(tiny_answer(image).tolist(), abs=1e-6) for image in (RED, BLUE)]


def test_one_record_is_still_a_list_of_one(handler: Handler) -> None:
    outcome = only(handler.predict([ask(records(RED_RECORD), "application/x-recordio", "application/json")]))

    assert len(orjson.loads(outcome.body)) == 1


@pytest.mark.parametrize(
    ("content_type", "body", "told"),
    [
        ("application/x-recordio", records(RED_RECORD, b"junk"), "record 1: 4 bytes, an image record has a header"),
        ("application/x-recordio", records(RED_RECORD)[:-9], "record 0 at byte 0: truncated"),
        ("application/x-recordio", records(RED_RECORD, RED_RECORD[:60]), "record 1: PNG of 36 bytes is truncated"),
        ("application/x-recordio", b"", "no records"),
        ("application/x-recordio", image_png(RED), "not RecordIO"),
        ("application/jsonlines", b"", "no JSON lines"),
        ("application/jsonlines", lines(image_png(RED)) + b'{"data": 3}\n', "line 1: 'image' must be a base64 text"),
        ("application/jsonlines", b'{"image": "%%%%"}', "line 0: 'image' is not base64"),
        ("application/jsonlines", lines(b"hello"), "line 0: image is not a JPEG or PNG file"),
        ("application/jsonlines", b"[1]", "expected a JSON object, got an array"),
        ("application/jsonlines", b'{"image": "\xff"}', "not valid JSON"),
    ],
)
def test_a_bad_part_is_named_and_its_neighbours_in_the_batch_are_unharmed(
    handler: Handler, content_type: str, body: bytes, told: str
) -> None:
    good = ask(image_png(RED))
    first, bad, last = handler.predict([good, ask(body, content_type), good])

    assert (first.ok, bad.error_code, last.ok) == (True, "InvalidBody", True)
    assert told in bad.error_message


def test_ten_thousand_images_in_one_body_are_answered_in_parts(handler: Handler) -> None:
    body = records(RED_RECORD) * 9_999 + records(BLUE_RECORD)
    outcome = only(handler.predict([ask(body, "application/x-recordio", "application/json")]))

    assert np.argmax(orjson.loads(outcome.body), axis=1).tolist() == [0] * 9_999 + [2]


def test_more_than_fits_into_memory_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    handler = load_handler(Bundle.open(write_tiny_classifier(tmp_path, height=4096, width=4096)), Runtime())
    outcome = only(handler.predict([ask(records(RED_RECORD) * 6, "application/x-recordio")]))

    assert outcome.error_message == "6 images in one request; at most 5 are accepted"


def test_many_small_files_of_many_pixels_are_refused(handler: Handler) -> None:
    """A black PNG of 36 million pixels takes 36 kB; each alone is accepted, five of them are not."""
    black = encoded(Image.new("1", (6000, 6000)), "PNG")
    outcome = only(handler.predict([ask(records(*[black] * 5, split=False), "application/x-recordio")]))

    assert outcome.error_message == "record 4: more than 160000000 pixels in one request"


def test_centre_crop_sees_what_validation_saw(handler: Handler) -> None:
    """A wide image, red in its middle third: squeezed it is mixed, cut it is red."""
    wide = np.concatenate([BLUE, RED, BLUE], axis=1)
    squeezed = ask(image_png(wide))
    cut = Prediction("tiny", "1", image_png(wide), "image/png", mode="centre_crop")
    mixed, red = (orjson.loads(outcome.body) for outcome in handler.predict([squeezed, cut]))

    assert red == pytest.approx(tiny_answer(RED).tolist(), abs=1e-6)
    assert mixed != pytest.approx(red, abs=0.1)


def test_bad_items_fail_alone(handler: Handler) -> None:
    batch = [
        ask(image_png(RED)),
        ask(b"broken"),
        ask(image_png(BLUE)),
        ask(image_png(RED), "text/plain"),
        ask(image_png(BLUE), accept="image/gif"),
        ask(image_png(golden_image(SIDE, SIDE))),
    ]
    outcomes = handler.predict(batch)

    assert codes(outcomes) == ["ok", "InvalidBody", "ok", "UnsupportedContentType", "NotAcceptable", "ok"]
    assert int(np.argmax(orjson.loads(outcomes[0].body))) == 0
    assert int(np.argmax(orjson.loads(outcomes[2].body))) == 2


def test_alone_equals_in_a_batch(handler: Handler) -> None:
    rng = np.random.default_rng(7)
    batch = [ask(image_png(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))) for _ in range(7)]

    together = [orjson.loads(outcome.body) for outcome in handler.predict(batch)]
    alone = [orjson.loads(only(handler.predict([each])).body) for each in batch]

    assert together == [pytest.approx(answer, abs=1e-6) for answer in alone]


def test_raw_tensors_reach_the_graph_beside_images(handler: Handler) -> None:
    rows = np.stack([RED, BLUE])
    raw = Prediction("tiny", "1", tensors=(Tensor("image", "UINT8", rows.shape, rows.tobytes()),))
    image, tensors = handler.predict([ask(image_png(RED)), raw])

    assert image.ok
    assert tensors.tensors is not None
    (answer,) = tensors.tensors
    assert (answer.name, answer.datatype, answer.shape) == ("probabilities", "FP32", (2, 3))
    expected = np.stack([tiny_answer(RED), tiny_answer(BLUE)])
    np.testing.assert_allclose(np.frombuffer(answer.data, "<f4").reshape(2, 3), expected, atol=1e-6)


@pytest.mark.parametrize(
    "bad",
    [
        tensor((1, SIDE, SIDE, 4)),
        tensor((1, SIDE, SIDE)),
        tensor((0, SIDE, SIDE, 3)),
        tensor((1, SIDE, SIDE, 3), name="picture"),
        tensor((1, SIDE, SIDE, 3), datatype="INT8"),
        tensor((1, SIDE, SIDE, 3))._replace(data=b"short"),
        tensor((1, SIDE, SIDE, 3))._replace(shape=(-1, SIDE, SIDE, 3)),
    ],
    ids=["trailing shape", "rank", "no rows", "name", "datatype", "too few bytes", "negative"],
)
def test_a_wrong_tensor_fails_alone(handler: Handler, bad: Tensor) -> None:
    good = Prediction("tiny", "1", tensors=(tensor((1, SIDE, SIDE, 3)),))
    outcomes = handler.predict([good, Prediction("tiny", "1", tensors=(bad,)), good])

    assert codes(outcomes) == ["ok", "InvalidBody", "ok"]


def test_an_unknown_output_or_mode_is_the_clients_error(handler: Handler) -> None:
    output = Prediction("tiny", "1", tensors=(tensor((1, SIDE, SIDE, 3)),), outputs=("logits",))
    mode = Prediction("tiny", "1", image_png(RED), "image/png", mode="embed")

    assert codes(handler.predict([output, mode])) == ["InvalidBody", "InvalidBody"]
