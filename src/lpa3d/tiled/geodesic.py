"""The geodesic stage over tiles: a worklist of tiles that runs to the fixpoint of all keys.

A key is (distance, label), and the smaller of two is better. The answer is that of `propagation.geodesic.spread` on the
whole volume, whatever the order of work: every key that is ever written is that of a real path, so keys only improve,
and what no path improves any more is the unique minimum.

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
border. A version that is not recorded is never read, so an activation that writes late, even for a run that was
killed, does no harm. A run that goes on has the newest recorded version of each tile, and looks at all borders once.

The driver holds 13 bytes for each tile, and about 50 for each one that is queued again.
"""

from __future__ import annotations

import functools
import heapq
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from ..arrays.neighbors import neighbor_offsets
from ..kernels import geodesic as kernels
from ..propagation.geodesic import LIMIT, NO_COST, Keys, has_unit_steps, link_voxels, make_keys, range_error
from .driver.grid import Box, Grid
from .driver.run import Run
from .driver.scratch import Scratch
from .driver.stages import Stage

if TYPE_CHECKING:
    from ..cuda.geodesic import Keys as DeviceKeys

__all__ = ["Field", "Spread", "settle", "spread_stage", "spread_tiles"]

Labels = npt.NDArray[np.uint32]
Cost = npt.NDArray[np.uint16]
Integers = npt.NDArray[np.int64]

Side = tuple[npt.NDArray[np.uint64], Cost, npt.NDArray[np.uint32], Labels]
"""Classes, cost (or none), nearness and labels of one side of a tile."""

Improved = tuple[int, int, int]
"""New version (0: no key on the border, `CLOSED`), bit mask of the sides that improved, smallest improved distance."""

CLOSED = -1
"""Recorded in the place of a version: there is no class on the tile's border, so nothing can ever come in."""

STATIC = -2
"""In the place of a version: the tile is not active, its labels are as they are loaded."""

SOLVED, WAITING, FLYING, AGAIN, SHUT = 1, 2, 4, 8, 16
"""State of a tile: solved once; in the heap; in flight; a neighbour improved meanwhile; closed or not active."""

GARBAGE = 64
"""So many outdated versions, at least, are deleted at a time: what replaces them must be safely recorded before."""


class Field(Protocol):
    """What the tiles are made of: a frozen, picklable object. The same arrays come back whenever it is asked."""

    def load(self, tile: int) -> tuple[npt.NDArray[Any], Labels, Cost | None]:
        """Return the classes (unsigned; 0: no link leads there), start labels and cost of a tile, new arrays, C order.

        A label is a rank, 0 for none. Every labelled voxel is a source at distance 0 and keeps its label; it has the
        class of its label. The cost is in steps of 1/16, as `lpa3d.propagation.geodesic.spread` takes it.
        """

    def load_border(self, box: Box) -> tuple[Labels, Cost | None]:
        """Return the start labels and cost of a box of voxels on the border of one tile that is not active.

        Called only where `spread_tiles` was given `active`.
        """


@dataclass(frozen=True)
class Spread:
    """What the tasks need, `settle` too: picklable, a few numbers, whatever the size of the volume."""

    name: str
    grid: Grid
    scratch: Scratch
    field: Field
    weights: tuple[int, ...]
    connectivity: int
    limit: int | None
    partial: bool
    """Whether only some tiles are active."""

    def keys(self, tile: int, version: int) -> str:
        """Return where the border keys of a version are."""
        return f"{self.name}/keys/{tile}/{version:x}"

    def border(self, tile: int) -> str:
        """Return where the classes and costs of a tile's border are."""
        return f"{self.name}/border/{tile}"

    def final(self, layer: int) -> str:
        """Return where the final versions of a layer of tiles are."""
        return f"{self.name}/final/{layer}"

    @property
    def classes(self) -> str:
        """Return where the class of each rank is."""
        return f"{self.name}/classes"

    @property
    def end(self) -> int:
        """Return the largest distance that a key may have."""
        return LIMIT if self.limit is None else min(self.limit, LIMIT)


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
    """Activate tiles until no border key can improve; return what `settle` needs. A finished stage is not done again.

    Parameters
    ----------
    run
        The run, whose grid it is. Its stage `name` is done, `spread_stage`, which keeps all below ``name/``.
    class_of
        Class of each rank, ``class_of[0] == 0``.
    weights, connectivity, limit
        As for `lpa3d.propagation.geodesic.spread`: voxels further than `limit` get no key.
    active
        The tiles that hold unlabelled voxels which a label may reach; all if None. The voxels of all others keep
        what `Field.load_border` says, which they have at distance 0.
    """
    spread = Spread(
        name, run.grid, run.scratch, field, tuple(weights.tolist()), connectivity, limit, active is not None
    )
    if run.begin(name):
        run.scratch.put(spread.classes, classes=class_of)
        tiles = None if active is None else np.unique(np.asarray(active, dtype=np.int64))
        _Driver(run, spread, tiles).drive()
        run.end(name)
    return spread


def spread_stage(name: str, reads: Sequence[str] = ()) -> Stage:
    """Return the stage of `spread_tiles`, whose field reads what it is told; `settle` reads the area `name`, too."""
    return Stage(name, reads=tuple(reads), writes=(name,))


def settle(spread: Spread, tile: int) -> Labels:
    """Return the final labels of an (active) tile; 0 where no label leads, or none within the limit.

    Raises
    ------
    RangeError
        Without a limit, if a voxel of the tile can be reached only by paths that weigh more than 2**32 - 2.
    """
    z, y, x = spread.grid.position(tile)
    versions = np.zeros((3, 3, 3), dtype=np.int64)
    depth, height, _ = spread.grid.counts
    rows = [j for j in (-1, 0, 1) if 0 <= y + j < height]
    for i in (-1, 0, 1):
        if 0 <= z + i < depth:
            layer = spread.scratch.get(spread.final(z + i), *(str(y + j) for j in rows))
            for j in rows:
                versions[i + 1, j + 1] = layer[str(y + j)][x : x + 3]
    beside = _load_beside(spread, tile, versions)
    keys, classes, cost = _solve(spread, tile, beside)
    if keys.beyond and spread.limit is None:
        shape = keys.labels.shape
        gaps = [keys.find_gap()]
        for k, there in beside.items():
            # All in range was taken: what would still be taken is out of range.
            found, _ = _take(spread, k, there, _cut_side(spread, k, keys, classes, cost), 2**62)
            gaps += _flat_in_tile(spread, k, shape, found).tolist()
        gaps = [gap for gap in gaps if gap >= 0]
        if gaps:
            voxel = np.unravel_index(min(gaps), shape)
            raise range_error([a + int(i) for a, i in zip(spread.grid.box(tile).lo, voxel, strict=True)])
    return keys.labels


# --------------------------------------------------------------------------------------------------------- the driver


class _Driver:
    """The worklist: which tiles are to be activated, and which versions of their keys are the newest.

    Arrays have one entry for each tile and stand in a box of zeros: the tiles around one are a slice.
    """

    def __init__(self, run: Run, spread: Spread, active: Integers | None) -> None:
        self.run, self.spread, self.active = run, spread, active
        depth, height, width = run.grid.counts
        shape = depth + 2, height + 2, width + 2
        self.versions = np.zeros(shape, dtype=np.int64)
        self.state = np.full(shape, SHUT, dtype=np.uint8)
        self.nearest = np.zeros(shape, dtype=np.uint32)
        """Of the improvements that a tile has not seen, the smallest distance."""
        if active is None:
            self.state[1:-1, 1:-1, 1:-1] = 0
        else:
            self.versions[1:-1, 1:-1, 1:-1] = STATIC
            for tile in active.tolist():
                self.versions[self._place(tile)] = self.state[self._place(tile)] = 0
        self.total = len(run.grid) if active is None else len(active)
        self.solved = 0
        self.heap: list[int] = []
        """Distance and tile, as one number."""
        self.serial = 0
        self.flying: dict[int, int] = {}
        """Serial number of the activation of each tile in flight."""
        self.outdated: deque[tuple[int, int, int]] = deque()
        """Versions that were replaced (tile, version), and the first activation that cannot know of them any more."""
        self.life = self._resume()

    def _place(self, tile: int) -> tuple[int, int, int]:
        z, y, x = self.run.grid.position(tile)
        return z + 1, y + 1, x + 1

    def _resume(self) -> int:
        """Take over what is recorded, and record that a new life begins, whose versions are its own."""
        life = 0
        for rows in self.run.journal.rows(self.spread.name, 2):
            for tile, version in rows.tolist():
                if tile < 0:
                    life = version
                else:
                    self._record(self._place(tile), version)
        self.run.journal.append(self.spread.name, -1, life + 1)
        # Also after a power cut no other life has this number.
        self.run.journal.flush()
        return life + 1

    def _record(self, place: tuple[int, int, int], version: int) -> None:
        if not self.state[place] & SOLVED:
            self.solved += 1
        self.state[place] |= SOLVED | (SHUT if version == CLOSED else 0)
        self.versions[place] = max(0, version)

    def drive(self) -> None:
        """Activate tiles until none is queued; write which versions are final."""
        order = self._list_tiles()
        first = next(order, None)
        while True:
            while self.run.free and (first is not None or self.heap):
                if first is not None:
                    self._start(first)
                    first = next(order, None)
                else:
                    self._start_queued()
            if not self.flying:
                break
            self._finish(*self.run.wait())
            self.run.tell(self.spread.name, self.solved / max(1, self.total))
        for layer, versions in enumerate(self.versions[1:-1]):
            rows = {str(y): row for y, row in enumerate(versions[1:-1])}
            self.run.scratch.put(self.spread.final(layer), **rows)

    def _list_tiles(self) -> Iterator[int]:
        """Yield every tile once: as on a chessboard, so that the second half finds the keys of all tiles beside it."""
        for color in (0, 1):
            for tile in range(len(self.run.grid)) if self.active is None else self.active:
                place = self._place(int(tile))
                if sum(place) % 2 == color and not self.state[place] & SHUT:
                    yield int(tile)

    def _start_queued(self) -> None:
        """Start the activation of the tile with the smallest improved distance, if it still waits."""
        distance, tile = divmod(heapq.heappop(self.heap), 2**32)
        place = self._place(tile)
        if self.state[place] & WAITING and self.nearest[place] == distance:
            self._start(tile)

    def _start(self, tile: int) -> None:
        z, y, x = place = self._place(tile)
        solved = bool(self.state[place] & SOLVED)
        self.state[place] = self.state[place] & ~np.uint8(WAITING | AGAIN) | FLYING
        self.serial += 1
        self.flying[tile] = self.serial
        versions = self.versions[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2].copy()
        version = self.life << 40 | self.serial
        self.run.start(self.spread.name, _activate, self.spread, tile, version, solved, versions, self._take_garbage())

    def _take_garbage(self) -> list[tuple[int, int]]:
        """Return outdated versions that no activation in flight can read, for the next one to delete."""
        oldest = min(self.flying.values())
        garbage = list(itertools.takewhile(lambda entry: entry[0] <= oldest, self.outdated))
        if len(garbage) < GARBAGE:
            return []
        for _ in garbage:
            self.outdated.popleft()
        self.run.journal.flush()
        return [(tile, version) for _, tile, version in garbage]

    def _finish(self, tile: int, improved: Improved | None) -> None:
        place = self._place(tile)
        del self.flying[tile]
        self.state[place] &= ~np.uint8(FLYING)
        if improved is not None:
            version, mask, distance = improved
            self.run.journal.append(self.spread.name, tile, version)
            before = int(self.versions[place])
            self._record(place, version)
            if before > 0:
                self.outdated.append((self.serial + 1, tile, before))
            for offset in neighbor_offsets(self.spread.connectivity).tolist():
                if mask & 1:
                    z, y, x = (a + step for a, step in zip(place, offset, strict=True))
                    self._queue((z, y, x), tile + self._step(offset), distance)
                mask >>= 1
        if self.state[place] & AGAIN:
            self.state[place] &= ~np.uint8(AGAIN)
            self._queue(place, tile, int(self.nearest[place]))

    def _step(self, offset: list[int]) -> int:
        """Return by how much the number of the tile at an offset differs."""
        _, height, width = self.run.grid.counts
        return (offset[0] * height + offset[1]) * width + offset[2]

    def _queue(self, place: tuple[int, int, int], tile: int, distance: int) -> None:
        """Queue a tile to which a key of that distance may lead now."""
        state = self.state[place]
        if state & SHUT or not state & (SOLVED | FLYING):
            return  # nothing can come in; or its turn is still to come
        if state & (WAITING | AGAIN) and self.nearest[place] <= distance:
            return
        self.nearest[place] = distance
        if state & FLYING:
            self.state[place] |= AGAIN
        else:
            self.state[place] |= WAITING
            heapq.heappush(self.heap, distance << 32 | tile)


# ---------------------------------------------------------------------------------------------------------- the tasks


def _activate(
    spread: Spread,
    tile: int,
    version: int,
    solved: bool,
    versions: Integers,
    garbage: Sequence[tuple[int, int]],
) -> Improved | None:
    """Solve a tile again if its neighbours' keys improve it; write its border keys as `version` if they improved.

    Returns None if nothing did. `versions` are the newest ones of the tiles around, the own one in the middle.
    """
    for outdated in garbage:
        spread.scratch.delete(spread.keys(*outdated))
    beside = _load_beside(spread, tile, versions)
    own = int(versions[1, 1, 1])
    if solved and not (beside and _can_improve(spread, tile, own, beside)):
        return None
    keys, classes, cost = _solve(spread, tile, beside)
    before = spread.scratch.get(spread.keys(tile, own)) if own > 0 else {}
    sides = _list_sides(spread.connectivity)
    border = {f"classes{k}": classes[side.cut] for k, side in enumerate(sides)}
    if not any(part.any() for part in border.values()):
        return CLOSED, 0, 0
    border |= {f"cost{k}": NO_COST if cost is None else cost[side.cut] for k, side in enumerate(sides)}
    if not solved:
        spread.scratch.put(spread.border(tile), **border)
    mask, smallest = 0, LIMIT
    written: dict[str, npt.NDArray[Any]] = {}
    for k, side in enumerate(sides):
        now = np.stack([keys.near[side.cut], keys.labels[side.cut]])
        changed = now[1] != 0
        if before:
            changed &= (now != before[f"keys{k}"]).any(axis=0)
        if changed.any():
            mask |= 1 << k
            nearness = now[0][changed].astype(np.int64)
            smallest = min(smallest, int(np.where(nearness == 0, 0, kernels.FURTHEST - nearness).min()))
        written |= {f"keys{k}": now, f"cost{k}": border[f"cost{k}"]}
    if mask:
        spread.scratch.put(spread.keys(tile, version), **written)
        return version, mask, smallest
    return None if solved else (0, 0, 0)


@dataclass(frozen=True)
class _SideSteps:
    """A side of a tile (face, edge or corner): its voxels, and how they neighbour those of the tile beyond."""

    cut: tuple[slice, slice, slice]
    offset: tuple[int, int, int]
    steps: Integers
    """From a voxel of the side to its neighbours, as places within the side beyond, which has the same shape."""
    back: Integers
    """Which offsets lead from the neighbours here."""


@functools.cache
def _list_sides(connectivity: int) -> list[_SideSteps]:
    """Return the sides across which there are links, in the order of `neighbor_offsets`."""
    offsets = neighbor_offsets(connectivity)
    sides = []
    for offset in offsets:
        across = offset != 0
        out = np.flatnonzero((offsets[:, across] == offset[across]).all(axis=1))
        z, y, x = (slice(None) if step == 0 else slice(0, 1) if step < 0 else slice(-1, None) for step in offset)
        sides.append(
            _SideSteps((z, y, x), tuple(offset.tolist()), np.where(across, 0, offsets[out]), len(offsets) - 1 - out)
        )
    return sides


def _load_beside(spread: Spread, tile: int, versions: Integers) -> dict[int, Side]:
    """Return the touching sides of the tiles around that hold keys, by the number of the own side."""
    sides = _list_sides(spread.connectivity)
    beside: dict[int, Side] = {}
    class_of: npt.NDArray[Any] | None = None
    for k, side in enumerate(sides):
        dz, dy, dx = side.offset
        version = int(versions[1 + dz, 1 + dy, 1 + dx])
        other = -1 if version == 0 else spread.grid.neighbor(tile, side.offset)
        if other < 0:
            continue
        facing = len(sides) - 1 - k
        cost: Cost | None = None
        if version == STATIC:
            labels, cost = spread.field.load_border(_side_box(spread.grid.box(other), sides[facing].offset))
            near = np.zeros(labels.shape, dtype=np.uint32)
        else:
            (near, labels), cost = spread.scratch.get(
                spread.keys(other, version), f"keys{facing}", f"cost{facing}"
            ).values()
        if not labels.any():
            continue
        if class_of is None:
            class_of = spread.scratch.get(spread.classes)["classes"]
        beside[k] = class_of[labels].astype(np.uint64), NO_COST if cost is None else cost, near, labels
    return beside


def _side_box(box: Box, offset: tuple[int, int, int]) -> Box:
    """Return the voxels of one side of a box."""
    lo = tuple(b - 1 if step > 0 else a for a, b, step in zip(box.lo, box.hi, offset, strict=True))
    hi = tuple(a + 1 if step < 0 else b for a, b, step in zip(box.lo, box.hi, offset, strict=True))
    return Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))


def _take(spread: Spread, k: int, there: Side, here: Side, limit: int) -> tuple[Integers, bool]:
    """Better the keys of side `k` in place; return which did, flat, and whether there were any beyond the limit."""
    side = _list_sides(spread.connectivity)[k]
    found = np.empty(here[0].size, dtype=np.int64)
    weights = np.array(spread.weights, dtype=np.int64)[side.back]
    count, beyond = kernels.take_keys(limit, side.steps, weights, there, here, found)
    return found[:count], bool(beyond)


def _can_improve(spread: Spread, tile: int, own: int, beside: dict[int, Side]) -> bool:
    """Return whether a key beside a tile improves one on its border, of which only that is read."""
    border = spread.scratch.get(spread.border(tile), *(f"{what}{k}" for what in ("classes", "cost") for k in beside))
    found = spread.scratch.get(spread.keys(tile, own), *(f"keys{k}" for k in beside)) if own > 0 else {}
    for k, there in beside.items():
        classes = border[f"classes{k}"].astype(np.uint64)
        near, labels = found[f"keys{k}"] if own > 0 else np.zeros((2, *classes.shape), dtype=np.uint32)
        better, _ = _take(spread, k, there, (classes, border[f"cost{k}"], near, labels), spread.end)
        if len(better):
            return True
    return False


def _solve(
    spread: Spread, tile: int, beside: dict[int, Side]
) -> tuple[Keys | DeviceKeys, npt.NDArray[Any], Cost | None]:
    """Return the keys of a tile, its classes and cost: as if alone, then bettered from the sides beside it."""
    classes, labels, cost = spread.field.load(tile)
    weights = np.array(spread.weights, dtype=np.int64)
    links = link_voxels(classes, spread.connectivity)
    keys = make_keys(labels, links, weights, spread.connectivity, cost, spread.end)
    if has_unit_steps(weights, spread.connectivity, cost):
        keys.spread_steps()
    else:
        keys.spread(spread.partial)
    better = []
    for k, there in beside.items():
        here = _cut_side(spread, k, keys, classes, cost)
        found, beyond = _take(spread, k, there, here, spread.end)
        keys.beyond |= beyond
        if len(found):
            cut = _list_sides(spread.connectivity)[k].cut
            keys.near[cut], keys.labels[cut] = here[2:]
            better.append(_flat_in_tile(spread, k, labels.shape, found))
    if better:
        keys.improve(np.unique(np.concatenate(better)))
    return keys, classes, cost


def _cut_side(spread: Spread, k: int, keys: Keys | DeviceKeys, classes: npt.NDArray[Any], cost: Cost | None) -> Side:
    """Return a copy of one side of a tile."""
    cut = _list_sides(spread.connectivity)[k].cut
    return (
        classes[cut].astype(np.uint64),
        NO_COST if cost is None else cost[cut].copy(),
        keys.near[cut].copy(),
        keys.labels[cut].copy(),
    )


def _flat_in_tile(spread: Spread, k: int, shape: tuple[int, ...], found: Integers) -> Integers:
    """Return as flat indices of a tile of a shape what `found` are on its side `k`."""
    offset = _list_sides(spread.connectivity)[k].offset
    side = tuple(n if step == 0 else 1 for n, step in zip(shape, offset, strict=True))
    lo = [n - 1 if step > 0 else 0 for n, step in zip(shape, offset, strict=True)]
    places = tuple(i + a for i, a in zip(np.unravel_index(found, side), lo, strict=True))
    return np.ravel_multi_index(places, shape).astype(np.int64)
