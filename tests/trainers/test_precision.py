"""Mixed precision: what is asked for, what this device does, and that it learns as float32 does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainers.precision import Precision

CPU = torch.device("cpu")


def learnt(precision: Precision) -> tuple[nn.Module, float]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))
    data = torch.randn(64, 4)
    target = data.sum(dim=1, keepdim=True).abs()
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    for _ in range(200):
        with precision.autocast():
            answer = network(data)
        loss = nn.functional.mse_loss(answer.float(), target)
        precision.step(loss, optimizer)
    return network, loss.item()


@pytest.mark.parametrize("asked", ["float32", "float16", "bfloat16"])
def test_every_precision_learns_with_weights_of_32_bits(asked: str) -> None:
    network, loss = learnt(Precision(asked, CPU))

    assert loss == pytest.approx(learnt(Precision("float32", CPU))[1], rel=0.3, abs=0.02)
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_a_cpu_computes_float16_as_bfloat16_or_not_at_all() -> None:
    assert Precision("float16", CPU).dtype in (torch.bfloat16, None)
    assert Precision("float32", CPU).dtype is None


def test_an_update_whose_gradients_overflow_is_left_out() -> None:
    """The loss scaling of float16, forced onto the CPU: a GPU does the same."""
    precision = Precision("float32", CPU)
    precision.dtype, precision._scaler = torch.float16, torch.amp.GradScaler("cpu", init_scale=2.0**16)
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], 1.0)
    precision.step(weight.sum() * float("inf"), optimizer)
    skipped = weight.item()
    precision.step(weight.sum() * 0.5, optimizer)

    assert (skipped, weight.item()) == (1.0, 0.5)
    assert precision.state()["scale"] == 2.0**15
