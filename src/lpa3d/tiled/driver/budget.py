"""What verbs cost, how large tiles are and how many are worked on at once: a memory budget decides the latter two."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import operator
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...arrays.text import format_bytes, parse_memory
from ...arrays.threads import num_threads
from ...errors import Example, InputError, Keyword
from .grid import Place
from .stored import Source

__all__ = [
    "COMPRESSED",
    "COSTS",
    "VERBS",
    "Cost",
    "Plan",
    "Room",
    "available_memory",
    "canonical_sides",
    "check_room",
    "choose_tile",
    "find_cost",
    "give_back_memory",
    "weigh",
]

Dtypes = list[np.dtype[Any]]


def _widest(*sources: Source | None) -> np.dtype[Any]:
    return np.result_type(np.uint8, *(source.dtype for source in sources if source is not None))


def _count_dtype(sources: Mapping[str, Source]) -> np.dtype[Any]:
    size = math.prod(next(iter(sources.values())).shape)
    return np.dtype(np.uint32 if size < 2**32 else np.uint64)


def _propagated(sources: Mapping[str, Source], keywords: Mapping[str, Any]) -> Dtypes:
    seeds = sources["seeds"].dtype
    return [np.dtype(np.uint8) if seeds.kind == "b" else seeds] + [np.dtype(np.uint16)] * bool(
        keywords.get("return_confidence")
    )


def _fused(sources: Mapping[str, Source], keywords: Mapping[str, Any]) -> Dtypes:
    labels = _widest(sources.get("instances"), sources.get("slices"))
    return [_widest(sources.get("classes")), labels, np.dtype(np.uint8)]


VERBS: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Source], Mapping[str, Any]], Dtypes]]] = {
    "label": (("volume",), lambda sources, _: [_count_dtype(sources)]),
    "propagate": (("volume", "seeds", "cost"), _propagated),
    "merge": (("labels", "classes"), lambda sources, _: [sources["labels"].dtype]),
    "contacts": (("labels", "image"), lambda *_: []),
    "stitch": (("slices", "classes"), lambda sources, _: [_count_dtype(sources)]),
    "fuse": (("classes", "instances", "slices"), _fused),
    "evaluate": (("reference", "prediction", "ignore", "classes"), lambda *_: []),
}
"""The arrays of each verb, the first of which decides the tiles, and the dtypes of its results."""


def weigh(verb: str, sources: Mapping[str, Source], keywords: Mapping[str, Any]) -> tuple[Dtypes, Cost]:
    """Return the dtypes of a verb's results, and what it costs."""
    made = VERBS[verb][1](sources, keywords)
    return made, find_cost(verb, {name: source.dtype for name, source in sources.items()}, made, keywords)


LARGEST = 2**24
"""Voxels of a tile, 256 cubed, beyond which larger ones gain nothing (without a halo)."""

FIXED = 250 * 10**6
"""Bytes that the process itself needs: Python, NumPy, compiled code, zarr."""

SWEEPS = 32
"""Rounds of diffusion of `propagate` where nobody says how many, at most."""

COMPRESSED = 1 / 20
"""Share of its raw size that a stored volume of labels takes: real ones take 1/20 to 1/100, noise nearly all of it."""

SAFETY = 1.5
"""How much more than what is typical must be free on a disk."""

SHARE = 0.9
"""How much of a GPU's free memory is planned for: some is lost between arrays, and compiled kernels take some."""


@dataclass(frozen=True)
class Cost:
    """What a run takes for each voxel, besides the process itself.

    Attributes
    ----------
    nanoseconds : float
        Of one core, reading and writing included. Rough: real volumes take from half to twice of it.
    memory : float
        Peak bytes of a task, for a voxel of a tile and its halo.
    scratch : tuple of float
        Bytes on the disk at the peak: of a real volume, and of the worst one (every voxel another label).
    halo : int
        Widest halo of any task.
    device : float
        Peak bytes on a GPU, for a voxel of a tile and its halo, or of a volume that is worked on as a whole.
    """

    nanoseconds: float
    memory: float
    scratch: tuple[float, float] = (0.0, 0.0)
    halo: int = 0
    device: float = 0.0


@dataclass(frozen=True)
class Asked:
    """What a verb is asked for: bytes of a voxel of each input by its name, and of all results; its keywords."""

    inputs: Mapping[str, int]
    results: int
    keywords: Mapping[str, Any]

    @property
    def read(self) -> int:
        """Return the bytes of a voxel of all inputs."""
        return sum(self.inputs.values())


def _label(asked: Asked) -> Cost:
    # Chunks are decoded and encoded beside the tile; then runs, and what the allocator does not give back (measured).
    return Cost(10.0, 2 * max(asked.read, asked.results) + 5, (0.2, 10.0), device=asked.read + asked.results + 3)


def _propagate(asked: Asked) -> Cost:
    links = 4 if asked.keywords.get("connectivity", 6) not in (1, 6) else 1
    cost = 2 if "cost" in asked.inputs else 0
    sweeps = asked.keywords.get("sweeps")
    halo = SWEEPS if sweeps is None else int(sweeps)
    # Of a worklist: labels, nearness and what is queued; of the seeds as they are read.
    single = 16 + links + cost + 2 * asked.read
    # Of diffusion: labels, seeds, classes, hops, queue, lists. Measured: 13 on vesicles, 22 where all is near a border.
    around = 20 + links + cost + (2 if asked.keywords.get("return_confidence") else 0)
    # Ranks of the labels; then what diffusion takes where every voxel is near a border, or what keys take.
    device = asked.read + asked.results + 4 + links + cost + (33 if halo else 10)
    return Cost(100.0, max(around, 0.6 * single) if halo else single, (0.4, 24.0), halo, device)


def _contacts(asked: Asked) -> Cost:
    return Cost(20.0, 2 * asked.read + 2, (0.2, 60.0), device=asked.read + 4)


def _merge(asked: Asked) -> Cost:
    return Cost(30.0, 2 * asked.read + 2, (0.2, 60.0), device=asked.read + asked.results + 2)


def _stitch(asked: Asked) -> Cost:
    return Cost(40.0, max(asked.read + asked.results + 12, 24), (0.2, 60.0))


def _fuse(asked: Asked) -> Cost:
    # What is read and its canonical form; combinations, as a number for each voxel; results.
    return Cost(40.0, 2 * asked.read + 2 * asked.results + 8, (0.2, 60.0))


def _evaluate(asked: Asked) -> Cost:
    # Numbers of components; lists of surface voxels; masks, what is warped, and the voxels that differ.
    more = (
        asked.keywords.get("instances") == "components",
        bool(asked.keywords.get("surfaces")),
        asked.keywords.get("warping") is not None,
    )
    # A copy without ignored voxels, and the mask of these; numbers of components.
    device = 2 * asked.read + 2 + 18 * more[0]
    return Cost(8.0 + 30.0 * sum(more), asked.read + 6 + 10 * sum(more), (0.1, 40.0), device=device)


COSTS: dict[str, Callable[[Asked], Cost]] = {
    "label": _label,
    "propagate": _propagate,
    "merge": _merge,
    "contacts": _contacts,
    "stitch": _stitch,
    "fuse": _fuse,
    "evaluate": _evaluate,
}
"""The one place that knows what verbs take: runs are cut by it, and `lpa3d.estimate` tells it."""


def find_cost(
    verb: str,
    inputs: Mapping[str, npt.DTypeLike],
    results: Iterable[npt.DTypeLike],
    keywords: Mapping[str, Any],
) -> Cost:
    """Return what a verb takes on inputs and results of these dtypes; keywords that are missing have their defaults."""
    sizes = {name: np.dtype(dtype).itemsize for name, dtype in inputs.items()}
    return COSTS[verb](Asked(sizes, sum(np.dtype(dtype).itemsize for dtype in results), keywords))


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process may still use: what is free of the machine, of its control groups (a
    container's, a batch job's) and of the address space that it may have.

    Parameters
    ----------
    root : Path
        Where ``/proc`` and ``/sys`` are.
    """
    import psutil

    free = [psutil.virtual_memory().available, *_free_of_groups(root)]
    with contextlib.suppress(ImportError):  # Windows
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            free.append(limit - psutil.Process().memory_info().vms)
    return int(max(0, min(free)))


GROUPS = {
    # Above `memory.high` a process is slowed down until it hardly goes on.
    "cgroup2": (("memory.max", "memory.high"), "memory.current", "inactive_file"),
    "cgroup": (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file"),
}
"""For each version of control groups: the files of limits and of what is used, and what a line of ``memory.stat`` calls
the part of it that the system gives back when it is needed: pages of files that nobody reads now."""


def _free_of_groups(root: Path) -> Iterator[int]:
    """Yield what is free of each control group that this process is in, and of those around it."""
    try:
        # Such as "0::/job" and "5:cpu,memory:/job".
        lines = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
        mounts = [line.split() for line in (root / "proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return  # no Linux
    for mount in mounts:
        # Such as "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw".
        kind, _, options = mount[mount.index("-") + 1 :][:3]
        if kind not in GROUPS or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        for _, controllers, path in lines:
            if ("memory" in controllers.split(",")) if kind == "cgroup" else not controllers:
                place = Path(path)
                inside = place.relative_to(mount[3]) if place.is_relative_to(mount[3]) else Path()
                top = root / mount[4].replace("\\040", " ").lstrip("/")
                for level in (inside, *inside.parents):
                    yield from _free_of_group(top / level, *GROUPS[kind])


def _free_of_group(folder: Path, limits: Sequence[str], used: str, cached: str) -> Iterator[int]:
    """Yield what is free of one control group below each of its limits."""
    with contextlib.suppress(OSError, ValueError):  # it has no limit, or does not count memory
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        taken = int((folder / used).read_text()) - int(stat.get(cached, 0))
        for name in limits:
            with contextlib.suppress(OSError, ValueError):  # "max"
                yield int((folder / name).read_text()) - taken


def give_back_memory() -> None:
    """Give the memory of tables that are gone back to the system: the C library keeps it, beside what tiles take."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def check_room(verb: str, needs: Iterable[tuple[Path, str, float]]) -> None:
    """Refuse work that cannot fit on its disks.

    Parameters
    ----------
    verb : str
        For the message.
    needs : iterable of (Path, str, float)
        A folder that exists, what is written there, and its bytes as they typically are.
    """
    disks: dict[int, list[tuple[Path, str, float]]] = {}
    for folder, what, size in needs:
        disks.setdefault(os.stat(folder).st_dev, []).append((folder, what, size))
    for parts in disks.values():
        folder = parts[0][0]
        free, need = shutil.disk_usage(folder).free, SAFETY * sum(size for _, _, size in parts)
        if need > free:
            listed = " and ".join(f"{format_bytes(SAFETY * size)} for {what}" for _, what, size in parts)
            raise InputError(
                f"{verb} needs about {listed} on the disk of {folder}, where {format_bytes(free)} are free; make room, "
                "or choose a folder on another disk with ",
                Keyword("scratch", Example("FOLDER")),
                " (or another place for the result)",
            )


@dataclass(frozen=True)
class Room:
    """What a GPU has room for.

    Attributes
    ----------
    memory : int
        Bytes that are free.
    bytes_per_voxel : float
        What a voxel of a tile and its halo needs.
    """

    memory: int
    bytes_per_voxel: float

    @property
    def voxels(self) -> float:
        """Return how many voxels may be there at once."""
        return SHARE * self.memory / self.bytes_per_voxel if self.bytes_per_voxel else math.inf


@dataclass(frozen=True)
class Plan:
    """How a run is cut.

    Attributes
    ----------
    tile : tuple of int
        Voxels of a tile along each axis.
    workers : int
        Tiles that are worked on at once.
    memory : int
        Bytes that they need together, the process included.
    """

    tile: Place
    workers: int
    memory: int


def count_voxels(tile: Sequence[int], shape: Sequence[int], halo: int) -> int:
    """Return the voxels of a tile, its halo included."""
    return math.prod(min(t + 2 * halo, n) for t, n in zip(tile, shape, strict=True))


CONCURRENT = 10
"""Chunks of one array that zarr decodes at once, at most (``async.concurrency``)."""

DECODERS = min(32, (os.cpu_count() or 1) + 4)
"""Threads in which zarr decodes, of all reads together: what Python takes where nobody says how many."""

GIVEN_BACK = 2**25
"""Bytes from which on the allocator of glibc gives a block back; smaller ones each thread may keep."""


def count_decoded(tile: Place, halo: int, source: Source, workers: int) -> float:
    """Return the bytes of an input's chunks that are decoded at once beyond those of the tiles themselves.

    A chunk is decoded whole, however little of it a tile meets. Of a shard only the chunks in it that are met are.
    """
    met, box = 1, source.dtype.itemsize
    for t, n, c in zip(tile, source.shape, source.chunks, strict=True):
        side = min(t + 2 * halo, n)
        aligned = side == n or (not halo and (t % c == 0 or c % t == 0))
        met *= min(-(-side // c) if aligned else -(-(side - 1) // c) + 1, -(-n // c))
        box *= side
    size = math.prod(source.chunks) * source.dtype.itemsize * source.decoded
    there = math.prod(-(-n // c) for n, c in zip(source.shape, source.chunks, strict=True))
    # Threads that decode, and workers, which copy (measured).
    kept = size * min(DECODERS + 2 * workers, there) if size < GIVEN_BACK and there > 1 else 0
    if source.is_dask:
        met = 1  # one after the other
    # What it is decoded from may be as large where it hardly compresses; within a tile there is room for that.
    size *= 2 if size > box else 1
    decoded = max(float(kept), min(workers * min(met, CONCURRENT), max(workers, DECODERS)) * size - workers * box)
    return decoded + workers * source.copied * box / source.dtype.itemsize


def choose_tile(
    shape: Place,
    chunks: Place,
    *,
    tile: Any = None,
    memory: Any = None,
    ndim: int = 3,
    bytes_per_voxel: float,
    halo: int = 0,
    workers: int | None = None,
    unit: Place | None = None,
    room: Room | None = None,
    inputs: Iterable[Source] = (),
) -> Plan:
    """Choose the tile and the number of workers for a budget.

    Parameters
    ----------
    shape, chunks
        Of the volume that is read; tiles of whole chunks decode each of them once.
    tile : int or sequence of int, optional
        What the caller asks for.
    memory : str or int, optional
        The budget in all; by default half of what is free.
    bytes_per_voxel, halo
        What a voxel of a tile and its halo needs while it is worked on.
    workers : int, optional
        Most tiles at once, by default one for each core.
    unit : tuple of int, optional
        What a tile must hold whole ones of: the chunks or shards that the caller wants the output to have.
    room : Room, optional
        Of the GPU that works on the tiles, which holds all those that are worked on at once.
    inputs : iterable of Source
        All that is read, whose chunks are decoded whole.

    Raises
    ------
    InputError
        If not even one tile fits into the budget, or on the GPU; the message says what does.
    """
    budget = available_memory() // 2 if memory is None else parse_memory(memory)
    most = num_threads() if workers is None else workers
    sources = list(inputs)

    def need(tile: Place, workers: int) -> float:
        decoded = sum(count_decoded(tile, halo, source, workers) for source in sources)
        return workers * max(1, int(bytes_per_voxel * count_voxels(tile, shape, halo))) + decoded

    def excess(tile: Place, workers: int) -> float:
        on_device = 0.0 if room is None else workers * count_voxels(tile, shape, halo) / max(room.voxels, 1e-9)
        return max(need(tile, workers) / max(budget - FIXED, 1), on_device)

    chosen = (
        canonical_sides(tile, "tile", ndim) if tile is not None else _search(shape, chunks, excess, most, halo, unit)
    )
    voxels = count_voxels(chosen, shape, halo)
    workers = next((k for k in range(most, 0, -1) if need(chosen, k) <= budget - FIXED), 0)
    if workers < 1:
        one, advice = need(chosen, 1), "a smaller tile, or more memory" if tile is not None else "more memory"
        large = max(sources, key=lambda source: count_decoded(chosen, halo, source, 1), default=None)
        chunk = ""
        if large is not None and (beyond := count_decoded(chosen, halo, large, 1)) > max(one, FIXED / 5) / 2:
            sides = large.chunks[3 - large.ndim :]
            chunk = f" ({format_bytes(beyond)} of it for chunks of {sides}, which are decoded whole, of {large.name})"
            advice = "more memory, or store it in smaller chunks"
        half = f"half of the free memory, {format_bytes(budget)},"
        raise InputError(
            half if memory is None else Keyword("memory", memory),
            f" is too little: a tile of {chosen} with its halo of {halo} needs {format_bytes(one)}{chunk} "
            f"besides {format_bytes(FIXED)} for the process; pass {advice}, e.g. ",
            # Rounded up: it is to suffice.
            Keyword("memory", f"{math.ceil((one + FIXED) / 1e8) / 10}GB"),
        )
    if room is not None and voxels > room.voxels:
        raise InputError(
            f"a tile of {chosen} with its halo of {halo} needs about {format_bytes(room.bytes_per_voxel * voxels)} on "
            f"the GPU, where {format_bytes(SHARE * room.memory)} can be used; free some of it, pass a smaller tile "
            "(of zarr or dask arrays), or leave out ",
            Keyword("device", "cuda"),
        )
    if room is not None and voxels:
        workers = int(min(workers, room.voxels / voxels))
    return Plan(chosen, int(workers), int(need(chosen, int(workers))) + FIXED)


def canonical_sides(value: Any, name: str, ndim: int) -> Place:
    """Return a side, or one for each axis, as three whole numbers > 0."""
    try:
        given = [operator.index(n) for n in value] if np.ndim(value) else [operator.index(value)] * 3
    except TypeError:
        given = []
    if ndim == 2 and len(given) == 2:
        given = [1, *given]
    if len(given) != 3 or min(given) < 1 or isinstance(value, bool):
        raise InputError(
            Keyword(name),
            f" is {value!r}; a side or sides {'(z, y, x)' if ndim == 3 else '(y, x)'} of 1 or more are needed, e.g. "
            "128",
        )
    return given[0], given[1], given[2]


def _search(
    shape: Place,
    chunks: Place,
    excess: Callable[[Place, int], float],
    workers: int,
    halo: int,
    unit: Place | None,
) -> Place:
    """Return the tile that decodes and computes the least twice, of those of which each worker has room for one, or
    half of the workers, and so on.

    ``excess(tile, workers)`` is what they need, as a share of what there is.
    """
    axes = []
    for n, c, u in zip(shape, chunks, unit or (1, 1, 1), strict=True):
        sides = {c * 2**k for k in range(12) if c * 2**k < n} | {s for s in (32, 64, 128, 256, 512) if s < n}
        # Chunks of one slice must not make tiles of one slice.
        sides |= {u * 2**k for k in range(12) if u * 2**k < n}
        axes.append(sorted({s for s in sides if s % u == 0} | {max(n, 1)}))
    tiles = [(z, y, x) for z, y, x in itertools.product(*axes)]
    fitting: list[Place] = []
    while workers and not fitting:
        fitting = [tile for tile in tiles if excess(tile, workers) <= 1]
        busy, workers = workers, workers // 2
    if not fitting:
        return min(tiles, key=lambda tile: (excess(tile, 1), sum(tile)))
    # Enough tiles for all workers, unless they become tiny.
    most = max(min(LARGEST * (8 if halo else 1), math.prod(shape) // (2 * busy)), 2**18)

    def score(tile: Place) -> tuple[float, ...]:
        decoded = computed = 1.0
        for t, n, c in zip(tile, shape, chunks, strict=True):
            # Chunks that a tile meets, when the tiles do not start where chunks do.
            decoded *= max(1.0, ((1 if t >= n else -(-t // c) + (t % c != 0)) * c) / t) if t < n else 1.0
            computed *= min(t + 2 * halo, n) / t
        size = math.prod(tile)
        return float(max(size - most, 0)), decoded + 2 * computed + 2**18 / size, float(sum(tile))

    return min(fitting, key=score)
