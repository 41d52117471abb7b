"""How fast training data are read, beside the readers that people use today: `make bench-formats`.

    python -m loadtests.bench_formats [--rounds 7] [--memory-mb 1000]

Each pair takes turns in one run, and the ratio is the median over the rounds of (their seconds / our seconds). The
peers run in Pythons of their own: `PENSTOCK_SDK_PYTHON` (with `sagemaker<3`) and `PENSTOCK_MXNET_PYTHON` (with
`mxnet==1.9.1` and pillow). Without the first, the SDK's reading loop is restated here, on the same protobuf package;
without the second, its row is left out.
"""

from __future__ import annotations

import argparse
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import orjson

from formats import image_record, images, jsonlines, record
from formats.protos import record_pb2
from formats.record import Record, Tensor
from formats.record_lists import read_lists
from formats.record_matrix import read_matrix
from formats.record_sparse import read_sparse
from formats.recordio import read_records

_BAR = 5.0
"""How many times as fast as the SDK's reader the bulk readers are to be."""

Measure = Callable[[], float]
"""Runs a reader once over its file and returns the seconds."""

_SDK = """
import logging, os, sys, time
os.environ["SAGEMAKER_SUPPRESS_V2_WARNING"] = "1"
logging.disable()
quiet, sys.stdout = sys.stdout, sys.stderr
import numpy as np
from sagemaker.amazon.common import read_records
sys.stdout = quiet
print("ready", flush=True)
for line in sys.stdin:
    kind, path = line.split()
    begin = time.perf_counter()
    with open(path, "rb") as file:
        found = read_records(file)
    if kind == "matrix":
        first = found[0].features["values"]
        tensor = first.WhichOneof("value")
        np.array([getattr(r.features["values"], tensor).values for r in found], np.float32)
    if kind == "csr":
        rows = [r.features["values"].float32_tensor for r in found]
        np.concatenate([np.array(row.values, np.float32) for row in rows])
        np.concatenate([np.array(row.keys, np.int64) for row in rows])
        np.cumsum([len(row.values) for row in rows])
        np.array([r.label["values"].float32_tensor.values[0] for r in found], np.float32)
    if kind == "arrays":
        for r in found:
            for key in r.features:
                value = r.features[key]
                tensor = getattr(value, value.WhichOneof("value"))
                np.array(tensor.values, np.float32 if value.HasField("float32_tensor") else np.int32)
                np.array(tensor.keys, np.uint64)
    print(time.perf_counter() - begin, flush=True)
"""

_MXNET = """
import io, sys, time
import mxnet as mx, numpy as np
from PIL import Image
print("ready", flush=True)
for line in sys.stdin:
    _, path = line.split()
    begin = time.perf_counter()
    reader = mx.recordio.MXRecordIO(path, "r")
    while True:
        data = reader.read()
        if data is None:
            break
        header, image = mx.recordio.unpack(data)
        np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))
    print(time.perf_counter() - begin, flush=True)
"""

_MEMORY = """
import sys
from pathlib import Path
from loadtests.bench_formats import READERS
READERS[sys.argv[1]](Path(sys.argv[2]))
print(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-mb", type=int, default=1000, help="size of the large files; 0 leaves memory out")
    arguments = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.2f}, {os.cpu_count()} cores, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as folder:
        files = _write_files(Path(folder))
        _speed(files, arguments.rounds)
        if arguments.memory_mb:
            _memory(files, Path(folder), arguments.memory_mb)


# ---- our readers -------------------------------------------------------------------------------------------------


def _each(reader: Callable[[Any], Iterator[Any]]) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        with path.open("rb") as stream:
            for _ in reader(stream):
                pass

    return run


def _decoded_images(stream: Any) -> Iterator[images.Pixels]:
    return (images.decode(found.image) for found in image_record.read(stream))


READERS: dict[str, Callable[[Path], None]] = {
    "framing": _each(read_records),
    "records": _each(record.read),
    "lists": _each(read_lists),
    "matrix": _each(read_matrix),
    "sparse": _each(read_sparse),
    "images": _each(_decoded_images),
    "lines": _each(jsonlines.read),
}


def _bare_orjson(path: Path) -> None:
    with path.open("rb") as stream:
        for line in stream:
            orjson.loads(line)


def _restated_sdk(path: Path) -> None:
    """The loop of `sagemaker.amazon.common.read_records`, statement by statement."""
    records = []
    with path.open("rb") as file:
        while head := file.read(4):
            (magic,) = struct.unpack("I", head)
            assert magic == 0xCED7230A
            (length,) = struct.unpack("I", file.read(4))
            padding = (((length + 3) >> 2) << 2) - length
            message = record_pb2.Record()
            message.ParseFromString(file.read(length))
            records.append(message)
            if padding:
                file.read(padding)


def _timed(run: Callable[[Path], None], path: Path) -> Measure:
    def measure() -> float:
        begin = time.perf_counter()
        run(path)
        return time.perf_counter() - begin

    return measure


# ---- files -------------------------------------------------------------------------------------------------------


def _write_files(folder: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    label = {"values": Tensor(np.ones(1, np.float32))}

    def dense(width: int) -> Record:
        return Record({"values": Tensor(rng.random(width, np.float32))}, label)

    def whole() -> Record:
        # as the SDK writes an int64 array
        return Record(
            {"values": Tensor(rng.integers(0, 1000, 100, np.int32))}, {"values": Tensor(np.ones(1, np.int32))}
        )

    def pair() -> Record:
        ids = [Tensor(rng.integers(4, 10_000, rng.integers(8, 30), np.int32)) for _ in range(2)]
        return Record({"source": ids[0], "target": ids[1]})

    def sparse() -> Record:
        keys = np.sort(rng.choice(10_000, 40, replace=False)).astype(np.uint64)
        return Record({"values": Tensor(rng.random(40, np.float32), keys, (10_000,))}, label)

    def varied() -> Record:
        count = int(rng.integers(0, 90))
        keys = np.sort(rng.choice(60_000, count, replace=False)).astype(np.uint64)
        return Record({"values": Tensor(rng.random(count, np.float32), keys, (60_000,))}, label)

    made = {
        "dense 100": (dense(100) for _ in range(20_000)),
        "dense 784": (dense(784) for _ in range(10_000)),
        "whole 100": (whole() for _ in range(20_000)),
        "token ids": (pair() for _ in range(20_000)),
        "sparse 40": (sparse() for _ in range(20_000)),
        "sparse 0-89": (varied() for _ in range(20_000)),
    }
    files = {}
    for name, records in made.items():
        files[name] = folder / f"{name.replace(' ', '_')}.rec"
        with files[name].open("wb") as stream:
            record.write(stream, records)
    files["images"] = folder / "images.rec"
    with files["images"].open("wb") as stream:
        image_record.write(stream, (image_record.image_record(n, 1.0, _photo(rng)) for n in range(300)))
    files["lines"] = folder / "lines.jsonl"
    with files["lines"].open("wb") as stream:
        rows = ({"in0": rng.integers(0, 9999, 12).tolist(), "in1": [n], "label": n % 2} for n in range(60_000))
        jsonlines.write(stream, rows)
    return files


def _photo(rng: np.random.Generator) -> bytes:
    """A JPEG of 360 x 480 that takes 30 to 40 kB, as photographs of that size do."""
    coarse = images.resize(rng.integers(0, 256, (45, 60, 3), np.uint8), 360, 480)
    noisy = coarse.astype(np.int16) + rng.integers(-6, 7, coarse.shape, np.int16)
    return images.encode_jpeg(np.clip(noisy, 0, 255).astype(np.uint8), 86)


# ---- peers -------------------------------------------------------------------------------------------------------


@contextmanager
def _peer(python: str, program: str) -> Iterator[Callable[[str, Path], Measure]]:
    """A process that runs one reader each time it is told to, and answers with the seconds."""
    process = subprocess.Popen(
        [python, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    while (line := stdout.readline()).strip() != "ready":
        if not line:
            raise SystemExit(f"{python} cannot run this peer; is it installed there?")

    def measured(kind: str, path: Path) -> Measure:
        def measure() -> float:
            stdin.write(f"{kind} {path}\n")
            stdin.flush()
            return float(stdout.readline())

        return measure

    try:
        yield measured
    finally:
        stdin.close()
        process.wait(30)


class Comparison(NamedTuple):
    name: str
    ours: Measure
    theirs: Measure
    target: float
    """Least ratio that is asked for; 0 for none."""


def _speed(files: dict[str, Path], rounds: int) -> None:
    sdk_python, mxnet_python = os.environ.get("PENSTOCK_SDK_PYTHON"), os.environ.get("PENSTOCK_MXNET_PYTHON")
    rows: list[Comparison] = []
    with ExitStack() as stack:
        if sdk_python:
            rows += _against_sdk(files, stack.enter_context(_peer(sdk_python, _SDK)))
        else:
            print("PENSTOCK_SDK_PYTHON is not set: the SDK's loop is restated")
            rows += _against_sdk(files, lambda _, path: _timed(_restated_sdk, path), arrays=False)
        if mxnet_python:
            theirs = stack.enter_context(_peer(mxnet_python, _MXNET))("images", files["images"])
            rows.append(Comparison("images / MXNet + Pillow", _timed(READERS["images"], files["images"]), theirs, 1.0))
        else:
            print("PENSTOCK_MXNET_PYTHON is not set: no comparison of image records")
        lines = files["lines"]
        rows.append(
            Comparison("lines / bare orjson", _timed(READERS["lines"], lines), _timed(_bare_orjson, lines), 0.8)
        )
        for row in rows:
            _compare(row, rounds)


def _against_sdk(
    files: dict[str, Path], sdk: Callable[[str, Path], Measure], *, arrays: bool = True
) -> Iterator[Comparison]:
    # (file, our reader, what the SDK's messages are made into, whether the bar holds against the messages too)
    pairings = [
        ("dense 100", "matrix", "matrix", True),
        ("dense 784", "matrix", "matrix", True),
        ("whole 100", "matrix", "matrix", False),
        ("sparse 40", "sparse", "csr", True),
        ("sparse 0-89", "sparse", "csr", False),
        ("token ids", "lists", "arrays", True),
        ("sparse 40", "records", "arrays", False),
        ("token ids", "records", "arrays", False),
    ]
    for name, reader, kind, both in pairings:
        ours = _timed(READERS[reader], files[name])
        bar = _BAR if reader != "records" else 0.0
        if arrays:
            yield Comparison(f"{name}: {reader} / SDK, then to arrays", ours, sdk(kind, files[name]), bar)
        yield Comparison(f"{name}: {reader} / SDK, messages only", ours, sdk("raw", files[name]), bar if both else 0.0)


def _compare(row: Comparison, rounds: int) -> None:
    name, ours, theirs, target = row
    ours()
    theirs()
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    ratios = sorted(their / our for our, their in pairs)
    verdict = "" if not target else ("ok" if median(ratios) >= target else "BELOW") + f" (target {target:g})"
    ours_ms, theirs_ms = (1e3 * median(times) for times in zip(*pairs, strict=True))
    print(
        f"{name:42} ours {ours_ms:7.1f} ms  theirs {theirs_ms:7.1f} ms  "
        f"ratio {median(ratios):6.2f}  [{ratios[0]:.2f} to {ratios[-1]:.2f}] {verdict}"
    )


# ---- memory ------------------------------------------------------------------------------------------------------


def _memory(files: dict[str, Path], folder: Path, size_mb: int) -> None:
    """Peak resident memory of one reader in a fresh process, on 10 MB and on the large file."""
    sources = {
        "framing": "dense 784",
        "records": "token ids",
        "lists": "token ids",
        "sparse": "sparse 40",
        "matrix": "dense 784",
        "images": "images",
        "lines": "lines",
    }
    for reader, source in sources.items():
        peaks = []
        for megabytes in (10, size_mb):
            path = folder / "grown"
            _repeat(files[source], path, megabytes << 20)
            command = [sys.executable, "-c", _MEMORY, reader, str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks.append(int(done.stdout) / 1024)
            path.unlink()
        verdict = "ok" if peaks[1] - peaks[0] < 16 else "GROWS"
        print(f"{reader:10} peak memory: 10 MB file {peaks[0]:.0f} MiB, {size_mb} MB file {peaks[1]:.0f} MiB {verdict}")


def _repeat(source: Path, target: Path, size: int) -> None:
    data = source.read_bytes()
    with target.open("wb") as stream:
        for _ in range(max(1, size // len(data))):
            stream.write(data)


if __name__ == "__main__":
    main()
