"""A fastText model as a bundle: numbers of words and n-grams in, probabilities or vectors out."""

# B batch, T units of a text, D dimension, L labels, P longest path of the tree

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from exporters.graphs import PARITY_TOLERANCE, ExportableGraph, measure_parity, write_graph
from formats import fasttext_model
from formats.errors import InvalidBody
from formats.fasttext_units import Units
from model_store.manifest import Batching, Golden, Manifest, Mode, TensorSpec
from trainers.job import ClientError

__all__ = ["FOREIGN_SUFFIXES", "TextGraph", "describe_file", "write_bundle"]

FOREIGN_SUFFIXES = (".bin", ".ftz")
_GRAPH = "model"
_CONTENT_TYPES = ["application/json", "application/jsonlines", "text/csv", "text/plain"]
_ACCEPTS = ["application/json", "application/jsonlines"]
_LARGEST_TABLE_BYTES = 1_900_000_000  # ONNX and protobuf end at 2 GiB
_FLOOR = 1e-5
"""fastText adds it before each logarithm, and so to each probability that it reports."""
_ROWS_AT_ONCE = 1 << 16


class TextGraph(nn.Module):
    """The mean of a text's rows, and what a classifier makes of it.

    Row 0 of the table stands for padding (unit -1), the last one for n-grams that were never trained.
    """

    def __init__(self, table_RD: Tensor, output_LD: Tensor | None, loss: int, label_counts: NDArray[np.int64]) -> None:
        super().__init__()
        self.table = nn.Buffer(table_RD)
        self.output = nn.Buffer(torch.empty(0) if output_LD is None else output_LD)
        self.supervised = output_LD is not None
        self.loss = loss
        path_LP, sign_LP = (
            huffman_paths(label_counts) if loss == fasttext_model.HIERARCHICAL and self.supervised else _NO_PATHS
        )
        self.path = nn.Buffer(torch.from_numpy(path_LP))
        self.sign = nn.Buffer(torch.from_numpy(sign_LP))

    def forward(self, units_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Args: units_BT: int64, -1 for padding. Returns: (B, L) or (B, D) float32; (B,) int64, units of each text."""
        count_B = (units_BT >= 0).to(torch.int64).sum(dim=1)
        place_BT = units_BT.clamp(min=-1, max=self.table.size(0) - 2) + 1
        sum_BD = nn.functional.embedding(place_BT, self.table).sum(dim=1)
        mean_BD = sum_BD / count_B.clamp(min=1).unsqueeze(1).to(torch.float32)
        if not self.supervised:
            return mean_BD, count_B
        score_BN = torch.matmul(mean_BD, self.output.t())
        if self.loss == 3:  # softmax
            return torch.softmax(score_BN, dim=1), count_B
        chance_BN = torch.sigmoid(score_BN)
        if self.loss != 1:
            return chance_BN, count_B
        # a label's probability is that of all turns on the way to it; sign 0 is behind the path's end
        turn_BLP = chance_BN[:, self.path]
        turn_BLP = torch.where(self.sign > 0, turn_BLP, 1 - turn_BLP)
        factor_BLP = torch.where(self.sign == 0, torch.ones_like(turn_BLP), turn_BLP + 1e-5)
        return torch.exp(torch.log(factor_BLP).sum(dim=2)), count_B


_NO_PATHS = (np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64))


def huffman_paths(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The turns from the root to each label in fastText's tree of counts (descending).

    Returns: (L, P) rows of the output; (L, P) +1 right, -1 left, 0 behind the end.
    """
    size = len(counts)
    weight = [*counts.tolist(), *[10**15] * (size - 1)]
    parent, is_right = [-1] * len(weight), [False] * len(weight)
    leaf, node = size - 1, size
    for new in range(size, 2 * size - 1):
        children = []
        for _ in range(2):
            if leaf >= 0 and weight[leaf] < weight[node]:
                children.append(leaf)
                leaf -= 1
            else:
                children.append(node)
                node += 1
        weight[new] = weight[children[0]] + weight[children[1]]
        parent[children[0]] = parent[children[1]] = new
        is_right[children[1]] = True
    paths = []
    for label in range(size):
        at, turns = label, []
        while parent[at] >= 0:
            turns.append((parent[at] - size, 1 if is_right[at] else -1))
            at = parent[at]
        paths.append(turns)
    longest = max(map(len, paths)) or 1
    path, sign = np.zeros((size, longest), np.int64), np.zeros((size, longest), np.int64)
    for label, turns in enumerate(paths):
        for place, (row, turn) in enumerate(turns):
            path[label, place], sign[label, place] = row, turn
    return path, sign


def describe_file(file: Path) -> dict[str, Any]:
    """What `model.json` would say of somebody else's fastText model."""
    return {"algorithm": "blazingtext", "model": file.name, "metrics": {}}


def write_bundle(checkpoint: Path, description: dict[str, Any], directory: Path) -> Manifest:
    """Write every file of the bundle but its manifest, which is returned unsealed.

    Args:
        checkpoint: the directory of the fastText file.
        description: `model` names it; `hyperparameters` where Penstock trained it.
        directory: an empty directory.

    Raises:
        ParityError: an exported graph answers differently from the model.
        ClientError: not a fastText model, or one that is too large.
    """
    try:
        model = fasttext_model.read(checkpoint / str(description["model"]))
    except (InvalidBody, OSError) as error:
        raise ClientError(str(error)) from error
    table, keys, absent = _compact(model)
    supervised = model.arguments.model == fasttext_model.SUPERVISED
    if supervised and not model.labels:
        raise ClientError(f"{checkpoint / str(description['model'])} is a classifier without labels.")
    output = torch.from_numpy(np.array(model.output)) if supervised else None
    module = TextGraph(torch.from_numpy(table), output, model.arguments.loss, model.label_counts).eval()
    width = len(model.labels) if supervised else model.arguments.dim
    graph = ExportableGraph(
        name=_GRAPH,
        module=module,
        inputs=[TensorSpec(name="units", datatype="INT64", shape=[-1, -1])],
        outputs=[
            TensorSpec(name="probabilities" if supervised else "vector", datatype="FP32", shape=[-1, width]),
            TensorSpec(name="count", datatype="INT64", shape=[-1]),
        ],
        samples=_samples(len(table) - 2),
    )
    described = write_graph(directory, graph)
    parity = measure_parity(directory, graph)
    settings = _write_assets(directory, model, keys, absent, supervised=supervised)
    golden = _write_golden(directory, module, model, keys, absent)
    mode = Mode(
        graph=_GRAPH, placement=["cpu"], content_types=_CONTENT_TYPES, accepts=_ACCEPTS,
        batching=Batching(max_batch_size=64),
    )  # fmt: skip
    return Manifest(
        algorithm="blazingtext",
        default_mode="predict",
        modes={"predict": mode},
        graphs={_GRAPH: described},
        golden=golden,
        hyperparameters=description.get("hyperparameters") or _foreign_hyperparameters(model),
        settings=settings,
        metrics=description["metrics"],
        parity_tolerance=PARITY_TOLERANCE,
        parity=parity,
    )


def _compact(model: fasttext_model.Model) -> tuple[NDArray[np.float32], NDArray[np.int64], int]:
    """The rows that hold something: (R + 2, D), the buckets behind the words' rows, the row of all other buckets."""
    num_words = len(model.words)
    if model.pruned is not None:
        order = np.argsort(model.pruned[:, 0], kind="stable")
        keys, rows = model.pruned[order, 0].astype(np.int64), model.pruned[order, 1].astype(np.int64)
    else:
        hashed = model.input[num_words:]
        filled = [hashed[at : at + _ROWS_AT_ONCE].any(axis=1) for at in range(0, len(hashed), _ROWS_AT_ONCE)]
        keys = rows = np.flatnonzero(np.concatenate([*filled, np.zeros(0, bool)]))
    num_rows = num_words + len(keys)
    size = (num_rows + 2) * model.arguments.dim * 4
    if size > _LARGEST_TABLE_BYTES:
        raise ClientError(
            f"the model has {num_rows} rows of {model.arguments.dim} numbers, {size} bytes; "
            f"at most {_LARGEST_TABLE_BYTES} can be exported"
        )
    table = np.zeros((num_rows + 2, model.arguments.dim), np.float32)
    table[1 : num_words + 1] = model.input[:num_words]
    table[num_words + 1 : -1] = model.input[num_words + rows]
    # fastText 0.9.3 leaves up to 9 numbers at the end of its input as memory happened to be; such a row says nothing
    table[~np.isfinite(table).all(axis=1)] = 0
    if not np.isfinite(model.output).all():
        raise ClientError("the model's output holds NaN or infinity; it cannot answer")
    return table, keys, -1 if model.pruned is not None else num_rows


def _samples(num_rows: int) -> list[tuple[Tensor]]:
    random = np.random.default_rng(0)
    sizes = ((1, 3), (7, 12), (64, 30))
    units = [random.integers(-1, num_rows + 1, size, dtype=np.int64) for size in sizes]
    return [(torch.from_numpy(each),) for each in units]


def _write_assets(
    directory: Path, model: fasttext_model.Model, keys: NDArray[np.int64], absent: int, *, supervised: bool
) -> dict[str, str | int | float | bool | list[int] | list[str]]:
    for name in (*model.words, *model.labels):
        if b"\n" in name or not name:
            raise ClientError(f"the model's dictionary holds {name!r:.60}, which is no word")
    arguments = model.arguments
    (directory / "words.txt").write_bytes(b"\n".join(model.words))
    (directory / "buckets.bin").write_bytes(keys.astype("<i4").tobytes())
    if supervised:
        labels = [label.decode("utf-8", "replace") for label in model.labels]
        (directory / "labels.json").write_text(json.dumps(labels) + "\n")
    # a tree's probabilities are products, which fastText reports as they are
    floor = 0.0 if arguments.loss == fasttext_model.HIERARCHICAL else _FLOOR
    return {
        "supervised": supervised,
        "dim": arguments.dim,
        "bucket": arguments.bucket,
        "absent": absent,
        "word_ngrams": arguments.word_ngrams if supervised else 1,
        "minn": arguments.minn,
        "maxn": arguments.maxn,
        "probability_floor": floor,
        # below it fastText turns back on its way down the tree
        "least_probability": 0.0 if floor else _FLOOR,
    }


def _write_golden(
    directory: Path, module: TextGraph, model: fasttext_model.Model, keys: NDArray[np.int64], absent: int
) -> Golden:
    arguments = model.arguments
    units = Units(
        model.words, bucket=arguments.bucket, keys=keys, absent=absent, word_ngrams=arguments.word_ngrams,
        minn=arguments.minn, maxn=arguments.maxn,
    )  # fmt: skip
    known = [word.decode("utf-8", "replace") for word in model.words[:4] if word != b"</s>"] or ["word"]
    text = " ".join(known) if module.supervised else known[0]
    ids = units.of_line(text) if module.supervised else units.of_word(text)
    with torch.inference_mode():
        answer, _ = module(torch.from_numpy(ids)[None])
    row = answer[0].numpy()
    answers: list[dict[str, Any]]
    if module.supervised and not len(ids):
        answers = [{"label": [], "prob": []}]
    elif module.supervised:
        best = int(row.argmax())
        floor = 0.0 if arguments.loss == fasttext_model.HIERARCHICAL else _FLOOR
        label = model.labels[best].decode("utf-8", "replace")
        answers = [{"label": [label], "prob": [float(row[best]) + floor]}]
    else:
        answers = [{"word": text, "vector": row.tolist()}]
    (directory / "golden.request.json").write_text(json.dumps({"instances": [text]}))
    (directory / "golden.json").write_text(json.dumps(answers))
    return Golden(
        request="golden.request.json",
        content_type="application/json",
        accept="application/json",
        mode="predict",
        response="golden.json",
        tolerance=PARITY_TOLERANCE,
    )


def _foreign_hyperparameters(model: fasttext_model.Model) -> dict[str, str | int | float | bool | None]:
    arguments = model.arguments
    modes = {fasttext_model.CBOW: "cbow", fasttext_model.SKIPGRAM: "skipgram"}
    return {
        "mode": modes.get(arguments.model, "supervised"),
        "vector_dim": arguments.dim,
        "word_ngrams": arguments.word_ngrams,
        "buckets": arguments.bucket,
        "min_char": arguments.minn,
        "max_char": arguments.maxn,
        "epochs": arguments.epoch,
        "min_count": arguments.min_count,
    }
