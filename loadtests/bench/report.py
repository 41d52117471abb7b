"""What was measured, as a page of Markdown."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

from loadtests.bench.lineup import BATCHING, NAIVE, PENSTOCK, PENSTOCK_TORCHSERVE, TORCHSERVE
from loadtests.bench.peers import RawLimit, Sample
from loadtests.bench.requests import NAMES
from loadtests.figures import markdown_table, paired_ratio, spread, three_digits

__all__ = ["Results", "write_report"]

CONNECTIONS = (1, 8, 32)
_RATIOS = [(PENSTOCK, TORCHSERVE), (PENSTOCK, BATCHING), (PENSTOCK, NAIVE), (PENSTOCK, RawLimit.name)]
_RATIOS += [(PENSTOCK_TORCHSERVE, TORCHSERVE), (PENSTOCK_TORCHSERVE, BATCHING)]
_TITLES = {
    "mlp": "Tiny model: 16 -> 256 -> 10, JSON of 16 numbers",
    "resnet18": "ResNet-18 at 224 x 224, a binary tensor of 602,112 bytes",
}
_HEADER = ["peer", "connections", "answers/s", "p50 ms", "p99 ms", "CPU s per 1000", "spread"]


@dataclass
class Results:
    command: str
    seconds: int
    num_workers: int
    load_before: float
    """One-minute load average before anything was started."""
    samples: dict[tuple[str, str, int], list[Sample]] = field(default_factory=dict)
    """By peer, model and connections, in order of the rounds."""
    peak_rss_bytes: Mapping[str, int] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)
    """Peers that could not take part, with the reason."""
    num_rounds: int = 0
    generators: str = ""
    """What made the load."""

    def ratio(self, ours: str, theirs: str, model: str, connections: int) -> float | None:
        """Answers per second of one over the other's; None where one is absent."""
        pair = [self.samples.get((name, model, connections)) for name in (ours, theirs)]
        if not (pair[0] and pair[1]):
            return None
        return paired_ratio(*([each.per_second for each in samples] for samples in pair if samples))


def write_report(results: Results) -> str:
    parts = [
        "# Serving speed\n",
        _preamble(results),
        "## Ratios of answers per second\n",
        _ratios(results),
        *(f"## {_TITLES[model]}\n\n{_figures(results, model)}" for model in NAMES),
        "## Memory\n",
        _memory(results),
        "## What is compared\n",
        _explanation(results),
    ]
    return "\n".join(parts)


def _preamble(results: Results) -> str:
    every = [sample.foreign_cores for samples in results.samples.values() for sample in samples]
    packages = ", ".join(f"{name} {_version(name)}" for name in ("onnxruntime", "torchserve", "fastapi", "uvicorn"))
    hardware = f"{os.cpu_count()} cores, {_processor()}, {_memory_gb():.0f} GB, {platform.system()}"
    noise = f"{median(every):.2f} cores in the median measurement and {max(every):.2f} in the worst"
    lines = [
        f"Measured on {datetime.now(UTC):%Y-%m-%d} by `{results.command}`: medians of {results.num_rounds} rounds,",
        f"{results.seconds} s for each figure, the peers taking turns within every round.",
        "",
        f"- Machine: {hardware} {platform.machine()}. Servers and clients share these cores.",
        f"- Versions: Python {platform.python_version()}, {packages}.",
        f"- Clients: {results.generators}.",
        f"- Noise: load average {results.load_before:.2f} before the start; processes of others used {noise}.",
    ]
    lines += [f"- Not measured: {name}, because {reason}" for name, reason in results.absent.items()]
    return "\n".join(lines) + "\n"


def _ratios(results: Results) -> str:
    header = ["ratio", *(f"{model} c={connections}" for model in NAMES for connections in CONNECTIONS)]
    rows = []
    for ours, theirs in _RATIOS:
        found = [results.ratio(ours, theirs, model, connections) for model in NAMES for connections in CONNECTIONS]
        if any(found):
            rows.append([f"{ours} / {theirs}", *("-" if each is None else f"{each:.2f}" for each in found)])
    note = "Each is the median over the rounds of the ratio within a round; c is the number of connections.\n"
    return f"{markdown_table(header, rows)}\n{note}"


def _figures(results: Results, model: str) -> str:
    rows = []
    for connections in CONNECTIONS:
        for (name, measured, at), samples in results.samples.items():
            if (measured, at) == (model, connections):
                rows.append([name, str(connections), *_medians(samples)])
    return markdown_table(_HEADER, rows)


def _medians(samples: Sequence[Sample]) -> list[str]:
    return [
        three_digits(median(sample.per_second for sample in samples)),
        three_digits(median(sample.p50_s for sample in samples) * 1000),
        three_digits(median(sample.p99_s for sample in samples) * 1000),
        three_digits(median(sample.cpu_s_per_1000 for sample in samples)),
        f"{spread([sample.per_second for sample in samples]):.0%}",
    ]


def _memory(results: Results) -> str:
    rows = [[name, f"{size / 2**20:.0f}"] for name, size in results.peak_rss_bytes.items()]
    note = "Sum over the process tree with both models loaded; pages that processes share count once for each.\n"
    return f"{markdown_table(['peer', 'peak RSS MiB'], rows)}\n{note}"


def _explanation(results: Results) -> str:
    return f"""\
- {PENSTOCK}: the gateway with its own workers, {results.num_workers} processes of one thread. SageMaker's protocol for
  JSON, Open Inference Protocol with binary tensors for ResNet-18.
- {PENSTOCK_TORCHSERVE}: the same gateway with a TorchServe that it starts itself behind it.
- {TORCHSERVE}: asked directly, with default settings (one worker per core and model), a handler that runs the same
  graph on ONNX Runtime, one thread per worker. {BATCHING}: the same with its own batching.
- {NAIVE}: one process, uvicorn with uvloop and httptools, orjson, ONNX Runtime's default threads.
- {RawLimit.name}: batches of one in a loop, one process for one connection and {results.num_workers} for more; nothing
  receives or sends. A server that batches can pass it.
- CPU s per 1000: processor seconds of the server's process tree per 1,000 answers. Spread: (fastest - slowest round) /
  median of answers per second. Latencies are the clients' own.
- Every answer's status is checked, and every peer's numbers are compared with torch's before and after each run.
"""


def _processor() -> str:
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def _memory_gb() -> float:
    sizes = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    return sizes[0] / 2**20 if sizes else float("nan")


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
