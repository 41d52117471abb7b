"""Beam search of a batch, held against a plain one that knows one sentence, and no step of any decoder."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from formats.vocabulary import BOS, EOS, PAD
from tests.trainers.seq2seq.test_model import KINDS, sentences
from tests.translators import make_network
from trainers.seq2seq.beam_search import BeamSearch
from trainers.seq2seq.model import Network

NUM_MODELS = 200


def plain_beam_search(
    network: Network, source: list[int], max_length: int, beam_size: int, alpha: float, beta: float
) -> tuple[list[int], float]:
    """Every hypothesis is scored anew at each step, by the forward pass of training."""

    def score(total: float, length: int) -> float:
        return total / float(((beta + length) / (beta + 1)) ** alpha)

    beams: list[tuple[list[int], float, bool]] = [([], 0.0, False)]
    for _ in range(max_length):
        going = [tokens for tokens, _, finished in beams if not finished]
        if not going:
            break
        labels = torch.tensor([[*tokens, EOS] for tokens in going])
        logits = network(torch.tensor([source] * len(going)), labels).view(len(going), labels.size(1), -1)[:, -1]
        logits[:, [PAD, BOS]] = -1e9
        chances = iter(torch.log_softmax(logits, dim=1).tolist())
        candidates = []
        for tokens, total, finished in beams:
            if finished:
                candidates.append((score(total, len(tokens)), tokens, total, True))
                continue
            for word, chance in enumerate(next(chances)):
                if word in (PAD, BOS):
                    continue
                length = len(tokens) + 1
                over = word == EOS or length >= max_length
                candidates.append((score(total + chance, length), [*tokens, word], total + chance, over))
        candidates.sort(key=lambda each: -each[0])
        beams = [(tokens, total, over) for _, tokens, total, over in candidates[:beam_size]]
    tokens, total, _ = beams[0]
    return [token for token in tokens if token != EOS], score(total, len(tokens))


def search(
    network: Network, source: Tensor, limits: list[int], beams: list[int], penalties: list[tuple[float, float]]
) -> tuple[list[list[int]], Tensor, Tensor]:
    with torch.inference_mode():
        target, score, attention = BeamSearch(network)(
            source,
            torch.tensor(limits),
            torch.tensor(beams),
            torch.tensor(penalties),
            torch.ones(len(source), dtype=torch.bool),
        )
    return [[token for token in row if token != PAD] for row in target.tolist()], score, attention


def test_it_equals_a_plain_search_on_two_hundred_random_models() -> None:
    chance = random.Random(0)
    kinds = list(KINDS.values())
    for seed in range(NUM_MODELS):
        network = make_network(seed, num_words=chance.choice([6, 14]), **kinds[seed % len(kinds)])
        num_words = network.to_word.out_features
        lengths = [chance.randint(1, 7) for _ in range(3)]
        source = sentences(*lengths, seed=seed).clamp(max=num_words - 1)
        limits, beams = [chance.randint(1, 8) for _ in lengths], [chance.randint(1, 5) for _ in lengths]
        penalties = [(chance.choice([0.0, 0.6, 1.0]), chance.choice([0.0, 5.0])) for _ in lengths]

        targets, scores, _ = search(network, source, limits, beams, penalties)

        for row, length in enumerate(lengths):
            with torch.inference_mode():
                expected = plain_beam_search(
                    network, source[row, :length].tolist(), limits[row], beams[row], *penalties[row]
                )
            assert targets[row] == expected[0], (seed, row)
            assert scores[row].item() == pytest.approx(expected[1], abs=1e-5, rel=1e-5), (seed, row)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_and_the_order_of_a_batch_change_no_answer(kind: str) -> None:
    network = make_network(3, **KINDS[kind])
    lengths, limits, beams = [2, 7, 4, 1], [5, 9, 7, 3], [4, 1, 3, 5]
    penalties = [(1.0, 0.0), (0.5, 0.0), (1.0, 5.0), (0.0, 0.0)]
    source = sentences(*lengths)
    targets, scores, attention = search(network, source, limits, beams, penalties)

    order = [2, 0, 3, 1]
    wider = torch.cat([source, torch.zeros(4, 3, dtype=torch.int64)], dim=1)[order]
    others = search(network, wider, *([given[row] for row in order] for given in (limits, beams, penalties)))  # type: ignore[arg-type]
    for place, row in enumerate(order):
        length = lengths[row]
        alone = search(network, source[[row], :length], [limits[row]], [beams[row]], [penalties[row]])
        for found, at in ((others, place), (alone, 0)):
            assert found[0][at] == targets[row]
            assert found[1][at].item() == pytest.approx(scores[row].item(), abs=1e-5)
            size = len(targets[row])
            torch.testing.assert_close(
                found[2][at, :size, :length], attention[row, :size, :length], rtol=1e-4, atol=1e-5
            )


def test_a_wider_beam_finds_better_sums() -> None:
    source = sentences(6, 5, 3)
    gains = []
    for seed in range(20):
        network = make_network(seed)
        one, many = (search(network, source, [6] * 3, [beam] * 3, [(0.0, 0.0)] * 3)[1] for beam in (1, 14))
        gains += (many - one).tolist()

    assert sum(gain > 1e-4 for gain in gains) > 10
    assert sum(gain < -1e-4 for gain in gains) < 5  # no guarantee: what is worse now may be better later


def test_attention_is_kept_only_where_somebody_wants_it() -> None:
    network = make_network()
    source = sentences(5, 3)
    with torch.inference_mode():
        given = (source, torch.tensor([4, 4]), torch.tensor([2, 2]), torch.tensor([[1.0, 0.0]] * 2))
        _, _, none = BeamSearch(network)(*given, torch.tensor([False, False]))
        target, _, some = BeamSearch(network)(*given, torch.tensor([False, True]))

    assert none.size(2) == 0
    assert some.shape == (2, target.size(1), 5)
