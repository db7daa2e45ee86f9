"""The sections stage on a device: what touches voxels, for the pieces of many planes at once.

Tables of pieces are made on the host and copied to the device once for each step; only `measure_pieces`,
`list_overlaps` and `match_motions` bring something back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .device import BLOCK, Device, ceil_div
from .pairs import collect_pairs

__all__ = [
    "ITEM",
    "PIECE",
    "SEARCH",
    "Span",
    "Windows",
    "draw_planes",
    "list_overlaps",
    "match_motions",
    "measure_pieces",
    "open_windows",
]

SIDE = 32
"""Voxels of a tile's side, of windows and of planes."""

WORD = 64
"""Voxels of a word of a template."""

PLAIN = {"CLASS": np.uint8}
"""For kernels that read no class map: they are compiled along with those for the usual one."""

Ints = npt.NDArray[np.int64]
Table = npt.NDArray[np.void]


def _rows(*names: str) -> np.dtype[np.void]:
    return np.dtype([(name, np.int64) for name in names])


PIECE = _rows("y0", "y1", "x0", "x1", "area", "sum_y", "sum_x", "label", "plane")
WINDOW = _rows("image", "top", "left", "rows", "columns", "number", "y", "x", "height", "width", "start", "tile")
SEARCH = _rows("z", "direction", "look", "n", "dy", "dx", "trust", "kind", "word", "tile")
ITEM = _rows("a", "b", "dy", "dx", "label", "kind")
CELL = _rows("block", "z", "number", "n", "y", "x", "entry", "entries")
"""Tables: the structs of the same names in ``sections.cu``."""


@dataclass(frozen=True)
class Windows:
    """Some pieces' windows, and their potentials on the device: 2 bytes for each voxel."""

    table: Table
    rows: Any
    """`table` on the device."""
    potentials: Any


@dataclass(frozen=True)
class Span:
    """Slices of an interval in a box: `slices` from `z` on, of which the first has `number` in the interval of `n`."""

    z: int
    slices: int
    number: int
    n: int


def _upload(device: Device, table: Table) -> Any:
    return device.bring(np.ascontiguousarray(table).view(np.int64))


def _place(sizes: Ints) -> tuple[Ints, int]:
    """Return where things of some sizes begin that stand one after the other, and where the last ends."""
    ends = np.cumsum(sizes)
    return ends - sizes, int(ends[-1]) if len(ends) else 0


def measure_pieces(device: Device, labels: Any, image: Any, count: int) -> Table:
    """Return `PIECE` rows of the pieces 1..`count` in a stack of planes; `image` numbers them over all planes."""
    _, height, width = image.shape
    table = np.zeros(count, dtype=PIECE)
    table["y0"], table["x0"] = height, width
    rows = _upload(device, table)
    measure = device.kernel("sections", "measure_pieces", **PLAIN)
    measure(ceil_div(image.size, BLOCK), BLOCK, labels, image, image.size, height, width, rows)
    return np.asarray(device.fetch(rows).view(PIECE))


def list_overlaps(device: Device, images: Any, firsts: Ints, labels: npt.NDArray[np.uint32]) -> Ints:
    """Return rows ``(piece, next piece, voxels)`` of overlaps of one label of each plane of a stack and the next.

    Pieces are numbered from 0 over all planes, in each plane of `images` from 1; `firsts` is the first one of each
    plane, `labels` has those of all. The rows are in no order.
    """
    plane = images.size // len(images)
    size = images.size - plane
    kernel = device.kernel("sections", "list_overlaps", **PLAIN)
    before, names = device.bring(firsts), device.bring(labels)

    def launch(*table: Any) -> None:
        kernel(ceil_div(size, BLOCK), BLOCK, images, size, plane, before, names, *table)

    rows = collect_pairs(device, launch, [0], size, 4 << len(labels).bit_length())
    return rows - np.array([1, 1, 0], dtype=np.int64)


def open_windows(
    device: Device,
    image: Any,
    planes: Ints,
    numbers: Ints,
    boxes: Ints,
    margins: Ints,
    keys: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Ints],
) -> Windows:
    """Return the windows of some pieces, with their potentials.

    Parameters
    ----------
    image
        The pieces of some planes, one after the other, flat.
    planes
        For each window ``(start, y, x, height, width)``: where what is known of its plane stands in `image`, and which
        part of the plane it is. All places and boxes are counted from any one corner.
    numbers, boxes
        Each piece's number in its plane, and its box.
    margins
        What a window has around the box.
    keys
        Of rows and of columns, and the potentials that they lead to.
    """
    table = np.zeros(len(numbers), dtype=WINDOW)
    table["image"], table["top"], table["left"], table["rows"], table["columns"] = planes.T
    table["number"] = numbers
    table["y"], table["x"] = (boxes[:, 0::2] - margins).T
    table["height"], table["width"] = (boxes[:, 1::2] - boxes[:, 0::2] + 2 * margins).T
    table["start"], voxels = _place(table["height"] * table["width"])
    table["tile"], tiles = _place(-(-table["height"] // SIDE) * -(-table["width"] // SIDE))
    rows = _upload(device, table)
    potentials = device.xp.empty(voxels, np.int16)
    write = device.kernel("sections", "potentials_of_pieces", **PLAIN)
    write(tiles, BLOCK, image, rows, len(table), *map(device.bring, keys), *margins, potentials)
    return Windows(table, rows, potentials)


def match_motions(
    device: Device,
    volume: Any,
    windows: Windows,
    searches: Table,
    cap: int,
    weights: Ints,
    tried: tuple[int, int, int],
    clamp: Ints,
    steps: Ints,
) -> Ints:
    """Return the motion of each piece that the class map follows best.

    Parameters
    ----------
    volume
        Class map; the slices lie across its first axis.
    windows, searches
        Of the pieces, and what is known of each (`SEARCH`, but for its ``word`` and ``tile``).
    cap
        Least absolute potential that tells nothing.
    weights
        Of the slices, from the one next to the piece on.
    tried
        How many steps each way at first, their length in 1/16 voxel a slice, and the length at which halving ends.
    clamp
        Longest motion along each axis, in 1/16 voxel.
    steps
        1/64 pixels to a voxel.

    Notes
    -----
    Needs 2 bits for each voxel of a window and some 1000 bytes for each piece.
    """
    xp = device.xp
    _, height, width = volume.shape
    searches = searches.copy()
    words = -(-windows.table["width"] // WORD)
    searches["word"], all_words = _place(windows.table["height"] * words)
    searches["tile"], tiles = _place(-(-windows.table["height"] // SIDE) * words)
    rows = _upload(device, searches)
    count = len(searches)
    motions = device.bring(np.clip(np.column_stack([searches["dy"], searches["dx"]]), -clamp, clamp))
    weighs = device.bring(weights)
    templates, counted = xp.empty(2 * all_words, np.uint64), xp.zeros(count, np.uint64)
    pack, rate, choose = (
        device.kernel("sections", name, CLASS=volume.dtype)
        for name in ("list_templates", "rate_motions", "choose_motions")
    )
    pack(
        ceil_div(32 * all_words, BLOCK), BLOCK,
        volume, height, width, windows.rows, rows, count, windows.potentials, cap, all_words, templates, counted,
    )  # fmt: skip
    reach, step, fine = tried
    while True:
        scores = xp.zeros(count * (2 * reach + 1) ** 2, np.uint64)
        rate(
            tiles, BLOCK // 2,
            volume, height, width, windows.rows, rows, count, templates, weighs, motions, *clamp, reach, step, scores,
        )  # fmt: skip
        choose(
            ceil_div(count, BLOCK), BLOCK,
            rows, count, counted, weighs, scores, *steps, *clamp, reach, step, motions,
        )  # fmt: skip
        if step <= fine:
            return device.fetch(motions)
        step //= 2
        reach = 1


def draw_planes(
    device: Device,
    volume: Any,
    spans: list[Span],
    part: Ints,
    items: Table,
    near: Ints,
    windows: Windows,
    levels: tuple[int, int, int],
    labels: Any,
) -> None:
    """Label the unlabelled voxels of some slices of a box, in place.

    Parameters
    ----------
    volume, labels
        Class map and labels of the box; the slices lie across the first axis.
    spans
        Slices between annotated ones.
    part
        The span of each item.
    items
        `ITEM` rows.
    near
        Boxes ``(y0, y1, x0, x1)`` outside of which the items draw nothing.
    windows
        Windows that the items name, counted from the box's corner.
    levels
        The cap in 1/16 pixel, then in 1/4096 pixel what lone pieces lose a slice and the least potential that draws.
    """
    _, height, width = volume.shape
    lo = np.maximum(near[:, 0::2], 0)
    hi = np.minimum(near[:, 1::2], [height, width])
    inside = np.flatnonzero((lo < hi).all(axis=1))
    first = lo[inside] // SIDE
    tiles = (hi[inside] - 1) // SIDE + 1 - first

    # Each item once for each tile that it may reach; those of a tile of a span together are the items of a cell.
    counts = tiles.prod(axis=1)
    starts, total = _place(counts)
    which = np.repeat(np.arange(len(inside)), counts)
    row, column = np.divmod(np.arange(total) - starts[which], tiles[which, 1])
    rows, columns = ceil_div(height, SIDE), ceil_div(width, SIDE)
    key = (part[inside][which] * rows + first[which, 0] + row) * columns + first[which, 1] + column
    order = np.argsort(key, kind="stable")
    found, entry, entries = np.unique(key[order], return_index=True, return_counts=True)
    span, tile = np.divmod(found, rows * columns)
    table = np.array([(each.z, each.slices, each.number, each.n) for each in spans], dtype=np.int64)[span]
    cells = np.zeros(len(found), dtype=CELL)
    cells["z"], cells["number"], cells["n"] = table[:, 0], table[:, 2], table[:, 3]
    cells["y"], cells["x"] = SIDE * (tile // columns), SIDE * (tile % columns)
    cells["entry"], cells["entries"] = entry, entries
    cells["block"], blocks = _place(table[:, 1])

    draw = device.kernel("sections", "draw_planes", CLASS=volume.dtype)
    draw(
        blocks, BLOCK,
        volume, height, width, _upload(device, cells), len(cells), device.bring(inside[which[order]]),
        _upload(device, items), windows.rows, windows.potentials, *levels, labels,
    )  # fmt: skip
