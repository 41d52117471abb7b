"""A forecaster's bundle: the same paths in every form, from the same noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from exporters.deepar import PARITY_TOLERANCE, load_sampler
from exporters.export import export
from exporters.graphs import ParityError, load_script
from formats.forecasting import uniform_noise
from handlers.algorithms import load_handler
from handlers.graph import Engine, Runtime
from model_store.golden import check_golden, golden_prediction
from model_store.store import Bundle
from tests.forecasters import write_checkpoint
from trainers.checkpoints import load, save
from trainers.deepar.hyperparameters import LIKELIHOODS
from trainers.job import ClientError

pytestmark = [
    pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("forecasters")
    made = {kind: write_checkpoint(directory / kind, likelihood=kind) for kind in LIKELIHOODS}
    return made | {"rich": write_checkpoint(directory / "rich", cardinalities=(3, 2), num_dynamic=1, num_layers=3)}


@pytest.fixture(scope="module")
def bundles(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    directory = tmp_path_factory.mktemp("bundles")
    return {name: Bundle.open(export(path, directory / name)) for name, path in checkpoints.items()}


@pytest.mark.parametrize("name", [*LIKELIHOODS, "rich"])
def test_the_bundle_says_what_serving_needs_and_its_forms_agree(bundles: dict[str, Bundle], name: str) -> None:
    bundles[name].verify()
    manifest = bundles[name].manifest

    assert manifest.modes["predict"].placement == ["cpu", "gpu"]
    assert manifest.settings["time_freq"] == "H"
    assert manifest.graphs["model"].outputs[0].shape == [-1, -1, 4]
    assert len(manifest.parity) == 3
    assert max(max(c.torchscript_max_abs_error, c.onnx_max_abs_error) for c in manifest.parity) <= PARITY_TOLERANCE


@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
@pytest.mark.parametrize("name", [*LIKELIHOODS, "rich"])
def test_the_golden_request_is_reproduced(bundles: dict[str, Bundle], name: str, engine: Engine) -> None:
    prediction = golden_prediction(bundles[name])
    assert prediction is not None
    (outcome,) = load_handler(bundles[name], Runtime(engine=engine)).predict([prediction])

    check_golden(bundles[name], outcome)


@pytest.mark.parametrize("name", [*LIKELIHOODS, "rich"])
def test_series_samples_and_history_may_be_of_any_number(
    bundles: dict[str, Bundle], checkpoints: dict[str, Path], name: str
) -> None:
    bundle = bundles[name]
    session: Any = ort.InferenceSession(bundle.path / "model.onnx")
    script: Any = load_script(bundle.path / "model.pt")
    sampler = load_sampler(checkpoints[name], json.loads((checkpoints[name] / "model.json").read_text()))
    settings: Any = bundle.manifest.settings
    num_features, num_noise = bundle.manifest.graphs["model"].inputs[2].shape[2], settings["num_noise"]
    random = np.random.default_rng(0)
    for series, samples, known in ((1, 1, 0), (1, 1, 1), (4, 7, 3), (2, 30, 90), (9, 2, 1000)):
        target = random.uniform(0, 1, (series, known)).astype(np.float32)
        given: dict[str, Any] = {
            "target": np.round(9 * target) if name == "negative-binomial" else target,
            "observed": np.ones((series, known), np.float32),
            "features": random.normal(size=(series, 10, num_features)).astype(np.float32),
            "noise": uniform_noise((series, samples, 4, num_noise), random),
        }
        if name == "rich":
            given["category"] = random.integers(0, (3, 2), (series, 2))
        tensors = [torch.from_numpy(each) for each in given.values()]
        expected = sampler(*tensors).numpy()

        assert expected.shape == (series, samples, 4)
        assert session.run(None, given)[0] == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert script(*tensors).numpy() == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_torchscript_is_no_longer_for_a_longer_forecast(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    longer = write_checkpoint(tmp_path / "model", context_length=30, prediction_length=40)
    paths = bundles["gaussian"].path, export(longer, tmp_path / "bundle")
    scripts: list[Any] = [load_script(path / "model.pt") for path in paths]
    few, many = (len(list(each.inlined_graph.nodes())) for each in scripts)

    assert many < 1.2 * few


def test_onnx_needs_no_operators_but_its_own(bundles: dict[str, Bundle]) -> None:
    for bundle in bundles.values():
        assert [each.domain for each in onnx.load(str(bundle.path / "model.onnx")).opset_import] == [""]


def test_a_lone_path_may_turn_at_a_decision_but_not_each_time(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turning(times: int) -> None:
        left = iter(range(times))

        def errors(*_: object) -> dict[str, float]:
            return {"TorchScript": 0.0, "ONNX": 0.0 if next(left, None) is None else 0.03}

        monkeypatch.setattr("exporters.deepar._errors", errors)

    turning(1)
    assert export(checkpoints["negative-binomial"], tmp_path / "counts").exists()
    turning(1)
    with pytest.raises(ParityError, match=r"ONNX of graph 'model' strays by 0\.03 scales"):
        export(checkpoints["gaussian"], tmp_path / "smooth")
    turning(99)
    with pytest.raises(ParityError, match=r"ONNX of graph 'model' strays by 0\.03 scales"):
        export(checkpoints["negative-binomial"], tmp_path / "wrong")


def test_a_graph_that_strays_is_not_exported(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.deepar.PARITY_TOLERANCE", -1.0)
    with pytest.raises(ParityError, match=r"strays by .* scales on .*; allowed is -1; nothing"):
        export(checkpoints["gaussian"], tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_weights_of_another_network_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model.json").write_bytes((checkpoints["gaussian"] / "model.json").read_bytes())
    state = load(checkpoints["gaussian"] / "model.pt")
    state.pop("head.weight")
    save(tmp_path / "model.pt", state)

    with pytest.raises(ClientError, match="does not fit"):
        export(tmp_path, tmp_path / "bundle")
