"""Commands on zarr files work tile by tile: options, the call, and what is counted of volumes too large to hold."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..arrays import backend as _backend
from ..arrays.text import parse_memory
from ..arrays.threads import num_threads, run_all
from ..errors import InputError
from ..files.geometry import Geometry
from ..files.ngff import LAYOUTS, describe_geometry
from ..files.outputs import Outputs
from ..files.places import locate, split_choice
from ..files.volume import Volume
from .counts import count_values
from .inputs import format_count, format_share
from .job import Job

if TYPE_CHECKING:
    from ..tiled.driver.grid import Grid
    from ..tiled.driver.stored import Source

__all__ = ["Tiling", "add_device", "add_storage", "add_tiling", "find_tiling"]

Array = npt.NDArray[Any]

OPTIONS = ("tile", "memory", "scratch", "no_resume", "force_resume", "dry_run")

RESUME = "run the same command again to go on"

IMAGES = ("image", "cost")
"""Parameters that are no labels."""

PENDING = 2**22
"""Values that are kept before they are united."""


def _tile(text: str) -> tuple[int, ...]:
    """Parse ``256`` or ``64,256,256``."""
    parts = text.split(",")
    if len(parts) > 3 or not all(part.strip().isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no tile, such as 256 or 64,256,256 (z, y, x)")
    sides = tuple(map(int, parts))
    return sides * 3 if len(sides) == 1 else sides


def _memory(text: str) -> str:
    try:
        parse_memory(text)
    except InputError:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory, such as 4GB or 512MiB") from None
    return text


def add_tiling(parser: argparse.ArgumentParser) -> None:
    """Add the options of work tile by tile."""
    group = parser.add_argument_group("tile by tile, where all volumes are zarr")
    group.add_argument("--tile", type=_tile, metavar="N|Z,Y,X", help="voxels of a tile (default: --memory decides)")
    group.add_argument(
        "--memory", type=_memory, metavar="SIZE", help="budget, such as 4GB (default: half of what is free)"
    )
    group.add_argument(
        "--scratch", metavar="FOLDER", help="where unfinished work is kept (default: beside the output, OUT.lpa3d)"
    )
    resume = group.add_mutually_exclusive_group()
    resume.add_argument(
        "--no-resume", action="store_true", help="start anew rather than go on with a run that was interrupted"
    )
    resume.add_argument(
        "--force-resume", action="store_true", help="go on although files of the inputs changed (one was mended)"
    )
    group.add_argument(
        "--dry-run", action="store_true", help="check the files, print tiles, memory, disk space and time, and stop"
    )


def add_storage(parser: argparse.ArgumentParser) -> None:
    """Add the options of how outputs that are zarr are stored."""
    group = parser.add_argument_group("outputs that are zarr")
    group.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="version of OME-Zarr, or a plain array (default: that of the image around it, else 0.5)",
    )
    group.add_argument(
        "--levels",
        type=_levels,
        metavar="N",
        help="resolutions, each half of the one before (default: until one has 256 cubed voxels)",
    )


def _levels(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of levels, such as 1 or 4")
    return int(text)


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the option of work on a GPU, of volumes in memory and tile by tile."""
    parser.add_argument(
        "--device", choices=("cuda",), help="let an NVIDIA GPU do the work, with the same result (default: no GPU)"
    )


def find_tiling(
    job: Job, verb: str, files: Sequence[Volume], places: Sequence[str | None] = (), *, whole: str = ""
) -> Tiling | None:
    """Return how a command works tile by tile; None if it takes its volumes into memory.

    Parameters
    ----------
    verb : str
        The verb's name.
    files, places
        The volumes that are read, and the names of those that are written.
    whole : str, optional
        An option for which the volumes are needed as a whole.

    Raises
    ------
    InputError
        If options of tiles are given where there are none.
    DeviceError
        If a GPU is to do the work and there is none.
    """
    if getattr(job.args, "device", None) and not job.args.dry_run:
        # That there is none is said before volumes are read.
        _backend.open_device()
    others = [file.name for file in files if file.format != "zarr"]
    others += [place for place in places if place and locate(place).format != "zarr"]
    args = job.args
    if not whole and not others and 0 not in files[0].shape:
        return Tiling(job, verb, Outputs(overwrite=getattr(args, "overwrite", False)), [one for one in places if one])
    for name in OPTIONS:
        if getattr(args, name):
            option = f"--{name.replace('_', '-')}"
            why = f"{others[0]} is no zarr" if others else f"{whole} takes it whole" if whole else "this one is empty"
            raise InputError(
                f"{option} is for work tile by tile, but {why}; leave {option} out"
                + ("" if whole or not others else ", or store all volumes as zarr")
            )
    return None


@dataclass
class Tiling:
    """How a command works tile by tile.

    Attributes
    ----------
    job : Job
    verb : str
    outputs : Outputs
        For checks of the places of results alone: a run over tiles puts them there itself.
    places : list of str
        Names of the volumes that are written.
    """

    job: Job
    verb: str
    outputs: Outputs
    places: list[str]

    def run(self, doing: str, did: str, *arrays: Any, geometry: Geometry | None = None, **keywords: Any) -> Any:
        """Call the verb on stored arrays and return its result; None after a dry run, which says what it would take."""
        import lpa3d

        args = self.job.args
        volumes = [*arrays, *(value for key, value in keywords.items() if key not in IMAGES)]
        for volume in (one for value in volumes for one in (value if isinstance(value, list) else [value])):
            if isinstance(volume, Volume) and volume.dtype.kind == "f":
                self.job.terminal.say(
                    f"{volume.name} stores whole numbers as {volume.dtype}; they are read as integers, tile by tile"
                )
        arrays = tuple(_stored(array) for array in arrays)
        keywords = {key: _stored(value) for key, value in keywords.items()}
        if args.dry_run:
            # Places of results are no part of it.
            asked = {key: value for key, value in keywords.items() if key != "out"}
            storage = {"storage": self.job.storage} if self.places else {}
            told = lpa3d.estimate(self.verb, *arrays, memory=args.memory, tile=args.tile, **storage, **asked)
            self.job.results.append(f"{told}\n")
            return None
        self.job.terminal.step(doing, did)
        options: dict[str, Any] = {
            "tile": args.tile,
            "memory": args.memory,
            "scratch": args.scratch,
            "resume": "force" if args.force_resume else not args.no_resume,
            "overwrite": self.outputs.overwrite,
            "progress": self._progress,
        }
        if self.places:
            spaced = describe_geometry(geometry or Geometry())
            options["storage"] = self.job.storage | ({"attributes": spaced} if spaced else {})
        self.job.tiled = True
        result = getattr(lpa3d, self.verb)(*arrays, **keywords, **options)
        self.job.tiled, self.job.advice = False, ""
        return result

    def _progress(self, stage: str, fraction: float) -> None:
        # From here on there is something to go on with.
        self.job.advice = RESUME if self.places or self.job.args.scratch else ""
        self.job.stage(stage, fraction)

    def finish(self, describe: Callable[[], str]) -> None:
        """Say what was done; `describe` counts it, box by box, unless nobody wants to know."""
        self.job.finish("" if self.job.terminal.quiet else describe())

    def summarize(self, array: Any) -> str:
        """Return how many instances and labelled voxels there are."""
        instances, voxels = self.count_labels(array)
        return f"{format_count(instances, 'instance')}, {format_share(voxels, math.prod(array.shape))} labelled"

    def count_numbered(self, array: Any) -> tuple[int, int]:
        """Return the largest label and the number of labelled voxels."""
        largest = voxels = 0
        for most, here in self._map(array, lambda box: (int(box.max()), int(np.count_nonzero(box)))):
            largest, voxels = max(largest, most), voxels + here
        return largest, voxels

    def count_labels(self, array: Any) -> tuple[int, int]:
        """Return how many ids besides 0 there are, and how many voxels they have."""
        ids: list[Array] = []
        pending = voxels = 0
        for values, counts in self._map(array, lambda box: count_values([(0, len(box), box)])):
            inside = values != 0
            voxels += int(counts[inside].sum())
            ids.append(values[inside])
            pending += len(ids[-1])
            if pending > PENDING:
                ids, pending = [np.unique(np.concatenate(ids))], 0
        return len(np.unique(np.concatenate(ids))), voxels

    def count_sections(self, array: Any, axis: int) -> list[int]:
        """Return how many different ids besides 0 each slice across `axis` holds; a 2D array is one slice."""

        def list_sections(box: Array) -> list[Array]:
            slices = np.moveaxis(box, axis, 0)
            return [count_values([(0, 1, one[np.newaxis])])[0] for one in slices]

        source, grid = self._open(array)
        counts: list[int] = []
        for place in range(grid.counts[axis]):
            tiles = [k for k in range(len(grid)) if grid.position(k)[axis] == place]
            slices: list[list[Array]] = []
            for box in self._map_tiles(source, grid, tiles, list_sections, place / grid.counts[axis]):
                slices = slices or [[] for _ in box]
                for kept, values in zip(slices, box, strict=True):
                    kept.append(values)
            counts += [int(np.count_nonzero(np.unique(np.concatenate(kept)))) for kept in slices]
        return counts

    def _map(self, array: Any, function: Callable[[Array], Any]) -> Iterator[Any]:
        """Yield ``function(box)`` of all boxes of a volume."""
        source, grid = self._open(array)
        yield from self._map_tiles(source, grid, range(len(grid)), function)

    def _map_tiles(
        self,
        source: Source,
        grid: Grid,
        tiles: Sequence[int],
        function: Callable[[Array], Any],
        fraction: float | None = None,
    ) -> Iterator[Any]:
        step = num_threads()
        for lo in range(0, len(tiles), step):
            yield from run_all(lambda tile: function(source.read(grid.box(tile))), tiles[lo : lo + step])
            self.job.progress(min((lo + step) / len(tiles), 1.0) if fraction is None else fraction)

    def _open(self, array: Any) -> tuple[Source, Grid]:
        """Open a volume whose voxels are counted, and cut it."""
        from ..tiled.driver.budget import choose_tile
        from ..tiled.driver.grid import Grid
        from ..tiled.driver.stored import open_ids

        self.job.terminal.step("counting", "counted")
        source = open_ids(_stored(array), "labels")
        # The voxels, where their runs start, and what is sorted of them.
        needed = 2 * source.dtype.itemsize + 10
        plan = choose_tile(
            source.shape, source.chunks, memory=self.job.args.memory, bytes_per_voxel=needed, inputs=[source]
        )
        return source, Grid(source.shape, plan.tile)


def _stored(value: Any) -> Any:
    """Return what a verb takes for a volume: its path, with what is chosen of its axes."""
    if isinstance(value, list) and any(isinstance(one, Volume) for one in value):
        return [_stored(one) for one in value]
    if not isinstance(value, Volume):
        return value
    return f"{value.path}{value.name.removeprefix(split_choice(value.name)[0])}"
