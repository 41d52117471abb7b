from __future__ import annotations

import pytest

from loadtests.figures import markdown_table, paired_ratio, percentile, spread, three_digits


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.95, 95), (0.99, 99), (1.0, 100), (0.001, 1), (0.501, 51)]
)
def test_a_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected


def test_every_percentile_of_one_value_is_that_value() -> None:
    assert [percentile([7.0], share) for share in (0.01, 0.5, 1.0)] == [7.0, 7.0, 7.0]


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0.0), ([1.0], 1.1)])
def test_a_percentile_of_nothing_is_refused(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="expected at least one value"):
        percentile(values, share)


def test_a_ratio_is_taken_within_each_round() -> None:
    """The machine was ten times slower in the second round, for both: medians of each side would say 1 to 2."""
    assert paired_ratio([200, 20, 190], [100, 10, 95]) == 2


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_rounds_that_do_not_pair_have_no_ratio(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="rounds"):
        paired_ratio(ours, theirs)


def test_the_spread_is_the_range_over_the_median() -> None:
    assert spread([90, 100, 120]) == pytest.approx(0.3)
    assert spread([5.0]) == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.01234, "0.0123"), (4.567, "4.57"), (89.12, "89.1"), (12345.6, "12346"), (0, "0"), (float("nan"), "nan")],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert three_digits(value) == text


def test_a_table_is_markdown_and_lines_up() -> None:
    assert markdown_table(["who", "n"], [["us", "1"], ["them", "1000"]]) == (
        "| who  |    n |\n| ---- | ---: |\n| us   |    1 |\n| them | 1000 |\n"
    )
