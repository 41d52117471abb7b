"""Forecasts as clients ask for them (DeepAR contract, section 6)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from exporters.export import export
from formats import jsonlines
from formats.envelope import Outcome, Prediction
from handlers.algorithms import load_handler
from handlers.deepar import CONFIGURATION_VARIABLE, DeepAR
from handlers.graph import Array, Arrays, RunnableGraph, Runtime
from handlers.handler import Handler
from model_store.golden import check_golden, golden_prediction
from model_store.store import Bundle
from tests.forecasters import write_checkpoint
from trainers.job import ClientError

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning"),
]
LINES = "application/jsonlines"
SERIES = {"start": "2024-03-01 00:00:00", "target": [12, 14, "NaN", 11]}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    directory = tmp_path_factory.mktemp("forecasters")
    kinds: dict[str, dict[str, Any]] = {"plain": {}, "rich": {"cardinalities": (3, 2), "num_dynamic": 1}}
    return {
        name: Bundle.open(export(write_checkpoint(directory / name, **given), directory / f"{name}-bundle"))
        for name, given in kinds.items()
    }


@pytest.fixture(scope="module")
def handler(bundles: dict[str, Bundle]) -> Handler:
    return load_handler(bundles["plain"], Runtime())


@pytest.fixture(scope="module")
def rich(bundles: dict[str, Bundle]) -> Handler:
    return load_handler(bundles["rich"], Runtime())


def ask(body: object, content_type: str = "application/json", accept: str = "", **more: str) -> Prediction:
    data = body if isinstance(body, bytes) else orjson.dumps(body)
    return Prediction("sales", "1", data, content_type, accept, parameters=more)


def only(handler: Handler, prediction: Prediction) -> Outcome:
    (outcome,) = handler.predict([prediction])
    return outcome


def predictions(handler: Handler, instances: list[Any], **configuration: Any) -> list[Any]:
    outcome = only(handler, ask({"instances": instances, "configuration": configuration}))
    assert outcome.ok, outcome.error_message
    found: list[Any] = orjson.loads(outcome.body)["predictions"]
    return found


def test_the_contracts_request_is_answered_in_its_form(rich: Handler) -> None:
    instance = SERIES | {"cat": [0, 1], "dynamic_feat": [[0, 1, 0, 0, 1, 0, 0, 1]]}
    (found,) = predictions(
        rich, [instance], num_samples=50, output_types=["mean", "quantiles", "samples"], quantiles=["0.5", "0.90"]
    )

    assert set(found) == {"mean", "quantiles", "samples"}
    assert list(found["quantiles"]) == ["0.5", "0.90"]
    samples = np.array(found["samples"])
    assert samples.shape == (50, 4)
    assert found["mean"] == pytest.approx(samples.mean(axis=0).tolist(), rel=1e-5, abs=1e-6)
    assert found["quantiles"]["0.90"] == pytest.approx(np.quantile(samples, 0.9, axis=0).tolist(), rel=1e-5, abs=1e-6)


def test_without_a_configuration_the_defaults_of_batch_transform_hold(handler: Handler) -> None:
    outcome = only(handler, ask({"instances": [SERIES]}))
    (found,) = orjson.loads(outcome.body)["predictions"]

    assert set(found) == {"mean", "quantiles"}
    assert list(found["quantiles"]) == [f"0.{n}" for n in range(1, 10)]
    assert outcome.content_type == "application/json"


def test_lines_are_answered_in_lines_in_order(handler: Handler) -> None:
    body = b"".join(orjson.dumps({"start": "2024-03-01", "target": [level] * 9}) + b"\n" for level in (1, 1000, 10))
    outcome = only(handler, ask(body, LINES, LINES))
    found = [json.loads(line)["quantiles"] for line in outcome.body.splitlines()]
    widths = [each["0.9"][0] - each["0.1"][0] for each in found]

    assert outcome.content_type == LINES
    assert widths[0] < widths[2] < widths[1]


def test_the_environment_configures_and_attributes_and_bodies_outweigh_it(bundles: dict[str, Bundle]) -> None:
    environment = {CONFIGURATION_VARIABLE: '{"num_samples": 7, "output_types": ["samples"]}'}
    made = DeepAR(bundles["plain"], Runtime(), environment)
    attributes = f'a=b,{CONFIGURATION_VARIABLE}={{"num_samples": 3}};INFERENCE_PREFERRED_MODE=predict'

    def shape_of(prediction: Prediction) -> tuple[int, ...]:
        outcome = only(made, prediction)
        return np.array(orjson.loads(outcome.body.splitlines()[0])["samples"]).shape

    line = orjson.dumps(SERIES)
    assert shape_of(ask(line, LINES)) == (7, 4)
    assert shape_of(ask(line, LINES, custom_attributes=attributes)) == (3, 4)
    (found,) = predictions(made, [SERIES], num_samples=2)
    assert np.array(found["samples"]).shape == (2, 4)
    with pytest.raises(ValueError, match=CONFIGURATION_VARIABLE):
        DeepAR(bundles["plain"], Runtime(), {CONFIGURATION_VARIABLE: '{"num_samples": "x"}'})


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        (f"{CONFIGURATION_VARIABLE}=x", f"custom attribute {CONFIGURATION_VARIABLE}: Expecting value"),
        (f'{CONFIGURATION_VARIABLE}{{"seed": 1}}', "expected = and JSON text"),
        (f'{CONFIGURATION_VARIABLE}={{"num_samples": 0}}', f"{CONFIGURATION_VARIABLE}.num_samples is 0, expected"),
    ],
)
def test_attributes_that_configure_nothing_are_told(handler: Handler, attributes: str, text: str) -> None:
    outcome = only(handler, ask(orjson.dumps(SERIES), LINES, custom_attributes=attributes))
    assert text in outcome.error_message


def test_a_bundle_configures_requests_that_say_nothing_and_the_environment_outweighs_it(
    bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    given = {"output_types": ["samples"], "num_samples": 5, "minimum": 2.5}
    bundle = Bundle.open(export(write_checkpoint(tmp_path / "model"), tmp_path / "bundle", given))
    handlers = [DeepAR(bundle, Runtime(), env) for env in ({}, {CONFIGURATION_VARIABLE: '{"num_samples": 6}'})]
    found = [np.array(orjson.loads(only(each, ask(orjson.dumps(SERIES), LINES)).body)["samples"]) for each in handlers]

    assert [each.shape for each in found] == [(5, 4), (6, 4)]
    assert min(each.min() for each in found) == 2.5
    with pytest.raises(ClientError, match=r"inference configuration\.num_samples is 'x', expected an integer"):
        export(tmp_path / "model", tmp_path / "other", {"num_samples": "x"})


def test_no_default_changes_the_golden_answer(bundles: dict[str, Bundle]) -> None:
    environment = {CONFIGURATION_VARIABLE: '{"minimum": 1e6, "forward_fields": ["start"]}'}
    golden = golden_prediction(bundles["plain"])
    assert golden is not None
    check_golden(bundles["plain"], only(DeepAR(bundles["plain"], Runtime(), environment), golden))


class Counting:
    """The graph, and the shapes of the noise that it was given."""

    def __init__(self, own: RunnableGraph) -> None:
        self.own = own
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: Arrays) -> dict[str, Array]:
        self.shapes.append(inputs["noise"].shape)
        return self.own.run(inputs)


@pytest.fixture
def counted(handler: Handler, monkeypatch: pytest.MonkeyPatch) -> Counting:
    runs = handler._plans[""].runnable
    counting = Counting(runs._own)  # type: ignore[attr-defined]
    monkeypatch.setattr(runs, "_own", counting)
    return counting


def seeded(num_series: int, num_samples: int, seed: int = 3) -> Prediction:
    configuration = {"num_samples": num_samples, "seed": seed, "output_types": ["samples"]}
    instances = [SERIES | {"target": [level + 1.0] * 5} for level in range(num_series)]
    return ask({"instances": instances, "configuration": configuration})


def samples_of(outcome: Outcome) -> list[Any]:
    assert outcome.ok, outcome.error_message
    return [each["samples"] for each in orjson.loads(outcome.body)["predictions"]]


def test_requests_of_unlike_numbers_of_samples_share_one_run(handler: Handler, counted: Counting) -> None:
    batch = [seeded(3, 50), seeded(2, 100, seed=4), seeded(1, 49)]
    together = handler.predict(batch)

    assert counted.shapes == [(8, 50, 4, 2)]
    for prediction, outcome in zip(batch, together, strict=True):
        for ours, theirs in zip(samples_of(outcome), samples_of(only(handler, prediction)), strict=True):
            assert np.array(ours) == pytest.approx(np.array(theirs), rel=1e-4, abs=1e-4)


def test_what_is_computed_at_a_time_does_not_grow_with_requests(
    handler: Handler, counted: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = samples_of(only(handler, seeded(7, 95)))
    monkeypatch.setattr(handler._plans[""].runnable, "_most", 30)
    counted.shapes.clear()
    in_parts = samples_of(only(handler, seeded(7, 95)))

    assert set(counted.shapes) == {(1, 30, 4, 2)}
    assert len(counted.shapes) == 7 * 4
    assert np.array(in_parts) == pytest.approx(np.array(whole), rel=1e-4, abs=1e-4)


def test_a_body_is_parsed_once(handler: Handler, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []

    def parse(body: bytes) -> Any:
        parsed.append(body)
        return orjson.loads(body)

    monkeypatch.setattr(jsonlines, "parse_json", parse)
    predictions(handler, [SERIES | {"id": 4}], forward_fields=["id"])

    assert len(parsed) == 1


def test_one_seed_is_one_forecast_and_none_is_another_each_time(handler: Handler) -> None:
    once, again = (predictions(handler, [SERIES], seed=5) for _ in range(2))
    first, second = (predictions(handler, [SERIES]) for _ in range(2))

    assert once == again
    assert first != second


def test_paths_are_clipped_before_means_and_quantiles_are_taken(handler: Handler) -> None:
    wanted = {"seed": 3, "output_types": ["mean", "quantiles", "samples"]}
    (free,) = predictions(handler, [SERIES], **wanted)
    low, high = (float(np.quantile(free["samples"], each)) for each in (0.2, 0.9))
    (clipped,) = predictions(handler, [SERIES], minimum=low, maximum=high, **wanted)
    paths = np.clip(np.array(free["samples"]), low, high)

    assert np.array(clipped["samples"]) == pytest.approx(paths, rel=1e-6)
    assert clipped["mean"] == pytest.approx(paths.mean(axis=0).tolist(), rel=1e-5)
    assert clipped["quantiles"]["0.1"] == pytest.approx(np.quantile(paths, 0.1, axis=0).tolist(), rel=1e-5)


def test_fields_are_forwarded_where_a_series_has_them(handler: Handler, bundles: dict[str, Bundle]) -> None:
    named = [SERIES | {"id": "a", "shop": {"town": 7}}, SERIES | {"id": None}, SERIES]
    found = predictions(handler, named, forward_fields=["id", "shop"], output_types=["mean"])
    environment = {CONFIGURATION_VARIABLE: '{"forward_fields": ["id"]}'}
    body = b"\n".join(orjson.dumps(each) for each in named)
    outcome = only(DeepAR(bundles["plain"], Runtime(), environment), ask(body, LINES))

    assert [{k: v for k, v in each.items() if k != "mean"} for each in found] == [
        {"id": "a", "shop": {"town": 7}}, {"id": None}, {},
    ]  # fmt: skip
    assert [orjson.loads(line).get("id", "none") for line in outcome.body.splitlines()] == ["a", None, "none"]


def test_neighbours_of_other_lengths_and_other_wishes_change_nothing(handler: Handler) -> None:
    def wish(target: list[float], samples: int) -> Prediction:
        configuration = {"num_samples": samples, "seed": 3, "output_types": ["samples"]}
        return ask({"instances": [SERIES | {"target": target}], "configuration": configuration})

    batch = [wish([1.0, 2, 3], 20), wish([], 20), wish([5.0] * 400, 20), wish([9.0], 11), ask(b"{"), wish([0, 0], 20)]
    together = handler.predict(batch)

    for prediction, outcome in zip(batch, together, strict=True):
        alone = only(handler, prediction)
        assert outcome.ok == alone.ok
        if alone.ok:
            ours, theirs = (np.array(orjson.loads(each.body)["predictions"][0]["samples"]) for each in (outcome, alone))
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)
    assert not together[4].ok


def test_gluonts_names_of_the_fields_are_taken_too(rich: Handler) -> None:
    names = {"cat": "feat_static_cat", "dynamic_feat": "feat_dynamic_real"}
    instance = SERIES | {"cat": [0, 1], "dynamic_feat": [[0.0] * 8]}
    renamed = {names.get(name, name): value for name, value in instance.items()}

    assert predictions(rich, [renamed], seed=1) == predictions(rich, [instance], seed=1)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "body"),
        (b"[]", "'instances'"),
        ({"instances": []}, "at least one series"),
        ({"instances": [3]}, "instance 0 is 3, expected an object"),
        ({"instances": [{"target": [1]}]}, "instance 0: 'start' is missing"),
        ({"instances": [SERIES, {"start": "x", "target": []}]}, "instance 1: 'start' is 'x'"),
        ({"instances": [SERIES | {"target": ["a"]}]}, r"instance 0: 'target'[0] is 'a'"),
        ({"instances": [SERIES | {"cat": [0]}]}, "instance 0: 'cat' is [0]; the model was trained without it"),
        ({"instances": [SERIES | {"dynamic_feat": [[1] * 8]}]}, "trained with 0"),
        ({"instances": [SERIES], "configuration": {"num_samples": 0}}, "'configuration'.num_samples is 0"),
        ({"instances": [SERIES], "configuration": {"minimum": "0"}}, "'configuration'.minimum is '0'"),
        ({"instances": [SERIES], "configuration": {"minimum": 2, "maximum": 1}}, "minimum is 2, above"),
        ({"instances": [SERIES], "configuration": {"forward_fields": ["mean"]}}, "forward_fields is ['mean']"),
        (
            {"instances": [SERIES] * 2000, "configuration": {"num_samples": 10000}},
            "2000 instances x 10000 samples x 4 steps are 80000000 numbers; at most 50000000 in one request",
        ),
        (
            {"instances": [SERIES] * 300, "configuration": {"num_samples": 10000, "output_types": ["samples"]}},
            "are 12000000 numbers; at most 10000000 in one request of output_types 'samples'",
        ),
        (b'{"instances": [{"start": "2024-01-01\xff", "target": [1]}]}', "body: not valid JSON"),
        (b'{"instances": [{"start": "2024-01-01", "target": [NaN]}]}', "body"),
        (b'{"instances": [{"start": "2024-01-01", "target": [1e999]}]}', "target"),
    ],
)
def test_bad_input_is_named_by_instance_and_field(handler: Handler, body: object, text: str) -> None:
    outcome = only(handler, ask(body))

    assert not outcome.ok
    assert outcome.error_code == "InvalidBody"
    assert text in outcome.error_message


@pytest.mark.parametrize("length", [0, 3, 4, 7, 9])
@pytest.mark.parametrize("field", ["dynamic_feat", "feat_dynamic_real"])
def test_features_of_the_wrong_length_are_told_with_both_lengths(rich: Handler, field: str, length: int) -> None:
    instance = SERIES | {"cat": [0, 1], field: [[0.0] * length]}
    outcome = only(rich, ask({"instances": [instance]}))
    assert f"'dynamic_feat'[0] has {length} values; expected 8, the 4 of 'target' and 4 of" in outcome.error_message


def test_a_line_that_is_not_utf8_is_told(handler: Handler) -> None:
    outcome = only(handler, ask(orjson.dumps(SERIES) + b'\n{"start": "\xff"}', LINES))
    assert "line 2: not valid JSON" in outcome.error_message


def test_ten_thousand_series_are_one_request(handler: Handler) -> None:
    found = predictions(handler, [SERIES] * 10_000, num_samples=1, output_types=["mean"])
    assert len(found) == 10_000


@pytest.mark.parametrize(
    ("sent", "accept", "lines"),
    [
        (LINES, "", True),
        (LINES, "*/*", True),
        (LINES, "application/json", False),
        ("application/json", "*/*", False),
        ("application/json", LINES, True),
    ],
)
def test_lines_are_answered_in_lines_unless_wished_otherwise(
    handler: Handler, sent: str, accept: str, *, lines: bool
) -> None:
    body: object = orjson.dumps(SERIES) + b"\n" if sent == LINES else {"instances": [SERIES]}
    outcome = only(handler, ask(body, sent, accept))
    assert outcome.content_type == (LINES if lines else "application/json")


def test_other_content_types_are_refused(handler: Handler) -> None:
    assert only(handler, ask({"instances": [SERIES]}, "text/csv")).error_code == "UnsupportedContentType"
    assert only(handler, ask({"instances": [SERIES]}, accept="image/png")).error_code == "NotAcceptable"
