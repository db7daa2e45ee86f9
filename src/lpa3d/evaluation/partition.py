"""Partition metrics: how often two voxels are together on one side and apart on the other; pure functions of a table.

Stages
------
1. *Select*: the rows whose voxels count; where predicted background is no segment, each voxel of it becomes one.
2. *Sum*: pairs of voxels as exact integers, entropies as exactly rounded sums of floats, so that neither the order of
   the rows nor the names of the labels change the last bit.
3. *Score*: one expression each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache, partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..arrays.overlap import Overlaps
from ..kernels.overlap import VOID
from .conventions import Convention

__all__ = ["score_partition"]

Ints = npt.NDArray[np.int64]

LIMB = 21
"""Bits of the limbs in which products are summed; three hold an int64."""


class Sums(NamedTuple):
    """Sums over the voxels that count; pairs of voxels are ordered, and each voxel pairs with itself too."""

    voxels: int
    both: int
    """Pairs in one object on both sides."""
    reference: int
    """Pairs in one reference object."""
    predicted: int
    """Pairs in one predicted object."""
    split: float
    """Entropy of the prediction given the reference, in bits."""
    merge: float
    """Entropy of the reference given the prediction, in bits."""
    joint: float
    """Entropy of both together, in bits."""
    apart: float
    """Sum of the entropies of either side, in bits."""


def score_partition(overlaps: Overlaps, convention: Convention) -> dict[str, float]:
    """Score a prediction as a partition of the voxels: which voxels are together, whatever the objects' ids.

    Parameters
    ----------
    overlaps : Overlaps
        Table of n_ij, the voxels of reference object i and predicted object j. Rows with the reference id `VOID` are
        left out first.
    convention : Convention
        Which background voxels count, and how; see Notes.

    Returns
    -------
    dict of str to float
        With s_i = sum_j n_ij, t_j = sum_i n_ij and N = sum_ij n_ij of the voxels that count, and pairs drawn without
        replacement, n (n - 1) of n voxels:

        ``rand_index``, ``rand_error``
            Share of the pairs on which both sides agree, together or apart, and 1 minus it.
        ``arand``
            Adapted Rand error, 0 is perfect: 1 minus the harmonic mean of `rand_split` and `rand_merge`.
        ``rand_split``
            Share of the pairs together in the reference that the prediction keeps together. It falls when reference
            objects are cut; joining alone leaves it at 1.
        ``rand_merge``
            Share of the pairs together in the prediction that belong together in the reference. It falls when
            reference objects are joined; cutting alone leaves it at 1.
        ``voi_split``, ``voi_merge``, ``voi``
            Variation of information in bits, 0 is perfect: H(prediction | reference), which grows when objects are
            cut, H(reference | prediction), which grows when they are joined, and their sum.
        ``nvi``
            `voi` over the joint entropy, from 0 (perfect) to 1.
        ``v_rand``
            ``sum n_ij**2 / (sum s_i**2 / 2 + sum t_j**2 / 2)``, 1 is perfect; pairs with replacement.
        ``v_info``
            Mutual information over the mean of both entropies, 1 is perfect.
        ``cremi``
            ``sqrt(arand * voi)``, 0 is perfect.

    Notes
    -----
    In the convention ``"lpa3d"``, reference background is left out everywhere, and predicted background is one more
    segment. What is predicted on reference background alone is then no error, and a reference of one object is met
    perfectly by an empty prediction: see the instance metrics for missed and spurious objects.

    Where there is nothing to be wrong about, the score is perfect. `rand_split` is 1 without pairs in the reference,
    `rand_merge` without pairs in the prediction, all others where neither side has pairs, or entropy. If only one side
    has entropy, `v_info` is 0 and `nvi` 1; if only one side has pairs, `arand` is 1. A table without counted voxels is
    perfect in every metric.

    Equal partitions score exactly 0 or 1. Pairs are counted as integers and divided once; `nvi` and `v_info` are kept
    in their range where rounding would leave it. Memory is about 120 bytes per row.

    References
    ----------
    .. [1] W. M. Rand, "Objective criteria for the evaluation of clustering methods", J. Am. Stat. Assoc. 66 (1971).
       https://doi.org/10.2307/2284239
    .. [2] M. Meilă, "Comparing clusterings: an information based distance", J. Multivar. Anal. 98 (2007).
       https://doi.org/10.1016/j.jmva.2006.11.013
    .. [3] I. Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation algorithms for connectomics",
       Front. Neuroanat. 9 (2015). https://doi.org/10.3389/fnana.2015.00142
    """
    sums = cache(partial(_sum_rows, overlaps))
    background = convention.predicted_background

    rand = sums(convention.rand_zeros, background)
    wrong = rand.reference + rand.predicted - 2 * rand.both
    pairs = rand.voxels * (rand.voxels - 1)

    together, reference, predicted = _adapt_pairs(overlaps, convention, sums)
    arand = _divide(reference + predicted - 2 * together, reference + predicted, 0.0)

    information = sums(convention.voi_zeros, background)
    voi = information.split + information.merge

    v = sums(convention.v_zeros, background)
    return {
        "rand_index": _divide(pairs - wrong, pairs, 1.0),
        "rand_error": _divide(wrong, pairs, 0.0),
        "arand": arand,
        "rand_split": _divide(together, reference, 1.0),
        "rand_merge": _divide(together, predicted, 1.0),
        "voi_split": information.split,
        "voi_merge": information.merge,
        "voi": voi,
        "nvi": min(voi / information.joint, 1.0) if information.joint else 0.0,
        "v_rand": _divide(2 * v.both, v.reference + v.predicted, 1.0),
        # The mutual information is half of what the entropies have over the variation of information.
        "v_info": max(1 - (v.split + v.merge) / v.apart, 0.0) if v.apart else 1.0,
        "cremi": math.sqrt(arand * voi),
    }


def _adapt_pairs(
    overlaps: Overlaps, convention: Convention, sums: Callable[[str, str], Sums]
) -> tuple[Fraction, Fraction, Fraction]:
    """Return the pairs together on both sides, in the reference and in the prediction, as `arand` counts them."""
    if convention.arand_pairs != "snemi3d":
        total = sums(convention.arand_zeros, convention.predicted_background)
        own = total.voxels if convention.arand_pairs == "distinct" else 0
        return Fraction(total.both - own), Fraction(total.reference - own), Fraction(total.predicted - own)
    total = sums(convention.arand_zeros, "segment")
    background = overlaps.voxels[_counts(overlaps, convention.arand_zeros) & (overlaps.pairs[:, 1] == 0)]
    size = sum(background.tolist())
    everything = sum(overlaps.voxels[_counts(overlaps, "none")].tolist())
    # The script divides by the size of the whole volume what it has not divided elsewhere.
    share = Fraction(size, everything or 1)
    both = total.both - _sum_products(background, background) + share
    return both, Fraction(total.reference), total.predicted - size**2 + share


def _counts(overlaps: Overlaps, zeros: str) -> npt.NDArray[np.bool_]:
    """Flag the rows whose voxels count."""
    reference, predicted = overlaps.pairs.T
    rows: npt.NDArray[np.bool_] = reference != VOID
    if zeros in ("reference", "both"):
        rows &= reference != 0
    if zeros in ("prediction", "both"):
        rows &= predicted != 0
    return rows


def _sum_rows(overlaps: Overlaps, zeros: str, predicted_background: str) -> Sums:
    """Sum over the rows that count; see `Convention` for the arguments."""
    rows = _counts(overlaps, zeros)
    pairs, voxels = overlaps.pairs[rows], overlaps.voxels[rows]
    shared, reference, predicted = voxels, _sizes(pairs[:, 0], voxels), _sizes(pairs[:, 1], voxels)
    if predicted_background == "singletons":
        alone = pairs[:, 1] == 0
        shared, predicted = np.where(alone, 1, shared), np.where(alone, 1, predicted)
    total = int(voxels.sum())
    # Quotients of at least 1, so that no term is negative and none cancels.
    split, merge = np.log2(reference / shared), np.log2(predicted / shared)
    joint, apart = np.log2(total / shared), np.log2(total / reference) + np.log2(total / predicted)
    return Sums(
        total,
        *(_sum_products(voxels, sizes) for sizes in (shared, reference, predicted)),
        *(math.fsum(voxels * bits) / (total or 1) for bits in (split, merge, joint, apart)),
    )


def _sizes(ids: Ints, voxels: Ints) -> Ints:
    """Return for each row the voxels of all rows with its id."""
    order = np.argsort(ids, kind="stable")
    starts = np.flatnonzero(np.diff(ids[order], prepend=-2))
    sizes = np.empty_like(voxels)
    sizes[order] = np.repeat(np.add.reduceat(voxels[order], starts), np.diff(starts, append=len(ids)))
    return sizes


def _sum_products(a: Ints, b: Ints) -> int:
    """Return the sum of the products of non-negative integers, exact whatever their size."""
    # At most 2**20 products below 2**42 are added at once.
    starts = np.arange(0, len(a), 2**20)
    total = 0
    for i, x in enumerate(_limbs(a)):
        for j, y in enumerate(_limbs(b)):
            total += sum(np.add.reduceat(x * y, starts).tolist()) << LIMB * (i + j)
    return total


def _limbs(values: Ints) -> Iterator[Ints]:
    """Yield the digits of `values` in base ``2**LIMB``, the lowest first."""
    while values.any():
        yield values & (2**LIMB - 1)
        values = values >> LIMB


def _divide(part: int | Fraction, whole: int | Fraction, empty: float) -> float:
    """Return the quotient, rounded once, or `empty` where `whole` is 0."""
    return float(Fraction(part) / whole) if whole else empty
