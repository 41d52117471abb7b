"""The limit that no server can pass: ONNX Runtime alone, in a loop, batch 1, one thread.

python -m loadtests.bench.raw GRAPH INPUT answers each line with a number of seconds by a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
import onnxruntime as ort

from loadtests.figures import percentile

__all__ = ["main", "measure"]


def main(graph: str, request: str) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    x = np.load(request)[:1]
    session.run(["y"], {"x": x})
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(measure(session, x, float(line))), flush=True)


def measure(session: ort.InferenceSession, x: np.ndarray[Any, Any], seconds: float) -> dict[str, float]:
    """Run the graph again and again; what was done, in how many seconds of whom, and how long one run took."""
    latencies: list[float] = []
    cpu_began, began = time.process_time(), time.perf_counter()
    last = began
    while last - began < seconds:
        session.run(["y"], {"x": x})
        now = time.perf_counter()
        latencies.append(now - last)
        last = now
    return {
        "answers": len(latencies),
        "seconds": last - began,
        "cpu_s": time.process_time() - cpu_began,
        "p50_s": percentile(latencies, 0.5),
        "p99_s": percentile(latencies, 0.99),
    }


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
