"""What a call costs, from calls of known cost."""

import random

import pytest

from gateway.call_cost import CallCost


def learned(*sizes: int, fixed: float, each: float, hop: float = 0.0) -> CallCost:
    cost = CallCost()
    for size in sizes:
        cost.learn(size, fixed + each * size, hop)
    return cost


def test_calls_of_two_sizes_tell_the_price_of_the_call_from_that_of_its_predictions() -> None:
    cost = learned(1, 2, 4, 8, 16, 32, fixed=0.060, each=0.001)

    assert (cost.fixed, cost.each) == pytest.approx((0.060, 0.001), rel=0.02)
    assert cost.of(40) == pytest.approx(0.100, rel=0.02)


def test_until_sizes_differ_all_but_the_way_counts_as_work_that_grows() -> None:
    cost = learned(*[4] * 30, fixed=0.010, each=0.001, hop=0.006)

    assert (cost.fixed, cost.each) == pytest.approx((0.006, 0.002))


def test_sizes_that_have_been_the_same_for_long_are_no_longer_told_apart() -> None:
    """What the model cost a hundred calls ago is no reason for anything."""
    cost = learned(1, 32, fixed=0.060, each=0.001)
    for _ in range(100):
        cost.learn(4, 0.040, 0.0)

    assert (cost.fixed, cost.each) == pytest.approx((0.0, 0.010), abs=1e-6)


def test_noise_makes_neither_part_negative() -> None:
    generator = random.Random(1)
    cost = CallCost()
    for _ in range(1000):
        cost.learn(generator.choice([1, 1, 1, 2]), generator.uniform(0.001, 0.02), 0.0)

        assert cost.fixed >= -1e-12
        assert cost.each >= 0.0


def test_a_call_that_hung_says_little_about_the_next() -> None:
    cost = learned(*[4] * 30, fixed=0.001, each=0.0001, hop=0.001)

    cost.learn(4, 60.0, 59.0)

    assert cost.seconds < 2 * 0.0014
    assert cost.hop < 2 * 0.001


def test_a_lasting_change_is_followed() -> None:
    cost = learned(*[4] * 30, fixed=0.001, each=0.0)
    for _ in range(40):
        cost.learn(4, 0.5, 0.0)

    assert cost.seconds == pytest.approx(0.5, rel=0.01)


def test_as_many_share_a_call_as_fit_its_time() -> None:
    assert learned(1, 4, 8, fixed=0.062, each=0.005).fitting(0.1, waiting=100) == 12  # what its price alone is worth
    assert learned(1, 4, 8, fixed=0.018, each=0.010).fitting(0.1, waiting=100) == 8
    assert learned(1, 4, 8, fixed=0.020, each=0.010).fitting(0.1, waiting=5) == 5


def test_what_was_never_tried_is_approached_by_doubling() -> None:
    cost = learned(1, 2, fixed=0.060, each=0.001)

    assert cost.fitting(0.1, waiting=100) == 4


def test_where_all_calls_were_of_one_size_a_larger_one_is_tried() -> None:
    cost = learned(*[1] * 30, fixed=0.060, each=0.001)

    assert cost.fitting(0.1, waiting=1) == 1
    assert cost.fitting(0.1, waiting=9) == 2
