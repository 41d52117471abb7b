"""Several processes through the real launcher, torchrun, over gloo, do what one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trainers.conftest import as_records
from trainers.checkpoints import load
from trainers.distributed import ALONE, World
from trainers.image_classification.train import train
from trainers.job import Job

MakeJob = Callable[..., Job]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def command(job: Job, *options: str, algorithm: str = "image_classification") -> list[str]:
    channels = [part for name, path in job.channels.items() for part in ("--channel", f"{name}={path}")]
    values = [part for name, value in job.hyperparameters.items() for part in ("--set", f"{name}={value}")]
    train_it = ["-m", "penstock", "train", algorithm, *channels, *values, "--output", str(job.output)]
    return [*TORCHRUN, *train_it, *options]


def torchrun(
    job: Job,
    *options: str,
    algorithm: str = "image_classification",
    send: signal.Signals | None = None,
    at: str = "\n",
) -> tuple[int, list[str], str]:
    """Exit status, standard output's lines, and the log; a signal is sent once the log holds `at`."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command(job, *options, algorithm=algorithm), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment, start_new_session=True,
    )  # fmt: skip
    with process:
        assert process.stderr is not None
        assert process.stdout is not None
        log = ""
        for line in process.stderr:
            log += line
            if send is not None and at in line:
                # a machine that dies takes all its processes with it; SIGTERM comes to the launcher alone
                (os.killpg if send is signal.SIGKILL else os.kill)(process.pid, send)
                send = None
        out = process.stdout.read().splitlines()
    return process.returncode, out, log


def column(job: Job, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (job.output / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_give_the_curve_of_one_with_the_same_global_batch(
    job: MakeJob, channels: dict[str, Path]
) -> None:
    """Each norms its own half of a batch, as the original's devices do: that is all the difference. Tolerance: 15 %
    of the first loss, on every epoch; what is learnt in the end is the same."""
    options: dict[str, object] = {"epochs": 10, "mini_batch_size": 12, "learning_rate": 0.02}
    given = {name: as_records(path) for name, path in channels.items()}
    one, two = job("one", given, **options), job("two", given, **options)
    train(one)
    status, out, log = torchrun(two)

    assert status == 0, log
    assert out == [str(two.output / "model")]
    assert log.count("Docker entrypoint called") == 1
    first = column(one, "train:loss")[0]
    assert np.abs(np.subtract(column(two, "train:loss"), column(one, "train:loss"))).max() < 0.15 * first
    assert column(two, "validation:accuracy")[-1] == column(one, "validation:accuracy")[-1] == 1.0
    assert json.loads((two.output / "evaluation.json").read_bytes())["num_images"] == 9


def test_processes_stop_together_and_resume_alike(job: MakeJob) -> None:
    """SIGTERM reaches one and all end; killed and started again, the run ends as an unbroken one."""
    whole, broken = job("whole", epochs=40), job("broken", epochs=40)
    torchrun(whole)
    killed, _, _ = torchrun(broken, send=signal.SIGKILL, at="Epoch[1] Train-accuracy")
    _, _, log = torchrun(broken, send=signal.SIGTERM, at="Epoch[3] Train-accuracy")
    ended, _, last_log = torchrun(broken)

    assert killed == -signal.SIGKILL
    assert ended == 0, last_log
    assert "Stopped by SIGTERM; the same job started again resumes after epoch" in log
    assert column(broken, "train:loss") == column(whole, "train:loss")
    ours, theirs = (load(each.output / "model" / "model.pt") for each in (broken, whole))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_a_mistake_in_every_process_is_told_once(job: MakeJob) -> None:
    status, _, log = torchrun(job(mini_batch_size=25))

    assert status == 1
    assert log.count("bigger or equal to the mini_batch_size. There are 24") >= 1


PROGRAM = """
import os
import torch
from trainers.distributed import joined
from torch import nn
with joined() as world:
    torch.manual_seed(0)
    data, target = torch.randn(6, 4), torch.randn(6, 1)
    net = nn.Linear(4, 1)
    import numpy as np
    mine = world.share(np.arange(5))          # 3 and 2: the parts differ
    wrapped = world.wrap(net)
    loss = (wrapped(data[mine]) - target[mine]).square().sum() * (world.size / 5)
    loss.backward()
    whole = nn.Linear(4, 1); whole.load_state_dict(net.state_dict())
    (whole(data[:5]) - target[:5]).square().mean().backward()
    assert torch.allclose(net.weight.grad, whole.weight.grad, atol=1e-6)
    assert world.any(world.rank == 1) and not world.any(False)
    assert int(world.sum(torch.tensor(world.rank + 1))) == 3
    assert world.from_first({"x": torch.arange(3), "y": [1, "a"]} if world.is_first else None)["y"] == [1, "a"]
    assert world.from_first(None) is None
    norm = nn.BatchNorm1d(2); norm.running_mean.fill_(world.rank)
    world.average_buffers(norm)
    assert norm.running_mean.tolist() == [0.5, 0.5]
    world.meet()
    os.write(1, f"as one {world.size} {world.num_hosts}\\n".encode())  # in one piece: both write to one pipe
"""


def test_what_processes_do_together_equals_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [*TORCHRUN, str(tmp_path / "program.py")],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": "."},
    )

    assert done.stdout.splitlines() == ["as one 2 1"] * 2, done.stderr


def test_one_process_alone_needs_no_other() -> None:
    assert ALONE.is_first
    assert ALONE.from_first({"a": 1}) == {"a": 1}
    assert ALONE.share(np.arange(3)).tolist() == [0, 1, 2]
    ALONE.meet()


@pytest.mark.parametrize(("size", "parts"), [(8, [4, 4]), (5, [3, 2])])
def test_a_batch_is_split_over_processes(size: int, parts: list[int]) -> None:
    assert [len(World(rank, 2, rank, 2).share(np.arange(size))) for rank in (0, 1)] == parts
