"""Text to parts of words and back, by SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226).

Seq2seq's server splits text between blanks and nowhere else: who trains it on parts of words sends it parts of words.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from formats.errors import InvalidBody

__all__ = ["Subwords", "learn", "merge"]

_SPACE = "\u2581"


class Subwords:
    """A model that `learn`, or SentencePiece itself, has written.

    Raises:
        InvalidBody: the file is no such model.
    """

    def __init__(self, file: Path) -> None:
        try:
            self._processor: Any = _sentencepiece().SentencePieceProcessor(model_proto=file.read_bytes())
        except RuntimeError as error:
            raise InvalidBody(f"{file} is not a SentencePiece model: {str(error)[:200]}") from error

    def split(self, text: str) -> list[str]:
        """The parts of a sentence, `▁` before those that begin a word."""
        parts: list[str] = self._processor.encode(text, out_type=str)
        return parts


def learn(lines: Iterable[str], file: Path, size: int) -> None:
    """Learn byte pair encoding (Sennrich et al. 2016, arXiv:1508.07909) from plain text and write a model.

    Args:
        lines: sentences; of both languages where they are to share parts.
        file: to write.
        size: number of parts.

    Raises:
        InvalidBody: the text is too small for so many parts.
    """
    model = io.BytesIO()
    try:
        _sentencepiece().SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=size,
            model_type="bpe",
            character_coverage=1.0,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InvalidBody(f"no {size} parts of words can be learned: {str(error)[-200:]}") from error
    file.write_bytes(model.getvalue())


def merge(tokens: Sequence[str]) -> str:
    """Text of parts of words: SentencePiece's, with `▁` before a word, or subword-nmt's, with `@@` inside one."""
    if any(_SPACE in token for token in tokens):
        return "".join(tokens).replace(_SPACE, " ").strip()
    return " ".join(tokens).replace("@@ ", "").removesuffix("@@")


def _sentencepiece() -> Any:
    try:
        import sentencepiece  # noqa: PLC0415
    except ImportError as error:
        raise ValueError("parts of words need the extra 'subwords': pip install 'penstock[subwords]'") from error
    return sentencepiece
