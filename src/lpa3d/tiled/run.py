"""The driver: one resumable run of a verb over the tiles of a volume.

Three patterns serve every verb: *map* (`Run.map`: a task for each tile), *map, reduce, map* (`Run.once` between two
maps) and the *worklist* (`Run.start` and `Run.wait`). Items are handed out as workers come free, so no graph of the
volume is ever built; the driver keeps one bit or a few bytes for a tile.

Where a run lives: ``OUT.lpa3d/run.json`` says what is computed from what; ``OUT.lpa3d/ID/`` holds the journal, the
scratch and the unfinished outputs. Only when all is done are the outputs moved to their places, and the folder is
deleted. A worker that outlives its run thus never touches a finished output. In object storage outputs are written
where they will be, and their attribute ``complete`` tells when they are.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import __version__
from .._outputs import ASIDE, TEMPORARY
from ..errors import InputError, InputTypeError, Lpa3dError
from .budget import COMPRESSED, Cost, check_room, choose_tile, find_cost
from .grid import Grid, Place
from .journal import Journal
from .schedulers import Scheduler, Task, choose_scheduler
from .scratch import Blobs, Folder, Scratch, StoreFolder
from .stored import Layout, Sink, Source, as_path, asked_sides, choose_layout, create_array, is_url

__all__ = ["Options", "Run", "TileError", "Wanted", "open_run"]

ALGORITHM = 1
"""Raised when the bytes of a result change."""

ATTEMPTS = 3
PAUSE = 0.2
"""A failed tile is tried again after as many seconds, then after twice that."""

RUN = "run.json"
STORE_PREFIX = ".lpa3d-run"

WHOLE = "whole"
"""The stage that ends with all outputs complete; what is left is to move them."""

Progress = Callable[[str, float], None]


class TileError(Lpa3dError, RuntimeError):
    """A tile failed several times; the finished ones are kept."""


@dataclass(frozen=True)
class Options:
    """How a tiled verb runs; none of these changes the result."""

    tile: Any = None
    memory: Any = None
    scratch: Any = None
    storage: Mapping[str, Any] | None = None
    resume: bool = True
    overwrite: bool = False
    progress: Progress | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Wanted:
    """An output: its place (what the caller passed as ``out``), shape ``(Z, Y, X)`` and dtype."""

    place: Any
    shape: Place
    ndim: int
    dtype: npt.DTypeLike
    chunks: Any = None


@dataclass
class _Output:
    """An output in the making: where it is built (store and path), and where it will be (None: there)."""

    wanted: Wanted
    store: Any
    path: str
    built: Path | None
    target: Path | None
    final: Path | None
    sink: Sink | None = None


@dataclass
class Run:
    """A run in progress; `open_run` makes it."""

    verb: str
    grid: Grid
    workers: int
    scratch: Scratch
    journal: Journal
    outputs: dict[str, Sink]
    progress: Progress | None
    _scheduler: Scheduler
    _prepared: dict[tuple[Any, int], tuple[Any, Any]] = field(default_factory=dict)
    _flying: int = 0
    _ready: list[tuple[tuple[Any, ...], Any, BaseException | None]] = field(default_factory=list)
    _calls: dict[int, tuple[Any, Any, tuple[Any, ...], int, str]] = field(default_factory=dict)
    _results: dict[str, Any] = field(default_factory=dict)
    _retype: Callable[[str, np.dtype[Any]], Sink] | None = None
    _told: float = 0.0

    def tell(self, stage: str, fraction: float, *, always: bool = False) -> None:
        """Report progress, at most ten times a second."""
        now = time.monotonic()
        if self.progress is not None and (always or now - self._told > 0.1):
            self._told = now
            self.progress(stage, fraction)

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
            Unique in the run.
        task : callable
            A function of a module. What it finds it puts into scratch or an output; its result is discarded.
        context
            Picklable; the same for all items.
        items : int or sequence of int, optional
            By default every tile of the grid.
        """
        if self.journal.finished(stage):
            return
        wanted: Sequence[int] | npt.NDArray[Any] = (
            range(len(self.grid)) if items is None else range(items) if isinstance(items, int) else items
        )
        total = len(wanted)
        done = np.zeros(total if isinstance(wanted, range) else int(max(wanted, default=-1)) + 1, np.bool_)
        for rows in self.journal.rows(stage):
            done[rows[rows[:, 0] < len(done), 0]] = True
        finished = int(np.count_nonzero(done))
        self.tell(stage, finished / max(total, 1), always=True)
        left = (int(item) for item in wanted if not done[item])
        scheduler = self._scheduler
        prepared = scheduler.prepare(task, context)
        direct = scheduler.name == "threads"
        note = (lambda item: self.journal.append(stage, item)) if direct else None
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
            for (item,), _, error in outcomes:
                if error is None:
                    finished += 1
                    if not direct:
                        self.journal.append(stage, item)
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
        self.journal.finish(stage)
        self.tell(stage, 1.0, always=True)

    def once(self, stage: str, function: Callable[..., dict[str, Any] | None], *args: Any) -> dict[str, Any]:
        """Call ``function(*args)`` in this process unless it was done before; return what it returned (JSON).

        It puts what is large into scratch.
        """
        if not self.journal.finished(stage):
            self.tell(stage, 0.0, always=True)
            self.journal.finish(stage, **(function(*args) or {}))
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
            self._prepared = {key: (self._scheduler.prepare(task, context), context)}
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
        if isinstance(error, Lpa3dError):
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
    bytes_per_voxel : float, optional
        Peak memory of a task for each voxel of a tile, of runs that are no verb; `find_cost` knows all of a verb.

    Raises
    ------
    InputError
        If an output exists, if an unfinished run at the same place had other parameters or inputs, if another process
        is at work there, if the budget is too small, or if a disk has too little room.
    """
    first = next(iter(inputs.values()))
    if bytes_per_voxel is not None:
        cost = Cost(0.0, bytes_per_voxel)
    else:
        dtypes = {name: source.dtype for name, source in inputs.items()}
        cost = find_cost(verb, dtypes, [wanted.dtype for wanted in outputs.values()], parameters)
    places = {name: _place(name, wanted) for name, wanted in outputs.items()}
    described = {name: source.describe() for name, source in inputs.items()}
    home, blobs, temporary = _home(verb, places, options)
    with contextlib.ExitStack() as stack:
        if temporary and home is not None:
            stack.callback(shutil.rmtree, home, ignore_errors=True)
        if home is not None:
            home.mkdir(parents=True, exist_ok=True)
            stack.callback(_remove_empty, home)
            stack.enter_context(_lock(home))
        about = {
            "verb": verb,
            "version": __version__,
            "algorithm": ALGORITHM,
            "parameters": json.loads(json.dumps(dict(parameters))),
            "inputs": described,
            "outputs": {
                name: [list(wanted.shape[3 - wanted.ndim :]), np.dtype(wanted.dtype).str]
                for name, wanted in outputs.items()
            },
        }
        before = _earlier(blobs, places, options)
        tile = options.tile
        if before is not None:
            _compare(before, about, options, first.ndim)
            tile = before["tile"] if tile is None else tile
        else:
            _refuse_existing(places, options)
        unit = asked_sides(options.storage, "shards", first.ndim) or asked_sides(options.storage, "chunks", first.ndim)
        plan = choose_tile(
            first.shape, first.chunks, tile=tile, memory=options.memory, ndim=3 if before is not None else first.ndim,
            bytes_per_voxel=cost.memory, halo=cost.halo, unit=unit,
        )  # fmt: skip
        if before is None and home is not None:
            _check_room(verb, cost, first, places, home)
        token = before["id"] if before is not None else secrets.token_hex(4)
        inner: Blobs = Folder(home / token) if home is not None else StoreFolder(blobs.store, f"{STORE_PREFIX}/{token}")  # type: ignore[attr-defined]
        layouts = {
            name: choose_layout(wanted.shape, wanted.ndim, plan.tile, options.storage, name)
            for name, wanted in outputs.items()
        }
        journal = Journal(inner)
        stack.callback(journal.close)
        if before is None:
            blobs.put(RUN, [json.dumps(about | {"tile": list(plan.tile), "id": token}).encode()])
        attributes = {**about, "attributes": dict((options.storage or {}).get("attributes", {}))}
        state = "new" if before is None else "whole" if journal.finished(WHOLE) else "begun"

        def build(name: str) -> Sink:
            return _build(places[name], name, home, token, layouts[name], attributes, state)

        def retype(name: str, dtype: np.dtype[Any]) -> Sink:
            places[name].wanted = replace(places[name].wanted, dtype=dtype)
            _forget(places[name])
            return build(name)

        sinks = {name: build(name) for name in places}
        scheduler = choose_scheduler(plan.workers)
        _check_reach(scheduler, inputs, places)
        stack.callback(scheduler.close)
        run = Run(
            verb, Grid(first.shape, plan.tile), plan.workers, Scratch(_below(inner, "scratch")), journal, sinks,
            options.progress, scheduler, _retype=retype,
        )  # fmt: skip
        yield run
        changed = [name for name, source in inputs.items() if source.describe() != described[name]]
        if changed:
            raise InputError(
                f"{', '.join(changed)} changed while {verb} read it, so the result would be of neither state; run it "
                f"again with resume=False"
            )
        if not journal.finished(WHOLE):
            for output in places.values():
                assert output.sink is not None
                attributes = dict(output.sink.array.attrs["lpa3d"])
                output.sink.array.attrs["lpa3d"] = attributes | {"complete": True}
            journal.finish(WHOLE)
        for name, output in places.items():
            _move(output, overwrite=options.overwrite)
            run._results[name] = _open_result(output, any(source.is_dask for source in inputs.values()))
        # First what says that there is something to go on with: a run half deleted is none.
        blobs.delete(RUN)
        if home is None:
            blobs.clear("")
        elif not temporary:
            shutil.rmtree(home / token, ignore_errors=True)


def _check_room(verb: str, cost: Cost, first: Source, places: Mapping[str, _Output], home: Path) -> None:
    """Refuse a run that cannot fit on the disks of its scratch and its outputs."""
    needs = [(home, "scratch", cost.scratch[0] * math.prod(first.shape))]
    for output in places.values():
        if output.target is not None:
            size = COMPRESSED * math.prod(output.wanted.shape) * np.dtype(output.wanted.dtype).itemsize
            needs.append((next(folder for folder in output.target.parents if folder.exists()), "the result", size))
    check_room(verb, needs)


def _below(blobs: Blobs, prefix: str) -> Blobs:
    """Return the blobs below a prefix."""
    if isinstance(blobs, Folder):
        return Folder(blobs.root / prefix)
    assert isinstance(blobs, StoreFolder)
    return StoreFolder(blobs.store, f"{blobs.prefix}/{prefix}")


def _place(name: str, wanted: Wanted) -> _Output:
    """Find out where an output will be; nothing is made yet."""
    place = wanted.place
    if place is None:
        raise InputError(f"stored arrays need a place for the result: pass out='{name}.zarr'")
    if hasattr(place, "supports_writes"):  # a zarr store
        return _Output(wanted, place, "", None, None, None)
    if is_url(place):
        from zarr.storage import FsspecStore

        try:
            return _Output(wanted, FsspecStore.from_url(place), "", None, None, None)
        except ImportError as error:
            raise InputError(f"{place} needs a library that is not installed: {error}") from error
    if not isinstance(place, (str, os.PathLike)):
        raise InputTypeError(
            f"out is a {type(place).__module__}.{type(place).__qualname__}; a path, a URL or a zarr store is needed, "
            f"e.g. out='{name}.zarr'"
        )
    from ..io import locate, zarr_target

    location = locate(as_path(place))
    if location.format != "zarr":
        raise InputError(f"out is {os.fspath(place)!r}; results of this size are zarr arrays: out='{name}.zarr'")
    final = Path(os.path.realpath(location.path))
    return _Output(wanted, None, "", None, zarr_target(location), final)


def _home(verb: str, places: Mapping[str, _Output], options: Options) -> tuple[Path | None, Blobs, bool]:
    """Return the folder of a run and its blobs; None and blobs in a store for outputs in object storage."""
    if options.scratch is not None:
        if not isinstance(options.scratch, (str, os.PathLike)) or is_url(options.scratch):
            raise InputTypeError(f"scratch is {options.scratch!r}; a local or shared folder is needed")
        home = Path(os.path.realpath(options.scratch))
        return home, Folder(home), False
    for output in places.values():
        if output.final is None:
            store = StoreFolder(output.store, STORE_PREFIX)
            return None, store, False
        parts = output.final.parts
        depth = next((i for i, part in enumerate(parts) if part.lower().endswith(".zarr")), len(parts) - 1)
        home = Path(*parts[:depth], f"{'-'.join(parts[depth:])}.lpa3d")
        return home, Folder(home), False
    home = Path(tempfile.mkdtemp(prefix=f"lpa3d-{verb}-"))
    return home, Folder(home), True


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """Keep other processes out of a run; the system lets go when the process ends, however it does."""
    with open(home / "lock", "w") as file:
        try:
            if os.name == "nt":
                import msvcrt

                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
            else:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another process is at work on this output ({home}); wait for it, or end it") from None
        try:
            yield
        finally:
            (home / "lock").unlink(missing_ok=True)


def _remove_empty(home: Path) -> None:
    """Remove the folder of a run in which nothing is left."""
    with contextlib.suppress(OSError):
        home.rmdir()


def _earlier(blobs: Blobs, places: Mapping[str, _Output], options: Options) -> dict[str, Any] | None:
    """Return what an unfinished run at this place was, None if there is none or it is to be forgotten."""
    try:
        before: dict[str, Any] = json.loads(blobs.get(RUN, 0, 2**26))
    except (KeyError, ValueError):
        return None
    if options.resume:
        return before
    for name, output in places.items():
        if output.target is not None:
            shutil.rmtree(output.target.with_name(f"{TEMPORARY}{before['id']}-{name}"), ignore_errors=True)
    blobs.delete(RUN)
    blobs.clear(before["id"])
    return None


def _compare(before: dict[str, Any], now: dict[str, Any], options: Options, ndim: int) -> None:
    """Refuse to go on with a run that was of something else."""
    differences = []

    def compare(name: str, old: Any, new: Any) -> None:
        if isinstance(old, dict) and isinstance(new, dict):
            for key in sorted(set(old) | set(new)):
                compare(f"{name}.{key}" if name else key, old.get(key), new.get(key))
        elif old != new:
            shown = [text if len(text := str(value)) < 60 else f"{text[:57]}..." for value in (old, new)]
            differences.append(f"{name} was {shown[0]} and is {shown[1]}")

    compare("", {key: before.get(key) for key in now}, now)
    if options.tile is not None:
        from .budget import canonical_tile

        tile = list(canonical_tile(options.tile, ndim))
        if tile != before["tile"]:
            differences.append(f"tile was {before['tile']} and is {tile}")
    if differences:
        raise InputError(
            f"an unfinished run at this place was another one: {'; '.join(differences)}. Pass the same to go on, or "
            f"resume=False to delete what it did and start anew"
        )


def _refuse_existing(places: Mapping[str, _Output], options: Options) -> None:
    """Refuse to lose an output that is there."""
    for output in places.values():
        if output.final is not None:
            exists = output.final.exists()
        else:
            from zarr.core.sync import sync

            exists = bool(sync(output.store.exists("zarr.json")))
            if exists and options.overwrite:
                raise InputError(
                    f"{output.wanted.place} exists; in object storage nothing is replaced in one step: delete it first"
                )
        if exists and not options.overwrite:
            raise InputError(
                f"{output.wanted.place} exists; pass --overwrite to replace it (in Python: overwrite=True)"
            )


def _build(
    output: _Output, name: str, home: Path | None, token: str, layout: Layout, about: dict[str, Any], state: str
) -> Sink:
    """Make the array of an output, or open the one that an earlier run made.

    Of a run whose outputs were "whole" when it was killed, some may be in their places already.
    """
    import zarr

    wanted = output.wanted
    if output.final is None:
        store: Any = output.store
    else:
        assert home is not None
        assert output.target is not None
        output.built = _building_site(output.target, home, token, name)
        if state == "whole" and not output.built.exists():
            output.built = output.target
        inner = output.final.relative_to(output.target).parts
        group = output.built
        for part in inner:
            if not (group / "zarr.json").exists():
                zarr.create_group(str(group), zarr_format=3)
            group = group / part
        store = str(group)
    output.path = store if isinstance(store, str) else ""
    try:
        array = None if state == "new" else zarr.open_array(store, mode="r+")
    except (FileNotFoundError, KeyError):
        array = None
    if array is None:
        attributes = {"lpa3d": {key: about[key] for key in ("verb", "version", "algorithm", "parameters", "inputs")}}
        attributes |= about["attributes"]
        attributes["lpa3d"]["complete"] = False
        array = create_array(store, wanted.shape, wanted.ndim, np.dtype(wanted.dtype), layout, attributes)
    output.sink = Sink(array.with_config({"write_empty_chunks": True}), wanted.shape, wanted.ndim)
    return output.sink


def _forget(output: _Output) -> None:
    """Delete an empty output's metadata: a store may hold other things beside them."""
    from zarr.core.sync import sync

    assert output.sink is not None
    sync((output.sink.array.store_path / "zarr.json").delete())


def _check_reach(scheduler: Scheduler, inputs: Mapping[str, Source], places: Mapping[str, _Output]) -> None:
    """Refuse stores that other processes cannot see."""
    if scheduler.name == "threads":
        return
    stores = {name: getattr(source.array, "store", None) for name, source in inputs.items()}
    stores |= {name: output.store for name, output in places.items()}
    for name, store in stores.items():
        if type(store).__name__ == "MemoryStore":
            raise InputError(
                f"{name} lies in the memory of this process, which the workers of the dask client cannot see; use "
                f"a path that they share, or close the client"
            )


def _building_site(target: Path, home: Path, token: str, name: str) -> Path:
    """Return where an output is built: with the run, or beside its place if only there it can be renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.stat(home).st_dev == os.stat(target.parent).st_dev:
        return home / token / "result" / name
    return target.with_name(f"{TEMPORARY}{token}-{name}")


def _move(output: _Output, *, overwrite: bool) -> None:
    """Move a complete output to its place."""
    if output.target is None or output.built is None or output.built == output.target:
        return
    if output.target.exists():
        if not overwrite:
            # Somebody else made it meanwhile.
            raise Lpa3dError(
                f"{output.wanted.place} appeared while the work ran; the result is kept as {output.built}; move one of "
                f"them away and run the same again, or pass --overwrite (in Python: overwrite=True)"
            )
        aside = output.built.with_name(f"{ASIDE}{secrets.token_hex(4)}")
        os.rename(output.target, aside)
        os.rename(output.built, output.target)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        os.rename(output.built, output.target)


def _open_result(output: _Output, as_dask: bool) -> Any:
    """Return a finished output as a zarr array, or as a dask array backed by it."""
    import zarr

    array = zarr.open_array(str(output.final) if output.final is not None else output.store, mode="r")
    if not as_dask:
        return array
    import dask.array

    return dask.array.from_zarr(array)
