"""The scenes that the demonstration trains on: boxes and masks say the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from examples.scattered_digits import NUM_SCENES, SIDE, write_scenes
from formats.detection import decode_annotation
from formats.masks import decode_mask


def test_boxes_fit_the_ink_of_masks_that_brighten_the_ground(tmp_path: Path) -> None:
    counts = write_scenes(tmp_path)
    total = 0
    for part, count in NUM_SCENES.items():
        for number in range(count):
            pixels = np.array(Image.open(tmp_path / part / f"{number}.png"))
            mask = decode_mask((tmp_path / f"{part}_masks" / f"{number}.png").read_bytes())
            boxes = decode_annotation((tmp_path / f"{part}_boxes" / f"{number}.json").read_bytes()).boxes.astype(int)
            assert pixels.shape == (SIDE, SIDE, 3)
            assert set(np.unique(mask)) == {0, 1}
            assert pixels[mask == 1].min() > pixels[mask == 0].min()
            inside = np.zeros_like(mask)
            for _, left, top, width, height in boxes:
                part_of_mask = mask[top : top + height, left : left + width]
                assert part_of_mask[[0, -1]].any(axis=1).all()  # ink touches each side of its box
                assert part_of_mask[:, [0, -1]].any(axis=0).all()
                inside[top : top + height, left : left + width] = 1
            assert (mask <= inside).all()
            total += len(boxes)
    assert total == sum(counts.values())
    assert min(counts.values()) > 2 * min(NUM_SCENES.values())


def test_the_scenes_are_the_same_in_every_run(tmp_path: Path) -> None:
    write_scenes(tmp_path / "one")
    write_scenes(tmp_path / "other")

    for file in (tmp_path / "one").rglob("*.*"):
        assert file.read_bytes() == (tmp_path / "other" / file.relative_to(tmp_path / "one")).read_bytes()
