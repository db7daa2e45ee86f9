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
def _tiled_volumes(draw):
    volume = draw(class_volumes(wide=True))
    # Few tiles of one voxel and few of many, so that the number of tiles stays small.
    least = 1 if volume.size <= 300 else 2
    return volume, tuple(draw(st.integers(min(least, side), side + 2)) for side in volume.shape)


tiled_volumes = _tiled_volumes()
"""Class maps, each with the shape of its tiles: from single voxels to more than the volume."""


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


def moving_blobs(random, *, classes=1, pooled=False, depth=13, side=26, gap=4):
    """Return (volume, instances): blobs packed side by side that drift together along z.

    Blobs begin and end anywhere along z, so that some are seen on one annotated slice of two. Where `pooled`, several
    blobs share an id.
    """
    radius = random.uniform(2.2, 3.6)
    speed = random.choice([0.6, 1.0, 1.5]) * np.array([np.cos(turn := random.uniform(0, 2 * np.pi)), np.sin(turn)])
    margin = int(depth * 1.5)
    grid = np.stack(np.meshgrid(*[np.arange(-margin, side + margin, 2 * radius)] * 2, indexing="ij"), -1).reshape(-1, 2)
    places = grid + random.uniform(-1, 1, grid.shape)
    own = random.normal(0, 0.15, grid.shape)
    starts = random.integers(-2 * depth, depth, len(grid))
    stops = starts + random.integers(gap, 3 * depth, len(grid))
    kinds = random.integers(1, classes + 1, len(grid))
    y, x = np.indices((side, side))
    volume = np.zeros((depth, side, side), dtype=np.uint8)
    instances = np.zeros((depth, side, side), dtype=np.int64)
    for z in range(depth):
        at = places + z * (speed + own)
        there = (z >= starts) & (z <= stops) & (np.abs(at - side / 2) < side / 2 + 2 * radius).all(axis=1)
        blobs = np.flatnonzero(there)
        d = np.hypot(y[..., None] - at[blobs, 0], x[..., None] - at[blobs, 1])
        nearest = blobs[d.argmin(axis=2)] if len(blobs) else np.zeros((side, side), dtype=np.int64)
        inside = d.min(axis=2, initial=np.inf) <= radius * 1.15
        instances[z][inside] = nearest[inside] + 1
        volume[z][inside] = kinds[nearest[inside]]
    if pooled:
        # Blobs of one class that share an id; a class per residue keeps an id on one class.
        blobs = np.arange(len(grid))
        instances[instances > 0] = (kinds + classes * (blobs % 4))[instances[instances > 0] - 1]
    return volume, instances


def annotate_blobs(seed):
    """Return keywords of `propagate`: moving blobs across any axis, labelled on every few slices, and all options."""
    random = np.random.default_rng(seed)

    def one_of(*choices):
        return choices[random.integers(len(choices))]

    gap = one_of(3, 4, 5)
    volume, instances = moving_blobs(
        random, classes=one_of(1, 2), pooled=one_of(False, False, True), depth=one_of(9, 10, 12), side=22, gap=gap
    )
    seeds = np.zeros_like(instances)
    kept = slice(one_of(0, 1, 2), None, gap)
    seeds[kept] = instances[kept]
    if one_of(False, True):
        # An annotator who left out some blobs on some slices, and clicked between slices.
        seeds[(instances + np.arange(len(seeds))[:, None, None]) % 7 == 0] = 0
        clicks = np.unravel_index(random.choice(seeds.size, 3), seeds.shape)
        seeds[clicks] = instances[clicks]
    spacing = one_of((1, 1, 1), (1, 1, 1), (2, 1, 1), (1, 1.3, 1), (5, 1, 1.6))
    order = tuple(random.permutation(3).tolist())
    volume, seeds = (np.ascontiguousarray(array.transpose(order)) for array in (volume, seeds))
    arguments = {
        "volume": volume,
        "seeds": seeds,
        "spacing": tuple(spacing[k] for k in order),
        "connectivity": one_of(*CONNECTIVITIES),
        "sweeps": one_of(None, None, None, 0, 3),
        "slice_axis": one_of("auto", "auto", order.index(0)),
        "unseeded": one_of("drop", "label"),
    }
    if one_of(False, False, True):
        arguments["cost"] = random.choice([0, 0.5, 1, 7.3], volume.shape)
    if one_of(False, False, False, True):
        arguments["max_distance"] = one_of(0, 1, 2.5, 6)
    if one_of(False, False, False, True):
        arguments["missing_slices"] = [int(random.integers(volume.shape[0]))]
    return arguments


# All follows from one number: such volumes would not shrink to anything smaller that still shows a failure.
annotated_blobs = st.integers(0, 2**32 - 1).map(annotate_blobs)
