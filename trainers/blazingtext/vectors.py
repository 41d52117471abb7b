"""Arithmetic on rows of float32, in the machine's widest registers: what the training kernels are made of.

Each function is written in LLVM's own terms and compiled by numba on this machine. Plain loops would do the same sums,
but a compiler that cannot see that two rows are apart checks it anew for every row of a hundred numbers.
"""

# ruff: noqa: ARG001  an intrinsic is told the types of its arguments; `generate` gets the values

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["LANES", "accumulate", "add_scaled", "aligned_rows", "dot", "dots_2x3", "exchange", "prefetch", "stride_of"]

LANES = 16
"""Rows are padded to a multiple of so many numbers: one AVX-512 register, two of AVX2, four of SSE or NEON."""
_FAST = ("fast",)
_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INDEX = ir.IntType(64)
_ALIGNMENT = 64


def stride_of(dim: int) -> int:
    """Numbers from one row to the next."""
    return -(-dim // LANES) * LANES


def aligned_rows(num_rows: int, dim: int) -> np.ndarray:
    """(num_rows * stride_of(dim),) float32 of zeros, each row at the head of a cache line."""
    size = num_rows * stride_of(dim)
    room = np.zeros(size + LANES, np.float32)
    skip = (-room.ctypes.data % _ALIGNMENT) // 4
    return room[skip : skip + size]


def _pointer(context, builder, array_type, array, at):
    """To the number `at` of a one-dimensional array, as a vector."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [at]), _VECTOR.as_pointer())


def _load(builder, pointer, at):
    value = builder.load(builder.gep(pointer, [at]))
    value.align = 4
    return value


def _store(builder, value, pointer, at):
    builder.store(value, builder.gep(pointer, [at])).align = 4


def _broadcast(builder, scalar):
    first = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, ir.Constant(_VECTOR, ir.Undefined), mask)


def _multiply_add(builder, a, b, c):
    return builder.fadd(builder.fmul(a, b, flags=_FAST), c, flags=_FAST)


def _total(builder, vector):
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR]), "llvm.vector.reduce.fadd.v16f32"
    )
    return builder.call(function, [ir.Constant(_FLOAT, 0.0), vector], fastmath=_FAST)


def _num_vectors(builder, n):
    return builder.lshr(n, ir.Constant(_INDEX, LANES.bit_length() - 1))


@intrinsic
def dot(_context, a, a_at, b, b_at, n):
    """The product of two rows of n numbers that begin at `a[a_at]` and `b[b_at]`; n is a multiple of LANES."""

    def generate(context, builder, signature, arguments):
        a, a_at, b, b_at, n = arguments
        a = _pointer(context, builder, signature.args[0], a, a_at)
        b = _pointer(context, builder, signature.args[2], b, b_at)
        sum_ = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * LANES))
        with cgutils.for_range(builder, _num_vectors(builder, n)) as loop:
            product = _multiply_add(
                builder, _load(builder, a, loop.index), _load(builder, b, loop.index), builder.load(sum_)
            )
            builder.store(product, sum_)
        return _total(builder, builder.load(sum_))

    return types.float32(a, types.int64, b, types.int64, types.int64), generate


@intrinsic
def exchange(_context, scale, row, row_at, hidden, hidden_at, gradient, n):
    """One step of a row against a hidden vector: `gradient += scale * row`, then `row += scale * hidden`."""

    def generate(context, builder, signature, arguments):
        scale, row, row_at, hidden, hidden_at, gradient, n = arguments
        zero = ir.Constant(_INDEX, 0)
        row = _pointer(context, builder, signature.args[1], row, row_at)
        hidden = _pointer(context, builder, signature.args[3], hidden, hidden_at)
        gradient = _pointer(context, builder, signature.args[5], gradient, zero)
        scale = _broadcast(builder, scale)
        with cgutils.for_range(builder, _num_vectors(builder, n)) as loop:
            old = _load(builder, row, loop.index)
            grown = _multiply_add(builder, scale, old, _load(builder, gradient, loop.index))
            _store(builder, grown, gradient, loop.index)
            new = _multiply_add(builder, scale, _load(builder, hidden, loop.index), old)
            _store(builder, new, row, loop.index)
        return context.get_dummy_value()

    return types.void(types.float32, row, types.int64, hidden, types.int64, gradient, types.int64), generate


@intrinsic
def add_scaled(_context, scale, a, a_at, b, b_at, n):
    """`b += scale * a`, row against row."""

    def generate(context, builder, signature, arguments):
        scale, a, a_at, b, b_at, n = arguments
        a = _pointer(context, builder, signature.args[1], a, a_at)
        b = _pointer(context, builder, signature.args[3], b, b_at)
        scale = _broadcast(builder, scale)
        with cgutils.for_range(builder, _num_vectors(builder, n)) as loop:
            value = _multiply_add(builder, scale, _load(builder, a, loop.index), _load(builder, b, loop.index))
            _store(builder, value, b, loop.index)
        return context.get_dummy_value()

    return types.void(types.float32, a, types.int64, b, types.int64, types.int64), generate


@intrinsic
def dots_2x3(_context, a, a_0, a_1, b, b_0, b_1, b_2, n):
    """All six products of two rows with three: as a matrix product, each number read once for all of them."""

    def generate(context, builder, signature, arguments):
        a, a_0, a_1, b, b_0, b_1, b_2, n = arguments
        a_rows = [_pointer(context, builder, signature.args[0], a, at) for at in (a_0, a_1)]
        b_rows = [_pointer(context, builder, signature.args[3], b, at) for at in (b_0, b_1, b_2)]
        zeros = ir.Constant(_VECTOR, [0.0] * LANES)
        sums = [[cgutils.alloca_once_value(builder, zeros) for _ in b_rows] for _ in a_rows]
        with cgutils.for_range(builder, _num_vectors(builder, n)) as loop:
            a_values = [_load(builder, row, loop.index) for row in a_rows]
            b_values = [_load(builder, row, loop.index) for row in b_rows]
            for i, a_value in enumerate(a_values):
                for j, b_value in enumerate(b_values):
                    builder.store(_multiply_add(builder, a_value, b_value, builder.load(sums[i][j])), sums[i][j])
        totals = [_total(builder, builder.load(each)) for line in sums for each in line]
        return context.make_tuple(builder, signature.return_type, totals)

    six = types.UniTuple(types.float32, 6)
    return six(a, types.int64, types.int64, b, types.int64, types.int64, types.int64, types.int64), generate


_TOGETHER = 4


@intrinsic
def accumulate(_context, target, target_at, rows, row_ats, first, count, scales, scale_at, scale_step, n):
    """`target += sum over i of scales[scale_at + i * scale_step] * rows[row_ats[first + i]]`, i from 0 to count - 1."""

    def generate(context, builder, signature, arguments):
        target, target_at, rows, row_ats, first, count, scales, scale_at, scale_step, n = arguments
        target = _pointer(context, builder, signature.args[0], target, target_at)
        rows = _pointer(context, builder, signature.args[2], rows, ir.Constant(_INDEX, 0))
        ats = context.make_array(signature.args[3])(context, builder, row_ats).data
        factors = context.make_array(signature.args[6])(context, builder, scales).data

        def block(start, width):
            """`width` vectors from `start` on, held in registers while all rows pass by."""
            places = [builder.add(start, ir.Constant(_INDEX, i)) for i in range(width)]
            held = [cgutils.alloca_once(builder, _VECTOR) for _ in places]
            for place, each in zip(places, held, strict=True):
                builder.store(_load(builder, target, place), each)
            with cgutils.for_range(builder, count) as loop:
                at = builder.load(builder.gep(ats, [builder.add(first, loop.index)]))
                at = _num_vectors(builder, at)
                factor_at = builder.add(scale_at, builder.mul(loop.index, scale_step))
                factor = _broadcast(builder, builder.load(builder.gep(factors, [factor_at])))
                for place, each in zip(places, held, strict=True):
                    row = _load(builder, rows, builder.add(at, place))
                    builder.store(_multiply_add(builder, factor, row, builder.load(each)), each)
            for place, each in zip(places, held, strict=True):
                _store(builder, builder.load(each), target, place)

        num_vectors = _num_vectors(builder, n)
        num_blocks = builder.lshr(num_vectors, ir.Constant(_INDEX, _TOGETHER.bit_length() - 1))
        with cgutils.for_range(builder, num_blocks) as loop:
            block(builder.mul(loop.index, ir.Constant(_INDEX, _TOGETHER)), _TOGETHER)
        done = builder.mul(num_blocks, ir.Constant(_INDEX, _TOGETHER))
        with cgutils.for_range(builder, builder.sub(num_vectors, done)) as loop:
            block(builder.add(done, loop.index), 1)
        return context.get_dummy_value()

    i = types.int64
    return types.void(target, i, rows, row_ats, i, i, scales, i, i, i), generate


@intrinsic
def prefetch(_context, rows, at, n):
    """Ask for a row that will be needed soon."""

    def generate(context, builder, signature, arguments):
        rows, at, n = arguments
        pointer = _pointer(context, builder, signature.args[0], rows, at)
        byte = ir.IntType(8).as_pointer()
        number = ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(ir.VoidType(), [byte, number, number, number]), "llvm.prefetch.p0"
        )
        with cgutils.for_range(builder, _num_vectors(builder, n)) as loop:
            line = builder.bitcast(builder.gep(pointer, [loop.index]), byte)
            builder.call(function, [line, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(rows, types.int64, types.int64), generate
