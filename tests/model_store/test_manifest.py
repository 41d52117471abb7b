"""What the manifest refuses, and that it reads back as it was written."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from formats.errors import CorruptBundle
from model_store.manifest import (
    MANIFEST,
    MANIFEST_CHECKSUM,
    Golden,
    Graph,
    Manifest,
    ParityCase,
    TensorSpec,
    read_manifest,
    write_manifest,
)
from tests.model_store.bundles import plain_manifest

OUTSIDE = ["../secret", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\\b", "a\0b", "a\n", "é", "a" * 256]
SHA = "0" * 64


def write_raw(directory: Path, value: Any) -> None:
    """Write a manifest that no exporter would write, with a checksum that fits."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    (directory / MANIFEST).write_bytes(text)
    (directory / MANIFEST_CHECKSUM).write_text(f"{hashlib.sha256(text).hexdigest()}  {MANIFEST}\n")


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_manifest_can_name_a_file_outside_its_directory(tmp_path: Path, name: str) -> None:
    whole = plain_manifest().model_dump()
    graph, golden = whole["graphs"]["model"], whole["golden"]
    for crafted in (
        {**whole, "files": {name: {"sha256": SHA, "size_bytes": 1}}},
        {**whole, "graphs": {"model": {**graph, "onnx": name}}},
        {**whole, "graphs": {"model": {**graph, "torchscript": name}}},
        {**whole, "golden": {**golden, "request": name}},
        {**whole, "golden": {**golden, "response": name}},
    ):
        write_raw(tmp_path, crafted)
        with pytest.raises(CorruptBundle, match=r"manifest\.json is not a manifest"):
            read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"default_mode": "other"}, "default_mode 'other' is none of the modes: predict"),
        ({"graphs": {}}, "mode 'predict' runs graph 'model'"),
        ({"name": "a/b"}, "name"),
        ({"files": {"a": {"sha256": "00", "size_bytes": 1}}}, "sha256"),
    ],
)
def test_a_manifest_that_does_not_hold_together_is_refused(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    write_raw(tmp_path, {**plain_manifest().model_dump(), **change})

    with pytest.raises(CorruptBundle, match=text):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"name": "\\ud800"}'])
def test_what_is_no_manifest_is_refused_in_one_printable_line(tmp_path: Path, text: bytes) -> None:
    write_raw(tmp_path, text)

    with pytest.raises(CorruptBundle) as caught:
        read_manifest(tmp_path)

    assert str(caught.value).isprintable()


def test_the_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    case = ParityCase(graph="model", batch_size=2, torchscript_max_abs_error=0.0, onnx_max_abs_error=1e-7)
    settings = {"labels": ["a", "b"], "sizes": [1, 2], "flag": True, "share": 0.1, "count": 3, "text": "3"}
    manifest = plain_manifest().model_copy(update={"settings": settings, "parity": [case], "metrics": {"loss": 0.125}})

    write_manifest(tmp_path, manifest)

    assert read_manifest(tmp_path) == manifest


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_metric_that_is_no_number_leaves_the_manifest_readable(tmp_path: Path, value: float) -> None:
    write_manifest(tmp_path, plain_manifest().model_copy(update={"metrics": {"loss": value}}))

    assert str(read_manifest(tmp_path).metrics["loss"]) == str(value)
    json.loads((tmp_path / MANIFEST).read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.parametrize("shape", [[-2], [1.5], ["a"]])
def test_a_shape_holds_sizes_or_minus_one(shape: list[Any]) -> None:
    with pytest.raises(ValidationError):
        TensorSpec(name="x", datatype="FP32", shape=shape)


def test_a_datatype_is_one_of_the_protocol() -> None:
    with pytest.raises(ValidationError, match="unknown datatype 'FLOAT'; known: BOOL"):
        TensorSpec(name="x", datatype="FLOAT", shape=[])


@pytest.mark.parametrize("tolerance", [-1.0, math.nan])
def test_a_tolerance_is_a_number_of_zero_or_more(tolerance: float) -> None:
    with pytest.raises(ValidationError):
        Golden(request="a", content_type="", accept="", response="b", tolerance=tolerance)


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        plain_manifest().algorithm = "other"


def test_a_graph_may_have_one_form_or_both() -> None:
    assert Graph(inputs=[], outputs=[], torchscript="model.pt").onnx is None
    assert Manifest.model_validate(plain_manifest().model_dump()).graphs["model"].torchscript is None
