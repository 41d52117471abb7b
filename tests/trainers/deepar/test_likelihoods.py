"""Densities against scipy's, and samples against the densities that they are of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from formats.forecasting import uniform_noise
from trainers.deepar.hyperparameters import LIKELIHOODS
from trainers.deepar.likelihoods import Likelihood

NUM_DRAWS = 200_000


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def drawn(kind: str, fit: list[float], scale: float = 1.0) -> Any:
    likelihood = Likelihood(kind)
    noise = torch.from_numpy(uniform_noise((likelihood.num_noise, NUM_DRAWS), np.random.default_rng(0)))
    parts = [torch.full((NUM_DRAWS,), value) for value in fit]
    return (likelihood.sample(parts, torch.tensor(scale), list(noise)) * scale).double().numpy()


def test_log_densities_are_those_of_scipy() -> None:
    y, v = tensor(0.0, 1.5, 7.0), torch.tensor(2.5, dtype=torch.float64)
    mean, deviation, freedom = tensor(0.3, -1.0, 2.0), tensor(0.1, 1.0, 3.0), tensor(2.1, 5.0, 300.0)
    alpha, count = tensor(0.05, 1.0, 7.0), tensor(0.0, 3.0, 250.0)
    share = tensor(0.01, 0.4, 0.99)
    a, b = tensor(0.5, 2.0, 9.0), tensor(0.7, 1.0, 30.0)

    gaussian = Likelihood("gaussian").loss([mean, deviation], y / v, v)
    assert (-gaussian).numpy() == pytest.approx(stats.norm.logpdf(y, mean * v, deviation * v), abs=1e-6)
    student = Likelihood("student-T").loss([mean, deviation, freedom], y / v, v)
    assert (-student).numpy() == pytest.approx(stats.t.logpdf(y, freedom, mean * v, deviation * v), abs=1e-6)
    counts = Likelihood("negative-binomial").loss([a, alpha], count / v, v)
    spread, centre = (alpha / v.sqrt()).numpy(), (a * v).numpy()
    expected = stats.nbinom.logpmf(count, 1 / spread, 1 / (1 + spread * centre))
    assert (-counts).numpy() == pytest.approx(expected, abs=1e-6)
    beta = Likelihood("beta").loss([a, b], share, torch.ones((), dtype=torch.float64))
    assert (-beta).numpy() == pytest.approx(stats.beta.logpdf(share, a, b), abs=1e-6)
    assert Likelihood("deterministic-L1").loss([mean], y, v).tolist() == pytest.approx([0.3, 2.5, 5.0])


@pytest.mark.parametrize(
    ("kind", "fit", "law"),
    [
        ("gaussian", [1.0, 2.0], stats.norm(1, 2)),
        ("student-T", [1.0, 2.0, 2.5], stats.t(2.5, 1, 2)),
        ("student-T", [0.0, 1.0, 400.0], stats.t(400)),
        ("beta", [0.4, 0.7], stats.beta(0.4, 0.7)),
        ("beta", [3.0, 9.0], stats.beta(3, 9)),
    ],
)
def test_samples_are_of_their_law(kind: str, fit: list[float], law: stats.rv_frozen) -> None:
    """Kolmogorov and Smirnov's distance of 200,000 draws; 0.0036 is passed once in 100 times by the law itself."""
    assert stats.kstest(drawn(kind, fit), law.cdf).statistic < 0.0045


@pytest.mark.parametrize(("mean", "alpha"), [(0.3, 0.5), (3.0, 0.05), (20.0, 1.5), (400.0, 0.2), (1e5, 0.01)])
def test_counts_are_of_their_law(mean: float, alpha: float) -> None:
    samples = drawn("negative-binomial", [mean, alpha])
    law = stats.nbinom(1 / alpha, 1 / (1 + alpha * mean))

    assert (samples == np.round(samples)).all()
    assert (samples >= 0).all()
    numbers = np.unique(np.quantile(samples, np.linspace(0.01, 0.99, 50)).round())
    shares = [(samples <= number).mean() for number in numbers]
    assert shares == pytest.approx(law.cdf(numbers).tolist(), abs=0.005)
    assert samples.mean() == pytest.approx(mean, abs=6 * np.sqrt(law.var() / NUM_DRAWS) + 1e-3 * mean)


@pytest.mark.parametrize(
    ("kind", "true"),
    [("gaussian", [0.5, 0.3]), ("student-T", [0.5, 0.3, 4.0]), ("negative-binomial", [4.0, 0.5]), ("beta", [2.0, 5.0])],
)
def test_the_parameters_of_drawn_data_are_found_again(kind: str, true: list[float]) -> None:
    """By descending the loss of 20,000 draws; within 6 % (degrees of freedom: 25 %)."""
    likelihood = Likelihood(kind)
    data = torch.from_numpy(drawn(kind, true)[:20_000]).float()
    raw = [torch.zeros((), requires_grad=True) for _ in true]
    optimizer = torch.optim.Adam(raw, 0.05)
    for _ in range(400):
        fit = likelihood.parameters_of([each.expand(len(data)) for each in raw])
        loss = likelihood.loss(fit, data, torch.ones(())).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    found = [each.item() for each in likelihood.parameters_of(raw)]
    assert found[:2] == pytest.approx(true[:2], rel=0.06)
    assert found[2:] == pytest.approx(true[2:], rel=0.25)


@pytest.mark.parametrize(
    ("kind", "fit"),
    [
        ("gaussian", [0.5, 0.3]),
        ("student-T", [0.5, 0.3, 8.0]),
        ("negative-binomial", [50.0, 4.0]),
        ("beta", [40.0, 90.0]),
    ],
)
def test_a_spread_of_1_5_makes_deviations_so_much_larger_about_the_same_mean(kind: str, fit: list[float]) -> None:
    """Counts and shares to 2 % of it: Poisson's part and a beta's bounds stay as they are."""
    parts = [torch.tensor(value) for value in fit]
    spread = [each.item() for each in Likelihood(kind).spread_out(parts, torch.tensor(1.5))]
    once, wide = drawn(kind, fit), drawn(kind, spread)

    assert wide.std() / once.std() == pytest.approx(1.5, rel=0.02)
    assert wide.mean() == pytest.approx(once.mean(), abs=0.02 * once.std())


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_extreme_parameters_give_finite_losses_gradients_and_samples(kind: str) -> None:
    likelihood = Likelihood(kind)
    raw = [torch.tensor([-30.0, 0.0, 30.0], requires_grad=True) for _ in range(likelihood.num_parameters)]
    fit = likelihood.parameters_of(raw)
    target = torch.tensor([0.0, 0.5, 1.0])
    likelihood.loss(fit, target, torch.tensor(1.0)).sum().backward()  # type: ignore[no-untyped-call]
    noise = torch.from_numpy(uniform_noise((likelihood.num_noise, 3), np.random.default_rng(1)))

    assert all(torch.isfinite(each.grad).all() for each in raw if each.grad is not None)
    assert torch.isfinite(likelihood.sample([each.detach() for each in fit], torch.tensor(1.0), list(noise))).all()
