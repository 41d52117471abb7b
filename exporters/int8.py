"""A vision bundle's ONNX graph with 8-bit weights and activations (Jacob et al. 2017, arXiv:1712.05877).

Ranges of activations are measured on images that the user gives, by ONNX Runtime's static quantisation. The last
convolutions, whose outputs are scores and offsets, and what follows them stay in float: there is little to gain there,
and the answers come from there.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from exporters.graphs import onnx_session
from formats import images
from formats.errors import InvalidBody
from handlers.algorithms import load_handler
from handlers.graph import Runtime
from model_store.golden import golden_prediction
from model_store.manifest import Graph, Manifest
from model_store.store import Bundle, seal
from trainers.job import ClientError

__all__ = ["MAX_IMAGES", "quantize"]

MAX_IMAGES = 300
"""More say nothing new about ranges."""
_SUFFIXES = {".jpg", ".jpeg", ".png"}
_HEAVY = ("Conv", "Gemm", "MatMul")
_LIGHT = ("Add", "Relu", "MaxPool", "GlobalAveragePool", "Concat")
"""What lies between two heavy operators and need not go back to float for it."""
_GOLDEN_TOLERANCE = 0.05
"""Processors without 8-bit dot products round sums of pairs otherwise."""

Pixels = NDArray[np.uint8]


def quantize(bundle: Path, pictures: Path, output: Path) -> Path:
    """Write a bundle that answers as `bundle` does, with 8-bit arithmetic on CPUs, and return `output`.

    Args:
        bundle: of a vision algorithm: its graph takes `image`, (N, H, W, 3) uint8.
        pictures: directory tree of JPEG and PNG files, such as the model was trained on; up to 300 of them, evenly
            spaced in the order of their names, give the ranges.
        output: a directory that does not exist yet, or is empty. Its bundle has no TorchScript form.

    Raises:
        ClientError: no such graph, no picture, a file that is none, or there is something at `output` already.
    """
    given = Bundle.open(bundle)
    given.verify()
    graph = _only_graph(given)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ClientError(f"{output} exists already; choose another output, or remove it.")
    _, height, width, _ = graph.inputs[0].shape
    if min(height, width) < 1:
        raise ClientError(f"{bundle}: its graph takes images of any size; ranges are measured for a fixed one.")
    reader = _Reader(_chosen(pictures), height, width)
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.parent / f".{output.name}-{secrets.token_hex(4)}"
    aside.mkdir()
    try:
        assert graph.onnx is not None
        _quantize_file(given.path / graph.onnx, aside / graph.onnx, reader)
        seal(aside, _describe(given, graph, aside))
        _renew_golden(aside)
        os.replace(aside, output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return output


def _only_graph(bundle: Bundle) -> Graph:
    graphs = bundle.manifest.graphs
    if len(graphs) == 1:
        (graph,) = graphs.values()
        if graph.onnx and [(each.name, each.datatype, len(each.shape)) for each in graph.inputs] == [
            ("image", "UINT8", 4)
        ]:
            return graph
    raise ClientError(
        f"{bundle.path}: expected one ONNX graph that takes 'image', UINT8 of 4 dimensions; it is of algorithm "
        f"'{bundle.manifest.algorithm}' with graphs {', '.join(graphs)}."
    )


def _chosen(pictures: Path) -> list[Path]:
    files = sorted(file for file in pictures.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
    if not files:
        raise ClientError(f"{pictures}: no {', '.join(sorted(_SUFFIXES))} files there to measure ranges on.")
    count = min(len(files), MAX_IMAGES)
    return [files[number * len(files) // count] for number in range(count)]


class _Reader:
    """Feeds one picture after another (onnxruntime's CalibrationDataReader)."""

    def __init__(self, files: list[Path], height: int, width: int) -> None:
        self._files = files
        self._size = height, width
        self._next = iter(files)

    def get_next(self) -> dict[str, Pixels] | None:
        file = next(self._next, None)
        if file is None:
            return None
        try:
            return {"image": images.resize(images.decode(file.read_bytes()), *self._size)[None]}
        except InvalidBody as error:
            raise ClientError(f"{file}: {error}") from error

    def rewind(self) -> None:
        self._next = iter(self._files)


def _quantize_file(source: Path, target: Path, reader: _Reader) -> None:
    onnx_session(source)  # sets what must be set before onnxruntime is imported
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static  # noqa: PLC0415
    from onnxruntime.quantization.shape_inference import quant_pre_process  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / "prepared.onnx"
        # batch norms were folded by the export; shapes alone are missing
        quant_pre_process(str(source), str(prepared), skip_optimization=True, skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
        _name_nodes(model)
        chosen = list(_worth_it(model))
        if not chosen:
            raise ClientError(f"{source.name} holds nothing to quantise: no convolution that another one follows.")
        onnx.save(model, str(prepared))
        with contextlib.redirect_stdout(io.StringIO()):
            quantize_static(
                str(prepared),
                str(target),
                reader,
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*_HEAVY, *_LIGHT],
                nodes_to_quantize=chosen,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"CalibMovingAverage": True},
            )


def _name_nodes(model: onnx.ModelProto) -> None:
    """The quantiser chooses by name, and names may be missing."""
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"


def _worth_it(model: onnx.ModelProto) -> Iterator[str]:
    """Heavy operators and what lies between them: all from which another heavy one can be reached."""
    wanted: set[str] = set()  # values that a heavy operator needs
    for node in reversed(model.graph.node):  # in topological order, as ONNX demands
        if not wanted.isdisjoint(node.output):
            if node.op_type in _HEAVY + _LIGHT:
                yield node.name
            wanted.update(node.input)
        elif node.op_type in _HEAVY:
            wanted.update(node.input)


def _describe(given: Bundle, graph: Graph, directory: Path) -> Manifest:
    """Copy the other files; the metrics were measured with other arithmetic and are left out."""
    for file in given.manifest.files:
        if file not in (graph.onnx, graph.torchscript) and not file.endswith(".mar"):
            shutil.copyfile(given.path / file, directory / file)
    told = given.manifest.model_dump()
    told |= {"name": "", "version": "", "files": {}, "metrics": {}, "parity": [], "parity_tolerance": 0.0}
    told |= {"graphs": {name: {**each, "torchscript": None} for name, each in told["graphs"].items()}}
    told |= {"settings": {**told["settings"], "quantized": "int8"}}
    told |= {"created": datetime.now(UTC).isoformat(timespec="seconds")}
    if told["golden"] is not None:
        told["golden"] |= {"tolerance": _GOLDEN_TOLERANCE}
    return Manifest.model_validate(told)


def _renew_golden(directory: Path) -> None:
    """The known answer becomes the new graph's own.

    Raises:
        ClientError: the new graph cannot answer.
    """
    bundle = Bundle.open(directory)
    golden, asked = bundle.manifest.golden, golden_prediction(bundle)
    if golden is None or asked is None:
        return
    (outcome,) = load_handler(bundle, Runtime()).predict([asked])
    if not outcome.ok:
        raise ClientError(f"the quantised graph cannot answer: {outcome.error_code}: {outcome.error_message}")
    (directory / golden.response).write_bytes(outcome.body)
    seal(directory, bundle.manifest)
