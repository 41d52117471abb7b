"""A translator's bundle: the same translations in every form, whatever it is made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from exporters.export import export
from exporters.graphs import PARITY_TOLERANCE, load_script
from exporters.seq2seq import _score_of, _stray
from formats import vocabulary
from formats.vocabulary import BOS
from handlers.algorithms import load_handler
from handlers.graph import Engine, Runtime
from model_store.golden import check_golden, golden_prediction
from model_store.store import Bundle
from tests.trainers.seq2seq.test_beam_search import plain_beam_search
from tests.trainers.seq2seq.test_model import KINDS, sentences
from tests.translators import make_network, write_checkpoint
from trainers.checkpoints import load, save
from trainers.job import ClientError
from trainers.seq2seq.beam_search import BeamSearch

pytestmark = [pytest.mark.filterwarnings(r"ignore:.*torch\.jit\..* is deprecated:DeprecationWarning")]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    directory = tmp_path_factory.mktemp("translators")
    return {
        kind: Bundle.open(export(write_checkpoint(directory / f"{kind} model", **given), directory / kind))
        for kind, given in KINDS.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_bundle_says_what_serving_needs_and_its_forms_agree(bundles: dict[str, Bundle], kind: str) -> None:
    bundles[kind].verify()
    manifest = bundles[kind].manifest

    assert set(manifest.graphs) == {"translate", "encoder", "decoder_step"}
    assert manifest.modes["translation"].graph == "translate"
    assert manifest.settings["beam_size"] == 5
    assert len(manifest.parity) == 9
    assert max(max(c.torchscript_max_abs_error, c.onnx_max_abs_error) for c in manifest.parity) <= PARITY_TOLERANCE
    assert len(vocabulary.read(bundles[kind].path / "vocab.trg.json")) == 14


@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "cnn"])
def test_the_golden_request_is_reproduced(bundles: dict[str, Bundle], kind: str, engine: Engine) -> None:
    handler = load_handler(bundles[kind], Runtime(engine=engine))
    prediction = golden_prediction(bundles[kind])
    assert prediction is not None
    (outcome,) = handler.predict([prediction])

    check_golden(bundles[kind], outcome)


@pytest.mark.parametrize("engine", ["onnx", "torchscript"])
@pytest.mark.parametrize("kind", ["lstm", "deep", "coverage", "rnn to cnn"])
def test_graphs_translate_as_a_plain_search_does(bundles: dict[str, Bundle], kind: str, engine: Engine) -> None:
    network = make_network(**KINDS[kind])
    file = bundles[kind].path / f"translate.{'onnx' if engine == 'onnx' else 'pt'}"
    session = ort.InferenceSession(str(file)) if engine == "onnx" else None
    lengths = [6, 1, 4, 9]
    given = [sentences(*lengths, seed=5), torch.tensor([7, 3, 5, 11]), torch.tensor([3, 5, 1, 2]),
             torch.tensor([[1.0, 0.0]] * 4), torch.tensor([False] * 4)]  # fmt: skip
    names = ["source", "max_length", "beam_size", "length_penalty", "attention_wanted"]
    if session is not None:
        target, score, _ = session.run(None, {name: each.numpy() for name, each in zip(names, given, strict=True)})
    else:
        with torch.inference_mode():
            target, score, _ = (each.numpy() for each in load_script(file)(*given))

    for row, length in enumerate(lengths):
        with torch.inference_mode():
            tokens, best = plain_beam_search(
                network, given[0][row, :length].tolist(), int(given[1][row]), int(given[2][row]), 1.0, 0.0
            )
        assert [token for token in target[row].tolist() if token] == tokens
        assert score[row] == pytest.approx(best, abs=1e-4)


@pytest.mark.parametrize("kind", ["lstm", "cnn"])
def test_encoder_and_step_are_enough_for_a_greedy_search(bundles: dict[str, Bundle], kind: str) -> None:
    bundle = bundles[kind]
    encoder, step = (ort.InferenceSession(str(bundle.path / f"{name}.onnx")) for name in ("encoder", "decoder_step"))
    source = sentences(5, 3, seed=8)
    key, value, there, start = encoder.run(None, {"source": source.numpy()})
    row, seen, token = start[:, None], np.zeros((2, 1, 5), np.float32), np.full((2, 1), BOS, np.int64)
    said = []
    for place in range(4):
        feed = {"token": token, "place": np.full(2, place), "row": row, "seen": seen}
        chance, row, seen, _ = step.run(None, feed | {"key": key, "value": value, "there": there})
        chance[:, :, [0, 2]] = -np.inf
        token = chance.argmax(axis=2)
        said.append(token[:, 0])

    network = make_network(**KINDS[kind])
    for row_number, length in enumerate((5, 3)):
        with torch.inference_mode():
            tokens, _ = plain_beam_search(network, source[row_number, :length].tolist(), 4, 1, 1.0, 0.0)
        greedy = [int(each[row_number]) for each in said]
        assert (greedy[: greedy.index(3)] if 3 in greedy else greedy) == tokens


def test_weights_of_another_network_and_missing_vocabularies_are_refused(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "model")
    weights = load(checkpoint / "model.pt")
    save(checkpoint / "model.pt", weights | {"to_word.weight": weights["to_word.weight"][:-1]})
    with pytest.raises(ClientError, match=r"does not fit the network of model.json: .*to_word.weight"):
        export(checkpoint, tmp_path / "bundle")
    (checkpoint / "vocab.trg.json").unlink()
    with pytest.raises(ClientError, match=r"vocab\.trg\.json"):
        export(checkpoint, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_the_golden_request_is_a_sentence_of_the_vocabulary(bundles: dict[str, Bundle]) -> None:
    request = json.loads((bundles["lstm"].path / "golden.request.json").read_text())

    assert request == {"instances": [{"data": "jay ibis hen gnu"}]}


def test_a_choice_between_equals_is_no_error_and_a_wrong_score_is() -> None:
    network = make_network()
    source, limit, penalty = sentences(4), torch.tensor([5]), torch.tensor([[1.0, 0.0]])
    sample = (source, limit, torch.tensor([3]), penalty, torch.tensor([False]))
    with torch.inference_mode():
        expected = [each.numpy() for each in BeamSearch(network)(*sample)]
    other = [4, 5]
    own = _score_of(network, source[0], other, 5, penalty[0])
    near = np.array([own], np.float32)
    target = np.array([[*other, 0]], np.int64)

    assert _stray(network, sample, expected, expected) == 0
    assert _stray(network, sample, [target, near, expected[2]], [expected[0], near + 0.01, expected[2]]) > 1e-3
    assert _stray(network, sample, [expected[0], near, expected[2]], [target, near, expected[2]]) < 1e-5
    assert _stray(network, sample, [expected[0], near, expected[2]], [target, near + 0.01, expected[2]]) > 1e-3
    assert _stray(network, sample, [expected[0], near + 1, expected[2]], [target, near, expected[2]]) == np.inf
