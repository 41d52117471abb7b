"""A trained Object2Vec as a bundle of three graphs: scores of pairs, and each encoder's embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporters.graphs import PARITY_TOLERANCE, ExportableGraph, measure_parity, write_graph
from model_store.manifest import Batching, Device, Golden, Manifest, Mode, TensorSpec
from trainers.checkpoints import load
from trainers.earlier_model import MODEL_WEIGHTS
from trainers.hyperparameter_schema import parse
from trainers.job import ClientError
from trainers.object2vec.hyperparameters import Hyperparameters
from trainers.object2vec.model import Network, PairScores, SideEncoder, Sizes

__all__ = ["load_network", "write_bundle"]

_CONTENT_TYPES = ["application/json", "application/jsonlines"]
_LARGEST_TABLES_BYTES = 1_900_000_000  # ONNX and protobuf end at 2 GiB
_BATCH_SIZES = (2, 1, 5)
_EMBEDDING_PLACEMENT: list[Device] = ["gpu", "cpu"]


def write_bundle(checkpoint: Path, description: dict[str, Any], directory: Path) -> Manifest:
    """Write every file of the bundle but its manifest, which is returned unsealed.

    Args:
        checkpoint: what training left in `OUTPUT/model`.
        description: its `model.json`.
        directory: an empty directory.

    Raises:
        ParityError: an exported graph answers differently from the model.
        ClientError: the weights are not of the network that the description names, or are too large for ONNX.
    """
    wanted = parse(Hyperparameters, description["hyperparameters"])
    network = load_network(checkpoint, wanted)
    graphs = _graphs(network, wanted)
    described = {graph.name: write_graph(directory, graph) for graph in graphs}
    parity = [case for graph in graphs for case in measure_parity(directory, graph)]
    side0, side1 = wanted.sides
    return Manifest(
        algorithm="object2vec",
        default_mode=wanted.task,
        modes={
            wanted.task: _mode("pair", ["cpu"]),
            "embedding": _mode("encoder0", _EMBEDDING_PLACEMENT),
            # JSON names its side itself; tensors need a mode to reach the other graph by
            "embedding_in1": _mode("encoder1", _EMBEDDING_PLACEMENT),
        },
        graphs=described,
        golden=_write_golden(directory, network, side0.max_seq_len),
        hyperparameters=description["hyperparameters"],
        settings={
            "task": wanted.task,
            "max_seq_lens": [side0.max_seq_len, side1.max_seq_len],
            "vocab_sizes": [side.vocab_size for side in network.sizes.sides],
            "num_outputs": wanted.num_outputs,
        },
        metrics=description["metrics"],
        parity_tolerance=PARITY_TOLERANCE,
        parity=parity,
    )


def load_network(checkpoint: Path, wanted: Hyperparameters) -> Network:
    """The trained network in eval mode, on the CPU.

    Raises:
        ClientError: the weights are of another network.
    """
    try:
        network = Network(Sizes.of(wanted))
        network.load_state_dict(load(checkpoint / MODEL_WEIGHTS))
    except (RuntimeError, ValueError) as error:
        text = str(error).splitlines()[-1].strip()
        raise ClientError(f"{checkpoint / MODEL_WEIGHTS} does not fit the network of model.json: {text}") from error
    size = sum(table.numel() * table.element_size() for table in network.tables)
    if size > _LARGEST_TABLES_BYTES:
        raise ClientError(
            f"the tables of token embeddings are {size} bytes; a graph holds at most {_LARGEST_TABLES_BYTES}: "
            "train with a smaller enc0_vocab_size or enc0_token_embedding_dim"
        )
    return network.eval()


def _graphs(network: Network, wanted: Hyperparameters) -> list[ExportableGraph]:
    def ids(name: str) -> TensorSpec:
        return TensorSpec(name=name, datatype="INT64", shape=[-1, -1])

    embeddings = TensorSpec(name="embeddings", datatype="FP32", shape=[-1, network.sizes.encoding_dim])
    pair = ExportableGraph(
        name="pair",
        module=PairScores(network).eval(),
        inputs=[ids("in0"), ids("in1")],
        outputs=[TensorSpec(name="scores", datatype="FP32", shape=[-1, wanted.num_outputs])],
        samples=[(_made(network, wanted, 0, size), _made(network, wanted, 1, size)) for size in _BATCH_SIZES],
    )
    sides = [
        ExportableGraph(
            name=f"encoder{side}",
            module=SideEncoder(network, side).eval(),
            inputs=[ids(f"in{side}")],
            outputs=[embeddings],
            samples=[(_made(network, wanted, side, size),) for size in _BATCH_SIZES],
        )
        for side in (0, 1)
    ]
    return [pair, *sides]


def _made(network: Network, wanted: Hyperparameters, side: int, num_rows: int) -> Tensor:
    """Rows of several lengths by a stated rule, the longest up to 40 tokens, the last row of several empty."""
    longest = min(wanted.sides[side].max_seq_len, 20 * num_rows, 40)
    generator = torch.Generator().manual_seed(num_rows)
    ids = torch.randint(0, network.sizes.sides[side].vocab_size, (num_rows, longest), generator=generator)
    lengths = torch.linspace(longest, 0 if num_rows > 1 else longest, num_rows).round()
    return ids.masked_fill(torch.arange(longest) >= lengths[:, None], -1)


_BUCKET_BYTES = [256, 1024, 4096, 16384]
"""A batch is padded to its longest member: 15 requests of 6 tokens and one of 150 take a bilstm of 256 units 25.6 ms
together, 4.7 ms in two batches, an hcnn 7.7 and 2.2 ms; with 30 tokens instead of 150, 5.8 and 2.6, 2.2 and 1.9 ms."""


def _mode(graph: str, placement: list[Device]) -> Mode:
    return Mode(
        graph=graph,
        placement=placement,
        content_types=_CONTENT_TYPES,
        accepts=_CONTENT_TYPES,
        batching=Batching(max_batch_size=64, bucket_bytes=_BUCKET_BYTES),
    )


def _write_golden(directory: Path, network: Network, most: int) -> Golden:
    """A pair and an item of each side: one request proves the three graphs."""
    first = [1, 0, 1][:most]
    ids = torch.tensor([first])
    with torch.inference_mode():
        scores = PairScores(network)(ids, ids[:, :1])[0].tolist()
        embeddings = [SideEncoder(network, side)(ids[:, :1])[0].tolist() for side in (0, 1)]
    request = {"instances": [{"in0": first, "in1": [1]}, {"in0": [1]}, {"in1": [1]}]}
    answer = {"predictions": [{"scores": scores}, *({"embeddings": each} for each in embeddings)]}
    (directory / "golden.request.json").write_text(json.dumps(request))
    (directory / "golden.json").write_text(json.dumps(answer))
    return Golden(
        request="golden.request.json",
        content_type="application/json",
        accept="application/json",
        mode="",
        response="golden.json",
        tolerance=PARITY_TOLERANCE,
    )
