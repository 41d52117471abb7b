"""Street scenes of CamVid, 11 classes, by each of the three algorithms.

    python -m examples.camvid FOLDER OUTPUT [--algorithm fcn|psp|deeplab] [--recipe cpu|gpu] [--seed N]
        [--set NAME=VALUE ...]

FOLDER holds `train/` and `val/` with images, `trainannot/` and `valannot/` with masks of the same names, whose value 11
is nobody's. They are read where they lie. The same command goes on where it was stopped. OUTPUT gets one directory per
run with `metrics.jsonl`, a line per epoch as it ends, and `evaluation.json`; and `results.jsonl`, a line per finished
run. Whole validation images are scored, at their own size.

| recipe | network | what for |
|---|---|---|
| `cpu` | ResNet-18, stride 16, one cycle, bfloat16 | two cores for half an hour |
| `gpu` | ResNet-50, poly, bfloat16 | a GPU |
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from trainers.run import train

__all__ = ["CLASS_NAMES", "RECIPES", "main"]

CLASS_NAMES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"
)  # fmt: skip
_ALL: dict[str, object] = {
    "num_classes": len(CLASS_NAMES),
    "num_training_samples": 367,
    "validation_mini_batch_size": 1,
    "base_size": 480,
    "precision_dtype": "bfloat16",
}
RECIPES: dict[str, dict[str, object]] = {
    "cpu": {
        "backbone": "resnet-18",
        "output_stride": 16,
        "crop_size": 240,
        "epochs": 100,
        "mini_batch_size": 8,
        "learning_rate": 0.02,
        "lr_scheduler": "one_cycle",
        "validation_frequency": 10,
    },
    "gpu": {
        "backbone": "resnet-50",
        "crop_size": 360,
        "epochs": 400,
        "mini_batch_size": 16,
        "learning_rate": 0.02,
        "lr_scheduler": "poly",
        "validation_frequency": 20,
    },
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--algorithm", choices=["fcn", "psp", "deeplab"], default="fcn")
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="values")
    asked = parser.parse_args(arguments)
    values = _ALL | RECIPES[asked.recipe] | {"seed": asked.seed, "algorithm": asked.algorithm}
    values |= dict(each.split("=", 1) for each in asked.values)
    name = "-".join([asked.algorithm, asked.recipe, str(asked.seed), *asked.values])
    run = asked.output / name
    channels = {
        "train": asked.folder / "train",
        "train_annotation": asked.folder / "trainannot",
        "validation": asked.folder / "val",
        "validation_annotation": asked.folder / "valannot",
        "label_map": _write_label_maps(asked.output / "label_map"),
    }
    began = time.time()
    train("semantic_segmentation", channels, values, run)
    if not (run / "evaluation.json").exists():
        print("stopped; the same command goes on")
        return 1
    report = json.loads((run / "evaluation.json").read_bytes())
    seconds = [json.loads(line)["time_s"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    result = {
        "run": name,
        "mIOU": report["mIOU"],
        "pixel_accuracy": report["pixel_accuracy"],
        "IOU": dict(zip(CLASS_NAMES, (each["IOU"] for each in report["classes"]), strict=True)),
        "training_seconds": round(sum(seconds), 1),
        "seconds_of_this_start": round(time.time() - began, 1),
    }
    with (asked.output / "results.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result))
    return 0


def _write_label_maps(directory: Path) -> Path:
    """Every class is its own pixel value; what is not named, 11, is ignored."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"map": {str(number): number for number in range(len(CLASS_NAMES))}})
    for part in ("train", "validation"):
        (directory / f"{part}_label_map.json").write_text(text)
    return directory


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
