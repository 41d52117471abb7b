"""Ranks of playing cards by the Single Shot Detector: small marks on large objects, at any angle.

    python -m examples.playing_cards FOLDER OUTPUT [--seed N] [--set NAME=VALUE ...]

FOLDER holds `train/` and `test/`, each with `.jpg` images and PASCAL VOC's XML of the same name; `test/` is what is
validated on. ResNet-18 at 300, one cycle, bfloat16, as for two cores. OUTPUT is as of `examples.bccd`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from examples.voc_detection import run_recipe, write_part

__all__ = ["CLASS_NAMES", "RECIPE", "main", "write_channels"]

CLASS_NAMES = ("nine", "ten", "jack", "queen", "king", "ace")
RECIPE: dict[str, object] = {
    "num_classes": len(CLASS_NAMES),
    "num_training_samples": 148,
    "base_network": "resnet-18",
    "image_shape": 300,
    "epochs": 150,
    "mini_batch_size": 8,
    "learning_rate": 0.02,
    "lr_scheduler": "one_cycle",
    "flips": "both",
    "precision_dtype": "bfloat16",
    "validation_frequency": 10,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="values")
    asked = parser.parse_args(arguments)
    data = asked.output / "data"
    if not (data / "done").exists():
        print(f"wrote {write_channels(asked.folder, data)}", flush=True)
        (data / "done").touch()
    values = RECIPE | {"seed": asked.seed} | dict(each.split("=", 1) for each in asked.values)
    result = run_recipe(asked.output, "-".join(["cpu", str(asked.seed), *asked.values]), values, CLASS_NAMES)
    print(json.dumps(result) if result else "stopped; the same command goes on")
    return 0 if result else 1


def write_channels(folder: Path, directory: Path) -> dict[str, int]:
    """Write the four channels and return how many objects each part holds."""
    return {
        part: write_part(
            directory,
            part,
            ((xml.with_suffix(".jpg"), xml) for xml in sorted((folder / name).glob("*.xml"))),
            CLASS_NAMES,
        )
        for part, name in (("train", "train"), ("validation", "test"))
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
