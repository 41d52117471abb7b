"""How well distances of word vectors agree with people's judgements of likeness (WordSim-353, Agirre et al. 2009)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainers.job import ClientError, Job

__all__ = ["SETS", "Agreement", "agreement", "find_sets", "spearman"]

SETS = ("EN-WS-353-ALL.txt", "EN-WS-353-REL.txt", "EN-WS-353-SIM.txt")
Agreement = dict[str, float]


def find_sets(job: Job) -> Path | None:
    """The directory of the sets: channel `evaluation`, else `blazingtext/word-eval` in PENSTOCK_DATA.

    Raises:
        ClientError: the channel is given and lacks one of them.
    """
    given = job.channels.get("evaluation")
    directory = given or Path(os.environ.get("PENSTOCK_DATA", "/nowhere")) / "blazingtext" / "word-eval"
    missing = [name for name in SETS if not (directory / name).is_file()]
    if given and missing:
        raise ClientError(f"Channel 'evaluation': {missing[0]} is missing; expected {', '.join(SETS)}.")
    return None if missing else directory


def agreement(file: Path, rows: Mapping[str, int], vectors_VD: NDArray[np.float32]) -> Agreement:
    """Spearman's rho of a set's scores with cosines; pairs of an unknown word are left out and counted.

    Args:
        file: lines of two words and a score.
        rows: of each known word.
        vectors_VD: by row.

    Raises:
        ClientError: a line is not of that form.
    """
    scores, firsts, seconds, total = [], list[int](), list[int](), 0
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        parts = line.lower().split()
        if not parts:
            continue
        try:
            first, second, score = parts[0], parts[1], float(parts[2])
        except (IndexError, ValueError) as error:
            raise ClientError(f"{file}, line {number}: expected two words and a score, found {line[:80]!r}") from error
        total += 1
        if first in rows and second in rows:
            firsts.append(rows[first])
            seconds.append(rows[second])
            scores.append(score)
    a_PD, b_PD = vectors_VD[firsts], vectors_VD[seconds]
    norms_P = np.linalg.norm(a_PD, axis=1) * np.linalg.norm(b_PD, axis=1)
    cosines_P = np.einsum("pd,pd->p", a_PD, b_PD) / np.maximum(norms_P, 1e-12)
    rho = spearman(np.array(scores), cosines_P.astype(np.float64))
    return {"not_found": total - len(scores), "spearmans_rho": rho, "total_pairs": total}


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The correlation of ranks, equal values sharing their mean rank; 0 where it is not defined."""
    if len(a) < 2:
        return 0.0
    with np.errstate(invalid="ignore"):
        rho = np.corrcoef(_ranks(a), _ranks(b))[0, 1] if np.ptp(a) and np.ptp(b) else 0.0
    return float(rho)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2)[places]
    return ranks
