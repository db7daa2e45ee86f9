"""What runs do to folders and stores, write by write: counted, stopped at any of them, saved and brought back.

A crash point is the moment before a change: the making of a file, each half of a write, a rename, a link, a deletion,
the making of a folder, a put into a store. `World.save` at such a moment is what a process leaves that is killed there,
as the system keeps all that was written; `World.restore` makes it so, whatever came after.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import errno
import functools
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import lpa3d
from lpa3d.files import ngff
from lpa3d.tiled.driver import locks, run, schedulers
from tests.results import open_result

Hook = Callable[[int, str, str], None]
"""Called with the number of a change, what it is, and of which file or key, before it is made."""


class Crash(BaseException):
    """The process is dead: from now on each change that it tries ends in this."""


class Died(BaseException):
    """The worker is dead that does a task."""


class Changes:
    """Calls `hook` before each change below `roots`, and in the zarr stores of memory and of obstore."""

    def __init__(self) -> None:
        self.count = 0
        self.hook: Hook | None = None
        self.tasks = 0
        """How many batches of tasks are in progress."""
        self.roots: tuple[str, ...] = ()
        self._files: dict[int, str] = {}
        self._lock = threading.RLock()

    def step(self, what: str, of: Any) -> None:
        with self._lock:
            self.count += 1
            number, hook = self.count, self.hook
        if hook is not None:
            hook(number, what, os.fspath(of) if not isinstance(of, (str, int)) else str(of))

    def inside(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and os.path.abspath(os.fspath(path)).startswith(self.roots)

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        """Watch the functions by which Python, zarr and obstore change files and stores."""
        for name in ("replace", "rename", "link", "unlink", "remove", "rmdir", "mkdir", "truncate"):
            self._patch_path(patch, name)
        self._patch_files(patch)
        for name in ("set", "set_if_not_exists", "delete"):
            patch.setattr(zarr.storage.MemoryStore, name, self._awaited(name, getattr(zarr.storage.MemoryStore, name)))
        with contextlib.suppress(ImportError):
            import obstore

            for name in ("put", "delete", "copy", "rename"):
                patch.setattr(obstore, f"{name}_async", self._awaited(name, getattr(obstore, f"{name}_async")))
                patch.setattr(obstore, name, self._called(name, getattr(obstore, name)))

    def watch_tasks(self, patch: pytest.MonkeyPatch) -> None:
        """Count the tasks in progress."""
        inner = schedulers._call

        def call(*args: Any) -> Any:
            self.tasks += 1
            try:
                return inner(*args)
            finally:
                self.tasks -= 1

        patch.setattr(schedulers, "_call", call)

    def _awaited(self, what: str, inner: Any) -> Any:
        async def call(store: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
            # In a thread, as what the hook does may need zarr's loop.
            await asyncio.to_thread(self.step, what, str(key))
            return await inner(store, key, *args, **kwargs)

        return call

    def _called(self, what: str, inner: Any) -> Any:
        def call(store: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
            self.step(what, str(key))
            return inner(store, key, *args, **kwargs)

        return call

    def _patch_path(self, patch: pytest.MonkeyPatch, name: str) -> None:
        inner = getattr(os, name)

        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            if kwargs.get("dir_fd") is not None or self.inside(path):
                self.step(name, path)
            return inner(path, *args, **kwargs)

        patch.setattr(os, name, call)

    def _patch_files(self, patch: pytest.MonkeyPatch) -> None:
        changes, os_open, os_write, os_close, io_open = self, os.open, os.write, os.close, io.open

        def open_handle(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if not flags & (os.O_WRONLY | os.O_RDWR) or not changes.inside(path):
                return os_open(path, flags, *args, **kwargs)
            if flags & (os.O_CREAT | os.O_TRUNC):
                changes.step("open", path)
            handle = os_open(path, flags, *args, **kwargs)
            changes._files[handle] = os.fspath(path)
            return handle

        def write(handle: int, data: Any) -> int:
            if handle not in changes._files:
                return os_write(handle, data)
            path, view = changes._files[handle], memoryview(data).cast("B")
            changes.step("write", path)
            half = os_write(handle, view[: len(view) // 2])
            changes.step("torn", path)
            return half + os_write(handle, view[half:])

        def close(handle: int) -> None:
            changes._files.pop(handle, None)
            os_close(handle)

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                view = memoryview(data).cast("B")
                changes.step("write", self.name)
                half = super().write(view[: len(view) // 2]) or 0
                changes.step("torn", self.name)
                return half + (super().write(view[half:]) or 0)

        def open_file(file: Any, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wxa+") or not changes.inside(file):
                return io_open(file, mode, buffering, *args, **kwargs)
            changes.step("open", file)
            raw = File(file, mode.replace("b", "").replace("t", ""))
            if buffering == 0:
                return raw
            buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, *args, **kwargs)

        patch.setattr(os, "open", open_handle)
        patch.setattr(os, "write", write)
        patch.setattr(os, "close", close)
        patch.setattr(io, "open", open_file)
        patch.setattr(builtins, "open", open_file)


# ------------------------------------------------------------------------------------------------------------- verbs

TILE = 4
SHAPE = (8, 8, 4)

Arrays = dict[str, Any]


def make_inputs(version: int) -> Arrays:
    """Return a class map, sparse and dense instances of one version of the inputs."""
    rng = np.random.default_rng(20 + version)
    volume = (rng.random((4, 4, 4)) > 0.3).astype(np.uint8).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    volume[3:5, 3:5] = 1 + version % 2
    blocks = np.add.outer(np.add.outer(np.arange(8) // 3 * 100, np.arange(8) // 4 * 10), np.arange(8) // 3)
    instances = np.where(volume > 0, 1 + blocks + version, 0).astype(np.int64)
    seeds = np.zeros_like(instances)
    seeds[1::3] = instances[1::3]
    crop = tuple(slice(0, side) for side in SHAPE)
    return {"volume": volume[crop], "instances": instances[crop], "seeds": seeds[crop]}


def label(arrays: Arrays, variant: int, **options: Any) -> Any:
    return lpa3d.label(arrays["volume"], connectivity=(26, 6)[variant], **options)


def merge(arrays: Arrays, variant: int, **options: Any) -> Any:
    return lpa3d.merge(arrays["instances"], min_contact=(0.1, 0.4)[variant], **options)


def propagate(arrays: Arrays, variant: int, **options: Any) -> Any:
    rules: dict[str, Any] = {"seed_conflicts": "majority", "sweeps": 2, "return_confidence": True}
    if variant:
        rules["max_distance"] = 2.0
    return lpa3d.propagate(arrays["volume"], arrays["seeds"], **rules, **options)


def fuse(arrays: Arrays, variant: int, **options: Any) -> Any:
    sources = {"classes": arrays["volume"], "instances": arrays["seeds"], "slices": arrays["instances"]}
    order = ["slices", "instances", "classes"] if variant else ["instances", "slices", "classes"]
    found = lpa3d.fuse(**sources, priority=order, **options)
    return found.volume, found.seeds


VERBS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "label": (label, ("labels",)),
    "merge": (merge, ("labels",)),
    "propagate": (propagate, ("labels", "confidence")),
    "fuse": (fuse, ("volume", "seeds")),
}
"""Each with the names of its outputs."""

PLACES = ("folder", "scratch", "group", "memory", "obstore-local", "obstore-memory")
"""A local folder; with scratch on another disk; the labels of an image; stores."""


# ------------------------------------------------------------------------------------------------------------- world


@dataclass
class State:
    """What is there at a moment."""

    files: dict[str, bytes | None]
    stores: list[dict[str, Any]]


@dataclass
class World:
    """A verb, the place of its outputs, and everything that a run of it can change."""

    verb: str
    place: str
    folder: Path
    changes: Changes
    inputs: int = 0
    """The version of the inputs that are there."""
    outs: list[Any] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.root = self.folder / "world"
        self.root.mkdir()
        self.changes.roots = (f"{self.root}{os.sep}", str(self.root))
        self.names = VERBS[self.verb][1]
        for name in self.names:
            out: Any
            if self.place == "group":
                out = self.root / f"cell.zarr/labels/{name}"
            elif self.place in ("folder", "scratch"):
                # The second lies in a group that is to be made.
                out = self.root / ("out.zarr" if name == self.names[0] else f"group.zarr/{name}")
            elif self.place == "memory":
                out = zarr.storage.MemoryStore()
            else:
                import obstore

                local = self.place == "obstore-local"
                place = self.root / f"{name}.store"
                inner = obstore.store.LocalStore(place, mkdir=True) if local else obstore.store.MemoryStore()
                out = zarr.storage.ObjectStore(inner)
            self.outs.append(out)
        if self.place == "scratch":
            (self.root / "fast").mkdir()
            self.options["scratch"] = self.root / "fast"
        self.write_inputs(0)
        if self.place == "group":
            self.options["storage"] = {"levels": 2}
            ngff.write_group(self.root / "cell.zarr", 3, {"ome": {"multiscales": [{"datasets": [{"path": "s0"}]}]}})
            ngff.write_group(self.root / "cell.zarr/labels", 3, {"ome": {"labels": ["other"]}})

        # Other things of a store are nobody's business.
        for number, out in enumerate(self.outs):
            if not isinstance(out, Path):
                mine = f"{number}".encode()
                sync(out.set("mine/c/0/0/0", default_buffer_prototype().buffer.from_bytes(mine)))
        self.others = self.list_others()

    def list_others(self) -> list[dict[str, Any]]:
        """Return what of the stores is not a run's."""

        def collect(store: Any) -> dict[str, Any]:
            keys = [key for key in sync(list_keys(store)) if key.startswith("mine/")]
            return {key: sync(store.get(key, default_buffer_prototype())).to_bytes() for key in keys}

        async def list_keys(store: Any) -> list[str]:
            return [key async for key in store.list()]

        return [collect(out) for out in self.outs if not isinstance(out, Path)]

    # ------------------------------------------------------------------------------------------------------- inputs

    def write_inputs(self, version: int, *, replace: bool = True) -> None:
        """Store inputs, in the place of those that are there or into them."""
        self.inputs = version
        for name, array in make_inputs(version).items():
            path = self.folder / "inputs" / f"{name}.zarr"
            if replace:
                shutil.rmtree(path, ignore_errors=True)
                zarr.create_array(str(path), shape=SHAPE, dtype=array.dtype, chunks=(4, 8, 3))
            zarr.open_array(str(path), mode="r+")[:] = array

    # -------------------------------------------------------------------------------------------------------- calls

    def call(self, variant: int = 0, **options: Any) -> None:
        """Make a call of the verb."""
        function, names = VERBS[self.verb]
        paths = {name: self.folder / "inputs" / f"{name}.zarr" for name in make_inputs(0)}
        out: Any = self.outs[0] if len(names) == 1 else tuple(self.outs)
        if self.verb == "fuse":
            out = dict(zip(names, self.outs, strict=True))
        function(paths, variant, out=out, tile=TILE, **self.options, **options)

    def expected(self, version: int, variant: int) -> list[Any]:
        """Return what the same call gives in memory."""
        key = self.verb, version, variant
        if key not in EXPECTED:
            found = VERBS[self.verb][0](make_inputs(version), variant)
            EXPECTED[key] = list(found) if isinstance(found, tuple) else [found]
        return EXPECTED[key]

    # ------------------------------------------------------------------------------------------------------ results

    def read(self) -> list[Any]:
        """Return each output that says that it is complete, None of another."""
        found = []
        for out in self.outs:
            try:
                array = open_result(out)
            except (FileNotFoundError, KeyError):
                found.append(None)
                continue
            complete = array.attrs["lpa3d"]["complete"]
            assert complete or not isinstance(out, Path), "an unfinished output is in its place"
            found.append(array[...] if complete else None)
        return found

    def read_list(self) -> list[str]:
        """Return which labels the image lists."""
        found = ngff.read_attributes(self.root / "cell.zarr/labels")["ome"]["labels"]
        assert found[0] == "other", "what was listed is lost"
        return list(found)

    def holds(self, version: int, variant: int) -> bool:
        """Return whether all outputs are what a call is to give, with all their levels, and are listed."""
        if self.place == "group":
            if self.read_list() != ["other", *self.names]:
                return False
            for number, out in enumerate(self.outs):
                fine, coarse = (open_result(out, level=level)[...] for level in (0, 1))
                image = self.names[number] == "confidence"
                if not np.array_equal(coarse, ngff.reduce_level(fine, (2, 2, 2), image=image)):
                    return False
        return all(
            one is not None and one.dtype == other.dtype and np.array_equal(one, other)
            for one, other in zip(self.read(), self.expected(version, variant), strict=True)
        )

    def litter(self) -> list[str]:
        """Return what is there besides finished outputs."""
        state, found = self.save(), []
        for key in [key for store in state.stores for key in store]:
            if key != "zarr.json" and key.partition("/")[0] not in ("c", "mine"):
                found.append(key)
        for path, data in state.files.items():
            parts = Path(path).relative_to(self.root).parts or ("",)
            if self.place == "obstore-local":
                # The folders of a store are no part of it.
                known = data is None or parts[1] in ("zarr.json", "c", "mine")
            else:
                known = parts[0] in ("", "out.zarr", "group.zarr", "cell.zarr", "fast") and not any(
                    part.startswith(".lpa3d") or part.endswith((".lpa3d", ".partial")) for part in parts
                )
            if not known:
                found.append("/".join(parts))
        return found

    # ------------------------------------------------------------------------------------------------------- states

    def save(self) -> State:
        """Return what is there."""
        files: dict[str, bytes | None] = {}
        for folder, _, names in os.walk(self.root):
            files[folder] = None
            for name in names:
                path = os.path.join(folder, name)
                with contextlib.suppress(FileNotFoundError), READ(path, "rb") as file:
                    files[path] = file.read()
        stores: list[dict[str, Any]] = []
        for out in self.outs:
            if self.place == "memory":
                stores.append(dict(out._store_dict))
            elif self.place == "obstore-memory":
                import obstore

                paths = [one["path"] for one in obstore.list(out.store).collect()]
                stores.append({path: bytes(obstore.get(out.store, path).bytes()) for path in paths})
        return State(files, stores)

    def restore(self, state: State) -> None:
        """Make everything as it was."""
        hook, self.changes.hook = self.changes.hook, None
        while self.root.exists():
            shutil.rmtree(self.root, ignore_errors=True)  # obstore may still be at it
        for path, data in state.files.items():
            if data is None:
                os.makedirs(path, exist_ok=True)
            else:
                with READ(path, "wb") as file:
                    file.write(data)
        for out, content in zip(self.outs, state.stores, strict=False):
            if self.place == "memory":
                out._store_dict.clear()
                out._store_dict.update(content)
            else:
                import obstore

                for one in obstore.list(out.store).collect():
                    obstore.delete(out.store, one["path"])
                for path, data in content.items():
                    obstore.put(out.store, path, data)
        self.changes.hook = hook

    # -------------------------------------------------------------------------------------------------------- hooks

    @contextlib.contextmanager
    def watched(self, hook: Hook | None) -> Iterator[None]:
        """Call a hook before each change within the block."""
        self.changes.count, self.changes.hook = 0, hook
        try:
            yield
        finally:
            self.changes.hook = None

    def crash(self, at: int, variant: int = 0, **options: Any) -> bool:
        """Make a call that is killed before its change number `at`; return False if it has fewer, and was not."""
        saved: list[State] = []

        def die(number: int, what: str, of: str) -> None:
            if number >= at:
                if not saved:
                    saved.append(self.save())
                raise Crash

        with self.watched(die):
            try:
                self.call(variant, **options)
            except BaseException:
                if not saved:
                    raise
        if saved:
            self.restore(saved[0])
        return bool(saved)

    @contextlib.contextmanager
    def noted(self) -> Iterator[list[Callable[[], Any]]]:
        """Yield what will be all tasks that are begun within the block, for workers that come late."""
        found: list[Callable[[], Any]] = []
        inner = schedulers._call

        def call(task: Any, context: Any, batch: Any, note: Any) -> Any:
            found.extend(functools.partial(task, context, *args) for args in batch)
            return inner(task, context, batch, note)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(schedulers, "_call", call)
            yield found


EXPECTED: dict[tuple[str, int, int], list[Any]] = {}
READ = open


def full(at: int, count: int = 10**9) -> Hook:
    """Return a hook: `count` changes that need room, from number `at` on, fail as on a full disk."""
    left = [count]

    def fail(number: int, what: str, of: str) -> None:
        if number >= at and left[0] and what in ("open", "write", "torn", "mkdir", "put", "set", "set_if_not_exists"):
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), of)

    return fail


def die(changes: Changes, at: int, times: int) -> Hook:
    """Return a hook: workers die before a change of a task, from number `at` on, some times."""
    left = [times]

    def fail(number: int, what: str, of: str) -> None:
        if number >= at and left[0] and changes.tasks:
            left[0] -= 1
            raise Died

    return fail


def once(at: int, action: Callable[[], Any]) -> Hook:
    """Return a hook that does something before change number `at`, or the next one that is not made in zarr's loop."""
    done: list[int] = []

    def act(number: int, what: str, of: str) -> None:
        if number >= at and not done:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop()
                return
            done.append(number)
            action()

    return act


@contextlib.contextmanager
def watch(folder: Path) -> Iterator[Changes]:
    """Watch all changes; nothing is waited for, and one thing is done at a time."""
    changes = Changes()
    stat = os.stat

    def stat_elsewhere(path: Any, *args: Any, **kwargs: Any) -> Any:
        found = stat(path, *args, **kwargs)
        if isinstance(path, Path) and path.parent.name == "fast":
            return os.stat_result((*found[:2], found.st_dev + 1, *found[3:10]))
        return found

    with pytest.MonkeyPatch.context() as patch, zarr.config.set({"async.concurrency": 1}):
        changes.patch(patch)
        changes.watch_tasks(patch)
        patch.setenv("LPA3D_NUM_THREADS", "1")
        patch.setattr(run, "PAUSE", 0.0)
        patch.setattr(locks, "WAIT", 0.01)
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(os, "stat", stat_elsewhere)
        yield changes
