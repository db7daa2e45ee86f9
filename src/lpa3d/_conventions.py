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
    arand_pairs : {"distinct", "all"}
        Whether the adapted Rand error counts pairs of two different voxels (drawn without replacement), or also each
        voxel with itself.
    arand_background : {"segment", "singletons"}
        Whether predicted background is one segment, or each voxel of it one of its own.
    strict : bool
        Whether a match needs an IoU above the threshold, rather than at it or above.
    """

    rand_zeros: Zeros = "reference"
    arand_zeros: Zeros = "reference"
    voi_zeros: Zeros = "reference"
    v_zeros: Zeros = "reference"
    arand_pairs: Literal["distinct", "all"] = "distinct"
    arand_background: Literal["segment", "singletons"] = "segment"
    strict: bool = True


CONVENTIONS = {
    "lpa3d": Convention(),
    "skimage": Convention(rand_zeros="none", voi_zeros="none"),
}
