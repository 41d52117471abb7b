"""A sealed bundle as a TorchServe model archive (`.mar`): one plain zip with the same files and a shim of a handler.

Written here and not by torch-model-archiver: that tool imports torch's stack, deflates weights that do not shrink, and
stamps the time of day, so that two archives of one bundle would differ.
"""

from __future__ import annotations

import json
import os
import secrets
import zipfile
from pathlib import Path

from model_store.manifest import MANIFEST, MANIFEST_CHECKSUM, read_manifest

__all__ = ["write_archive"]

_HANDLER = "handler.py"
_CONFIG = "model-config.yaml"
_SIGNATURE = "MAR-INF/MANIFEST.json"
_ADDED_NAMES = {_HANDLER, _CONFIG, MANIFEST, MANIFEST_CHECKSUM}

# TorchServe calls a module-level `handle` once with data None, to initialise it. An ImportError here would reach the
# log as "No module named ts.torch_handler.handler": it means that Penstock is not installed beside TorchServe.
_SHIM = '''\
"""Entry point for TorchServe; the work is done by the same handler as in Penstock's own workers."""

from handlers.torchserve import PenstockService

_service = PenstockService()


def handle(data, context):
    if data is None:
        _service.initialize(context)
        return None
    return _service.handle(data, context)
'''

# The gateway packs a whole batch into one request, so TorchServe must not wait for more of them. The retry window is
# long because TorchServe never revives a worker once the window has passed.
_MODEL_CONFIG = """\
minWorkers: 1
maxWorkers: 1
batchSize: 1
maxBatchDelay: 1
responseTimeout: 65
startupTimeout: 120
maxRetryTimeoutInSec: 86400
"""


def write_archive(directory: Path) -> None:
    """Write `<name>.mar` into a sealed bundle that has its name and version; the result depends on its files alone.

    Raises:
        CorruptBundle: the manifest is missing or altered.
        ValueError: the bundle has no name yet, or one of its files would be taken for one of the archive's own.
    """
    manifest = read_manifest(directory)
    if not (manifest.name and manifest.version):
        raise ValueError(f"{directory}: an archive needs the model's name and version, which publishing gives")
    clashes = sorted(_ADDED_NAMES & manifest.files.keys())
    if clashes:
        raise ValueError(f"{directory}: {', '.join(clashes)} would clash with the archive's own file of that name")
    target = directory / f"{manifest.name}.mar"
    aside = directory / f".{manifest.name}-{secrets.token_hex(4)}.mar"
    try:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:
            _add_text(archive, _SIGNATURE, _signature(manifest.name, manifest.version, manifest.created))
            _add_text(archive, _HANDLER, _SHIM)
            _add_text(archive, _CONFIG, _MODEL_CONFIG)
            names = [name for name in sorted(manifest.files) if not name.endswith(".mar")]
            for name in [MANIFEST, MANIFEST_CHECKSUM, *names]:
                _add_file(archive, directory / name)
        os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def _signature(name: str, version: str, created: str) -> str:
    model = {"modelName": name, "modelVersion": version, "handler": _HANDLER, "configFile": _CONFIG}
    signature = {"createdOn": created, "runtime": "python", "archiverVersion": "0.12.0", "model": model}
    return json.dumps(signature, indent=2) + "\n"


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # dated 1980: the same bundle gives the same bytes
    entry.external_attr = 0o644 << 16
    return entry


def _add_text(archive: zipfile.ZipFile, name: str, text: str) -> None:
    archive.writestr(_entry(name), text)


def _add_file(archive: zipfile.ZipFile, path: Path) -> None:
    entry = _entry(path.name)
    entry.file_size = path.stat().st_size
    with path.open("rb") as source, archive.open(entry, "w") as target:
        while piece := source.read(1 << 20):
            target.write(piece)
