"""The pairs that the demonstration trains on."""

from __future__ import annotations

import json
from pathlib import Path

from examples.purposes import ids_of, write_purposes
from formats import token_pairs


def test_right_pairs_train_and_as_many_wrong_ones_validate(tmp_path: Path) -> None:
    counts = write_purposes(tmp_path)
    ids = json.loads((tmp_path / "words.json").read_text())
    read = {}
    for part in ("train", "validation"):
        with (tmp_path / part / "pairs.jsonl").open("rb") as stream:
            read[part] = list(token_pairs.read(stream, part))
    withheld = json.loads((tmp_path / "withheld.json").read_text())

    assert counts == {part: len(pairs) for part, pairs in read.items()}
    assert counts["train"] > 2000
    assert {pair.label for pair in read["train"]} == {1}
    right = sum(pair.label == 1 for pair in read["validation"])
    assert abs(2 * right - counts["validation"]) < counts["validation"] / 10
    trained = {tuple(pair.in1 or ()) for pair in read["train"] if len(pair.in1 or ()) > 6}
    assert not trained & {tuple(ids_of(purpose, ids)) for _, purpose in withheld}
    assert len(ids) < 20_000
