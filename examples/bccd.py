"""Blood cells by the Single Shot Detector, from the folder in PASCAL VOC's form to average precision by class.

    python -m examples.bccd FOLDER OUTPUT [--recipe cpu|gpu] [--seed N] [--set NAME=VALUE ...]

FOLDER holds `JPEGImages/`, `Annotations/` and `ImageSets/Main/{train,val}.txt`. The same command goes on where it was
stopped. OUTPUT gets `data/` (the channels: images as they are, one JSON annotation each), one directory per recipe and
seed with `metrics.jsonl`, a line per epoch as it ends, and `evaluation.json`; and `results.jsonl`, a line per finished
run.

| recipe | network | what for |
|---|---|---|
| `cpu` | ResNet-18 at 300, one cycle, bfloat16 | the best that 60 minutes of two cores give |
| `gpu` | ResNet-50 at 512, one cycle, bfloat16 | a GPU |
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from examples.voc_detection import run_recipe, write_part

__all__ = ["CLASS_NAMES", "RECIPES", "main", "write_channels"]

CLASS_NAMES = ("RBC", "WBC", "Platelets")

_ALL: dict[str, object] = {"num_classes": len(CLASS_NAMES), "num_training_samples": 205, "flips": "both"}
RECIPES: dict[str, dict[str, object]] = {
    "cpu": {
        "base_network": "resnet-18",
        "image_shape": 300,
        "epochs": 200,
        "mini_batch_size": 8,
        "learning_rate": 0.02,
        "lr_scheduler": "one_cycle",
        "precision_dtype": "bfloat16",
        "validation_frequency": 10,
    },
    "gpu": {
        "base_network": "resnet-50",
        "image_shape": 512,
        "epochs": 600,
        "mini_batch_size": 16,
        "learning_rate": 0.02,
        "lr_scheduler": "one_cycle",
        "precision_dtype": "bfloat16",
        "validation_frequency": 20,
    },
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="values")
    asked = parser.parse_args(arguments)
    data = asked.output / "data"
    if not (data / "done").exists():
        print(f"wrote {write_channels(asked.folder, data)}", flush=True)
        (data / "done").touch()
    values = _ALL | RECIPES[asked.recipe] | {"seed": asked.seed} | dict(each.split("=", 1) for each in asked.values)
    result = run_recipe(asked.output, "-".join([asked.recipe, str(asked.seed), *asked.values]), values, CLASS_NAMES)
    print(json.dumps(result) if result else "stopped; the same command goes on")
    return 0 if result else 1


def write_channels(folder: Path, directory: Path) -> dict[str, int]:
    """Write the four channels and return how many objects each part holds."""

    def listed(name: str) -> Iterator[tuple[Path, Path]]:
        for stem in (folder / "ImageSets" / "Main" / f"{name}.txt").read_text().split():
            yield folder / "JPEGImages" / f"{stem}.jpg", folder / "Annotations" / f"{stem}.xml"

    return {
        part: write_part(directory, part, listed(name), CLASS_NAMES)
        for part, name in (("train", "train"), ("validation", "val"))
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
