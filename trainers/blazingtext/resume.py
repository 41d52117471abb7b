"""What a killed run resumes from: both matrices, kept at the ends of epochs, at most once a minute."""

from __future__ import annotations

import hashlib
import json
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.blazingtext.model import Embedding
from trainers.checkpoints import write_aside
from trainers.hyperparameter_schema import plain_values
from trainers.job import ClientError
from trainers.progress import log

__all__ = ["Resume", "identity_of"]

_FILE = "blazingtext.npz"


def identity_of(wanted: Any, ids: NDArray[np.int32]) -> str:
    """Same text, same run: hyperparameters and corpus."""
    values = json.dumps(plain_values(wanted), sort_keys=True)
    return hashlib.sha256(f"{values}:{len(ids)}:{zlib.crc32(ids.tobytes())}".encode()).hexdigest()


class Resume:
    def __init__(self, directory: Path, identity: str, embedding: Embedding, *, every_s: float = 60.0) -> None:
        self._file, self._identity, self._embedding = directory / _FILE, identity, embedding
        self._every_s, self._kept = every_s, time.monotonic()

    def begin(self) -> int:
        """Take in what an earlier run of the same kind kept. Returns: the epoch to begin with."""
        if not self._file.is_file():
            return 0
        try:
            with np.load(self._file, allow_pickle=False) as kept:
                if str(kept["identity"]) != self._identity:
                    log.warning("%s is of another run and is not used", self._file)
                    return 0
                self._embedding.inputs[:] = kept["inputs"]
                self._embedding.outputs[:] = kept["outputs"]
                epoch = int(kept["epoch"])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise ClientError(f"{self._file} is damaged: {error}; remove it to begin anew.") from error
        log.info("Resuming after epoch %d", epoch)
        return epoch

    def keep(self, epoch: int) -> None:
        """So many epochs are done."""
        if time.monotonic() - self._kept < self._every_s:
            return
        each = self._embedding
        write_aside(
            self._file,
            lambda file: np.savez(file, identity=self._identity, epoch=epoch, inputs=each.inputs, outputs=each.outputs),
        )
        self._kept = time.monotonic()
