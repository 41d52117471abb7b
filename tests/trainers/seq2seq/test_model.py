"""Encoders, attention and decoders: what padding and neighbours must not change, and what a step must repeat."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from formats.vocabulary import BOS
from tests.translators import make_network
from trainers.hyperparameter_schema import parse
from trainers.job import ClientError
from trainers.seq2seq.decoders import GruCell, LstmCell, RnnDecoder
from trainers.seq2seq.hyperparameters import Hyperparameters
from trainers.seq2seq.model import Network

KINDS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "gru": {"rnn_cell_type": "gru", "rnn_attention_type": "dot"},
    "deep": {"num_layers_encoder": 3, "num_layers_decoder": 3, "rnn_residual_connections": True},
    "attention of the top": {"num_layers_decoder": 2, "rnn_attention_in_upper_layers": False},
    "fixed": {"rnn_attention_type": "fixed", "rnn_decoder_state_init": "avg"},
    "bilinear": {"rnn_attention_type": "bilinear", "rnn_decoder_state_init": "zero"},
    "multihead": {"rnn_attention_type": "multihead", "rnn_attention_num_hidden": 8},
    "coverage": {"rnn_attention_type": "coverage", "rnn_attention_num_hidden": 6},
    "dot, projected": {"rnn_attention_type": "dot", "rnn_attention_num_hidden": 6},
    "cnn to rnn": {"encoder_type": "cnn", "num_layers_encoder": 2},
    "rnn to cnn": {"decoder_type": "cnn", "num_layers_decoder": 2, "cnn_kernel_width_decoder": 3},
    "cnn": {"encoder_type": "cnn", "decoder_type": "cnn", "cnn_activation_type": "softrelu"},
    "narrow cnn": {"decoder_type": "cnn", "cnn_kernel_width_decoder": 1, "cnn_kernel_width_encoder": 4},
}


def sentences(*lengths: int, seed: int = 1) -> Tensor:
    ids = torch.randint(4, 14, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(seed))
    return ids.masked_fill(torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_neighbours_change_no_probability(kind: str) -> None:
    network = make_network(**KINDS[kind])
    source, label = sentences(7, 3, 5), sentences(4, 6, 2, seed=2)
    wider = torch.cat([source, torch.zeros(3, 2, dtype=torch.int64)], dim=1)
    with torch.inference_mode():
        together = torch.log_softmax(network(wider, label), dim=1)
        alone = torch.cat([
            torch.log_softmax(network(source[[row], :width], label[[row], :length]), dim=1)
            for row, width, length in ((0, 7, 4), (1, 3, 6), (2, 5, 2))
        ])  # fmt: skip

    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_after_another_is_what_training_computes(kind: str) -> None:
    network = make_network(**KINDS[kind])
    source, label = sentences(6, 4), sentences(5, 5, seed=3)
    with torch.inference_mode():
        expected = network(source, label).view(2, 5, -1)
        encoded, there = network.encode(source)
        decoder = network.decoder
        key, value = decoder.attention.keys(encoded), decoder.attention.values(encoded)
        row, seen = decoder.start(encoded, there).unsqueeze(1), torch.zeros(2, 1, 6)
        token = torch.full((2, 1), BOS)
        for step in range(5):
            place = torch.full((2,), step)
            result, row, weight = decoder.step(network.of_target(token), row, seen, key, value, there, place)
            torch.testing.assert_close(network.to_word(result)[:, 0], expected[:, step], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(weight.sum(dim=2), torch.ones(2, 1))
            assert weight[1, 0, 4:].tolist() == [0, 0]
            seen = seen + weight
            token = label[:, step : step + 1]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("fixed", "bilinear")])
def test_gradients_reach_every_parameter(kind: str) -> None:
    """But for those that `fixed` and `zero` leave without a part."""
    network = make_network(**KINDS[kind]).train()
    label = sentences(5, 3, seed=4)
    loss = nn.functional.cross_entropy(network(sentences(6, 4), label), label[label != 0])
    loss.backward()  # type: ignore[no-untyped-call]

    unreached = [name for name, each in network.named_parameters() if each.grad is None or not each.grad.any()]
    assert unreached == []


@pytest.mark.parametrize(("kind", "num_gates"), [("lstm", 4), ("gru", 3)])
def test_cells_are_those_of_torch(kind: str, num_gates: int) -> None:
    cell = LstmCell(16) if kind == "lstm" else GruCell(16)
    reference = (nn.LSTMCell if kind == "lstm" else nn.GRUCell)(num_gates * 16, 16)
    gates, state = torch.randn(3, num_gates * 16), torch.randn(3, cell.num_states * 16)
    with torch.no_grad():
        reference.weight_ih.copy_(torch.eye(num_gates * 16))
        reference.bias_ih.zero_()
        reference.weight_hh.copy_(cell.of_state.weight)
        reference.bias_hh.copy_(cell.of_state.bias)
        found = cell(gates, state)
        if kind == "lstm":
            expected = torch.cat(reference(gates, (state[:, :16].contiguous(), state[:, 16:].contiguous())), dim=1)
        else:
            expected = reference(gates, state)

    torch.testing.assert_close(found, expected)


def test_mlp_and_coverage_differ_once_something_was_seen() -> None:
    network = make_network(rnn_attention_type="coverage")
    attention = network.decoder.attention
    encoded, there = network.encode(sentences(4))
    key, value = attention.keys(encoded), attention.values(encoded)
    query = torch.randn(1, 1, 16)
    _, fresh = attention(query, key, value, there, torch.zeros(1, 1, 4))
    _, later = attention(query, key, value, there, torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]))

    assert (fresh - later).abs().max() > 1e-3


def test_without_attention_only_the_last_source_state_is_seen() -> None:
    network = make_network(rnn_attention_type="fixed")
    encoded, there = network.encode(sentences(5, 2))
    context, weight = network.decoder.attention(torch.randn(2, 3, 16), encoded, encoded, there, torch.zeros(2, 3, 5))

    assert weight[0, 0].tolist() == [0, 0, 0, 0, 1]
    assert weight[1, 2].tolist() == [0, 1, 0, 0, 0]
    torch.testing.assert_close(context[1, 0], encoded[1, 1])


def test_first_states_are_of_the_last_token_the_mean_or_nothing() -> None:
    source = sentences(5, 2)
    for kind in ("last", "avg", "zero"):
        network = make_network(rnn_decoder_state_init=kind)
        encoded, there = network.encode(source)
        begin = encoded[1, 1] if kind == "last" else encoded[1, :2].mean(dim=0)
        assert isinstance(network.decoder, RnnDecoder)
        expected = torch.tanh(network.decoder.of_start(begin)) * (kind != "zero")

        row = network.decoder.start(encoded, there)[1]
        torch.testing.assert_close(row, torch.cat([torch.zeros(16), expected]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("factor", "size"), [("in", 12), ("out", 14), ("avg", 13)])
def test_weights_begin_within_the_bounds_of_xavier(factor: str, size: int) -> None:
    given = {"num_embed_source": 12, "weight_init_scale": "2.34", "xavier_factor_type": factor}
    network = Network(parse(Hyperparameters, given), 14, 14)

    largest = network.of_source.weight.abs().max().item()
    assert 0.8 * math.sqrt(2.34 / size) < largest <= math.sqrt(2.34 / size)
    recurrent = network.encoder.ahead.weight_hh_l0[:512]  # type: ignore[union-attr,index]
    torch.testing.assert_close(recurrent @ recurrent.T, torch.eye(512), rtol=1e-4, atol=1e-4)


def test_uniform_weights_begin_within_their_scale() -> None:
    network = make_network(weight_init_type="uniform", weight_init_scale=0.05)

    assert 0.04 < network.to_word.weight.abs().max().item() <= 0.05
    assert network.to_word.bias.abs().max().item() == 0


def test_tied_weights_are_one_table() -> None:
    network = make_network(weight_tying=True, num_embed_target=16)

    assert network.to_word.weight is network.of_target.weight


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"rnn_num_hidden": "15"}, "rnn_num_hidden: 15 must be even"),
        ({"run_num_hidden": "16"}, "did you mean 'rnn_num_hidden'?"),
        ({"rnn_attention_type": "mpl"}, "did you mean 'mlp'?"),
        ({"embed_dropout_source": "1.5"}, "embed_dropout_source must be a number from 0 to 1"),
        ({"plateau_reduce_lr_factor": "0"}, "plateau_reduce_lr_factor must be a number above 0, at most 1"),
        ({"rnn_first_residual_layer": "1"}, "rnn_first_residual_layer must be an integer of at least 2"),
        ({"rnn_attention_type": "multihead", "rnn_num_hidden": "20"}, "rnn_attention_num_heads: 8 must divide"),
        ({"weight_tying": "true"}, "weight_tying: True needs num_embed_target=512 to equal"),
        ({"cooldown": "0.5"}, "cooldown: 0.5 needs max_num_epochs or max_num_batches"),
        ({"max_num_batches": "0"}, "max_num_batches: 0 must be -1"),
    ],
)
def test_bad_hyperparameters_are_named(given: dict[str, object], text: str) -> None:
    with pytest.raises(ClientError, match=text.replace("?", r"\?").replace("(", r"\(")):
        parse(Hyperparameters, given)


def test_defaults_are_those_of_the_contract() -> None:
    found = parse(Hyperparameters, {})

    assert (found.batch_size, found.beam_size, found.learning_rate, found.rnn_num_hidden) == (64, 5, 0.0003, 1024)
    assert (found.checkpoint_frequency_num_batches, found.checkpoint_threshold, found.clip_gradient) == (1000, 3, 1.0)
    assert (found.optimized_metric, found.lr_scheduler_type, found.rnn_attention_type) == (
        "perplexity",
        "plateau_reduce",
        "mlp",
    )
    assert found.attention_num_hidden == 1024
    assert found.bleu_sample == 0
    assert parse(Hyperparameters, {"optimized_metric": "bleu"}).bleu_sample == -1
