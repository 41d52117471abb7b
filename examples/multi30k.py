"""English to German on Multi30k, image descriptions: plain text in, sacreBLEU out.

    python -m examples.multi30k FOLDER OUTPUT [--recipe cpu|gpu] [--seed N] [--set NAME=VALUE ...]

FOLDER holds `train`, `val` and `test_2016_flickr`, each as `.en.gz` and `.de.gz`. The text is split into parts of words
learned from the training part, translated with the model's own beam, put together again, and scored by sacreBLEU as it
stands (13a, cased). The model is chosen by BLEU on the validation part. OUTPUT keeps everything; the same command goes
on where it stopped, and a line for each finished run is added to OUTPUT/results.jsonl.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Any

from sacrebleu.metrics.bleu import BLEU

from examples.sentence_channels import write_channels
from examples.translation import run_recipe, translate
from formats.subwords import Subwords, merge

__all__ = ["RECIPES", "main"]

_NUM_SUBWORDS = 6000
_CPU: dict[str, object] = {
    "rnn_num_hidden": 384,
    "num_embed_source": 256,
    "num_embed_target": 256,
    "rnn_attention_type": "bilinear",
    "embed_dropout_source": 0.3,
    "embed_dropout_target": 0.3,
    "rnn_decoder_hidden_dropout": 0.4,
    "label_smoothing": 0.1,
    "batch_size": 64,
    "learning_rate": 0.001,
    "learning_rate_warmup_num_batches": 400,
    "cooldown": 0.5,
    "max_num_epochs": 24,
    "max_seq_len_source": 60,
    "max_seq_len_target": 60,
    "checkpoint_frequency_num_batches": 460,
    "optimized_metric": "bleu",
    "bleu_sample_size": -1,
    "precision_dtype": "bfloat16",
}
RECIPES: dict[str, dict[str, object]] = {
    "cpu": _CPU,
    "gpu": {**_CPU, "rnn_num_hidden": 512, "num_embed_source": 384, "num_embed_target": 384, "max_num_epochs": 40},
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--recipe", choices=RECIPES, default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="values")
    asked = parser.parse_args(arguments)
    data = asked.output / "data"
    train, validation = ((asked.folder / f"{part}.en.gz", asked.folder / f"{part}.de.gz") for part in ("train", "val"))
    channels = write_channels(data, train, validation, _NUM_SUBWORDS)
    values = RECIPES[asked.recipe] | {"seed": asked.seed} | dict(each.split("=", 1) for each in asked.values)
    name = "-".join([asked.recipe, str(asked.seed), *asked.values])

    def score(bundle: Path) -> dict[str, Any]:
        split = Subwords(data / "subwords.model").split
        sources = [" ".join(split(line)) for line in _lines(asked.folder / "test_2016_flickr.en.gz")]
        translations = [merge(each.split()) for each in translate(bundle, sources)]
        (bundle.parent / "test_2016_flickr.de").write_text("\n".join(translations) + "\n")
        metric = BLEU()
        found = metric.corpus_score(translations, [_lines(asked.folder / "test_2016_flickr.de.gz")])
        return {"test_bleu": round(found.score, 2), "signature": str(metric.get_signature())}

    result = run_recipe(asked.output, name, channels, values, score)
    print(json.dumps(result) if result else "stopped; the same command goes on")
    return 0 if result else 1


def _lines(file: Path) -> list[str]:
    with gzip.open(file, "rt", encoding="utf-8") as stream:
        return stream.read().splitlines()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
