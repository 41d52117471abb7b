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
import shutil
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from formats.detection import Annotation, encode_annotation
from trainers.run import train

__all__ = ["CLASS_NAMES", "RECIPES", "main", "write_channels"]

CLASS_NAMES = ("RBC", "WBC", "Platelets")
_PARTS = {"train": "train", "validation": "val"}

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
    run = asked.output / "-".join([asked.recipe, str(asked.seed), *asked.values])
    names = [name for part in _PARTS for name in (part, f"{part}_annotation")]
    began = time.time()
    train("object_detection", {name: data / name for name in names}, values, run)
    if not (run / "evaluation.json").exists():
        print("stopped; the same command goes on")
        return 1
    report = json.loads((run / "evaluation.json").read_bytes())
    result = {
        "recipe": asked.recipe,
        "seed": asked.seed,
        "set": asked.values,
        "mAP": report["mAP"],
        "mAP_voc07_11_point": report["mAP_voc07_11_point"],
        "coco": report["coco"],
        "AP": dict(zip(CLASS_NAMES, (each["area"] for each in report["classes"]), strict=True)),
        "seconds_of_this_start": round(time.time() - began, 1),
    }
    line = json.dumps(result)
    with (asked.output / "results.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line)
    return 0


def write_channels(folder: Path, directory: Path) -> dict[str, int]:
    """Write the four channels and return how many objects each part holds; boxes without area are dropped."""
    counts = {}
    for part, listed in _PARTS.items():
        for name in (part, f"{part}_annotation"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        counts[part] = 0
        for stem in (folder / "ImageSets" / "Main" / f"{listed}.txt").read_text().split():
            annotation = _annotation(folder / "Annotations" / f"{stem}.xml", f"{stem}.jpg")
            counts[part] += len(annotation.boxes)
            (directory / f"{part}_annotation" / f"{stem}.json").write_bytes(encode_annotation(annotation))
            shutil.copyfile(folder / "JPEGImages" / f"{stem}.jpg", directory / part / f"{stem}.jpg")
    return counts


def _annotation(file: Path, image: str) -> Annotation:
    root = ET.parse(file).getroot()  # noqa: S314  the user's own data
    boxes = []
    for item in root.iter("object"):
        left, top, right, bottom = (
            float(item.findtext(f"bndbox/{side}", "0")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        if right > left and bottom > top:
            boxes.append([CLASS_NAMES.index(item.findtext("name", "")), left, top, right - left, bottom - top])
    height, width = (int(root.findtext(f"size/{side}", "0")) for side in ("height", "width"))
    return Annotation(np.array(boxes).reshape(-1, 5), height, width, 3, image, dict(enumerate(CLASS_NAMES)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
