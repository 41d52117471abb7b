"""A translator's checkpoint whose answers differ from each other, without any training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from formats import vocabulary
from trainers.checkpoints import save
from trainers.hyperparameter_schema import parse, plain_values
from trainers.seq2seq.hyperparameters import Hyperparameters
from trainers.seq2seq.model import Network

__all__ = ["SMALL", "WORDS", "make_network", "vocabulary_of", "write_checkpoint"]

SMALL: dict[str, object] = {
    "rnn_num_hidden": 16, "cnn_num_hidden": 16, "num_embed_source": 12, "num_embed_target": 10,
    "rnn_attention_num_heads": 4, "max_seq_len_source": 10, "max_seq_len_target": 12,
    "weight_init_scale": 8.0,  # large weights make opinions strong, as training does
}  # fmt: skip
WORDS = ["ant", "bee", "cat", "dog", "emu", "fox", "gnu", "hen", "ibis", "jay"]


def make_network(seed: int = 0, num_words: int = len(WORDS) + 4, **changed: object) -> Network:
    """In eval mode; both vocabularies are equally large."""
    torch.manual_seed(seed)
    return Network(parse(Hyperparameters, SMALL | changed), num_words, num_words).eval()


def vocabulary_of(words: list[str]) -> dict[str, int]:
    return {word: number for number, word in enumerate([*vocabulary.SPECIALS, *words])}


def write_checkpoint(directory: Path, *, seed: int = 0, **changed: Any) -> Path:
    """`model.pt`, both vocabularies and `model.json` of a small random network."""
    wanted = parse(Hyperparameters, SMALL | changed)
    directory.mkdir(parents=True)
    save(directory / "model.pt", make_network(seed, **changed).state_dict())
    vocabulary.write(directory / "vocab.src.json", vocabulary_of(WORDS))
    vocabulary.write(directory / "vocab.trg.json", vocabulary_of([word.upper() for word in WORDS]))
    description = {
        "algorithm": "seq2seq",
        "hyperparameters": plain_values(wanted),
        "num_words": [len(WORDS) + 4] * 2,
        "length_ratio": {"mean": 1.0, "standard_deviation": 0.25},
        "epoch": 0,
        "metrics": {"validation:perplexity": 9.0},
    }
    (directory / "model.json").write_text(json.dumps(description))
    return directory
