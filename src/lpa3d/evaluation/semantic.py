"""Metrics of foreground against background, whatever the instances: pure functions of one table of overlaps."""

from __future__ import annotations

import math

from ..arrays.overlap import Overlaps

__all__ = ["score_semantic"]


def score_semantic(overlaps: Overlaps) -> dict[str, float]:
    """Return accuracy, precision, recall, specificity, dice, iou, conformity and pixel_error.

    A ratio 0 / 0 is 1 where no voxel is wrong, and 0 elsewhere: empty against empty is perfect, and neither an empty
    prediction nor an empty reference makes the precision or the recall of the other side perfect. Conformity without a
    true positive is minus infinity, unless no voxel is wrong.
    """
    reference, prediction = overlaps.pairs.T
    inside, predicted = reference > 0, prediction > 0
    outside = reference == 0
    tp, fn, fp, tn = (
        int(overlaps.voxels[rows].sum())
        for rows in (inside & predicted, inside & ~predicted, outside & predicted, outside & ~predicted)
    )
    wrong = fp + fn

    def share(part: int, whole: int) -> float:
        return part / whole if whole else float(not wrong)

    total = tp + tn + wrong
    return {
        "accuracy": share(tp + tn, total),
        "precision": share(tp, tp + fp),
        "recall": share(tp, tp + fn),
        "specificity": share(tn, tn + fp),
        "dice": share(2 * tp, 2 * tp + wrong),
        "iou": share(tp, tp + wrong),
        "conformity": 1 - wrong / tp if tp else (-math.inf if wrong else 1.0),
        "pixel_error": wrong / total if total else 0.0,
    }
