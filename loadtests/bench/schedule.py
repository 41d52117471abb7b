"""Who is measured when, and about how long that takes: the whole table has to end in bounded time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtests.bench.cases import MANY, Case
from loadtests.bench.lineup import Contestant, contestants
from loadtests.bench.load import Generator

__all__ = ["Plan", "expected_s", "numbers_of", "warm_up_s", "who"]

_SLOWER = 3
"""Times as long is warmed up what compiles while it runs."""


@dataclass(frozen=True)
class Plan:
    command: str
    peers: list[str]
    """Keys; those that take part unasked, if none is named."""
    num_rounds: int
    seconds: int
    """Of each measurement."""
    warm_up_s: int
    """Of each peer, before the first round."""
    limit_s: float
    """No round of a case begins that might end after this."""
    load_before: float
    connections: Sequence[int] = ()
    """Of each case its own, if none are named."""
    generator: Generator = "auto"


def numbers_of(plan: Plan, case: Case) -> list[int]:
    """Beyond the usual numbers of connections, the tiny model as JSON alone."""
    return [c for c in plan.connections or case.connections if c != MANY or MANY in case.connections]


def who(plan: Plan, lineup: Sequence[Contestant], connections: int) -> list[str]:
    """Names; whoever is not usually there at so many takes part where these are named."""
    named = bool(plan.connections) and connections < MANY
    return [each.name for each in lineup if named or connections in each.connections]


def warm_up_s(plan: Plan, contestant: Contestant) -> int:
    return plan.warm_up_s * (_SLOWER if contestant.warms_slowly else 1)


def expected_s(plan: Plan, case: Case) -> float:
    """What the case may take on two cores, by what parts of it took there."""
    lineup = contestants(case, plan.peers)
    making = 30.0 if case.model == "classifier" else 10.0
    starting = sum(8.0 if each.warms_slowly else 3.0 for each in lineup)
    warming = sum(warm_up_s(plan, each) + 2 * _VERIFIED_S for each in lineup)
    a_round = sum(
        len(who(plan, lineup, c))
        * (plan.seconds + _BETWEEN_S + (0 if c <= case.quick_up_to else _SLOW_S[case.model] * c))
        for c in numbers_of(plan, case)
    )
    return making + starting + warming + plan.num_rounds * a_round


_BETWEEN_S = 0.3
"""A load generator's start, and the reading of processor time and memory."""
_VERIFIED_S = 0.5
_SLOW_S = {"mlp": 0.0, "mean": 0.008, "classifier": 0.012, "resnet18": 0.02}
"""For each connection: its last answer is waited for."""
