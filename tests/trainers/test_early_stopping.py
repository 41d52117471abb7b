"""The rule of the image classification contract, section 3."""

from __future__ import annotations

import pytest

from trainers.early_stopping import EarlyStopping


def epochs_run(values: list[float], *, min_epochs: int = 1, patience: int = 2, tolerance: float = 0.0) -> int:
    rule = EarlyStopping(min_epochs=min_epochs, patience=patience, tolerance=tolerance)
    return next((n for n, value in enumerate(values, start=1) if rule.observe(value, n)), len(values))


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([0.5, 0.4, 0.4, 0.9], {}, 3),
        ([0.5, 0.4, 0.6, 0.5, 0.5, 0.9], {}, 5),
        ([0.5, 0.5, 0.5, 0.5], {}, 4),  # tolerance 0: a change of 0 is not smaller than it
        ([0.5, 0.5, 0.5, 0.5], {"tolerance": 0.01}, 3),
        ([0.50, 0.51, 0.52, 0.9], {"tolerance": 0.1}, 3),  # relative to the best: 2 % a time is too little
        ([0.50, 0.55, 0.61, 0.68], {"tolerance": 0.099}, 4),
        ([0.5, 0.4, 0.4, 0.4, 0.4, 0.4], {"min_epochs": 5}, 5),
        ([0.0, 0.0, 0.0, 0.5], {}, 3),
    ],
)
def test_a_run_stops_after_patience_epochs_without_improvement(
    values: list[float], options: dict[str, float], expected: int
) -> None:
    assert epochs_run(values, **options) == expected  # type: ignore[arg-type]
