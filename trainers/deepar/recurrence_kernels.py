"""The inner loops of the LSTM, compiled on first use and kept beside this file for the next run.

Products are BLAS's, of all windows at once; loops run along the units of a window, so that they become vector
instructions.
"""

from __future__ import annotations

import numpy as np
from numba import njit

__all__ = ["backward", "forward"]

_compiled = njit(nogil=True, cache=True, fastmath=True, error_model="numpy")

_SATURATED = np.float32(7.9053111)
_HALF, _ONE = np.float32(0.5), np.float32(1.0)


@_compiled
def _tanh(x):
    """To 5e-7: a quotient of polynomials, for no instruction gives e to the power of x.

    Odd of degree 13 over even of degree 6, the coefficients that Eigen's `ptanh` has.
    """
    x = min(max(x, -_SATURATED), _SATURATED)
    s = x * x
    p = np.float32(-2.76076847742355e-16) * s + np.float32(2.00018790482477e-13)
    p = p * s + np.float32(-8.60467152213735e-11)
    p = p * s + np.float32(5.12229709037114e-08)
    p = p * s + np.float32(1.48572235717979e-05)
    p = p * s + np.float32(6.37261928875436e-04)
    p = p * s + np.float32(4.89352455891786e-03)
    q = np.float32(1.19825839466702e-06) * s + np.float32(1.18534705686654e-04)
    q = q * s + np.float32(2.26843463243900e-03)
    q = q * s + np.float32(4.89352518554385e-03)
    return x * p / q


@_compiled
def forward(gates, constant, weight, hidden_stays, cell_stays, squashed, hidden, cell, first, last):
    """Windows first to last.

    Args:
        gates: (T, N, 4 H), what inputs add; to overwrite with the gates behind their functions.
        constant: (N, 4 H), what adds at every step.
        weight: (H, 4 H).
        hidden_stays: (T, N, H) bool.
        cell_stays: likewise.
        squashed: to write, (T, N, H), tanh of the new cells.
        hidden: to write, (T + 1, N, H), zeros first.
        cell: likewise.
        first: window.
        last: window, left out.
    """
    steps, _, width = gates.shape
    size = width // 4
    hidden[0, first:last] = 0
    cell[0, first:last] = 0
    recurrent = np.empty((last - first, width), np.float32)
    for t in range(steps):
        np.dot(hidden[t, first:last], weight, recurrent)
        for n in range(first, last):
            gate, more, fixed = gates[t, n], recurrent[n - first], constant[n]
            for k in range(3 * size):  # the logistic function of 2 x is (1 + tanh(x)) / 2
                gate[k] = _HALF + _HALF * _tanh(_HALF * (gate[k] + more[k] + fixed[k]))
            for j in range(size):
                k = 3 * size + j
                candidate = _tanh(gate[k] + more[k] + fixed[k])
                new = gate[size + j] * cell[t, n, j] + gate[j] * candidate
                shown = _tanh(new)
                gate[k] = candidate
                squashed[t, n, j] = shown
                cell[t + 1, n, j] = cell[t, n, j] if cell_stays[t, n, j] else new
                hidden[t + 1, n, j] = hidden[t, n, j] if hidden_stays[t, n, j] else gate[2 * size + j] * shown


@_compiled
def backward(slope, weight, hidden_stays, cell_stays, gates, squashed, cell, sums, first, last):
    """The derivative of `forward`, windows first to last.

    Args:
        slope: (T, N, H), of the loss by the hidden states.
        weight: (4 H, H).
        hidden_stays: as of `forward`.
        cell_stays: likewise.
        gates: as `forward` leaves them; to overwrite with the slopes of the loss by their sums.
        squashed: as of `forward`.
        cell: likewise.
        sums: (N, 4 H), to which slopes by `constant` are added.
        first: window.
        last: window, left out.
    """
    steps, _, size = slope.shape
    shape = (last - first, size)
    kept, through, cell_slope = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for t in range(steps - 1, -1, -1):
        for n in range(first, last):
            gate, total, row = gates[t, n], sums[n], n - first
            for j in range(size):
                i, f, o, g = gate[j], gate[size + j], gate[2 * size + j], gate[3 * size + j]
                s = squashed[t, n, j]
                arriving = slope[t, n, j] + kept[row, j] + through[row, j]
                stayed, cell_stayed = np.float32(hidden_stays[t, n, j]), np.float32(cell_stays[t, n, j])
                output = arriving * (_ONE - stayed)
                new = output * o * (_ONE - s * s) + cell_slope[row, j] * (_ONE - cell_stayed)
                gate[j] = new * g * i * (_ONE - i)
                gate[size + j] = new * cell[t, n, j] * f * (_ONE - f)
                gate[2 * size + j] = output * s * o * (_ONE - o)
                gate[3 * size + j] = new * i * (_ONE - g * g)
                cell_slope[row, j] = cell_slope[row, j] * cell_stayed + new * f
                kept[row, j] = arriving * stayed
            for k in range(4 * size):
                total[k] += gate[k]
        np.dot(gates[t, first:last], weight, through)
