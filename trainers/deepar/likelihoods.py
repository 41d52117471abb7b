"""What DeepAR forecasts of one step: densities to learn from, and samples made of uniform noise.

A forecast is of the scaled target y / v. Densities are those of the target itself, so that losses of different scales
compare (Salinas et al. 2017, arXiv:1704.04110, section 3.2). Samples are functions of their noise alone: the same noise
gives the same path in every form of the graph, alone or beside others.

Parameters and noise come as lists of tensors of one shape, whatever it is.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Likelihood"]

_SMALLEST = 1e-6
_PROPOSALS = 4
"""Of Marsaglia and Tsang's rejection; all fail once in 10**5 draws or less, and the mode is taken."""
_GAMMA_NOISE = 3 * _PROPOSALS + 1
_TABLE = 64
_LARGE_RATE = 24.0
_LARGE = 1000.0
"""Where Stirling's series begins."""

_NUM_PARAMETERS = {"gaussian": 2, "student-T": 3, "negative-binomial": 2, "beta": 2, "deterministic-L1": 1}
_NUM_NOISE = {
    "gaussian": 2,
    "student-T": 2,
    "negative-binomial": _GAMMA_NOISE + 2,
    "beta": 2 * _GAMMA_NOISE,
    "deterministic-L1": 1,
}


class Likelihood(nn.Module):
    """One of DeepAR's five likelihoods.

    Attributes:
        num_parameters: numbers that the network gives for each step.
        num_noise: uniform numbers in (0, 1) that one sample takes.
        scaled: whether the target is divided by its scale; not where it has bounds.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.num_parameters = _NUM_PARAMETERS[kind]
        self.num_noise = _NUM_NOISE[kind]
        self.scaled = kind != "beta"
        self.numbers = nn.Buffer(torch.arange(_TABLE, dtype=torch.float32), persistent=False)
        self.log_factorial = nn.Buffer(torch.lgamma(self.numbers + 1.0), persistent=False)

    def parameters_of(self, raw: list[Tensor]) -> list[Tensor]:
        """What the network gives, made fit: mean, deviation, degrees of freedom (> 2), shape."""
        if self.kind == "gaussian":
            return [raw[0], functional.softplus(raw[1]) + _SMALLEST]
        if self.kind == "student-T":
            return [raw[0], functional.softplus(raw[1]) + _SMALLEST, 2.0 + functional.softplus(raw[2])]
        if self.kind == "deterministic-L1":
            return [raw[0]]
        return [functional.softplus(raw[0]) + _SMALLEST, functional.softplus(raw[1]) + _SMALLEST]

    def spread_out(self, fit: list[Tensor], spread: Tensor) -> list[Tensor]:
        """With deviations so many times as large about the same mean; of counts, their excess over Poisson's."""
        if self.kind in ("gaussian", "student-T"):
            return [fit[0], fit[1] * spread, *fit[2:]]
        if self.kind == "negative-binomial":
            return [fit[0], fit[1] * spread**2]
        if self.kind == "beta":
            return [each / spread**2 for each in fit]
        return fit

    def loss(self, fit: list[Tensor], scaled: Tensor, scale: Tensor) -> Tensor:
        """The negative log-density of each target.

        Args:
            fit: of `parameters_of`.
            scaled: the target divided by its scale.
            scale: that broadcasts to it.
        """
        dtype = scaled.dtype
        # In float32 sums of large logarithms lose the digits that are left of their differences: at a mean of 1e6, a
        # count's density was 2.9 times too large. In float64 a step of training takes 1 % longer.
        return self._loss([each.double() for each in fit], scaled.double(), scale.double()).to(dtype)

    def _loss(self, fit: list[Tensor], scaled: Tensor, scale: Tensor) -> Tensor:
        if self.kind == "gaussian":
            return 0.5 * ((scaled - fit[0]) / fit[1]) ** 2 + torch.log(fit[1] * scale) + 0.5 * math.log(2 * math.pi)
        if self.kind == "student-T":
            return _student(fit[0], fit[1], fit[2], scaled) + torch.log(scale)
        if self.kind == "negative-binomial":
            # a count again, but for the last bits that division by the scale has left
            return _negative_binomial(fit[0] * scale, fit[1] / torch.sqrt(scale), torch.round(scaled * scale))
        if self.kind == "beta":
            return _beta(fit[0], fit[1], scaled.clamp(_SMALLEST, 1 - _SMALLEST))
        return torch.abs(scaled - fit[0])

    def fixed_loss(self, scale: Tensor) -> Tensor:
        """The part of each loss that is of the scale alone."""
        return torch.log(scale) if self.kind in ("gaussian", "student-T") else torch.zeros_like(scale)

    def sample(self, fit: list[Tensor], scale: Tensor, noise: list[Tensor]) -> Tensor:
        """One scaled sample of each.

        Args:
            fit: of `parameters_of`.
            scale: that broadcasts to it.
            noise: `num_noise` tensors, evenly from (0, 1).
        """
        if self.kind == "gaussian":
            return fit[0] + fit[1] * _normal(noise[0], noise[1])
        if self.kind == "student-T":
            return fit[0] + fit[1] * _student_sample(fit[2], noise[0], noise[1])
        if self.kind == "negative-binomial":
            mean, alpha = fit[0] * scale, fit[1] / torch.sqrt(scale)
            rate = _gamma(1 / alpha, noise[:_GAMMA_NOISE]) * alpha * mean
            return self._poisson(rate, noise[_GAMMA_NOISE], noise[_GAMMA_NOISE + 1]) / scale
        if self.kind == "beta":
            first, second = _gamma(fit[0], noise[:_GAMMA_NOISE]), _gamma(fit[1], noise[_GAMMA_NOISE:])
            return first / (first + second).clamp(min=1e-30)
        return fit[0] + 0.0 * noise[0]

    def _poisson(self, rate: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """By inverting a table of probabilities; large ones by the normal's quantile with its skewness.

        The second is Cornish and Fisher's expansion to 1 / sqrt(rate); its error at 24 is below 0.1 of a count.
        """
        small = rate.clamp(1e-30, _LARGE_RATE)
        log_chances = self.numbers * torch.log(small).unsqueeze(-1) - small.unsqueeze(-1) - self.log_factorial
        counts = (first.unsqueeze(-1) > torch.cumsum(torch.exp(log_chances), dim=-1)).to(rate.dtype).sum(dim=-1)
        z = _normal(first, second)
        large = rate + torch.sqrt(rate) * z + (z * z - 1) / 6
        return torch.where(rate < _LARGE_RATE, counts, torch.round(large.clamp(min=0)))


def _normal(first: Tensor, second: Tensor) -> Tensor:
    """Box and Muller 1958."""
    return torch.sqrt(-2 * torch.log(first)) * torch.cos(2 * math.pi * second)


def _student_sample(freedom: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Bailey 1994, Mathematics of Computation 62: Box and Muller's method for Student's t."""
    power = -2 / freedom * torch.log(first)
    # exp(x) - 1 loses its digits near 0
    above = torch.where(power < 0.01, power * (1 + power / 2 * (1 + power / 3)), torch.exp(power.clamp(max=80.0)) - 1)
    return torch.sqrt(freedom * above) * torch.cos(2 * math.pi * second)


def _gamma(shape: Tensor, noise: list[Tensor]) -> Tensor:
    """Marsaglia and Tsang 2000, with so many proposals at once; shapes below 1 by the power of one more number."""
    raised = torch.where(shape < 1, shape + 1, shape)
    d = raised - 1 / 3
    c = 1 / torch.sqrt(9 * d)
    found = d
    for number in range(_PROPOSALS - 1, -1, -1):  # the first that is accepted comes last and stays
        x = _normal(noise[3 * number], noise[3 * number + 1])
        v = (1 + c * x) ** 3
        positive = v.clamp(min=1e-30)
        accepted = torch.log(noise[3 * number + 2]) < 0.5 * x * x + d - d * positive + d * torch.log(positive)
        found = torch.where(accepted & (v > 0), d * positive, found)
    lowered = torch.exp(torch.log(noise[3 * _PROPOSALS]) / shape.clamp(min=1e-3))
    return torch.where(shape < 1, found * lowered, found)


def _student(mean: Tensor, deviation: Tensor, freedom: Tensor, scaled: Tensor) -> Tensor:
    z = (scaled - mean) / deviation
    return (
        torch.lgamma(freedom / 2)
        - torch.lgamma((freedom + 1) / 2)
        + 0.5 * torch.log(math.pi * freedom)
        + torch.log(deviation)
        + (freedom + 1) / 2 * torch.log1p(z * z / freedom)
    )


def _negative_binomial(mean: Tensor, alpha: Tensor, count: Tensor) -> Tensor:
    """Of mean m and variance m + alpha m**2 (Salinas et al., section 3.2)."""
    r = 1 / alpha
    return (
        torch.lgamma(count + 1)
        - _log_rising(r, count)
        + (r + count) * torch.log1p(alpha * mean)
        - count * torch.log(alpha * mean)
    )


def _log_rising(r: Tensor, count: Tensor) -> Tensor:
    """lgamma(r + count) - lgamma(r); of a large r by Stirling's series, where lgamma's own digits end before a count's.

    Near Poisson's law r is 1e6 and more, and times the root of the series' scale.
    """
    direct = torch.lgamma(r + count) - torch.lgamma(r)
    large = r.clamp(min=_LARGE)
    series = (large - 0.5) * torch.log1p(count / large) + count * torch.log(large + count) - count
    series = series + _beyond_stirling(large + count) - _beyond_stirling(large)
    return torch.where(r < _LARGE, direct, series)


def _beyond_stirling(x: Tensor) -> Tensor:
    """lgamma(x) - (x - 1/2) log(x) + x - log(2 pi) / 2 to 1e-18, of x from 1000 on."""
    return (1 / 12 - 1 / (360 * x * x)) / x


def _beta(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    return (
        torch.lgamma(a)
        + torch.lgamma(b)
        - torch.lgamma(a + b)
        - (a - 1) * torch.log(share)
        - (b - 1) * torch.log1p(-share)
    )
