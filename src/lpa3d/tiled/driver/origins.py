"""Where an array lies: the files, stores and arrays in memory that it is read from.

What is an input must be no output, nor hold scratch (`Origin.overlaps`), and must be the same when a run goes on and
when it ends (`Origin.list_contents`). Both ask here, so that no kind of store is known to one of them alone.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import hashlib
import os
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...files.places import zarr_kind
from ...files.tensors import TensorArray

__all__ = ["Origin", "find_origins", "find_store", "find_target"]

DISK = "file"
"""The service of what lies in a local, or shared, file system."""


@dataclass(frozen=True)
class Origin:
    """Something that an array is read from, or written to.

    Attributes
    ----------
    service
        What keeps it: `DISK`, the protocol of object storage, or an object in the memory of this process, by its id.
    parts : tuple of str
        Its path there.
    contents : callable or None
        Yields what changes when its contents do; None where that cannot be told.
    unknown : str
        What it is, for messages, where it cannot be told.
    """

    service: Any
    parts: tuple[str, ...]
    contents: Callable[[], Iterable[bytes]] | None
    unknown: str = ""

    @property
    def is_local(self) -> bool:
        """Return whether it lies in a local, or shared, file system."""
        return bool(self.service == DISK)

    @property
    def is_private(self) -> bool:
        """Return whether it lies in the memory of this process, which no other one sees."""
        return self.service == "memory" or (isinstance(self.service, int) and self.contents is not None)

    def overlaps(self, other: Origin) -> bool:
        """Return whether one is, or lies in, the other."""
        if self.service != other.service:
            return False
        if all(a == b for a, b in zip(self.parts, other.parts, strict=False)):
            return True
        if not self.is_local:
            return False
        try:
            return os.path.samefile(Path(*self.parts), Path(*other.parts))
        except OSError:
            return False  # one of them is not there

    def list_contents(self) -> Iterable[bytes] | None:
        """Return what tells its contents apart; None where that cannot be told."""
        if self.contents is None:
            return None
        try:
            # A listing that nothing is in, though there is an array, tells nothing.
            return list(self.contents()) or None
        except (PermissionError, NotImplementedError):
            return None


# ------------------------------------------------------------------------------------------------------------ on disk


def _on_disk(path: str | os.PathLike[str]) -> Iterator[Origin]:
    """Yield a file or folder, and what links inside of it lead to."""
    real = Path(os.path.realpath(path))
    yield _at(real)
    for folder, entries in _walk(real):
        for entry in entries:
            if entry.is_symlink() and not Path(target := os.path.realpath(entry.path)).is_relative_to(real):
                yield _at(Path(target), Path(folder))


def _at(real: Path, link: Path | None = None) -> Origin:
    # What a link leads to is listed where the link is.
    return Origin(DISK, real.parts, functools.partial(_list_files, real) if link is None else lambda: [b"link"])


def _walk(top: Path) -> Iterator[tuple[str, list[os.DirEntry[str]]]]:
    """Yield every folder of `top`, also behind links, and the files and links in it; each once, if links go in a
    circle."""
    seen, waiting = set(), [os.fspath(top)] if top.is_dir() else []
    while waiting:
        folder = waiting.pop()
        stat = os.stat(folder)
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        with os.scandir(folder) as found:
            entries = list(found)
        waiting += [entry.path for entry in entries if entry.is_dir()]
        yield folder, [entry for entry in entries if entry.is_symlink() or not entry.is_dir()]


def _list_files(top: Path) -> Iterator[bytes]:
    """Yield name, size and time of each file."""
    if not top.is_dir():
        stat = os.stat(top)
        yield f"{stat.st_size} {stat.st_mtime_ns}".encode()
        return
    for folder, entries in sorted(_walk(top)):
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                continue
            told = "missing"
            with contextlib.suppress(FileNotFoundError):  # a link that leads nowhere, or it was deleted just now
                # What the folder says of it may be old on network file systems.
                stat = os.stat(entry.path)
                told = f"{stat.st_size} {stat.st_mtime_ns}"
            yield f"{os.path.relpath(folder, top)}/{entry.name} {told}".encode(errors="surrogateescape")


# ----------------------------------------------------------------------------------------------------------- in stores

SERVICES = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "local": DISK}
"""Protocols that are another's."""

STAMPS = ("etag", "e_tag", "md5hash", "lastmodified", "last_modified", "mtime", "updated", "generation", "created")
"""What says in a listing of fsspec that an object is another one, in lower case; each service has some of them."""


def _split(*paths: str) -> tuple[str, ...]:
    return tuple(part for path in paths for part in path.split("/") if part not in ("", "."))


def find_store(store: Any, path: str = "") -> list[Origin]:
    """Return where an array, or a group, of a zarr store lies."""
    from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, WrapperStore, ZipStore

    while isinstance(store, WrapperStore):
        store = store._store
    if isinstance(store, LocalStore):
        return list(_on_disk(Path(store.root, path)))
    if isinstance(store, ZipStore):
        return list(_on_disk(store.path))
    if isinstance(store, MemoryStore):
        parts = _split(getattr(store, "path", ""), path)
        return [Origin(id(store._store_dict), parts, functools.partial(_list_memory, store, "/".join((*parts, ""))))]
    if isinstance(store, FsspecStore):
        return _find_fsspec(store.fs, store.path, path)
    if isinstance(store, ObjectStore):
        return _find_obstore(store.store, path)
    return [Origin(id(store), _split(path), None, f"a store of the class {type(store).__qualname__}")]


def _list_memory(store: Any, prefix: str) -> Iterator[bytes]:
    for key, value in sorted(store._store_dict.items()):
        if key.startswith(prefix):
            yield f"{key} {hashlib.sha256(value.to_bytes()).hexdigest()}".encode()


def _find_fsspec(fs: Any, root: str, path: str) -> list[Origin]:
    place = "/".join(part for part in (root.rstrip("/"), path) if part)
    while True:
        if hasattr(fs, "sync_fs"):  # asynchronous for zarr
            fs = fs.sync_fs
        elif type(fs).__name__ == "DirFileSystem":
            place, fs = fs._join(place), fs.fs
        elif hasattr(fs, "fs") and hasattr(fs, "_strip_protocol"):  # a cache of another one
            fs = fs.fs
        else:
            break
    names = fs.protocol if isinstance(fs.protocol, (tuple, list)) else (fs.protocol,)
    service = SERVICES.get(names[0], names[0])
    if service == DISK:
        return list(_on_disk(fs._strip_protocol(place) if "://" in place else place))
    archive = getattr(fs, "fo", None)  # an archive is one file of another file system
    name = getattr(archive, "path", None) or getattr(archive, "name", None)
    if isinstance(name, (str, os.PathLike)) and os.path.isfile(name):
        return list(_on_disk(name))
    unknown = f"{service} storage"
    if archive is not None or service in ("http", "https", "reference"):
        return [Origin(id(fs), _split(place), None, unknown)]
    return [Origin(service, _split(place), functools.partial(_list_fsspec, fs, place), unknown)]


def _list_fsspec(fs: Any, place: str) -> Iterator[bytes]:
    fs.invalidate_cache(place)
    for name, about in sorted(fs.find(place, detail=True).items()):
        stamps = {key.lower(): value for key, value in about.items()}
        told = [stamps[stamp] for stamp in STAMPS if stamps.get(stamp)]
        if not told:
            raise NotImplementedError
        yield f"{name} {about.get('size')} {told}".encode()


def _find_obstore(store: Any, path: str) -> list[Origin]:
    kind = type(store).__name__
    prefix = str(getattr(store, "prefix", None) or "")
    if kind == "LocalStore":
        return list(_on_disk(Path(prefix or "/", path)))
    names = {"S3Store": ("s3", "bucket"), "GCSStore": ("gs", "bucket"), "AzureStore": ("az", "container_name")}
    contents = functools.partial(_list_obstore, store, path)
    if kind in names:
        service, bucket = names[kind]
        return [
            Origin(service, _split(str(store.config.get(bucket, "")), prefix, path), contents, f"{service} storage")
        ]
    if kind == "MemoryStore":
        return [Origin(id(store), _split(path), contents)]
    return [Origin(id(store), _split(path), None, f"obstore's {kind}")]


def _list_obstore(store: Any, path: str) -> Iterator[bytes]:
    import obstore

    found = [about for batch in obstore.list(store, path or None) for about in batch]
    for about in sorted(found, key=lambda about: about["path"]):
        yield f"{about['path']} {about['size']} {about['e_tag']} {about['last_modified']}".encode()


def find_target(place: Path | Any) -> Origin:
    """Return where an output goes: a folder, or the root of a store."""
    if isinstance(place, Path):
        return _at(Path(os.path.realpath(place)))
    return find_store(place)[0]


# ---------------------------------------------------------------------------------------------------------- of arrays

PURE = {"_operator", "builtins", "cytoolz", "dask", "functools", "itertools", "math", "numba", "numpy", "operator"} | {
    "scipy",
    "skimage",
    "tlz",
    "toolz",
    "xarray",
    "zarr",
}
"""Packages whose functions and objects read only what they are given; a file's name is seen where it is given."""

PLAIN: tuple[type, ...] = (int, float, complex, bytes, slice, range, type(None), type(...), types.ModuleType)
PLAIN += (np.generic, np.dtype, np.ufunc)
"""Types of values that hold nothing that is read."""

DEPTH = 8
"""How far objects that nothing is known of are looked through: one inside of another."""


def find_origins(array: Any) -> tuple[Origin, ...]:
    """Return what an array is read from: a zarr, NumPy or dask array, of the latter all that its graph holds.

    What functions of the user read is found where they hold it, or name it; they are `Origin.unknown` all the same.
    """
    found: dict[Any, Origin] = {}
    # Of the objects that were seen none may be freed, or its id would become another's.
    seen: dict[int | str, Any] = {}
    waiting = [(array, 0)]
    while waiting:
        value, depth = waiting.pop()
        # Strings that are equal are many in large graphs, and each costs calls of the system.
        mark = value if isinstance(value, str) else id(value)
        if isinstance(value, PLAIN) or mark in seen:
            continue
        seen[mark] = value
        origins, members, deeper = _open(value)
        if depth + deeper <= DEPTH:
            waiting += [(member, depth + deeper) for member in members]
        for origin in origins:
            found.setdefault((origin.service, origin.parts, origin.unknown), origin)
    return tuple(found.values())


def _open(value: Any) -> tuple[Iterable[Origin], Iterable[Any], int]:
    """Return where a value lies, or else what it holds, and whether that is a guess."""
    package = type(value).__module__.partition(".")[0]
    if package == "dask":
        return (), _list_members(value), 0
    if isinstance(value, np.ndarray):
        return _find_numpy(value), (), 0
    if isinstance(value, (list, tuple, set, frozenset)):
        return (), value, 0
    if isinstance(value, (str, os.PathLike)):
        return _find_named(value), (), 0
    if hasattr(value, "store_path"):  # an array or a group of zarr
        return find_store(value.store_path.store, value.store_path.path), (), 0
    if hasattr(value, "supports_writes"):  # a store
        return find_store(value), (), 0
    if isinstance(value, TensorArray):
        return _on_disk(value.folder), (), 0
    if package == "h5py" and hasattr(value, "file"):
        return _on_disk(value.file.filename), (), 0
    if isinstance(value, Mapping):
        return (), value.values(), 0
    if isinstance(value, functools.partial):
        return (), (value.func, value.args, value.keywords), 0
    if isinstance(value, types.CodeType):
        return (), value.co_consts, 1
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type, type(np.where))):
        return _find_function(value)
    if isinstance(value, types.MethodType):
        return (), (value.__self__, value.__func__), 0
    if hasattr(value, "py_func"):  # compiled
        return (), (value.py_func,), 0
    strange = [] if package in PURE else [_unknown(value, f"a {type(value).__module__}.{type(value).__qualname__}")]
    return strange, _list_attributes(value), 1


def _unknown(value: Any, what: str) -> Origin:
    return Origin(id(value), (), None, what)


def _find_numpy(array: Any) -> Iterable[Origin]:
    base = array
    while isinstance(base, np.ndarray):
        name = getattr(base, "filename", None)
        if name is not None:
            return _on_disk(name)
        base = base.base
    if array.dtype.hasobject:
        return [_unknown(array, "a NumPy array of objects")]
    return [Origin(id(array), (), functools.partial(_list_values, array))]


def _list_values(array: Any) -> Iterator[bytes]:
    digest = hashlib.sha256(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    yield f"{array.shape} {array.dtype.str} {digest.hexdigest()}".encode()


def _find_named(name: str | os.PathLike[str]) -> Iterable[Origin]:
    """Find the file, or zarr array, that a string names, if it does."""
    text = os.fspath(name)
    if not isinstance(text, str) or "\0" in text or "\n" in text:
        return ()
    scheme, colon, place = text.rpartition("://")
    if colon and scheme not in ("file", "local"):
        return [_unknown(name, text)]
    try:
        named = os.path.isfile(place) or bool(zarr_kind(Path(place)))
    except (OSError, ValueError):
        return ()
    return _on_disk(place) if named else ()


def _find_function(function: Any) -> tuple[Iterable[Origin], Iterable[Any], int]:
    """Return what a function, or a class, holds and names; one of the user's may read anything besides."""
    held = [getattr(function, name, None) for name in ("__defaults__", "__kwdefaults__")]
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # nothing is in it yet
            held.append(cell.cell_contents)
    if (getattr(function, "__module__", None) or "builtins").partition(".")[0] in PURE:
        return (), held, 0
    code = getattr(function, "__code__", None)
    if code is not None:
        held += [code, *(function.__globals__.get(name) for name in _list_globals(code))]
    return [_unknown(function, f"the function {function.__qualname__}")], held, 1


def _list_globals(code: types.CodeType) -> Iterator[str]:
    """Yield the global names that a function, and those inside of it, read; attributes of the same names are none."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield str(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _list_globals(inner)


def _list_members(value: Any) -> Iterable[Any]:
    """Return what a graph, a layer or a task of dask holds."""
    if hasattr(value, "dask"):  # an array, or something delayed
        return [value.dask]
    if hasattr(value, "layers"):
        return list(value.layers.values())
    if hasattr(value, "io_deps"):  # one task that stands for one for each chunk
        return [getattr(value, "task", None) or getattr(value, "dsk", None), value.indices, value.io_deps]
    if isinstance(value, Mapping):
        return list(value.values())
    return () if isinstance(value, types.FunctionType) else _list_attributes(value)


NAMES = frozenset({"key", "target", "_dependencies", "_token", "_repr"})
"""Attributes of tasks that only name others."""


@functools.cache
def _list_slots(kind: type) -> list[str]:
    return [name for base in kind.__mro__ for name in getattr(base, "__slots__", ()) or () if name not in NAMES]


def _list_attributes(value: Any) -> list[Any]:
    held = [getattr(value, name, None) for name in _list_slots(value.__class__)]
    return held + list(getattr(value, "__dict__", {}).values())
