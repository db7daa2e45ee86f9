"""Warping error: what is left of the disagreement of two masks when only the topology of one is held on to."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..arrays.checks import as_bits, seal
from ..arrays.threads import num_threads, run_all, split
from ..kernels.warping import tabulate_squares, warp_mask

__all__ = ["count_unwarped", "warp_reference"]

Mask = npt.NDArray[np.bool_] | npt.NDArray[np.uint8]

WIDE = 2**32
"""Masks of as many voxels, frame and all, get 64-bit indices."""


def warp_reference(
    reference: Mask, prediction: Mask, ignore: Mask | None, *, connectivity: int, per_slice: bool
) -> npt.NDArray[np.bool_]:
    """Return `reference`, warped towards `prediction` as far as its topology lets it.

    Simple voxels, whose change alters no topology, take the predicted value where they have another one, one after
    the other, until no voxel that differs is simple. Foreground is never split, joined, removed or made, nor is
    background (cavities), and no tunnel is opened or closed.

    Parameters
    ----------
    reference, prediction : ndarray of bool or uint8, shape (Z, Y, X)
        Foreground is what is not 0. C-ordered. Not modified.
    ignore : ndarray of bool or uint8, shape (Z, Y, X), or None
        Voxels that are not 0 do not count. They flip like the others, but only when no other voxel may: they do not
        stand in the way of a deformation, and what the topology cannot lose is left to them. What the reference holds
        there is part of its topology.
    connectivity : {6, 18, 26}
        Of the foreground. The background has 26 with 6, and 6 with 18 and 26; in a slice 8 with 4 (6), and 4 with 8 (18
        and 26).
    per_slice : bool
        Whether each slice along z is an image of its own, for the topology of the plane; else the volume is one.

    Returns
    -------
    warped : ndarray of bool, shape (Z, Y, X)

    Notes
    -----
    Outside of the volume (outside of the slice) lies background, as in scikit-image's Euler number and Fiji's warping
    error: an object that reaches the border ends there, and background that does is joined around it.

    Which voxels remain depends on the order of the flips. It is fixed (first in, first out, from raster order), so
    the result depends on nothing but the input. Slices are spread over threads; a volume is warped by one.

    Memory: 2 bytes per voxel (the result and the state, of which slices need little) and 4 bytes per voxel that
    differs, 8 from 2**32 voxels.
    """
    depth, height, width = reference.shape
    warped = np.empty(reference.shape, np.bool_)
    if reference.size == 0:
        return warped
    table = np.zeros(512 if per_slice else 0, np.bool_)
    tabulate_squares(connectivity, table)
    slices = 1 if per_slice else depth
    places = np.empty(0, np.uint32 if (slices + 2) * (height + 2) * (width + 2) < WIDE else np.int64)
    before, after = seal(as_bits(reference)), seal(as_bits(prediction))
    void = np.empty((0, height, width), np.uint8) if ignore is None else ignore
    void = seal(as_bits(void))

    def warp(part: tuple[int, int]) -> None:
        at = slice(*part)
        warp_mask(before[at], after[at], void[at], connectivity, table, places, warped[at].view(np.uint8))

    # A few parts for each thread, as some slices are harder.
    run_all(warp, split(depth, 4 * num_threads() if per_slice else 1))
    return warped


def count_unwarped(
    reference: Mask, prediction: Mask, ignore: Mask | None, *, connectivity: int, per_slice: bool
) -> tuple[int, int]:
    """Count the voxels that still disagree once `reference` is warped towards `prediction`: the warping error.

    The parameters, the topology, the frame and the ties are those of `warp_reference`.

    Returns
    -------
    wrong, counted : int
        Voxels outside `ignore` at which the warped reference differs from the prediction, and voxels outside `ignore`.
        The warping error [1]_ is their ratio.

    Notes
    -----
    `wrong` is an upper bound: the warping error is defined by the best of all deformations, and a greedy order finds
    one that no single flip improves. It is never more than the plain disagreement, and 0 where only borders have moved.

    Only the reference is warped, so the two masks are not interchangeable. An object that the prediction misses shrinks
    to one voxel, a hole that it fills too; an object or a hole that the prediction adds costs all of its voxels.

    Memory: up to 4 bytes per voxel, or `warp_reference`'s where that is more (6 if every voxel differs).

    References
    ----------
    .. [1] V. Jain et al., "Boundary Learning by Optimization with Topological Constraints", CVPR 2010.
       doi:10.1109/CVPR.2010.5539950
    """
    warped = warp_reference(reference, prediction, ignore, connectivity=connectivity, per_slice=per_slice)
    wrong = warped != (prediction != 0)
    if ignore is None:
        return int(np.count_nonzero(wrong)), wrong.size
    counts = ignore == 0
    return int(np.count_nonzero(wrong & counts)), int(np.count_nonzero(counts))
