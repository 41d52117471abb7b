from __future__ import annotations

import pytest

from trainers.schedules import cosine, one_cycle, poly, step


def test_step_falls_when_epochs_are_done() -> None:
    assert [step(1, e, steps=(2, 3), factor=0.1) for e in (0, 1.99, 2, 3)] == pytest.approx([1, 1, 0.1, 0.01])


def test_cosine_goes_from_the_base_to_nothing() -> None:
    assert [cosine(2, e, 10) for e in (0, 5, 10, 11)] == pytest.approx([2, 1, 0, 0])


def test_one_cycle_rises_for_a_fifth_and_falls_to_nothing() -> None:
    assert [one_cycle(1, e, 10) for e in (0, 1, 2, 6, 10, 11)] == pytest.approx([0, 0.5, 1, 0.5, 0, 0])


def test_poly_falls_by_its_power() -> None:
    assert [poly(1, e, 10, power=2) for e in (0, 5, 10)] == pytest.approx([1, 0.25, 0])
