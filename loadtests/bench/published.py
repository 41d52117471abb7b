"""Models made and published as a user would, into `directory/store`; what every peer serves lies in `directory`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

from formats.images import decode, resize
from loadtests.bench.cases import NUM_BODIES
from loadtests.bench.peers import ROOT, NotStarted

__all__ = ["NUM_IDLE", "make_model", "publish_idle"]

NUM_IDLE = 1000
"""Models that nobody asks, in `directory/crowded`."""
_JPEG_BYTES = 30_000
_SIDE = 224
_NUM_CANDIDATES = 4 * NUM_BODIES


def make_model(directory: Path, model: str) -> None:
    """Write `<model>.onnx` with a request and its answer, and publish it.

    Raises:
        NotStarted: a step failed; with its last words.
    """
    if (directory / "store" / model).is_dir():
        return
    if model == "classifier":
        _make_classifier(directory)
        return
    _python("loadtests.bench.models", str(directory), model)
    graph = directory / f"{model}.onnx"
    _penstock("publish", graph, "--algorithm", "tensor", "--name", model, "--store", directory / "store")


def publish_idle(directory: Path, model: str) -> Path:
    """A store with `model` and `NUM_IDLE` copies under other names: a thousand publishes would take an hour.

    The layout is documented in docs/model_store.md; a name stands in the manifest, which has a checksum beside it.
    """
    store = directory / "crowded"
    if not store.is_dir():
        shutil.copytree(directory / "store" / model, store / model)
        for number in range(NUM_IDLE):
            _copy_as(f"idle{number:04}", store / model / "1", store)
    return store


def _copy_as(name: str, published: Path, store: Path) -> None:
    manifest = json.loads((published / "manifest.json").read_bytes())
    archive = f"{manifest['name']}.mar"
    version = store / name / published.name
    version.mkdir(parents=True)
    for file in manifest["files"]:
        os.link(published / file, version / (f"{name}.mar" if file == archive else file))
    manifest["files"] = {f"{name}.mar" if file == archive else file: kept for file, kept in manifest["files"].items()}
    text = json.dumps({**manifest, "name": name}).encode()
    (version / "manifest.json").write_bytes(text)
    (version / "manifest.sha256").write_text(f"{hashlib.sha256(text).hexdigest()}  manifest.json\n")


def _make_classifier(directory: Path) -> None:
    """ResNet-18 as the algorithm's own commands make it, of one step of training: accuracy is not what is measured."""
    pictures, trained, bundle = (directory / name for name in ("pictures", "trained", "bundle"))
    for channel in ("train", "validation"):
        (pictures / channel).mkdir(parents=True)
        for label in range(2):
            (pictures / channel / f"{label}.jpg").write_bytes(_picture(label))
        (pictures / channel / "pictures.lst").write_text("0\t0\t0.jpg\n1\t1\t1.jpg\n")
    sizes = ("num_classes=2", "num_training_samples=2", "mini_batch_size=2", "epochs=1", "num_layers=18")
    # a step so small that the model is not yet sure of one class whatever it sees
    hyperparameters = (*sizes, "learning_rate=0.0001")
    _penstock(
        *("train", "image_classification", "--output", trained),
        *("--channel", f"train={pictures / 'train'}", "--channel", f"validation={pictures / 'validation'}"),
        *(
            part
            for each in (*hyperparameters, f"resize={_SIDE}", f"image_shape=3,{_SIDE},{_SIDE}")
            for part in ("--set", each)
        ),
    )
    _penstock("export", trained / "model", "--output", bundle)
    _penstock("publish", bundle, "--name", "classifier", "--store", directory / "store")
    shutil.copyfile(bundle / "model.onnx", directory / "classifier.onnx")
    _write_requests(directory)


def _write_requests(directory: Path) -> None:
    """Pictures whose answers differ most: after one step of training the model is sure of nearly everything."""
    jpegs = [_picture(9 + number) for number in range(_NUM_CANDIDATES)]
    # the exporter has held this graph against the trained model
    session = ort.InferenceSession(str(directory / "classifier.onnx"), providers=["CPUExecutionProvider"])
    answers = [session.run(None, {"image": resize(decode(jpeg), _SIDE, _SIDE)[None]})[0][0] for jpeg in jpegs]
    chosen = [0]
    while len(chosen) < NUM_BODIES:
        nearest = [min(float(np.abs(answer - answers[each]).max()) for each in chosen) for answer in answers]
        chosen.append(int(np.argmax(nearest)))
    for number, each in enumerate(chosen):
        (directory / f"classifier.{number}.jpg").write_bytes(jpegs[each])
    np.save(directory / "classifier.y.npy", np.stack([answers[each] for each in chosen]))


def _picture(seed: int) -> bytes:
    """Waves and noise, 400 x 300, in the best quality that fits 30 kB; darker or brighter by the seed."""
    random = np.random.default_rng(seed)
    y_H1, x_1W = np.mgrid[0:1:300j, 0:1:400j]
    waves_HW3 = np.stack([np.sin(2 * np.pi * (3 * y_H1 + k * x_1W + seed / 9)) for k in (1, 2, 4)], axis=2)
    light_3 = random.uniform(40, 215, 3)
    pixels_HW3 = np.clip(light_3 + 100 * waves_HW3 + random.normal(0, 6, waves_HW3.shape), 0, 255).astype(np.uint8)
    for quality in range(95, 5, -1):
        file = io.BytesIO()
        Image.fromarray(pixels_HW3).save(file, "JPEG", quality=quality)
        if file.tell() <= _JPEG_BYTES:
            break
    return file.getvalue()


def _penstock(*arguments: str | Path) -> None:
    _python("penstock", *map(str, arguments))


def _python(module: str, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise NotStarted(f"{module} {' '.join(arguments)}: {done.stderr.strip()[-500:]}")
