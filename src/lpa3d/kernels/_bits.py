"""Sixty-four voxels at a time: bitmaps of comparisons, one `uint64` word each, voxel `k` in bit `k`.

Each helper is one or a few LLVM instructions on vectors of 64 elements, which LLVM turns into what the processor has
(AVX-512 masks, AVX2 or NEON compares and packs), so one source serves every element width.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

WORD = 64


def _load_vector(context, builder, array_type, array, index):
    """Load 64 elements of a contiguous 1D array from `index`; any alignment."""
    data = context.make_array(array_type)(context, builder, array).data
    vector = ir.VectorType(context.get_data_type(array_type.dtype), WORD)
    pointer = builder.bitcast(cgutils.gep(builder, data, index), vector.as_pointer())
    return builder.load(pointer, align=1)


@intrinsic
def equal_64(typingctx, array, i, j):
    """Return the bits ``array[i + k] == array[j + k]`` for k < 64; the caller has checked the bounds."""

    def codegen(context, builder, signature, args):
        a = _load_vector(context, builder, signature.args[0], args[0], args[1])
        b = _load_vector(context, builder, signature.args[0], args[0], args[2])
        return builder.bitcast(builder.icmp_unsigned("==", a, b), ir.IntType(WORD))

    return types.uint64(array, types.int64, types.int64), codegen


@intrinsic
def nonzero_64(typingctx, array, i):
    """Return the bits ``array[i + k] != 0`` for k < 64; the caller has checked the bounds."""

    def codegen(context, builder, signature, args):
        a = _load_vector(context, builder, signature.args[0], args[0], args[1])
        zero = ir.Constant(a.type, None)
        return builder.bitcast(builder.icmp_unsigned("!=", a, zero), ir.IntType(WORD))

    return types.uint64(array, types.int64), codegen


@intrinsic
def count_ones(typingctx, word):
    """Return the number of set bits of a `uint64`, as int64."""

    def codegen(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


@intrinsic
def lowest_one(typingctx, word):
    """Return the position of the lowest set bit of a `uint64` that is not 0, as int64."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen
