"""Training on a GPU: the kernels' steps for many examples at once, as PyTorch operations.

An example is a bag of input rows (a word, its neighbours, or a line's features) and what it should predict. All
examples of a batch see the matrices as they were before it, and rows take the sum of their examples' steps, which is
what threads without locks do too, only wider (Gupta and Khare 2017, doi:10.1145/3146347.3146354). A row that many
examples of a batch share would overshoot: it takes at most `_MOST_STEPS` steps of their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainers.blazingtext.data import Ids, Lines
from trainers.blazingtext.model import Embedding

__all__ = ["Neighbours", "train_lines", "train_words"]

_PAIRS_PER_BATCH = 4_096
"""Measured on novels of 29,000 words: vectors as good as the kernels'; with 16,384 they were worse."""
_WORDS_PER_CHUNK = 200_000
_LINES_PER_BATCH = 32
_MOST_STEPS = 32.0
_SURE_STEP = 2.0
_KEEP_ALL = 1 << 24


@dataclass(frozen=True, slots=True)
class Neighbours:
    """How words meet: what is the same for the whole run. Tensors are on the device.

    Attributes:
        predicts_neighbours: skip-gram, else CBOW.
        keep: (words,) float32, of 2**24 occurrences of each word so many are used.
        negatives: (S,) int32, to draw from.
        num_negatives: drawn for each pair.
        window: the most words between two neighbours.
        end: the word that ends a line beside -1, or -1.
        unit_starts: (words + 1,) int64, where each word's rows begin in `units`; empty units: its own row.
        units: int32.
    """

    predicts_neighbours: bool
    keep: Tensor
    negatives: Tensor
    num_negatives: int
    window: int
    end: int
    unit_starts: Tensor
    units: Tensor

    @classmethod
    def of(
        cls, device: torch.device, keep: NDArray[np.float32], negatives: Ids, unit_starts: NDArray[np.int64],
        units: Ids, *, predicts_neighbours: bool, num_negatives: int, window: int, end: int,
    ) -> Neighbours:  # fmt: skip
        """With the arrays taken to the device."""
        taken = [torch.from_numpy(each).to(device) for each in (keep, negatives, unit_starts, units)]
        return cls(predicts_neighbours, taken[0], taken[1], num_negatives, window, end, taken[2], taken[3])


def train_words(
    ids: Ids, embedding: Embedding, how: Neighbours, rate: float, fall: float, seed: int, tell: Callable[[int], None]
) -> None:
    """One pass over `ids`, in place.

    Args:
        ids: (tokens,) int32, negative where a line ends or a word has no row.
        embedding: taken to the device of `how` and back.
        how: words meet.
        rate: of the first token.
        fall: of the rate at each token.
        seed: of down-sampling, windows and negative samples.
        tell: hears how many tokens are done.
    """
    device = how.keep.device
    inputs, outputs = (_rows(each, embedding.stride, device) for each in (embedding.inputs, embedding.outputs))
    generator = torch.Generator(device).manual_seed(seed)
    for start in range(0, len(ids), _WORDS_PER_CHUNK):
        part = torch.from_numpy(ids[start : start + _WORDS_PER_CHUNK]).to(device)
        words, lines = _surviving(part, how, generator)
        alpha = max(rate - fall * start, 0.0)
        if how.predicts_neighbours:
            centres, neighbours = _pairs(words, lines, how.window, generator)
            order = torch.randperm(len(centres), generator=generator, device=device)
            examples = _of_words(centres[order], neighbours[order], how)
        else:
            examples = _of_contexts(words, lines, how, generator)
        for rows, owners, targets in examples:
            _step_negative(inputs, outputs, rows, owners, targets, how, alpha, generator)
        tell(start + len(part))
    _take_back(embedding, inputs, outputs)


def train_lines(
    lines: Lines,
    order: NDArray[np.int64],
    embedding: Embedding,
    num_labels: int,
    device: torch.device,
    rate: float,
    fall: float,
    seed: int,
    tell: Callable[[int], None],
) -> None:
    """One pass over lines[order], in place; of several labels, one by chance.

    Args:
        lines: features and labels.
        order: (lines,) in which they teach.
        embedding: taken to the device and back.
        num_labels: rows of the outputs in use.
        device: where to compute.
        rate: of the first line.
        fall: of the rate at each line.
        seed: of choices among labels.
        tell: hears how many lines are done.
    """
    inputs, outputs = (_rows(each, embedding.stride, device) for each in (embedding.inputs, embedding.outputs))
    starts, features = torch.from_numpy(lines.starts).to(device), torch.from_numpy(lines.features).to(device)
    targets = torch.from_numpy(_chosen_labels(lines, seed)).to(device)
    teaches = (np.diff(lines.starts) > 0) & (np.diff(lines.label_starts) > 0)
    places = np.flatnonzero(teaches[order])
    for start in range(0, len(places), _LINES_PER_BATCH):
        chosen = places[start : start + _LINES_PER_BATCH]
        numbers = torch.from_numpy(order[chosen]).to(device)
        rows, owners = _bags(numbers, starts, features)
        _step_softmax(
            inputs, outputs[:num_labels], rows, owners, targets[numbers], max(rate - fall * int(chosen[0]), 0.0)
        )
        tell(int(chosen[-1]))
    _take_back(embedding, inputs, outputs)


# ---- which words meet --------------------------------------------------------------------------------------------


def _surviving(part: Tensor, how: Neighbours, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The words that down-sampling leaves and the line that each is of: (K,) int64 both."""
    ends = (part == -1) | (part == how.end)
    lines = ends.cumsum(0) - ends.long()
    known = part >= 0
    drawn = torch.rand(len(part), generator=generator, device=part.device) * _KEEP_ALL
    kept = known & (drawn < how.keep[part.long().clamp(min=0)])
    return part[kept].long(), lines[kept]


def _radii(count: int, window: int, generator: torch.Generator) -> Tensor:
    return torch.randint(1, window + 1, (count,), generator=generator, device=generator.device)


def _meetings(words: Tensor, lines: Tensor, window: int, generator: torch.Generator) -> Iterator[tuple[Tensor, int]]:
    """For each distance, which words have a neighbour there; window of chance per word, as word2vec."""
    radii = _radii(len(words), window, generator)
    places = torch.arange(len(words), device=words.device)
    for distance in (*range(-window, 0), *range(1, window + 1)):
        others = places + distance
        inside = (others >= 0) & (others < len(words)) & (radii >= abs(distance))
        inside &= lines[others.clamp(0, max(len(words) - 1, 0))] == lines
        yield places[inside], distance


def _pairs(words: Tensor, lines: Tensor, window: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each word with each of its neighbours: (P,) int64 both."""
    met = [(places, places + distance) for places, distance in _meetings(words, lines, window, generator)]
    centres, neighbours = (torch.cat([pair[i] for pair in met]) for i in (0, 1))
    return words[centres], words[neighbours]


def _of_words(centres: Tensor, neighbours: Tensor, how: Neighbours) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    size = _batch_size(how)
    for start in range(0, len(centres), size):
        batch = centres[start : start + size]
        targets = neighbours[start : start + size]
        yield *_units_of(batch, torch.arange(len(batch), device=batch.device), how), targets


def _of_contexts(
    words: Tensor, lines: Tensor, how: Neighbours, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    met = [(places, places + distance) for places, distance in _meetings(words, lines, how.window, generator)]
    targets, others = (torch.cat([pair[i] for pair in met]) for i in (0, 1))
    order = torch.argsort(targets, stable=True)
    targets, others = targets[order], others[order]
    places, counts = torch.unique_consecutive(targets, return_counts=True)
    bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    size = max(_batch_size(how) // 4, 1)
    for start in range(0, len(places), size):
        stop = min(start + size, len(places))
        first, last = int(bounds[start]), int(bounds[stop])
        owners = torch.repeat_interleave(counts[start:stop])
        yield *_units_of(words[others[first:last]], owners, how), words[places[start:stop]]


def _batch_size(how: Neighbours) -> int:
    """Pairs; fewer where few words share them."""
    return min(_PAIRS_PER_BATCH, max(2 * len(how.keep), 32))


def _units_of(words: Tensor, owners: Tensor, how: Neighbours) -> tuple[Tensor, Tensor]:
    """The rows that stand for words, and the example that each row is of."""
    if not len(how.units):
        return words, owners
    rows, places = _bags(words, how.unit_starts, how.units)
    return rows, owners[places]


def _bags(numbers: Tensor, starts: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """features[starts[n]:starts[n + 1]] of each number joined, and which of the numbers each is of; int64 both."""
    counts = starts[numbers + 1] - starts[numbers]
    owners = torch.repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    places = starts[numbers][owners] + torch.arange(len(owners), device=owners.device) - before[owners]
    return features[places].long(), owners


# ---- steps -------------------------------------------------------------------------------------------------------


def _step_negative(
    inputs: Tensor,
    outputs: Tensor,
    rows: Tensor,
    owners: Tensor,
    targets: Tensor,
    how: Neighbours,
    alpha: float,
    generator: torch.Generator,
) -> None:
    """Negative sampling (Mikolov et al. 2013, eq. 4) for B examples with `targets` (B,)."""
    hidden, _ = _means(inputs, rows, owners, len(targets))
    size = (len(targets), how.num_negatives)
    drawn = how.negatives[torch.randint(len(how.negatives), size, generator=generator, device=targets.device)].long()
    samples = torch.cat([targets[:, None], drawn], dim=1)
    weights = outputs[samples]
    errors = -torch.sigmoid((weights * hidden[:, None]).sum(2))
    errors[:, 0] += 1
    errors[:, 1:] *= drawn != targets[:, None]
    step = torch.einsum("bk,bd->bkd", errors, hidden)
    toward = torch.einsum("bk,bkd->bd", errors, weights)
    _add(outputs, samples.flatten(), step.flatten(0, 1), alpha)
    _add(inputs, rows, toward[owners], alpha)


def _step_softmax(inputs: Tensor, outputs: Tensor, rows: Tensor, owners: Tensor, targets: Tensor, alpha: float) -> None:
    """Softmax over the mean of each line's rows (Joulin et al. 2016) for B lines with `targets` (B,)."""
    hidden, counts = _means(inputs, rows, owners, len(targets))
    errors = -torch.softmax(hidden @ outputs.T, dim=1)
    errors[torch.arange(len(targets), device=targets.device), targets] += 1
    toward = errors @ outputs
    # the loss curves by at most half the sum of |hidden|^2, and a step beyond 2 over that goes uphill
    outputs += (errors.T @ hidden) * (_SURE_STEP / hidden.square().sum()).clamp(max=alpha)
    _add(inputs, rows, toward[owners] / counts[owners, None], alpha)


def _means(inputs: Tensor, rows: Tensor, owners: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(count, width) the mean of each example's rows, and (count,) how many there are."""
    counts = torch.bincount(owners, minlength=count).float()
    sums = inputs.new_zeros(count, inputs.shape[1]).index_add_(0, owners, inputs[rows])
    return sums / counts[:, None], counts


def _add(matrix: Tensor, rows: Tensor, steps: Tensor, alpha: float) -> None:
    """Each row takes its steps' sum, or `_MOST_STEPS` times their mean where that is less."""
    counts = torch.bincount(rows, minlength=len(matrix))
    share = (_MOST_STEPS / counts.clamp(min=1)).clamp(max=1)
    matrix.index_add_(0, rows, steps * share[rows, None], alpha=alpha)


# ---- to the device and back --------------------------------------------------------------------------------------


def _rows(flat: NDArray[np.float32], stride: int, device: torch.device) -> Tensor:
    return torch.from_numpy(flat).view(-1, stride).to(device)


def _take_back(embedding: Embedding, inputs: Tensor, outputs: Tensor) -> None:
    """On the CPU the matrices were the same memory all along."""
    if inputs.device.type != "cpu":
        torch.from_numpy(embedding.inputs).view(inputs.shape).copy_(inputs)
        torch.from_numpy(embedding.outputs).view(outputs.shape).copy_(outputs)


def _chosen_labels(lines: Lines, seed: int) -> NDArray[np.int64]:
    """(lines,) one label of each; 0 where there is none."""
    counts = np.diff(lines.label_starts)
    places = lines.label_starts[:-1] + (np.random.default_rng(seed).random(len(counts)) * counts).astype(np.int64)
    padded = np.append(lines.labels, 0)
    return padded[np.where(counts > 0, places, len(lines.labels))].astype(np.int64)
