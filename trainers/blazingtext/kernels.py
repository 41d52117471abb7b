"""The inner loops of training, compiled on first use and kept beside this file for the next run.

They release the interpreter's lock, and several threads run them on the same matrices without locks (Niu et al. 2011,
"Hogwild!"): a step that is lost now and then costs less than waiting would.

Matrices are flat, row r begins at `r * stride`; see `vectors.stride_of`. A slice of the corpus is one call.
"""

# ruff: noqa: C901, PLR0912  one loop nest each: a call inside it would cost what it saves

from __future__ import annotations

import numpy as np
from numba import njit

from trainers.blazingtext.vectors import accumulate, add_scaled, dot, dots_2x3, exchange, prefetch

__all__ = [
    "LINE_END",
    "MAX_LINE",
    "SIGMOID",
    "batch_skipgram",
    "cbow",
    "predict_best",
    "randomise",
    "skipgram",
    "supervised",
]

LINE_END = -1
"""Stands in a corpus where a line ends, when `</s>` is no word of the vocabulary."""
MAX_LINE = 1024
"""A line counts as ended after so many words (fastText's limit)."""
_TABLE_SIZE = 1024
_TABLE_BOUND = 8.0
SIGMOID = (1 / (1 + np.exp(-(np.arange(_TABLE_SIZE + 1) * 2 / _TABLE_SIZE - 1) * _TABLE_BOUND))).astype(np.float32)
"""Of -8 to 8 in equal steps."""

_compiled = njit(nogil=True, cache=True, fastmath=True, error_model="numpy")


@_compiled
def _sigmoid(table, x):
    if x <= -_TABLE_BOUND:
        return np.float32(0.0)
    if x >= _TABLE_BOUND:
        return np.float32(1.0)
    return table[np.int64((x + np.float32(_TABLE_BOUND)) * np.float32(_TABLE_SIZE / (2 * _TABLE_BOUND)))]


@_compiled
def _next(state):
    """Knuth's linear congruential generator; the upper bits are the good ones."""
    return state * np.uint64(6364136223846793005) + np.uint64(1442695040888963407)


@_compiled
def randomise(matrix, stride, dim, start, stop, seed):
    """Rows[start:stop] evenly from -1 / dim to 1 / dim, as fastText begins; the padding stays 0."""
    state = np.uint64(seed)
    scale = np.float32(2.0 / dim / (1 << 24))
    for row in range(start, stop):
        for d in range(dim):
            state = _next(state)
            matrix[row * stride + d] = np.float32(np.int64(state >> np.uint64(40)) - (1 << 23)) * scale


@_compiled
def _fill(tokens, at, stop, end_word, keep, state, line):
    """The next line's words that survive down-sampling.

    Returns: place behind the line, number of words, random state.
    """
    size = 0
    while at < stop:
        word = tokens[at]
        at += 1
        if word >= 0:
            state = _next(state)
            if np.float32(state >> np.uint64(40)) < keep[word]:
                line[size] = word
                size += 1
        if word == LINE_END or word == end_word or size == MAX_LINE:  # noqa: PLR1714, SIM109
            break
    return at, size, state


@_compiled
def _learn(hidden, hidden_at, gradient, target, outputs, stride, negatives, count, table, alpha, state):
    """Negative sampling (Mikolov et al. 2013, eq. 4): one word that is there, `count` that are not."""
    mask = np.uint64(len(negatives) - 1)
    for k in range(count + 1):
        label = np.float32(1.0)
        word = target
        if k:
            state = _next(state)
            word = negatives[(state >> np.uint64(33)) & mask]
            if word == target:
                continue
            label = np.float32(0.0)
        at = np.int64(word) * stride
        score = dot(hidden, hidden_at, outputs, at, stride)
        exchange(alpha * (label - _sigmoid(table, score)), outputs, at, hidden, hidden_at, gradient, stride)
    return state


@_compiled
def skipgram(
    tokens, start, stop, end_word, keep, inputs, outputs, stride, unit_starts, units,
    negatives, num_negatives, window, table, alpha, alpha_step, seed,
):  # fmt: skip
    """Predict each neighbour from a word, tokens[start:stop]; a word is the mean of its units where it has some."""
    state = np.uint64(seed)
    line = np.empty(MAX_LINE, np.int32)
    room = np.empty(3 * stride, np.float32)
    hidden, gradient = room[:stride], room[stride : 2 * stride]
    subwords = len(units) > 0
    reach = np.uint64(window)
    at = start
    while at < stop:
        rate = np.float32(max(alpha - alpha_step * (at - start), 0.0))
        at, size, state = _fill(tokens, at, stop, end_word, keep, state, line)
        for i in range(size):
            word = np.int64(line[i])
            if i + 1 < size:
                prefetch(inputs, np.int64(line[i + 1]) * stride, stride)
            state = _next(state)
            radius = np.int64((state >> np.uint64(33)) % reach) + 1
            for j in range(max(0, i - radius), min(size, i + radius + 1)):
                if j == i:
                    continue
                gradient[:] = 0
                if subwords:
                    first, last = unit_starts[word], unit_starts[word + 1]
                    share = np.float32(1.0) / np.float32(last - first)
                    hidden[:] = 0
                    for u in range(first, last):
                        add_scaled(share, inputs, np.int64(units[u]) * stride, hidden, 0, stride)
                    state = _learn(
                        hidden, 0, gradient, line[j], outputs, stride, negatives, num_negatives, table, rate, state
                    )
                    for u in range(first, last):
                        add_scaled(np.float32(1.0), gradient, 0, inputs, np.int64(units[u]) * stride, stride)
                else:
                    here = word * stride
                    state = _learn(
                        inputs, here, gradient, line[j], outputs, stride, negatives, num_negatives, table, rate, state
                    )
                    add_scaled(np.float32(1.0), gradient, 0, inputs, here, stride)


@_compiled
def cbow(
    tokens, start, stop, end_word, keep, inputs, outputs, stride, unit_starts, units,
    negatives, num_negatives, window, table, alpha, alpha_step, seed,
):  # fmt: skip
    """Predict each word from the mean of its neighbours' units, tokens[start:stop]."""
    state = np.uint64(seed)
    line = np.empty(MAX_LINE, np.int32)
    hidden = np.empty(stride, np.float32)
    gradient = np.empty(stride, np.float32)
    subwords = len(units) > 0
    reach = np.uint64(window)
    at = start
    while at < stop:
        rate = np.float32(max(alpha - alpha_step * (at - start), 0.0))
        at, size, state = _fill(tokens, at, stop, end_word, keep, state, line)
        for i in range(size):
            state = _next(state)
            radius = np.int64((state >> np.uint64(33)) % reach) + 1
            low, high = max(0, i - radius), min(size, i + radius + 1)
            if high - low < 2:
                continue
            hidden[:] = 0
            gradient[:] = 0
            count = 0
            for j in range(low, high):
                if j == i:
                    continue
                word = np.int64(line[j])
                if subwords:
                    for u in range(unit_starts[word], unit_starts[word + 1]):
                        add_scaled(np.float32(1.0), inputs, np.int64(units[u]) * stride, hidden, 0, stride)
                        count += 1
                else:
                    add_scaled(np.float32(1.0), inputs, word * stride, hidden, 0, stride)
                    count += 1
            share = np.float32(1.0) / np.float32(count)
            for d in range(stride):
                hidden[d] *= share
            state = _learn(hidden, 0, gradient, line[i], outputs, stride, negatives, num_negatives, table, rate, state)
            for j in range(low, high):
                if j == i:
                    continue
                word = np.int64(line[j])
                if subwords:
                    for u in range(unit_starts[word], unit_starts[word + 1]):
                        add_scaled(np.float32(1.0), gradient, 0, inputs, np.int64(units[u]) * stride, stride)
                else:
                    add_scaled(np.float32(1.0), gradient, 0, inputs, word * stride, stride)


@_compiled
def _draw(word, target_ats, stride, negatives, count, state):
    """A word and `count` negative samples, less those that are the word; the room behind them repeats the last one.

    Returns: how many, random state.
    """
    mask = np.uint64(len(negatives) - 1)
    target_ats[0] = np.int64(word) * stride
    kept = 1
    for _ in range(count):
        state = _next(state)
        other = negatives[(state >> np.uint64(33)) & mask]
        if other != word:
            target_ats[kept] = np.int64(other) * stride
            kept += 1
    for k in range(kept, len(target_ats)):
        target_ats[k] = target_ats[kept - 1]
    return kept, state


@_compiled
def batch_skipgram(
    tokens, start, stop, end_word, keep, inputs, outputs, stride, batch_size,
    negatives, num_negatives, window, table, alpha, alpha_step, seed,
):  # fmt: skip
    """Skip-gram in small matrix products (Ji et al. 2016, arXiv:1604.04661): a word's neighbours, at most `batch_size`
    at a time, meet the word and one common set of negative samples, tokens[start:stop].
    """
    state = np.uint64(seed)
    line = np.empty(MAX_LINE, np.int32)
    num_targets = num_negatives + 1
    columns = -(-num_targets // 3) * 3
    input_ats = np.empty(batch_size + 1, np.int64)
    target_ats = np.empty(columns, np.int64)
    step = np.zeros((batch_size + 1) * columns, np.float32)
    changed = np.empty(num_targets * stride, np.float32)
    reach = np.uint64(window)
    at = start
    while at < stop:
        rate = np.float32(max(alpha - alpha_step * (at - start), 0.0))
        at, size, state = _fill(tokens, at, stop, end_word, keep, state, line)
        for i in range(size):
            state = _next(state)
            radius = np.int64((state >> np.uint64(33)) % reach) + 1
            low, high = max(0, i - radius), min(size, i + radius + 1)
            word = line[i]
            while low < high:
                count = 0
                while low < high and count < batch_size:
                    if low != i:
                        input_ats[count] = np.int64(line[low]) * stride
                        count += 1
                    low += 1
                if count == 0:
                    break
                input_ats[count] = input_ats[count - 1]
                kept, state = _draw(word, target_ats, stride, negatives, num_negatives, state)
                for b in range(0, count, 2):
                    for k in range(0, kept, 3):
                        scores = dots_2x3(
                            inputs, input_ats[b], input_ats[b + 1],
                            outputs, target_ats[k], target_ats[k + 1], target_ats[k + 2], stride,
                        )  # fmt: skip
                        for n in range(6):
                            label = np.float32(1.0 if k == 0 and n % 3 == 0 else 0.0)
                            step[(b + n // 3) * columns + k + n % 3] = rate * (label - _sigmoid(table, scores[n]))
                changed[: kept * stride] = 0
                for k in range(kept):
                    accumulate(changed, k * stride, inputs, input_ats, 0, count, step, k, columns, stride)
                for b in range(count):
                    accumulate(inputs, input_ats[b], outputs, target_ats, 0, kept, step, b * columns, 1, stride)
                for k in range(kept):
                    add_scaled(np.float32(1.0), changed, k * stride, outputs, target_ats[k], stride)


@_compiled
def _softmax(hidden, outputs, stride, scores):
    largest = np.float32(-np.inf)
    for c in range(len(scores)):
        scores[c] = dot(hidden, 0, outputs, c * stride, stride)
        largest = max(largest, scores[c])
    total = np.float32(0.0)
    for c in range(len(scores)):
        scores[c] = np.exp(scores[c] - largest)
        total += scores[c]
    for c in range(len(scores)):
        scores[c] /= total


@_compiled
def _average(features, first, last, inputs, stride, hidden):
    share = np.float32(1.0) / np.float32(last - first)
    hidden[:] = 0
    for f in range(first, last):
        add_scaled(share, inputs, np.int64(features[f]) * stride, hidden, 0, stride)
    return share


@_compiled
def supervised(
    starts,
    features,
    label_starts,
    labels,
    order,
    start,
    stop,
    inputs,
    outputs,
    num_labels,
    stride,
    alpha,
    alpha_step,
    seed,
):
    """Softmax over the mean of a line's rows (Joulin et al. 2016), lines order[start:stop].

    Of several labels, one by chance.

    Returns: the sum of losses, the number of lines that taught something.
    """
    state = np.uint64(seed)
    scores = np.empty(num_labels, np.float32)
    hidden = np.empty(stride, np.float32)
    gradient = np.empty(stride, np.float32)
    loss = 0.0
    taught = 0
    for place in range(start, stop):
        i = order[place]
        first, last = starts[i], starts[i + 1]
        num_targets = label_starts[i + 1] - label_starts[i]
        if place + 1 < stop:
            coming = order[place + 1]
            for f in range(starts[coming], min(starts[coming + 1], starts[coming] + 64)):
                prefetch(inputs, np.int64(features[f]) * stride, stride)
        if first == last or num_targets == 0:
            continue
        rate = np.float32(max(alpha - alpha_step * (place - start), 0.0))
        chosen = 0
        if num_targets > 1:
            state = _next(state)
            chosen = np.int64((state >> np.uint64(33)) % np.uint64(num_targets))
        target = labels[label_starts[i] + chosen]
        share = _average(features, first, last, inputs, stride, hidden)
        _softmax(hidden, outputs, stride, scores)
        loss -= np.log(scores[target] + 1e-12)
        taught += 1
        gradient[:] = 0
        for c in range(num_labels):
            label = np.float32(1.0 if c == target else 0.0)
            exchange(rate * (label - scores[c]), outputs, c * stride, hidden, 0, gradient, stride)
        for f in range(first, last):
            add_scaled(share, gradient, 0, inputs, np.int64(features[f]) * stride, stride)
    return loss, taught


@_compiled
def predict_best(starts, features, start, stop, inputs, outputs, num_labels, stride, best):
    """The class of each of lines[start:stop] into `best`; -1 where nothing is known of a line."""
    hidden = np.empty(stride, np.float32)
    for i in range(start, stop):
        best[i] = -1
        if starts[i] == starts[i + 1]:
            continue
        _average(features, starts[i], starts[i + 1], inputs, stride, hidden)
        largest = np.float32(-np.inf)
        for c in range(num_labels):
            score = dot(hidden, 0, outputs, c * stride, stride)
            if score > largest:
                largest = score
                best[i] = c
