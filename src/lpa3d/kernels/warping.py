"""Warping: a mask is changed towards another one voxel by voxel, where that changes no topology.

A neighbourhood of 3 x 3 x 3 voxels is a *cube* of 27 bits in an int64, bit ``9 * z + 3 * y + x`` for the voxel at
(z, y, x) in it. Sets of voxels in it grow by shifts, so a flood costs a few dozen instructions and no table.

Which voxel may flip (is *simple*) is decided by topological numbers (Bertrand, Malandain 1994, doi:
10.1016/0167-8655(94)90046-9): the parts of the foreground around it, and those of the background, must be one each. A
part is counted where it touches the centre, and is followed only as far as the connectivity reaches in the cube.
"""

import numpy as np

from ._bits import inlined, leaf
from ._jit import jit


def select_bits(keep):
    """Return the cube of the voxels for which ``keep(dz, dy, dx)`` is true, with offsets from -1 to 1."""
    return sum(1 << i for i in range(27) if keep(i // 9 - 1, i // 3 % 3 - 1, i % 3 - 1))


AROUND = select_bits(lambda z, y, x: (z, y, x) != (0, 0, 0))
FACES = select_bits(lambda z, y, x: abs(z) + abs(y) + abs(x) == 1)
FACES_EDGES = select_bits(lambda z, y, x: abs(z) + abs(y) + abs(x) in (1, 2))
# What may move one voxel up, or down, without leaving the cube.
X_UP, X_DOWN = select_bits(lambda z, y, x: x < 1), select_bits(lambda z, y, x: x > -1)
Y_UP, Y_DOWN = select_bits(lambda z, y, x: y < 1), select_bits(lambda z, y, x: y > -1)
Z_UP, Z_DOWN = select_bits(lambda z, y, x: z < 1), select_bits(lambda z, y, x: z > -1)

# A voxel of the state.
FOREGROUND = np.uint8(1)
DIFFERS = np.uint8(2)
QUEUED = np.uint8(4)
IGNORED = np.uint8(8)


@inlined
def grow_x(part):
    return part | (part & X_UP) << 1 | (part & X_DOWN) >> 1


@inlined
def grow_y(part):
    return part | (part & Y_UP) << 3 | (part & Y_DOWN) >> 3


@inlined
def grow_z(part):
    return part | (part & Z_UP) << 9 | (part & Z_DOWN) >> 9


@inlined
def grow(part, connectivity):
    """Return `part` and its neighbours in the cube."""
    by_x = grow_x(part)
    if connectivity == 6:
        return by_x | grow_y(part) | grow_z(part)
    if connectivity == 18:
        return grow_y(by_x) | grow_z(by_x) | grow_z(grow_y(part))
    return grow_z(grow_y(by_x))


@inlined
def is_one_part(voxels, connectivity, steps):
    """Return whether those of `voxels` that a path of at most `steps` from the centre reaches are one component."""
    if connectivity == 6:
        reached = voxels & FACES
    elif connectivity == 18:
        reached = voxels & FACES_EDGES
    else:
        reached = voxels
    for _ in range(steps - 1):
        reached = grow(reached, connectivity) & voxels
    last = 0
    part = reached & -reached
    while part != last:
        last = part
        part = grow(part, connectivity) & reached
    return part != 0 and part == reached


@leaf
def is_simple(cube, connectivity):
    """Return whether the centre of `cube` may change: foreground of `connectivity`, background of the dual one."""
    inside = cube & AROUND
    outside = ~cube & AROUND
    if connectivity == 6:
        return is_one_part(inside, 6, 2) and is_one_part(outside, 26, 1)
    if connectivity == 18:
        return is_one_part(outside, 6, 3) and is_one_part(inside, 18, 2)
    return is_one_part(outside, 6, 2) and is_one_part(inside, 26, 1)


@jit
def tabulate_squares(connectivity, table):
    """Write whether the centre of each 3 x 3 square may change in 2D, at the index of its nine bits.

    Between two slices of background, a slice has the topology of the plane: what is simple there is simple here.
    """
    for square in range(table.size):
        table[square] = is_simple(square << 9, connectivity)


@inlined
def load_row(state, i):
    """Return the foreground bits of the voxels i - 1, i, i + 1."""
    return (
        np.int64(state[i - 1] & FOREGROUND)
        | np.int64(state[i] & FOREGROUND) << 1
        | np.int64(state[i + 1] & FOREGROUND) << 2
    )


@inlined
def load_square(state, i, row):
    return load_row(state, i - row) | load_row(state, i) << 3 | load_row(state, i + row) << 6


@leaf
def may_flip(state, i, row, plane, connectivity, table):
    """Return whether voxel `i` is simple: in its slice if there is a `table`, else in the volume."""
    square = load_square(state, i, row)
    if table.size > 0:
        return table[square]
    below = load_square(state, i - plane, row)
    above = load_square(state, i + plane, row)
    return is_simple(below | square << 9 | above << 18, connectivity)


@leaf
def fill_state(reference, prediction, ignore, z, state):
    """Fill `state`, but for its frame, from slice `z` on; return how many voxels differ and count, or are ignored."""
    depth, height, width = state.shape[0] - 2, state.shape[1] - 2, state.shape[2] - 2
    counted = 0
    ignored = 0
    for dz in range(depth):
        for y in range(height):
            for x in range(width):
                value = np.uint8(0)
                inside = reference[z + dz, y, x] != 0
                if inside:
                    value = FOREGROUND
                if inside != (prediction[z + dz, y, x] != 0):
                    value |= DIFFERS
                    if ignore.size > 0 and ignore[z + dz, y, x] != 0:
                        value |= IGNORED
                        ignored += 1
                    else:
                        counted += 1
                state[dz + 1, y + 1, x + 1] = value
    return counted, ignored


@jit
def relax(state, connectivity, table, queue, counted):
    """Flip simple voxels of `state` that differ, until none is left.

    `queue` is two rings: `counted` places for voxels that count, and the rest for ignored ones. Those wait until no
    other may flip, so that what cannot flip in the end is, where there is a choice, an ignored voxel.
    """
    # First in, first out, from the voxels that are simple at the start: fronts that spread at one speed from where both
    # masks agree. Measured, as voxels left over (96 cubed, 26 neighbours in 3D): sweeps in raster order 2348 on smooth
    # blobs with smooth noise, 14547 on vesicles, 15337 on mitochondria, 166814 on white noise; this 1872, 14051, 15320,
    # 168235; last in, first out 3901, 16376, 15818, 167419; by distance from where both agree on what is wanted 1806,
    # 13968, 15312, 163859, for a distance transform more. Per slice they differ less. With a fifth of the blobs' volume
    # ignored: 1416, 1511 with one ring for all, 1599 where ignored voxels never flip.
    row = state.shape[2]
    plane = state.shape[1] * row
    state = state.reshape(-1)
    first = np.array([0, counted])
    room = np.array([counted, queue.size - counted])
    head = np.zeros(2, np.int64)
    held = np.zeros(2, np.int64)
    for i in range(state.size):
        if state[i] & DIFFERS and may_flip(state, i, row, plane, connectivity, table):
            ring = 1 if state[i] & IGNORED else 0
            queue[first[ring] + held[ring]] = i
            held[ring] += 1
    for ring in range(2):
        for k in range(held[ring]):
            state[queue[first[ring] + k]] |= QUEUED

    while held[0] + held[1] > 0:
        ring = 0 if held[0] > 0 else 1
        i = np.int64(queue[first[ring] + head[ring]])
        held[ring] -= 1
        head[ring] += 1
        if head[ring] == room[ring]:
            head[ring] = 0
        state[i] ^= QUEUED
        if not may_flip(state, i, row, plane, connectivity, table):
            continue
        state[i] ^= FOREGROUND | DIFFERS
        for dz in range(-1, 2):
            for dy in range(-1, 2):
                for j in range(i + dz * plane + dy * row - 1, i + dz * plane + dy * row + 2):
                    if state[j] & (DIFFERS | QUEUED) == DIFFERS:
                        state[j] |= QUEUED
                        ring = 1 if state[j] & IGNORED else 0
                        tail = head[ring] + held[ring]
                        queue[first[ring] + (tail if tail < room[ring] else tail - room[ring])] = j
                        held[ring] += 1


@jit
def warp_mask(reference, prediction, ignore, connectivity, table, places, warped):
    """Write `reference`, warped towards `prediction`, to `warped`: slice by slice if there is a `table`.

    `ignore` has no voxels where there is none. `places` has none: its dtype is that of flat indices.
    """
    depth, height, width = reference.shape
    step = 1 if table.size > 0 else depth
    state = np.zeros((step + 2, height + 2, width + 2), np.uint8)
    for z in range(0, depth, step):
        counted, ignored = fill_state(reference, prediction, ignore, z, state)
        if counted + ignored > 0:
            relax(state, connectivity, table, np.empty(counted + ignored, places.dtype), counted)
        for dz in range(step):
            for y in range(height):
                for x in range(width):
                    warped[z + dz, y, x] = state[dz + 1, y + 1, x + 1] & FOREGROUND
