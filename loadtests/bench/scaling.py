"""What a second process gives, with a load generator whose own cost is known: computed from the samples.

On a machine of two cores the clients take a part of what the second process could have. What an answer costs the server
and what it costs the clients are measured apart, so it can be said what the server could do with clients elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from loadtests.bench.lineup import PEERS
from loadtests.bench.peers import Sample
from loadtests.bench.results import Trial
from loadtests.figures import markdown_table, paired_ratio, three_digits

__all__ = ["busy", "limit_ratio", "scaling_section"]

Trials = Mapping[tuple[str, int], Trial]

_CASES = ("mlp-json", "mlp-oip", "mlp-grpc")
_CONNECTIONS = (8, 32)
_PROCESSES = {"penstock-one": 1, "penstock": 2, "penstock-core": 1, "penstock-core-2": 2, "floor": 1, "floor-2": 2}
"""Processes that answer; those of one core share it."""
_ONE_CORE = frozenset({"penstock-core", "penstock-core-2"})
_HEADER = ["peer", "connections", "answers/s", "server µs", "clients µs", "busy cores", "limit answers/s"]


def limit_ratio(trial: Trial, two: str, one: str) -> float | None:
    """How many times as much two processes can do as one, each with a core to itself and the clients elsewhere."""
    many, few = (trial.samples.get(PEERS[key].name, []) for key in (two, one))
    if not many or len(many) != len(few):
        return None
    return 2 * paired_ratio([s.cpu_s_per_1000 for s in few], [s.cpu_s_per_1000 for s in many])


def busy(sample: Sample) -> float:
    """Cores that server and clients used together: what is left over somebody waited, on a lock for example."""
    return sample.per_second * sample.cpu_s_per_1000 / 1000 + sample.client_cores


def scaling_section(trials: Trials) -> str:
    """Empty where nothing of it was measured."""
    parts = []
    for case in _CASES:
        rows = [
            _row(key, connections, trials[case, connections].samples[PEERS[key].name], trials[case, connections].cores)
            for connections in _CONNECTIONS
            if (case, connections) in trials
            for key in _PROCESSES
            if trials[case, connections].samples.get(PEERS[key].name)
        ]
        if rows:
            parts.append(f"{case}:\n\n{markdown_table(_HEADER, rows)}")
    return "\n".join(["## One process and two\n", _EXPLANATION, *parts]) if parts else ""


def _row(key: str, connections: int, samples: Sequence[Sample], cores: int) -> list[str]:
    server_s = median(sample.cpu_s_per_1000 for sample in samples) / 1000
    clients_s = median(sample.client_cores / sample.per_second for sample in samples)
    usable = 1 if key in _ONE_CORE else min(_PROCESSES[key], cores)
    return [
        PEERS[key].name,
        str(connections),
        three_digits(median(sample.per_second for sample in samples)),
        f"{server_s * 1e6:.1f}",
        f"{clients_s * 1e6:.1f}",
        f"{median(busy(sample) for sample in samples):.2f} of {cores}",
        three_digits(usable / server_s) if server_s else "-",
    ]


_EXPLANATION = """\
Server µs and clients µs: processor time that an answer costs the server's processes and the load generator. Limit: what
the server could answer with clients on another machine, a core to each of its processes: cores / processor time. Busy
cores: both together; where nearly all are busy, nobody waits for a lock. On one core: a server kept to the first core
while its clients keep to the others; two processes there against one show what two cost each other.
"""
