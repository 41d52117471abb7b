"""Answers of text classifiers and word vectors: fastText's own, in the original's forms."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from exporters.export import export
from formats.envelope import Outcome, Prediction, Tensor
from handlers.algorithms import load_handler
from handlers.graph import Runtime
from handlers.handler import Handler
from model_store.store import Bundle

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")

FIXTURES = Path(__file__).parents[1] / "formats" / "fixtures" / "fasttext"
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text())
CLASSIFIERS = [name for name, each in EXPECTED["models"].items() if "predictions" in each]
LINES = "application/jsonlines"


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    directory = tmp_path_factory.mktemp("fasttext")
    return {name: Bundle.open(export(FIXTURES / name, directory / name)) for name in EXPECTED["models"]}


@pytest.fixture(scope="module")
def classifier(bundles: dict[str, Bundle]) -> Handler:
    return load_handler(bundles["softmax.bin"], Runtime())


@pytest.fixture(scope="module")
def vectors(bundles: dict[str, Bundle]) -> Handler:
    return load_handler(bundles["vectors.bin"], Runtime())


def ask(body: object, content_type: str = "application/json", accept: str = "") -> Prediction:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return Prediction("texts", "1", data, content_type, accept)


def only(handler: Handler, prediction: Prediction) -> Outcome:
    (outcome,) = handler.predict([prediction])
    return outcome


def answer(handler: Handler, body: object) -> Any:
    outcome = only(handler, ask(body))
    assert outcome.ok, outcome.error_message
    return orjson.loads(outcome.body)


@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_any_fasttext_classifier_answers_as_fasttext_does(bundles: dict[str, Bundle], name: str, engine: Any) -> None:
    handler = load_handler(bundles[name], Runtime(engine=engine))

    answers = answer(handler, {"instances": EXPECTED["texts"], "configuration": {"k": 3}})

    for given, expected in zip(answers, EXPECTED["models"][name]["predictions"], strict=True):
        assert given["label"] == [label for label, _ in expected]
        # for one against all, fastText reads sigmoid from a table in steps of 1/32
        tolerance = 8e-3 if name == "one_vs_all.bin" else 1e-5
        assert given["prob"] == pytest.approx([prob for _, prob in expected], abs=tolerance)


@pytest.mark.parametrize("name", ["vectors.bin", "plain_vectors.bin"])
def test_vectors_of_known_and_unknown_words_are_those_of_fasttext(bundles: dict[str, Bundle], name: str) -> None:
    expected = EXPECTED["models"][name]["vectors"]

    answers = answer(load_handler(bundles[name], Runtime()), {"instances": list(expected)})

    assert [each["word"] for each in answers] == list(expected)
    assert np.abs(np.array([a["vector"] for a in answers]) - np.array(list(expected.values()))).max() < 1e-6


def test_one_label_is_given_unless_more_are_asked_for(classifier: Handler) -> None:
    (one,) = answer(classifier, {"instances": ["stocks fell"]})
    (all_,) = answer(classifier, {"instances": ["stocks fell"], "configuration": {"k": 99}})

    assert [len(one["label"]), len(all_["label"])] == [1, 3]
    assert all_["prob"] == sorted(all_["prob"], reverse=True)


def test_each_json_line_has_its_own_k(classifier: Handler) -> None:
    body = b'{"source": "the team won"}\n{"source": "stocks fell", "k": 2}\n'

    outcome = only(classifier, ask(body, LINES, "application/json"))

    assert outcome.content_type == LINES  # Accept is ignored where it differs, as in the original
    assert [len(json.loads(line)["prob"]) for line in outcome.body.splitlines()] == [1, 2]


@pytest.mark.parametrize("kind", ["text/csv", "text/plain"])
def test_plain_text_is_one_instance_a_line(classifier: Handler, kind: str) -> None:
    outcome = only(classifier, ask(b'stocks fell, oil rose\n"the team won"\n', kind))

    assert orjson.loads(outcome.body) == answer(classifier, {"instances": ["stocks fell, oil rose", "the team won"]})


def test_words_come_back_in_json_lines_too(vectors: Handler) -> None:
    outcome = only(vectors, ask(b'{"source": "team"}\n', LINES))

    assert set(json.loads(outcome.body)) == {"word", "vector"}


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (b"", "application/json", "body"),
        (b'{"instances": ["a"', "application/json", "JSON"),
        (b'["a"]', "application/json", "instances"),
        (b'{"instances": "a"}', "application/json", "instances"),
        (b'{"instances": []}', "application/json", "at least one"),
        (b'{"instances": ["a", 3]}', "application/json", "item 1"),
        (b'{"instances": ["a"], "configuration": 3}', "application/json", "configuration"),
        (b'{"instances": ["a"], "configuration": {"k": 0}}', "application/json", "configuration.k"),
        (b'{"instances": ["a"], "configuration": {"k": true}}', "application/json", "configuration.k"),
        (b'{"instances": ["a"], "configuration": {"k": NaN}}', "application/json", "JSON"),
        (b'{"instances": ["\xff"]}', "application/json", "JSON"),
        (b'{"source": "a"}\n{"source": 1}', LINES, "line 1"),
        (b'{"source": "a", "k": 1.5}', LINES, "line 0"),
        (b"", LINES, "no JSON lines"),
        (b"\xff", "text/plain", "UTF-8"),
        (b"\n\n", "text/csv", "one a line"),
    ],
)
def test_a_bad_body_says_what_is_wrong_and_fails_alone(classifier: Handler, body: bytes, kind: str, text: str) -> None:
    bad, good = classifier.predict([ask(body, kind), ask({"instances": ["oil"]})])

    assert (bad.error_code, good.ok) == ("InvalidBody", True)
    assert text in bad.error_message


def test_other_types_are_refused(classifier: Handler) -> None:
    sent, wished = classifier.predict(
        [ask(b"x", "application/octet-stream"), ask({"instances": ["a"]}, accept="image/png")]
    )

    assert (sent.error_code, wished.error_code) == ("UnsupportedContentType", "NotAcceptable")


def test_neighbours_in_a_batch_do_not_change_an_answer(classifier: Handler) -> None:
    texts = [*EXPECTED["texts"], "oil " * 500]
    together = classifier.predict([ask({"instances": [text]}) for text in texts])

    for text, outcome in zip(texts, together, strict=True):
        (alone,), (beside,) = answer(classifier, {"instances": [text]}), orjson.loads(outcome.body)
        assert alone["label"] == beside["label"]
        assert alone["prob"] == pytest.approx(beside["prob"], abs=1e-6)


def test_a_thousand_instances_are_one_run_of_the_graph(bundles: dict[str, Bundle]) -> None:
    handler = load_handler(bundles["softmax.bin"], Runtime())
    runs = []
    parts = handler._plans[""].runnable
    inner = parts._graph  # type: ignore[attr-defined]

    class Counted:
        def run(self, inputs: Any) -> Any:
            runs.append(len(inputs["units"]))
            return inner.run(inputs)

    parts._graph = Counted()  # type: ignore[attr-defined]
    answers = answer(handler, {"instances": ["the team won in extra time"] * 1000})

    assert (len(answers), runs) == (1000, [1000])


def test_one_long_text_among_many_does_not_multiply_memory(classifier: Handler) -> None:
    answers = answer(classifier, {"instances": ["oil"] * 2000 + ["team " * 5000]})

    assert [len(answers), answers[0]["label"]] == [2001, answers[1999]["label"]]


def test_units_out_of_range_are_harmless_over_tensors(classifier: Handler) -> None:
    units = np.array([[-(2**62), 2**62, 0]], np.int64)
    tensors = (Tensor("units", "INT64", (1, 3), units.tobytes()),)

    outcome = only(classifier, Prediction("texts", "1", b"", "", "", tensors=tensors))

    assert outcome.ok, outcome.error_message


@pytest.mark.slow
def test_twenty_thousand_sentences_a_second(classifier: Handler) -> None:
    """In one request of 64 on one core; measured with answers of real models in docs/benchmarks/blazingtext.md."""
    request = ask({"instances": ["the team won in extra time and the coach praised the goal"] * 64})
    classifier.predict([request])
    began = time.perf_counter()
    for _ in range(50):
        classifier.predict([request])

    assert 50 * 64 / (time.perf_counter() - began) > 20_000
