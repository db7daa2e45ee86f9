"""Instance metrics: matching, panoptic quality, average precision and aggregated Jaccard, from a table of overlaps.

Stages
------
1. *Tabulate*: ids and sizes of both sides, and the intersection over union (IoU) of every overlapping pair.
2. *Match*: pairs that pass a threshold, one-to-one.
3. *Score*: counts and ratios of the matched pairs; rankings and aggregates go by the overlapping pairs directly.

Voxels of `VOID` are in no size, overlap or union. A prediction of which more than half of all its voxels are void is
*not counted*: it may match, but unmatched it is no error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.overlap import Overlaps
from ..arrays.pairs import flag_first
from ..kernels.matching import match_rows
from ..kernels.overlap import VOID
from .conventions import Convention

__all__ = [
    "Instances",
    "list_matches",
    "match",
    "score_aggregated",
    "score_matching",
    "score_ranking",
    "tabulate_instances",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Strata = tuple[float, float]

RECALLS = np.linspace(0, 1, 101)
"""COCO's recall points; some are one rounding above j / 100, and a recall of exactly j / 100 does not reach those."""

GAIN_BITS = 60
"""Gains of the matching kernel are integers up to 2**GAIN_BITS."""


@dataclass(frozen=True, eq=False, slots=True)
class Instances:
    """Instances of both sides and their overlaps, without void voxels.

    Attributes
    ----------
    reference, predicted : (n,) int64, (m,) int64
        Ids, ascending. A reference id whose voxels are all void is in no row of the table and so is not here.
    reference_sizes, predicted_sizes : (n,) int64, (m,) int64
        Voxels outside void; 0 for a prediction that lies all in void.
    void_voxels : (m,) int64
        Voxels of each prediction in void.
    pairs : (p, 2) int64
        Positions in `reference` and in `predicted` of the pairs that share voxels, sorted.
    voxels : (p,) int64
        Voxels they share.
    iou : (p,) float64
        Shared voxels over those of the union, above 0 and at most 1, rounded once.
    """

    reference: Ints
    predicted: Ints
    reference_sizes: Ints
    predicted_sizes: Ints
    void_voxels: Ints
    pairs: Ints
    voxels: Ints
    iou: Floats

    @property
    def counted(self) -> Flags:
        """Whether each prediction is an error if it stays unmatched: at most half of all its voxels are void."""
        return self.void_voxels <= self.predicted_sizes


def tabulate_instances(overlaps: Overlaps) -> Instances:
    """Return the instances that `overlaps` counts: ids above 0."""
    reference_ids, predicted_ids = overlaps.pairs.T
    reference, predicted = _sort_ids(reference_ids), _sort_ids(predicted_ids)
    rows = np.searchsorted(reference, reference_ids)
    columns = np.searchsorted(predicted, predicted_ids)
    is_reference, is_predicted, is_void = reference_ids > 0, predicted_ids > 0, reference_ids == VOID
    reference_sizes = _add(rows, overlaps.voxels, is_reference, len(reference))
    predicted_sizes = _add(columns, overlaps.voxels, is_predicted & ~is_void, len(predicted))
    void_voxels = _add(columns, overlaps.voxels, is_predicted & is_void, len(predicted))
    both = is_reference & is_predicted
    pairs, voxels = np.stack([rows[both], columns[both]], axis=1), overlaps.voxels[both]
    iou = voxels / (reference_sizes[pairs[:, 0]] + predicted_sizes[pairs[:, 1]] - voxels)
    return Instances(reference, predicted, reference_sizes, predicted_sizes, void_voxels, pairs, voxels, iou)


def _sort_ids(ids: Ints) -> Ints:
    """Return the distinct ids above 0, ascending."""
    ids = np.sort(ids[ids > 0])
    return ids[flag_first(ids)]


def _add(places: Ints, voxels: Ints, take: Flags, size: int) -> Ints:
    """Return the voxels of the rows to `take`, summed by place."""
    # In float64, exact below 2**53 voxels.
    return np.bincount(places[take], voxels[take], size).astype(np.int64)


def match(instances: Instances, threshold: float, convention: Convention) -> Ints:
    """Match instances one-to-one whose IoU passes `threshold`.

    Parameters
    ----------
    instances : Instances
        From `tabulate_instances`.
    threshold : float
        The IoU that a match needs to be above (``convention.strict``) or at least to reach, 0 to 1.
    convention : Convention
        Uses `strict` and `matching`.

    Returns
    -------
    (k,) int64
        Rows of ``instances.pairs``, ascending: of all one-to-one choices among the pairs that pass, one with the
        most matches, and among those one with the largest sum of IoU; under ``matching="iou"`` the largest sum alone.

    Notes
    -----
    Above an IoU of 0.5 every pair that passes is a match, since the voxels of the two are mostly shared. Otherwise the
    assignment is solved exactly over the overlapping pairs (`kernels.matching`), so instances that share no voxel never
    match, at threshold 0 either. Each group of connected pairs is on its own, and time is nearly linear where groups
    are small. Sums of IoU are compared with a resolution of 2**-60 times the number of matches at stake, 2**-40 for
    10**6 of them.

    Ties: equal sums go to one and the same assignment wherever the ids have the same order; two references that compete
    for one prediction at equal IoU leave it to the smaller id, and so do two predictions.
    """
    passes = np.flatnonzero(instances.iou > threshold if convention.strict else instances.iou >= threshold)
    if threshold > 0.5 or (threshold == 0.5 and convention.strict):
        return passes
    if convention.matching == "iou":
        return passes[_assign(instances, passes, 0)]
    # One more match outweighs any sum of IoU that is lost elsewhere.
    most = min(map(len, (passes, instances.reference, instances.predicted)))
    return passes[_assign(instances, passes, most + 1)]


def _assign(instances: Instances, candidates: Ints, base: int) -> Ints:
    """Return positions in `candidates` of one-to-one pairs with the largest sum of `base` + IoU."""
    rows, columns = instances.pairs[candidates].T
    starts = np.searchsorted(rows, np.arange(len(instances.reference) + 1))
    scale = 1 << (GAIN_BITS - base.bit_length())
    gains = np.rint(instances.iou[candidates] * scale).astype(np.int64) + base * scale
    mates = np.empty(len(instances.reference), np.int64)
    match_rows(starts, np.ascontiguousarray(columns), gains, len(instances.predicted), mates)
    return mates[mates >= 0]


def list_matches(instances: Instances, matched: Ints) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of the table of matched pairs: both ids, shared voxels, IoU; sorted by reference id."""
    rows, columns = instances.pairs[matched].T
    return {
        "reference": instances.reference[rows],
        "prediction": instances.predicted[columns],
        "voxels": instances.voxels[matched],
        "iou": instances.iou[matched],
    }


def score_matching(instances: Instances, matched: Ints, convention: Convention) -> dict[str, float]:
    """Score one matching: panoptic quality, F1, precision, recall and their counts.

    Parameters
    ----------
    instances : Instances
        From `tabulate_instances`.
    matched : (k,) int64
        From `match`.
    convention : Convention
        Uses `empty`.

    Returns
    -------
    dict
        ``pq = sq * rq``, ``sq`` (mean IoU of the matches), ``rq = f1 = tp / (tp + fp / 2 + fn / 2)``,
        ``precision_instance = tp / (tp + fp)``, ``recall_instance = tp / (tp + fn)``, and the integers ``tp``
        (matches), ``fp`` (unmatched predictions that are counted), ``fn`` (unmatched references).

    Notes
    -----
    0/0: all ratios are ``convention.empty`` where neither side has an instance to count, and 0 where only one has;
    ``sq`` is 0 without a match.
    """
    free = instances.counted
    free[instances.pairs[matched, 1]] = False
    tp, fp, fn = len(matched), int(free.sum()), len(instances.reference) - len(matched)
    total = math.fsum(instances.iou[matched])
    errors = (fp + fn) / 2

    def share(part: float, whole: float) -> float:
        if tp + fp + fn == 0:
            return convention.empty
        return part / whole if part else 0.0

    f1 = share(tp, tp + errors)
    return {
        "pq": share(total, tp + errors),
        "sq": share(total, tp),
        "rq": f1,
        "f1": f1,
        "precision_instance": share(tp, tp + fp),
        "recall_instance": share(tp, tp + fn),
        "tp": tp,
        "fp": fp,
        "fn": fn,
    }


def score_ranking(
    instances: Instances, scores: Floats | None, convention: Convention, strata: Strata | None
) -> dict[str, float]:
    """Score predictions in the order of their confidence: COCO's average precision (AP).

    Parameters
    ----------
    instances : Instances
        From `tabulate_instances`.
    scores : (m,) float64 or None
        Confidence of each of ``instances.predicted``, higher is surer. None ranks by size outside void, as MitoEM does.
    convention : Convention
        Uses `size_strata` and the fields that begin with ``ap_``.
    strata : (float, float) or None
        Sizes in voxels that part small from medium and medium from large instances, the smaller one first. None means
        ``convention.size_strata``.

    Returns
    -------
    dict
        ``ap50``, ``ap75`` and ``map``, the mean over the thresholds 0.50, 0.55, ..., 0.95; where there are strata, also
        each of them with ``_small``, ``_medium`` and ``_large`` appended.

    Notes
    -----
    At each threshold, predictions in descending order of score, equal ones in ascending order of id, take the free
    reference of the largest IoU that reaches it (``>=``, whatever ``convention.strict``); of two references, which can
    tie at exactly 0.5 only, the one inside the stratum, then the larger id (COCO). AP is the mean, over 101 recalls 0,
    0.01, ..., 1, of the best precision at that recall or a higher one; 0 where it is never reached. Unlike in COCO,
    there is no limit of 100 predictions.

    In a stratum, references of other sizes count neither as found nor as missed, and neither do the predictions that
    match them, nor unmatched predictions of other sizes.

    Under ``ap_matching="best"`` (MitoEM), each prediction takes its reference of largest IoU whether free or not, in a
    stratum among the references inside if it touches any. Several may then match one reference, at exactly 0.5.

    0/0: without references, AP is ``convention.ap_absent``; if that is None, 1 at a threshold at which no prediction is
    an error, else 0.
    """
    keys = -(instances.predicted_sizes if scores is None else scores)
    order = np.argsort(keys, kind="stable")
    candidates = _list_candidates(instances, order, convention)
    ranges = {"": (-math.inf, math.inf)}
    limits = convention.size_strata if strata is None else strata
    if limits is not None:
        small, large = limits
        ranges |= {"_small": (-math.inf, small), "_medium": (small, large), "_large": (large, math.inf)}
    result: dict[str, float] = {}
    for suffix, (low, high) in ranges.items():
        wanted = _is_within(instances.reference_sizes, low, high, convention)
        countable = _is_within(instances.predicted_sizes, low, high, convention) & instances.counted
        taken = _take_references(instances, candidates, wanted)
        iou = np.zeros(len(instances.predicted))
        iou[instances.pairs[taken, 1]] = instances.iou[taken]
        right = np.zeros(len(instances.predicted), np.bool_)
        right[instances.pairs[taken, 1]] = wanted[instances.pairs[taken, 0]]
        found, countable, right = iou[order], countable[order], right[order]
        curve = []
        for threshold in convention.ap_thresholds:
            hits = found >= threshold
            # Those that match something outside the stratum are left out of the ranking.
            ranked = np.where(hits, right, countable)
            curve.append(_average_precision(hits[ranked], int(wanted.sum()), convention))
        result |= {f"ap50{suffix}": curve[0], f"ap75{suffix}": curve[5], f"map{suffix}": math.fsum(curve) / len(curve)}
    return result


def _is_within(sizes: Ints, low: float, high: float, convention: Convention) -> Flags:
    """Return whether sizes lie between two limits; the upper one is inside, the lower one if the convention says so."""
    above = sizes >= low if convention.ap_strata == "closed" else sizes > low
    return above & (sizes <= high)


def _list_candidates(instances: Instances, order: Ints, convention: Convention) -> Ints:
    """Return rows of the pairs that a prediction may take; of equal IoU it takes the one listed first."""
    if convention.ap_matching == "best":
        return np.arange(len(instances.pairs))
    candidates = np.flatnonzero(instances.iou >= 0.5)
    rows, columns = instances.pairs[candidates].T
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    # Two predictions reach 0.5 with one reference only if they are its halves and overlap nothing else, so the first of
    # them in the ranking has it whatever else is matched.
    by_rank = np.lexsort((rank[columns], rows))
    return candidates[by_rank[flag_first(rows[by_rank])]][::-1]


def _take_references(instances: Instances, candidates: Ints, wanted: Flags) -> Ints:
    """Return for each prediction the best of its candidates whose reference is wanted, else the best of all."""
    rows, columns = instances.pairs[candidates].T
    served = np.zeros(len(instances.predicted), np.bool_)
    served[columns[wanted[rows]]] = True
    candidates = candidates[wanted[rows] | ~served[columns]]
    columns = instances.pairs[candidates, 1]
    best = _flag_largest(columns, instances.iou[candidates], len(instances.predicted))
    return candidates[best][np.unique(columns[best], return_index=True)[1]]


def _flag_largest(groups: Ints, values: npt.NDArray[Any], size: int) -> Flags:
    """Return whether each of `values` is the largest of its group, one of `size`."""
    largest = np.zeros(size, values.dtype)
    np.maximum.at(largest, groups, values)
    flags: Flags = values == largest[groups]
    return flags


def _average_precision(hits: Flags, references: int, convention: Convention) -> float:
    """Return the AP of a ranking of hits and misses, given how many hits there could be."""
    if not references:
        if convention.ap_absent is not None:
            return convention.ap_absent
        return 0.0 if len(hits) else 1.0
    places = np.flatnonzero(hits)
    counts = np.arange(1, len(places) + 1)
    precision = np.maximum.accumulate((counts / (places + 1))[::-1])[::-1]
    reached = np.searchsorted(counts / references, RECALLS)
    return math.fsum(precision[reached[reached < len(precision)]]) / len(RECALLS)


def score_aggregated(instances: Instances, convention: Convention) -> dict[str, float]:
    """Score the shared voxels of all pairs together: the aggregated Jaccard index, AJI and AJI+.

    Parameters
    ----------
    instances : Instances
        From `tabulate_instances`.
    convention : Convention
        Uses `empty`.

    Returns
    -------
    dict
        ``aji``: every reference takes the prediction of its largest IoU, which may serve several. ``aji_plus``: pairs
        are one-to-one with the largest sum of IoU. Each is the sum of the shared voxels of the pairs over the sum of
        their unions and of the sizes of references without a pair and of counted predictions without one.

    Notes
    -----
    Ties of IoU go to the larger overlap, then to the smaller predicted id; ties between one-to-one choices as in
    `match`. Any overlap can make a pair, so dense segmentations form one group of connected pairs; the search for the
    best choice stays local all the same (`kernels.matching`).

    0/0: ``convention.empty`` where neither side has an instance to count; 0 where only one has.

    References
    ----------
    Kumar, N., et al. (2017). A dataset and a technique for generalized nuclear segmentation for computational
    pathology. IEEE Transactions on Medical Imaging 36. https://doi.org/10.1109/TMI.2017.2677499
    Graham, S., et al. (2019). HoVer-Net. Medical Image Analysis 58. https://doi.org/10.1016/j.media.2019.101563
    """
    rows, count = instances.pairs[:, 0], len(instances.reference)
    best = np.flatnonzero(_flag_largest(rows, instances.iou, count))
    best = best[_flag_largest(rows[best], instances.voxels[best], count)]
    best = best[flag_first(rows[best])]
    disjoint = _assign(instances, np.arange(len(rows)), 0)
    return {
        "aji": _aggregate(instances, best, convention),
        "aji_plus": _aggregate(instances, disjoint, convention),
    }


def _aggregate(instances: Instances, taken: Ints, convention: Convention) -> float:
    """Return the shared voxels of the pairs `taken` over their unions and all that is in no pair."""
    rows, columns = instances.pairs[taken].T
    free = instances.counted
    free[columns] = False
    shared = instances.voxels[taken]
    unions = instances.reference_sizes[rows] + instances.predicted_sizes[columns] - shared
    parts = [unions, np.delete(instances.reference_sizes, rows), instances.predicted_sizes[free]]
    # One large prediction may be in the unions of very many references: their sum need not fit in int64.
    union = math.fsum(np.concatenate(parts))
    return math.fsum(shared) / union if union else convention.empty
