"""Sealed bundles of a few bytes: the store does not look inside files."""

from __future__ import annotations

from pathlib import Path

from model_store.manifest import Golden, Graph, Manifest, Mode, TensorSpec
from model_store.store import seal

__all__ = ["FILES", "plain_manifest", "write_plain_bundle"]

FILES = {
    "model.onnx": b"\0" * 3000,
    "golden.json": b'{"x": [1]}',
    "answer.json": b'{"y": [1.0]}',
    "labels.txt": b"a\nb\n",
}


def plain_manifest() -> Manifest:
    spec = TensorSpec(name="x", datatype="FP32", shape=[-1, 1])
    return Manifest(
        algorithm="tensor",
        default_mode="predict",
        modes={"predict": Mode(graph="model", placement=["cpu"], content_types=["a/b"], accepts=["application/json"])},
        graphs={"model": Graph(onnx="model.onnx", inputs=[spec], outputs=[spec])},
        golden=Golden(
            request="golden.json", content_type="a/b", accept="application/json", response="answer.json", tolerance=0.25
        ),
    )


def write_plain_bundle(directory: Path, *, tag: str = "") -> Path:
    """Write a bundle whose label file ends with the tag, and return its directory."""
    directory.mkdir(parents=True)
    for name, content in FILES.items():
        (directory / name).write_bytes(content)
    with (directory / "labels.txt").open("a") as labels:
        labels.write(tag)
    seal(directory, plain_manifest())
    return directory
