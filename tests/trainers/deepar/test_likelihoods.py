"""Densities against scipy's, and samples against the densities that they are of."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from formats.forecasting import uniform_noise
from trainers.deepar.hyperparameters import LIKELIHOODS
from trainers.deepar.likelihoods import Likelihood

NUM_DRAWS = 200_000
Cases = tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, NDArray[np.float64]]
"""Parameters, scaled targets, their scales, and scipy's log-densities of the targets."""


def grid(dtype: torch.dtype, *values: list[float]) -> list[torch.Tensor]:
    """All combinations, a tensor for each list."""
    return [torch.tensor(each, dtype=dtype) for each in zip(*itertools.product(*values), strict=True)]


def doubles(*tensors: torch.Tensor) -> list[NDArray[np.float64]]:
    return [each.detach().double().numpy() for each in tensors]


def drawn(kind: str, fit: list[float], scale: float = 1.0) -> Any:
    likelihood = Likelihood(kind)
    noise = torch.from_numpy(uniform_noise((likelihood.num_noise, NUM_DRAWS), np.random.default_rng(0)))
    parts = [torch.full((NUM_DRAWS,), value) for value in fit]
    return (likelihood.sample(parts, torch.tensor(scale), list(noise)) * scale).double().numpy()


def gaussian_cases(dtype: torch.dtype) -> Cases:
    mean, deviation, z, v = grid(dtype, [-1.0, 0.3], [1e-6, 0.01, 1, 100], [-1e3, -3, 0, 2, 20], [1, 0.01, 1e6])
    scaled = mean + z * deviation
    y, m, d, u = doubles(scaled, mean, deviation, v)
    return [mean, deviation], scaled, v, stats.norm.logpdf(y * u, m * u, d * u)


def student_cases(dtype: torch.dtype) -> Cases:
    mean, deviation, freedom, z, v = grid(
        dtype,
        [-1.0, 0.3],
        [1e-6, 0.01, 100],
        [2.000001, 2.5, 30, 1e3, 1e5, 1e7],
        [-1e3, -3, 0, 0.1, 20],
        [1, 0.01, 1e6],
    )
    scaled = mean + z * deviation
    y, m, d, nu, u = doubles(scaled, mean, deviation, freedom, v)
    return [mean, deviation, freedom], scaled, v, stats.t.logpdf(y * u, nu, m * u, d * u)


def negative_binomial_cases(dtype: torch.dtype) -> Cases:
    mean, alpha, count, v = grid(
        dtype,
        [1e-3, 0.3, 5, 1e3, 1e6],
        [1e-6, 1e-4, 0.01, 0.1, 1, 100],
        [0, 1, 5, 30, 1e3, 1e5, 1.2e6],
        [1, 0.37, 2500],
    )
    mean, alpha = mean / v, alpha * torch.sqrt(v)
    m, a, u = doubles(mean, alpha, v)
    a = a / np.sqrt(u)
    return [mean, alpha], count / v, v, stats.nbinom.logpmf(count.double(), 1 / a, 1 / (1 + a * m * u))


def beta_cases(dtype: torch.dtype) -> Cases:
    a, b, share = grid(
        dtype, [1e-6, 0.01, 0.5, 1, 9, 2000, 1e5], [1e-6, 0.7, 1, 30, 8000, 1e5], [1e-5, 0.01, 0.2, 0.999]
    )
    return [a, b], share, torch.ones_like(share), stats.beta.logpdf(*doubles(share, a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "cases"),
    [
        ("gaussian", gaussian_cases),
        ("student-T", student_cases),
        ("negative-binomial", negative_binomial_cases),
        ("beta", beta_cases),
    ],
)
def test_log_densities_are_those_of_scipy(kind: str, cases: Callable[[torch.dtype], Cases], dtype: torch.dtype) -> None:
    """To 1e-6, of large ones relatively, at every corner of wide grids; their slopes are those of float64."""
    fit, scaled, scale, expected = cases(dtype)
    for each in fit:
        each.requires_grad_()
    losses = Likelihood(kind).loss(fit, scaled, scale)
    slopes = torch.autograd.grad(losses.sum(), fit)
    exact = [each.detach().double().requires_grad_() for each in fit]
    wanted = torch.autograd.grad(Likelihood(kind).loss(exact, scaled.double(), scale.double()).sum(), exact)

    assert losses.dtype == dtype
    assert (np.abs(-doubles(losses)[0] - expected) / np.maximum(1, np.abs(expected))).max() < 1e-6
    for slope, other in zip(doubles(*slopes), doubles(*wanted), strict=True):
        assert slope == pytest.approx(other, rel=1e-6)
        assert np.isfinite(slope).all()


@pytest.mark.parametrize("count", [0.0, 5.0, 70.0])
def test_a_count_of_hardly_any_dispersion_is_poissons(count: float) -> None:
    """At scales where 1 / alpha is 1e9 and more, and lgamma of it has no digits left; its slope is Poisson's too."""
    mean = torch.tensor(5e-6, requires_grad=True)
    loss = Likelihood("negative-binomial").loss(
        [mean, torch.tensor(1e-6)], torch.tensor(count / 1e6), torch.tensor(1e6)
    )
    loss.backward()  # type: ignore[no-untyped-call]

    assert -loss.item() == pytest.approx(stats.poisson.logpmf(count, 5), abs=1e-6, rel=1e-6)
    assert mean.grad is not None
    assert mean.grad.item() == pytest.approx((1 - count / 5) * 1e6, rel=1e-5, abs=1)


def test_the_loss_of_a_point_forecast_is_its_distance() -> None:
    mean, scaled = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([0.0, 1.5, 7.0])

    found = Likelihood("deterministic-L1").loss([mean], scaled, torch.tensor(2.5))
    assert found.tolist() == pytest.approx([0.3, 2.5, 5.0])


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
@pytest.mark.parametrize("scale", [1.0, 0.05, 70.0])
def test_samples_are_of_their_law(kind: str, fit: list[float], law: stats.rv_frozen, scale: float) -> None:
    """Kolmogorov and Smirnov's distance of 200,000 draws; 0.0036 is passed once in 100 times by the law itself.

    A scale multiplies what is drawn, and nothing else; shares have none but 1.
    """
    assert stats.kstest(drawn(kind, fit, scale) / scale, law.cdf).statistic < 0.0045


@pytest.mark.parametrize(
    ("mean", "alpha", "scale"),
    [(0.3, 0.5, 1), (3.0, 0.05, 1), (20.0, 1.5, 1), (400.0, 0.2, 1), (1e5, 0.01, 1), (3.0, 0.8, 0.3), (60.0, 0.5, 30)],
)
def test_counts_are_of_their_law(mean: float, alpha: float, scale: float) -> None:
    """The mean is in scales, alpha in their roots (Salinas et al., section 3.3)."""
    samples = drawn("negative-binomial", [mean / scale, alpha * np.sqrt(scale)], scale)
    law = stats.nbinom(1 / alpha, 1 / (1 + alpha * mean))

    assert samples == pytest.approx(np.round(samples), rel=1e-6)
    assert (samples >= 0).all()
    samples = np.round(samples)
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


def test_a_point_forecast_that_descends_its_loss_is_the_median() -> None:
    """Of skewed data: their mean is 1, their median 0.693."""
    data = torch.from_numpy(np.random.default_rng(0).exponential(size=20_000)).float()
    point = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([point], 0.02)
    for _ in range(300):
        loss = Likelihood("deterministic-L1").loss([point], data, torch.ones(())).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    assert point.item() == pytest.approx(np.log(2), abs=0.03)
    assert Likelihood("deterministic-L1").sample([point], torch.tensor(3.0), [torch.tensor(0.7)]).item() == point.item()


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
