"""The archive that publishing adds for TorchServe (protocol contract, sections 3.5 to 3.7)."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from exporters.archive import write_archive
from formats.errors import CorruptBundle
from model_store.manifest import MANIFEST, Graph, Manifest, Mode, TensorSpec
from model_store.store import Bundle, Store, seal


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A sealed bundle with one graph file; archives do not look inside files."""
    directory = tmp_path / "bundle"
    directory.mkdir()
    (directory / "model.onnx").write_bytes(b"\0" * 5000)
    (directory / "labels.json").write_text('["zero", "one"]')
    seal(directory, _manifest())
    return directory


def _manifest() -> Manifest:
    spec = TensorSpec(name="x", datatype="FP32", shape=[-1, 1])
    return Manifest(
        algorithm="image_classification",
        default_mode="predict",
        modes={"predict": Mode(graph="model", placement=["cpu"], content_types=["image/png"], accepts=["a/b"])},
        graphs={"model": Graph(onnx="model.onnx", inputs=[spec], outputs=[spec])},
        created="2026-01-02T03:04:05Z",
    )


@pytest.fixture
def archive(bundle: Path, tmp_path: Path) -> zipfile.ZipFile:
    published = Store(tmp_path / "store").publish(bundle, name="digits", archive=write_archive)
    return zipfile.ZipFile(published.path / "digits.mar")


def test_the_archive_names_model_version_handler_and_configuration(archive: zipfile.ZipFile) -> None:
    signature = json.loads(archive.read("MAR-INF/MANIFEST.json"))

    assert signature["runtime"] == "python"
    assert signature["model"] == {
        "modelName": "digits",
        "modelVersion": "1",
        "handler": "handler.py",
        "configFile": "model-config.yaml",
    }


def test_the_archive_holds_every_file_flat_and_stored(archive: zipfile.ZipFile) -> None:
    names = {"model.onnx", "labels.json", "manifest.json", "manifest.sha256", "handler.py", "model-config.yaml"}

    assert set(archive.namelist()) == names | {"MAR-INF/MANIFEST.json"}
    assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_the_unpacked_archive_is_a_bundle_that_verifies(archive: zipfile.ZipFile, tmp_path: Path) -> None:
    archive.extractall(tmp_path / "unpacked")

    bundle = Bundle.open(tmp_path / "unpacked")
    bundle.verify()
    assert (bundle.manifest.name, bundle.manifest.version) == ("digits", "1")


def test_torchserve_is_told_one_worker_and_no_batching(archive: zipfile.ZipFile) -> None:
    config = yaml.safe_load(archive.read("model-config.yaml"))

    assert (config["minWorkers"], config["maxWorkers"], config["batchSize"]) == (1, 1, 1)


def test_the_shim_initialises_on_no_data_and_then_answers(archive: zipfile.ZipFile, tmp_path: Path) -> None:
    """Run as TorchServe runs it: imported as `handler`, called once with None, then with requests."""
    archive.extract("handler.py", tmp_path)
    (tmp_path / "handlers").mkdir()
    (tmp_path / "handlers" / "torchserve.py").write_text(
        "class PenstockService:\n"
        "    def initialize(self, context): self.name = context\n"
        "    def handle(self, data, context): return [self.name + d for d in data]\n"
    )
    program = "import handler; print(handler.handle(None, 'ctx-'), handler.handle(['a', 'b'], 'ctx-'))"

    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "None ['ctx-a', 'ctx-b']\n"


def test_one_bundle_gives_one_archive_byte_for_byte(bundle: Path) -> None:
    seal(bundle, Manifest.model_validate({**_manifest().model_dump(), "name": "m", "version": "2"}))
    write_archive(bundle)
    first = (bundle / "m.mar").read_bytes()
    write_archive(bundle)

    assert (bundle / "m.mar").read_bytes() == first
    assert not list(bundle.glob(".*"))


def test_a_bundle_without_a_name_is_refused(bundle: Path) -> None:
    with pytest.raises(ValueError, match="needs the model's name and version"):
        write_archive(bundle)


def test_a_bundle_that_brings_a_handler_of_its_own_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "handler.py").write_text("import os")
    seal(bundle, _manifest())

    with pytest.raises(ValueError, match=r"handler\.py would clash"):
        Store(tmp_path / "store").publish(bundle, name="m", archive=write_archive)


def test_an_altered_manifest_is_refused(bundle: Path) -> None:
    (bundle / MANIFEST).write_text("{}")

    with pytest.raises(CorruptBundle):
        write_archive(bundle)


def test_writing_an_archive_does_not_import_torch() -> None:
    program = "import sys, exporters.archive; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
