"""How much a request costs above what it cannot do without: the handler, beside decode + graph, in turns.

    python -m examples.image_handler_speed [--layers 18] [--rounds 60] [JPEG ...]

Makes a bundle of a ResNet at 224 with random weights. Without files, a photograph of scikit-learn's at 500 x 334,
about 40 kB, is asked about.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from exporters.export import export
from formats import images
from formats.envelope import Prediction
from handlers.algorithms import load_handler
from handlers.graph import Runtime, load_graph
from model_store.store import Bundle
from trainers.checkpoints import save
from trainers.image_classification.model import build

__all__ = ["main"]

_SIDE = 224
_BODY_BYTES = 40_000


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("files", nargs="*", type=Path)
    asked = parser.parse_args(arguments)
    bodies = [file.read_bytes() for file in asked.files] or [_photograph()]
    with tempfile.TemporaryDirectory() as directory:
        bundle = _bundle(Path(directory), asked.layers)
        runtime = Runtime(threads=asked.threads)
        handler = load_handler(bundle, runtime)
        graph = load_graph(bundle.path, bundle.manifest.graphs["model"], runtime)
        for body in bodies:
            prediction = Prediction("speed", "1", body, "image/jpeg")
            decoded = images.decode(body)
            squeezed = images.resize(decoded, _SIDE, _SIDE)[None]
            _show(
                f"{len(body)} bytes, {decoded.shape[1]} x {decoded.shape[0]}, ResNet-{asked.layers}",
                {
                    "decode": lambda body=body: images.decode(body),  # type: ignore[misc]
                    "resize": lambda decoded=decoded: images.resize(decoded, _SIDE, _SIDE),  # type: ignore[misc]
                    "graph": lambda squeezed=squeezed: graph.run({"image": squeezed}),  # type: ignore[misc]
                    "handler": lambda prediction=prediction: handler.predict([prediction]),  # type: ignore[misc]
                },
                asked.rounds,
            )
    return 0


def _show(title: str, steps: dict[str, Callable[[], object]], rounds: int) -> None:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    above = median["handler"] / (median["decode"] + median["graph"]) - 1
    parts = ", ".join(f"{name} {value:.3f} ms" for name, value in median.items())
    print(f"{title}: {parts}; the handler is {above:.1%} above decode + graph")


def _bundle(directory: Path, num_layers: int) -> Bundle:
    torch.manual_seed(0)
    network = build(num_layers=num_layers, image_shape=(3, _SIDE, _SIDE), num_classes=1000)
    values = {"num_layers": num_layers, "num_classes": 1000, "num_training_samples": 1}
    description = {
        "algorithm": "image_classification",
        "architecture": "resnet_v2",
        "hyperparameters": values,
        "num_classes": 1000,
        "image_shape": [3, _SIDE, _SIDE],
        "multi_label": False,
        "labels": None,
        "epoch": 0,
        "metrics": {},
    }
    save(directory / "model" / "model.pt", network.state_dict())
    (directory / "model" / "model.json").write_text(json.dumps(description))
    return Bundle.open(export(directory / "model", directory / "bundle"))


def _photograph() -> bytes:
    from sklearn.datasets import load_sample_image  # noqa: PLC0415  the photographs ship in it

    picture = Image.fromarray(load_sample_image("china.jpg")).resize((500, 334), Image.Resampling.LANCZOS)
    for quality in range(40, 100):
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        if stream.tell() >= _BODY_BYTES:
            break
    return stream.getvalue()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
