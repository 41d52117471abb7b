"""What 8-bit arithmetic costs and gains: average precision and time of a trained blood cell detector in each form.

    python -m examples.bccd_int8 OUTPUT RUN [--rounds 5]

OUTPUT is what `examples.bccd` wrote and RUN one of its runs there, such as `cpu-0`. RUN gets `bundle/` and `int8/`,
calibrated on the training images. Every form answers the validation images through the algorithm's handler, from file
to JSON, one image at a time and with one thread; the forms take turns, so that what disturbs the machine disturbs all.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import orjson
from numpy.typing import NDArray

from exporters.export import export
from exporters.int8 import quantize
from formats.detection import corners, decode_annotation
from formats.envelope import Prediction
from handlers.algorithms import load_handler
from handlers.graph import Runtime
from handlers.handler import Handler
from loadtests.figures import markdown_table, paired_ratio
from model_store.store import Bundle
from trainers.object_detection.evaluation import Evaluation

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("run")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args(arguments)
    run = asked.output / asked.run
    whole, small = run / "bundle", run / "int8"
    if not whole.exists():
        export(run, whole)
    if not small.exists():
        quantize(whole, asked.output / "data" / "train", small)
    forms = {
        "ONNX": load_handler(Bundle.open(whole), Runtime()),
        "TorchScript": load_handler(Bundle.open(whole), Runtime(engine="torchscript")),
        "ONNX, int8": load_handler(Bundle.open(small), Runtime()),
    }
    num_classes = int(str(Bundle.open(whole).manifest.settings["num_classes"]))
    images = sorted((asked.output / "data" / "validation").glob("*.jpg"))
    truths = [_truth(asked.output / "data" / "validation_annotation" / f"{image.stem}.json") for image in images]
    print(f"{len(images)} images, {asked.rounds} rounds of all forms", flush=True)
    evaluations = {name: Evaluation(num_classes, 0.5) for name in forms}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(asked.rounds):
        for name, handler in forms.items():
            rows, took = _answers(handler, images)
            seconds[name].append(took / len(images))
            for found, truth in zip(rows, truths, strict=True) if number == 0 else ():
                evaluations[name].add(found, truth)
    _print(evaluations, seconds)
    return 0


def _truth(file: Path) -> NDArray[np.float32]:
    return corners(decode_annotation(file.read_bytes()))


def _answers(handler: Handler, images: list[Path]) -> tuple[list[NDArray[np.float32]], float]:
    """Rows of (class, score, xmin, ymin, xmax, ymax) of each image, and the seconds that all took."""
    bodies = [image.read_bytes() for image in images]
    began = time.perf_counter()
    outcomes = [handler.predict([Prediction("", "", body, "image/jpeg", "")])[0] for body in bodies]
    took = time.perf_counter() - began
    answers = [orjson.loads(outcome.body)["prediction"] for outcome in outcomes]
    return [np.array(answer, np.float32).reshape(-1, 6) for answer in answers], took


def _print(evaluations: dict[str, Evaluation], seconds: dict[str, list[float]]) -> None:
    rows = []
    for name, evaluation in evaluations.items():
        report = evaluation.report()
        rows.append(
            [
                name,
                f"{report['mAP']:.4f}",
                f"{report['coco']['AP']:.4f}",
                f"{median(seconds[name]) * 1000:.1f}",
                f"{paired_ratio(seconds['ONNX'], seconds[name]):.2f}",
            ]
        )
    print(markdown_table(["form", "VOC mAP@0.5", "COCO AP", "ms per image", "times ONNX's speed"], rows))
    print(json.dumps({name: evaluation.report()["coco"] for name, evaluation in evaluations.items()}))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
