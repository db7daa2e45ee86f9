"""Geometry of tiles: boxes, and grids of equal tiles. Pure integers, nothing in proportion to the number of tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

__all__ = ["Box", "Grid", "Place"]

Place = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Box:
    """The voxels ``lo <= (z, y, x) < hi``."""

    lo: Place
    hi: Place

    @property
    def shape(self) -> Place:
        """Return the sides."""
        return (self.hi[0] - self.lo[0], self.hi[1] - self.lo[1], self.hi[2] - self.lo[2])

    @property
    def size(self) -> int:
        """Return the number of voxels."""
        return math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Return the index of the box in the volume."""
        z, y, x = (slice(lo, hi) for lo, hi in zip(self.lo, self.hi, strict=True))
        return z, y, x

    def within(self, outer: Box) -> tuple[slice, slice, slice]:
        """Return the index of the box in an array that holds `outer`."""
        z, y, x = (slice(lo - start, hi - start) for lo, hi, start in zip(self.lo, self.hi, outer.lo, strict=True))
        return z, y, x

    def grow(self, margin: int | Sequence[int], shape: Sequence[int]) -> Box:
        """Return the box grown by `margin` voxels (one for each axis, or one for all) inside a volume of `shape`."""
        margins = (margin,) * 3 if isinstance(margin, int) else margin
        lo = tuple(max(0, a - m) for a, m in zip(self.lo, margins, strict=True))
        hi = tuple(min(n, b + m) for b, m, n in zip(self.hi, margins, shape, strict=True))
        return Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))

    def intersect(self, other: Box) -> Box | None:
        """Return the voxels in both, None if there are none."""
        lo = tuple(map(max, self.lo, other.lo))
        hi = tuple(map(min, self.hi, other.hi))
        if any(b <= a for a, b in zip(lo, hi, strict=True)):
            return None
        return Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))

    def __str__(self) -> str:
        return ", ".join(f"{axis} {lo}:{hi}" for axis, lo, hi in zip("zyx", self.lo, self.hi, strict=True))


@dataclass(frozen=True)
class Grid:
    """A volume cut into tiles, numbered in raster order; the last ones of an axis may be smaller.

    Parameters
    ----------
    shape : tuple of int
        The volume's.
    tile : tuple of int
        A tile's, at least 1 each.
    """

    shape: Place
    tile: Place

    @cached_property
    def counts(self) -> Place:
        """Return the tiles along each axis."""
        z, y, x = (-(-n // t) for n, t in zip(self.shape, self.tile, strict=True))
        return z, y, x

    def __len__(self) -> int:
        return math.prod(self.counts)

    def position(self, index: int) -> Place:
        """Return where the tile stands, in tiles."""
        rest, x = divmod(index, self.counts[2])
        z, y = divmod(rest, self.counts[1])
        return z, y, x

    def index(self, position: Sequence[int]) -> int:
        """Return the number of the tile at a position."""
        z, y, x = position
        return (z * self.counts[1] + y) * self.counts[2] + x

    def box(self, index: int) -> Box:
        """Return the voxels of a tile."""
        lo = tuple(p * t for p, t in zip(self.position(index), self.tile, strict=True))
        hi = tuple(min(a + t, n) for a, t, n in zip(lo, self.tile, self.shape, strict=True))
        return Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))

    def neighbor(self, index: int, offset: Sequence[int]) -> int:
        """Return the tile `offset` tiles away, -1 where there is none."""
        place = [p + step for p, step in zip(self.position(index), offset, strict=True)]
        if any(not 0 <= p < n for p, n in zip(place, self.counts, strict=True)):
            return -1
        return self.index(place)

    def tiles_in(self, box: Box) -> list[int]:
        """Return the tiles that share voxels with `box`, in raster order."""
        if box.size <= 0:
            return []
        spans = (range(lo // t, -(-hi // t)) for lo, hi, t in zip(box.lo, box.hi, self.tile, strict=True))
        return [self.index(place) for place in itertools.product(*spans)]
