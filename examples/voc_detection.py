"""Data sets in PASCAL VOC's form as channels of object detection, and a recipe's run on them."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from formats.detection import Annotation, encode_annotation
from trainers.run import train

__all__ = ["PARTS", "run_recipe", "write_part"]

PARTS = ("train", "validation")


def write_part(directory: Path, part: str, files: Iterable[tuple[Path, Path]], class_names: tuple[str, ...]) -> int:
    """Write the channels `<part>` and `<part>_annotation` and return how many objects they hold.

    Args:
        directory: for the channels.
        part: `train` or `validation`.
        files: image and XML, by image.
        class_names: by class id. Boxes without area are dropped.
    """
    for name in (part, f"{part}_annotation"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    count = 0
    for image, xml in files:
        annotation = _annotation(xml, image.name, class_names)
        count += len(annotation.boxes)
        (directory / f"{part}_annotation" / f"{image.stem}.json").write_bytes(encode_annotation(annotation))
        shutil.copyfile(image, directory / part / image.name)
    return count


def _annotation(file: Path, image: str, class_names: tuple[str, ...]) -> Annotation:
    root = ET.parse(file).getroot()  # noqa: S314  the user's own data
    boxes = []
    for item in root.iter("object"):
        left, top, right, bottom = (
            float(item.findtext(f"bndbox/{side}", "0")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
        name = item.findtext("name", "")
        if name not in class_names:
            raise ValueError(f"{file}: object of class '{name}'; expected one of {', '.join(class_names)}")
        if right > left and bottom > top:
            boxes.append([class_names.index(name), left, top, right - left, bottom - top])
    height, width = (int(root.findtext(f"size/{side}", "0")) for side in ("height", "width"))
    return Annotation(np.array(boxes).reshape(-1, 5), height, width, 3, image, dict(enumerate(class_names)))


def run_recipe(
    output: Path, name: str, values: Mapping[str, object], class_names: tuple[str, ...]
) -> dict[str, object] | None:
    """Train on `output/data` into `output/<name>`, or go on there, and add a line to `output/results.jsonl`.

    Returns:
        The line's values; None when training was stopped before its end.
    """
    channels = [channel for part in PARTS for channel in (part, f"{part}_annotation")]
    began = time.time()
    train("object_detection", {each: output / "data" / each for each in channels}, values, output / name)
    if not (output / name / "evaluation.json").exists():
        return None
    report = json.loads((output / name / "evaluation.json").read_bytes())
    result = {
        "run": name,
        "mAP": report["mAP"],
        "mAP_voc07_11_point": report["mAP_voc07_11_point"],
        "coco": report["coco"],
        "AP": dict(zip(class_names, (each["area"] for each in report["classes"]), strict=True)),
        "seconds_of_this_start": round(time.time() - began, 1),
    }
    with (output / "results.jsonl").open("a") as file:
        file.write(json.dumps(result) + "\n")
    return result
