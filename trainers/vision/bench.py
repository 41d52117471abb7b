"""What the input pipeline costs: the training loop of the classifier on records, beside the same loop on tensors.

    python -m trainers.vision.bench [--layers 18] [--side 224] [--batch 16] [--images 96] [--rounds 3]

Makes RecordIO of JPEGs (quality 90, shortest side 256, two real photographs of scikit-learn cut at random), trains
on it with every image decoded in every epoch, and on batches that are ready-made in memory; rounds are interleaved.
On a GPU the ready-made batches lie there already.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch

from formats.image_record import image_record, write
from formats.images import encode_jpeg
from trainers.distributed import ALONE
from trainers.hyperparameter_schema import parse
from trainers.image_classification.data import Batch, make_batches, open_channel
from trainers.image_classification.hyperparameters import Hyperparameters
from trainers.image_classification.start import make_network
from trainers.image_classification.train import Classifier
from trainers.job import Job
from trainers.vision import batches as batching
from trainers.vision.batches import Batches
from trainers.vision.loader import usable_cores

__all__ = ["main"]

_SHORTEST_SIDE = 256


class _ReadyMade:
    """Batches that lie in memory."""

    def __init__(self, batches: list[Batch], size: int) -> None:
        self._batches, self.size = batches, size

    @property
    def per_epoch(self) -> int:
        return len(self._batches)

    def train(self, _epoch: int) -> Iterator[Batch]:
        yield from self._batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=18)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--augmentation", default="crop")
    asked = parser.parse_args()
    torch.set_num_threads(usable_cores())
    batching.CACHE_BYTES = 0
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for name in ("train", "validation"):
            size = _write_records(root / name, asked.images if name == "train" else 1)
            if name == "train":
                print(f"{asked.images} JPEGs of {size / 1000:.0f} kB on average")
        _compare(root, asked)


def _compare(root: Path, asked: argparse.Namespace) -> None:
    workers = max(1, usable_cores() - 1)
    learners = {"ready-made": _learner(root, asked, 0, ready_made=True), "records, threads": _learner(root, asked, 0)}
    learners[f"records, {workers} processes"] = _learner(root, asked, workers)
    speeds: dict[str, list[float]] = {name: [] for name in learners}
    for learner in learners.values():
        learner.train_epoch(0, lambda *_: None)  # processes start, kernels are chosen
    for epoch in range(1, asked.rounds + 1):
        for name, learner in learners.items():
            began = time.perf_counter()
            learner.train_epoch(epoch, lambda *_: None)
            speeds[name].append(asked.images / (time.perf_counter() - began))
    best = statistics.median(speeds["ready-made"])
    for name, values in speeds.items():
        median = statistics.median(values)
        print(f"{name:22s} {median:8.1f} images/s  {median / best:.3f}   {', '.join(f'{v:.1f}' for v in values)}")


def _learner(root: Path, asked: argparse.Namespace, workers: int, *, ready_made: bool = False) -> Classifier:
    values = {
        "num_classes": 2,
        "num_training_samples": asked.images,
        "num_layers": asked.layers,
        "image_shape": f"3,{asked.side},{asked.side}",
        "mini_batch_size": asked.batch,
        "augmentation_type": asked.augmentation,
        "precision_dtype": asked.precision,
        "input_workers": workers,
        "learning_rate": 0.001,
    }
    channels = {name: root / name for name in ("train", "validation")}
    job = Job(
        algorithm="image_classification", channels=channels, hyperparameters=values, output=root, checkpoints=root
    )
    wanted = parse(Hyperparameters, values)
    batches = make_batches(open_channel(job, "train", wanted), open_channel(job, "validation", wanted), wanted, ALONE)
    if ready_made:
        made = [Batch(b.image.to(ALONE.device), b.label.to(ALONE.device)) for b in batches.train(0)]
        batches = cast("Batches[Batch]", _ReadyMade(made, asked.batch))
    return Classifier(wanted, make_network(job, wanted)[0], batches, ALONE, torch.ones(2))


def _write_records(directory: Path, count: int) -> float:
    """Returns the mean size of an image in bytes."""
    from sklearn.datasets import load_sample_images  # noqa: PLC0415  the photographs ship in it

    directory.mkdir()
    photographs = load_sample_images().images
    random, sizes = np.random.default_rng(0), []
    with (directory / "data.rec").open("wb") as stream:
        for number in range(count):
            photograph = photographs[number % 2]
            top, left = (int(random.integers(0, side - _SHORTEST_SIDE)) for side in (427, 640 - 84))
            cut = np.ascontiguousarray(photograph[top : top + _SHORTEST_SIDE, left : left + _SHORTEST_SIDE + 84])
            sizes.append(len(image := encode_jpeg(cut, 90)))
            write(stream, [image_record(number, float(number % 2), image)])
    return float(np.mean(sizes))


if __name__ == "__main__":
    main()
