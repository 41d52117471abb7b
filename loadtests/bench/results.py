"""What was measured, kept as JSON: one file per case, so that the page can be written anew from all of them."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from loadtests.bench.peers import Sample
from loadtests.figures import paired_ratio

__all__ = ["Trial", "load", "machine", "paired", "save", "versions"]


def machine() -> str:
    sizes = [int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")]
    memory = f"{sizes[0] / 2**20:.0f} GB, " if sizes else ""
    return f"{os.cpu_count()} cores, {_processor()}, {memory}{platform.system()} {platform.machine()}"


def versions() -> dict[str, str]:
    """Of what runs in this virtual environment."""
    packages = ("onnxruntime", "torchserve", "fastapi", "uvicorn", "grpcio", "httptools", "uvloop")
    return {"Python": platform.python_version(), **{name: _version(name) for name in packages}}


@dataclass
class Trial:
    """One case at one number of connections: all peers in the same rounds."""

    case: str
    connections: int
    command: str
    seconds: int
    generator: str
    """What made the load."""
    load_before: float
    """One-minute load average before anything was started."""
    run: str = ""
    """What was measured in the same rounds has the same one."""
    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M}")
    machine: str = field(default_factory=machine)
    versions: Mapping[str, str] = field(default_factory=versions)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    """By peer, in order of the rounds."""
    absent: dict[str, str] = field(default_factory=dict)
    """Peers that could not take part, or not at this number of connections, with the reason."""

    def ratio(self, ours: str, theirs: str, figure: str = "per_second") -> float | None:
        """Median over the rounds of one's figure over the other's; None where one is absent."""
        pair = [self.samples.get(name, []) for name in (ours, theirs)]
        if not all(pair):
            return None
        return paired_ratio(*([getattr(sample, figure) for sample in samples] for samples in pair))


def paired(ours: Trial, theirs: Trial, name: str, figure: str = "per_second") -> float | None:
    """As `Trial.ratio`, of one peer at two numbers of connections; None where they were not measured together."""
    many, few = ours.samples.get(name, []), theirs.samples.get(name, [])
    if not ours.run or ours.run != theirs.run or not few or len(few) != len(many):
        return None
    return paired_ratio(*([getattr(sample, figure) for sample in samples] for samples in (many, few)))


def save(directory: Path, trials: list[Trial]) -> None:
    """Each takes the place of an earlier one of the same case and number of connections."""
    directory.mkdir(parents=True, exist_ok=True)
    for case in {trial.case for trial in trials}:
        kept = {trial.connections: trial for trial in _read(directory / f"{case}.json")}
        kept |= {trial.connections: trial for trial in trials if trial.case == case}
        text = json.dumps([_rounded(asdict(kept[connections])) for connections in sorted(kept)], indent=1)
        (directory / f"{case}.json").write_text(text + "\n")


def load(directory: Path) -> dict[tuple[str, int], Trial]:
    """By case and number of connections."""
    every = (trial for path in sorted(directory.glob("*.json")) for trial in _read(path))
    return {(trial.case, trial.connections): trial for trial in every}


def _read(path: Path) -> list[Trial]:
    kept = json.loads(path.read_bytes()) if path.exists() else []
    for each in kept:
        each["samples"] = {name: [Sample(**sample) for sample in found] for name, found in each["samples"].items()}
    return [Trial(**each) for each in kept]


def _rounded(value: object) -> object:
    """Six digits: more would say nothing, and every run would change every digit."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _processor() -> str:
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
