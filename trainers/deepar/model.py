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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainers.deepar.likelihoods import Likelihood
from trainers.deepar.recurrence import unroll

__all__ = ["Network", "Sampler", "Sizes"]

_LINEAR_MEAN = ("gaussian", "student-T", "deterministic-L1")
"""Likelihoods whose mean is as the network gives it."""
_RIDGE, _RIDGE_PER_STEP = 1e-2, 1e-7
_SMALLEST_DEVIATION = 1e-4
_SMALLEST_STEP = 1e-3
_LOG_UNIT = math.log(8.0)
_STILLEST = 0.1
"""Of the data's mean step."""
_NORMAL_DEVIATION = math.sqrt(math.pi / 2)
"""Of a normal distribution, in mean absolute deviations."""


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

    @property
    def products_per_window(self) -> int:
        """About as many multiplications as a window takes to learn from."""
        inputs = len(self.lags) + self.num_features + self.num_cells * (self.num_layers - 1)
        weights = 4 * self.num_cells * (inputs + self.num_cells * self.num_layers)
        return 3 * (self.context_length + self.prediction_length) * weights


class Network(nn.Module):
    """One step's forecast after the other.

    Attributes:
        default_scale: () float32, of series without an observation other than 0 in their context.
        default_step: () float32, of contexts without two neighbouring observations: their mean step, scaled.
        spread: () float32, what forecasts' deviations are multiplied by when paths are drawn; see `train.calibrate`.
        centred: (parameters,) float32, 1 for a mean that is told from the last value, and by the layers in units of a
            few of the context's mean steps. Adam's own steps are all of one size; a currency's are not a tide's.
        constant: (parameters,) float32, of the line that training begins with.
    """

    def __init__(self, sizes: Sizes, default_scale: float = 1.0, default_step: float = 1.0) -> None:
        super().__init__()
        self.sizes = sizes
        self.likelihood = Likelihood(sizes.likelihood)
        self.default_scale = nn.Buffer(torch.tensor(float(default_scale)))
        self.default_step = nn.Buffer(torch.tensor(float(default_step)))
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
        self.direct = nn.Parameter(torch.zeros(self.likelihood.num_parameters, len(sizes.lags)))
        """From lagged targets past all layers, see `line`; not in the paper: a season is soon learned by it."""
        self.constant = nn.Buffer(torch.zeros(self.likelihood.num_parameters))
        self.restless = nn.Parameter(torch.zeros(self.likelihood.num_parameters))
        """How a forecast follows the logarithm of `restlessness_of`; not in the paper: currencies have calm years."""
        centred = torch.zeros(self.likelihood.num_parameters)
        centred[0] = float(self.likelihood.kind in _LINEAR_MEAN)
        self.centred = nn.Buffer(centred)

    @torch.no_grad()
    def begin_linearly(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Before it learns, let the network forecast by the least squares' line from lagged targets to the next one.

        Without it, series near random walks are out of reach: the network would have to learn to repeat its input to a
        thousandth. Deviations begin as large as the line's errors. Only where the mean is as the network gives it.

        Args:
            batches: `target` and `observed` as `losses` takes them.
        """
        if self.likelihood.kind not in _LINEAR_MEAN:
            return
        rows = [self._linear_rows(*batch) for batch in batches]
        width = len(self.sizes.lags) + 1
        gram, moments = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
        count = 0
        for given_RW, wanted_R, weight_R, *_ in rows:
            gram += given_RW.t() @ (given_RW * weight_R[:, None])
            moments += given_RW.t() @ (wanted_R * weight_R)
            count += len(wanted_R)
        ridge = _RIDGE + _RIDGE_PER_STEP * count
        line = torch.linalg.solve(gram + ridge * torch.eye(width, dtype=torch.float64), moments)
        self.direct[0, 1:], self.direct[0, 0] = line[1:-1], 1 - line[:-1].sum()
        self.constant[0], self.head.bias[0] = line[-1] - self.direct[0, 0], 0.0
        if self.likelihood.num_parameters > 1 and count:
            self._begin_deviations(line, rows)

    def _linear_rows(self, target_NT: Tensor, observed_NT: Tensor) -> list[Tensor]:
        """Lagged targets with a 1, next targets, weights, and their windows' numbers and logs of restlessness."""
        lagged_TNL, scaled_NT = self._lagged(target_NT, observed_NT)
        lagged_NTL = lagged_TNL.transpose(0, 1)
        context, longest = self.sizes.context_length, self.sizes.lags[-1]
        known = observed_NT > 0
        known[:, :context] = False  # their mean is the scale, which tells of what is to come
        next_NT = scaled_NT[:, longest:]
        # restless series would drown the quiet ones
        step_N1 = (next_NT - lagged_NTL[:, :, 0]).abs().mean(dim=1, keepdim=True).clamp(min=_SMALLEST_STEP)
        log_N1 = self.restlessness_of(scaled_NT[:, longest : longest + context], observed_NT[:, :context])
        given = functional.pad(lagged_NTL[known], [0, 1], value=1.0)
        found = [given, next_NT[known], step_N1.expand_as(next_NT)[known] ** -2]
        return [each.double().cpu() for each in found] + [known.nonzero()[:, 0].cpu(), log_N1[:, 0].double().cpu()]

    def _begin_deviations(self, line: Tensor, rows: list[list[Tensor]]) -> None:
        """As large as the line's errors are, by windows: a line again, in logarithms, over their restlessness."""
        logs, errors = [], []
        for given_RW, wanted_R, _, window_R, log_N in rows:
            error_N = torch.zeros_like(log_N).index_add_(0, window_R, (wanted_R - given_RW @ line).abs())
            count_N = torch.bincount(window_R, minlength=len(log_N))
            logs.append(log_N[count_N > 0])
            errors.append(((error_N / count_N.clamp(min=1) + _SMALLEST_DEVIATION).log())[count_N > 0])
        x, y = torch.cat(logs), torch.cat(errors)
        slope = float(((x - x.mean()) * (y - y.mean())).sum() / (((x - x.mean()) ** 2).sum() + _RIDGE))
        slope = min(max(slope, 0.0), 1.0)
        deviation = _NORMAL_DEVIATION * math.exp(float(y.mean()))
        slope *= deviation / -math.expm1(-deviation)  # as softplus has it
        self.restless[1], self.head.bias[1] = slope, 0.0
        self.constant[1] = math.log(math.expm1(deviation)) - slope * float(x.mean())

    def line(self) -> tuple[Tensor, Tensor]:
        """(parameters, L) and (parameters,): what lagged targets are multiplied by, and what is added.

        Learned are the weights of how far the lags lie from the last value, and, in the place of lag 1, the scale.
        """
        last_K = self.centred - self.direct.sum(dim=1)
        return torch.cat([last_K[:, None], self.direct[:, 1:]], dim=1), self.constant + self.direct[:, 0]

    def units_of(self, restless_N1: Tensor) -> Tensor:
        """(N, parameters): what the layers' part of a forecast is multiplied by."""
        return torch.exp((restless_N1 + _LOG_UNIT) * self.centred)

    def _lagged(self, target_NT: Tensor, observed_NT: Tensor) -> tuple[Tensor, Tensor]:
        """(C + P, N, L) scaled targets of earlier steps, and (N, longest lag + C + P) all scaled targets."""
        longest, context = self.sizes.lags[-1], self.sizes.context_length
        scaled_NT = target_NT / self.scale_of(target_NT[:, longest : longest + context], observed_NT[:, :context])
        steps_T1 = torch.arange(longest, target_NT.shape[1], device=target_NT.device)[:, None]
        steps_TL = steps_T1 - torch.tensor(self.sizes.lags, device=target_NT.device)
        # a row for each step: an index of single numbers takes five times as long
        return functional.embedding(steps_TL, scaled_NT.t().contiguous()).transpose(1, 2), scaled_NT

    def scale_of(self, target_NC: Tensor, observed_NC: Tensor) -> Tensor:
        """(N, 1): the mean of the context's absolute values, over what was observed.

        Where nothing was, gaps hold what was last known before, and their mean is its absolute value.
        """
        if not self.likelihood.scaled:
            return 1.0 + 0.0 * observed_NC[:, :1]  # an input that nothing reads would be lost in ONNX
        count_N1 = observed_NC.sum(dim=1, keepdim=True)
        total_N1 = (target_NC.abs() * observed_NC).sum(dim=1, keepdim=True)
        mean_N1 = torch.where(count_N1 > 0, total_N1 / count_N1.clamp(min=1.0), target_NC.abs().mean(1, keepdim=True))
        return torch.where(mean_N1 > 0, mean_N1, self.default_scale)

    def restlessness_of(self, scaled_NC: Tensor, observed_NC: Tensor) -> Tensor:
        """(N, 1): log of the mean step between neighbours of the context, scaled; without neighbours, of the data."""
        pair_NC = observed_NC[:, 1:] * observed_NC[:, :-1]
        total_N1 = ((scaled_NC[:, 1:] - scaled_NC[:, :-1]).abs() * pair_NC).sum(dim=1, keepdim=True)
        count_N1 = pair_NC.sum(dim=1, keepdim=True)
        step_N1 = torch.where(count_N1 > 0, total_N1 / count_N1.clamp(min=1.0), self.default_step)
        # what has stood still may move again
        return torch.log(step_N1 + _STILLEST * self.default_step + _SMALLEST_DEVIATION)

    def static_of(self, scale_N1: Tensor, category_NK: Tensor | None) -> Tensor:
        """(N, 1 + K * embedding): what is the same at all steps of a series."""
        parts = [torch.log(scale_N1)]
        if category_NK is not None:
            parts += [table(category_NK[:, place]) for place, table in enumerate(self.embeddings)]
        return torch.cat(parts, dim=1)

    def losses(
        self,
        target_NT: Tensor,
        observed_NT: Tensor,
        features_NTF: Tensor,
        category_NK: Tensor | None,
        part: tuple[int, int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The loss of every step of windows of context and prediction, unrolled as one; (N, C + P).

        Also how much of it is the scale's alone, which no model can change; (N, 1).

        Args:
            target_NT: (N, longest lag + C + P) float32, gaps filled.
            observed_NT: (N, C + P) float32, 1 where the target is known; others have loss 0.
            features_NTF: (N, C + P, F) float32.
            category_NK: (N, K) int64.
            part: of a batch that several processes share; see `unroll`.
        """
        sizes = self.sizes
        longest, context = sizes.lags[-1], sizes.context_length
        scale_N1 = self.scale_of(target_NT[:, longest : longest + context], observed_NT[:, :context])
        lagged_TNL, scaled_NT = self._lagged(target_NT, observed_NT)
        output_TNH = torch.cat([lagged_TNL, features_NTF.transpose(0, 1)], dim=2)
        num_changing = output_TNH.shape[2]
        constants = list(self.bias)
        constants[0] = constants[0] + self.static_of(scale_N1, category_NK) @ self.weight_ih[0][:, num_changing:].t()
        weights = [self.weight_ih[0][:, :num_changing], *self.weight_ih[1:]]
        share = sizes.dropout_rate if self.training else 0.0
        for constant, weight_GI, weight_GH in zip(constants, weights, self.weight_hh, strict=True):
            constant_NG = constant.expand(len(target_NT), -1)
            output_TNH = unroll(output_TNH, constant_NG, weight_GI, weight_GH, share, part)
        restless_N1 = self.restlessness_of(scaled_NT[:, longest : longest + context], observed_NT[:, :context])
        layers_TNK = self.head(output_TNH) * self.units_of(restless_N1)
        raw_TNK = layers_TNK + (functional.linear(lagged_TNL, *self.line()) + restless_N1 * self.restless)
        fit = self.likelihood.parameters_of(list(raw_TNK.unbind(dim=2)))
        losses_TN = self.likelihood.loss(fit, scaled_NT[:, longest:].t(), scale_N1[:, 0])
        losses_NT = losses_TN.t() * observed_NT
        return losses_NT, self.likelihood.fixed_loss(scale_N1)


class Sampler(nn.Module):
    """Paths of the future by ancestral sampling, all series and samples at once.

    What is the same for all samples of a series is computed once for it. Rows lie along the last axis, so that gates
    are contiguous blocks and a lag is a row that is there already. It works with the weights that the network has when
    it is made.

    Attributes:
        loops: its steps, for which `script_loops` makes TorchScript that is as long for a hundred steps as for one.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        sizes = network.sizes
        self.network = network
        self.likelihood = network.likelihood
        self.loops: nn.Module = _Loops(network)
        # a buffer, for what a traced graph makes while it runs would stay on the device that it was traced on
        steps_T1 = torch.arange(sizes.lags[-1], sizes.history + sizes.prediction_length)[:, None]
        self.lagged_ats = nn.Buffer(steps_T1 - torch.tensor(sizes.lags), persistent=False)

    def script_loops(self, sample: tuple[Tensor, ...]) -> None:
        """Keep loops over steps as loops, where tracing would unroll them; `sample` is what `forward` takes."""
        noise_NSPW = sample[3]
        rows_R = torch.ones(noise_NSPW.shape[0] * noise_NSPW.shape[1])
        raw_KR = torch.ones(self.likelihood.num_parameters, len(rows_R))
        noise_WR = noise_NSPW[:, :, 0].permute(2, 0, 1).flatten(1)
        loops: Any = _Loops(self.network)
        loops.draw = torch.jit.trace(loops.draw, (raw_KR, rows_R, noise_WR), check_trace=False)
        self.loops = torch.jit.script(loops)

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
        restless_N1 = network.restlessness_of(scaled_NT[:, -context:], observed_NT[:, -context:])
        base_TGN = self._bases(scaled_NT, features_NTF, static_NE, restless_N1)
        samples_NSP: Tensor = self.loops(base_TGN, noise_NSPW, scale_N1, network.units_of(restless_N1))
        return samples_NSP

    def _bases(self, scaled_NT: Tensor, features_NTF: Tensor, static_NE: Tensor, restless_N1: Tensor) -> Tensor:
        """What is known beforehand adds to the first layer's gates and, below, to the forecast directly.

        (C + P, G + parameters, N): of lags that reach behind the forecast's start, features, categories, biases.
        """
        network, sizes = self.network, self.network.sizes
        line_KL, constant_K = network.line()
        direct_KI = functional.pad(line_KL, [0, network.weight_ih[0].shape[1] - len(sizes.lags)])
        weight_GI = torch.cat([network.weight_ih[0], direct_KI], dim=0)
        bias_G1 = torch.cat([network.bias[0], constant_K], dim=0)[:, None]
        restless_GN = functional.pad(network.restless[:, None] * restless_N1.t(), [0, 0, 4 * sizes.num_cells, 0])
        length = sizes.context_length + sizes.prediction_length
        # targets to come count as 0 here: each path has its own
        known_NT = functional.pad(scaled_NT, [0, sizes.prediction_length])
        lagged_NTL = known_NT[:, self.lagged_ats]
        static_NTE = static_NE[:, None].expand(-1, length, -1)
        given_TIN = torch.cat([lagged_NTL, features_NTF, static_NTE], dim=2).permute(1, 2, 0)
        return torch.matmul(weight_GI, given_TIN) + (bias_G1 + restless_GN)


class _Loops(nn.Module):
    """Reads the context of each series, then goes on along its paths; TorchScript can compile it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        sizes = network.sizes
        self.cells, self.num_layers, self.share = sizes.num_cells, sizes.num_layers, sizes.dropout_rate
        self.context_length, self.length = sizes.context_length, sizes.prediction_length
        self.num_parameters = network.likelihood.num_parameters
        self.lags = [lag for lag in sizes.lags if lag < sizes.prediction_length]
        """Those that paths are met by before they end."""
        self.num_met = [sum(lag <= step for lag in self.lags) for step in range(self.length)]
        line_KL, _ = network.line()
        # zoneout leaves hidden states in units of the share that does not stay
        new = 1 - self.share
        joint = torch.cat([new * network.weight_hh[0], network.weight_ih[0][:, : len(self.lags)]], dim=1)
        past = functional.pad(line_KL[:, : len(self.lags)], [self.cells, 0])
        self.first = nn.Buffer(torch.cat([joint, past]).detach())
        shape = (self.num_layers - 1, 4, self.cells, 2 * self.cells)
        upper = [torch.cat(each, dim=1) for each in zip(network.weight_hh[1:], network.weight_ih[1:], strict=True)]
        self.upper = nn.Buffer(new * torch.stack(upper).view(shape).detach() if upper else torch.zeros(shape))
        biases = [bias.view(4, self.cells, 1) for bias in network.bias[1:]]
        self.bias = nn.Buffer(torch.stack(biases).detach() if biases else torch.zeros(0, 4, self.cells, 1))
        self.head_weight = nn.Buffer(new * network.head.weight.detach())
        self.head_bias = nn.Buffer(network.head.bias[:, None].detach())
        self.draw = _Draw(network)

    def forward(self, base_TGN: Tensor, noise_NSPW: Tensor, scale_N1: Tensor, units_NK: Tensor) -> Tensor:
        """(N, S, P): see `Sampler`."""
        # cut once: ONNX would keep a copy for each step
        firsts = [self.first[:, : self.cells + met] for met in range(len(self.lags) + 1)]
        uppers = [list(layer.unbind(0)) for layer in self.upper.unbind(0)]
        biases = [list(layer.unbind(0)) for layer in self.bias.unbind(0)]
        hiddens, cells = self.read(base_TGN, uppers, biases)
        like_NS = noise_NSPW[:, :, 0, 0] * 0.0
        hiddens = [self.rows(each, like_NS) for each in hiddens]
        cells = [self.rows(each, like_NS) for each in cells]
        scale_R = self.rows(scale_N1.t(), like_NS)[0]
        units_KR = self.rows(units_NK.t(), like_NS)
        noise_PWR = noise_NSPW.permute(2, 3, 0, 1).flatten(2)
        num_series, num_samples = noise_NSPW.shape[0], noise_NSPW.shape[1]
        paths: list[Tensor] = []
        # a number that is not known beforehand: TorchScript would unroll the loop
        length = noise_NSPW.shape[2] if torch.jit.is_scripting() else self.length  # type: ignore[attr-defined]
        for step in range(length):
            met = self.num_met[step]
            parts = [hiddens[0]]
            parts += [paths[step - self.lags[place]][None] for place in range(met)]
            first_GR = torch.matmul(firsts[met], torch.cat(parts, dim=0))
            first_GNS = first_GR.view(-1, num_series, num_samples) + base_TGN[self.context_length + step][:, :, None]
            first_GR = first_GNS.view(self.first.shape[0], -1)
            gates = first_GR.split([self.cells, self.cells, self.cells, self.cells, self.num_parameters])
            hiddens[0], cells[0] = self.cell(gates, hiddens[0], cells[0])
            self.climb(hiddens, cells, uppers, biases)
            layers_KR = torch.addmm(self.head_bias, self.head_weight, hiddens[-1])
            paths.append(self.draw(layers_KR * units_KR + gates[4], scale_R, noise_PWR[step]))
        samples_RP = torch.stack(paths, dim=1) * scale_R[:, None]
        return samples_RP.view(num_series, num_samples, self.length)

    def read(
        self, base_TGN: Tensor, uppers: list[list[Tensor]], biases: list[list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The states of all layers behind the context, each (H, N)."""
        empty_HN = torch.zeros_like(base_TGN[0, : self.cells])
        hiddens = [empty_HN for _ in range(self.num_layers)]
        cells = [empty_HN for _ in range(self.num_layers)]
        weight_GH = self.first[: 4 * self.cells, : self.cells]
        context = base_TGN.shape[0] - self.length if torch.jit.is_scripting() else self.context_length  # type: ignore[attr-defined]
        for step in range(context):
            gates_GN = torch.matmul(weight_GH, hiddens[0]) + base_TGN[step, : 4 * self.cells]
            hiddens[0], cells[0] = self.cell(list(gates_GN.chunk(4)), hiddens[0], cells[0])
            self.climb(hiddens, cells, uppers, biases)
        return hiddens, cells

    def climb(
        self, hiddens: list[Tensor], cells: list[Tensor], uppers: list[list[Tensor]], biases: list[list[Tensor]]
    ) -> None:
        """One step of all layers but the first."""
        for layer in range(1, self.num_layers):
            given = torch.cat([hiddens[layer], hiddens[layer - 1]], dim=0)
            # four products, for ONNX Runtime would copy what it cuts
            gates = [torch.addmm(biases[layer - 1][gate], uppers[layer - 1][gate], given) for gate in range(4)]
            hiddens[layer], cells[layer] = self.cell(gates, hiddens[layer], cells[layer])

    def cell(self, gates: list[Tensor], hidden_HR: Tensor, cell_HR: Tensor) -> tuple[Tensor, Tensor]:
        """One step of an LSTM. Zoneout's expectation: a share of the old state stays (Krueger et al. 2017)."""
        opened, forgot, shown = torch.sigmoid(gates[0]), torch.sigmoid(gates[1]), torch.sigmoid(gates[2])
        new_HR = forgot * cell_HR + opened * torch.tanh(gates[3])
        output_HR = shown * torch.tanh(new_HR)
        if self.share == 0.0:
            return output_HR, new_HR
        return output_HR + self.share * hidden_HR, new_HR + self.share * (cell_HR - new_HR)

    def rows(self, series_HN: Tensor, like_NS: Tensor) -> Tensor:
        """(H, R): each series' column once for each of its samples."""
        return (series_HN[:, :, None] + like_NS).flatten(1)


class _Draw(nn.Module):
    """Samples of one step, from what the network says of them."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.likelihood = network.likelihood
        self.spread = nn.Buffer(network.spread.clone())

    def forward(self, raw_KR: Tensor, scale_R: Tensor, noise_WR: Tensor) -> Tensor:
        fit = self.likelihood.spread_out(self.likelihood.parameters_of(list(raw_KR.unbind(0))), self.spread)
        return self.likelihood.sample(fit, scale_R, list(noise_WR.unbind(0)))


def _bias(cells: int, bound: float) -> Tensor:
    """Forget gates begin open (Jozefowicz et al. 2015)."""
    bias = torch.empty(4 * cells).uniform_(-bound, bound)
    bias[cells : 2 * cells] = 1
    return bias
