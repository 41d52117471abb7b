"""What a stopped run resumes from: both matrices, kept at the ends of epochs, at most once a minute; and at SIGTERM."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.blazingtext.model import Embedding
from trainers.checkpoints import write_aside
from trainers.hyperparameter_schema import plain_values
from trainers.job import ClientError
from trainers.progress import log

__all__ = ["Arrays", "Resume", "identity_of", "sigterm_noted"]

_FILE = "blazingtext.npz"
_MORE = "more_"


def identity_of(wanted: Any, ids: NDArray[np.int32]) -> str:
    """Same text, same run: hyperparameters and corpus."""
    values = json.dumps(plain_values(wanted), sort_keys=True)
    return hashlib.sha256(f"{values}:{len(ids)}:{zlib.crc32(ids.tobytes())}".encode()).hexdigest()


Arrays = Mapping[str, NDArray[Any]]


class Resume:
    def __init__(self, directory: Path, identity: str, embedding: Embedding, *, every_s: float = 60.0) -> None:
        self._file, self._identity, self._embedding = directory / _FILE, identity, embedding
        self._every_s, self._kept = every_s, time.monotonic()

    def begin(self) -> tuple[int, Arrays]:
        """Take in what an earlier run of the same kind kept.

        Returns: the epoch to begin with, and what else `keep` was given.
        """
        if not self._file.is_file():
            return 0, {}
        try:
            with self._file.open("rb") as file, np.load(file, allow_pickle=False) as kept:
                if str(kept["identity"]) != self._identity:
                    log.warning("%s is of another run and is not used", self._file)
                    return 0, {}
                self._embedding.inputs[:] = kept["inputs"]
                self._embedding.outputs[:] = kept["outputs"]
                epoch = int(kept["epoch"])
                more = {name.removeprefix(_MORE): kept[name] for name in kept.files if name.startswith(_MORE)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ClientError(f"{self._file} is damaged: {error}; remove it to begin anew.") from error
        log.info("Resuming after epoch %d", epoch)
        return epoch, more

    def keep(self, epoch: int, more: Arrays | None = None, *, now: bool = False) -> None:
        """So many epochs are done; `now`, whenever the last time was."""
        if not now and time.monotonic() - self._kept < self._every_s:
            return
        each = self._embedding
        arrays: dict[str, Any] = {f"{_MORE}{name}": array for name, array in (more or {}).items()}
        arrays |= {"identity": self._identity, "epoch": epoch, "inputs": each.inputs, "outputs": each.outputs}
        write_aside(self._file, lambda file: np.savez(file, **arrays))
        self._kept = time.monotonic()


@contextmanager
def sigterm_noted() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether SIGTERM has arrived, which ends nothing meanwhile."""
    arrived = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal arrived
        arrived = True

    if threading.current_thread() is not threading.main_thread():  # Python delivers signals to the main thread alone
        yield lambda: False
        return
    former = signal.signal(signal.SIGTERM, note)
    try:
        yield lambda: arrived
    finally:
        signal.signal(signal.SIGTERM, former)
