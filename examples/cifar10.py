"""CIFAR-10 by one of three recipes, from the archive of JPEGs to the validation error.

    python -m examples.cifar10 ARCHIVE OUTPUT [--recipe cpu|paper|fast] [--seed N] [--set NAME=VALUE ...]

ARCHIVE is `train.tar.gz` with `train/<class>/<0000..4999>.jpg`; the last 500 numbers of each class are for validation.
The same command goes on where it was stopped. OUTPUT gets `data/` (RecordIO), one directory per recipe and seed with
`metrics.jsonl`, a line per epoch as it ends, and `results.jsonl`, a line per finished run.

| recipe | network | what for |
|---|---|---|
| `cpu` | ResNet-20, 62 epochs, one cycle, bfloat16 | the best that 45 minutes of two cores give |
| `paper` | ResNet-20, 164 epochs, steps at 82 and 123 (He et al. 2015, section 4.2) | the reference's own training |
| `fast` | ResNet-18 in its wide form, 15 epochs, one cycle, bfloat16 | 94 % in the shortest time on a GPU |
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import time
from pathlib import Path

from formats.image_record import image_record, write
from trainers.run import train

__all__ = ["CLASS_NAMES", "RECIPES", "main", "write_channels"]

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FIRST_OF_VALIDATION = 4500

_ALL = {
    "num_classes": 10,
    "num_training_samples": 45_000,
    "image_shape": "3,32,32",
    "augmentation_type": "crop",
    "crop_padding": 4,
    "mini_batch_size": 128,
}
RECIPES: dict[str, dict[str, object]] = {
    "cpu": {
        "num_layers": 20,
        "epochs": 62,
        "optimizer": "nag",
        "learning_rate": 0.3,
        "weight_decay": 0.0004,
        "lr_scheduler": "one_cycle",
        "precision_dtype": "bfloat16",
    },
    "paper": {
        "num_layers": 20,
        "epochs": 164,
        "learning_rate": 0.1,
        "lr_scheduler_step": "82,123",
    },
    "fast": {
        "num_layers": 18,
        "epochs": 15,
        "optimizer": "nag",
        "learning_rate": 0.4,
        "weight_decay": 0.0005,
        "mini_batch_size": 512,
        "label_smoothing": 0.1,
        "lr_scheduler": "one_cycle",
        "precision_dtype": "bfloat16",
    },
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="values")
    asked = parser.parse_args(arguments)
    data = asked.output / "data"
    if not (data / "validation" / "labels.json").exists():
        print(f"wrote {write_channels(asked.archive, data)}", flush=True)
    values = _ALL | RECIPES[asked.recipe] | {"seed": asked.seed} | dict(each.split("=", 1) for each in asked.values)
    run = asked.output / "-".join([asked.recipe, str(asked.seed), *asked.values])
    channels = {name: data / name for name in ("train", "validation")}
    began = time.time()
    model = train("image_classification", channels, values, run)
    rows = _rows(run)
    if len(rows) < int(str(values["epochs"])):
        print(f"stopped after {len(rows)} epochs; the same command goes on")
        return 1
    result = _summary(model, rows) | {"recipe": asked.recipe, "seed": asked.seed, "set": asked.values}
    result["seconds_of_this_start"] = round(time.time() - began, 1)
    line = json.dumps(result)
    with (asked.output / "results.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line)
    return 0


def write_channels(archive: Path, directory: Path) -> dict[str, int]:
    """Write `train/data.rec` and `validation/data.rec`, the JPEGs as they are, and return their numbers of images.

    Raises:
        ValueError: the archive holds something else.
    """
    counts = {"train": 0, "validation": 0}
    streams = {}
    for name in counts:
        (directory / name).mkdir(parents=True, exist_ok=True)
        streams[name] = (directory / name / "data.rec").open("wb")
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if not member.isfile():
                continue
            _, class_name, file = member.name.removeprefix("./").split("/")
            number = int(file.removesuffix(".jpg"))
            name = "train" if number < _FIRST_OF_VALIDATION else "validation"
            content = tar.extractfile(member)
            assert content is not None
            label = CLASS_NAMES.index(class_name)
            write(streams[name], [image_record(10_000 * label + number, float(label), content.read())])
            counts[name] += 1
    for name, stream in streams.items():
        stream.close()
        (directory / name / "labels.json").write_text(json.dumps(CLASS_NAMES))
    return counts


def _rows(run: Path) -> list[dict[str, float]]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _summary(model: Path, rows: list[dict[str, float]]) -> dict[str, object]:
    best = json.loads((model / "model.json").read_bytes())
    return {
        "epochs": len(rows),
        "best_epoch": best["epoch"],
        "best_validation_accuracy": best["metrics"]["validation:accuracy"],
        "last_validation_accuracy": rows[-1]["validation:accuracy"],
        "training_seconds": round(sum(row["time_s"] for row in rows), 1),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
