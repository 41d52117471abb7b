"""How long forecasts take: one batched request, requests one by one, and the ways that go series by series, in turns.

    python -m examples.deepar_speed WORK [--rounds 7] [--threads 2] [--series 100] [--samples 100] [--length 48]
                                         [--peers PEERS/bin/python]

The model is DeepAR's default, two layers of 40 cells and Student's t, hourly, with as much context as forecast; its
weights are drawn, which takes as long as learned ones. WORK keeps its bundle. `graph` is a bare run of the exported
graph on inputs that lie ready, all series at once. `eager` is the same network in PyTorch, step by step, one series
after the other, as the original is said to forecast; PEERS is an environment with `gluonts[torch]`, whose DeepAR of the
same sizes is asked the same two ways. Medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["main", "write_untrained"]

_START = "2024-03-01 00:00:00"
_KNOWN = 400
Way = Callable[[], object]


def write_untrained(directory: Path, length: int) -> Path:
    """A checkpoint of the default sizes, as training leaves it."""
    import torch  # noqa: PLC0415

    from formats.time_frequency import Frequency  # noqa: PLC0415
    from trainers.checkpoints import save  # noqa: PLC0415
    from trainers.deepar.model import Network, Sizes  # noqa: PLC0415

    frequency = Frequency.parse("H")
    sizes = Sizes(
        lags=tuple(frequency.lags()),
        num_features=len(frequency.feature_names),
        cardinalities=(),
        embedding_dimension=10,
        num_cells=40,
        num_layers=2,
        dropout_rate=0.1,
        likelihood="student-T",
        context_length=length,
        prediction_length=length,
    )
    torch.manual_seed(0)
    directory.mkdir(parents=True, exist_ok=True)
    save(directory / "model.pt", Network(sizes, default_scale=3.0).state_dict())
    description = {
        "algorithm": "deepar",
        "hyperparameters": {"time_freq": "H", "likelihood": sizes.likelihood},
        "sizes": asdict(sizes),
        "num_dynamic": 0,
        "epoch": 0,
        "metrics": {},
    }
    (directory / "model.json").write_text(json.dumps(description))
    return directory


def targets(num_series: int) -> list[list[float]]:
    random = np.random.default_rng(1)
    waves = 10 + 3 * np.sin(np.arange(_KNOWN) / 24 * 2 * np.pi) + random.normal(size=(num_series, _KNOWN))
    found: list[list[float]] = waves.tolist()
    return found


def ways_of(work: Path, asked: argparse.Namespace) -> dict[str, Way]:
    """All that is Penstock's, on one bundle."""
    import torch  # noqa: PLC0415

    from exporters.deepar import horizon_of, load_sampler  # noqa: PLC0415
    from exporters.export import export  # noqa: PLC0415
    from formats.envelope import Prediction  # noqa: PLC0415
    from formats.forecasting import Configuration, graph_inputs  # noqa: PLC0415
    from formats.timeseries import parse_series  # noqa: PLC0415
    from handlers.algorithms import load_handler  # noqa: PLC0415
    from handlers.graph import Runtime, load_graph  # noqa: PLC0415
    from handlers.handler import Handler  # noqa: PLC0415
    from model_store.store import Bundle  # noqa: PLC0415

    checkpoint = write_untrained(work / "checkpoint", asked.length)
    if not (work / "bundle").exists():
        began = time.perf_counter()
        export(checkpoint, work / "bundle")
        print(f"exported in {time.perf_counter() - began:.1f} s", flush=True)
    bundle = Bundle.open(work / "bundle")
    handlers: dict[str, Handler] = {}
    for engine in ("onnx", "torchscript"):
        began = time.perf_counter()
        handlers[engine] = load_handler(bundle, Runtime(engine=engine, threads=asked.threads))
        print(f"{engine} loaded in {time.perf_counter() - began:.2f} s", flush=True)
    rows = [{"start": _START, "target": target} for target in targets(asked.series)]
    configuration = {"num_samples": asked.samples}

    def request(some: list[dict[str, Any]]) -> Prediction:
        body = json.dumps({"instances": some, "configuration": configuration}).encode()
        return Prediction("", "", body, "application/json")

    whole, each = request(rows), [request([row]) for row in rows]
    description = json.loads((checkpoint / "model.json").read_text())
    sampler = load_sampler(checkpoint, description)
    wanted = Configuration.of(configuration)
    inputs = graph_inputs([parse_series(row) for row in rows], horizon_of(sampler, description), wanted)
    graph = load_graph(bundle.path, bundle.manifest.graphs["model"], Runtime(threads=asked.threads))
    parts = [[torch.from_numpy(value[row : row + 1]) for value in inputs.values()] for row in range(len(rows))]

    def eager() -> None:
        torch.set_num_threads(asked.threads)
        with torch.inference_mode():
            for part in parts:
                sampler(*part)

    return {
        "one request, ONNX": lambda: handlers["onnx"].predict([whole]),
        "one request, TorchScript": lambda: handlers["torchscript"].predict([whole]),
        "graph, ONNX": lambda: graph.run(inputs),
        "one by one, ONNX": lambda: [handlers["onnx"].predict([one]) for one in each],
        "64 requests in one batch, ONNX": lambda: handlers["onnx"].predict(each[:64]),
        "eager, one by one": eager,
    }


# ---- GluonTS, in an interpreter of its own -------------------------------------------------------------------------


def serve_peer(asked: argparse.Namespace) -> None:
    """Answers each line of standard input, `one by one` or `batch`, with the seconds that it took."""
    import pandas as pd  # noqa: PLC0415
    import torch  # noqa: PLC0415
    from gluonts.dataset.common import ListDataset  # noqa: PLC0415
    from gluonts.torch import DeepAREstimator  # noqa: PLC0415

    torch.set_num_threads(asked.threads)
    estimator = DeepAREstimator(
        freq="h", prediction_length=asked.length, num_layers=2, hidden_size=40, num_parallel_samples=asked.samples
    )
    transformation, module = estimator.create_transformation(), estimator.create_lightning_module()
    begin = pd.Period(_START, "h")
    rows = [{"start": begin, "target": np.array(target)} for target in targets(asked.series)]
    sets = {"batch": [ListDataset(rows, freq="h")], "one by one": [ListDataset([row], freq="h") for row in rows]}
    predictors = {}
    for name, size in (("batch", len(rows)), ("one by one", 1)):
        estimator.batch_size = size
        predictors[name] = estimator.create_predictor(transformation, module)
    print("ready", flush=True)
    for line in sys.stdin:
        name = line.strip()
        began = time.perf_counter()
        for some in sets[name]:
            for forecast in predictors[name].predict(some):
                _ = forecast.samples
        print(time.perf_counter() - began, flush=True)


class _Peer:
    def __init__(self, python: str, asked: argparse.Namespace) -> None:
        options = [f"--{name}={getattr(asked, name)}" for name in ("threads", "series", "samples", "length")]
        command = [python, "-W", "ignore", "-m", "examples.deepar_speed", str(asked.work), "--serve-peer", *options]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer_to("ready")

    def seconds(self, name: str) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(name + "\n")
        self._process.stdin.flush()
        return float(self._answer_to(name))

    def _answer_to(self, name: str) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"the peer ended at '{name}'")
        return line

    def close(self) -> None:
        self._process.communicate()


# ---- all of them ---------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    for name, default in (("rounds", 7), ("threads", 2), ("series", 100), ("samples", 100), ("length", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peers", help="Python of an environment with GluonTS.")
    parser.add_argument("--serve-peer", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.serve_peer:
        serve_peer(asked)
        return 0
    ours = ways_of(asked.work, asked)
    peer = _Peer(asked.peers, asked) if asked.peers else None
    theirs = {f"GluonTS, {name}": name for name in ("one by one", "batch")} if peer else {}
    times: dict[str, list[float]] = {name: [] for name in (*ours, *theirs)}
    for turn in range(-1, asked.rounds):  # the first turn warms up
        for name, spent in times.items():
            seconds = _seconds(ours[name]) if name in ours else peer.seconds(theirs[name])  # type: ignore[union-attr]
            if turn >= 0:
                spent.append(seconds)
    if peer:
        peer.close()
    _report({name: statistics.median(values) for name, values in times.items()}, asked)
    return 0


def _seconds(way: Way) -> float:
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


def _report(median: dict[str, float], asked: argparse.Namespace) -> None:
    print(f"{asked.series} series x {asked.samples} samples x {asked.length} steps, {asked.threads} threads")
    best = median["one request, ONNX"]
    print("| way | seconds | times one request, ONNX |\n|---|---:|---:|")
    for name, seconds in median.items():
        print(f"| {name} | {seconds:.3f} | {seconds / best:.1f} |")
    print(f"the handler is {best / median['graph, ONNX'] - 1:+.0%} beside the bare graph on all series at once")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
