"""Batches ahead of their use: in order, alike on threads and in processes, errors as they were raised."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from trainers.job import ClientError
from trainers.vision.loader import Loader


def squared(number: int) -> Tensor:
    if number == 13:
        raise ClientError("13 is refused")
    time.sleep(0.003 * (number % 3))  # later ones are ready earlier
    return torch.tensor(number**2)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_results_come_in_the_order_of_their_requests(num_workers: int) -> None:
    loader: Loader[int, Tensor] = Loader(squared, num_workers=num_workers)

    for _ in range(2):  # processes stay for the next epoch
        assert [int(made) for made in loader.run(range(12))] == [n**2 for n in range(12)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_users_mistake_keeps_its_words(num_workers: int) -> None:
    loader: Loader[int, Tensor] = Loader(squared, num_workers=num_workers)

    with pytest.raises(ClientError, match=r"^13 is refused$"):
        list(loader.run(range(10, 20)))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_requests_are_taken_only_a_few_ahead(num_workers: int) -> None:
    taken = []

    def endless() -> Iterator[int]:
        for number in range(10**9):
            taken.append(number)
            yield number

    made = Loader(squared, num_workers=num_workers).run(endless())
    next(made)
    made.close()  # type: ignore[attr-defined]

    assert len(taken) < 20


def test_the_processes_leave_our_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    list(Loader(squared, num_workers=1).run(range(3)))

    assert torch.equal(torch.rand(1), expected)
