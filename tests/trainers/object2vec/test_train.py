"""Whole runs on small data: what is learned, what is told, and what is refused."""

from __future__ import annotations

import json
import logging
import math
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trainers.job import ClientError
from trainers.object2vec import data
from trainers.run import train

POOLED: dict[str, object] = {
    "enc0_network": "pooled_embedding", "enc0_max_seq_len": "6", "enc0_vocab_size": "12",
    "enc0_token_embedding_dim": "8", "mlp_dim": "16", "mlp_layers": "1", "mlp_activation": "tanh", "epochs": "3",
    "learning_rate": "0.01", "mini_batch_size": "16", "early_stopping_tolerance": "0.000001",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def write(directory: Path, rows: list[dict[str, Any]]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def made(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Label 1 where both lists begin in the same half of the ids."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        first, second = (random.integers(0, 12, random.integers(1, 6)).tolist() for _ in range(2))
        rows.append({"in0": first, "in1": second, "label": int((first[0] < 6) == (second[0] < 6))})
    return rows


def run(directory: Path, changed: Mapping[str, object] | None = None, name: str = "out") -> list[dict[str, float]]:
    channels = {"train": write(directory / "train", made(160)), "validation": write(directory / "valid", made(48, 1))}
    train("object2vec", channels, POOLED | dict(changed or {}), directory / name)
    return [json.loads(line) for line in (directory / name / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("network", ["hcnn", "bilstm", "pooled_embedding"])
def test_every_encoder_learns_a_few_pairs_by_heart(tmp_path: Path, network: str) -> None:
    rows = made(16)
    changed = {"enc0_network": network, "enc_dim": 16, "epochs": 60, "enc0_layers": 2, "early_stopping_patience": 5}
    train("object2vec", {"train": write(tmp_path / "train", rows)}, POOLED | changed, tmp_path / "out")
    last = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])

    assert last["train:accuracy"] == 1.0


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
def test_sparse_and_dense_tables_have_the_same_losses(tmp_path: Path, optimizer: str) -> None:
    dense, sparse = (
        run(tmp_path, {"optimizer": optimizer, "token_embedding_storage_type": kind, "mini_batch_size": 4}, kind)
        for kind in ("dense", "row_sparse")
    )
    for name in ("train:cross_entropy", "validation:cross_entropy"):
        assert [row[name] for row in sparse] == pytest.approx([row[name] for row in dense], abs=1e-5)


def test_a_run_says_its_metrics_in_the_originals_lines(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    channels = {name: write(tmp_path / name, made(40)) for name in ("train", "validation", "test")}
    with caplog.at_level(logging.INFO, "penstock.train"):
        train("object2vec", channels, POOLED | {"epochs": 1}, tmp_path / "out")

    for pattern in (
        r"#quality_metric: host=\S+, epoch=0, train accuracy <score>=(\d\S*)",
        r"#quality_metric: host=\S+, epoch=0, validation cross_entropy <loss>=(\d\S*)",
        r"#quality_metric: host=\S+, test accuracy <score>=(\d\S*)",
        r"#progress_metric: host=\S+, completed (\d+) %",
        r"#throughput_metric: host=\S+, train throughput=(\d\S*) records/second",
    ):
        assert re.search(pattern, caplog.text), pattern


def test_a_run_that_was_cut_off_ends_as_an_unbroken_one(tmp_path: Path) -> None:
    whole = run(tmp_path, {"token_embedding_storage_type": "row_sparse", "dropout": 0.2}, "whole")
    from trainers import checkpoints  # noqa: PLC0415

    class Cut(Exception):
        pass

    real = checkpoints.save
    writes = []

    def failing(path: Path, state: dict[str, Any]) -> None:
        real(path, state)
        writes.append(path.name)
        if writes.count("last.pt") == 2:
            raise Cut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "save", failing)
        with pytest.raises(Cut):
            run(tmp_path, {"token_embedding_storage_type": "row_sparse", "dropout": 0.2}, "cut")
    resumed = run(tmp_path, {"token_embedding_storage_type": "row_sparse", "dropout": 0.2}, "cut")

    assert [row["validation:cross_entropy"] for row in resumed] == [row["validation:cross_entropy"] for row in whole]
    first, second = (torch.load(tmp_path / name / "model" / "model.pt") for name in ("whole", "cut"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_negatives_are_wrong_pairs_of_label_0_for_each_positive(tmp_path: Path) -> None:
    rows = [{"in0": [number], "in1": [number], "label": number % 2} for number in range(10)]
    directory = write(tmp_path / "train", rows)
    from trainers.job import Job  # noqa: PLC0415

    job = Job(algorithm="object2vec", channels={"train": directory}, hyperparameters={}, output=tmp_path,
              checkpoints=tmp_path)  # fmt: skip
    drawn = data.draw(data.read_channel(job, "train"), 3, np.random.default_rng(0))

    assert len(drawn.labels) == 10 + 5 * 3
    assert (drawn.first[10:] != drawn.second[10:]).all()
    assert (drawn.first[10:] % 2 == 1).all()
    assert not drawn.labels[10:].any()


def test_pairs_of_a_batch_are_of_like_lengths_with_buckets() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 500)
    found = list(data.batches(lengths, 16, 10, np.random.default_rng(1)))

    assert sorted(np.concatenate(found).tolist()) == list(range(500))
    assert max(len(set(((lengths[some] - 1) // 10).tolist())) for some in found) == 1


VECTOR = [0.25] * 8
IN_TEXT = " ".join(map(str, VECTOR))
IN_BYTES = struct.pack("<8f", *VECTOR)
EMBEDDING_FILES = {
    "glove.txt": f"ash {IN_TEXT}\nnot known {IN_TEXT}\n".encode(),
    "fasttext.vec": f"2 8\nash {IN_TEXT} \nnot {IN_TEXT} \n".encode(),
    "word2vec.bin": b"2 8\nnot " + IN_BYTES + b"\nash " + IN_BYTES + b"\n",
    "gensim.bin": b"2 8\nnot " + IN_BYTES + b"ash " + IN_BYTES,
}


def auxiliary(directory: Path, files: Mapping[str, bytes]) -> Path:
    (directory / "auxiliary").mkdir()
    for name, content in (dict(files) | {"words.json": b'{"ash": 3, "elm": 5}'}).items():
        (directory / "auxiliary" / name).write_bytes(content)
    return directory / "auxiliary"


@pytest.mark.parametrize("name", EMBEDDING_FILES)
@pytest.mark.parametrize("freeze", [True, False])
def test_vectors_of_a_file_start_the_table_and_frozen_ones_stay(tmp_path: Path, name: str, freeze: bool) -> None:
    settings = POOLED | {"enc0_pretrained_embedding_file": name, "enc0_vocab_file": "words.json", "epochs": 1,
                         "enc0_freeze_pretrained_embedding": freeze}  # fmt: skip
    channels = {"train": write(tmp_path / "train", made(40)), "auxiliary": auxiliary(tmp_path, EMBEDDING_FILES)}
    state = torch.load(train("object2vec", channels, settings, tmp_path / "out") / "model.pt")

    for table in ("tables.0", "tables.1"):
        assert (state[table][3].tolist() == VECTOR) is freeze
        assert state[table][3].tolist() == pytest.approx(VECTOR, abs=0.2)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("cut.bin", b"3 8\nash " + IN_BYTES + b"elm " + IN_BYTES[:9], "cut.bin: ends, or loses its form, in vector 2"),
        ("model.bin", b"\xba\x16\x4f\x2f\x0c\x00\x00\x00", "fastText's own .bin files hold more than vectors"),
        ("short.txt", b"ash 1 2 3\n", "short.txt, line 1: vectors of 3 numbers; enc0_token_embedding_dim is 8"),
        ("nan.bin", b"1 8\nash " + IN_BYTES[:28] + struct.pack("<f", math.nan), "vector 1: holds NaN or infinity"),
        ("other.txt", f"oak {IN_TEXT}\n".encode(), "holds no word of words.json"),
    ],
)
def test_a_bad_file_of_vectors_is_named_with_what_is_wrong(
    tmp_path: Path, name: str, content: bytes, text: str
) -> None:
    settings = POOLED | {"enc0_pretrained_embedding_file": name, "enc0_vocab_file": "words.json"}
    channels = {"train": write(tmp_path / "train", made(4)), "auxiliary": auxiliary(tmp_path, {name: content})}
    with pytest.raises(ClientError, match=re.escape(text)):
        train("object2vec", channels, settings, tmp_path / "out")


def test_correlations_are_those_of_the_textbook_with_ties_at_their_mean_rank() -> None:
    value, label = np.array([1.0, 2.0, 2.0, 4.0]), np.array([1.0, 3.0, 2.0, 9.0])
    found = data.correlations(value, label)

    assert found["pearson_correlation"] == pytest.approx(np.corrcoef(value, label)[0, 1])
    assert found["spearman_correlation"] == pytest.approx(np.corrcoef([1, 2.5, 2.5, 4], [1, 3, 2, 4])[0, 1])
    assert set(data.correlations(np.ones(3), label[:3]).values()) == {0.0}


def test_values_are_scored_by_correlations_too(tmp_path: Path) -> None:
    rows = run(tmp_path, {"output_layer": "mean_squared_error", "epochs": 30, "early_stopping_patience": 5})
    assert rows[-1]["train:mean_squared_error"] < 0.2
    assert rows[-1]["validation:pearson_correlation"] > rows[0]["validation:pearson_correlation"]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"in0": [1], "in1": [12], "label": 1}, r'record 41: Inconsistent vocab for in1 found. Vocab id "12"'),
        ({"in0": [1], "in1": [2], "label": 2}, "record 41: 'label' is 2, expected a class from 0 to 1"),
        ({"in0": [1], "in1": [2], "label": 0.5}, "'label' is 0.5"),
        ({"in0": [1], "in1": [2]}, "line 41: 'label' is missing"),
        ({"in1": [2], "label": 1}, "line 41: 'in0' is missing"),
    ],
)
def test_a_bad_record_is_named_with_its_file(tmp_path: Path, row: dict[str, Any], text: str) -> None:
    channels = {"train": write(tmp_path / "train", [*made(40), row])}
    with pytest.raises(ClientError, match=re.escape(text).replace(r"\.\*", ".*")):
        train("object2vec", channels, POOLED, tmp_path / "out")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"comparator_list": "hadamard, sum"}, "a comma list of hadamard, concat, abs_diff"),
        ({"enc1_network": "hcnn"}, "enc1_max_seq_len: needed with enc1_network=hcnn"),
        ({"token_embedding_storage_type": "row_sparse", "optimizer": "rmsprop"}, "one of adam, adagrad, sgd"),
        ({"epochs": 101}, "an integer from 1 to 100"),
        ({"enc0_vocab_size": 1}, "from 2 to 3000000"),
        ({"drop_out": 0.1}, "did you mean 'dropout'"),
        ({"enc1_network": "hcnn", "enc1_max_seq_len": 3, "enc1_vocab_size": 9}, "comparators need equal lengths"),
        ({"enc0_pretrained_embedding_file": "x.txt"}, "enc0_vocab_file: needed"),
    ],
)
def test_wrong_hyperparameters_are_refused_before_data_is_read(
    tmp_path: Path, changed: dict[str, object], text: str
) -> None:
    with pytest.raises(ClientError, match=text):
        train("object2vec", {"train": tmp_path / "nowhere"}, POOLED | changed, tmp_path / "out")


def test_settings_of_enc1_that_are_not_looked_at_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, {"enc1_vocab_size": "99", "epochs": 1, "_kvstore": "device"})
    assert "enc1_vocab_size: not looked at, for enc1_network is enc0" in caplog.text
