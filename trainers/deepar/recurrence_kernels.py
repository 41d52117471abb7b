"""The inner loops of the LSTM, compiled on first use and kept beside this file for the next run.

Vectors of one window lie in a core's first cache, and loops run along the gates, so that they become vector
instructions.
"""

# ruff: noqa: C901  one loop nest: a call inside it would cost what it saves

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["backward", "forward"]

_compiled = njit(nogil=True, cache=True, fastmath=True, error_model="numpy")

_LOG2_E = np.float32(1.4426950408889634)
_LN_2_HIGH = np.float32(0.693145751953125)
_LN_2_LOW = np.float32(1.428606765330187e-06)


@_compiled
def _sigmoid(values, count, powers, bits):
    """values[:count] in place, to 1e-7: e to the power of x is 2**n by the exponent's bits, times a polynomial."""
    for k in range(count):
        x = min(max(-values[k], np.float32(-87.0)), np.float32(87.0))
        n = np.floor(x * _LOG2_E + np.float32(0.5))
        r = x - n * _LN_2_HIGH - n * _LN_2_LOW
        p = np.float32(1 / 720) * r + np.float32(1 / 120)
        p = p * r + np.float32(1 / 24)
        p = p * r + np.float32(1 / 6)
        p = p * r + np.float32(0.5)
        p = p * r + np.float32(1.0)
        powers[k] = p * r + np.float32(1.0)
        bits[k] = (np.int32(n) + np.int32(127)) << np.int32(23)
    whole = bits.view(np.float32)
    for k in range(count):
        values[k] = np.float32(1.0) / (np.float32(1.0) + powers[k] * whole[k])


@_compiled
def forward(gates, weight, hidden_stays, cell_stays, opened, squashed, hidden, cell, first, last):
    """Windows first to last.

    Args:
        gates: (T, N, 4 H).
        weight: (H, 4 H).
        hidden_stays: (T, N, H) bool.
        cell_stays: likewise.
        opened: to write, (T, N, 4 H), the gates behind their functions.
        squashed: to write, (T, N, H), tanh of the new cells.
        hidden: to write behind its zeros at step 0, (T + 1, N, H).
        cell: likewise.
        first: window.
        last: window, left out.
    """
    steps, _, width = gates.shape
    size = width // 4
    fours = size - size % 4
    z = np.empty(width, np.float32)
    powers, bits = np.empty(width, np.float32), np.empty(width, np.int32)
    for n in range(first, last):
        for t in range(steps):
            before = hidden[t, n]
            for k in range(width):
                z[k] = gates[t, n, k]
            for j in range(0, fours, 4):  # four rows for each time that z is fetched and stored
                a, b, c, d = before[j], before[j + 1], before[j + 2], before[j + 3]
                row_a, row_b, row_c, row_d = weight[j], weight[j + 1], weight[j + 2], weight[j + 3]
                for k in range(width):
                    z[k] += a * row_a[k] + b * row_b[k] + (c * row_c[k] + d * row_d[k])
            for j in range(fours, size):
                a, row_a = before[j], weight[j]
                for k in range(width):
                    z[k] += a * row_a[k]
            for k in range(3 * size, width):  # tanh(x) = 2 sigmoid(2 x) - 1
                z[k] *= np.float32(2.0)
            _sigmoid(z, width, powers, bits)
            for k in range(3 * size, width):
                z[k] = np.float32(2.0) * z[k] - np.float32(1.0)
            for k in range(width):
                opened[t, n, k] = z[k]
            for j in range(size):
                new = z[size + j] * cell[t, n, j] + z[j] * z[3 * size + j]
                cell[t + 1, n, j] = cell[t, n, j] if cell_stays[t, n, j] else new
                squashed[t, n, j] = np.float32(2.0) * new
            _sigmoid(squashed[t, n], size, powers, bits)
            for j in range(size):
                squashed[t, n, j] = np.float32(2.0) * squashed[t, n, j] - np.float32(1.0)
                out = z[2 * size + j] * squashed[t, n, j]
                hidden[t + 1, n, j] = before[j] if hidden_stays[t, n, j] else out


@_compiled
def backward(slope, weight, hidden_stays, cell_stays, opened, squashed, cell, slopes, first, last):
    """The derivative of `forward`, windows first to last.

    Args:
        slope: (T, N, H), of the loss by the hidden states.
        weight: as of `forward`.
        hidden_stays: likewise.
        cell_stays: likewise.
        opened: likewise.
        squashed: likewise.
        cell: likewise.
        slopes: to write, (T, N, 4 H), of the loss by the gates.
        first: window.
        last: window, left out.
    """
    steps, _, size = slope.shape
    fours = size - size % 4
    zero, one = np.float32(0.0), np.float32(1.0)
    hidden_slope, cell_slope = np.empty(size, np.float32), np.empty(size, np.float32)
    for n in range(first, last):
        hidden_slope[:] = 0
        cell_slope[:] = 0
        for t in range(steps - 1, -1, -1):
            dz, gate = slopes[t, n], opened[t, n]
            for j in range(size):
                i, f, o, g = gate[j], gate[size + j], gate[2 * size + j], gate[3 * size + j]
                s = squashed[t, n, j]
                arriving = slope[t, n, j] + hidden_slope[j]
                kept = np.float32(hidden_stays[t, n, j])
                stayed = np.float32(cell_stays[t, n, j])
                output = arriving * (one - kept)
                new = output * o * (one - s * s) + cell_slope[j] * (one - stayed)
                dz[j] = new * g * i * (one - i)
                dz[size + j] = new * cell[t, n, j] * f * (one - f)
                dz[2 * size + j] = output * s * o * (one - o)
                dz[3 * size + j] = new * i * (one - g * g)
                cell_slope[j] = cell_slope[j] * stayed + new * f
                hidden_slope[j] = arriving * kept
            for j in range(0, fours, 4):  # four sums for each time that dz is fetched
                row_a, row_b, row_c, row_d = weight[j], weight[j + 1], weight[j + 2], weight[j + 3]
                sum_a, sum_b, sum_c, sum_d = zero, zero, zero, zero
                for k in range(4 * size):
                    sum_a += row_a[k] * dz[k]
                    sum_b += row_b[k] * dz[k]
                    sum_c += row_c[k] * dz[k]
                    sum_d += row_d[k] * dz[k]
                hidden_slope[j] += sum_a
                hidden_slope[j + 1] += sum_b
                hidden_slope[j + 2] += sum_c
                hidden_slope[j + 3] += sum_d
            for j in range(fours, size):
                row_a, sum_a = weight[j], zero
                for k in range(4 * size):
                    sum_a += row_a[k] * dz[k]
                hidden_slope[j] += sum_a
