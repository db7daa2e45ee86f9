"""Where implementations of one metric disagree, and which way each convention decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from ..arrays.checks import check_flag
from ..errors import InputError

__all__ = ["CONVENTIONS", "Convention"]

Zeros = Literal["none", "reference", "prediction", "both"]
"""Whose background voxels a partition metric leaves out; "both": those of either."""


@dataclass(frozen=True, kw_only=True)
class Convention:
    """Decisions on which implementations differ; the defaults are the convention ``"lpa3d"``.

    Attributes
    ----------
    rand_zeros, arand_zeros, voi_zeros, v_zeros : {"none", "reference", "prediction", "both"}
        Whose background voxels `rand_index`, `arand`, `voi` and `nvi`, `v_rand` and `v_info` leave out; "both" leaves
        out those of either side.
    predicted_background : {"segment", "singletons"}
        Whether predicted background is one segment for the partition metrics, or each voxel of it one of its own.
    arand_pairs : {"distinct", "all", "snemi3d"}
        Whether `arand`, `rand_split` and `rand_merge` count pairs of two different voxels (drawn without replacement),
        or also each voxel with itself; ``"snemi3d"``: the latter, but the pairs inside predicted background count as
        its share of all voxels, which is next to nothing.
    matching : {"count", "iou"}
        What a matching at an IoU of 0.5 or below has most of: first matches and then IoU in all, or IoU in all.
    strict : bool
        Whether a match needs an IoU above the threshold, rather than at it or above.
    empty : float
        The ratios of matching, and AJI, where neither side has an instance.
    assd : {"pooled", "directions"}
        Whether the average surface distance is the mean of the distances of both directions together, or of the two
        directions' means.
    ap_matching : {"greedy", "best"}
        Whether predictions take, in the order of their ranking, the best reference that is free, or each its best one.
    ap_thresholds : ten floats
        IoU thresholds of the average precision: the first is that of `ap50`, the sixth that of `ap75`.
    ap_strata : {"closed", "left-open"}
        Whether an instance as large as the limit between two strata is in both, or in the smaller one.
    ap_absent : float or None
        Average precision without references; None: 1 without false positives, else 0.
    size_strata : (float, float) or None
        Limits of small, medium and large instances, in voxels, where none are given.
    """

    rand_zeros: Zeros = "reference"
    arand_zeros: Zeros = "reference"
    voi_zeros: Zeros = "reference"
    v_zeros: Zeros = "reference"
    predicted_background: Literal["segment", "singletons"] = "segment"
    arand_pairs: Literal["distinct", "all", "snemi3d"] = "distinct"
    matching: Literal["count", "iou"] = "count"
    strict: bool = True
    empty: float = 1.0
    assd: Literal["pooled", "directions"] = "pooled"
    ap_matching: Literal["greedy", "best"] = "greedy"
    ap_thresholds: tuple[float, ...] = tuple(k / 20 for k in range(10, 20))
    ap_strata: Literal["closed", "left-open"] = "closed"
    ap_absent: float | None = None
    size_strata: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                choices = " or ".join(map(repr, get_args(hint)))
                raise InputError(f"{name} is {getattr(self, name)!r}; {choices} is needed")
        check_flag(self.strict, "strict")
        # A prediction reaches 0.5 with one reference, or with two of equal IoU; the ranking builds on that.
        if len(self.ap_thresholds) != 10 or not all(0.5 <= threshold <= 1 for threshold in self.ap_thresholds):
            raise InputError(f"ap_thresholds is {self.ap_thresholds!r}; ten numbers from 0.5 to 1 are needed")


CONVENTIONS = {
    "lpa3d": Convention(),
    "skimage": Convention(voi_zeros="none"),
    "sklearn": Convention(rand_zeros="none", arand_zeros="none", voi_zeros="none", v_zeros="none"),
    "snemi3d": Convention(arand_pairs="snemi3d"),
    "cremi": Convention(arand_pairs="snemi3d"),
    "gala": Convention(rand_zeros="none", arand_zeros="none", voi_zeros="both"),
    "funlib": Convention(arand_pairs="all"),
    "isbi": Convention(arand_pairs="all", predicted_background="singletons"),
    "panopticapi": Convention(empty=0.0),
    "torchmetrics": Convention(empty=0.0),
    "stardist": Convention(strict=False, empty=0.0),
    "panoptica": Convention(strict=False, assd="directions"),
    "hovernet": Convention(),
    "cellmap": Convention(matching="iou"),
    "coco": Convention(ap_absent=-1.0),
    "mitoem": Convention(
        ap_matching="best",
        # The eighth lies one rounding above 0.85, and an IoU of exactly 17 / 20 does not reach it.
        ap_thresholds=tuple(0.5 + 0.05 * k for k in range(10)),
        ap_strata="left-open",
        ap_absent=-1.0,
        size_strata=(5e3, 1.5e4),
    ),
}
