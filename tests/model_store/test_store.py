"""Layout, names, versions and verification of the published models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from formats.errors import CorruptBundle, NotFound
from model_store.manifest import MANIFEST, MANIFEST_CHECKSUM, StoredFile, write_manifest
from model_store.store import Bundle, Store, VersionExists, natural_order, seal
from tests.model_store.bundles import FILES, plain_manifest, write_plain_bundle

EVERY_FILE = [*FILES, MANIFEST, MANIFEST_CHECKSUM]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_plain_bundle(tmp_path / "bundle")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "deep" / "store")


def open_and_verify(path: Path) -> None:
    Bundle.open(path).verify()


def adding(name: str) -> Callable[[Path], None]:
    def add(staged: Path) -> None:
        (staged / name).write_bytes(b"zip")

    return add


def test_a_published_version_holds_what_was_exported_under_its_name(store: Store, bundle: Path) -> None:
    published = store.publish(bundle, name="digits")

    assert published.path == store.root / "digits" / "1"
    assert (published.manifest.name, published.manifest.version) == ("digits", "1")
    assert {p.name: p.read_bytes() for p in published.path.iterdir() if p.name in FILES} == FILES
    assert store.open("digits").manifest == published.manifest
    published.verify()


def test_the_source_is_left_as_it_was(store: Store, bundle: Path) -> None:
    before = {p.name: p.read_bytes() for p in bundle.iterdir()}

    store.publish(bundle, name="digits")

    assert {p.name: p.read_bytes() for p in bundle.iterdir()} == before


def test_versions_count_up_from_the_largest_number(store: Store, bundle: Path) -> None:
    versions = [store.publish(bundle, name="m", version=v).manifest.version for v in (None, "9", "beta-7", "10", None)]

    assert versions == ["1", "9", "beta-7", "10", "11"]


def test_versions_are_listed_in_natural_order_and_the_last_is_the_newest(store: Store, bundle: Path) -> None:
    for version in ("10", "2", "rc1", "1.10", "1.9", "01", "1"):
        store.publish(bundle, name="m", version=version)

    assert store.versions("m") == ["rc1", "01", "1", "1.9", "1.10", "2", "10"]
    assert store.open("m").manifest.version == "10"


def test_different_versions_never_compare_as_equal() -> None:
    versions = ["1", "01", "001", "1.0", "v1", "v01"]

    assert len({str(natural_order(version)) for version in versions}) == len(versions)


def test_a_version_is_immutable(store: Store, tmp_path: Path) -> None:
    first = store.publish(write_plain_bundle(tmp_path / "a", tag="first"), name="m", version="1")

    with pytest.raises(VersionExists, match="m version 1 is published already"):
        store.publish(write_plain_bundle(tmp_path / "b", tag="second"), name="m", version="1")

    assert (first.path / "labels.txt").read_text().endswith("first")
    assert all(p.stat().st_mode & 0o222 == 0 for p in first.path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "/a",
        "..a",
        "-a",
        "1a",
        "é",
        "a b",
        "a\n",
        "a\0b",
        "a" * 64,
        "stats",
        "a%2fb",
        "a:b",
        "\uff41",
    ],
)
def test_a_name_that_cannot_be_routed_is_refused(store: Store, bundle: Path, name: str) -> None:
    with pytest.raises(ValueError, match="must be a letter and then up to 62 letters, digits"):
        store.publish(bundle, name=name)

    assert not store.root.exists()


@pytest.mark.parametrize(
    "version", ["", ".", "..", "1/2", "../1", ".hidden", "-1", "1 2", "1\n", "٣", "é", "1" * 33, "_1", "a\0"]
)
def test_a_version_that_cannot_be_routed_is_refused(store: Store, bundle: Path, version: str) -> None:
    with pytest.raises(ValueError, match="must be 1 to 32 letters, digits"):
        store.publish(bundle, name="m", version=version)

    assert not store.root.exists()


@pytest.mark.parametrize("name", ["a", "Z", "a" * 63, "a.b-c_D.1", "statsx"])
def test_a_name_that_can_be_routed_is_taken(store: Store, bundle: Path, name: str) -> None:
    assert store.publish(bundle, name=name).manifest.name == name
    assert store.names() == [name]


def test_no_number_is_left_after_the_largest_that_fits(store: Store, bundle: Path) -> None:
    store.publish(bundle, name="m", version="9" * 32)

    with pytest.raises(ValueError, match="must be 1 to 32 letters"):
        store.publish(bundle, name="m")


@pytest.mark.parametrize("kind", ["file", "link", "damaged"])
def test_what_lies_in_the_way_of_a_number_is_stepped_over(store: Store, bundle: Path, kind: str) -> None:
    model = store.root / "m"
    model.mkdir(parents=True)
    if kind == "file":
        (model / "1").touch()
    elif kind == "link":
        (model / "1").symlink_to("nowhere")
    else:
        (model / "1").mkdir()
        (model / "1" / "model.onnx").touch()

    assert store.publish(bundle, name="m").manifest.version == "2"
    with pytest.raises(VersionExists):
        store.publish(bundle, name="m", version="1")


def test_a_store_that_is_a_file_is_named(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ValueError, match="file is not a directory"):
        Store(tmp_path / "file").publish(bundle, name="m")


def test_names_are_those_that_have_a_version_and_can_be_routed(store: Store, bundle: Path) -> None:
    store.publish(bundle, name="b")
    store.publish(bundle, name="a")
    for foreign in ("empty", ".hidden/1", "lost+found/1"):
        (store.root / foreign).mkdir(parents=True)
    (store.root / "file").touch()

    assert store.names() == ["a", "b"]


def test_a_store_that_does_not_exist_is_empty(store: Store) -> None:
    assert (store.names(), store.versions("m"), store.unreadable()) == ([], [], [])


def test_what_is_not_published_is_not_found(store: Store, bundle: Path) -> None:
    store.publish(bundle, name="m", version="7")

    with pytest.raises(NotFound, match="'other' is not published"):
        store.open("other")
    with pytest.raises(NotFound, match="'m' has no version '8'; published: 7"):
        store.open("m", "8")
    for path in ("..", "m/../m", ".", ""):
        with pytest.raises(NotFound):
            store.open(path)
        with pytest.raises(NotFound):
            store.open("m", path or "../7")


def test_a_version_without_a_manifest_is_not_served_but_told(store: Store, bundle: Path) -> None:
    published = store.publish(bundle, name="m")
    (published.path / MANIFEST).unlink()

    assert store.versions("m") == []
    assert store.unreadable() == [published.path]


def test_a_version_moved_under_another_name_is_refused(store: Store, bundle: Path) -> None:
    published = store.publish(bundle, name="m")
    published.path.rename(store.root / "m" / "2")

    with pytest.raises(CorruptBundle, match=r"manifest\.json is of m version 1"):
        store.open("m", "2")


@pytest.mark.parametrize("name", EVERY_FILE)
def test_a_flipped_bit_in_any_file_is_refused_and_the_file_is_named(bundle: Path, name: str) -> None:
    whole = (bundle / name).read_bytes()
    for position in {0, len(whole) // 2, len(whole) - 1}:
        altered = bytearray(whole)
        altered[position] ^= 1
        (bundle / name).write_bytes(altered)

        with pytest.raises(CorruptBundle, match=name.replace(".", r"\.")):
            open_and_verify(bundle)

    (bundle / name).write_bytes(whole)
    open_and_verify(bundle)


@pytest.mark.parametrize("name", EVERY_FILE)
@pytest.mark.parametrize("damage", ["missing", "cut", "longer", "link", "directory", "pipe"])
def test_a_file_that_is_not_what_was_written_is_refused_and_named(bundle: Path, name: str, damage: str) -> None:
    file, content = bundle / name, (bundle / name).read_bytes()
    file.unlink()
    if damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "longer":
        file.write_bytes(content + b"\n")
    elif damage == "link":  # to the very same bytes
        (bundle.parent / "elsewhere").write_bytes(content)
        file.symlink_to(bundle.parent / "elsewhere")
    elif damage == "directory":
        file.mkdir()
    elif damage == "pipe":
        os.mkfifo(file)

    with pytest.raises(CorruptBundle, match=name.replace(".", r"\.")):
        open_and_verify(bundle)


def test_a_corrupt_bundle_is_not_published(store: Store, bundle: Path) -> None:
    (bundle / "labels.txt").write_bytes(b"a\nc\n")

    with pytest.raises(CorruptBundle, match=r"labels\.txt does not match"):
        store.publish(bundle, name="m")

    assert store.names() == []


def test_a_file_that_a_graph_needs_must_have_a_checksum(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    rest = {name: stored for name, stored in manifest.files.items() if name != "model.onnx"}
    write_manifest(bundle, manifest.model_copy(update={"files": rest}))

    with pytest.raises(CorruptBundle, match=r"names model\.onnx but holds no checksum"):
        open_and_verify(bundle)


def test_a_file_that_nobody_listed_does_not_matter_and_is_not_published(store: Store, bundle: Path) -> None:
    (bundle / "notes.txt").write_text("not part of the model")

    published = store.publish(bundle, name="m")

    assert sorted(p.name for p in published.path.iterdir()) == sorted(EVERY_FILE)
    (published.path / ".nfs0001").touch()
    published.verify()


def test_a_file_that_changes_while_it_is_copied_gets_no_good_checksum(
    store: Store, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verify = Bundle.verify

    def verify_then_change(self: Bundle) -> None:
        verify(self)
        (bundle / "labels.txt").write_bytes(b"z\nb\n")

    monkeypatch.setattr(Bundle, "verify", verify_then_change)  # the moment between the check and the copy

    with pytest.raises(CorruptBundle, match=r"labels\.txt changed while it was copied"):
        store.publish(bundle, name="m")

    assert [p for p in store.root.rglob("*") if p.is_file()] == []


def test_what_the_archive_callback_adds_is_guarded_too(store: Store, bundle: Path) -> None:
    published = store.publish(bundle, name="m", archive=adding("m.mar"))

    assert published.manifest.files["m.mar"].size_bytes == 3
    (published.path / "m.mar").chmod(0o600)
    (published.path / "m.mar").write_bytes(b"zap")
    with pytest.raises(CorruptBundle, match=r"m\.mar does not match"):
        store.open("m").verify()


def test_a_published_version_can_be_published_again_without_its_old_archive(store: Store, bundle: Path) -> None:
    first = store.publish(bundle, name="m", archive=adding("m.mar"))

    second = store.publish(first.path, name="n", archive=adding("n.mar"))

    assert sorted(second.manifest.files) == sorted([*FILES, "n.mar"])
    second.verify()


def test_sealing_lists_every_file_with_size_and_checksum(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"abc")

    sealed = seal(tmp_path, plain_manifest().model_copy(update={"golden": None}))

    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert sealed.files == {"model.onnx": StoredFile(sha256=digest, size_bytes=3)}
    open_and_verify(tmp_path)
