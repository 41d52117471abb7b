"""The page of all that is kept in `docs/benchmarks/serving/`, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

from loadtests.bench.bars import bars_table
from loadtests.bench.cases import CASES
from loadtests.bench.lineup import PEERS
from loadtests.bench.peers import Sample
from loadtests.bench.results import Trial
from loadtests.bench.scaling import scaling_section
from loadtests.figures import markdown_table, spread, three_digits

__all__ = ["tables", "write_report"]

Trials = Mapping[tuple[str, int], Trial]

_HEADER = ["peer", "connections", "answers/s", "p50 ms", "p99 ms", "CPU s per 1000", "client cores", "MiB", "spread"]


def write_report(trials: Trials, notes: Path | None = None) -> str:
    """Args: notes: Markdown written by hand that goes between the bars and the figures, if there is such a file."""
    parts = ["# Serving speed\n", _preamble(trials), "## Expected and found\n", bars_table(trials), _PAIRED]
    if notes is not None and notes.exists():
        parts.append(notes.read_text())
    if scaling := scaling_section(trials):
        parts.append(scaling)
    return "\n".join([*parts, *tables(trials), "## What is compared\n", _explanation()])


def tables(trials: Trials) -> Iterator[str]:
    """A section for each case."""
    for case in CASES.values():
        found = [trial for (name, _), trial in sorted(trials.items()) if name == case.name and trial.samples]
        if not found:
            continue
        rows = [
            [peer.name, str(trial.connections), *_medians(samples)]
            for trial in found
            for peer in PEERS.values()
            if (samples := trial.samples.get(peer.name))
        ]
        yield f"## {case.title} ({case.name})\n\n{markdown_table(_HEADER, rows)}\n{_circumstances(found)}"


def _preamble(trials: Trials) -> str:
    newest = max(trials.values(), key=lambda trial: trial.date)
    packages = ", ".join(f"{name} {version}" for name, version in newest.versions.items())
    return f"""\
Written by `python -m loadtests.bench report` from the samples in `docs/benchmarks/serving/`; newest of {newest.date}.

- Machine: {newest.machine}. Servers and clients share these cores.
- Versions: {packages}; of the others, `loadtests/bench/servers/requirements-*.txt`.
- All peers of a case take turns within every round; figures are medians over the rounds. c: number of connections.
"""


_PAIRED = "A ratio is the median over the rounds of the ratio within a round.\n"


def _circumstances(found: Sequence[Trial]) -> str:
    lines = []
    for trial in found:
        num_rounds = max((len(samples) for samples in trial.samples.values()), default=0)
        noise = median(sample.foreign_cores for samples in trial.samples.values() for sample in samples)
        lines.append(
            f"- c={trial.connections}: {trial.date}, {num_rounds} rounds of {trial.seconds} s, clients: "
            f"{trial.generator}; load average {trial.load_before:.2f} before, others used {noise:.2f} cores."
        )
    absent: dict[tuple[str, str], list[str]] = {}
    for trial in found:
        for name, reason in trial.absent.items():
            absent.setdefault((name, reason), []).append(str(trial.connections))
    lines += [f"- Not measured at c={', '.join(at)}: {name}, because {why}" for (name, why), at in absent.items()]
    return "\n".join(lines) + "\n"


def _medians(samples: Sequence[Sample]) -> list[str]:
    return [
        three_digits(median(sample.per_second for sample in samples)),
        three_digits(median(sample.p50_s for sample in samples) * 1000),
        three_digits(median(sample.p99_s for sample in samples) * 1000),
        three_digits(median(sample.cpu_s_per_1000 for sample in samples)),
        f"{median(sample.client_cores for sample in samples):.2f}",
        f"{max(sample.memory_bytes for sample in samples) / 2**20:.0f}",
        f"{spread([sample.per_second for sample in samples]):.0%}",
    ]


def _explanation() -> str:
    return "\n".join([*(f"- {peer.name}: {peer.explanation}" for peer in PEERS.values()), _FIGURES])


_FIGURES = """\
- JSON is each server's own: SageMaker's protocol for Penstock, TorchServe's for TorchServe, `{"x": ...}` for the bare
  ones, Open Inference Protocol for MLServer and Triton, which know no other.
- gRPC is ModelInfer with raw contents, for TorchServe its own Predictions with the tensor's bytes.
- CPU s per 1000: processor seconds of the server's process tree per 1,000 answers. Client cores: what the load
  generator used. MiB: largest memory of the server's process tree, what processes share counted once. Spread:
  (fastest - slowest round) / median of answers per second. Latencies are the clients' own.
- Every answer's status is checked. Before and after the rounds each peer gets 32 different requests at once, twice, and
  every answer is compared with torch's to its own request. Bodies take turns in what is measured too, for every peer of
  a case the same: 8 of them, but one for h2load, which knows no more, and where wrk sends large ones.
"""
