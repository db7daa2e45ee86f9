"""Outputs: how they are stored, where they are built, and how they get to their places.

They are OME-Zarr, or plain zarr arrays (`lpa3d.files.ngff`). A tile holds whole chunks (whole shards), so two tiles
never write one file. The second level is made of each tile as it is written (`record_written`), where a tile holds
whole chunks of that; further ones are made of the one before, in stages of their own (`reduce_tile`). A local output is
built in the folder of its run and renamed into place when all outputs of the run are complete; an array in
another store is built where it will be, and marked as complete at the end. Both are parts of what
`lpa3d.files.outputs.publish` publishes.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import re
import threading
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError, InputTypeError, Keyword
from ...files.geometry import Geometry
from ...files.ngff import (
    COLORED,
    FORMS,
    PLAIN,
    Form,
    Placed,
    adopt_geometry,
    check_form,
    check_target,
    choose_form,
    describe_image,
    name_group,
    reduce_level,
    shrink,
    unlist,
    write_group,
)
from ...files.outputs import ASIDE, TEMPORARY, Beside, flush, remove
from ...files.places import reaching
from .budget import canonical_sides
from .grid import Box, Grid, Place
from .origins import find_target
from .scratch import ScratchError
from .stored import Source, as_path, canonical_shape, is_url

__all__ = [
    "Layout",
    "Output",
    "Reduction",
    "Sink",
    "Wanted",
    "bring_back",
    "check_apart",
    "check_folder",
    "check_storage",
    "choose_layouts",
    "coarsen_tile",
    "is_store",
    "list_aside",
    "name_group",
    "pack_written",
    "place_outputs",
    "record_written",
    "reduce_tile",
    "settle_aside",
    "unpack_written",
]

Array = npt.NDArray[Any]


WORD = 63
"""Units that one number of a note tells of."""


@dataclass(frozen=True)
class Sink:
    """An output in the making. Picklable.

    zarr takes a third of the time of a write to find out which chunks are empty: `array` is told not to, since `write`
    knows.

    Attributes
    ----------
    array
        The zarr array.
    shape, ndim
        Of the output.
    number : int
        Its place among the outputs of the run.
    run : str
        The id of the run, which the array has as an attribute where it is built in its place.
    shown : str
        What messages call it.
    form : Form
        Of the whole output.
    tile : tuple of int or None
        Of the tiles that are written, where these hold whole chunks of the next level; else None.
    levels : tuple of Sink
        The coarser levels of this one, which is the finest.
    """

    array: Any
    shape: Place
    ndim: int
    number: int = 0
    run: str = ""
    shown: str = "the output"
    form: Form = PLAIN
    tile: Place | None = None
    levels: tuple[Sink, ...] = ()

    @property
    def units(self) -> Grid:
        """Return the grid of what is written at once: chunks, or shards."""
        return Grid(self.shape, canonical_shape(self.array.shards or self.array.chunks))

    def write(self, box: Box, values: Array) -> None:
        """Write a box of whole chunks; what is 0 throughout is not written, since the store reads it as 0.

        What is written is noted for the driver (`record_written`).

        Raises
        ------
        ScratchError
            If the array that the driver made is not there.
        """
        self._check_there()
        grid, values = Grid(box.shape, self.units.tile), values.reshape(box.shape)
        filled = [part for part in map(grid.box, range(len(grid))) if values[part.slices].any()]
        if len(filled) == len(grid):
            self.array[box.slices[3 - self.ndim :]] = values.reshape(box.shape[3 - self.ndim :])
        else:
            for part in filled:
                place = Box(_add(box.lo, part.lo), _add(box.lo, part.hi))
                self.array[place.slices[3 - self.ndim :]] = values[part.slices].reshape(part.shape[3 - self.ndim :])
        written: list[tuple[int, int]] | None = getattr(_noted, "written", None)
        if written is not None:
            places = (self._place(_add(box.lo, part.lo)) for part in filled)
            written += [(self.number, self.units.index(place)) for place in places]
            if filled and self.form.is_group and self.number < LEVEL:
                if not self.form.image:
                    written.append((COLORS - self.number, _find_largest(values[part.slices] for part in filled)))
                if self.tile is not None and self.levels:
                    self._keep_coarse(self.tile, box, values)

    @property
    def rows(self) -> int:
        """Return of how many slices what is written at once should be a multiple: whole units, of whole blocks."""
        side = self.units.tile[0]
        return side * (self.form.steps[0][0] if side % 2 and self.tile is not None and self.levels else 1)

    def _keep_coarse(self, tile: Place, box: Box, values: Array) -> None:
        """Keep what a box is on the next level, until the whole tile is written."""
        grid, step = Grid(self.shape, tile), self.form.steps[0]
        z, y, x = (lo // side for lo, side in zip(box.lo, tile, strict=True))
        at = grid.index((z, y, x))
        whole, part = coarsen(grid.box(at), step), coarsen(box, step)
        kept: dict[Any, Any] = _noted.coarse
        _, _, array = kept.setdefault((self.number, at), (self, whole, np.zeros(whole.shape, values.dtype)))
        array[part.within(whole)] = reduce_level(values, step, image=self.form.image)

    def _place(self, voxel: Place) -> Place:
        z, y, x = (lo // side for lo, side in zip(voxel, self.units.tile, strict=True))
        return z, y, x

    def _check_there(self) -> None:
        """Refuse to make what the driver must have made: who does not see it would write elsewhere."""
        folder = _root(self.array.store)
        if folder is not None:
            there = any((folder / self.array.path / name).is_file() for name in ("zarr.json", ".zarray"))
            where = str(folder / self.array.path)
        else:
            there, where = True, "the store"
        if there and self.run:
            from zarr.core.buffer import default_buffer_prototype
            from zarr.core.sync import sync

            found = sync((self.array.store_path / "zarr.json").get(default_buffer_prototype()))
            about = {} if found is None else json.loads(found.to_bytes()).get("attributes", {}).get("lpa3d", {})
            there = about.get("run") == self.run
        if not there:
            raise ScratchError(
                f"what this run made for {self.shown} is not at {where}: the run is over, another one took its place, "
                f"or {platform.node()} does not see that place; pass one that all workers share as ",
                Keyword("out"),
            )

    def list_missing(self, units: Iterable[int]) -> Iterator[str]:
        """Yield the keys of those of some units that are not there, or hold nothing."""
        folder = _root(self.array.store)
        stored = None if folder is not None else self._list_stored()
        for unit in units:
            key = self.array.metadata.encode_chunk_key(self.units.position(unit)[3 - self.ndim :])
            if folder is not None:
                try:
                    there = (folder / self.array.path / key).stat().st_size > 0
                except OSError:
                    there = False
            else:
                assert stored is not None
                there = bool(stored[unit])
            if not there:
                yield key

    def refuse_lost(self, key: str) -> ScratchError:
        """Return the error for a unit that was written and is not there."""
        folder = _root(self.array.store)
        place = "its place" if folder is None else folder / self.array.path
        return ScratchError(
            f"{key} of {self.shown} was written, but is not at {place}: it was deleted, or a worker wrote it to a disk "
            "of its own. Pass a place that all workers share as ",
            Keyword("out"),
            ", and ",
            Keyword("resume", False),
            " to start anew",
        )

    def _list_stored(self) -> npt.NDArray[np.bool_]:
        """Return which units a store has."""
        from zarr.core.sync import sync

        found = np.zeros(len(self.units), np.bool_)

        async def look() -> None:
            async for _, place in list_chunks(self.array):
                found[self.units.index((0,) * (3 - self.ndim) + place)] = True

        sync(look())
        return found


async def list_chunks(array: Any) -> AsyncIterator[tuple[str, tuple[int, ...]]]:
    """Yield the keys of an array's stored chunks (shards), whatever they look like, and where these are."""
    metadata, path = array.metadata, f"{array.path}/" if array.path else ""
    async for key in array.store.list_prefix(path) if path else array.store.list():
        own = key.removeprefix(path)
        place = tuple(map(int, re.findall(r"\d+", own)))
        if len(place) == len(metadata.shape) and metadata.encode_chunk_key(place) == own:
            yield key, place


def coarsen(box: Box, step: Sequence[int]) -> Box:
    """Return what a box is on the level above its own."""
    return Box(shrink(box.lo, step), shrink(box.hi, step))


def _find_largest(parts: Iterable[Array]) -> int:
    """Return the largest id, or more than `COLORED`, which negative ones count as, too."""
    largest = 0
    for part in parts:
        if largest > COLORED:
            break
        negative = part.dtype.kind == "i" and int(part.min()) < 0
        largest = max(largest, COLORED + 1 if negative else min(int(part.max()), COLORED + 1))
    return largest


_noted = threading.local()


@contextlib.contextmanager
def record_written() -> Iterator[list[tuple[int, int]]]:
    """Collect what is written to outputs by this thread: the number of each output, and of each unit.

    At the end what was written is written to the next level, too, and noted.
    """
    written: list[tuple[int, int]] = []
    coarse: dict[Any, tuple[Sink, Box, Array]] = {}
    _noted.written, _noted.coarse = written, coarse
    try:
        yield written
        for sink, box, values in coarse.values():
            sink.levels[0].write(box, values)
    finally:
        _noted.written = _noted.coarse = None


LEVEL = 1000
"""What is added to the number of an output for each level."""

COLORS = -1
"""Less the number of an output: where its largest id is noted, as a unit."""


@dataclass(frozen=True)
class Reduction:
    """What the making of a level needs: the level, the one before, and which units of that were written. Picklable."""

    fine: Sink
    coarse: Sink
    step: Place
    grid: Grid
    written: npt.NDArray[np.uint8]


def reduce_tile(context: Reduction, tile: int) -> None:
    """Make a tile of a level of the one before.

    Raises
    ------
    ScratchError
        If something of that is not seen here, which would be read as 0.
    """
    fine, box = context.fine, context.grid.box(tile)
    lo = tuple(at * n for at, n in zip(box.lo, context.step, strict=True))
    hi = tuple(min(at * n, side) for at, n, side in zip(box.hi, context.step, fine.shape, strict=True))
    source = Box((lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2]))
    written = np.unpackbits(context.written, count=len(fine.units))
    units = [unit for unit in fine.units.tiles_in(source) if written[unit]]
    if not units:
        return
    if _root(fine.array.store) is not None and (lost := next(fine.list_missing(units), None)) is not None:
        raise fine.refuse_lost(lost)
    values = np.asarray(fine.array[source.slices[3 - fine.ndim :]]).reshape(source.shape)
    context.coarse.write(box, reduce_level(values, context.step, image=fine.form.image))


def pack_written(written: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield rows for the journal: an output, a unit, and a bit for each of the `WORD` units from there on."""
    words: dict[tuple[int, int], int] = {}
    for number, unit in written:
        word, bit = divmod(unit, WORD)
        words[number, word] = words.get((number, word), 0) | 1 << bit
    for (number, word), bits in words.items():
        yield number, word * WORD, bits


def unpack_written(rows: Iterable[npt.NDArray[np.int64]], number: int, count: int) -> npt.NDArray[np.bool_]:
    """Return which of the units of an output were written."""
    found = np.zeros(count + WORD, np.bool_)
    for part in rows:
        own = part[part[:, 0] == number]
        for bit in range(WORD):
            found[own[own[:, 2] >> bit & 1 > 0, 1] + bit] = True
    return found[:count]


def _add(a: Place, b: Place) -> Place:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@dataclass(frozen=True)
class Layout:
    """How an output is stored: chunks, shards (None for none) and what `zarr.create_array` takes besides."""

    chunks: Place
    shards: Place | None
    more: Mapping[str, Any]

    @property
    def unit(self) -> Place:
        """Return what is written at once."""
        return self.shards or self.chunks


CHUNK = 128
"""Side of a chunk: 8 MiB of uint32 before compression, what viewers load at once."""

MANY = 2**15
"""From so many chunks on tiles are shards: file systems dislike millions of files."""


APART = ("chunks", "shards", "attributes", *FORMS)
"""What `storage` may hold that is not handed to `zarr.create_array` as it is."""

TAKEN = (*APART, "compressors", "filters", "serializer", "chunk_key_encoding")
"""What `storage` may hold."""


def check_storage(storage: Any, ndim: int) -> dict[str, Any]:
    """Return `storage` with its chunks and shards as three sides."""
    if storage is None:
        return {}
    given = Keyword("storage")
    if not isinstance(storage, Mapping):
        raise InputTypeError(given, f" is {storage!r}; a mapping is needed, e.g. ", Keyword("storage", {"chunks": 128}))
    unknown = [key for key in storage if key not in TAKEN]
    if unknown:
        raise InputError(given, f" has {', '.join(map(repr, unknown))}; it may hold {', '.join(TAKEN)}")
    found = dict(storage)
    for key in ("chunks", "shards"):
        if found.get(key) is not None:
            found[key] = canonical_sides(found[key], f"storage[{key!r}]", ndim)
    check_form(found)
    attributes = found.get("attributes", {})
    try:
        if not isinstance(attributes, Mapping) or "lpa3d" in attributes:
            raise TypeError
        json.dumps(dict(attributes))
    except TypeError:
        raise InputError(
            given, f" has attributes={attributes!r}; a mapping that JSON can hold, without 'lpa3d', is needed"
        ) from None
    return found


def choose_layouts(shape: Place, tile: Place, storage: Mapping[str, Any], name: str, form: Form) -> list[Layout]:
    """Return how each level is stored: see `choose_layout`.

    A tile of a coarser level is what a tile of the one before becomes, so that a task holds as many voxels. What the
    caller asks for is asked for the finest level; coarser ones have it too where their tiles hold whole ones.
    """
    if form.zarr_format == 2:
        if storage.get("shards") is not None:
            raise InputError(Keyword("storage"), f" has shards {storage['shards']}, but zarr format 2 has none")
        storage = {**storage, "shards": None}
    layouts = [choose_layout(shape, tile, storage, name)]
    shapes = form.shapes(shape)
    for k, step in enumerate(form.steps):
        coarse = coarsen_tile(tile, shapes[k], step)

        def divides(key: str, *, of: Place = coarse, side: Place = shapes[k + 1]) -> bool:
            sides = storage.get(key)
            return sides is None or all(t >= n or t % s == 0 for t, n, s in zip(of, side, sides, strict=True))

        kept = {key: value for key, value in storage.items() if key not in ("chunks", "shards") or divides(key)}
        layouts.append(choose_layout(shapes[k + 1], coarse, kept, name))
    return layouts


def coarsen_tile(tile: Place, shape: Place, step: Place) -> Place:
    """Return the tile of the level above one of `shape`."""
    z, y, x = (-(-n // s) if t >= n else max(1, t // s) for t, n, s in zip(tile, shape, step, strict=True))
    return z, y, x


def choose_layout(shape: Place, tile: Place, storage: Mapping[str, Any], name: str) -> Layout:
    """Return chunks that divide the tile, near `CHUNK`, or what the caller asked for if the tile holds whole ones.

    `storage` comes from `check_storage`.
    """
    more = {key: value for key, value in storage.items() if key not in APART}
    chunks, shards = storage.get("chunks"), storage.get("shards")
    if chunks is None:
        whole = shards or tile
        z, y, x = (_divisor(min(t, n), t >= n) for t, n in zip(whole, shape, strict=True))
        chunks = (z, y, x)
        if shards is None and "shards" not in storage:
            count = math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))
            fits = all(t % c == 0 for t, c in zip(tile, chunks, strict=True))
            if count > MANY and fits and tile != chunks:
                shards = tile
    if shards is not None and any(s % c for s, c in zip(shards, chunks, strict=True)):
        raise InputError(Keyword("storage"), f" has shards {shards}, which are no multiple of the chunks {chunks}")
    unit = shards or chunks
    for axis in range(3):
        if tile[axis] < shape[axis] and tile[axis] % unit[axis]:
            raise InputError(
                Keyword("tile"),
                f" {tile} cuts the {'shards' if shards else 'chunks'} {unit} of {name}, so that two tiles would write "
                "one file; choose a tile of whole ones",
            )
    return Layout(chunks, shards, more)


def _divisor(side: int, whole: bool) -> int:
    """Return the chunk's side for a tile's: the largest divisor up to `CHUNK`, the side itself if that is tiny."""
    if side <= CHUNK:
        return max(1, side)
    if whole:
        return CHUNK  # the tile reaches over the whole axis, so it need not be a multiple
    best = max(d for d in range(1, CHUNK + 1) if side % d == 0)
    return best if best >= CHUNK // 4 else side


def create_array(
    store: Any,
    shape: Place,
    ndim: int,
    dtype: np.dtype[Any],
    layout: Layout,
    attributes: dict[str, Any],
    zarr_format: int = 3,
) -> Any:
    """Make an empty zarr array."""
    import numcodecs
    import zarr

    axes = list("zyx"[3 - ndim :])
    # On labels of 1024 cubed: 188-fold in .22 s a tile of 256 cubed on two threads; bytes shuffled at level 3 191-fold
    # in .37 s, at level 1 141-fold in .21 s; lz4 54-fold in .17 s.
    how: dict[str, Any]
    if zarr_format == 3:
        how = {"compressors": [zarr.codecs.BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")]}
        how |= {"dimension_names": axes}
    else:
        how = {"compressors": numcodecs.Blosc("zstd", clevel=1, shuffle=numcodecs.Blosc.BITSHUFFLE)}
        how |= {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    return zarr.create_array(
        store,
        shape=shape[3 - ndim :],
        dtype=dtype,
        chunks=layout.chunks[3 - ndim :],
        shards=None if layout.shards is None else layout.shards[3 - ndim :],
        fill_value=0,
        attributes={"axes": axes, **attributes},
        zarr_format=zarr_format,
        **{**how, **layout.more},
    )


@dataclass(frozen=True)
class Wanted:
    """An output: its place (what the caller passed as ``out``), shape ``(Z, Y, X)``, dtype, and whether it is an image
    rather than labels."""

    place: Any
    shape: Place
    ndim: int
    dtype: npt.DTypeLike
    image: bool = False


@dataclass
class Output:
    """An output in the making.

    Attributes
    ----------
    name : str
        Its name in the run.
    wanted : Wanted
    final : Path or None
        Its folder when it is done; None in a store that is no local folder.
    store
        The store in which it is built and stays, where `final` is None; else None.
    beside : Beside or None
        How its folder gets from where it is built to its place, once `settle_place` has said that.
    number : int
        Its place among the outputs of the run.
    run : str
        The id of the run, once `settle_place` was told; an array that is built in its place has it as an attribute
        until it is complete.
    form : Form
    geometry : Geometry
        What the group says of its voxels.
    largest : int or None
        The largest of its ids, once `describe` was told, or more than `COLORED`.
    """

    name: str
    wanted: Wanted
    final: Path | None
    store: Any = None
    beside: Beside | None = None
    sink: Sink | None = None
    number: int = 0
    run: str = ""
    form: Form = PLAIN
    geometry: Geometry = field(default_factory=Geometry)
    largest: int | None = None

    @property
    def shown(self) -> str:
        """Return what messages call it."""
        return os.fspath(self.wanted.place) if isinstance(self.wanted.place, (str, os.PathLike)) else "the store"

    @property
    def anchor(self) -> Path:
        """Return the nearest folder above it that exists: on its disk."""
        assert self.final is not None
        return next(folder for folder in self.final.parents if folder.is_dir())

    def exists(self) -> bool:
        """Return whether there is something at its place."""
        if self.final is not None:
            return os.path.lexists(self.final)
        from zarr.core.sync import sync

        return any(sync(self.store.exists(name)) for name in ("zarr.json", ".zarray", ".zgroup"))

    def is_complete(self) -> bool:
        """Return whether the array that is there says that it is complete, or is none of this package's."""
        import zarr

        try:
            found = zarr.open_array(self._level(self.final), mode="r")
        except (FileNotFoundError, KeyError, ValueError, TypeError):
            return True
        about = found.attrs.get("lpa3d")
        return not (isinstance(about, dict) and about.get("complete") is False)

    def refuse_existing(self, *, overwrite: bool) -> None:
        """Refuse to lose what is there."""
        if not self.exists():
            return
        if self.final is None and overwrite:
            raise InputError(f"{self.shown} exists; in object storage nothing is replaced in one step: delete it first")
        if not overwrite:
            raise InputError(f"{self.shown} exists; pass ", Keyword("overwrite", True), " to replace it")

    def choose_built(self, home: Path | None, token: str) -> str | None:
        """Return where it is built: with the run, or beside its place if only there it can be renamed; None in a store.

        Where its place is beside may look different later, as folders are made.
        """
        if self.final is None:
            return None
        assert home is not None
        if _disk(home) == _disk(self.anchor):
            return str(home / token / "result" / self.name)
        return str(self.anchor / f"{TEMPORARY}{token}-{self.name}")

    def settle_place(self, built: str | None, token: str, *, overwrite: bool) -> None:
        """Take over where it is built, as `choose_built` said."""
        if self.final is None:
            self.run = token
            return
        assert built is not None
        advice = "; move one of them away and run the same again, or pass ", Keyword("overwrite", True)
        aside = name_aside(self.final, self.name, token)
        self.beside = Placed(self.shown, self.final, Path(built), aside, overwrite, advice, self.form)

    def create(self, tile: Place, layouts: Sequence[Layout], attributes: dict[str, Any]) -> Sink:
        """Make the empty arrays, in the place of those that an earlier call of the same run had made."""
        if self.beside is not None:
            remove(self.beside.temp)
            self.beside.temp.parent.mkdir(parents=True, exist_ok=True)
        else:
            self._discard_stored()
        arrays = [self._create_in(self._built, k, layout, attributes) for k, layout in enumerate(layouts)]
        return self._open(arrays, tile)

    @property
    def _built(self) -> Any:
        """Return the store, or the folder, in which it is built."""
        return self.store if self.beside is None else self.beside.temp

    def _level(self, place: Any, level: int = 0) -> Any:
        """Return where a level is, of an output that is at some place."""
        return str(place / self.form.paths[level]) if isinstance(place, Path) else self.store

    def _create_in(self, place: Any, level: int, layout: Layout, attributes: dict[str, Any]) -> Any:
        """Make a level; only the finest has attributes besides its axes."""
        wanted = self.wanted
        if self.run:
            attributes = attributes | {"lpa3d": attributes["lpa3d"] | {"run": self.run}}
        store = self._level(place, level) if isinstance(place, Path) else place
        shape = self.form.shapes(wanted.shape)[level]
        about = {} if level else attributes
        return create_array(store, shape, wanted.ndim, np.dtype(wanted.dtype), layout, about, self.form.zarr_format)

    def retype(self, dtype: np.dtype[Any], tile: Place, layouts: Sequence[Layout], attributes: dict[str, Any]) -> Sink:
        """Give the arrays, to which nothing was written yet, another dtype."""
        import zarr
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        assert self.sink is not None
        self.wanted = replace(self.wanted, dtype=dtype)
        name = "zarr.json" if self.form.zarr_format == 3 else ".zarray"
        arrays = []
        for k, (sink, layout) in enumerate(zip((self.sink, *self.sink.levels), layouts, strict=True)):
            # Its metadata is replaced in one step, so that at any moment there is an array to go on with.
            other = zarr.storage.MemoryStore()
            self._create_in(other, k, layout, attributes)
            metadata = sync(other.get(name, default_buffer_prototype()))
            sync((sink.array.store_path / name).set(metadata))
            arrays.append(zarr.open_array(self._level(self._built, k), mode="r+"))
        return self._open(arrays, tile)

    def reopen(self, tile: Place, about: Mapping[str, Any], *, whole: bool) -> Sink:
        """Open the arrays that an earlier call made; of a run that was `whole` they may be in their place already.

        `about` is what the attribute of the finest says besides being complete.
        """
        import zarr

        moved = whole and self.beside is not None and not self.beside.temp.exists()
        place = self.final if moved else self._built
        arrays: list[Any] = []
        with contextlib.suppress(FileNotFoundError, KeyError, ValueError, TypeError):
            arrays = [zarr.open_array(self._level(place, k), mode="r+") for k in range(len(self.form.paths))]
        said = arrays[0].attrs.get("lpa3d") if arrays else None
        done = whole and said == {**about, "complete": True}
        building = {**about, "complete": False, "run": self.run}
        if not arrays or (moved and not done) or (self.run and not done and said != building):
            raise InputError(
                f"what an interrupted run made for {self.shown} is not at {place} any more; pass ",
                Keyword("resume", False),
                " to delete what is left of the run and start anew",
            )
        return self._open(arrays, tile)

    def _open(self, arrays: Sequence[Any], tile: Place) -> Sink:
        wanted, form = self.wanted, self.form
        sinks: list[Sink] = []
        for k, (array, shape) in enumerate(zip(arrays, form.shapes(wanted.shape), strict=True)):
            told = array.with_config({"write_empty_chunks": True})
            sinks.append(Sink(told, shape, wanted.ndim, self.number + k * LEVEL, self.run, self.shown, form))
        direct = bool(form.steps) and all(
            t >= n or t % s == 0 for t, n, s in zip(tile, wanted.shape, form.steps[0], strict=True)
        )
        self.sink = replace(sinks[0], tile=tile if direct else None, levels=tuple(sinks[1:]))
        return self.sink

    def _mark(self, complete: bool) -> None:
        """Say in the array whether it is complete."""
        assert self.sink is not None
        about = dict(self.sink.array.attrs["lpa3d"]) | {"complete": complete}
        if complete:
            about.pop("run", None)
        elif self.run:
            about["run"] = self.run
        self.sink.array.attrs["lpa3d"] = about

    def check_written(self, rows: Sequence[npt.NDArray[np.int64]]) -> None:
        """Refuse a chunk (shard) that was written, as the rows of the journal say, and is not there.

        Raises
        ------
        ScratchError
            If there is one.
        """
        assert self.sink is not None
        for sink in (self.sink, *self.sink.levels):
            units = np.flatnonzero(unpack_written(rows, sink.number, len(sink.units))).tolist()
            if (lost := next(sink.list_missing(units), None)) is not None:
                raise sink.refuse_lost(lost)

    def describe(self, rows: Sequence[npt.NDArray[np.int64]]) -> None:
        """Take over what the journal says was written, of which the group tells."""
        seen = np.flatnonzero(unpack_written(rows, COLORS - self.number, COLORED + 2))
        self.largest = int(seen[-1]) if len(seen) else None

    def flush(self) -> None:
        """Write it to the disk: a local one with its mark, as it is complete where it is built."""
        folder = _root(self.store) if self.beside is None else self.beside.temp
        if folder is None or not folder.exists():
            return  # object storage has what it was given; or an earlier call moved it
        for left in folder.rglob("*.partial"):
            left.unlink(missing_ok=True)  # of a write of zarr that was killed
        if self.beside is not None:
            self._describe()
            self._mark(True)
        flush(folder)

    def _describe(self) -> None:
        """Write what the group says of its levels."""
        if self.form.is_group and self.beside is not None:
            about = describe_image(self.beside.target.stem, self.form, self.wanted.ndim, self.geometry, self.largest)
            write_group(self.beside.temp, self.form.zarr_format, about)

    def publish(self) -> None:
        """Move it to its place; mark it as complete where it is there already."""
        if self.beside is None:
            self._mark(True)
            return
        self.beside.publish()

    def take_back(self) -> None:
        """Undo `publish`. In a store it is only said to be incomplete: a call that goes on publishes it again."""
        if self.beside is None:
            self._mark(False)
        else:
            self.beside.take_back()

    def settle(self) -> None:
        """Delete what it replaced."""
        if self.beside is not None:
            self.beside.settle()

    def was_published(self, before: Mapping[str, Any]) -> bool:
        """Return whether what is at its place was put there by a run that was killed before all of its outputs were."""
        built = before["built"].get(self.name)
        if self.final is None or built is None or self.name in before["replaces"] or os.path.lexists(built):
            return False
        import zarr

        try:
            found = zarr.open_array(self._level(self.final), mode="r")
        except (FileNotFoundError, KeyError, ValueError, TypeError):
            return False
        return bool(found.attrs.get("lpa3d") == {**before["made"], "complete": True})

    def discard(self, before: Mapping[str, Any]) -> None:
        """Delete what a run that is to be forgotten made of it."""
        if self.final is None:
            self._discard_stored()
            return
        if self.was_published(before):
            remove(self.final)
            unlist(self.final, self.form)
        built = before["built"].get(self.name)
        if built is not None and Path(built).name == f"{TEMPORARY}{before['id']}-{self.name}":
            remove(Path(built))
            remove(name_group(Path(built)))

    def _discard_stored(self) -> None:
        """Delete the unfinished array of a store: its chunks, whatever their keys are, and no other array's."""
        import zarr
        from zarr.core.sync import sync

        if not self.exists() or self.is_complete():
            return
        array = zarr.open_array(self.store, mode="r")

        async def delete() -> None:
            for key in [key async for key, _ in list_chunks(array)]:
                await self.store.delete(key)
            # Last, so that it is there to go on with if this is interrupted.
            await self.store.delete("zarr.json")

        sync(delete())

    def result(self, *, as_dask: bool) -> Any:
        """Return it, finished, as a zarr array, or as a dask array backed by it."""
        import zarr

        array = zarr.open_array(self._level(self.final), mode="r")
        if not as_dask:
            return array
        import dask.array

        return dask.array.from_zarr(array)


def name_aside(final: Path, name: str, token: str) -> Path:
    """Return where waits what the output `name` of the run `token` replaces."""
    return final.with_name(f"{ASIDE}{token}-{name}")


def bring_back(before: Mapping[str, Any]) -> None:
    """Put what a run that was killed had moved aside into its place again, where nothing has come there."""
    for final, aside in list_aside(before):
        if os.path.lexists(aside) and not os.path.lexists(final):
            aside.rename(final)


def settle_aside(before: Mapping[str, Any]) -> None:
    """Delete what a run that is to be forgotten had replaced."""
    bring_back(before)
    for _, aside in list_aside(before):
        remove(aside)


def list_aside(before: Mapping[str, Any]) -> list[tuple[Path, Path]]:
    """Return the place of each local output of a run, and where waits what it replaces."""
    finals = {name: Path(before["places"][name]) for name, built in before["built"].items() if built is not None}
    return [(final, name_aside(final, name, before["id"])) for name, final in finals.items()]


def place_outputs(
    outputs: Mapping[str, Wanted], inputs: Mapping[str, Source], storage: Mapping[str, Any], geometry: Geometry
) -> dict[str, Output]:
    """Find out where outputs will be and of which form, and refuse places that are no good; nothing is made yet.

    `storage` comes from `check_storage`, and `geometry` is that of all outputs.

    Raises
    ------
    InputError, InputTypeError
        If a place is missing or of the wrong kind, cannot be written, or is that of an input or of another output.
    """
    found: dict[str, Output] = {}
    for name, wanted in outputs.items():
        output = _place(name, wanted, storage, geometry)
        target = find_target(output.final or output.store)
        for other in found.values():
            if target.overlaps(find_target(other.final or other.store)):
                raise InputError(f"{output.shown} is the place of both {other.name} and {name}; give each its own")
        for role, source in inputs.items():
            if any(target.overlaps(origin) for origin in source.origins):
                raise InputError(
                    f"{output.shown} is also an input (", Keyword(role), "), which would be lost; choose another place"
                )
        output.number = len(found)
        found[name] = output
    return found


def _disk(folder: Path) -> int:
    """Return a number that differs between disks: from one to another nothing is renamed."""
    return os.stat(folder).st_dev


def _root(store: Any) -> Path | None:
    """Return the folder of a local store."""
    return Path(os.path.realpath(store.root)) if type(store).__name__ == "LocalStore" else None


def is_store(place: Any) -> bool:
    """Return whether an output's place is a zarr store, or the URL of one."""
    return hasattr(place, "supports_writes") or is_url(place)


def _place(name: str, wanted: Wanted, storage: Mapping[str, Any], geometry: Geometry) -> Output:
    """Find out where an output will be, and its form."""
    place = wanted.place
    if place is None:
        raise InputError("stored arrays need a place for the result: pass ", Keyword("out", f"{name}.zarr"))
    if is_store(place) and not is_url(place):
        if place.read_only:
            raise InputError(f"{name} is a store that is read-only; open it for writing")
        _check_plain(name, storage)
        return Output(name, wanted, None, place)
    if is_url(place):
        from zarr.storage import FsspecStore

        _check_plain(place, storage)
        try:
            with reaching(place):
                return Output(name, wanted, None, FsspecStore.from_url(place))
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"{place} is no place that can be written: {error}") from error
    if not isinstance(place, (str, os.PathLike)):
        raise InputTypeError(
            Keyword("out"),
            f" is a {type(place).__module__}.{type(place).__qualname__}; a path, a URL or a zarr store is needed, "
            "e.g. ",
            Keyword("out", f"{name}.zarr"),
        )
    from ...files.places import locate

    location = locate(os.path.expanduser(as_path(place)))
    if location.format != "zarr":
        raise InputError(
            Keyword("out"),
            f" is {os.fspath(place)!r}; results of this size are zarr arrays: ",
            Keyword("out", f"{name}.zarr"),
        )
    path = check_target(location)
    shape = wanted.shape[3 - wanted.ndim :]
    geometry = adopt_geometry(path, shape, geometry)
    form = choose_form(path, shape, geometry, storage, image=wanted.image)
    output = Output(name, wanted, path, form=form, geometry=geometry)
    check_folder(output.anchor, output.shown)
    return output


def _check_plain(name: str, storage: Mapping[str, Any]) -> None:
    """Refuse what only a local output can be: in a store it is a plain array."""
    if storage.get("layout") in ("0.4", "0.5") or (storage.get("levels") or 1) > 1:
        raise InputError(
            Keyword("storage"),
            f" asks for levels, or a version of OME-Zarr, but {name} is a store, in which results are plain arrays; "
            "write to a folder, and copy that",
        )


def check_folder(folder: Path, shown: str) -> None:
    """Refuse a folder that may not be written."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot write {shown}: the folder {folder} is not writable; choose another one")


def check_apart(home: Path, inputs: Mapping[str, Source]) -> None:
    """Refuse a scratch folder inside an input, which would change by it."""
    target = find_target(home)
    for role, source in inputs.items():
        if any(target.overlaps(origin) for origin in source.origins):
            raise InputError(
                Keyword("scratch"),
                f" {home} lies in an input (",
                Keyword(role),
                "), which would change by it; choose another folder",
            )
