"""Where training data come from: a file, a directory tree, a pipe, or a URL; each is read as a stream.

Readers elsewhere in this room take an open binary stream. This module finds the files of a channel, opens them one
after the other, gives each of several readers its share, and shuffles within a buffer: memory does not grow with the
data.
"""

from __future__ import annotations

import os
import random
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

from formats.errors import InvalidBody
from formats.recordio import OnBad, RawRecord, encode_record, head_from, read_records

__all__ = [
    "WHOLE",
    "Shard",
    "attribute_fetcher",
    "epoch_pipe",
    "feed_pipe",
    "list_files",
    "open_file",
    "read_all",
    "read_raw",
    "shuffled",
    "wrapped",
]

T = TypeVar("T")

_BLOCK = 8 << 20
_OPTIONS: Mapping[str, Any] = {}


class Shard(NamedTuple):
    """One reader's share of a channel."""

    rank: int = 0
    world_size: int = 1


WHOLE = Shard()

# ---- finding and opening -----------------------------------------------------------------------------------------


def list_files(
    location: str | Path, *, suffixes: Sequence[str] = (), options: Mapping[str, Any] = _OPTIONS
) -> list[str]:
    """The files of a channel, sorted: the location itself, or all files of the tree below it.

    Names that start with `.` (and what lies in such directories) and `_SUCCESS` are left out, as AWS documents.

    Args:
        location: a path, or a URL that fsspec knows, such as `s3://bucket/prefix`.
        suffixes: keep only names that end in one of these, in any case; empty for all.
        options: for fsspec's file system, such as `client_kwargs`.

    Raises:
        InvalidBody: nothing is there, or no file that fits.
    """
    files = _remote_files(str(location), options) if _is_url(location) else _local_files(Path(location))
    wanted = tuple(suffix.lower() for suffix in suffixes)
    found = [file for file in files if not wanted or file.lower().endswith(wanted)]
    if not found:
        what = f"no file that ends in {' or '.join(suffixes)}" if suffixes else "no file"
        raise InvalidBody(f"{location}: {what} is there")
    return found


@contextmanager
def open_file(file: str | Path, *, options: Mapping[str, Any] = _OPTIONS) -> Iterator[BinaryIO]:
    """An open binary stream of a path, a pipe, or a URL.

    Opening a pipe waits for its writer; leaving early is no error for the reader.

    Raises:
        InvalidBody: not there, or not readable.
    """
    try:
        # closed below, whichever kind it is
        stream = _open_url(str(file), options) if _is_url(file) else Path(file).open("rb")  # noqa: SIM115
    except OSError as error:
        raise InvalidBody(f"{file}: cannot be read: {error.strerror or error}") from error
    with stream:
        yield stream


def epoch_pipe(directory: str | Path, channel: str, epoch: int, *, timeout_s: float = 60.0) -> Path:
    """The pipe of a channel's epoch (from 0) in Pipe mode, `<channel>_<epoch>`; waits until it exists.

    Raises:
        InvalidBody: it has not come within the timeout.
    """
    path = Path(directory) / f"{channel}_{epoch}"
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise InvalidBody(f"{path}: pipe of channel '{channel}', epoch {epoch}, has not come in {timeout_s:g} s")
        time.sleep(0.01)
    return path


# ---- reading -----------------------------------------------------------------------------------------------------


def read_all(
    files: Iterable[str | Path],
    reader: Callable[[BinaryIO, str], Iterator[T]],
    *,
    shard: Shard = WHOLE,
    options: Mapping[str, Any] = _OPTIONS,
) -> Iterator[T]:
    """Yield what `reader` finds in each file, one after the other.

    With several readers, each takes every n-th item of the whole: it works for pipes and gzip too, at the price that
    every reader reads everything. `read_raw` does better for RecordIO.

    Args:
        files: paths or URLs.
        reader: called with an open stream and the file's name, such as `formats.jsonlines.read`.
        shard: which share to yield.
        options: for fsspec's file systems.
    """

    def items() -> Iterator[T]:
        for file in files:
            with open_file(file, options=options) as stream:
                yield from reader(stream, str(file))

    return islice(items(), shard.rank, None, shard.world_size)


def read_raw(
    files: Sequence[str | Path],
    *,
    shard: Shard = WHOLE,
    skip_bad: bool = False,
    on_bad: OnBad | None = None,
    options: Mapping[str, Any] = _OPTIONS,
) -> Iterator[RawRecord]:
    """Yield the records of RecordIO files; with several readers each reads its own range of bytes.

    The files count as one long file that is cut into equal parts, and each cut moves forward to a record head, so that
    every record belongs to exactly one reader. Pipes have no size: there each reader takes every n-th record.

    Raises:
        InvalidBody: damage, with file, record number and byte offset; or no record in a file.
    """
    if shard.world_size == 1 or any(not _is_url(file) and _is_pipe(file) for file in files):

        def whole(stream: BinaryIO, name: str) -> Iterator[RawRecord]:
            return read_records(stream, name, skip_bad=skip_bad, on_bad=on_bad)

        yield from read_all(files, whole, shard=shard, options=options)
        return
    sizes = [_size_of(file, options) for file in files]
    begin = 0
    for file, size in zip(files, sizes, strict=True):
        low, high = _range_of(shard, sum(sizes), begin, size)
        begin += size
        if low == high and size:
            continue
        with open_file(file, options=options) as stream:
            start, stop = (head_from(stream, at, size) for at in (low, high))
            stream.seek(start)
            yield from read_records(stream, str(file), start=start, stop=stop, skip_bad=skip_bad, on_bad=on_bad)


def shuffled(items: Iterable[T], size: int, seed: int, epoch: int = 0) -> Iterator[T]:
    """Yield the items in another order, by a buffer of `size`; the same seed and epoch give the same order.

    With a buffer as large as the data this is a uniform shuffle; 1 keeps the order.
    """
    chance = random.Random(f"{seed}/{epoch}")
    source = iter(items)
    buffer = list(islice(source, size))
    for item in source:
        at = chance.randrange(size)
        yield buffer[at]
        buffer[at] = item
    chance.shuffle(buffer)
    yield from buffer


def attribute_fetcher(
    roots: Mapping[str, str | Path] | None = None,
    *,
    max_bytes: int = 256 << 20,
    options: Mapping[str, Any] = _OPTIONS,
) -> Callable[[str], bytes]:
    """A function that gives the bytes of a manifest's `-ref` URI.

    Args:
        roots: URI prefix -> local directory, such as `{"s3://bucket/": "/data"}`; other URIs go to fsspec.
        max_bytes: largest accepted object.
        options: for fsspec's file systems.
    """
    mapping = {prefix: Path(root) for prefix, root in (roots or {}).items()}

    def fetch(uri: str) -> bytes:
        file: str | Path = uri
        for prefix, root in mapping.items():
            if uri.startswith(prefix):
                rest = PurePosixPath(uri[len(prefix) :].lstrip("/"))
                if ".." in rest.parts:
                    raise InvalidBody(f"'{uri[:200]}' leaves its prefix '{prefix}'")
                file = root / rest
                break
        else:
            # a bare path in a manifest would read any file of this machine
            if not _is_url(uri) or uri.startswith(("file:", "local:")):
                raise InvalidBody(f"'{uri[:200]}' is neither a URL nor under a known prefix: {', '.join(mapping)}")
        with open_file(file, options=options) as stream:
            data = stream.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise InvalidBody(f"'{uri[:200]}' has more than {max_bytes} bytes")
        return data

    return fetch


# ---- pipes, from the writing side --------------------------------------------------------------------------------


def feed_pipe(path: str | Path, chunks: Iterable[bytes]) -> bool:
    """Make a pipe if it is not there, and write chunks into it; blocks until a reader comes.

    Returns whether all was taken: a reader that leaves early is normal in Pipe mode.
    """
    path = Path(path)
    if not path.exists():
        os.mkfifo(path, 0o600)
    try:
        with path.open("wb") as pipe:
            for chunk in chunks:
                pipe.write(chunk)
    except BrokenPipeError:
        return False
    return True


def wrapped(
    files: Iterable[str | Path], *, record_io: bool = False, options: Mapping[str, Any] = _OPTIONS
) -> Iterator[bytes]:
    """The chunks of Pipe mode: files one after the other, or with `record_io` each of them as one record."""
    for file in files:
        with open_file(file, options=options) as stream:
            if record_io:
                yield encode_record(stream.read(), split=False)
            else:
                while chunk := stream.read(1 << 20):
                    yield chunk


# ---- local and remote --------------------------------------------------------------------------------------------


def _is_url(file: str | Path) -> bool:
    return isinstance(file, str) and "://" in file


def _is_pipe(file: str | Path) -> bool:
    try:
        return stat.S_ISFIFO(os.stat(file).st_mode)
    except OSError:
        return False


def _hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") or part == "_SUCCESS" for part in parts)


def _local_files(path: Path) -> list[str]:
    if not path.is_dir():
        return [str(path)] if path.exists() else []
    found = (Path(directory) / name for directory, _, names in os.walk(path) for name in names)
    return sorted(str(file) for file in found if not _hidden(file.relative_to(path).parts))


def _file_system(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    import fsspec  # noqa: PLC0415  only channels behind URLs need it

    try:
        return cast("tuple[Any, str]", fsspec.core.url_to_fs(url, **options))
    except (ImportError, ValueError) as error:
        raise InvalidBody(f"{url}: no file system for it: {error}") from error


def _remote_files(url: str, options: Mapping[str, Any]) -> list[str]:
    file_system, path = _file_system(url, options)
    root = PurePosixPath(path)
    found = [PurePosixPath(name) for name in file_system.find(path)]
    kept = [file for file in found if file == root or not _hidden(file.relative_to(root).parts)]
    return sorted(file_system.unstrip_protocol(str(file)) for file in kept)


def _open_url(url: str, options: Mapping[str, Any]) -> BinaryIO:
    file_system, path = _file_system(url, options)
    # reads ahead by one block: some stores would otherwise hold 50 MB per open file
    stream = file_system.open(path, "rb", block_size=_BLOCK, cache_type="readahead")
    return cast("BinaryIO", stream)


def _size_of(file: str | Path, options: Mapping[str, Any]) -> int:
    if not _is_url(file):
        return Path(file).stat().st_size
    file_system, path = _file_system(str(file), options)
    return int(file_system.size(path))


def _range_of(shard: Shard, total: int, begin: int, size: int) -> tuple[int, int]:
    """The part of a file at `begin` of the whole that falls into a shard, before it is moved to record heads."""
    step = (-(-total // shard.world_size) + 3) & ~3
    low, high = step * shard.rank - begin, step * (shard.rank + 1) - begin
    return min(max(low, 0), size), min(max(high, 0), size)
