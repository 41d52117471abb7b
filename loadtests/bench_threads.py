"""Two workers beside each other: threads inside an operator, spinning, and being bound to processors.

    python -m loadtests.bench_threads [--model resnet18] [--rounds 3] [--seconds 2] [--keep DIR]

Each case starts two processes that run the benchmark's graph on ONNX Runtime in a loop, one image at a time, with
sessions made as a gateway's worker makes them (`handlers.graph`) but for what the case changes. Both work at once, then
one while the other waits: what helps one alone may cost two. The cases take turns within a round; figures are medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from loadtests.bench.raw import measure
from loadtests.figures import markdown_table, three_digits

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parent.parent
_NUM_WORKERS = 2
_HEADER = ("threads, spinning, bound", "both: rows/s", "p50 ms", "p99 ms", "CPU ms/row", "one: rows/s", "p50 ms")


class _Case(NamedTuple):
    threads: int
    spinning: bool
    bound: bool

    def __str__(self) -> str:
        return f"{self.threads}, {'on' if self.spinning else 'off'}, {'yes' if self.bound else 'no'}"

    def cpus(self, worker: int) -> list[int]:
        """As `gateway.settings.PoolSettings.cpus_of` deals them out; empty where workers are free."""
        there = sorted(os.sched_getaffinity(0))
        turn = range(worker * self.threads, (worker + 1) * self.threads)
        return [there[each % len(there)] for each in turn] if self.bound else []


# one thread has nobody to spin
_CASES = [_Case(1, False, bound) for bound in (False, True)] + [
    _Case(2, spinning, bound) for spinning in (False, True) for bound in (False, True)
]


class _Worker:
    """One process; asked for a number of seconds, it answers with what it did in them."""

    def __init__(self, graph: Path, request: Path, case: _Case, number: int) -> None:
        order = json.dumps([str(graph), str(request), case.threads, case.spinning, case.cpus(number)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "loadtests.bench_threads", "--worker", order],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def ask(self, seconds: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", choices=["mlp", "mean", "resnet18"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="Of each of a case's two measurements in a round.")
    parser.add_argument("--keep", type=Path, help="Directory for the model, made once.")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        directory = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        graph, request = directory / f"{options.model}.onnx", directory / f"{options.model}.x.npy"
        if not request.exists():
            command = [sys.executable, "-m", "loadtests.bench.models", str(directory), options.model]
            subprocess.run(command, cwd=_ROOT, check=True)
        figures: dict[_Case, list[list[float]]] = {case: [] for case in _CASES}
        for _ in range(options.rounds):
            for case, rounds in figures.items():
                rounds.append(_round(graph, request, case, options.seconds))
    rows = [[str(case), *(three_digits(median(column)) for column in zip(*rounds, strict=True))]
            for case, rounds in figures.items()]  # fmt: skip
    print(markdown_table(_HEADER, rows))
    return 0


def _round(graph: Path, request: Path, case: _Case, seconds: float) -> list[float]:
    with contextlib.ExitStack() as stack:
        workers = []
        for number in range(_NUM_WORKERS):
            workers.append(_Worker(graph, request, case, number))
            stack.callback(workers[-1].end)
        _run(workers, seconds / 4)  # caches, and memory that is taken once
        both, one = _run(workers, seconds), _run(workers[:1], seconds)
    answers = sum(each["answers"] for each in both)
    return [
        sum(each["answers"] / each["seconds"] for each in both),
        1e3 * median(each["p50_s"] for each in both),
        1e3 * max(each["p99_s"] for each in both),
        1e3 * sum(each["cpu_s"] for each in both) / answers,
        one[0]["answers"] / one[0]["seconds"],
        1e3 * one[0]["p50_s"],
    ]


def _run(workers: Sequence[_Worker], seconds: float) -> list[dict[str, float]]:
    for worker in workers:
        worker.ask(seconds)
    return [worker.answer() for worker in workers]


def _work(order: str) -> None:
    graph, request, threads, spinning, cpus = json.loads(order)
    if cpus:
        os.sched_setaffinity(0, cpus)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    x = np.load(request)
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(session, x, float(line))), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _work(sys.argv[2])
    else:
        sys.exit(main(sys.argv[1:]))
