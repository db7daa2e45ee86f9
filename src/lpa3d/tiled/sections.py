"""The sections stage over tiles: bit for bit what `lpa3d._sections` draws in the whole volume.

Stages
------
1. *Planes* (map over the tiles that hold annotated slices): the seeds on those slices go to a scratch store of planes.
2. *Pieces* (map over annotated slices): the pieces of a slice, their table, and which piece each voxel is in.
3. *Pairs* (map over intervals): pairs of pieces, and what the interval says about each class.
4. *Switch* (driver): which classes take part. If none does, nothing follows.
5. *Lone* (map over intervals): the pieces in no pair and their expected motion, grouped by tile.
6. *Motions* (map over tiles with annotated slices): the class map refines those motions.
7. *Items* (map over intervals): what is drawn, for each tile beside the interval.
8. *Drawing*: `draw_tile`, on a tile's arrays, in a stage of the caller's own.

A slice across the axis is one plane ``(rows, columns)`` of the two other axes. Only stage 2 holds a whole plane, about
12 bytes for each of its voxels; stage 3 holds one row of tiles of two planes. Tables hold a few hundred bytes for each
piece of two slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from .grid import Box

if TYPE_CHECKING:
    from .run import Run

__all__ = ["Drawing", "Reads", "Sections", "draw_tile", "run_sections"]


class Reads(Protocol):
    """What gives the voxels of any box as an array: a `Source`, a `ScratchVolume`, or a picklable object of the caller."""

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Return the voxels of `box`."""


@dataclass(frozen=True)
class Drawing:
    """What `draw_tile` needs: a few numbers and where the rest is in scratch. Picklable."""


@dataclass(frozen=True)
class Sections:
    """What the stages before drawing found.

    Attributes
    ----------
    took_part : ndarray of bool, parallel to `classes`
        Whether the label's class passed the switch, as `label_sections` returns it.
    drawing : Drawing or None
        To draw with; None where no class takes part: then no voxel changes.
    """

    took_part: npt.NDArray[np.bool_]
    drawing: Drawing | None


def run_sections(
    run: Run,
    volume: Reads,
    seeds: Reads,
    classes: npt.NDArray[Any],
    axis: int,
    annotated: Sequence[int],
    spacing: tuple[float, float, float],
) -> Sections:
    """Run all stages before drawing, as ``sections/...`` stages of `run` (tiles of ``run.grid``).

    Parameters
    ----------
    run
        The run; its scratch keeps the tables and planes under ``sections/``.
    volume
        Class map (after ``max_distance``: the reached one), of any integer dtype.
    seeds
        Ranks of the kept seeds, uint32, 0 elsewhere. Read once in every tile that holds annotated slices, from the
        first of these slices to the last.
    classes
        Class of each rank, at index 0 the background; of the canonical (unsigned) dtype of `volume`.
    axis
        The axis that the annotated slices lie across.
    annotated
        Their positions, ascending, at least two.
    spacing
        Voxel size.
    """
    raise NotImplementedError


def draw_tile(drawing: Drawing, tile: int, volume: npt.NDArray[Any], labels: npt.NDArray[np.uint32]) -> None:
    """Label, in place, the unlabelled voxels of a tile between annotated slices.

    Parameters
    ----------
    drawing
        From `run_sections`.
    tile
        Number of the tile in ``run.grid``.
    volume
        The tile of the class map that `run_sections` was given.
    labels
        The tile's ranks of the kept seeds, uint32, C-contiguous.
    """
    raise NotImplementedError
