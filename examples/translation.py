"""What examples of Seq2seq share: a run that goes on where it stopped, its bundle, and a test set's translations."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from exporters.export import export
from formats.envelope import Prediction
from handlers.algorithms import load_handler
from handlers.graph import Engine, Runtime
from model_store.store import Bundle
from trainers.run import train

__all__ = ["run_recipe", "translate"]

_LINES = "application/jsonlines"
_AT_ONCE = 250


def run_recipe(
    output: Path,
    name: str,
    channels: Mapping[str, Path],
    values: Mapping[str, object],
    score: Callable[[Path], dict[str, Any]],
) -> dict[str, Any] | None:
    """Train, export, and score the bundle; a line is added to OUTPUT/results.jsonl.

    Args:
        output: of the example.
        name: of the run; one of the same name goes on where it stopped.
        channels: train, validation and vocab.
        values: hyperparameters.
        score: of a bundle, on the test set.

    Returns:
        The line; None if the run was stopped.
    """
    directory = output / name
    began = time.monotonic()
    model = train("seq2seq", channels, values, directory)
    seconds = time.monotonic() - began
    evaluation = directory / "evaluation.json"
    if not evaluation.exists():
        return None
    bundle = directory / "bundle"
    if not bundle.exists():
        export(model, bundle)
    curve = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    result = {
        "name": name,
        **score(bundle),
        **json.loads(evaluation.read_text()),
        "train_s": round(sum(row["time_s"] for row in curve)),
        "last_call_s": round(seconds),
    }
    with (output / "results.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    return result


def translate(bundle: Path, sources: Sequence[str], *, engine: Engine = "onnx", threads: int = 2) -> list[str]:
    """What the bundle's handler answers, in requests of some hundred lines."""
    handler = load_handler(Bundle.open(bundle), Runtime(engine=engine, threads=threads))
    found: list[str] = []
    for at in range(0, len(sources), _AT_ONCE):
        some = sources[at : at + _AT_ONCE]
        body = b"".join(orjson.dumps({"source": source}) + b"\n" for source in some)
        (outcome,) = handler.predict([Prediction("model", "1", body, _LINES, _LINES)])
        if not outcome.ok:
            raise ValueError(outcome.error_message)
        found += [orjson.loads(line)["target"] for line in outcome.body.splitlines()]
    return found
