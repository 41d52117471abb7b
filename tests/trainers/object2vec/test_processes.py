"""Two processes of one machine, gloo between them, train as one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.mark.parametrize("storage", ["dense", "row_sparse"])
def test_two_processes_lose_as_one_does(tmp_path: Path, storage: str) -> None:
    random = np.random.default_rng(0)
    rows = [{"in0": [int(a)], "in1": [int(b)], "label": int(a < b)} for a, b in random.integers(0, 20, (300, 2))]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "enc0_network": "pooled_embedding", "enc0_max_seq_len": 1, "enc0_vocab_size": 20, "epochs": 2,
        "enc0_token_embedding_dim": 8, "mlp_dim": 8, "token_embedding_storage_type": storage,
    }  # fmt: skip
    asked = [f"--set={name}={value}" for name, value in settings.items()]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    losses = []
    for number, start in enumerate(([sys.executable, "-m"], torchrun)):
        output = tmp_path / str(number)
        command = [*start, "penstock", "train", "object2vec", "--channel", f"train={tmp_path / 'train'}", *asked]
        subprocess.run([*command, "--output", str(output)], check=True, capture_output=True, timeout=120)
        lines = (output / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["train:cross_entropy"] for line in lines])

    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
