"""Encoders and what compares their encodings."""

from __future__ import annotations

import pytest
import torch

from tests.pair_models import SMALL
from trainers.hyperparameter_schema import parse
from trainers.object2vec.hyperparameters import Hyperparameters
from trainers.object2vec.model import Comparator, Network, SideEncoder, Sizes

NETWORKS = ("hcnn", "bilstm", "pooled_embedding")


def network_of(**changed: object) -> Network:
    torch.manual_seed(0)
    return Network(Sizes.of(parse(Hyperparameters, SMALL | changed)))


def test_comparators_stand_side_by_side_in_the_order_given() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 5.0]])

    assert Comparator(("abs_diff", "concat", "hadamard"))(a, b).tolist() == [[2, 3, 1, 2, 3, 5, 3, 10]]
    assert Comparator(("hadamard", "concat", "abs_diff")).factor == 4


@pytest.mark.parametrize("network", NETWORKS)
def test_padding_changes_no_encoding(network: str) -> None:
    encoder = SideEncoder(network_of(enc0_network=network, enc0_layers=2), 0)
    alone = encoder(torch.tensor([[5, 7, 11]]))
    padded = encoder(torch.tensor([[5, 7, 11, -1, -1], [1, 2, 3, 4, 5], [-1] * 5]))

    assert padded[0].detach() == pytest.approx(alone[0].detach(), abs=1e-6)
    assert padded.isfinite().all()


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_reach_every_weight(network: str) -> None:
    made = network_of(enc0_network=network, enc0_layers=2, mlp_layers=2)
    made(torch.randint(0, 20, (16, 8)), torch.randint(0, 20, (16, 8))).square().sum().backward()

    assert [name for name, each in made.named_parameters() if each.grad is None or not each.grad.any()] == []


def test_a_bilstm_reads_from_both_ends() -> None:
    encoder = SideEncoder(network_of(enc0_network="bilstm"), 0)
    forwards, backwards = encoder(torch.tensor([[5, 7, 11], [11, 7, 5]]))

    assert not torch.allclose(forwards, backwards)


def test_the_layers_of_an_hcnn_share_its_length_among_them() -> None:
    made = network_of(enc0_network="hcnn", enc_dim=10, enc0_layers=4)

    assert [layer.out_channels for layer in made.body.encoder0.layers] == [3, 3, 2, 2]  # type: ignore[union-attr]


def test_copied_encoders_learn_apart_and_tied_ones_together() -> None:
    apart, tables, both = network_of(), network_of(tied_token_embedding_weight=True), network_of(
        tied_encoder_weight=True
    )  # fmt: skip

    assert (len(apart.tables), len(tables.tables), len(both.tables)) == (2, 1, 1)
    assert apart.body.encoder0 is not apart.body.encoder1
    assert tables.body.encoder0 is not tables.body.encoder1
    assert both.body.encoder0 is both.body.encoder1
