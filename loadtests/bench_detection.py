"""What serving adds to a detector: pictures through the gateway beside the bare graph, in each form of it.

    python -m loadtests.bench_detection [--threads 2] [--rounds 5] [--seconds 6] [--keep DIR]

SSD with ResNet-50 at 512, of one step of training: precision is not what is measured. The gateway runs one worker and
gets JPEG files over HTTP, one at a time; the bare graphs get decoded pixels in this process, by as many threads. The
cases take turns within a round, and ratios are medians of the rounds' own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import onnxruntime as ort
import torch

from loadtests.bench.peers import ROOT, free_ports
from loadtests.figures import markdown_table, paired_ratio
from loadtests.pictures import made_pictures, pixels_of

__all__ = ["main"]

_SIDE = 512
_NUM_PICTURES = 8
_START_PATIENCE_S = 90
_FORMS = ("ONNX", "ONNX, int8", "TorchScript")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6, help="Of each case in each round.")
    parser.add_argument("--keep", type=Path, help="Directory for the models, made once.")
    options = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        directory = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _make(directory)
        ports = {
            engine: stack.enter_context(_gateway(directory, engine, options.threads))
            for engine in ("onnx", "torchscript")
        }
        cases = {
            **{f"bare {name}": call for name, call in _bare(directory, options.threads).items()},
            "gateway ONNX": _asks(ports["onnx"], "detector"),
            "gateway ONNX, int8": _asks(ports["onnx"], "detector8"),
            "gateway TorchScript": _asks(ports["torchscript"], "detector"),
        }
        figures: dict[str, list[float]] = {name: [] for name in cases}
        for call in cases.values():
            call(), call()  # TorchScript compiles at its second call
        for number in range(options.rounds):
            for name, call in cases.items():
                figures[name].append(_per_second(call, options.seconds))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
    print(f"One worker of {options.threads} threads, {options.rounds} rounds of {options.seconds:g} s per case.\n")
    print(_table(figures))
    return 0


def _table(figures: dict[str, list[float]]) -> str:
    rows = []
    for form in _FORMS:
        bare, served = figures[f"bare {form}"], figures[f"gateway {form}"]
        rows.append(
            [
                form,
                f"{1000 / median(bare):.1f}",
                f"{1000 / median(served):.1f}",
                f"{paired_ratio(served, bare):.3f}",
                f"{paired_ratio(served, figures['gateway ONNX']):.2f}",
            ]
        )
    header = ["form", "bare graph, ms", "gateway, ms", "gateway / bare", "gateway / gateway ONNX"]
    return markdown_table(header, rows)


def _per_second(call: Callable[[], object], seconds: float) -> float:
    count, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds or not count:
        call()
        count += 1
    return count / took


def _make(directory: Path) -> None:
    """Train, export, quantise and publish by the project's own commands."""
    if (directory / "store" / "detector8").is_dir():
        return
    pictures = made_pictures(_SIDE, _SIDE)[:_NUM_PICTURES]
    annotation = {
        "image_size": [{"width": _SIDE, "height": _SIDE, "depth": 3}],
        "annotations": [{"class_id": 0, "left": 100, "top": 100, "width": 200, "height": 200}],
    }
    for channel in ("train", "validation"):
        for name in (channel, f"{channel}_annotation"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        for number, body in enumerate(pictures):
            file = f"{number}.{body.content_type.removeprefix('image/')}"
            (directory / channel / file).write_bytes(body.data)
            told = json.dumps({"file": file, **annotation})
            (directory / f"{channel}_annotation" / f"{number}.json").write_text(told)
    channels = [
        f"{name}={directory / name}" for part in ("train", "validation") for name in (part, f"{part}_annotation")
    ]
    values = ["base_network=resnet-50", f"image_shape={_SIDE}", "num_classes=20", "epochs=1", "mini_batch_size=4"]
    trained, whole, small, store = (directory / name for name in ("trained", "bundle", "bundle8", "store"))
    _penstock(
        *("train", "object_detection", "--output", trained),
        *(part for channel in channels for part in ("--channel", channel)),
        *(part for value in [*values, f"num_training_samples={_NUM_PICTURES}"] for part in ("--set", value)),
    )
    _penstock("export", trained, "--output", whole)
    _penstock("quantize", whole, "--output", small, "--images", directory / "train")
    _penstock("publish", whole, "--name", "detector", "--store", store)
    _penstock("publish", small, "--name", "detector8", "--store", store)


def _penstock(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "penstock", *map(str, arguments)], cwd=ROOT, check=True, stdout=sys.stderr)


def _bare(directory: Path, threads: int) -> dict[str, Callable[[], object]]:
    (picture, *_) = made_pictures(_SIDE, _SIDE)
    pixels = pixels_of(picture, _SIDE, _SIDE)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    whole, small = (
        ort.InferenceSession(str(directory / name / "model.onnx"), options, providers=["CPUExecutionProvider"])
        for name in ("bundle", "bundle8")
    )
    torch.set_num_threads(threads)
    script = torch.jit.load(str(directory / "bundle" / "model.pt"))  # type: ignore[no-untyped-call]
    image = torch.from_numpy(pixels.copy())

    def scripted() -> object:
        with torch.inference_mode():
            return script(image)

    return {
        "ONNX": lambda: whole.run(None, {"image": pixels}),
        "ONNX, int8": lambda: small.run(None, {"image": pixels}),
        "TorchScript": scripted,
    }


@contextlib.contextmanager
def _gateway(directory: Path, engine: str, threads: int) -> Iterator[int]:
    """A gateway of one worker; yields its HTTP port."""
    http, grpc, admin = free_ports(3)
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PENSTOCK_")},
        "PENSTOCK_STORE": str(directory / "store"),
        "PENSTOCK_HTTP_PORT": str(http),
        "PENSTOCK_GRPC_PORT": str(grpc),
        "PENSTOCK_ADMIN_PORT": str(admin),
        "PENSTOCK_POOLS__CPU__DEVICE": "cpu",
        "PENSTOCK_POOLS__CPU__WORKERS": "1",
        "PENSTOCK_POOLS__CPU__THREADS": str(threads),
        "PENSTOCK_POOLS__CPU__ENGINE": engine,
    }
    with (directory / f"gateway-{engine}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock", "serve"], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
    try:
        give_up = time.monotonic() + _START_PATIENCE_S
        for model in ("detector", "detector8"):
            while not _is_ready(http, model):
                if process.poll() is not None or time.monotonic() > give_up:
                    raise RuntimeError(f"the gateway does not serve {model}; see {directory}/gateway-{engine}.log")
                time.sleep(0.2)
        yield http
    finally:
        process.terminate()
        process.wait(30)


def _is_ready(port: int, model: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/{model}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _asks(port: int, model: str) -> Callable[[], object]:
    (picture, *_) = made_pictures(_SIDE, _SIDE)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/endpoints/{model}/invocations",
        data=picture.data,
        headers={"Content-Type": picture.content_type},
    )

    def call() -> bytes:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  our own address
            found: bytes = answer.read()
            return found

    return call


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
