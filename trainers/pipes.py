"""Pipe mode on one's own machine: what the platform does there, a thread of ours does here."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from formats import manifests
from formats.errors import InvalidBody
from formats.recordio import encode_record
from formats.source import attribute_fetcher, feed_pipe, list_files, open_file, wrapped
from trainers.job import ChannelSettings, ClientError, Job

__all__ = ["feeding"]

_MANIFESTS = (".manifest", ".jsonl")


@contextmanager
def feeding(job: Job) -> Iterator[Job]:
    """The job with pipes in place of those Pipe channels that are given as directories.

    Each such channel's RecordIO files, or its manifest's objects, flow through one pipe per epoch. Where the platform
    makes the pipes, nothing is done.

    Raises:
        ClientError: a channel holds nothing that Pipe mode carries; or, at the end, an object could not be read.
    """
    fed = [name for name, path in job.channels.items() if job.settings_of(name).pipe and path.is_dir()]
    with ExitStack() as stack:
        if fed:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-pipes-")))
            for name in fed:
                stack.enter_context(_fed(name, job.channel(name), job.settings_of(name), work))
            job = replace(job, channels={**job.channels, **{name: work / name for name in fed}})
        yield job


@contextmanager
def _fed(name: str, directory: Path, settings: ChannelSettings, work: Path) -> Iterator[None]:
    feeder = _Feeder(name, directory, settings, work)
    feeder.start()
    try:
        yield
    except ClientError as error:
        if feeder.error:  # what broke the stream says more than how it was broken
            raise ClientError(f"Channel '{name}': {feeder.error}") from error
        raise
    finally:
        feeder.stop()


class _Feeder(threading.Thread):
    def __init__(self, name: str, directory: Path, settings: ChannelSettings, work: Path) -> None:
        super().__init__(name=f"pipe-{name}", daemon=True)
        self._channel, self._settings, self._directory, self._work = name, settings, directory, work
        try:
            files = list_files(directory)
        except InvalidBody as error:
            raise ClientError(f"Channel '{name}': {error}") from error
        self._manifests = [file for file in files if file.lower().endswith(_MANIFESTS)]
        self._records = [file for file in files if file.lower().endswith(".rec")]
        if len(self._manifests) + bool(self._records) != 1:
            raise ClientError(
                f"Channel '{name}': Pipe mode carries RecordIO files (.rec) or one manifest ({', '.join(_MANIFESTS)}); "
                f"{directory} holds {len(self._records)} and {len(self._manifests)}. Image files need File mode."
            )
        self._ended = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        epoch = 0
        while not self._ended.is_set():
            pipe = self._pipe(epoch)
            os.mkfifo(pipe, 0o600)
            feed_pipe(pipe, self._chunks())
            pipe.unlink(missing_ok=True)
            epoch += 1

    def stop(self) -> None:
        """End the thread wherever it is: opening a pipe for nobody, or writing into one that nobody reads any more."""
        self._ended.set()
        while self.is_alive():
            for pipe in self._work.glob(f"{self._channel}_*"):
                try:
                    os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
                except OSError:
                    continue
            self.join(0.02)

    def _pipe(self, epoch: int) -> Path:
        return self._work / f"{self._channel}_{epoch}"

    def _chunks(self) -> Iterator[bytes]:
        try:
            yield from self._manifest() if self._manifests else wrapped(self._records)
        except (InvalidBody, OSError) as error:
            self.error = error
            yield b"broken off"  # no record begins like this: the reader must not take it for the end

    def _manifest(self) -> Iterator[bytes]:
        attributes = self._settings.attribute_names or ("source-ref", "class")
        roots = {prefix: self._directory / root for prefix, root in self._settings.local_roots.items()}
        with open_file(self._manifests[0]) as stream:
            rows = manifests.read(stream, attributes, self._manifests[0])
            for payload in manifests.attribute_stream(rows, attribute_fetcher(roots)):
                yield encode_record(payload, split=False)
