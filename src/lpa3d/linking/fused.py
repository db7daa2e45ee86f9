"""What `fuse` returns: the volume, the seeds, which source decided, and the conflicts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..arrays.tables import Table

__all__ = [
    "CLASSES",
    "COMPLETE",
    "INSTANCES",
    "KINDS",
    "LABELS",
    "OPEN",
    "SHARED",
    "SLICES",
    "UNKNOWN",
    "Conflicts",
    "Fused",
    "Provenance",
    "Source",
]

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]

CLASSES, INSTANCES, SLICES = "classes", "instances", "slices"
LABELS = (INSTANCES, SLICES)

KINDS = ("joins", "labels", "class", "background", "unlabelled")

COMPLETE, SHARED = 1, 2
"""Flags of a slice: everything is annotated there; both label sources have labels there."""

OPEN, UNKNOWN = -2, -1
"""In place of the position of a class: not decided yet; decided for an object whose class is not known."""
Source = Literal["classes", "instances", "slices"]


class Provenance(IntEnum):
    """Which source decided a voxel: the one that gave its id, or where it has none, the one that gave its class.

    `NOTHING` has no source anything to say about, besides background. `COMPLETE` is background because its slice is
    complete, against what other sources had there.
    """

    NOTHING = 0
    CLASSES = 1
    INSTANCES = 2
    SLICES = 3
    COMPLETE = 4


@dataclass(frozen=True, eq=False, repr=False)
class Conflicts(Table):
    """What was overruled by what, most voxels first; each voxel of each overruled source is counted in one row.

    Ids are those of the source itself, as it was given.

    Attributes
    ----------
    kind : (n,) str
        ``"joins"``, ``"labels"``, ``"class"``, ``"background"`` or ``"unlabelled"``; see `fuse`.
    winner, loser : (n,) str
        ``"classes"``, ``"instances"`` or ``"slices"``.
    winner_id, loser_id : (n,) int64
        The objects; 0 for the class map, and where what won is that there is no label.
    winner_class, loser_class : (n,) int64, or uint64 for such class maps
        The classes; 0 is background, or unknown.
    voxels : (n,) int64
        Number of voxels, at least 1.
    z_start, z_stop, y_start, y_stop, x_start, x_stop : (n,) int64
        First voxel of the smallest box that holds them, and one after its last; no z for 2D arrays.

    See Also
    --------
    fuse : makes it.
    """

    kind: npt.NDArray[np.str_]
    winner: npt.NDArray[np.str_]
    winner_id: Ints
    winner_class: Array
    loser: npt.NDArray[np.str_]
    loser_id: Ints
    loser_class: Array
    voxels: Ints
    z_start: Ints | None
    z_stop: Ints | None
    y_start: Ints
    y_stop: Ints
    x_start: Ints
    x_stop: Ints

    TITLE = "conflict"

    def box(self, row: int) -> tuple[slice, ...]:
        """Return the box of a row, which indexes the volume.

        Parameters
        ----------
        row : int
            Number of the row, from 0.

        Returns
        -------
        tuple of slice
            One for each axis of the volume.
        """
        sides = [(self.y_start, self.y_stop), (self.x_start, self.x_stop)]
        if self.z_start is not None and self.z_stop is not None:
            sides.insert(0, (self.z_start, self.z_stop))
        return tuple(slice(int(start[row]), int(stop[row])) for start, stop in sides)


class Fused(NamedTuple):
    """What `fuse` returns; ``propagate(fused.volume, fused.seeds)`` finishes it.

    Attributes
    ----------
    volume : ndarray
        Class map, 0 is background.
    seeds : ndarray
        Instance ids, 0 is unlabelled.
    provenance : ndarray of uint8
        Which source decided each voxel, a `Provenance`.
    conflicts : Conflicts
        What was overruled.
    """

    volume: Array
    seeds: Array
    provenance: npt.NDArray[np.uint8]
    conflicts: Conflicts
