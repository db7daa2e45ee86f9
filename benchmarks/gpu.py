"""Run the operations on a CUDA device, and print their times beside the floors as a Markdown table.

    python -m benchmarks.gpu                         all floors, a few minutes, mostly to make the volumes
    python -m benchmarks.gpu --size 512 --only label a part of it, on smaller volumes
    python -m benchmarks.gpu --check --size 256      no times: are the bytes those of the CPU?

Arrays are on the device before the clock starts and stay there. Each call is made once to compile its kernels, then
`--repeat` times between CUDA events; medians are shown. The *memory floor* is the time that reading each argument and
writing each result once takes at the bandwidth of a copy, measured first. UroCell's vesicles and the connectomics
segmentation are looked for where `benchmarks.compare` does; without the vesicles labels are propagated in a synthetic
cell, and the table says so.

The same check under the tools that find what it may not show, of small volumes, as each takes its time:

    for tool in memcheck initcheck racecheck synccheck; do
        compute-sanitizer --tool $tool python -m benchmarks.gpu --check --size 96
    done
"""

from __future__ import annotations

import argparse
import functools
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lpa3d
from lpa3d import phantom
from lpa3d.arrays.backend import open_device
from lpa3d.arrays.overlap import count_overlaps

from .compare import (
    EVERY,
    TILE,
    VOLUMES,
    FailedError,
    NotThereError,
    find_data,
    format_ratio,
    format_table,
    judge,
    keep_slices,
    print_notes,
    read_connectomics,
    read_urocell,
    say,
    tile,
    tile_instances,
)

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]

CLASSES = 5
"""Classes of the multi-class volume."""

BLOCKS = 16
"""Blocks along each axis whose overlaps are counted: 4,096 in one volume, 4,913 in the other."""

SHIFT = 5
"""Voxels by which the second volume of blocks is moved."""

COPIED = 2**30
"""Bytes of the copy that measures the bandwidth."""


# --------------------------------------------------------------------------------------------------------- the volumes


def make_noise(size: int, classes: int) -> Array:
    """Return a class map of which three voxels in ten are foreground, slice by slice to save memory."""
    volume = np.empty((size,) * 3, np.uint8)
    for z, plane in enumerate(volume):
        rng = np.random.default_rng(z)
        plane[...] = (rng.random(plane.shape, np.float32) < 0.3) * rng.integers(1, classes + 1, plane.shape, np.uint8)
    return volume


def make_blocks(size: int, shift: int) -> Array:
    """Return a volume full of blocks, each with an id of its own, moved by some voxels along all axes."""
    along = (np.arange(size, dtype=np.int32) + shift) // (size // BLOCKS)
    many = along[-1] + 1
    return (along[:, None, None] * many + along[:, None]) * many + along + 1


def make_vesicles(data: Path | None, size: int) -> tuple[str, Array, Array]:
    """Return a name, a class map of vesicles that repeat along all axes, and their ids on every 16th slice."""
    try:
        name, instances = "fv tiled", read_urocell(data, "fv", "instance", VOLUMES[0])
        classes = read_urocell(data, "fv", "binary", VOLUMES[0]) > 0
    except NotThereError as error:
        say(f"{error}: a synthetic cell takes their place")
        shape = np.maximum(phantom.SMALLEST_SHAPE, min(size, TILE))
        cell = phantom.cell(tuple(map(int, shape)))
        side = int(shape.min())
        name, instances, classes = "phantom tiled", cell.instances, cell.classes
        instances, classes = (array[:side, :side, :side] for array in (instances, classes))
    return name, tile(classes, size).astype(np.uint8), keep_slices(tile_instances(instances, size), EVERY)


# ------------------------------------------------------------------------------------------------------------ the rows


@dataclass
class Row:
    """One operation on its arrays.

    Attributes
    ----------
    what : str
        Its name.
    arrays : tuple
        What it reads, in memory.
    call : callable
        Works on them, in memory or on the device, and returns an array.
    floor : float
        Most milliseconds that it may take.
    written : int
        Bytes of its result.
    rival : bool
        Whether `cupyx.scipy.ndimage.label` is called on the first array beside it.
    """

    what: str
    arrays: tuple[Array, ...]
    call: Callable[..., Any]
    floor: float
    written: int = 0
    rival: bool = False


def count_pairs(reference: Any, prediction: Any) -> Any:
    """Return the table of overlaps, sorted by pair, as one array: it is on the host on either side."""
    found = count_overlaps(reference, prediction, None)
    return np.column_stack([found.pairs, found.voxels, found.boxes.reshape(-1, 6)])


def list_rows(size: int, data: Path | None, wanted: Callable[[str], object]) -> Iterator[Row]:
    """Yield the rows that are wanted; a volume is made when its row comes."""
    label = functools.partial(lpa3d.label, connectivity=26)
    masks: dict[str, Callable[[], Array]] = {
        "binary": lambda: make_noise(size, 1),
        "multi-class": lambda: make_noise(size, CLASSES),
        "binary, fv tiled": lambda: tile(read_urocell(data, "fv", "binary", VOLUMES[0]) > 0, size).astype(np.uint8),
        "multi-class, connectomics tiled": lambda: tile(read_connectomics(data, min(size, 512)), size),
    }
    for name, make in masks.items():
        what = f"label, {name}, {size} cubed, 26"
        if wanted(what):
            try:
                volume = make()
            except NotThereError as error:
                say(f"{what}: {error}")
            else:
                yield Row(what, (volume,), label, 25, 4 * size**3, rival=True)
    half = size // 2
    calls = {"geodesic only": ({"sweeps": 0, "slice_axis": None}, 60), "defaults": ({}, 250)}
    if any(wanted(f"propagate, {name}") for name in calls):
        source, classes, seeds = make_vesicles(data, half)
        for name, (options, floor) in calls.items():
            if wanted(f"propagate, {name}"):
                call = functools.partial(lpa3d.propagate, **options)
                yield Row(f"propagate, {name}, {half} cubed, {source}", (classes, seeds), call, floor, seeds.nbytes)
    what = f"overlap table, {size} cubed"
    if wanted(what):
        blocks = make_blocks(size, 0), make_blocks(size, SHIFT)
        yield Row(f"{what}, {blocks[0].max():,} labels", blocks, count_pairs, 15)


# ----------------------------------------------------------------------------------------------------------- the clock


def clock_events(call: Call) -> float:
    """Return the milliseconds between two events on the device, one before a call and one after it."""
    import cupy

    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, end))


def label_rival(volume: Any) -> Call:
    """Return a call of CuPy's own labelling; it knows foreground only."""
    import cupy
    from cupyx.scipy import ndimage

    mask, structure = volume > 0, cupy.ones((3, 3, 3), dtype=bool)
    return lambda: ndimage.label(mask, structure)


def clock_median(call: Call, repeat: int, clock: Callable[[Call], float]) -> float:
    """Return the median time of a call that has been made once before."""
    call()
    return statistics.median(clock(call) for _ in range(repeat))


def measure_bandwidth(device: Any, repeat: int, clock: Callable[[Call], float], size: int = COPIED) -> float:
    """Return the bytes per millisecond that a copy reads and writes."""
    source, target = (device.xp.zeros(size, dtype=np.uint8) for _ in range(2))

    def copy() -> None:
        target[...] = source

    return 2 * size / clock_median(copy, repeat, clock)


# ------------------------------------------------------------------------------------------------------------ the jobs


def run_times(rows: Iterator[Row], device: Any, args: argparse.Namespace, clock: Any, rival: Any) -> list[str]:
    """Print the table of times; return notes."""
    bandwidth = measure_bandwidth(device, args.repeat, clock, min(COPIED, args.size**3))
    print(f"A copy moves {bandwidth / 1e9:.3f} TB/s.\n", flush=True)
    lines, notes = [], []
    for row in rows:
        say(row.what)
        brought = [device.bring(array) for array in row.arrays]
        ours = clock_median(functools.partial(row.call, *brought), args.repeat, clock)
        least = (sum(array.nbytes for array in row.arrays) + row.written) / bandwidth
        lines.append((row.what, f"{ours:.2f}", f"{least:.2f}", f"{ours / least:.1f}", *judge(ours, row.floor), "", ""))
        if row.rival and rival is not None:
            try:
                theirs = clock_median(rival(brought[0]), args.repeat, clock)
            except MemoryError as error:
                notes.append(f"{row.what}: cupyx.scipy.ndimage.label: {error}")
            else:
                ratio = ours / theirs
                met = judge(ratio, 0.1)[1]
                lines[-1] = (*lines[-1][:-2], f"{theirs:.2f}", f"{format_ratio(ratio)} (at most 0.1: {met})")
    columns = ("what", "ms", "memory floor, ms", "times it", "at most, ms", "met?", "cupyx label, ms", "ratio")
    print(format_table(columns, lines))
    return notes


def run_check(rows: Iterator[Row], device: Any) -> None:
    """Compare each result with that of the CPU, byte for byte.

    Raises
    ------
    FailedError
        If one differs.
    """
    for row in rows:
        expected = row.call(*row.arrays)
        found = row.call(*(device.bring(array) for array in row.arrays))
        found = device.fetch(found) if device.holds(found) else found
        if found.dtype != expected.dtype or not np.array_equal(found, expected):
            raise FailedError(f"{row.what}: {np.count_nonzero(found != expected):,} of {found.size:,} values differ")
        print(f"- {row.what}: the bytes of the CPU, {expected.nbytes:,} of them", flush=True)


def prepare_device(check: bool) -> Any:
    """Open the device and say what it is. For a check CuPy takes each array from CUDA, so that tools see its ends."""
    device = open_device()
    import cupy

    if check:
        cupy.cuda.set_allocator(None)
    facts = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    versions = f"CuPy {cupy.__version__}, CUDA {cupy.cuda.runtime.runtimeGetVersion()}"
    print(f"# lpa3d {lpa3d.__version__} on {facts['name'].decode()}\n\n{versions}.", flush=True)
    return device


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose name matches")
    parser.add_argument(
        "--size", type=int, default=1024, metavar="N", help="side of the largest volumes (default 1024)"
    )
    parser.add_argument("--repeat", type=int, default=7, metavar="N", help="timed calls (default 7)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder that holds urocell/")
    parser.add_argument("--check", action="store_true", help="compare with the CPU instead of taking times")
    args = parser.parse_args(words)
    if args.size < 2 * BLOCKS:
        parser.error(f"--size is {args.size}; at least {2 * BLOCKS} is needed")
    return args


def main(
    words: Sequence[str] | None = None,
    prepare: Callable[[bool], Any] = prepare_device,
    clock: Callable[[Call], float] = clock_events,
    rival: Callable[[Any], Call] | None = label_rival,
) -> int:
    """Run the script; tests give a device, a clock and a rival of their own."""
    args = parse(words)
    try:
        device = prepare(args.check)
    except lpa3d.errors.DeviceError as error:
        say(str(error))
        return 2
    started = time.perf_counter()
    rows = list_rows(args.size, args.data or find_data(), re.compile(args.only).search)
    try:
        if args.check:
            run_check(rows, device)
        else:
            print_notes(run_times(rows, device, args, clock, rival))
    except FailedError as error:
        say(str(error))
        return 1
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
