"""What a run over tiles will take, before it starts."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays.backend import check_device, is_on_device
from ..arrays.text import format_bytes
from ..errors import InputError, InputTypeError, Keyword
from ..files.ngff import ARRAY, Form, plan_steps
from ..tiled.driver.budget import COMPRESSED, VERBS, choose_tile, weigh
from ..tiled.driver.grid import Grid
from ..tiled.driver.outputs import check_storage, is_store
from ..tiled.driver.run import find_geometry
from ..tiled.driver.stored import Source, open_ids, open_source
from .dispatch import check_flags

__all__ = ["Estimate", "estimate"]


@dataclass(frozen=True)
class Estimate:
    """What a run will take; `str` of it is a table.

    Attributes
    ----------
    verb : str
        What is estimated.
    shape : tuple of int
        ``(Z, Y, X)`` of the volume.
    tile : tuple of int
        Voxels of a tile.
    tiles : int
        Their number.
    workers : int
        Tiles that are worked on at once.
    memory : int
        Bytes of memory at the peak: the process, and a tile for each worker.
    scratch, scratch_worst : int
        Bytes on the disk beside the result while the run lasts: of a real volume, and of one in which every voxel is
        another label.
    output, output_worst : int
        Bytes of the results: of labels that compress as real ones do, and of those that do not at all.
    core_seconds : float
        Seconds of one core in all. Rough: half to twice of it.
    seconds : float
        Of `workers` cores. On a cluster divide `core_seconds` by its cores.
    """

    verb: str
    shape: tuple[int, int, int]
    tile: tuple[int, int, int]
    tiles: int
    workers: int
    memory: int
    scratch: int
    scratch_worst: int
    output: int
    output_worst: int
    core_seconds: float
    seconds: float

    def __str__(self) -> str:
        sides = " x ".join(map(str, self.shape))
        lines = {
            "volume": f"{sides}, {math.prod(self.shape):,} voxels",
            "tiles": f"{self.tiles:,} of {' x '.join(map(str, self.tile))}, {self.workers} at once",
            "memory": f"{format_bytes(self.memory)} at most",
            "scratch": f"about {format_bytes(self.scratch)}, {format_bytes(self.scratch_worst)} at worst",
            "output": f"about {format_bytes(self.output)}, {format_bytes(self.output_worst)} at worst",
            "time": f"about {format_seconds(self.seconds)} ({format_seconds(self.core_seconds)} of one core), roughly",
        }
        if not self.output_worst:
            del lines["output"]
        return "\n".join(f"{name + ':':<9}{text}" for name, text in ({"verb": self.verb} | lines).items())


def format_seconds(seconds: float) -> str:
    """Return a length of time for a person."""
    for name, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {name}"
    return f"{max(math.ceil(seconds), 1)} s"


def estimate(verb: str, /, *args: Any, memory: Any = None, tile: Any = None, **keywords: Any) -> Estimate:
    """Estimate what a verb will take on stored arrays, before anything starts.

    Parameters
    ----------
    verb : {"label", "propagate", "merge", "contacts", "stitch", "fuse", "evaluate"}
        What is to be run.
    *args
        What the verb takes. Arrays are paths or URLs of zarr arrays, zarr arrays or dask arrays; of these only
        shape, chunks and dtype are looked at. For a volume that is not there yet pass
        ``dask.array.zeros(shape, dtype="uint8", chunks=128)``, which takes no memory.
    memory : str or int, optional
        The budget, such as ``"4GB"``; by default half of the memory that is free.
    tile : int or sequence of int, optional
        The tile; by default the budget decides.
    **keywords
        What the verb takes by name.

    Returns
    -------
    Estimate
        Tiles, workers, memory, bytes on the disk, and rough times. ``print`` it.

    Raises
    ------
    InputError
        If there is no such verb, an array cannot be opened, or the budget is too small for one tile.
    InputTypeError
        If an array is in memory.
    TypeError
        If the verb has no such parameter.

    Notes
    -----
    Memory is that of the process and of a tile for each worker. Tables of objects and of pairs that touch, some 10 to
    200 bytes each, come to it. What disks need depends on how the labels compress: real ones to 1/20 to 1/100 of their
    size, of which the typical figures take 1/20. The results' are those of all levels. Times are rough, half to twice
    of what a common server takes.

    No GPU is looked at, so it may be another machine's: with ``device="cuda"`` the figures are still the CPU's, and the
    run takes smaller tiles, or fewer at once, where the GPU's memory allows no more.

    See Also
    --------
    label, propagate, merge, contacts, stitch, fuse, evaluate : what is estimated.

    Examples
    --------
    >>> import dask.array, lpa3d
    >>> volume = dask.array.zeros((10_000, 10_000, 10_000), dtype="uint8", chunks=256)
    >>> e = lpa3d.estimate("label", volume, tile=512, memory="8GB")
    >>> e.tiles, e.output_worst
    (8000, 9142854398520)
    """
    if verb not in VERBS:
        raise InputError(Keyword("verb"), f" is {verb!r}; one of {', '.join(VERBS)} is needed")
    function = getattr(importlib.import_module(f"lpa3d.verbs.{verb}"), verb)
    try:
        bound = inspect.signature(function).bind(*args, **keywords).arguments
    except TypeError as error:
        raise TypeError(f"{verb}() {error}") from None
    given = check_flags(verb, bound)
    check_device(verb, given.get("device"))
    names, _ = VERBS[verb]
    sources = _open_sources(verb, {name: given[name] for name in names if given.get(name) is not None})
    first = next(iter(sources.values()))
    made, cost = weigh(verb, sources, given)
    plan = choose_tile(
        first.shape,
        first.chunks,
        tile=tile,
        memory=memory,
        ndim=first.ndim,
        bytes_per_voxel=cost.memory,
        halo=cost.halo,
        inputs=sources.values(),
    )
    voxels = math.prod(first.shape)
    raw = _count_stored(sources, given) * sum(dtype.itemsize for dtype in made)
    seconds = cost.nanoseconds * voxels / 1e9
    tiles = len(Grid(first.shape, plan.tile))
    return Estimate(
        verb,
        first.shape,
        plan.tile,
        tiles,
        min(plan.workers, tiles),
        plan.memory,
        int(cost.scratch[0] * voxels),
        int(cost.scratch[1] * voxels),
        int(COMPRESSED * raw),
        raw,
        seconds,
        seconds / max(min(plan.workers, tiles), 1),
    )


def _count_stored(sources: Mapping[str, Source], given: Mapping[str, Any]) -> int:
    """Return the voxels of all levels of a result."""
    first = next(iter(sources.values()))
    storage = check_storage(given.get("storage"), first.ndim)
    if storage.get("layout") == ARRAY or is_store(given.get("out")):
        return math.prod(first.shape)
    spacing = find_geometry(sources, given).spacing
    steps = plan_steps(first.shape, first.ndim, spacing, storage.get("levels"))
    return sum(map(math.prod, Form("0.5", steps=steps).shapes(first.shape)))


def _open_sources(verb: str, values: Mapping[str, Any]) -> dict[str, Source]:
    """Open all stored arrays; what is no array (a mapping of classes, a value) counts for nothing."""
    sources = {}
    for name, value in values.items():
        # Only classes of two volumes are several arrays; all others are refused where they are opened.
        pair = verb == "evaluate" and name == "classes" and isinstance(value, (tuple, list))
        for k, part in enumerate(value if pair else (value,)):
            if isinstance(part, np.ndarray) or is_on_device(part):
                raise InputTypeError(
                    Keyword(name),
                    f" is in memory, where {verb} takes no tiles; estimate() is about zarr and dask arrays",
                )
            if name in ("classes", "ignore") and isinstance(part, (Mapping, int, np.integer)):
                continue
            opened = (open_source if name in ("image", "cost") else open_ids)(part, name)
            sources[name if k == 0 else f"{name}[{k}]"] = opened
    if not sources:
        raise InputError(f"there is no array to {verb}; pass paths of zarr arrays, zarr arrays or dask arrays")
    return sources
