"""What the runs of all vision algorithms have in common, around the training itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trainers.distributed import World
from trainers.hyperparameter_schema import plain_values
from trainers.job import ClientError, Job
from trainers.progress import log
from trainers.vision.batches import BatchSettings, ImageChannel

__all__ = ["identity", "open_both", "refuse_what_cannot_be_shared"]

# these change how fast a run is, and nothing of what comes out
_NOT_OF_THE_IDENTITY = frozenset({"input_workers"})


def open_both(
    job: Job, wanted: BatchSettings, open_channel: Callable[[str], ImageChannel]
) -> tuple[ImageChannel, ImageChannel]:
    """The channels `train` and `validation`, by the algorithm's own function.

    Raises:
        ClientError: they are the same directory, or the first holds less than a batch.
    """
    if job.path_of("train").resolve() == job.path_of("validation").resolve():
        raise ClientError(f"Channels 'train' and 'validation' are the same directory: {job.path_of('train')}.")
    images, validation = open_channel("train"), open_channel("validation")
    if images.is_pipe:
        return images, validation
    if len(images) < wanted.mini_batch_size:
        raise ClientError(
            "The number of input images must be bigger or equal to the mini_batch_size. "
            f"There are {len(images)}, and mini_batch_size is {wanted.mini_batch_size}."
        )
    if len(images) != wanted.num_training_samples:
        log.warning(
            "num_training_samples is %d, but the train channel lists %d images; the channel is what counts",
            wanted.num_training_samples,
            len(images),
        )
    return images, validation


def refuse_what_cannot_be_shared(job: Job, wanted: BatchSettings, world: World) -> None:
    """Of several processes each needs an image of every batch, and a pipe has one reader.

    Raises:
        ClientError: that is not so.
    """
    if wanted.mini_batch_size < world.local_size:
        raise ClientError(
            f"hyperparameter mini_batch_size: {wanted.mini_batch_size} must be at least {world.local_size}, "
            "the processes of one machine that share it"
        )
    piped = [name for name, path in job.channels.items() if job.settings_of(name).pipe and not path.is_dir()]
    if piped and world.local_size > 1:
        raise ClientError(f"Channel '{piped[0]}': a pipe has one reader; in Pipe mode start one process per machine.")


def identity(wanted: object, *channels: ImageChannel) -> str:
    """Same text, same run: hyperparameters, labels and places of the images (not pixels, which would have to be read).

    Of a pipe nothing is known beforehand.
    """
    values = {name: value for name, value in plain_values(wanted).items() if name not in _NOT_OF_THE_IDENTITY}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for channel in channels:
        for label in channel.labels:
            digest.update(label if isinstance(label, bytes) else _bytes_of(label))
        digest.update(b"" if channel.is_pipe else channel.stored.identity())
    return digest.hexdigest()


def _bytes_of(label: object) -> bytes:
    return str(label).encode() if isinstance(label, Path) else np.asarray(label).tobytes()
