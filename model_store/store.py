"""The published models on disk: `<root>/<name>/<version>/`, atomic to write, immutable, verified to read."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from formats.errors import CorruptBundle, NotFound
from model_store.manifest import (
    MANIFEST,
    MANIFEST_CHECKSUM,
    Manifest,
    ModelName,
    StoredFile,
    Version,
    place_of,
    read_manifest,
    sha256_of,
    write_manifest,
)

__all__ = ["DEFAULT_ROOT", "Bundle", "Store", "VersionExists", "seal"]

DEFAULT_ROOT = Path(__file__).parent / "archives"

_NAME: TypeAdapter[str] = TypeAdapter(ModelName)
_VERSION: TypeAdapter[str] = TypeAdapter(Version)
_STAGING = ".staging-"
_SWEPT = ".swept-"
_RESERVED_NAMES = {"stats"}  # GET /v2/models/stats would shadow it


class VersionExists(ValueError):
    """That version is published already; versions are immutable."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A directory with a manifest whose own checksum has been checked."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Raises `CorruptBundle` when the manifest is missing or altered."""
        return cls(path, read_manifest(path))

    def verify(self) -> None:
        """Compare every listed file with its checksum.

        Files that the manifest does not list are left alone: nothing opens them, publishing does not copy them, and
        TorchServe adds its own when it unpacks an archive.

        Raises:
            CorruptBundle: names the first file that is missing, altered, unreadable or a link, or that no checksum
                guards although a graph or the golden request needs it.
        """
        for name, stored in self.manifest.files.items():
            file = self.path / name
            try:
                if file.is_symlink() or not file.is_file():
                    raise CorruptBundle(f"{place_of(self.path)}: {name} is missing or not a plain file")
                if file.stat().st_size != stored.size_bytes or sha256_of(file) != stored.sha256:
                    raise CorruptBundle(f"{place_of(self.path)}: {name} does not match its checksum in {MANIFEST}")
            except OSError as error:
                raise CorruptBundle(f"{place_of(self.path)}: cannot read {name}: {error.strerror}") from error
        for name in self._required_files():
            if name not in self.manifest.files:
                raise CorruptBundle(f"{place_of(self.path)}: {MANIFEST} names {name} but holds no checksum for it")

    def _required_files(self) -> Iterator[str]:
        for graph in self.manifest.graphs.values():
            yield from (name for name in (graph.onnx, graph.torchscript) if name)
        if self.manifest.golden:
            yield from (self.manifest.golden.request, self.manifest.golden.response)


def seal(directory: Path, manifest: Manifest) -> Manifest:
    """Write the manifest with the checksums of the files that lie in the directory, and return it."""
    names = sorted(p.name for p in directory.iterdir() if p.name not in (MANIFEST, MANIFEST_CHECKSUM))
    files = {n: StoredFile(sha256=sha256_of(directory / n), size_bytes=(directory / n).stat().st_size) for n in names}
    sealed = Manifest.model_validate({**manifest.model_dump(), "files": files})
    write_manifest(directory, sealed)
    return sealed


class Store:
    """Models under one root directory."""

    def __init__(self, root: Path = DEFAULT_ROOT) -> None:
        self.root = root

    def publish(
        self,
        bundle: Path,
        *,
        name: str,
        version: str | None = None,
        archive: Callable[[Path], None] | None = None,
    ) -> Bundle:
        """Copy a bundle in under a name, so that it is there whole or not at all.

        Args:
            bundle: what an exporter wrote; it is verified first and left as it is.
            name: a letter, then letters, digits, `_`, `.` or `-`.
            version: by default one more than the largest whole number published.
            archive: called with the staged directory, to add files such as the TorchServe archive.

        Raises:
            CorruptBundle: a file of the bundle is not what its manifest says.
            VersionExists: that version is there already.
            ValueError: the name or the version cannot be routed.
        """
        check_name(name)
        if version is not None:
            check_version(version)
        source = Bundle.open(bundle)
        source.verify()
        self._make_root()
        with self._staging() as staged:
            for file in source.manifest.files:
                shutil.copyfile(source.path / file, staged / file)
            while True:
                chosen = version or self._next_version(name)
                manifest = seal_as(staged, source.manifest, name, chosen, archive)
                target = self.root / name / chosen
                if _move_into_place(staged, target):
                    return Bundle(target, manifest)
                if version is not None:
                    raise VersionExists(f"{name} version {version} is published already; versions are immutable")

    def names(self) -> list[str]:
        """Published model names, sorted."""
        return sorted(name for name in self._models() if any(_visible(self.root / name)))

    def versions(self, name: str) -> list[str]:
        """Versions of one model, oldest first by natural order (`2` before `10`); empty when unknown."""
        if not _matches(_NAME, name):
            return []
        model = f"{self.root}/{name}"
        present = (v for v in _visible(model) if _is_there(f"{model}/{v}/{MANIFEST}"))
        return sorted((v for v in present if _matches(_VERSION, v)), key=natural_order)

    def published(self) -> dict[str, list[str]]:
        """All there is to serve: models that have a version, sorted, and their versions, oldest first."""
        return {name: versions for name in sorted(self._models()) if (versions := self.versions(name))}

    def unreadable(self) -> list[Path]:
        """Version directories that hold no manifest: damaged, or copied in by hand and not whole yet."""
        found = (self.root / name / version for name in self._models() for version in _visible(self.root / name))
        return sorted(path for path in found if not (path / MANIFEST).exists())

    def open(self, name: str, version: str | None = None) -> Bundle:
        """The bundle of a version, by default the newest. Files are not verified here: see `Bundle.verify`.

        Raises:
            NotFound: no such model, or no such version of it.
            CorruptBundle: its manifest is missing or altered, or speaks of another model.
        """
        known = self.versions(name)
        if not known:
            raise NotFound(f"model '{name}' is not published in {self.root}")
        chosen = version or known[-1]
        if chosen not in known:
            raise NotFound(f"model '{name}' has no version '{chosen}'; published: {', '.join(known)}")
        bundle = Bundle.open(self.root / name / chosen)
        if (bundle.manifest.name, bundle.manifest.version) != (name, chosen):
            raise CorruptBundle(
                f"{place_of(bundle.path)}: {MANIFEST} is of {bundle.manifest.name} version {bundle.manifest.version}"
            )
        return bundle

    def _models(self) -> Iterator[str]:
        return (name for name in _visible(self.root) if _matches(_NAME, name))

    def _make_root(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise ValueError(f"store {self.root} is not a directory") from error

    @contextmanager
    def _staging(self) -> Iterator[Path]:
        """A directory aside, locked as long as this process works in it, and removed unless it was moved away."""
        staged = self.root / f"{_STAGING}{secrets.token_hex(8)}"
        # between the making and the locking of a directory nobody may sweep, hence the lock on the root
        with _opened(self.root) as root:
            may_sweep = _lock(root)
            staged.mkdir()
            descriptor = os.open(staged, os.O_RDONLY)
            _lock(descriptor)
            if may_sweep:
                self._sweep()
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove what publishes that were killed have left."""
        for left_over in self.root.glob(f"{_STAGING}*"):
            with suppress(OSError), _opened(left_over) as descriptor:
                if _lock(descriptor, wait=False):
                    # renamed first: where locks do not reach other machines, a publish that is running there fails
                    # whole when its directory is gone, and can never move half of it into place
                    left_over.rename(self.root / f"{_SWEPT}{left_over.name.removeprefix(_STAGING)}")
        for left_over in self.root.glob(f"{_SWEPT}*"):
            shutil.rmtree(left_over, ignore_errors=True)

    def _next_version(self, name: str) -> str:
        # whatever has the name is in the way, be it a damaged version or a file
        taken = (p.name for p in (self.root / name).glob("*"))
        number = str(max((int(v) for v in taken if v.isdecimal()), default=0) + 1)
        check_version(number)
        return number


def seal_as(
    directory: Path, manifest: Manifest, name: str, version: str, archive: Callable[[Path], None] | None
) -> Manifest:
    """Seal a staged directory under its name and version; the archive is made in between, so it holds both."""
    for left_over in directory.glob("*.mar"):
        left_over.unlink()
    named = seal(directory, Manifest.model_validate({**manifest.model_dump(), "name": name, "version": version}))
    for file, stored in named.files.items():
        # changed after it was verified: its new checksum must not make it good
        if manifest.files.get(file, stored) != stored:
            raise CorruptBundle(f"{place_of(directory)}: {file} changed while it was copied")
    if archive is None:
        return named
    archive(directory)
    return seal(directory, named)


def natural_order(version: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key in which runs of digits count as numbers and come after letters; `01` before `1`, but never equal."""
    parts = re.findall(r"\d+|\D+", version)
    return [(1, int(part), "") if part.isdecimal() else (0, 0, part) for part in parts], version


def check_name(name: str) -> None:
    if name in _RESERVED_NAMES or not _matches(_NAME, name):
        raise ValueError(
            f"model name '{name}' must be a letter and then up to 62 letters, digits, '_', '.' or '-', "
            f"and not one of: {', '.join(sorted(_RESERVED_NAMES))}"
        )


def check_version(version: str) -> None:
    if not _matches(_VERSION, version):
        raise ValueError(f"version '{version}' must be 1 to 32 letters, digits, '_', '.' or '-'")


def _matches(kind: TypeAdapter[str], value: str) -> bool:
    try:
        kind.validate_python(value)
    except ValidationError:
        return False
    return True


def _is_there(path: str) -> bool:
    """As `Path.exists`, in half the time; a mount that fails must not look like a removal there either."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _visible(directory: Path | str) -> Iterator[str]:
    """Names of the directories in it. By `scandir`: a gateway looks at a thousand of them again and again."""
    try:
        entries = os.scandir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            if not entry.name.startswith(".") and entry.is_dir():
                yield entry.name


def _move_into_place(staged: Path, target: Path) -> bool:
    """Make the staged directory durable, then rename it; False when the target is there already."""
    for file in staged.iterdir():
        file.chmod(0o444)
        _fsync(file)
    _fsync(staged)
    target.parent.mkdir(exist_ok=True)
    try:
        staged.rename(target)
    except OSError:
        if os.path.lexists(target):
            return False
        raise
    _fsync(target.parent)
    _fsync(target.parent.parent)
    return True


def _fsync(path: Path) -> None:
    with _opened(path) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool = True) -> bool:
    """Lock a directory until its descriptor is closed or the process dies; False when busy or not to be locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:  # some network file systems lock no directories: what is left there waits for the operator
        return False
    return True
