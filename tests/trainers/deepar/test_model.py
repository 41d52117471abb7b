"""The network and its sampler: what they depend on, and what they must not depend on."""

# N series, T steps

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from formats.forecasting import uniform_noise
from trainers.deepar.hyperparameters import LIKELIHOODS
from trainers.deepar.model import Network, Sampler, Sizes
from trainers.deepar.recurrence import draw_stays, unroll, unroll_by_torch
from trainers.deepar.threads import in_parts, threads_for

CONTEXT, PREDICTION, LAGS = 6, 4, (1, 2, 3, 7)


def network(default_step: float = 1.0, **changed: Any) -> Network:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "lags": LAGS, "num_features": 2, "cardinalities": (), "embedding_dimension": 3, "num_cells": 8, "num_layers": 2,
        "dropout_rate": 0.1, "likelihood": "gaussian", "context_length": CONTEXT, "prediction_length": PREDICTION,
    }  # fmt: skip
    made = Network(Sizes(**sizes | changed), default_scale=2.0, default_step=default_step)
    torch.nn.init.normal_(made.direct, std=0.1)
    torch.nn.init.normal_(made.restless, std=0.1)
    return made.eval()


def given(num_series: int = 3, steps: int = 13, seed: int = 0, likelihood: str = "gaussian") -> list[torch.Tensor]:
    random = np.random.default_rng(seed)
    target = random.uniform(0.1, 0.9, (num_series, steps))
    if likelihood == "negative-binomial":
        target = np.round(target * 9)
    features = random.normal(size=(num_series, CONTEXT + PREDICTION, 2))
    return [torch.from_numpy(each.astype(np.float32)) for each in (target, np.ones((num_series, steps)), features)]


def noise(num_series: int, num_samples: int, model: Network, seed: int = 5) -> torch.Tensor:
    shape = (num_series, num_samples, PREDICTION, model.likelihood.num_noise)
    return torch.from_numpy(uniform_noise(shape, np.random.default_rng(seed)))


def windows(num_windows: int = 5, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(seed)
    target = random.uniform(0.1, 0.9, (num_windows, LAGS[-1] + CONTEXT + PREDICTION))
    features = random.normal(size=(num_windows, CONTEXT + PREDICTION, 2))
    observed = np.ones((num_windows, CONTEXT + PREDICTION))
    made = [torch.from_numpy(each.astype(np.float32)) for each in (target, observed, features)]
    return made[0], made[1], made[2]


def test_a_path_is_what_teacher_forcing_on_it_expects() -> None:
    """Without noise, a forecast fed back as truth must lie where the network sees no loss: both unroll alike."""
    model = network(likelihood="deterministic-L1", num_layers=3)
    target, observed, features = given(steps=LAGS[-1] + CONTEXT)
    path = Sampler(model)(target, observed, features, noise(3, 1, model))[:, 0]

    whole = torch.cat([target, path], dim=1)
    losses, _ = model.losses(whole, torch.ones(3, CONTEXT + PREDICTION), features, None)

    # zoneout's expectation is the sampler's alone; without it both are one network
    plain = network(likelihood="deterministic-L1", num_layers=3, dropout_rate=0.0)
    plain_path = Sampler(plain)(target, observed, features, noise(3, 1, plain))[:, 0]
    plain_losses, _ = plain.losses(
        torch.cat([target, plain_path], dim=1), torch.ones(3, CONTEXT + PREDICTION), features, None
    )
    assert plain_losses[:, CONTEXT:].abs().max() < 1e-5
    assert plain_losses[:, :CONTEXT].abs().min() > 1e-4
    assert losses[:, CONTEXT:].abs().max() > 1e-5


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_a_series_is_forecast_alike_alone_and_beside_others(kind: str) -> None:
    model = network(likelihood=kind, cardinalities=(4, 2))
    sampler = Sampler(model)
    target, observed, features = given(likelihood=kind)
    category = torch.tensor([[0, 1], [3, 0], [2, 1]])
    together = sampler(target, observed, features, noise(3, 5, model), category)

    for row in range(3):
        part = slice(row, row + 1)
        alone = sampler(target[part], observed[part], features[part], noise(3, 5, model)[part], category[part])
        assert alone.detach().numpy() == pytest.approx(together[part].detach().numpy(), rel=1e-4, abs=1e-5)
    assert together.shape == (3, 5, PREDICTION)


def test_unknown_steps_before_a_series_change_nothing() -> None:
    model = network()
    sampler = Sampler(model)
    target, observed, features = given(steps=5)
    short = sampler(target, observed, features, noise(3, 4, model))
    for more in (1, 20):
        before = torch.zeros(3, more)
        longer = sampler(torch.cat([before, target], 1), torch.cat([before, observed], 1), features, noise(3, 4, model))
        assert torch.equal(longer, short)


def test_history_beyond_context_and_lags_changes_nothing() -> None:
    model = network()
    target, observed, features = given(steps=40)
    reach = CONTEXT + LAGS[-1]
    whole = Sampler(model)(target, observed, features, noise(3, 4, model))

    assert torch.equal(Sampler(model)(target[:, -reach:], observed[:, -reach:], features, noise(3, 4, model)), whole)


def test_forecasts_grow_with_their_series() -> None:
    """Twice the target is twice the forecast, but for the logarithm of the scale that the network reads."""
    model = network()
    with torch.no_grad():
        model.weight_ih[0][:, len(LAGS) + 2] = 0
    target, observed, features = given()
    once = Sampler(model)(target, observed, features, noise(3, 4, model))
    twice = Sampler(model)(2 * target, observed, features, noise(3, 4, model))

    assert twice.detach().numpy() == pytest.approx(2 * once.detach().numpy(), rel=1e-4)


def test_a_series_of_nothing_has_the_default_scale() -> None:
    model = network()
    target, observed = torch.zeros(2, CONTEXT), torch.ones(2, CONTEXT)
    target[1, 0] = 6.0

    assert model.scale_of(target, observed).flatten().tolist() == [2.0, 1.0]
    assert model.scale_of(torch.zeros(2, CONTEXT), torch.zeros(2, CONTEXT)).flatten().tolist() == [2.0, 2.0]
    assert network(likelihood="beta").scale_of(target, observed).flatten().tolist() == [1.0, 1.0]


def test_a_context_without_observations_has_the_scale_of_what_was_last_known() -> None:
    """Gaps hold it; in training and in forecasts, which read the same context and more before it."""
    model = network()
    target, observed, features = given(steps=20)
    target[0, 20 - CONTEXT :], observed[0, 20 - CONTEXT :] = 300.0, 0
    filled = torch.full((1, CONTEXT), -300.0)
    paths = Sampler(model)(target, observed, features, noise(3, 4, model))
    known = Sampler(model)(target, torch.ones_like(observed), features, noise(3, 4, model))

    assert model.scale_of(filled, torch.zeros(1, CONTEXT)).item() == 300
    assert torch.equal(paths[1:], known[1:])
    assert paths[0].abs().max() > 30


@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_a_traced_graph_makes_nothing_on_a_device_of_its_own(kind: str) -> None:
    """What it makes follows its inputs and its buffers, which move: tracing on a CPU must not write `cpu` into it."""
    model = network(likelihood=kind, cardinalities=(4,))
    inputs = (*given(), noise(3, 2, model), torch.tensor([[0], [1], [2]]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(Sampler(model).eval(), inputs, check_trace=False)  # type: ignore[no-untyped-call]

    assert 'value="cpu"' not in str(traced.inlined_graph)
    tensors = [
        node for node in traced.inlined_graph.nodes() if node.kind() == "prim::Constant" and node.hasAttribute("value")
    ]
    sizes = [node.t("value").numel() for node in tensors if node.kindOf("value") == "t"]
    assert all(size == 1 for size in sizes)  # numbers go anywhere


def test_what_is_not_observed_has_no_loss_and_no_gradient() -> None:
    model = network()
    target, observed, features = windows()
    observed[:, -1] = 0
    other = target.clone()
    other[:, -1] = 99.0

    losses, _ = model.losses(target, observed, features, None)
    assert torch.equal(losses, model.losses(other, observed, features, None)[0])
    assert not losses[:, -1].any()


def test_every_parameter_learns() -> None:
    model = network(cardinalities=(4,), likelihood="student-T").train()
    losses, _ = model.losses(*windows(), torch.tensor([[0], [1], [2], [3], [0]]))
    losses.mean().backward()  # type: ignore[no-untyped-call]

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_training_begins_with_the_line_that_is_in_the_data() -> None:
    """y(t) = 0.7 y(t-1) + 0.3 y(t-7) + noise; weighing windows by their restlessness moves weights a little."""
    random = np.random.default_rng(0)
    width = LAGS[-1] + CONTEXT + PREDICTION
    target = np.zeros((4000, width + 50))
    target[:, :7] = 10
    for t in range(7, width + 50):
        target[:, t] = 0.7 * target[:, t - 1] + 0.3 * target[:, t - 7] + 0.1 * random.normal(size=4000)
    model = network()
    model.begin_linearly([(torch.from_numpy(target[:, 50:]).float(), torch.ones(4000, CONTEXT + PREDICTION))])

    assert model.line()[0][0].tolist() == pytest.approx([0.7, 0.0, 0.0, 0.3], abs=0.08)
    restless = model.restlessness_of(torch.from_numpy(target[:, 50:]).float() / 10, torch.ones(4000, width)).mean()
    deviation = torch.nn.functional.softplus(model.constant[1] + model.restless[1] * restless).item()
    assert deviation == pytest.approx(0.01, rel=0.3)  # of a series of scale 10


def test_deviations_begin_in_proportion_to_how_restless_windows_are() -> None:
    """Random walks, some of ten times the steps of the others."""
    random = np.random.default_rng(0)
    width = LAGS[-1] + CONTEXT + PREDICTION
    step = np.where(np.arange(2000) % 2, 0.1, 1.0)[:, None]
    target = torch.from_numpy(100 + np.cumsum(step * random.normal(size=(2000, width)), axis=1)).float()
    model = network(default_step=0.001)
    model.begin_linearly([(target, torch.ones(2000, CONTEXT + PREDICTION))])
    context = target[:, LAGS[-1] : LAGS[-1] + CONTEXT] / 100
    log_step = model.restlessness_of(context, torch.ones(2000, CONTEXT))[:, 0]
    deviation = torch.nn.functional.softplus(model.constant[1] + model.restless[1] * log_step)

    assert deviation[0::2].median().item() == pytest.approx(0.01, rel=0.3)
    assert deviation[1::2].median().item() == pytest.approx(0.001, rel=0.5)


def test_a_context_without_neighbours_is_as_restless_as_the_data() -> None:
    model = network(default_step=0.25)
    target, alone = torch.rand(3, CONTEXT), torch.zeros(3, CONTEXT)
    alone[:, ::2] = 1

    assert model.restlessness_of(target, alone).exp().flatten().tolist() == pytest.approx([0.25 * 1.1] * 3, rel=1e-3)
    assert model.restlessness_of(torch.ones(3, CONTEXT), torch.ones(3, CONTEXT)).exp().max() < 0.03


def test_one_window_is_learned_by_heart() -> None:
    model = network(dropout_rate=0.0).train()
    optimizer = torch.optim.Adam(model.parameters(), 0.005)
    for _ in range(500):
        losses, _ = model.losses(*windows(1), None)
        optimizer.zero_grad()
        losses.mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    assert losses.mean() < -1.5  # a deviation of 0.05 has -1.6


Layer = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def layer(steps: int, windows: int, inputs: int, cells: int) -> Layer:
    """What `unroll` takes: inputs, constant, and both weights."""
    shapes = ((steps, windows, inputs), (windows, 4 * cells), (4 * cells, inputs), (4 * cells, cells))
    made = [torch.randn(shape, requires_grad=True) for shape in shapes]
    return made[0], made[1], made[2], made[3]


def test_zoneout_keeps_so_many_units_as_they_were() -> None:
    torch.manual_seed(0)
    given = layer(50, 20, 3, 16)
    hidden = unroll(*given, 0.25)
    stayed = (hidden[1:] == hidden[:-1]).float().mean()

    assert float(stayed) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / (49 * 20 * 16)))
    assert not (unroll(*given, 0.0).diff(dim=0) == 0).any()
    assert (unroll(*given, 1.0) == 0).float().mean() > 0.999


@pytest.mark.parametrize("size", [11, 4 * 7, 10_000])
def test_units_that_stay_are_drawn_by_their_share(size: int) -> None:
    torch.manual_seed(3)
    drawn = draw_stays((2, size), 0.1, torch.device("cpu"))
    assert (drawn.shape, drawn.dtype) == ((2, size), torch.bool)
    assert float(drawn.float().mean()) == pytest.approx(0.1, abs=4 * math.sqrt(0.09 / (2 * size)))
    assert abs(float(torch.corrcoef(drawn.float())[0, 1])) < 5 / math.sqrt(size)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_the_compiled_kernel_and_its_derivative_are_those_of_torch(num_threads: int) -> None:
    """Also in parts: of 21 windows no part is as long as another."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for zoneout in (0.0, 0.3):
            torch.manual_seed(1)
            given = layer(150, 29, 5, 7)
            with threads_for(10**12):
                torch.manual_seed(2)
                ours = unroll(*given, zoneout)
                torch.manual_seed(2)
                theirs = unroll_by_torch(*given, draw_stays((2, 150, 29, 7), zoneout, torch.device("cpu")))
                slope = torch.randn_like(ours)
                found = torch.autograd.grad((ours * slope).sum(), given)
                expected = torch.autograd.grad((theirs * slope).sum(), given)
            assert ours.detach().numpy() == pytest.approx(theirs.detach().numpy(), abs=5e-6)
            for one, other in zip(found, expected, strict=True):
                assert one.numpy() == pytest.approx(other.numpy(), rel=1e-3, abs=1e-4 * float(other.abs().max()))
    finally:
        torch.set_num_threads(before)


def test_gates_are_overwritten_and_there_is_no_second_derivative() -> None:
    torch.manual_seed(1)
    given = layer(4, 3, 2, 5)
    total = unroll(*given, 0.1).sum()
    torch.autograd.grad(total, given, retain_graph=True)
    with pytest.raises(AttributeError):
        torch.autograd.grad(total, given)


def test_inputs_that_need_no_derivative_get_none() -> None:
    torch.manual_seed(1)
    inputs, others = torch.randn(6, 4, 2), layer(6, 4, 2, 5)[1:]
    total: torch.Tensor = unroll(inputs, *others, 0.1).sum()
    torch.autograd.backward(total)
    assert inputs.grad is None
    assert all(each.grad is not None and each.grad.isfinite().all() for each in others)


def test_small_steps_have_one_thread_and_large_ones_all() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threads_for(10):
            assert in_parts(100, 10, lambda a, b: (a, b)) == [(0, 100)]
        with threads_for(10**10):
            assert torch.get_num_threads() == 1
            assert in_parts(100, 10, lambda a, b: (a, b)) == [(0, 33), (33, 66), (66, 100)]
            assert in_parts(25, 10, lambda a, b: (a, b)) == [(0, 12), (12, 25)]
        assert torch.get_num_threads() == 3
        assert in_parts(100, 10, lambda a, b: (a, b)) == [(0, 100)]
    finally:
        torch.set_num_threads(before)
