"""The driver: one resumable run of a verb over the tiles of a volume.

A run goes through stages, which are declared (`lpa3d.tiled.driver.stages`): what no stage reads any more is cleared.
Three patterns serve every verb: *map* (`Run.map`: a task for each tile), *map, reduce, map* (`Run.once` between two
maps) and the *worklist* (`Run.start` and `Run.wait`, from `Run.begin` to `Run.end`). Items are handed out as workers
come free, so no graph of the volume is ever built; the driver keeps one bit or a few bytes for a tile.

Where a run lives: ``OUT.lpa3d/run.json`` says what is computed from what; ``OUT.lpa3d/ID/`` holds the journal, the
scratch and the unfinished outputs. Only when all is done are the outputs moved to their places, and the folder is
deleted. A worker that outlives its run thus never touches a finished output. In object storage outputs are written
where they will be, and their attribute ``complete`` tells when they are.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..._version import __version__
from ...arrays import backend as _backend
from ...arrays.call import Options, Progress
from ...arrays.checks import canonical_spacing
from ...arrays.text import list_some
from ...errors import Example, InputError, InputTypeError, Keyword, Lpa3dError, Part, RangeError
from ...files.axes import choose_view
from ...files.geometry import Geometry, attribute_geometry
from ...files.ngff import describe_geometry, find_top
from ...files.outputs import flush_folders, publish
from .budget import COMPRESSED, Cost, Room, canonical_sides, check_room, choose_tile, find_cost, give_back_memory
from .grid import Grid
from .journal import FIRST, Journal
from .locks import LockError, claim, lock
from .origins import find_store
from .outputs import (
    Output,
    Reduction,
    Sink,
    Wanted,
    bring_back,
    check_apart,
    check_folder,
    check_storage,
    choose_layouts,
    coarsen_tile,
    pack_written,
    place_outputs,
    record_written,
    reduce_tile,
    settle_aside,
    unpack_written,
)
from .schedulers import OnDevice, Scheduler, Task, Threads, choose_scheduler
from .scratch import Blobs, Folder, Scratch, ScratchError, StoreFolder, pack_record, read_record
from .stages import Plan, Stage
from .stored import Source, is_url
from .tables import Digest

__all__ = [
    "BUILT",
    "FORMAT",
    "RUN",
    "WHOLE",
    "Run",
    "TileError",
    "find_geometry",
    "open_run",
    "read_run",
    "remove_empty",
    "sweep",
]

ALGORITHM = 1
"""Raised when the bytes of a result change."""

FORMAT = 3
"""Raised when runs are kept in another form, so that one that an earlier version began cannot be gone on with."""

ATTEMPTS = 3
PAUSE = 0.2
"""A failed tile is tried again after as many seconds, then after twice that."""

RUN = "run.json"
STORE_PREFIX = ".lpa3d-run"

KEYS = (
    "format",
    "verb",
    "version",
    "algorithm",
    "parameters",
    "inputs",
    "storage",
    "outputs",
    "places",
    "tile",
    "id",
    "built",
    "shown",
    "made",
    "replaces",
)
"""What `RUN` holds."""

BUILT = "built"
"""The stage that ends with all outputs made, empty."""

WRITTEN = FIRST
"""The log of what was written to outputs (`pack_written`), kept to the end."""

USELESS = (InputError, InputTypeError, RangeError)
"""What ends a run that the same call would end again: it is deleted, so that the corrected call begins anew."""

LEVELS = "levels"
"""The stages in which coarser levels of outputs are made."""

WHOLE = "whole"
"""The stage that ends with all outputs complete; what is left is to move them."""


class TileError(Lpa3dError, RuntimeError):
    """A tile failed several times; the finished ones are kept."""


@dataclass(frozen=True)
class Recorded:
    """A task whose value is what it wrote to outputs, as rows for the journal. Picklable."""

    task: Task

    def __call__(self, context: Any, *args: Any) -> list[tuple[int, int, int]]:
        """Do the task."""
        with record_written() as written:
            self.task(context, *args)
        return list(pack_written(written))


@dataclass
class Run:
    """A run in progress; `open_run` makes it."""

    verb: str
    grid: Grid
    workers: int
    scratch: Scratch
    journal: Journal
    outputs: dict[str, Sink]
    plan: Plan
    progress: Progress | None
    _scheduler: Scheduler
    _prepared: dict[tuple[Any, int], tuple[Any, Any]] = field(default_factory=dict)
    _flying: int = 0
    _calls: dict[int, tuple[Any, Any, tuple[Any, ...], int, str]] = field(default_factory=dict)
    _results: dict[str, Any] = field(default_factory=dict)
    _retype: Callable[[str, np.dtype[Any]], Sink] | None = None
    _told: float = 0.0
    _written: int = 0
    """Rows of `WRITTEN`."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _device: bool = False

    def tell(self, stage: str, fraction: float, *, always: bool = False) -> None:
        """Report progress, at most ten times a second."""
        now = time.monotonic()
        if self.progress is not None and (always or now - self._told > 0.1):
            self._told = now
            self.progress(stage, fraction)

    def _prepare(self, task: Task, context: Any) -> Any:
        return self._scheduler.prepare(OnDevice(task) if self._device else task, context)

    def begin(self, stage: str) -> bool:
        """Enter a stage that is declared; return whether there is anything to be done in it."""
        self._clear(self.plan.enter(stage))
        if not self.journal.finished(stage):
            return True
        self._clear(self.plan.leave(stage))
        return False

    def end(self, stage: str, **values: Any) -> None:
        """Note that a stage is done, with what it found (JSON), and clear what no other reads."""
        self.journal.finish(stage, **values)
        self._clear(self.plan.leave(stage))

    def _clear(self, areas: Sequence[str]) -> None:
        for area in areas:
            self.scratch.clear(area)

    def map(
        self,
        stage: str,
        task: Task,
        context: Any,
        items: int | Sequence[int] | npt.NDArray[np.integer[Any]] | None = None,
    ) -> None:
        """Call ``task(context, item)`` for every item that the journal does not list as done, in any order.

        Parameters
        ----------
        stage : str
            One of those that are declared.
        task : callable
            A function of a module. What it finds it puts into scratch or an output; its result is discarded.
        context
            Picklable; the same for all items.
        items : int or sequence of int, optional
            By default every tile of the grid.
        """
        if not self.begin(stage):
            return
        wanted: Sequence[int] | npt.NDArray[Any] = (
            range(len(self.grid)) if items is None else range(items) if isinstance(items, int) else items
        )
        total = len(wanted)
        done = np.zeros(total if isinstance(wanted, range) else int(max(wanted, default=-1)) + 1, np.bool_)
        for rows in self.journal.rows(stage, 2):
            # After a power cut what an item wrote may be noted less far than that it is done.
            done[rows[(rows[:, 0] < len(done)) & (rows[:, 1] <= self._written), 0]] = True
        finished = int(np.count_nonzero(done))
        self.tell(stage, finished / max(total, 1), always=True)
        left = (int(item) for item in wanted if not done[item])
        scheduler = self._scheduler
        prepared = self._prepare(Recorded(task), context)
        direct = scheduler.name == "threads"
        note = functools.partial(self._note, stage) if direct else None
        failures: dict[int, int] = {}
        again: list[tuple[float, int]] = []
        flying, seconds, size = 0, 0.0, 1
        batches = 0
        while True:
            while flying < (1 if direct else 2) * scheduler.slots + direct:
                due = [item for when, item in again if when <= time.monotonic()]
                if due:
                    again = [entry for entry in again if entry[1] not in due]
                    batch = due
                else:
                    batch = list(itertools.islice(left, size))
                if not batch:
                    break
                scheduler.start(prepared, [(item,) for item in batch], note)
                flying += 1
            if not flying and not again:
                break
            begun = time.monotonic()
            outcomes = scheduler.wait(0.1)
            if outcomes is None:
                self.tell(stage, finished / max(total, 1))
                continue
            flying -= 1
            batches += 1
            for (item,), written, error in outcomes:
                if error is None:
                    finished += 1
                    if not direct:
                        self._note(stage, item, written)
                    continue
                failures[item] = failures.get(item, 0) + 1
                self._judge(stage, item, error, failures[item])
                again.append((time.monotonic() + PAUSE * failures[item], item))
            # Batches grow until one takes long enough for the handing out not to matter.
            seconds = 0.8 * seconds + 0.2 * (time.monotonic() - begun) if batches > 1 else time.monotonic() - begun
            if seconds < scheduler.batch_seconds / 2 and not failures:
                size = min(2 * size, 4096, max(1, (total - finished) // (4 * scheduler.slots)))
            elif seconds > 2 * scheduler.batch_seconds:
                size = max(1, size // 2)
            self.tell(stage, finished / max(total, 1))
        self.end(stage)
        self.tell(stage, 1.0, always=True)

    def _note(self, stage: str, item: int, written: Sequence[tuple[int, int, int]]) -> None:
        """Note that an item is done, and before that what it wrote to outputs."""
        with self._lock:
            for row in written:
                self.journal.append(WRITTEN, *row)
                self._written += 1
            self.journal.append(stage, item, self._written)

    def once(self, stage: str, function: Callable[..., dict[str, Any] | None], *args: Any) -> dict[str, Any]:
        """Call ``function(*args)`` in this process unless it was done before; return what it returned (JSON).

        It puts what is large into scratch.
        """
        if self.begin(stage):
            self.tell(stage, 0.0, always=True)
            self.end(stage, **(function(*args) or {}))
            give_back_memory()
        return self.journal.values(stage)

    @property
    def free(self) -> int:
        """Return how many calls may be started now."""
        return max(0, self._scheduler.slots + 1 - self._flying)

    def start(self, stage: str, task: Task, context: Any, item: int, *args: Any) -> None:
        """Start ``task(context, item, *args)``; `wait` returns its value."""
        key = (task, id(context))
        if key not in self._prepared:
            # The context is kept, so that its id stays its own.
            self._prepared = {key: (self._prepare(task, context), context)}
        self._calls[item] = (task, context, args, self._calls.get(item, (0, 0, 0, 0, ""))[3], stage)
        self._scheduler.start(self._prepared[key][0], [(item, *args)], None)
        self._flying += 1

    def wait(self) -> tuple[int, Any]:
        """Return ``(item, value)`` of the next call that is done; a failed one is tried again, then raised."""
        while True:
            outcomes = self._scheduler.wait(0.1)
            if outcomes is None:
                self.tell(next(iter(self._calls.values()))[4] if self._calls else "", 0.5)
                continue
            self._flying -= 1
            ((args, value, error),) = outcomes
            item = args[0]
            task, context, rest, failures, stage = self._calls.pop(item)
            if error is None:
                return item, value
            self._judge(stage, item, error, failures + 1)
            time.sleep(PAUSE * (failures + 1))
            self._calls[item] = (task, context, rest, failures + 1, stage)
            self.start(stage, task, context, item, *rest)

    def _judge(self, stage: str, item: int, error: BaseException, failures: int) -> None:
        """Raise the error of an item if trying again is of no use."""
        # What another machine has written may be seen a little later.
        if isinstance(error, Lpa3dError) and not (isinstance(error, ScratchError) and failures < ATTEMPTS):
            raise error
        if failures < ATTEMPTS:
            return
        box = f" ({self.grid.box(item)})" if 0 <= item < len(self.grid) else ""
        raise TileError(
            f"{self.verb}: tile {item}{box} failed {failures} times in stage {stage!r}: {type(error).__name__}: "
            f"{error}. Finished tiles are kept: mend the cause and run the same call again"
        ) from error

    def retype(self, name: str, dtype: np.dtype[Any]) -> None:
        """Give an output, to which nothing was written yet, the dtype that it turned out to need."""
        assert self._retype is not None
        if self.outputs[name].array.dtype != dtype:
            self.outputs[name] = self._retype(name, dtype)

    def result(self, name: str) -> Any:
        """Return a finished output."""
        return self._results[name]


# -------------------------------------------------------------------------------------------------------- opening


@contextmanager
def open_run(
    verb: str,
    inputs: Mapping[str, Source],
    parameters: Mapping[str, Any],
    outputs: Mapping[str, Wanted],
    options: Options,
    *,
    stages: Sequence[Stage],
    keywords: Mapping[str, Any] | None = None,
    bytes_per_voxel: float | None = None,
) -> Iterator[Run]:
    """Start, or go on with, a run; put its outputs into place when the block ends without an error.

    Parameters
    ----------
    verb : str
        The verb's name.
    inputs : mapping of name to Source
        Of one shape; the first decides the grid.
    parameters : mapping
        What the result depends on besides (JSON), by the names of the verb's keywords.
    outputs : mapping of name to Wanted
        May be empty: then the run lives in ``options.scratch``, or in a temporary folder.
    options : Options
    stages : sequence of Stage
        All stages that there may be, in their order.
    keywords : mapping, optional
        What messages show of the parameters: the verb's keywords as they were given. Without, `parameters` are shown.
    bytes_per_voxel : float, optional
        Peak memory of a task for each voxel of a tile, of runs that are no verb; `find_cost` knows all of a verb.

    Raises
    ------
    InputError
        If an output exists, if an unfinished run at the same place had other parameters or inputs, if another process
        is at work there, if the budget is too small, or if a disk has too little room.
    DeviceError
        If the tiles are to be worked on by a GPU and there is none.
    """
    device = None if options.device is None else _backend.open_device()
    first = next(iter(inputs.values()))
    if bytes_per_voxel is not None:
        cost = Cost(0.0, bytes_per_voxel)
    else:
        dtypes = {name: source.dtype for name, source in inputs.items()}
        cost = find_cost(verb, dtypes, [wanted.dtype for wanted in outputs.values()], parameters)
    storage = check_storage(options.storage, first.ndim)
    geometry = find_geometry(inputs, {**(keywords or {}), "storage": storage})
    spaced = describe_geometry(geometry) | dict(storage.get("attributes", {}))
    places = place_outputs(outputs, inputs, storage, geometry)
    shown = _show_parameters(parameters, keywords)
    about = {
        "verb": verb,
        "version": __version__,
        "algorithm": ALGORITHM,
        "parameters": json.loads(json.dumps(dict(parameters))),
        "inputs": {name: source.describe() for name, source in inputs.items()},
    }
    asked = about | {
        "storage": json.loads(json.dumps(storage, default=str)),
        "outputs": {
            name: [list(wanted.shape[3 - wanted.ndim :]), np.dtype(wanted.dtype).str, *places[name].form.describe()]
            for name, wanted in outputs.items()
        },
        "places": {name: str(output.final or output.store) for name, output in places.items()},
    }
    home, blobs = _home(verb, places, inputs, options)
    with contextlib.ExitStack() as stack:
        if home is not None:
            if options.scratch is None and not places:
                stack.callback(shutil.rmtree, home, ignore_errors=True)
            check_apart(home, inputs)
            _make_home(home)
            stack.callback(remove_empty, home)
            stack.enter_context(lock(home))
        claims = [stack.enter_context(claim(output.store)) for output in places.values() if output.final is None]

        def check_claims() -> None:
            for one in claims:
                one.check()

        fresh = useless = False

        def forget(kind: Any, error: BaseException | None, trace: Any) -> None:
            """Delete the run of a call that cannot be right, or of which nothing is done."""
            if isinstance(error, LockError) or error is None or before is None:
                return  # it may be another one's by now; or it is done; or there is none
            if useless or (fresh and not journal.noted):
                for output in places.values():
                    output.discard(before)
                settle_aside(before)
                sweep(blobs, home, before)

        before = read_run(blobs, home)
        stack.push(forget)
        if before is None:
            sweep(blobs, home, None)
        tile = options.tile
        if before is not None and options.resume:
            _compare(before, asked, shown, options, first.ndim)
            tile = before["tile"] if tile is None else tile
        else:
            if before is not None:
                bring_back(before)
            for output in places.values():
                # What an unfinished run made in a store, or put into place already, is no result that would be lost.
                left = before is not None and output.was_published(before)
                if not left and (before is None or output.final is not None or output.is_complete()):
                    output.refuse_existing(overwrite=options.overwrite)
        resumed = before is not None and options.resume
        plan = choose_tile(
            first.shape, first.chunks, tile=tile, memory=options.memory, ndim=3 if resumed else first.ndim,
            bytes_per_voxel=cost.memory, halo=cost.halo, unit=storage.get("shards") or storage.get("chunks"),
            room=None if device is None else Room(device.free_bytes(), cost.device), inputs=inputs.values(),
        )  # fmt: skip
        layouts = {
            name: choose_layouts(output.wanted.shape, plan.tile, storage, name, output.form)
            for name, output in places.items()
        }
        in_memory = any(isinstance(source.array, np.ndarray) for source in inputs.values())
        scheduler = Threads(plan.workers) if in_memory else choose_scheduler(plan.workers)
        _check_reach(scheduler, inputs, places)
        if before is None or not resumed:
            if before is not None:
                for output in places.values():
                    output.discard(before)
                settle_aside(before)
            sweep(blobs, home, before)
            if home is not None:
                _check_room(verb, cost, first, places, home)
            token = secrets.token_hex(4)
            before = asked | {
                "format": FORMAT,
                "tile": list(plan.tile),
                "id": token,
                "built": {name: output.choose_built(home, token) for name, output in places.items()},
                "shown": shown,
                "made": about,
                "replaces": [name for name, output in places.items() if output.exists()],
            }
            blobs.put(RUN, [pack_record(RUN, before)], durable=True)
            fresh = True
        token = before["id"]
        inner = _below(blobs, token)
        journal = Journal(inner, check_claims)
        stack.callback(journal.close)
        # First the threads end, which still note in the journal what they finish.
        stack.callback(scheduler.close)
        attributes = {"lpa3d": before["made"] | {"complete": False}} | spaced
        for name, output in places.items():
            output.settle_place(before["built"][name], token, overwrite=options.overwrite or name in before["replaces"])
            if journal.finished(BUILT):
                output.reopen(plan.tile, before["made"], whole=journal.finished(WHOLE))
            else:
                output.create(plan.tile, layouts[name], attributes)
        journal.finish(BUILT)

        def retype(name: str, dtype: np.dtype[Any]) -> Sink:
            return places[name].retype(dtype, plan.tile, layouts[name], attributes)

        scratch = _below(inner, "scratch")
        if isinstance(scratch, Folder):
            scratch.root.mkdir(exist_ok=True)
            scratch = Folder(scratch.root, made=True)
        sinks = {name: output.sink for name, output in places.items() if output.sink is not None}
        closing = [Stage(LEVELS, many=True)] if any(output.form.steps for output in places.values()) else []
        run = Run(
            verb, Grid(first.shape, plan.tile), plan.workers, Scratch(scratch), journal, sinks,
            Plan(stages, closing), options.progress, scheduler, _retype=retype,
            _device=device is not None, _written=sum(map(len, journal.rows(WRITTEN, 3))),
        )  # fmt: skip
        try:
            yield run
            _make_levels(run)
        except KeyboardInterrupt as error:
            error.add_note(f"{verb}: make the same call again to go on where it was interrupted")
            raise
        except USELESS:
            useless = True
            raise
        changed = [name for name, source in inputs.items() if source.describe() != asked["inputs"][name]]
        if changed:
            useless = True
            raise InputError(
                *[part for name in changed for part in (", ", Keyword(name))][1:],
                f" changed while {verb} read it, so the result would be of neither state; run it again with ",
                Keyword("resume", False),
            )
        rows = list(journal.rows(WRITTEN, 3))
        for output in places.values():
            if output.sink is not None:
                output.check_written(rows)
                output.describe(rows)
        for output in places.values():
            output.flush()
        journal.finish(WHOLE)
        publish(list(places.values()))
        for name, output in places.items():
            run._results[name] = output.result(as_dask=any(source.is_dask for source in inputs.values()))
        sweep(blobs, home, before)


def _make_levels(run: Run) -> None:
    """Make the levels of all outputs that no tile could make by itself, each of the one before."""
    for name, finest in run.outputs.items():
        fine = finest
        for k, (coarse, step) in enumerate(zip(finest.levels, finest.form.steps, strict=True)):
            if k or finest.tile is None:
                written = unpack_written(run.journal.rows(WRITTEN, 3), fine.number, len(fine.units))
                grid = Grid(coarse.shape, coarsen_tile(run.grid.tile, fine.shape, step))
                context = Reduction(fine, coarse, step, grid, np.packbits(written))
                run.map(f"{LEVELS} {name} {k + 1}", reduce_tile, context, len(grid))
            fine = coarse


def find_geometry(inputs: Mapping[str, Source], keywords: Mapping[str, Any]) -> Geometry:
    """Return what outputs say of their voxels: what `storage` has for attributes, else what the call says, else what
    the first input does that says anything."""
    first = next(iter(inputs.values()))
    shape = first.shape[3 - first.ndim :]
    seen = choose_view(Keyword("storage"), list("zyx"[3 - first.ndim :]), shape)
    asked = attribute_geometry((keywords.get("storage") or {}).get("attributes", {}), seen)
    if asked.spacing is not None:
        return asked
    stated = (source.geometry for source in inputs.values())
    found = next((geometry for geometry in stated if geometry.spacing), Geometry())
    given = keywords.get("spacing")
    if given is not None:
        sizes = canonical_spacing(given, first.ndim)
        if found.spacing is None or not np.allclose(sizes, found.spacing):
            return Geometry(sizes)
    return found


def _check_room(verb: str, cost: Cost, first: Source, places: Mapping[str, Output], home: Path) -> None:
    """Refuse a run that cannot fit on the disks of its scratch and its outputs."""
    needs = [(home, "scratch", cost.scratch[0] * math.prod(first.shape))]
    for output in places.values():
        if output.final is not None:
            voxels = sum(map(math.prod, output.form.shapes(output.wanted.shape)))
            size = COMPRESSED * voxels * np.dtype(output.wanted.dtype).itemsize
            needs.append((output.anchor, "the result", size))
    check_room(verb, needs)


def _below(blobs: Blobs, prefix: str) -> Blobs:
    """Return the blobs below a prefix."""
    if isinstance(blobs, Folder):
        return Folder(blobs.root / prefix)
    assert isinstance(blobs, StoreFolder)
    return StoreFolder(blobs.store, f"{blobs.prefix}/{prefix}")


def _home(
    verb: str, places: Mapping[str, Output], inputs: Mapping[str, Source], options: Options
) -> tuple[Path | None, Blobs]:
    """Return the folder of a run and its blobs; None and blobs in a store for outputs in object storage.

    The folder has a name of its own, in `scratch` too: nothing else is ever in it.
    """
    output = next(iter(places.values()), None)
    final = None if output is None else output.final
    parts, depth = ((), 0) if final is None else (final.parts, find_top(final))
    if options.scratch is not None:
        if not isinstance(options.scratch, (str, os.PathLike)) or not str(options.scratch) or is_url(options.scratch):
            raise InputTypeError(Keyword("scratch"), f" is {options.scratch!r}; a local or shared folder is needed")
        scratch = Path(os.path.realpath(os.path.expanduser(options.scratch)))
        # Runs of other places, or of other inputs where there is no output, have folders of their own.
        of = str(output.final or output.store) if output is not None else " ".join(
            source.place for source in inputs.values()
        )  # fmt: skip
        digest = hashlib.sha256(of.encode()).hexdigest()[:8]
        home = scratch / f"{_flat(parts[depth:]) or verb}-{digest}.lpa3d"
    elif output is None:
        home = Path(tempfile.mkdtemp(prefix=f"lpa3d-{verb}-"))
    elif output.final is None:
        return None, StoreFolder(output.store, STORE_PREFIX)
    else:
        home = Path(*parts[:depth], f"{_flat(parts[depth:])}.lpa3d")
    return home, Folder(home)


def _flat(parts: Sequence[str]) -> str:
    """Return a path inside a store as one name, which no other path has: ``g.zarr+b`` of ``g.zarr/b``."""
    return "+".join(part.replace("%", "%25").replace("+", "%2B") for part in parts)


def _make_home(home: Path) -> None:
    """Make the folder of a run."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        flush_folders(home.parent, home)
    except OSError as error:
        raise InputError(
            f"cannot make the folder of the run, {home}: {error.strerror}; choose another one with ",
            Keyword("scratch", Example("FOLDER")),
        ) from error
    # A run that ends just now may have removed it; whoever locks it makes it anew.
    if not os.access(home, os.W_OK | os.X_OK) and home.is_dir():
        check_folder(home, str(home))


def remove_empty(home: Path) -> None:
    """Remove the folder of a run in which nothing is left."""
    with contextlib.suppress(OSError):
        home.rmdir()


def read_run(blobs: Blobs, home: Path | None) -> dict[str, Any] | None:
    """Return what an unfinished run at this place was, None if there is none."""
    try:
        data = blobs.get(RUN, 0, 2**26)
        before = json.loads(data)
        if not re.fullmatch("[0-9a-f]{8}", before["id"]) or len([int(n) for n in before["tile"]]) != 3:
            raise ValueError
        if before.get("format", 1) == FORMAT:
            before = read_record(RUN, data)
            found: dict[str, Any] = {key: before[key] for key in KEYS}
        else:
            found = {key: before[key] for key in ("id", "tile", "version")} | {"format": 1, "built": {}}
    except KeyError as error:
        if error.args == (RUN,):
            return None
        found = {}
    except (ValueError, TypeError, AttributeError):
        found = {}
    if not found:
        raise InputError(
            f"{RUN} in {home or STORE_PREFIX} is damaged, or of another version of lpa3d; delete "
            f"{home or STORE_PREFIX} and run the same again"
        )
    return found


def sweep(blobs: Blobs, home: Path | None, before: dict[str, Any] | None) -> None:
    """Delete what earlier runs at this place left, also such that were killed while they deleted it."""
    # First what says that there is something to go on with: a run half deleted is none.
    blobs.delete(RUN)
    if home is None:
        blobs.clear("")
        return
    names = [path.name for path in home.iterdir()]
    for name in names:
        if re.fullmatch(rf"\.{re.escape(RUN)}\.[0-9a-f]+", name):
            (home / name).unlink(missing_ok=True)  # of a run that was killed while it wrote that
    names = [name for name in names if re.fullmatch("[0-9a-f]{8}", name)]
    for name in {*names, *([before["id"]] if before is not None else [])}:
        shutil.rmtree(home / name, ignore_errors=True)


def _show_parameters(parameters: Mapping[str, Any], keywords: Mapping[str, Any] | None) -> dict[str, str]:
    """Return how messages show what the result depends on."""

    def show(value: Any) -> str:
        if isinstance(value, Digest):
            return value.shown
        if isinstance(value, (list, tuple, range)):
            return f"({list_some(value, show=show)})"
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return str(value) if isinstance(value, (str, int, float, type(None), np.generic)) else ""

    shown = {name: show(value) for name, value in (parameters if keywords is None else keywords).items()}
    # What was given as an array, or is none of the keywords.
    listed = (list, tuple)
    shown |= {
        name: show(value)
        for name, value in parameters.items()
        if isinstance(value, Digest) or (isinstance(value, listed) and any(isinstance(one, Digest) for one in value))
    }
    return {name: text for name, text in shown.items() if text}


def _compare(before: dict[str, Any], now: dict[str, Any], shown: dict[str, str], options: Options, ndim: int) -> None:
    """Refuse to go on with a run that was of something else."""
    if before["format"] != FORMAT:
        raise InputError(
            f"an unfinished run at this place was begun by lpa3d {before['version']}, which kept it in another form; "
            "go on with that version, or pass ",
            Keyword("resume", False),
            " to delete what it did and start anew",
        )
    differences: list[tuple[Part, ...]] = []
    digests = False

    def compare(name: str, old: Any, new: Any) -> None:
        nonlocal digests
        if re.fullmatch(r"(parameters\.)?version|inputs\.\w+\.name", name):
            return  # the algorithm's number and the contents decide
        if options.resume == "force" and re.fullmatch(r"inputs\.\w+\.digest", name):
            return
        if isinstance(old, dict) and isinstance(new, dict):
            for key in sorted(set(old) | set(new)):
                compare(f"{name}.{key}" if name else key, old.get(key), new.get(key))
        elif old != new:
            texts = [text if len(text := str(value)) < 60 else f"{text[:57]}..." for value in (old, new)]
            digests |= name.endswith(".digest")
            differences.append((f"{name} was {texts[0]} and is {texts[1]}",))

    changed = before["parameters"] != now["parameters"]
    for name in sorted({*shown, *before["shown"]} if changed else ()):
        texts = [table.get(name, "None") for table in (before["shown"], shown)]
        if texts[0] != texts[1]:
            differences.append((Keyword(name), f" was {texts[0]} and is {texts[1]}"))
    # Where these are the same as far as they are shown.
    skipped = ("parameters",) if differences else ()
    compare("", *({key: table[key] for key in now if key not in skipped} for table in (before, now)))
    if options.tile is not None:
        tile = list(canonical_sides(options.tile, "tile", ndim))
        if tile != before["tile"]:
            differences.append((Keyword("tile"), f" was {before['tile']} and is {tile}"))
    for name, source in now["inputs"].items():
        if "unknown" in source and options.resume != "force":
            digests = True
            differences.append((Keyword(name), f" is read from {source['unknown']}, which may give other values now"))
    if differences:
        mended: tuple[Part, ...] = ()
        if digests:
            mended = ". If nothing changed that a finished tile has read, pass ", Keyword("resume", "force")
        raise InputError(
            "an unfinished run at this place was another one: ",
            *[part for one in differences for part in ("; ", *one)][1:],
            *mended,
            ". Pass the same to go on, or ",
            Keyword("resume", False),
            " to delete what it did and start anew",
        )


def _check_reach(scheduler: Scheduler, inputs: Mapping[str, Source], places: Mapping[str, Output]) -> None:
    """Refuse stores that other processes cannot see."""
    if scheduler.name == "threads":
        return
    stores = {name: getattr(source.array, "store", None) for name, source in inputs.items()}
    stores |= {name: output.store for name, output in places.items()}
    for name, store in stores.items():
        if store is not None and any(origin.is_private for origin in find_store(store)):
            raise InputError(
                Keyword(name),
                " lies in the memory of this process, which the workers of the dask client cannot see; use a path that "
                "they share, or close the client",
            )
