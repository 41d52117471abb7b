"""Dates as people write them, and as machines want them: a made-up task that needs attention, and seconds to learn.

python -m examples.dates DIRECTORY
"""

from __future__ import annotations

import random
import sys
from datetime import date, timedelta
from pathlib import Path

from examples.sentence_channels import write_channels

__all__ = ["NUM_PAIRS", "as_tokens", "write_dates"]

NUM_PAIRS = {"train": 8000, "validation": 300}
_FORMS = (
    "%d %B %Y",
    "%B %d, %Y",
    "%d.%m.%Y",
    "%a %d %b %y",
    "%b %d %Y",
    "%A, %d %B %Y",
    "%y/%m/%d",
    "the %dth of %B %Y",
)
_FIRST, _LAST = date(1970, 1, 1), date(2069, 12, 31)  # a year's two last digits say which it is


def as_tokens(text: str) -> str:
    """Letters and signs apart, for Seq2seq reads tokens between blanks; `_` for a blank."""
    return " ".join(text.lower().replace(" ", "_"))


def write_dates(directory: Path) -> dict[str, int]:
    """The channels train, validation and vocab; returns how many pairs are in each."""
    texts = directory / "texts"
    texts.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for part, number in NUM_PAIRS.items():
        days = [_FIRST + timedelta(days=chance.randrange((_LAST - _FIRST).days)) for _ in range(number)]
        written = [day.strftime(chance.choice(_FORMS)) for day in days]
        (texts / f"{part}.src").write_text("".join(as_tokens(each) + "\n" for each in written))
        (texts / f"{part}.trg").write_text("".join(as_tokens(day.isoformat()) + "\n" for day in days))
    train, validation = ((texts / f"{part}.src", texts / f"{part}.trg") for part in NUM_PAIRS)
    write_channels(directory, train, validation)
    return NUM_PAIRS


if __name__ == "__main__":
    print(write_dates(Path(sys.argv[1])))
