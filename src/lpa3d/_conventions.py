"""Where implementations of one metric disagree, and which way each convention decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["CONVENTIONS", "Convention"]

Zeros = Literal["none", "reference", "both"]
"""Whose background voxels a partition metric leaves out."""


@dataclass(frozen=True, kw_only=True)
class Convention:
    """Decisions on which implementations differ; the defaults are the convention ``"lpa3d"``.

    Attributes
    ----------
    rand_zeros, arand_zeros, voi_zeros, v_zeros : {"none", "reference", "both"}
        Whose background voxels `rand_index`, `arand`, `voi` and `nvi`, `v_rand` and `v_info` leave out.
    predicted_background : {"segment", "singletons"}
        Whether predicted background is one segment for the partition metrics, or each voxel of it one of its own.
    arand_pairs : {"distinct", "all", "snemi3d"}
        Whether `arand`, `rand_split` and `rand_merge` count pairs of two different voxels (drawn without replacement),
        or also each voxel with itself; ``"snemi3d"``: the latter, but the pairs inside predicted background count as
        its share of all voxels, which is next to nothing.
    strict : bool
        Whether a match needs an IoU above the threshold, rather than at it or above.
    """

    rand_zeros: Zeros = "reference"
    arand_zeros: Zeros = "reference"
    voi_zeros: Zeros = "reference"
    v_zeros: Zeros = "reference"
    predicted_background: Literal["segment", "singletons"] = "segment"
    arand_pairs: Literal["distinct", "all", "snemi3d"] = "distinct"
    strict: bool = True


CONVENTIONS = {
    "lpa3d": Convention(),
    "skimage": Convention(voi_zeros="none"),
    "sklearn": Convention(rand_zeros="none", arand_zeros="none", voi_zeros="none", v_zeros="none"),
    "snemi3d": Convention(arand_pairs="snemi3d"),
    "cremi": Convention(arand_pairs="snemi3d"),
    "gala": Convention(arand_pairs="snemi3d", rand_zeros="none", voi_zeros="both"),
    "funlib": Convention(arand_pairs="all"),
    "isbi": Convention(arand_pairs="all", predicted_background="singletons"),
}
