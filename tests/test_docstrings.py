"""The text that the demonstration trains on: labelled sentences, none of them in both parts."""

from __future__ import annotations

from pathlib import Path

from examples.docstrings import PACKAGES, write_text


def test_every_package_has_sentences_and_none_is_in_both_parts(tmp_path: Path) -> None:
    counts = write_text(tmp_path)
    lines = {part: (tmp_path / part / "text").read_text().splitlines() for part in counts}

    assert {part: len(found) for part, found in lines.items()} == counts
    for found in lines.values():
        assert {line.split()[0] for line in found} == {f"__label__{package}" for package in PACKAGES}
        assert all(line.split(" ", 1)[1].replace(" ", "").isalpha() for line in found)
    sentences = [{line.split(" ", 1)[1] for line in found} for found in lines.values()]
    assert not sentences[0] & sentences[1]
