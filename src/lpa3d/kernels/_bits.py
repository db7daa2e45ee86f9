"""Many voxels at a time: comparisons of 64 voxels as the bits of a `uint64`, voxel k in bit k; stores of 16 voxels.

Each is one or a few LLVM instructions on whole vectors, which LLVM turns into what the processor has (AVX-512 masks,
AVX2 or NEON compares and packs), so one source serves every element width. None checks bounds.

*Raw* arrays are flat ones as their bytes, with the kind of their elements beside them (`as_raw` and `as_numbers` of
`lpa3d.arrays.checks`): a kernel of three arrays is compiled once, not for each triple of dtypes. The kind of ids is
the number of their bytes (8 bytes are read as int64); that of other numbers is negative for signed integers, and 16
more for floats. The branch on it goes the same way throughout a call, so the processor foresees it; that suits what is
done once for 64 voxels, or once for a run.
"""

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from ._jit import compile_kernel

WORD = 64
LANES = 16


def leaf(function):
    """Compile `function` as a helper that kernels call, without reference counts.

    Numba counts the references to each array that a function is called with, in atomic instructions; around short calls
    in a loop they took half of the time.
    """
    return compile_kernel(function, _nrt=False)


def inlined(function):
    """Compile `function` like `leaf`, and make LLVM inline it (``inline="always"`` would type it anew at each call)."""
    return compile_kernel(function, _nrt=False, forceinline=True)


def _load_vector(context, builder, array_type, array, index):
    """Load 64 elements of a contiguous 1D array from `index`; any alignment."""
    data = context.make_array(array_type)(context, builder, array).data
    vector = ir.VectorType(context.get_data_type(array_type.dtype), WORD)
    pointer = builder.bitcast(cgutils.gep(builder, data, index), vector.as_pointer())
    return builder.load(pointer, align=1)


@intrinsic
def equal_64(typingctx, array, i, j):
    """Return the bits ``array[i + k] == array[j + k]`` for k < 64."""

    def codegen(context, builder, signature, args):
        a = _load_vector(context, builder, signature.args[0], args[0], args[1])
        b = _load_vector(context, builder, signature.args[0], args[0], args[2])
        return builder.bitcast(builder.icmp_unsigned("==", a, b), ir.IntType(WORD))

    return types.uint64(array, types.int64, types.int64), codegen


def _choose_kind(context, builder, data, kind, kinds, result, emit):
    """Return what ``emit(elements, kind)`` makes of the bytes as a pointer to elements, by the `kind` at run time."""
    base = context.make_array(types.Array(types.uint8, 1, "C", readonly=True))(context, builder, data).data
    after = builder.append_basic_block("after")
    blocks = [builder.append_basic_block(f"kind{k}") for k in range(len(kinds))]
    choice = builder.switch(kind, blocks[-1])
    for one, block in zip(kinds[:-1], blocks, strict=False):
        choice.add_case(ir.Constant(ir.IntType(64), one), block)
    ends = []
    for one, block in zip(kinds, blocks, strict=True):
        builder.position_at_end(block)
        if one in _FLOATS:
            element = ir.FloatType() if one == _FLOATS[0] else ir.DoubleType()
        else:
            element = ir.IntType(8 * abs(one))
        value = emit(builder.bitcast(base, element.as_pointer()), one)
        ends.append((value, builder.basic_block))
        builder.branch(after)
    builder.position_at_end(after)
    phi = builder.phi(result)
    for value, block in ends:
        phi.add_incoming(value, block)
    return phi


_WIDTHS = (1, 2, 4, 8)
_FLOATS = (20, 24)


@intrinsic
def equal_raw_64(typingctx, data, kind, i, j):
    """Return the bits ``array[i + k] == array[j + k]`` for k < 64 of raw ids."""

    def codegen(context, builder, signature, args):
        def emit(elements, width):
            vector = ir.VectorType(ir.IntType(8 * width), WORD).as_pointer()
            a, b = (
                builder.load(builder.bitcast(cgutils.gep(builder, elements, at), vector), align=1) for at in args[2:]
            )
            return builder.bitcast(builder.icmp_unsigned("==", a, b), ir.IntType(WORD))

        return _choose_kind(context, builder, args[0], args[1], _WIDTHS, ir.IntType(WORD), emit)

    return types.uint64(data, types.int64, types.int64, types.int64), codegen


@intrinsic
def load_id(typingctx, data, kind, i):
    """Return ``array[i]`` of raw ids, as int64."""

    def codegen(context, builder, signature, args):
        def emit(elements, width):
            value = builder.load(cgutils.gep(builder, elements, args[2]))
            return value if width == 8 else builder.zext(value, ir.IntType(64))

        return _choose_kind(context, builder, args[0], args[1], _WIDTHS, ir.IntType(64), emit)

    return types.int64(data, types.int64, types.int64), codegen


@intrinsic
def load_number(typingctx, data, kind, i):
    """Return ``array[i]`` of raw numbers, as float64."""

    def codegen(context, builder, signature, args):
        def emit(elements, one):
            value = builder.load(cgutils.gep(builder, elements, args[2]))
            if one in _FLOATS:
                return value if one == _FLOATS[1] else builder.fpext(value, ir.DoubleType())
            return (builder.sitofp if one < 0 else builder.uitofp)(value, ir.DoubleType())

        kinds = (*_WIDTHS, *(-width for width in _WIDTHS), *_FLOATS)
        return _choose_kind(context, builder, args[0], args[1], kinds, ir.DoubleType(), emit)

    return types.float64(data, types.int64, types.int64), codegen


@intrinsic
def nonzero_64(typingctx, array, i):
    """Return the bits ``array[i + k] != 0`` for k < 64."""

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


@intrinsic
def store_16(typingctx, array, i, value):
    """Write `value` to ``array[i : i + 16]``."""

    def codegen(context, builder, signature, args):
        array_type = signature.args[0]
        data = context.make_array(array_type)(context, builder, args[0]).data
        vector = ir.VectorType(context.get_data_type(array_type.dtype), LANES)
        pointer = builder.bitcast(cgutils.gep(builder, data, args[1]), vector.as_pointer())
        one = builder.insert_element(ir.Constant(vector, ir.Undefined), args[2], ir.Constant(ir.IntType(32), 0))
        splat = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), LANES), None))
        builder.store(splat, pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.int64, array.dtype), codegen


if numba.config.DISABLE_JIT:
    # The same for one who steps through kernels or measures which of their lines run (``NUMBA_DISABLE_JIT=1``).

    def _pack_bits(bits):
        return np.uint64(int.from_bytes(np.packbits(bits, bitorder="little").tobytes(), "little"))

    def equal_64(array, i, j):
        return _pack_bits(array[i : i + WORD] == array[j : j + WORD])

    def _view_raw(data, kind):
        letter = "u" if kind > 0 else "i"
        return data.view(np.dtype(f"f{kind - 16}" if kind in _FLOATS else f"{letter}{abs(kind)}"))

    def equal_raw_64(data, kind, i, j):
        return equal_64(_view_raw(data, kind), i, j)

    def load_id(data, kind, i):
        return np.int64(_view_raw(data, kind)[i].astype(np.int64))

    def load_number(data, kind, i):
        return np.float64(_view_raw(data, kind)[i])

    def nonzero_64(array, i):
        return _pack_bits(array[i : i + WORD] != 0)

    def count_ones(word):
        return np.int64(int(word).bit_count())

    def lowest_one(word):
        return np.int64((int(word) & -int(word)).bit_length() - 1)

    def store_16(array, i, value):
        array[i : i + LANES] = value
