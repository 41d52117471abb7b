"""A trained Seq2seq as a bundle: the whole batched beam search as one graph, and encoder and decoder step apart.

The first is what the handler runs; the other two are for callers that search in ways of their own.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporters.graphs import (
    PARITY_TOLERANCE,
    ExportableGraph,
    Outputs,
    load_script,
    measure_parity,
    onnx_session,
    write_graph,
)
from formats import vocabulary
from formats.errors import InvalidBody
from formats.vocabulary import BOS, EOS, PAD, SPECIALS
from model_store.manifest import Batching, Golden, Manifest, Mode, TensorSpec
from trainers.checkpoints import load
from trainers.earlier_model import MODEL_WEIGHTS
from trainers.hyperparameter_schema import parse
from trainers.job import ClientError
from trainers.seq2seq.attention import FAR
from trainers.seq2seq.beam_search import BeamSearch
from trainers.seq2seq.hyperparameters import Hyperparameters
from trainers.seq2seq.model import Network
from trainers.seq2seq.train import VOCABULARY_FILES, max_lengths

__all__ = ["load_network", "write_bundle"]

_CONTENT_TYPES = ["application/json", "application/jsonlines", "application/x-recordio-protobuf"]
_BATCH_SIZES = (3, 1, 5)
_MOST_LOST = 0.1  # of a score, by a choice between equals on the way
_GOLDEN_LENGTH, _GOLDEN_TRIALS = 4, 20


def write_bundle(checkpoint: Path, description: dict[str, Any], directory: Path) -> Manifest:
    """Write every file of the bundle but its manifest, which is returned unsealed.

    Args:
        checkpoint: what training left in `OUTPUT/model`.
        description: its `model.json`.
        directory: an empty directory.

    Raises:
        ParityError: an exported graph answers differently from the model.
        ClientError: the weights are not of the network that the description names, or a vocabulary is missing.
    """
    wanted = parse(Hyperparameters, description["hyperparameters"])
    words = _copy_vocabularies(checkpoint, directory)
    network = load_network(checkpoint, wanted, *map(len, words))
    ratio = (description["length_ratio"]["mean"], description["length_ratio"]["standard_deviation"])
    graphs = [_translate(network, wanted, ratio), *_apart(network, wanted)]
    described = {graph.name: write_graph(directory, graph) for graph in graphs}
    parity = [case for graph in graphs for case in measure_parity(directory, graph)]
    return Manifest(
        algorithm="seq2seq",
        default_mode="translation",
        modes={
            "translation": Mode(
                graph="translate",
                placement=["cpu", "gpu"],
                content_types=_CONTENT_TYPES,
                accepts=_CONTENT_TYPES,
                batching=Batching(max_batch_size=64),
            )
        },
        graphs=described,
        golden=_write_golden(directory, network, wanted, words, ratio),
        hyperparameters=description["hyperparameters"],
        settings={
            "beam_size": min(wanted.beam_size, len(words[1])),
            "max_seq_len_source": wanted.max_seq_len_source,
            "length_ratio_mean": ratio[0],
            "length_ratio_standard_deviation": ratio[1],
        },
        metrics=description["metrics"],
        parity_tolerance=PARITY_TOLERANCE,
        parity=parity,
    )


def load_network(checkpoint: Path, wanted: Hyperparameters, num_source: int, num_target: int) -> Network:
    """The trained network in eval mode, on the CPU.

    Raises:
        ClientError: the weights are of another network.
    """
    network = Network(wanted, num_source, num_target)
    try:
        network.load_state_dict(load(checkpoint / MODEL_WEIGHTS))
    except RuntimeError as error:
        text = str(error).splitlines()[-1].strip()
        raise ClientError(f"{checkpoint / MODEL_WEIGHTS} does not fit the network of model.json: {text}") from error
    return network.eval()


class _Encoder(nn.Module):
    """(B, S) ids to what decoder steps need of them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, source: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        encoded, there = self.network.encode(source)
        decoder = self.network.decoder
        start = decoder.start(encoded, there)
        return decoder.attention.keys(encoded), decoder.attention.values(encoded), there, start


class _DecoderStep(nn.Module):
    """One more token of Q hypotheses for each of B sentences."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, token: Tensor, place: Tensor, row: Tensor, seen: Tensor, key: Tensor, value: Tensor, there: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        embedded = self.network.of_target(token)
        result, row, weight = self.network.decoder.step(embedded, row, seen, key, value, there, place)
        # ONNX loses inputs that some kinds of network have no use for
        unused = 0.0 * (place.view(-1, 1, 1) + key[:, :1, :1])
        chance = torch.log_softmax(self.network.to_word(result), dim=2) + unused
        return chance, row, seen + weight, weight


def _translate(network: Network, wanted: Hyperparameters, ratio: tuple[float, float]) -> ExportableGraph:
    samples = []
    for size in _BATCH_SIZES:
        source = _made(network, wanted, size)
        lengths = (source != 0).sum(dim=1)
        beams = torch.full((size,), min(wanted.beam_size, network.to_word.out_features))
        beams[0] = 1 if size > 1 else beams[0]
        limits = torch.from_numpy(max_lengths(lengths.numpy(), *ratio))
        penalty = torch.tensor([[1.0, 0.0]]).repeat(size, 1)
        samples.append((source, limits, beams, penalty, torch.arange(size) == 0))
    return ExportableGraph(
        name="translate",
        module=BeamSearch(network).eval(),
        inputs=[
            TensorSpec(name="source", datatype="INT64", shape=[-1, -1]),
            TensorSpec(name="max_length", datatype="INT64", shape=[-1]),
            TensorSpec(name="beam_size", datatype="INT64", shape=[-1]),
            TensorSpec(name="length_penalty", datatype="FP32", shape=[-1, 2]),
            TensorSpec(name="attention_wanted", datatype="BOOL", shape=[-1]),
        ],
        outputs=[
            TensorSpec(name="target", datatype="INT64", shape=[-1, -1]),
            TensorSpec(name="score", datatype="FP32", shape=[-1]),
            TensorSpec(name="attention", datatype="FP32", shape=[-1, -1, -1]),
        ],
        samples=samples,
        compare=partial(_stray, network),
    )


def _stray(network: Network, sample: tuple[Tensor, ...], expected: Outputs, answered: Outputs) -> float:
    """The largest difference of any score or attention.

    Rounding may decide between hypotheses that are equally good, and a model of little training has many: where another
    target is chosen, its score must be what the network itself gives that target, and no worse than the expected one's.
    """
    strays = []
    for row, source in enumerate(sample[0]):
        tokens = [answer[0][row][answer[0][row] != PAD].tolist() for answer in (expected, answered)]
        scores = [float(answer[1][row]) for answer in (expected, answered)]
        if tokens[0] == tokens[1]:
            size, width = len(tokens[0]), min(answer[2].shape[2] for answer in (expected, answered))
            looked = [answer[2][row, :size, :width].astype(np.float64) for answer in (expected, answered)]
            strays += [abs(scores[0] - scores[1]), float(np.abs(looked[0] - looked[1]).max(initial=0))]
        elif scores[1] < scores[0] - _MOST_LOST:
            strays.append(math.inf)
        else:
            own = _score_of(network, source, tokens[1], int(sample[1][row]), sample[3][row])
            strays.append(abs(scores[1] - own))
    return float(np.max(strays))  # numpy's max keeps NaN; Python's may lose it


def _score_of(network: Network, source: Tensor, tokens: list[int], limit: int, penalty: Tensor) -> float:
    """Of a target that is given, by the forward pass of training."""
    label = torch.tensor([[*tokens, EOS][:limit]])
    with torch.inference_mode():
        logit = network(source[source != PAD].unsqueeze(0), label)
        logit[:, [PAD, BOS]] = FAR
        total = torch.log_softmax(logit, dim=1).gather(1, label[0].unsqueeze(1)).sum()
    alpha, beta = penalty.tolist()
    return float(total) / float(((beta + label.size(1)) / (beta + 1)) ** alpha)


def _apart(network: Network, wanted: Hyperparameters) -> list[ExportableGraph]:
    encoder, step = _Encoder(network).eval(), _DecoderStep(network).eval()
    sources = [_made(network, wanted, size) for size in _BATCH_SIZES]
    samples = []
    for source in sources:
        with torch.inference_mode():
            key, value, there, start = encoder(source)
        num_beams = 3
        token = torch.full((len(source), num_beams), 2)
        row = start.unsqueeze(1).repeat(1, num_beams, 1)
        seen = torch.zeros(len(source), num_beams, source.size(1))
        place = torch.zeros(len(source), dtype=torch.int64)
        samples.append(tuple(each.clone() for each in (token, place, row, seen, key, value, there)))
    key_size, value_size = samples[0][4].size(2), samples[0][5].size(2)
    row_size, num_words = samples[0][2].size(2), network.to_word.out_features
    memory = [
        TensorSpec(name="key", datatype="FP32", shape=[-1, -1, key_size]),
        TensorSpec(name="value", datatype="FP32", shape=[-1, -1, value_size]),
        TensorSpec(name="there", datatype="BOOL", shape=[-1, -1]),
    ]
    return [
        ExportableGraph(
            name="encoder",
            module=encoder,
            inputs=[TensorSpec(name="source", datatype="INT64", shape=[-1, -1])],
            outputs=[*memory, TensorSpec(name="start", datatype="FP32", shape=[-1, row_size])],
            samples=[(source,) for source in sources],
        ),
        ExportableGraph(
            name="decoder_step",
            module=step,
            inputs=[
                TensorSpec(name="token", datatype="INT64", shape=[-1, -1]),
                TensorSpec(name="place", datatype="INT64", shape=[-1]),
                TensorSpec(name="row", datatype="FP32", shape=[-1, -1, row_size]),
                TensorSpec(name="seen", datatype="FP32", shape=[-1, -1, -1]),
                *memory,
            ],
            outputs=[
                TensorSpec(name="log_probability", datatype="FP32", shape=[-1, -1, num_words]),
                TensorSpec(name="next_row", datatype="FP32", shape=[-1, -1, row_size]),
                TensorSpec(name="next_seen", datatype="FP32", shape=[-1, -1, -1]),
                TensorSpec(name="attention", datatype="FP32", shape=[-1, -1, -1]),
            ],
            samples=samples,
        ),
    ]


def _made(network: Network, wanted: Hyperparameters, num_rows: int) -> Tensor:
    """Sentences of several lengths by a stated rule, the longest up to 20 tokens."""
    longest = min(wanted.max_seq_len_source, 20)
    generator = torch.Generator().manual_seed(num_rows)
    first = min(len(SPECIALS), network.of_source.num_embeddings - 1)
    ids = torch.randint(first, network.of_source.num_embeddings, (num_rows, longest), generator=generator)
    lengths = torch.linspace(longest, 1, num_rows).round() if num_rows > 1 else torch.tensor([float(longest)])
    return ids.masked_fill(torch.arange(longest) >= lengths[:, None], 0)


def _copy_vocabularies(checkpoint: Path, directory: Path) -> list[dict[str, int]]:
    found = []
    for name in VOCABULARY_FILES:
        try:
            found.append(vocabulary.read(checkpoint / name))
        except (OSError, InvalidBody) as error:
            raise ClientError(f"{checkpoint / name}: {error}; training writes it beside the weights") from error
        shutil.copyfile(checkpoint / name, directory / name)
    return found


def _write_golden(
    directory: Path,
    network: Network,
    wanted: Hyperparameters,
    words: list[dict[str, int]],
    ratio: tuple[float, float],
) -> Golden:
    """A short sentence, and its translation by the model as it was trained.

    One that all forms translate alike: where hypotheses are equally good, another machine might choose another.
    """
    source, tokens = "", vocabulary.tokens_of(words[1])
    target = ""
    known = vocabulary.tokens_of(words[0])[len(SPECIALS) :] or [SPECIALS[1]]
    forms = (
        BeamSearch(network).eval(),
        load_script(directory / "translate.pt"),
        _of_session(directory / "translate.onnx"),
        BeamSearch(copy.deepcopy(network).double()).eval(),
    )
    for number in range(_GOLDEN_TRIALS):
        length = min(_GOLDEN_LENGTH, wanted.max_seq_len_source, len(known)) if number < _GOLDEN_TRIALS // 2 else 1
        tried = [known[-1 - (number + place) % len(known)] for place in range(length)]
        given = (
            torch.tensor([vocabulary.ids_of(words[0], tried)]),
            torch.from_numpy(max_lengths(np.array([length]), *ratio)),
            torch.tensor([min(wanted.beam_size, len(words[1]))]),
            torch.tensor([[1.0, 0.0]]),
            torch.tensor([False]),
        )
        with torch.inference_mode():
            answers = [form(*given)[0][0].tolist() for form in forms]
        if all(answer == answers[0] for answer in answers):
            source, target = " ".join(tried), " ".join(tokens[token] for token in answers[0] if token)
            break
    (directory / "golden.request.json").write_text(json.dumps({"instances": [{"data": source}]}))
    (directory / "golden.json").write_text(json.dumps({"predictions": [{"target": target}]}))
    return Golden(
        request="golden.request.json",
        content_type="application/json",
        accept="application/json",
        mode="",
        response="golden.json",
        tolerance=PARITY_TOLERANCE,
    )


def _of_session(file: Path) -> Callable[..., Sequence[Any]]:
    """An ONNX graph, to be called with tensors."""
    session = onnx_session(file)
    names = [each.name for each in session.get_inputs()]
    return lambda *given: session.run(None, {name: each.numpy() for name, each in zip(names, given, strict=True)})
