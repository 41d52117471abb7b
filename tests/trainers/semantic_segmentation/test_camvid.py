"""The recipes of examples/camvid.py: that they are of known values, run, and read the real folders."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from examples.camvid import _ALL, CLASS_NAMES, RECIPES, main
from formats.images import encode_jpeg
from formats.masks import encode_mask
from tests.trainers.semantic_segmentation.conftest import scene
from trainers.hyperparameter_schema import parse
from trainers.semantic_segmentation.hyperparameters import Hyperparameters

_DATA = os.environ.get("PENSTOCK_DATA", Path(__file__).parents[4] / "shared" / "data")
CAMVID = Path(_DATA) / "semantic_segmentation" / "camvid"
SMALL = ["--set", "epochs=1", "--set", "mini_batch_size=4", "--set", "base_size=80", "--set", "crop_size=48"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_made_of_known_hyperparameters(name: str) -> None:
    parse(Hyperparameters, _ALL | RECIPES[name])


def test_a_run_leaves_a_line_of_results(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 4), ("val", 2)):
        for directory in (part, f"{part}annot"):
            (tmp_path / directory).mkdir()
        for number in range(count):
            pixels, mask = scene(random)
            mask[mask == 0] = 11  # nobody's there
            (tmp_path / part / f"{number}.jpg").write_bytes(encode_jpeg(pixels))
            (tmp_path / f"{part}annot" / f"{number}.png").write_bytes(encode_mask(mask))

    assert main([str(tmp_path), str(tmp_path / "out"), *SMALL]) == 0
    (line,) = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    result = json.loads(line)
    assert list(result["IOU"]) == list(CLASS_NAMES)
    assert not result["IOU"]["sky"]  # no labelled pixel is: 0 where some were taken for it, else nothing
    report = json.loads((tmp_path / "out" / result["run"] / "evaluation.json").read_text())
    shares = [each["share_of_pixels"] for each in report["classes"]]
    assert shares[0] == 0
    assert shares[1] + shares[2] == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.skipif(not CAMVID.is_dir(), reason="PENSTOCK_DATA holds no CamVid")
def test_the_real_folders_hold_367_and_101_street_scenes(tmp_path: Path) -> None:
    options = ["--set", "epochs=1", "--set", "crop_size=64", "--set", "base_size=128"]

    assert main([str(CAMVID), str(tmp_path), *options]) == 0
    (report,) = tmp_path.glob("*/evaluation.json")
    found = json.loads(report.read_text())
    shares = [each["share_of_pixels"] for each in found["classes"]]
    # its README: sky 9.2, building 26.0, road 29.0 % of all pixels, 1.7 % of which are unlabelled
    assert [round(100 * shares[k] * 0.983, 1) for k in (0, 1, 3)] == [9.2, 26.0, 29.0]
    assert found["num_pixels"] < 101 * 480 * 360
