"""The names of metrics, and what is known of each before it is measured: its range, and which end of it is better."""

from __future__ import annotations

import math

__all__ = [
    "AGGREGATED",
    "DISTANCES",
    "FRACTIONS",
    "LESS_IS_BETTER",
    "MATCHING",
    "PARTITION",
    "RANKING",
    "SEMANTIC",
    "STRATIFIED",
    "SUMMED",
    "WARPING",
    "find_range",
]

SEMANTIC = ("accuracy", "precision", "recall", "specificity", "dice", "iou", "conformity", "pixel_error")
PARTITION = (
    *("rand_index", "rand_error", "arand", "rand_split", "rand_merge", "voi_split", "voi_merge", "voi", "nvi"),
    *("v_rand", "v_info", "cremi"),
)
SUMMED = ("tp", "fp", "fn")
"""Metrics that are summed over the classes; the others are averaged."""

MATCHING = ("pq", "sq", "rq", "f1", "precision_instance", "recall_instance", *SUMMED)
"""Metrics that there are at every IoU threshold."""

RANKING = ("ap50", "ap75", "map")
AGGREGATED = ("aji", "aji_plus")
STRATIFIED = tuple(f"{name}_{stratum}" for stratum in ("small", "medium", "large") for name in RANKING)
DISTANCES = ("hausdorff", "hd95", "assd")
WARPING = ("warping_error",)

LESS_IS_BETTER = frozenset(
    (
        *("pixel_error", "rand_error", "arand", "voi_split", "voi_merge", "voi", "nvi", "cremi", "fp", "fn"),
        *DISTANCES,
        *WARPING,
    )
)

FRACTIONS = frozenset((*SEMANTIC, *PARTITION, *MATCHING, *RANKING, *AGGREGATED, *STRATIFIED, *WARPING)) - {
    *("conformity", "voi_split", "voi_merge", "voi", "cremi"),
    *SUMMED,
}
"""Metrics from 0 to 1."""


def find_range(name: str) -> tuple[float, float]:
    """Return the least and the largest value that a metric can have."""
    if name == "conformity":
        return -math.inf, 1.0
    return 0.0, 1.0 if name in FRACTIONS else math.inf
