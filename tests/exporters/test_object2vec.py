"""Three graphs of one model, and the same answers in every form."""

from __future__ import annotations

import json
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exporters.export import export
from exporters.graphs import PARITY_TOLERANCE, load_script, onnx_session
from handlers.algorithms import load_handler
from handlers.graph import Engine, Runtime
from model_store.golden import check_golden, golden_prediction
from model_store.store import Bundle
from tests.pair_models import write_checkpoint
from trainers.checkpoints import load, save
from trainers.job import ClientError

pytestmark = pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")

KINDS: dict[str, dict[str, Any]] = {
    "hcnn": {"enc0_network": "hcnn"},
    "wide-hcnn": {"enc0_network": "hcnn", "enc0_cnn_filter_width": 4, "enc0_layers": 2, "comparator_list": "abs_diff"},
    "bilstm": {"enc0_network": "bilstm", "enc0_layers": 2, "enc_dim": 9},
    "pooled": {"enc0_network": "pooled_embedding", "output_layer": "mean_squared_error"},
    "tied": {"enc0_network": "bilstm", "tied_encoder_weight": True},
    "mixed": {
        "enc0_network": "pooled_embedding", "enc1_network": "hcnn", "enc1_max_seq_len": 5, "enc1_vocab_size": 30,
        "enc_dim": 6, "mlp_layers": 0,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    directory = tmp_path_factory.mktemp("pairs")
    return {
        name: Bundle.open(export(write_checkpoint(directory / name, **given), directory / f"{name}-bundle"))
        for name, given in KINDS.items()
    }


@pytest.mark.parametrize("name", KINDS)
def test_three_graphs_agree_in_all_forms_at_several_sizes(bundles: dict[str, Bundle], name: str) -> None:
    bundles[name].verify()
    manifest = bundles[name].manifest

    assert set(manifest.graphs) == {"pair", "encoder0", "encoder1"}
    assert {case.batch_size for case in manifest.parity if case.graph == "pair"} == {1, 2, 5}
    assert max(max(c.torchscript_max_abs_error, c.onnx_max_abs_error) for c in manifest.parity) <= PARITY_TOLERANCE


def test_modes_say_where_scores_and_embeddings_are_made(bundles: dict[str, Bundle]) -> None:
    classes, values = bundles["hcnn"].manifest, bundles["pooled"].manifest

    assert classes.default_mode == "classification"
    assert values.default_mode == "regression"
    assert classes.modes["classification"].placement == ["cpu"]
    assert classes.modes["embedding"].placement == ["gpu", "cpu"]
    assert {mode.graph for mode in classes.modes.values()} == {"pair", "encoder0", "encoder1"}
    assert values.graphs["pair"].outputs[0].shape == [-1, 1]
    assert classes.graphs["encoder0"].outputs[0].shape == [-1, 10]
    assert values.graphs["encoder0"].outputs[0].shape == [-1, 6]


def test_short_requests_are_not_padded_to_long_ones(bundles: dict[str, Bundle]) -> None:
    """6, 30 and 150 tokens on each side, as JSON."""
    sizes = [len(json.dumps({"instances": [{"in0": [1000] * n, "in1": [1000] * n}]})) for n in (6, 30, 150)]

    for mode in bundles["hcnn"].manifest.modes.values():
        assert len({bisect_left(mode.batching.bucket_bytes, size) for size in sizes}) == 3


@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
@pytest.mark.parametrize("name", KINDS)
def test_the_golden_request_is_reproduced(bundles: dict[str, Bundle], name: str, engine: Engine) -> None:
    prediction = golden_prediction(bundles[name])
    assert prediction is not None
    (outcome,) = load_handler(bundles[name], Runtime(engine=engine)).predict([prediction])

    check_golden(bundles[name], outcome)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("form", ["onnx", "torchscript"])
def test_neither_padding_nor_neighbours_change_an_embedding(bundles: dict[str, Bundle], name: str, form: str) -> None:
    path = bundles[name].path
    session, script = onnx_session(path / "encoder0.onnx"), load_script(path / "encoder0.pt")

    def run(ids: Any) -> Any:
        return session.run(None, {"in0": ids})[0] if form == "onnx" else script(torch.from_numpy(ids)).numpy()

    alone = run(np.array([[3, 1, 4]]))
    padded = run(np.array([[3, 1, 4, -1, -1, -1]]))
    together = run(np.array([[9, 2, 6, 5, 3, 5], [3, 1, 4, -1, -1, -1], [-1] * 6, [7, -1, -1, -1, -1, -1]]))

    assert padded == pytest.approx(alone, abs=1e-6)
    assert together[1:2] == pytest.approx(alone, abs=1e-6)
    assert np.isfinite(together).all()


def test_a_tied_encoder_gives_both_sides_the_same_embedding(bundles: dict[str, Bundle]) -> None:
    ids = np.array([[3, 1, 4], [2, 0, -1]])
    found = [
        onnx_session(bundles["tied"].path / f"encoder{side}.onnx").run(None, {f"in{side}": ids})[0] for side in (0, 1)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_ids_beyond_the_vocabulary_read_as_padding_in_the_graph(bundles: dict[str, Bundle]) -> None:
    session = onnx_session(bundles["pooled"].path / "encoder0.onnx")
    known, strange = (session.run(None, {"in0": np.array([row])})[0] for row in ([3, -1], [3, 10**9]))

    assert strange.tolist() == known.tolist()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    state = load(checkpoint / "model.pt")
    state.pop("body.mlp.0.weight")
    save(checkpoint / "model.pt", state)

    with pytest.raises(ClientError, match="does not fit"):
        export(checkpoint, tmp_path / "bundle")
    assert json.loads((checkpoint / "model.json").read_text())["algorithm"] == "object2vec"
