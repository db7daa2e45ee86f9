"""Connected components of a volume in tiles: found in each tile, joined across faces, numbered in raster order.

Stages
------
1. *Scan* (`scan_tile` on every tile, any order): `arrays.components.find_components` finds the tile's own components,
   here called *local*. A local component that touches a neighbouring tile is a *border* component. Kept under
   ``{name}/scan/{tile}``: the numbers of border components on the sides that have a neighbour, their classes and first
   voxels, and how many of the others start in each row of the tile.
2. *Pairs* (`pair_tile` on every tile, after all of 1): which border components are linked to those of the 13 tiles that
   follow, from the sides alone. Kept under ``{name}/pairs/{tile}``.
3. *Join* (`join`, once, after all of 2): a union-find over the border components of all tiles. The sets (border
   components that are linked, and every other component by itself) are the components of the volume. Kept under
   ``{name}/sets/{tile}``, ``{name}/rows/{line of tiles}`` and ``{name}/totals``.
4. *Use* (`local_numbers`, `local_flags` on every tile, any order): the tile is scanned again, or `recall_components`
   reads what its scan kept; either gives the same local components, and each learns the number or the flag of its set.

A set's number is the rank of its first voxel in the volume's raster order: the numbers of `lpa3d.label`, bit for bit.

A flag may be given for every local component (see `scan_tile`); a set's flag is whether any of its local components has
it. Numbers are those of the sets without it, from 1 on (without flags: of all sets).

How another module uses it, with `find_components` on the same array as in its scan::

    def scan(context, tile):  # run.map(f"{name} scan", scan, context)
        array = ...  # the tile's voxels, C-ordered, unsigned
        found = scan_tile(array, connectivity, open_sides(grid, tile), flags)
        scratch.put(f"{name}/scan/{tile}", **found)


    totals = run_join(run, name, connectivity, numbers=False)  # the stages of join_stages(name, numbers=False)


    def use(context, tile):  # run.map("use", use, context)
        components = find_components(array, connectivity)
        keep = local_flags(scratch, name, tile, components)
        components.clear(array, keep)
        # or, where the join was asked for numbers:
        numbers = local_numbers(scratch, grid, name, tile, components, np.uint32)
        write_numbers(components, numbers, out)  # 0 where flagged

Memory: a scan takes what `find_components` does and 4 bytes a component; the join takes 4 bytes a border component and
9 a set of them (in a temporary file where that is much), and the rows of a line of tiles.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays.components import WIDE, Components, Slab, find_components
from ..arrays.neighbors import neighbor_offsets
from ..kernels import faces as kernels
from ..kernels.label import count_runs
from ..kernels.unionfind import rank_sets
from .driver.grid import Grid
from .driver.stages import Stage

if TYPE_CHECKING:
    from .driver.run import Run
    from .driver.scratch import Scratch

__all__ = [
    "Totals",
    "component_areas",
    "cut_slices",
    "join",
    "join_stages",
    "local_flags",
    "local_numbers",
    "open_sides",
    "pair_tile",
    "read_totals",
    "recall_components",
    "run_join",
    "scan_tile",
    "write_numbers",
]

Sides = tuple[bool, bool, bool, bool, bool, bool]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

SIDES = ("z_low", "z_high", "y_low", "y_high", "x_low", "x_high")

TABLE_BYTES = 2**27
"""Larger tables of the join are files."""

CHUNK = 2**20
"""Elements that are written to such a file at once."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What `join` counts over the volume.

    Attributes
    ----------
    components, voxels : tuple of int
        Sets without and with the flag, and their voxels (0 where `scan_tile` was given no flags).
    mixed : ndarray of int64
        The tiles that hold voxels of a set without the flag, ascending.
    """

    components: tuple[int, int]
    voxels: tuple[int, int]
    mixed: Ints


# -- scan ------------------------------------------------------------------------------------------------------------


def open_sides(grid: Grid, tile: int) -> Sides:
    """Return which sides of a tile have a neighbour: z low, z high, y low, y high, x low, x high."""
    place = grid.position(tile)
    z, y, x = ((p > 0, p < n - 1) for p, n in zip(place, grid.counts, strict=True))
    return *z, *y, *x


def scan_tile(
    array: npt.NDArray[Any],
    connectivity: int,
    sides: Sides,
    flags: Callable[[Components], Flags] | None = None,
    *,
    keep: bool = False,
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
    keep : bool, default False
        Also keep the components, for `recall_components`: 0.05 bytes a voxel for a typical segmentation, 0.5 for noise.
    """
    components = find_components(array, connectivity)
    depth, height, width = array.shape
    firsts = _find_firsts(components)
    planes, border = _number_sides(components, array.shape, sides)
    flagged = np.zeros(components.count, np.bool_) if flags is None else flags(components)

    own = ~flagged
    own[border] = False
    rows = np.zeros(depth * height, np.uint32)
    before = np.zeros(len(border), np.uint32)
    kernels.count_starts(firsts, own, width, border, rows, before)

    voxels = np.zeros(2, np.int64)
    border_voxels = np.zeros(len(border), np.int64)
    if flags is not None:
        each = _count_voxels(components)
        border_voxels = each[border]
        each[border] = 0
        flagged_voxels = int(each[flagged].sum())
        voxels[:] = int(each.sum()) - flagged_voxels, flagged_voxels
    rows = rows.reshape(depth, height)
    return {
        "counts": np.array([components.count, len(border), np.count_nonzero(own)], np.int64),
        "flags": np.packbits(flagged),
        "voxels": voxels,
        "slices": rows.sum(axis=1, dtype=np.int64),
        "rows": rows,
        "border": border,
        "classes": array.reshape(-1)[firsts[border]],
        "firsts": firsts[border],
        "before": before,
        "border_flags": flagged[border],
        "border_voxels": border_voxels,
        **planes,
        **(_pack_components(components) if keep else {}),
    }


def _pack_components(components: Components) -> dict[str, npt.NDArray[Any]]:
    """Return components as arrays, their slabs put together."""
    slabs = components.slabs
    return {
        "shape": np.array(components.shape, np.int64),
        "changes": np.concatenate([slab.changes for slab in slabs]),
        "inside": np.concatenate([slab.inside for slab in slabs]),
        "runs": np.concatenate([slab.of(components.numbers)[slab.runs] - 1 for slab in slabs]),
    }


def recall_components(scratch: Scratch, name: str, tile: int) -> Components:
    """Return the components of a tile whose scan was told to keep them."""
    found = scratch.get(f"{name}/scan/{tile}", "shape", "changes", "inside", "runs", "counts")
    depth, height, width = found["shape"].tolist()
    runs, count = found["runs"], int(found["counts"][0])
    slab = Slab(0, depth, found["changes"], found["inside"], runs, 0, count)
    return Components((depth, height, width), [slab], np.arange(1, count + 1, dtype=runs.dtype), count)


def _find_firsts(components: Components) -> npt.NDArray[Any]:
    """Return the flat index of each component's first voxel."""
    _, height, width = components.shape
    firsts = np.empty(components.count, components.numbers.dtype)
    known = 0
    for slab in components.slabs:
        start = slab.z_lo * height * width
        known = kernels.find_firsts(
            slab.changes, slab.inside, slab.runs, slab.of(components.numbers), width, start, known, firsts
        )
    return firsts


def _number_sides(
    components: Components, shape: tuple[int, ...], sides: Sides
) -> tuple[dict[str, npt.NDArray[Any]], npt.NDArray[Any]]:
    """Return the open sides with border components numbered from 1, and the index of each among the components."""
    depth, _, width = components.shape
    dtype = components.numbers.dtype
    # Where each axis of the tile is in the scanned shape: axes of size one have moved (see `find_components`).
    axes = [0, 2, 1] if shape[2] == 1 else [0, 1, 2]
    if shape[0] == 1:
        axes = [{0: 1, 1: 0}.get(axis, axis) for axis in axes]

    closed = np.zeros((0, 0), dtype)
    scanned = [closed] * 6
    for k, axis in enumerate(axes):
        across = [side for other, side in enumerate(components.shape) if other != axis]
        for end in range(2):
            if sides[2 * k + end]:
                scanned[2 * axis + end] = np.zeros(across, dtype)
    for slab in components.slabs:
        low = scanned[0] if slab.z_lo == 0 else closed
        high = scanned[1] if slab.z_hi == depth else closed
        rest = [plane[slab.z_lo : slab.z_hi] for plane in scanned[2:]]
        numbers = slab.of(components.numbers)
        kernels.fill_planes(slab.changes, slab.inside, slab.runs, numbers, width, (low, high, *rest))

    touching = np.zeros(components.count + 1, np.bool_)
    for plane in scanned:
        touching[plane] = True
    touching[0] = False
    places = np.flatnonzero(touching)
    dense = np.zeros(components.count + 1, dtype)
    dense[places] = np.arange(1, len(places) + 1)
    planes = {}
    for k, axis in enumerate(axes):
        across = [side for other, side in enumerate(shape) if other != k]
        for end in range(2):
            if sides[2 * k + end]:
                planes[SIDES[2 * k + end]] = dense[scanned[2 * axis + end]].reshape(across)
    return planes, (places - 1).astype(dtype)


def _count_voxels(components: Components) -> Ints:
    """Return the voxels of each component."""
    voxels = np.zeros(components.count, np.int64)
    for slab in components.slabs:
        kernels.count_voxels(
            slab.changes, slab.inside, slab.runs, slab.of(components.numbers), components.shape[2], voxels
        )
    return voxels


# -- pairs -----------------------------------------------------------------------------------------------------------


def _following(grid: Grid, tile: int, connectivity: int) -> Iterator[tuple[tuple[int, int, int], int]]:
    """Yield the offsets and numbers of the tiles that follow in raster order and touch, as connectivity has it."""
    steps = neighbor_offsets(connectivity)
    for dz, dy, dx in steps[len(steps) // 2 :].tolist():
        other = grid.neighbor(tile, (dz, dy, dx))
        if other >= 0:
            yield (dz, dy, dx), other


def pair_tile(scratch: Scratch, grid: Grid, name: str, connectivity: int, tile: int) -> None:
    """Find and keep the links of a tile's border components to those of the tiles that follow it."""
    following = list(_following(grid, tile, connectivity))
    wanted = {SIDES[2 * axis + (offset[axis] > 0)] for offset, _ in following for axis in [_across(offset)]}
    own = scratch.get(f"{name}/scan/{tile}", "classes", *sorted(wanted))
    linked = []
    for offset, other in following:
        axis = _across(offset)
        near, far = SIDES[2 * axis + 1], SIDES[2 * axis]
        theirs = scratch.get(f"{name}/scan/{other}", "classes", far)
        linked.append(_link_sides(own[near], own["classes"], theirs[far], theirs["classes"], offset, connectivity))
    pairs = np.concatenate(linked) if linked else np.zeros((0, 2), np.uint32)
    scratch.put(f"{name}/pairs/{tile}", pairs=pairs, counts=np.array([len(part) for part in linked], np.int64))


def _across(offset: tuple[int, int, int]) -> int:
    """Return the first axis along which tiles differ: always by 1, for a tile that follows."""
    return next(axis for axis, step in enumerate(offset) if step)


def _link_sides(
    plane: npt.NDArray[Any],
    classes: npt.NDArray[Any],
    other: npt.NDArray[Any],
    other_classes: npt.NDArray[Any],
    offset: tuple[int, int, int],
    connectivity: int,
) -> npt.NDArray[Any]:
    """Return the pairs of border components, from 0, that link two tiles; both sides are given whole."""
    rest = [step for axis, step in enumerate(offset) if axis != _across(offset)]
    # Tiles that share an edge or a corner: only the line, or the voxel, of each side that is nearest to the other's.
    near = tuple({-1: slice(0, 1), 0: slice(None), 1: slice(-1, None)}[step] for step in rest)
    far = tuple({-1: slice(-1, None), 0: slice(None), 1: slice(0, 1)}[step] for step in rest)
    reach = {6: 1, 18: 2, 26: 3}[connectivity] - 1 - sum(map(abs, rest))
    nodes = len(classes) + len(other_classes)
    dtype = np.uint32 if nodes < WIDE else np.int64
    pairs = np.empty((nodes, 2), dtype)
    found = kernels.link_planes(
        np.ascontiguousarray(plane[near]),
        classes.astype(np.uint64),
        np.ascontiguousarray(other[far]),
        other_classes.astype(np.uint64),
        reach,
        np.arange(nodes, dtype=dtype),
        pairs,
    )
    return pairs[:found]


# -- join ------------------------------------------------------------------------------------------------------------


def join(scratch: Scratch, grid: Grid, name: str, connectivity: int, numbers: bool) -> None:
    """Unite the border components of all tiles; keep each set's flag, its number if `numbers`, and the totals."""
    tiles = len(grid)
    counts = np.zeros(3, np.int64)
    offsets = np.zeros(tiles + 1, np.int64)
    voxels = np.zeros(2, np.int64)
    mixed = np.zeros(tiles, np.bool_)
    for tile in range(tiles):
        found = scratch.get(f"{name}/scan/{tile}", "counts", "voxels")
        counts += found["counts"]
        offsets[tile + 1] = counts[1]
        voxels += found["voxels"]
        mixed[tile] = found["counts"][2] > 0

    parents = _create_table(int(offsets[-1]), np.uint32 if offsets[-1] < WIDE else np.int64, None)
    for tile in range(tiles):
        found = scratch.get(f"{name}/pairs/{tile}")
        start = 0
        for (_, other), count in zip(_following(grid, tile, connectivity), found["counts"].tolist(), strict=True):
            kernels.unite_pairs(found["pairs"][start : start + count], offsets[tile], offsets[other], parents)
            start += count
    sets = int(rank_sets(parents, len(parents), 0))

    table = _Sets(
        scratch,
        grid,
        name,
        offsets,
        parents,
        _create_table(sets, np.int64, np.iinfo(np.int64).max),
        _create_table(sets, np.bool_, False),
    )
    table.lower()
    if numbers and tiles:
        number = 1
        for layer in range(grid.counts[0]):
            number = table.number(layer, number)
    for tile in range(tiles):
        own = table.of(tile)
        flags = table.flags[own]
        border_voxels = scratch.get(f"{name}/scan/{tile}", "border_voxels")["border_voxels"]
        voxels += int(border_voxels[~flags].sum()), int(border_voxels[flags].sum())
        mixed[tile] |= not flags.all()
        kept = np.where(flags, 0, -1 - table.ends[own]) if numbers else np.zeros(0, np.int64)
        scratch.put(f"{name}/sets/{tile}", flags=flags, numbers=kept)
    flagged = int(np.count_nonzero(table.flags))
    components = np.array([counts[2] + sets - flagged, counts[0] - counts[1] - counts[2] + flagged], np.int64)
    scratch.put(f"{name}/totals", components=components, voxels=voxels, mixed=np.flatnonzero(mixed))


def _create_table(size: int, dtype: npt.DTypeLike, value: Any) -> npt.NDArray[Any]:
    """Return a table of `value`, or ``arange`` if that is None: in memory, or in a temporary file if it is large."""
    dtype = np.dtype(dtype)

    def part(start: int, stop: int) -> npt.NDArray[Any]:
        return np.arange(start, stop, dtype=dtype) if value is None else np.full(stop - start, value, dtype)

    if size * dtype.itemsize <= TABLE_BYTES:
        return part(0, size)
    with tempfile.TemporaryFile() as file:
        # Written, not only made as long: a full disk is then an error here, and no crash at some later access.
        for start in range(0, size, CHUNK):
            part(start, min(start + CHUNK, size)).tofile(file)
        file.flush()
        return np.asarray(np.memmap(file, dtype, "r+", shape=(size,)))


@dataclass(frozen=True, slots=True)
class _Sets:
    """The sets of border components while they are joined.

    Attributes
    ----------
    offsets : ndarray of int64
        First border component of each tile, and the number of all.
    sets : ndarray of uint32 or int64
        Set of each border component.
    ends : ndarray of int64
        Flat index of each set's first voxel, or -1 - its number.
    flags : ndarray of bool
        Whether any of a set's components has the flag.
    """

    scratch: Scratch
    grid: Grid
    name: str
    offsets: Ints
    sets: npt.NDArray[Any]
    ends: Ints
    flags: Flags

    def of(self, tile: int) -> npt.NDArray[Any]:
        """Return the set of each border component of a tile."""
        return self.sets[self.offsets[tile] : self.offsets[tile + 1]]

    def _box(self, tile: int) -> Ints:
        box = self.grid.box(tile)
        return np.array([*box.lo, *box.shape, *self.grid.shape], np.int64)

    def lower(self) -> None:
        """Find each set's first voxel and flag."""
        for tile in range(len(self.grid)):
            found = self.scratch.get(f"{self.name}/scan/{tile}", "firsts", "border_flags")
            kernels.lower_ends(
                found["firsts"], found["border_flags"], self.of(tile), self._box(tile), self.ends, self.flags
            )

    def _count_rows(self, tile: int, found: dict[str, npt.NDArray[Any]]) -> Ints:
        """Return how many border components start a set to be numbered in each row of a tile."""
        depth, height, _ = self.grid.box(tile).shape
        rows = np.zeros(depth * height, np.int64)
        kernels.count_roots(found["firsts"], self.of(tile), self._box(tile), self.ends, self.flags, rows)
        return rows.reshape(depth, height)

    def number(self, layer: int, number: int) -> int:
        """Number the sets that start in a layer of tiles from `number` on; return the next number.

        Keeps, for each line of tiles along x, the first number of each row of each tile.
        """
        _, lines, across = self.grid.counts
        depth = self.grid.box(self.grid.index((layer, 0, 0))).shape[0]
        slices = np.zeros((depth, lines), np.int64)
        for line in range(lines):
            for x in range(across):
                tile = self.grid.index((layer, line, x))
                found = self.scratch.get(f"{self.name}/scan/{tile}", "slices", "firsts")
                slices[:, line] += found["slices"] + self._count_rows(tile, found).sum(axis=1)
        starts = number + _sum_before(slices.reshape(-1)).reshape(slices.shape)
        for line in range(lines):
            tiles = [self.grid.index((layer, line, x)) for x in range(across)]
            borders = []
            height = self.grid.box(tiles[0]).shape[1]
            rows = np.empty((depth, height, across), np.int64)
            for x, tile in enumerate(tiles):
                found = self.scratch.get(f"{self.name}/scan/{tile}", "rows", "firsts", "before")
                rows[:, :, x] = found.pop("rows") + self._count_rows(tile, found)
                borders.append(found)
            bases = _sum_before(rows.reshape(depth, -1)).reshape(rows.shape) + starts[:, line, None, None]
            kept = {}
            for x, (tile, found) in enumerate(zip(tiles, borders, strict=True)):
                kept[f"{x}"] = base = np.ascontiguousarray(bases[:, :, x])
                kernels.number_roots(
                    found["firsts"],
                    found["before"],
                    self.of(tile),
                    self._box(tile),
                    base.reshape(-1),
                    self.flags,
                    self.ends,
                )
            self.scratch.put(f"{self.name}/rows/{layer * lines + line}", **kept)
        return number + int(slices.sum())


def _sum_before(counts: Ints) -> Ints:
    """Return, along the last axis, the sum of what stands before each element."""
    return np.cumsum(counts, axis=-1) - counts


def join_stages(name: str, *, numbers: bool = True) -> tuple[Stage, ...]:
    """Return the stages of `run_join`. They read ``{name}/scan``, which the caller's own stage writes."""
    scan, pairs = f"{name}/scan", f"{name}/pairs"
    kept = (f"{name}/sets", *([f"{name}/rows"] if numbers else []))
    return (
        Stage(f"{name} pairs", reads=(scan,), writes=(pairs,)),
        Stage(f"{name} join", reads=(scan, pairs), writes=kept, keeps=(f"{name}/totals",)),
    )


def component_areas(name: str, *, numbers: bool = True) -> tuple[str, ...]:
    """Return the areas that stage 4 reads: `recall_components`, `local_flags`, and `local_numbers` if `numbers`."""
    return (f"{name}/scan", f"{name}/sets", *([f"{name}/rows"] if numbers else []))


def run_join(run: Run, name: str, connectivity: int, *, numbers: bool = True) -> Totals:
    """Do stages 2 and 3 as stages of a run; return the totals."""
    context = _Pairs(run.scratch, run.grid, name, connectivity)
    run.map(f"{name} pairs", _pair, context)
    run.once(f"{name} join", join, run.scratch, run.grid, name, connectivity, numbers)
    return read_totals(run.scratch, name)


@dataclass(frozen=True, slots=True)
class _Pairs:
    """What `pair_tile` needs beside the tile."""

    scratch: Scratch
    grid: Grid
    name: str
    connectivity: int


def _pair(context: _Pairs, tile: int) -> None:
    pair_tile(context.scratch, context.grid, context.name, context.connectivity, tile)


def read_totals(scratch: Scratch, name: str) -> Totals:
    """Return what `join` counted."""
    found = scratch.get(f"{name}/totals")
    components, voxels = found["components"].tolist(), found["voxels"].tolist()
    return Totals((components[0], components[1]), (voxels[0], voxels[1]), found["mixed"])


# -- use -------------------------------------------------------------------------------------------------------------


def _local_flags(found: dict[str, npt.NDArray[Any]], components: Components) -> Flags:
    """Return the local components' own flags."""
    return np.unpackbits(found["flags"], count=components.count).view(np.bool_)


def local_flags(scratch: Scratch, name: str, tile: int, components: Components) -> Flags:
    """Return, for each local component of a tile at index ``number - 1``, its set's flag."""
    found = scratch.get(f"{name}/scan/{tile}", "flags", "border")
    flags = _local_flags(found, components)
    flags[found["border"]] = scratch.get(f"{name}/sets/{tile}", "flags")["flags"]
    return flags


def local_numbers(
    scratch: Scratch,
    grid: Grid,
    name: str,
    tile: int,
    components: Components,
    dtype: npt.DTypeLike,
    after: int = 0,
) -> npt.NDArray[Any]:
    """Return, for each local component at index ``number - 1``, `after` + its set's number; 0 if that has the flag."""
    found = scratch.get(f"{name}/scan/{tile}", "flags", "border")
    layer, line, x = grid.position(tile)
    bases = scratch.get(f"{name}/rows/{layer * grid.counts[1] + line}", f"{x}")[f"{x}"]
    out = np.empty(components.count, dtype)
    kernels.number_locals(
        _find_firsts(components),
        ~_local_flags(found, components),
        found["border"],
        scratch.get(f"{name}/sets/{tile}", "numbers")["numbers"],
        grid.box(tile).shape[2],
        bases.reshape(-1),
        after,
        out,
    )
    return out


def cut_slices(components: Components, step: int) -> Iterator[tuple[int, Components]]:
    """Yield recalled components `step` slices at a time: the first slice, and the runs of these slices alone.

    So their numbers can be written without an array of the whole tile. The slices are those of ``components.shape``.
    """
    depth = components.shape[0]
    (slab,) = components.slabs
    run = 0
    for z_lo in range(0, depth, step):
        at = slice(z_lo, min(z_lo + step, depth))
        changes, inside = slab.changes[at], slab.inside[at]
        count = int(count_runs(changes, inside))
        part = replace(slab, z_hi=len(changes), changes=changes, inside=inside, runs=slab.runs[run : run + count])
        yield z_lo, replace(components, shape=(len(changes), *components.shape[1:]), slabs=[part])
        run += count


def write_numbers(components: Components, numbers: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Write ``numbers[k - 1]`` over the voxels of each local component k of a tile, and 0 elsewhere."""
    components.write_labels(out, clear=True, values=numbers)
