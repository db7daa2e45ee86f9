"""The geodesic stage over tiles: a worklist of tiles that runs to the fixpoint of all keys.

The key of a voxel is ``distance << 32 | rank`` (uint64, 0 for none); of two keys the smaller is better. The answer is
the one of `lpa3d._geodesic.spread` on the whole volume, whatever the order of work: every key that is ever written is
that of a real path, so keys only improve, and what no path improves any more is the unique minimum.

1. *Activation* of a tile (`_activate`). The keys on its border are compared with the newest ones of its neighbours; if
   none of those improves an own voxel, nothing is read of the tile. Else the tile is loaded and solved: as if alone,
   then from the voxels that a neighbour's key improves. The new keys on its border are written under a version that no
   other activation has.
2. The driver (`spread_tiles`) records the version, and queues the neighbours towards which a key has improved, the
   smallest improved distance first. A tile is in flight once at most; it is queued again if a neighbour improved
   meanwhile.
3. `settle` solves a tile once more from the final keys of its neighbours and returns its labels.

Between activations only border keys are kept: for each tile and version one blob of up to 26 arrays (6 faces, 12 edges
and 8 corners, of which connectivity 6 needs the faces alone), and once for each tile the classes (and costs) of its
border. A version that is not recorded is never read, so that an activation that writes late does no harm.

The driver holds 17 bytes for each tile, and 50 for each one that is queued again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .grid import Box, Grid
from .run import Run
from .scratch import Scratch

__all__ = ["Field", "Spread", "settle", "spread_tiles"]

Labels = npt.NDArray[np.uint32]
Cost = npt.NDArray[np.uint16]


class Field(Protocol):
    """What the tiles are made of: a frozen, picklable object. The same arrays come back whenever it is asked."""

    def load(self, tile: int) -> tuple[npt.NDArray[Any], Labels, Cost | None]:
        """Return the classes (unsigned; 0: no link leads there), start labels and cost of a tile, new arrays in C order.

        A label is a rank, 0 for none. Every labelled voxel is a source at distance 0 and keeps its label; it has the
        class of its label. The cost is in steps of 1/16, as `_geodesic.spread` takes it.
        """

    def load_border(self, box: Box) -> tuple[Labels, Cost | None]:
        """Return the start labels and cost of a box of voxels on the border of one tile that is not active.

        Called only where `spread_tiles` was given `active`.
        """


@dataclass(frozen=True)
class Spread:
    """What `settle` needs: picklable, a few numbers, whatever the size of the volume."""

    name: str
    grid: Grid
    scratch: Scratch
    field: Field
    weights: tuple[int, ...]
    connectivity: int
    limit: int | None
    partial: bool
    """Whether only some tiles are active."""


def spread_tiles(
    run: Run,
    name: str,
    field: Field,
    class_of: npt.NDArray[Any],
    weights: npt.NDArray[np.int64],
    connectivity: int,
    limit: int | None = None,
    active: Sequence[int] | npt.NDArray[np.int64] | None = None,
) -> Spread:
    """Activate tiles until no border key can improve; return what `settle` needs. Nothing is done if it was done before.

    Parameters
    ----------
    run
        The run, whose grid it is. Stage `name` of its journal, and blobs below ``name/`` of its scratch, are used.
    class_of
        Class of each rank, ``class_of[0] == 0``.
    weights, connectivity, limit
        As for `lpa3d._geodesic.spread`: voxels further than `limit` get no key.
    active
        The tiles that hold unlabelled voxels which a label may reach; all if None. The voxels of all others keep
        what `Field.load_border` says, which they have at distance 0.
    """
    raise NotImplementedError


def settle(spread: Spread, tile: int) -> Labels:
    """Return the final labels of an (active) tile; 0 where no label leads, or none within the limit.

    Raises
    ------
    RangeError
        Without a limit, if a voxel of the tile can be reached only by paths that weigh more than 2**32 - 2.
    """
    raise NotImplementedError
