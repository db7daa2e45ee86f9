"""Connected components of a volume that no one holds: found tile by tile, joined across faces, numbered in raster order.

Stages
------
1. *Scan* (`scan_tile` on every tile, any order): `lpa3d._label.find_components` finds the tile's own components, here
   called *local*. A local component that touches a neighbouring tile is a *border* component. Kept under
   ``{name}/scan/{tile}``: the numbers of border components on the sides that have a neighbour, their classes and first
   voxels, and how many of the others start in each row of the tile.
2. *Pairs* (`pair_tile` on every tile, after all of 1): which border components are linked to those of the 13 tiles that
   follow, from the sides alone. Kept under ``{name}/pairs/{tile}``.
3. *Join* (`join`, once, after all of 2): a union-find over the border components of all tiles. The sets (border
   components that are linked, and every other component by itself) are the components of the volume. Kept under
   ``{name}/sets/{tile}``, ``{name}/rows/{line of tiles}`` and ``{name}/totals``.
4. *Use* (`local_numbers`, `local_flags` on every tile, any order): the tile is scanned again, which gives the same local
   components, and each learns the number or the flag of its set.

A set's number is the rank of its first voxel in the volume's raster order: `lpa3d.label`'s numbers, bit for bit.

A flag may be given for every local component (see `scan_tile`); a set's flag is whether any of its local components has
it. Numbers are those of the sets without it, from 1 on (without flags: of all sets).

How another module uses it::

    def scan(context, tile):                                      # run.map("scan", scan, context)
        array = ...                                               # the tile's voxels, C-ordered, unsigned (as_bits, class_map)
        found = scan_tile(array, connectivity, open_sides(grid, tile), flags)
        scratch.put(f"{name}/scan/{tile}", **found)

    totals = run_join(run, name, connectivity, numbers=False)     # stages "{name} pairs" and "{name} join"

    def use(context, tile):                                       # run.map("use", use, context)
        components = find_components(array, connectivity)         # the same array as in scan
        keep = local_flags(scratch, name, tile, components)       # bool, by local number - 1
        components.clear(array, keep)
        numbers = local_numbers(scratch, grid, name, tile, components, np.uint32)
        write_numbers(components, numbers, out)                   # 0 where flagged
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._label import Components
from .grid import Grid

if TYPE_CHECKING:
    from .run import Run
    from .scratch import Scratch

__all__ = [
    "Totals",
    "join",
    "local_flags",
    "local_numbers",
    "open_sides",
    "pair_tile",
    "read_totals",
    "run_join",
    "scan_tile",
    "write_numbers",
]

Sides = tuple[bool, bool, bool, bool, bool, bool]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Totals:
    """What `join` counts over the volume.

    Attributes
    ----------
    components, voxels : tuple of int
        Sets without and with the flag, and their voxels (voxels only where `scan_tile` was given flags, else 0).
    mixed : ndarray of int64
        Tiles that hold a voxel of a set without the flag, ascending (empty without flags).
    """

    components: tuple[int, int]
    voxels: tuple[int, int]
    mixed: npt.NDArray[np.int64]


def open_sides(grid: Grid, tile: int) -> Sides:
    """Return which sides of a tile have a neighbour: z low, z high, y low, y high, x low, x high."""
    raise NotImplementedError


def scan_tile(
    array: npt.NDArray[Any],
    connectivity: int,
    sides: Sides,
    flags: Callable[[Components], Flags] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Return what the join needs to know of one tile, to be kept under ``{name}/scan/{tile}``.

    Parameters
    ----------
    array : ndarray of uint8, uint16, uint32 or uint64, shape (Z, Y, X)
        The tile's classes, or labels as classes; 0 is background. C-ordered.
    connectivity : {6, 18, 26}
    sides : tuple of bool
        See `open_sides`.
    flags : callable, optional
        Called with the tile's components; returns a bool for each, at index ``number - 1``.
    """
    raise NotImplementedError


def pair_tile(scratch: Scratch, grid: Grid, name: str, connectivity: int, tile: int) -> None:
    """Find and keep the links of a tile's border components to those of the tiles that follow it."""
    raise NotImplementedError


def join(scratch: Scratch, grid: Grid, name: str, numbers: bool = True) -> None:
    """Unite the border components of all tiles; keep each set's flag, its number if `numbers`, and the totals."""
    raise NotImplementedError


def run_join(run: Run, name: str, connectivity: int, *, numbers: bool = True) -> Totals:
    """Do stages 2 and 3 as stages of a run; return the totals."""
    raise NotImplementedError


def read_totals(scratch: Scratch, name: str) -> Totals:
    """Return what `join` counted."""
    raise NotImplementedError


def local_flags(scratch: Scratch, name: str, tile: int, components: Components) -> Flags:
    """Return, for each local component of a tile at index ``number - 1``, its set's flag."""
    raise NotImplementedError


def local_numbers(
    scratch: Scratch,
    grid: Grid,
    name: str,
    tile: int,
    components: Components,
    dtype: npt.DTypeLike,
    after: int = 0,
) -> npt.NDArray[Any]:
    """Return, for each local component at index ``number - 1``, ``after`` + its set's number; 0 if the set is flagged."""
    raise NotImplementedError


def write_numbers(components: Components, numbers: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Write ``numbers[k - 1]`` over the voxels of each local component k of a tile, and 0 elsewhere."""
    raise NotImplementedError
