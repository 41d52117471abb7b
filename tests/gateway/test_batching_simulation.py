"""The pool and its batchers under load: the real ones, on a clock that jumps from event to event."""

from __future__ import annotations

from collections import Counter
from statistics import mean
from typing import Any

import pytest

from model_store.manifest import Batching
from tests.gateway.simulated import Client, Model, Simulation, poisson
from tests.gateway.virtual_loop import TURN_S

INSTANT = pytest.approx(0.0, abs=3 * TURN_S)


def clients(count: int, *, think_s: float, stop_at: float, **costs: Any) -> tuple[Simulation, Model, list[Client]]:
    """A simulation in which so many ask again and again, already run."""
    simulation = Simulation(**costs)
    model = simulation.model()
    # not in step from the beginning
    made = [Client(simulation, model, think_s, stop_at, start_at=0.0003 * number) for number in range(count)]
    simulation.run()
    return simulation, model, made


def lately(model: Model, since: float) -> list[float]:
    return [asked.queue_s for asked in model.asked if asked.arrived >= since]


# an idle model, and one that becomes busy


def test_an_idle_model_answers_at_once() -> None:
    """One a second, 10 ms each: nobody waits for company."""
    simulation = Simulation(call_s=0.009, each_s=0.001)
    model = simulation.model()

    simulation.ask(model, [float(number) for number in range(20)])
    simulation.run()

    assert model.seen.sizes == [1] * 20
    assert max(lately(model, 0.0)) == INSTANT


@pytest.mark.parametrize("slots", [1, 2, 4])
@pytest.mark.parametrize("per_second", [20, 200, 2000, 20_000])
def test_nobody_waits_while_a_slot_is_free_and_everybody_is_answered(slots: int, per_second: float) -> None:
    simulation = Simulation(call_s=0.004, each_s=0.0001, slots=slots)
    model = simulation.model()

    simulation.ask(model, poisson(per_second, 1.0))
    simulation.run()

    assert simulation.idle_waits == 0
    assert Counter(asked.code for asked in model.asked) == {"ok": len(model.asked)}
    assert simulation.memory.held == 0


def test_batches_grow_with_the_load_and_carry_it() -> None:
    """5 ms a call alone allows 200 a second; batches carry 40 times that, and nobody waits for three."""
    sizes, worst = [], []
    for per_second in (50, 500, 5000, 8000):
        simulation = Simulation(call_s=0.005, each_s=0.00002)
        model = simulation.model()
        simulation.ask(model, poisson(per_second, 2.0))
        simulation.run()
        sizes.append(mean(model.seen.sizes))
        worst.append(model.slowest)

    assert sizes == sorted(sizes)
    assert sizes[0] < 1.3
    assert sizes[-1] > 30
    assert max(worst) < 3 * (0.005 + 0.00002 * 64)


def test_one_slot_answers_in_the_order_of_arrival() -> None:
    simulation = Simulation(call_s=0.003, each_s=0.0005)
    model = simulation.model()

    simulation.ask(model, poisson(3000, 0.5))
    simulation.run()

    assert [name for call in simulation.backend.calls for name in call] == [asked.name for asked in model.asked]


# what a call costs, and how many may share it


@pytest.mark.parametrize(("call_s", "longest_wait_s"), [(0.060, 0.2), (0.095, 0.3), (0.150, 0.5)])
def test_a_call_that_costs_much_whatever_is_in_it_carries_many(call_s: float, longest_wait_s: float) -> None:
    """100 a second, 1 ms each: one to a call the queue would grow for ever, though each call stays within 100 ms.

    Even where a call alone takes longer than it should: another one would take as long again.
    """
    simulation = Simulation(call_s=call_s, each_s=0.001)
    model = simulation.model(limits=Batching(max_batch_size=64, max_batch_seconds=0.1))

    simulation.ask(model, poisson(100, 20.0))
    simulation.run()

    assert max(asked.seconds for asked in model.asked if asked.arrived > 2.0) < call_s + longest_wait_s
    assert mean(model.seen.sizes[10:]) > 5


def test_without_a_gain_batches_stay_within_their_time() -> None:
    """A graph that gains nothing by batching: 20 ms each, whatever the batch; 100 ms a call allows 5."""
    simulation = Simulation(call_s=0.0, each_s=0.020)
    model = simulation.model(limits=Batching(max_batch_size=64, max_batch_seconds=0.1))

    simulation.ask(model, [0.0] * 50)
    simulation.ask(model, [2.0] * 50)
    simulation.run()

    assert model.seen.sizes[0] == 50  # it knows nothing yet
    assert max(model.seen.sizes[1:]) == 5


def test_under_an_overload_without_end_batches_stay_near_their_time() -> None:
    """Calls of one size teach nothing of others: now and then one is a fifth larger, to see."""
    simulation = Simulation(call_s=0.0, each_s=0.020)
    model = simulation.model(limits=Batching(max_batch_size=64, max_batch_seconds=0.1))

    simulation.ask(model, [0.0])
    simulation.ask(model, [1.0] * 1000)
    simulation.run()

    assert max(model.seen.sizes) <= 6
    assert mean(model.seen.sizes[5:]) > 4.5


def test_a_model_that_becomes_slow_and_quick_again_is_followed() -> None:
    """For a while calls take 300 ms more; afterwards batches are as large as before."""
    simulation = Simulation(call_s=0.005, each_s=0.001)
    simulation.backend.extra_s = lambda _: 0.3 if 5.0 < simulation.loop.now < 10.0 else 0.0
    model = simulation.model(limits=Batching(max_batch_size=64, max_batch_seconds=0.1))

    simulation.ask(model, poisson(500, 20.0))
    simulation.run()

    assert max(asked.seconds for asked in model.asked if asked.arrived > 16.0) < 0.1


def test_slow_work_is_spread_over_idle_slots() -> None:
    """8 at once on 2 slots at 20 ms: both work, and the last is done after 4 of them instead of 8."""
    simulation = Simulation(call_s=0.0, each_s=0.020, slots=2)
    model = simulation.model()
    simulation.ask(model, [0.0])

    simulation.ask(model, [1.0] * 8)
    simulation.run()

    assert model.slowest == pytest.approx(0.080, abs=0.001)


# a second call beside the first


def test_quick_work_behind_a_long_way_shares_the_next_call() -> None:
    """A call takes 1 ms, nearly all of it way: two at a time would only carry half the batch each."""
    simulation = Simulation(call_s=0.001, each_s=0.000002, hop_s=0.00095, slots=2)
    model = simulation.model()

    simulation.ask(model, poisson(5000, 1.0))
    simulation.run()

    assert simulation.backend.beside < 0.05 * len(model.seen.sizes)


def test_one_slow_call_does_not_hold_up_the_others_beside_a_free_slot() -> None:
    """Where a second call rarely pays it is held back, but no longer than calls usually take."""
    simulation = Simulation(call_s=0.001, each_s=0.000002, hop_s=0.00095, slots=2)
    model = simulation.model()
    simulation.ask(model, [0.1 * number for number in range(50)])
    simulation.backend.extra_s = lambda number: 5.0 if number == 50 else 0.0

    simulation.ask(model, [6.0])
    simulation.ask(model, [6.001] * 5)
    simulation.run()

    assert [asked.seconds for asked in model.asked[51:]] == pytest.approx([0.002] * 5, abs=0.002)


def test_enough_work_for_a_second_call_is_not_held_back() -> None:
    """1 ms of way, 0.1 ms of work each: thirty that arrive beside a call are worth another at once."""
    simulation = Simulation(call_s=0.001, each_s=0.0001, hop_s=0.001, slots=2)
    model = simulation.model()
    simulation.ask(model, [0.1 * number for number in range(50)])
    simulation.ask(model, [7.0])
    for number in range(30):
        simulation.ask(model, [7.0001 + 1e-5 * number])
    simulation.run()

    assert simulation.backend.calls[51:][0] == [str(number) for number in range(51, 51 + 11)]


# deadlines


def test_a_burst_is_cut_so_that_those_with_a_budget_are_in_time() -> None:
    """40 at once, 10 ms each, 85 ms to spare: batches of 8 answer 8; one batch of 40 would answer nobody."""
    simulation = Simulation(call_s=0.0, each_s=0.010)
    model = simulation.model()
    simulation.ask(model, [0.0])  # it learns what one takes

    simulation.ask(model, [1.0] * 40, budget_s=0.085)
    simulation.run()

    assert model.seen.sizes[:2] == [1, 8]
    assert model.seen.reasons[1] == "deadline"
    assert [asked.code for asked in model.asked].count("ok") == 1 + 8


def test_who_is_in_a_hurry_goes_before_those_who_have_time() -> None:
    """Ten that may take a minute, then one that must be answered in 50 ms, at 10 ms each."""
    simulation = Simulation(call_s=0.0, each_s=0.010)
    model = simulation.model()
    simulation.ask(model, [0.0])

    simulation.ask(model, [1.0] * 10, budget_s=60.0)
    simulation.ask(model, [1.0], budget_s=0.050, names=["tight"])
    simulation.run()

    assert Counter(model.codes().values()) == {"ok": 12}


def test_hurry_does_not_starve_those_who_have_time() -> None:
    """Tight ones alone are more than can be answered; who has waited ten seconds is overtaken no more."""
    simulation = Simulation(call_s=0.0, each_s=0.010)
    model = simulation.model(limits=Batching(max_batch_size=1))

    simulation.ask(model, poisson(120, 20.0), budget_s=0.5)
    simulation.ask(model, [1.0] * 20, budget_s=60.0, names=[f"loose{number}" for number in range(20)])
    simulation.run()

    loose = [asked for asked in model.asked if asked.name.startswith("loose")]
    assert {asked.code for asked in loose} == {"ok"}
    assert max(asked.seconds for asked in loose) < 10.5


def test_a_deadline_is_kept_to_the_millisecond_waiting_or_under_way() -> None:
    simulation = Simulation(call_s=1.0, each_s=0.0)
    model = simulation.model(limits=Batching(max_batch_size=1))

    simulation.ask(model, [0.0, 0.0], budget_s=0.0333)  # one under way, one waiting
    simulation.ask(model, [0.0], budget_s=60.0)
    simulation.run()

    late = [asked for asked in model.asked if asked.code == "DeadlineExceeded"]
    assert [asked.seconds for asked in late] == pytest.approx([0.0343, 0.0343], abs=0.0011)
    assert all(asked.seconds >= 0.0333 for asked in late)


def test_requests_that_are_answered_in_time_set_no_timer_each() -> None:
    simulation = Simulation(call_s=0.001, each_s=0.0)
    model = simulation.model()

    simulation.ask(model, poisson(1000, 5.0), budget_s=60.0)
    simulation.run(until=5.0)

    assert simulation.loop.timers <= 2


# buckets and losses


def test_bodies_of_unlike_length_stay_apart_and_each_kind_keeps_its_order() -> None:
    simulation = Simulation(call_s=0.004, each_s=0.0001)
    model = simulation.model(limits=Batching(max_batch_size=64, bucket_bytes=[100]))

    times = poisson(2000, 1.0)
    for number, at in enumerate(times):
        kind = "long" if number % 3 else "short"
        simulation.ask(model, [at], body=bytes(1000 if kind == "long" else 10), names=[f"{kind}{number}"])
    simulation.run()

    kinds = [{name.rstrip("0123456789") for name in call} for call in simulation.backend.calls]
    assert all(len(kind) == 1 for kind in kinds)
    assert mean(map(len, simulation.backend.calls)) > 3
    for kind in ("long", "short"):
        sent = [name for call in simulation.backend.calls for name in call if name.startswith(kind)]
        assert sent == [asked.name for asked in model.asked if asked.name.startswith(kind)]


def test_losses_stay_with_those_who_cause_them() -> None:
    """Every fiftieth kills whatever it is in; all others are answered, and the poisonous run alone the second time."""
    simulation = Simulation(call_s=0.004, each_s=0.0001, slots=2)
    model = simulation.model()
    times = poisson(1000, 1.0)
    simulation.backend.loses = lambda names: any(name.startswith("X") for name in names)

    for number, at in enumerate(times):
        simulation.ask(model, [at], names=[f"{'X' if number % 50 == 7 else 'a'}{number}"])
    simulation.run()

    assert {name[0]: code for name, code in model.codes().items()} == {"a": "ok", "X": "BackendFailed"}
    assert simulation.memory.held == 0


# waiting for those who were just answered


SLOW_HOP: dict[str, Any] = {"call_s": 0.0006, "each_s": 0.000002, "hop_s": 0.00055}


@pytest.mark.parametrize("slots", [1, 2])
def test_one_client_alone_never_waits(slots: int) -> None:
    _, model, _ = clients(1, think_s=0.00005, stop_at=0.5, slots=slots, **SLOW_HOP)

    assert len(model.asked) > 500
    assert max(lately(model, 0.0)) == INSTANT


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("count", [2, 3, 8, 16])
def test_clients_that_come_back_at_once_share_one_call_in_turn(count: int, slots: int) -> None:
    """A call takes 0.6 ms and its clients are back after 0.1 ms: all of them fit into each."""
    _, _, made = clients(count, think_s=0.0001, stop_at=0.5, slots=slots, **SLOW_HOP)

    answers = sum(len(client.answers) for client in made)
    possible = count * 0.5 / (0.0006 + 0.0001 + count * 0.000002)
    assert answers > 0.95 * possible


def test_clients_that_come_back_one_after_the_other_are_waited_for_too() -> None:
    """Each 10 us after the one before, as one process that serves eight connections by turns."""
    simulation = Simulation(**SLOW_HOP, slots=2)
    model = simulation.model()
    made = [Client(simulation, model, 0.00003 + 0.00001 * number, 1.0) for number in range(8)]
    simulation.run()

    assert sum(len(client.answers) for client in made) > 0.9 * 8 / (0.0006 + 0.0001)
    assert Counter(model.seen.reasons).most_common(1)[0][0] == "awaited"


def test_who_does_not_come_back_is_not_waited_for_again_and_again() -> None:
    """Eight, and from half a second on one: it waits once for the others and no more."""
    simulation = Simulation(**SLOW_HOP)
    model = simulation.model()
    for number in range(8):
        Client(simulation, model, 0.0001, 1.0 if number == 0 else 0.5)
    simulation.run()

    waits = lately(model, 0.502)
    assert len(waits) > 500
    assert max(waits) == INSTANT


@pytest.mark.parametrize("load", [0.02, 0.1, 0.3])
def test_requests_that_know_nothing_of_each_other_are_hardly_held_up(load: float) -> None:
    """Against the same arrivals at a batcher that waits for nobody: less than 2 % of a call on the mean."""
    waits = {}
    for waiting in (True, False):
        simulation = Simulation(**SLOW_HOP)
        model = simulation.model()
        if not waiting:
            model.batcher._await = lambda *_: None  # type: ignore[method-assign]
        simulation.ask(model, poisson(load / 0.0006, 4.0 / load * 0.5))
        simulation.run()
        waits[waiting] = mean(asked.seconds for asked in model.asked)

    assert waits[True] - waits[False] < 0.02 * 0.0006


def test_a_crowd_that_knows_nothing_of_each_other_is_not_taken_for_clients_that_come_back() -> None:
    """Some six arrive during each call, a quarter of them within a quarter of it: that is chance."""
    simulation = Simulation(**SLOW_HOP)
    model = simulation.model()

    simulation.ask(model, poisson(10_000, 1.0))
    simulation.run()

    assert model.seen.reasons.count("awaited") < 0.02 * len(model.seen.reasons)


def test_the_first_after_a_pause_goes_at_once() -> None:
    """Eight clients in step make it wait for company; a burst's first request half a second later has none to await."""
    simulation, model, _ = clients(8, think_s=0.0001, stop_at=1.0, **SLOW_HOP)

    simulation.ask(model, [1.5], names=["first"])
    simulation.run()

    assert model.asked[-1].queue_s == INSTANT


def test_no_deadline_is_missed_by_waiting_for_others() -> None:
    """Clients in step are expected 0.1 ms after a call; what comes before them has just the time for its own."""
    simulation = Simulation(**SLOW_HOP)
    model = simulation.model()
    for _ in range(8):
        Client(simulation, model, 0.0001, 1.0)
    simulation.run(until=0.5)
    while simulation.pool.in_flight:
        simulation.run(until=simulation.loop.now + TURN_S)

    budget_s = 0.0006 + 9 * 0.000002 + 0.00005
    simulation.submit(model, "tight", budget_s=budget_s)
    simulation.run()

    (tight,) = (asked for asked in model.asked if asked.name == "tight")
    assert tight.code == "ok"
    assert tight.seconds <= budget_s


@pytest.mark.parametrize("call_s", [0.00005, 0.00015])
def test_quick_calls_wait_for_nobody(call_s: float) -> None:
    _, model, _ = clients(8, think_s=0.00002, stop_at=0.5, call_s=call_s, each_s=0.000002, hop_s=call_s)

    assert set(model.seen.reasons) == {"idle"}


def test_a_call_that_takes_long_for_its_work_alone_waits_for_nobody() -> None:
    """10 ms each and no price for the call itself: there is nothing to gain."""
    simulation, model, _ = clients(4, think_s=0.0001, stop_at=2.0, call_s=0.0001, each_s=0.010, hop_s=0.0001)

    assert "awaited" not in model.seen.reasons
    assert simulation.idle_waits == 0


# several models


def test_two_models_on_one_pool_take_turns() -> None:
    """Both have more waiting than one call takes; each gets every second call, whatever the other holds."""
    simulation = Simulation(call_s=0.001, each_s=0.0001)
    busy, modest = simulation.model(limits=Batching(max_batch_size=4)), simulation.model()
    simulation.ask(busy, [0.0] * 400, names=[f"busy{number}" for number in range(400)])
    simulation.ask(modest, poisson(200, 0.1), names=[f"modest{number}" for number in range(100)])
    simulation.run()

    assert modest.slowest < 3 * 0.0015


def test_what_one_model_waits_for_another_does_not() -> None:
    """While one waits for its clients, the other takes the slot."""
    simulation = Simulation(**SLOW_HOP)
    first, second = simulation.model(), simulation.model()
    for model in (first, second):
        for _ in range(4):
            Client(simulation, model, 0.0001, 1.0)
    simulation.run()

    shares = [len(model.asked) for model in (first, second)]
    assert min(shares) > 0.9 * max(shares)
    assert sum(shares) > 0.9 * 4 / 0.00061


# what may wait


def test_bodies_that_wait_are_bounded_in_bytes_over_all_models() -> None:
    simulation = Simulation(call_s=1.0, each_s=0.0)
    simulation.memory.limit = 1000
    first, second = simulation.model(), simulation.model()

    simulation.ask(first, [0.0] * 6, body=bytes(100))
    simulation.ask(second, [0.1] * 6, body=bytes(100))
    simulation.ask(second, [3.0] * 6, body=bytes(100))
    simulation.run()

    assert [asked.code for asked in first.asked] == ["ok"] * 6
    assert [asked.code for asked in second.asked] == ["ok"] * 4 + ["Overloaded"] * 2 + ["ok"] * 6
    assert simulation.memory.held == 0
