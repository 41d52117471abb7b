"""DeepAR's network (Salinas et al. 2017, arXiv:1704.04110): an LSTM over lagged targets, calendar and categories.

One step reads the scaled targets of `lags` steps before it, the calendar and the features of its own time, the series'
scale and embeddings, and gives a forecast of its own target.
"""

# N series (or windows), S samples, R = N S rows, T steps, C context, P prediction, L lags, F features, K categories,
# H cells, G = 4 H gates, in the order input, forget, output, candidate

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.deepar.likelihoods import Likelihood
from trainers.deepar.recurrence import unroll

__all__ = ["Network", "Sampler", "Sizes"]

_SMALL_BEGINNING = 0.1
_RIDGE, _RIDGE_PER_STEP = 1e-2, 1e-7
_SMALLEST_DEVIATION = 1e-4
_SMALLEST_STEP = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    lags: tuple[int, ...]
    """Ascending; the first is 1."""
    num_features: int
    """Of the calendar, the age, and `dynamic_feat`."""
    cardinalities: tuple[int, ...]
    embedding_dimension: int
    num_cells: int
    num_layers: int
    dropout_rate: float
    likelihood: str
    context_length: int
    prediction_length: int

    @property
    def history(self) -> int:
        """Steps before the forecast that it depends on."""
        return self.context_length + self.lags[-1]


class Network(nn.Module):
    """One step's forecast after the other.

    Attributes:
        default_scale: () float32, of series without an observation other than 0 in their context.
        spread: () float32, what forecasts' deviations are multiplied by when paths are drawn; see `train.calibrate`.
    """

    def __init__(self, sizes: Sizes, default_scale: float = 1.0) -> None:
        super().__init__()
        self.sizes = sizes
        self.likelihood = Likelihood(sizes.likelihood)
        self.default_scale = nn.Buffer(torch.tensor(float(default_scale)))
        self.spread = nn.Buffer(torch.tensor(1.0))
        self.embeddings = nn.ModuleList(nn.Embedding(count, sizes.embedding_dimension) for count in sizes.cardinalities)
        width = len(sizes.lags) + sizes.num_features + 1 + len(sizes.cardinalities) * sizes.embedding_dimension
        cells = sizes.num_cells
        inputs = [width, *[cells] * (sizes.num_layers - 1)]
        bound = 1 / math.sqrt(cells)
        self.weight_ih = nn.ParameterList(torch.empty(4 * cells, each).uniform_(-bound, bound) for each in inputs)
        self.weight_hh = nn.ParameterList(torch.empty(4 * cells, cells).uniform_(-bound, bound) for _ in inputs)
        self.bias = nn.ParameterList(_bias(cells, bound) for _ in inputs)
        self.head = nn.Linear(cells, self.likelihood.num_parameters)
        self.direct = nn.Linear(len(sizes.lags), self.likelihood.num_parameters, bias=False)
        """From lagged targets past all layers; not in the paper: a season is learned in a few steps by it."""
        nn.init.zeros_(self.direct.weight)

    @torch.no_grad()
    def begin_linearly(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Before it learns, let the network forecast by the least squares' line from lagged targets to the next one.

        Layers add little to it at first. Without it, series near random walks are out of reach: the network would have
        to learn to repeat its input to a thousandth. Only where the mean is as the network gives it.

        Args:
            batches: `target` and `observed` as `losses` takes them.
        """
        if self.likelihood.kind not in ("gaussian", "student-T", "deterministic-L1"):
            return
        width = len(self.sizes.lags) + 1
        gram, moments = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
        squares, steps, count = 0.0, 0.0, 0
        for target_NT, observed_NT in batches:
            lagged_NTL, scaled_NT = self._lagged(target_NT, observed_NT)
            known = observed_NT > 0
            known[:, : self.sizes.context_length] = False  # their mean is the scale, which tells of what is to come
            next_NT = scaled_NT[:, self.sizes.lags[-1] :]
            # restless series would drown the quiet ones
            step_N1 = (next_NT - lagged_NTL[:, :, 0]).abs().mean(dim=1, keepdim=True).clamp(min=_SMALLEST_STEP)
            weight_n = (1 / step_N1).expand_as(next_NT)[known].double().cpu()
            given = functional.pad(lagged_NTL[known], [0, 1], value=1.0).double().cpu() * weight_n[:, None]
            wanted = next_NT[known].double().cpu() * weight_n
            steps += float(weight_n.reciprocal().sum())
            gram += given.t() @ given
            moments += given.t() @ wanted
            squares, count = squares + float(wanted @ wanted), count + len(wanted)
        ridge = _RIDGE + _RIDGE_PER_STEP * count
        line = torch.linalg.solve(gram + ridge * torch.eye(width, dtype=torch.float64), moments)
        self.direct.weight[0] = line[:-1]
        self.head.weight.mul_(_SMALL_BEGINNING)
        self.head.bias[0] = line[-1]
        if self.likelihood.num_parameters > 1:
            left = max(squares - float(2 * line @ moments - line @ gram @ line), 0.0) / max(count, 1)
            deviation = math.sqrt(left) * steps / max(count, 1)
            self.head.bias[1] = math.log(math.expm1(max(deviation, _SMALLEST_DEVIATION)))

    def _lagged(self, target_NT: Tensor, observed_NT: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C + P, L) scaled targets of earlier steps, and (N, longest lag + C + P) all scaled targets."""
        longest, context = self.sizes.lags[-1], self.sizes.context_length
        scaled_NT = target_NT / self.scale_of(target_NT[:, longest : longest + context], observed_NT[:, :context])
        steps_T1 = torch.arange(longest, target_NT.shape[1], device=target_NT.device)[:, None]
        return scaled_NT[:, steps_T1 - torch.tensor(self.sizes.lags, device=target_NT.device)], scaled_NT

    def scale_of(self, target_NC: Tensor, observed_NC: Tensor) -> Tensor:
        """(N, 1): the mean of the context's absolute values, over what was observed."""
        if not self.likelihood.scaled:
            return 1.0 + 0.0 * observed_NC[:, :1]  # an input that nothing reads would be lost in ONNX
        total_N1 = (target_NC.abs() * observed_NC).sum(dim=1, keepdim=True)
        mean_N1 = total_N1 / observed_NC.sum(dim=1, keepdim=True).clamp(min=1.0)
        return torch.where(mean_N1 > 0, mean_N1, self.default_scale)

    def static_of(self, scale_N1: Tensor, category_NK: Tensor | None) -> Tensor:
        """(N, 1 + K * embedding): what is the same at all steps of a series."""
        parts = [torch.log(scale_N1)]
        if category_NK is not None:
            parts += [table(category_NK[:, place]) for place, table in enumerate(self.embeddings)]
        return torch.cat(parts, dim=1)

    def losses(
        self, target_NT: Tensor, observed_NT: Tensor, features_NTF: Tensor, category_NK: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The loss of every step of windows of context and prediction, unrolled as one; (N, C + P).

        Also how much of it is the scale's alone, which no model can change; (N, 1).

        Args:
            target_NT: (N, longest lag + C + P) float32, gaps filled.
            observed_NT: (N, C + P) float32, 1 where the target is known; others have loss 0.
            features_NTF: (N, C + P, F) float32.
            category_NK: (N, K) int64.
        """
        sizes = self.sizes
        longest, context = sizes.lags[-1], sizes.context_length
        num_steps = target_NT.shape[1] - longest
        scale_N1 = self.scale_of(target_NT[:, longest : longest + context], observed_NT[:, :context])
        lagged_NTL, scaled_NT = self._lagged(target_NT, observed_NT)
        static_NT = self.static_of(scale_N1, category_NK)[:, None].expand(-1, num_steps, -1)
        output_TNH = torch.cat([lagged_NTL, features_NTF, static_NT], dim=2).transpose(0, 1)
        share = sizes.dropout_rate if self.training else 0.0
        for weight_ih, weight_hh, bias in zip(self.weight_ih, self.weight_hh, self.bias, strict=True):
            output_TNH = unroll(torch.matmul(output_TNH, weight_ih.t()) + bias, weight_hh, share)
        raw = (self.head(output_TNH).transpose(0, 1) + self.direct(lagged_NTL)).unbind(dim=2)
        fit = self.likelihood.parameters_of(list(raw))
        losses_NT = self.likelihood.loss(fit, scaled_NT[:, longest:], scale_N1) * observed_NT
        return losses_NT, self.likelihood.fixed_loss(scale_N1)


class Sampler(nn.Module):
    """Paths of the future by ancestral sampling, all series and samples at once.

    What is the same for all samples of a series is computed once for it. Rows lie along the last axis, so that gates
    are contiguous blocks and a lag is a row that is there already.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        sizes = network.sizes
        self.network = network
        self.likelihood = network.likelihood
        self.lag_ats = nn.Buffer(torch.tensor(sizes.lags), persistent=False)

    def forward(
        self,
        target_NT: Tensor,
        observed_NT: Tensor,
        features_NTF: Tensor,
        noise_NSPW: Tensor,
        category_NK: Tensor | None = None,
    ) -> Tensor:
        """Samples, (N, S, P) float32.

        Args:
            target_NT: (N, T) float32, what is known before the forecast, gaps filled; of any length.
            observed_NT: (N, T) float32, 1 where it was observed.
            features_NTF: (N, C + P, F) float32.
            noise_NSPW: (N, S, P, W) float32, evenly from (0, 1), W as the likelihood says.
            category_NK: (N, K) int64, of models with categories.
        """
        network, sizes = self.network, self.network.sizes
        history, context = sizes.history, sizes.context_length
        empty_NT = torch.zeros_like(features_NTF[:, :1, 0]).repeat(1, history)
        target_NT = torch.cat([empty_NT, target_NT], dim=1)[:, -history:]
        observed_NT = torch.cat([empty_NT, observed_NT], dim=1)[:, -history:]
        scale_N1 = network.scale_of(target_NT[:, -context:], observed_NT[:, -context:])
        scaled_NT = target_NT / scale_N1
        static_NE = network.static_of(scale_N1, category_NK)
        states = self._read_context(scaled_NT, features_NTF, static_NE)
        return self._forecast(scaled_NT, features_NTF, static_NE, states, noise_NSPW, scale_N1)

    def _read_context(self, scaled_NT: Tensor, features_NTF: Tensor, static_NE: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The states of all layers behind the context, each (H, N)."""
        network, sizes = self.network, self.network.sizes
        first = sizes.history - sizes.context_length
        steps_T1 = torch.arange(first, sizes.history, device=scaled_NT.device)[:, None]
        lagged_NTL = scaled_NT[:, steps_T1 - self.lag_ats]
        features_NCF = features_NTF[:, : sizes.context_length]
        static_NCE = static_NE[:, None].expand(-1, sizes.context_length, -1)
        given_TIN = torch.cat([lagged_NTL, features_NCF, static_NCE], dim=2).permute(1, 2, 0)
        states = []
        for weight_ih, weight_hh, bias in zip(network.weight_ih, network.weight_hh, network.bias, strict=True):
            gates_TGN = torch.matmul(weight_ih, given_TIN) + bias[:, None]
            hidden_HN = cell_HN = torch.zeros_like(gates_TGN[0, : sizes.num_cells])
            outputs = []
            for step in range(sizes.context_length):
                hidden_HN, cell_HN = self._cell(gates_TGN[step] + weight_hh @ hidden_HN, hidden_HN, cell_HN)
                outputs.append(hidden_HN)
            given_TIN = torch.stack(outputs)
            states.append((hidden_HN, cell_HN))
        return states

    def _forecast(
        self,
        scaled_NT: Tensor,
        features_NTF: Tensor,
        static_NE: Tensor,
        states: list[tuple[Tensor, Tensor]],
        noise_NSPW: Tensor,
        scale_N1: Tensor,
    ) -> Tensor:
        network, sizes = self.network, self.network.sizes
        num_lags, length, num_gates = len(sizes.lags), sizes.prediction_length, 4 * sizes.num_cells
        # what inputs add to the first layer's gates and, below, to the forecast directly
        direct_KI = functional.pad(network.direct.weight, [0, network.weight_ih[0].shape[1] - num_lags])
        weight_GI = torch.cat([network.weight_ih[0], direct_KI], dim=0)
        bias_G = torch.cat([network.bias[0], network.head.bias], dim=0)
        weight_GH = torch.cat([network.weight_hh[0], torch.zeros_like(network.head.weight)], dim=0)
        samples_like_NS = torch.zeros_like(noise_NSPW[:, :, 0, 0])

        def rows(series_HN: Tensor) -> Tensor:
            """(H, R): each series' column once for each of its samples."""
            return (series_HN[:, :, None] + samples_like_NS).flatten(1)

        states = [(rows(hidden), rows(cell)) for hidden, cell in states]
        scale_R = rows(scale_N1.t())[0]
        noise_PWR = noise_NSPW.permute(2, 3, 0, 1).flatten(2)
        always_PIN = torch.cat(
            [features_NTF[:, sizes.context_length :], static_NE[:, None].expand(-1, length, -1)], dim=2
        ).permute(1, 2, 0)
        base_PGN = torch.matmul(weight_GI[:, num_lags:], always_PIN) + bias_G[:, None]
        paths: list[Tensor] = []
        for step in range(length):
            # lags that reach behind the forecast's start are known, and the same for all samples
            known = [place for place, lag in enumerate(sizes.lags) if lag > step]
            met = [place for place, lag in enumerate(sizes.lags) if lag <= step]
            base_GN = base_PGN[step]
            if known:
                ats = torch.tensor([sizes.history + step - sizes.lags[place] for place in known])
                base_GN = base_GN + weight_GI[:, torch.tensor(known)] @ scaled_NT[:, ats].t()
            parts = [states[0][0], *(paths[step - sizes.lags[place]][None] for place in met)]
            joint_GI = torch.cat([weight_GH, weight_GI[:, torch.tensor(met, dtype=torch.int64)]], dim=1)
            first_GR = joint_GI @ torch.cat(parts, dim=0) + rows(base_GN)
            states[0] = self._cell(first_GR[:num_gates], *states[0])
            for layer in range(1, sizes.num_layers):
                joint_GI = torch.cat([network.weight_hh[layer], network.weight_ih[layer]], dim=1)
                gates_GR = joint_GI @ torch.cat([states[layer][0], states[layer - 1][0]], dim=0)
                states[layer] = self._cell(gates_GR + network.bias[layer][:, None], *states[layer])
            raw_KR = network.head.weight @ states[-1][0] + first_GR[num_gates:]
            fit = self.likelihood.spread_out(self.likelihood.parameters_of(list(raw_KR.unbind(0))), network.spread)
            paths.append(self.likelihood.sample(fit, scale_R, list(noise_PWR[step].unbind(0))))
        samples_RP = torch.stack(paths, dim=1) * scale_R[:, None]
        return samples_RP.view(noise_NSPW.shape[0], noise_NSPW.shape[1], length)

    def _cell(self, gates_GR: Tensor, hidden_HR: Tensor, cell_HR: Tensor) -> tuple[Tensor, Tensor]:
        """One step of an LSTM. Zoneout's expectation: a share of the old state stays (Krueger et al. 2017)."""
        sizes = self.network.sizes
        share, cells = sizes.dropout_rate, sizes.num_cells
        opened_HR = torch.sigmoid(gates_GR[: 3 * cells])
        new_HR = opened_HR[cells : 2 * cells] * cell_HR + opened_HR[:cells] * torch.tanh(gates_GR[3 * cells :])
        output_HR = opened_HR[2 * cells :] * torch.tanh(new_HR)
        if not share:
            return output_HR, new_HR
        return output_HR + share * (hidden_HR - output_HR), new_HR + share * (cell_HR - new_HR)


def _bias(cells: int, bound: float) -> Tensor:
    """Forget gates begin open (Jozefowicz et al. 2015)."""
    bias = torch.empty(4 * cells).uniform_(-bound, bound)
    bias[cells : 2 * cells] = 1
    return bias
