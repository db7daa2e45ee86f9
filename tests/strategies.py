"""Hypothesis strategies that several test files share: small volumes, and the same volume in other memory layouts."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

CONNECTIVITIES = (6, 18, 26)
INTEGER_DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")

connectivities = st.sampled_from(CONNECTIVITIES)


def shapes(min_side=1, wide=False):
    """Draw shapes ``(Z, Y, X)``: deep enough to be cut into slabs; if `wide`, also rows longer than 64 voxels."""
    small = st.tuples(st.integers(min_side, 12), st.integers(min_side, 4), st.integers(min_side, 6))
    if not wide:
        return small
    return small | st.tuples(st.integers(min_side, 3), st.integers(min_side, 3), st.integers(60, 140))


@st.composite
def class_volumes(draw, min_side=1, wide=False, max_classes=3, dtype="uint8"):
    """Draw class maps with 0 as background: voxel by voxel, which shrinks well, or noise of any density."""
    shape = draw(shapes(min_side, wide))
    classes = draw(st.integers(1, max_classes))
    if np.prod(shape) <= 24:
        return draw(hnp.arrays(dtype, shape, elements=st.integers(0, classes)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    background = random.random(shape) >= draw(st.sampled_from([0.1, 0.3, 0.6, 0.9, 1.0]))
    volume = random.integers(1, classes + 1, shape).astype(dtype)
    volume[background] = 0
    return volume


@st.composite
def laid_out(draw, arrays):
    """Draw an array, and the same values in another memory layout: order, strides, byte order, read-only."""
    array = draw(arrays)
    layout = draw(st.sampled_from(["C", "F", "strided", "reversed", "swapped", "read-only"]))
    other = array.copy()
    if layout == "F":
        other = np.asfortranarray(array)
    elif layout == "strided":
        other = np.zeros([2 * side for side in array.shape], array.dtype)[
            tuple(slice(None, None, 2) for _ in array.shape)
        ]
        other[...] = array
    elif layout == "reversed":
        other = np.flip(np.flip(array).copy())
    elif layout == "swapped":
        other = array.astype(array.dtype.newbyteorder("S"))
    elif layout == "read-only":
        other.flags.writeable = False
    return array, other
