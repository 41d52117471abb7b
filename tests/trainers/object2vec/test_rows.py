"""Tables updated row by row go where ordinary optimizers take them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from trainers.object2vec.rows import RowOptimizer

ORDINARY: dict[str, Any] = {"adam": torch.optim.Adam, "adagrad": torch.optim.Adagrad, "sgd": torch.optim.SGD}


def gradient_of(row_RD: Tensor, target_RD: Tensor) -> Tensor:
    """Of half the squared distance."""
    return row_RD - target_RD


@pytest.mark.parametrize("kind", ORDINARY)
def test_rows_that_are_seldom_read_are_where_an_ordinary_optimizer_leaves_them(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    table, target = (torch.randn(40, 4, generator=generator) for _ in range(2))
    ordinary = table.clone().requires_grad_()
    optimizer, rows = ORDINARY[kind]([ordinary], lr=0.01), RowOptimizer(table, kind, 0.01)
    for _ in range(300):
        # a few rows are read often, most of them seldom
        row_R = torch.unique((torch.rand(5, generator=generator) ** 3 * 40).long())
        gradient = gradient_of(ordinary.detach()[row_R], target[row_R])
        ordinary.grad = torch.zeros_like(ordinary).index_copy_(0, row_R, gradient)
        optimizer.step()
        rows.catch_up(row_R)
        rows.step(row_R, gradient_of(table[row_R], target[row_R]))

    rows.settle()
    assert table == pytest.approx(ordinary.detach(), abs=2e-5)


def test_weight_decay_counts_for_the_rows_of_a_step_alone() -> None:
    table = torch.ones(3, 2)
    rows = RowOptimizer(table, "sgd", 0.1, weight_decay=0.5)
    rows.step(torch.tensor([1]), torch.zeros(1, 2))

    assert table.tolist() == [[1, 1], [pytest.approx(0.95)] * 2, [1, 1]]


def test_a_restored_optimizer_goes_on_as_the_first_would_have() -> None:
    tables = [torch.ones(6, 2), torch.ones(6, 2)]
    first, second = (RowOptimizer(table, "adam", 0.1) for table in tables)
    for optimizer in (first, first, second):
        optimizer.step(torch.tensor([0, 2]), torch.full((2, 2), 0.3))
    second.load_state(first.state())
    tables[1].copy_(tables[0])
    for optimizer in (first, second):
        optimizer.settle()
        optimizer.step(torch.tensor([2, 5]), torch.full((2, 2), -0.7))

    assert tables[0].tolist() == tables[1].tolist()


def test_gradients_near_eps_lead_where_adam_leads_too() -> None:
    random = torch.Generator().manual_seed(1)
    theirs = torch.nn.Parameter(torch.zeros(200, 4, dtype=torch.float64))
    adam = torch.optim.Adam([theirs], lr=0.01)
    table = torch.zeros(200, 4)
    rows = RowOptimizer(table, "adam", 0.01)
    for _ in range(300):
        row = torch.randperm(200, generator=random)[:4]
        gradient = 1e-5 * torch.randn(4, 4, generator=random)
        theirs.grad = torch.zeros_like(theirs)
        theirs.grad[row] = gradient.double()
        adam.step()
        rows.catch_up(row)
        rows.step(row, gradient)
    rows.settle()

    # they have gone as far as 0.5
    assert float((table - theirs).detach().abs().max()) < 2e-4
