"""What a mask costs above the network that finds it: decoding, resizing of scores inside the graph, PNG, in turns.

    python -m examples.mask_handler_speed BUNDLE IMAGE [--rounds 20] [--threads 1]

BUNDLE is what `penstock export` wrote for a segmenter, IMAGE a JPEG or PNG file. `network` is the same graph cut where
the logits come out; the others are the handler's answers, by what is accepted.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx.utils import Extractor

from formats import images
from formats.envelope import Prediction
from formats.masks import encode_mask
from handlers.algorithms import load_handler
from handlers.graph import Runtime, load_graph
from model_store.store import Bundle

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(arguments)
    bundle = Bundle.open(asked.bundle)
    runtime = Runtime(threads=asked.threads)
    handler = load_handler(bundle, runtime)
    body = asked.image.read_bytes()
    pixels = images.decode(body)[None]
    graph = load_graph(bundle.path, bundle.manifest.graphs["model"], runtime)
    network = _network_alone(bundle.path / "model.onnx", asked.threads)
    mask = graph.run({"image": pixels})["mask"][0]
    kind = "image/png" if body.startswith(b"\x89PNG") else "image/jpeg"

    def ask(accept: str) -> Callable[[], object]:
        return lambda: handler.predict([Prediction("", "", body, kind, accept)])

    steps = {
        "decode": lambda: images.decode(body),
        "network": lambda: network.run(["logits"], {"image": pixels}),
        "graph": lambda: graph.run({"image": pixels}),
        "PNG": lambda: encode_mask(mask),
        "handler, image/png": ask("image/png"),
        "handler, application/json": ask("application/json"),
        "handler, application/x-protobuf": ask("application/x-protobuf"),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(asked.rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values) * 1e3 for name, values in times.items()}
    print(f"{pixels.shape[2]} x {pixels.shape[1]}, {', '.join(f'{name} {ms:.2f} ms' for name, ms in median.items())}")
    for above in ("network", "graph"):
        print(f"a mask is {median['handler, image/png'] / median[above] - 1:.1%} above the {above}")
    return 0


def _network_alone(file: Path, threads: int) -> Any:
    model = onnx.load(str(file))
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    part = Extractor(model).extract_model(["image"], ["logits"])
    return ort.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
