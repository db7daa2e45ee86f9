"""A volume that was opened: what is known of it before it is read, and how it is read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, InputTypeError
from .axes import View
from .coded import Coding, refuse_floats, whole_numbers
from .geometry import Geometry
from .places import reading

__all__ = ["Box", "Lazy", "Volume", "choose_rows", "cut_box", "cut_boxes", "cut_slabs", "find_bounds"]

Array = npt.NDArray[Any]
Box = tuple[slice, ...]
Progress = Callable[[float], None]

LOSSY = re.compile("jpeg$|jpeg_lossy|2000_lossy|webp")
"""Compressions that are for photographs."""

SLAB_BYTES = 2**26
"""Bytes that are read or written at once where the file may be taken in slabs."""


@dataclass
class Volume:
    """A file that was opened but not read yet; use it in a ``with`` block.

    Attributes
    ----------
    name : str
        As the caller typed it.
    path : Path
        File or folder that holds the data.
    format : str
        A key of `readers.OPENERS`, such as ``"zarr"``.
    shape, dtype
        Of the array in memory: ``(Z, Y, X)`` or ``(Y, X)``.
    geometry : Geometry
        Voxel size and the like.
    chunks : tuple of int or None
        Chunks along the same axes, None where the file is not chunked.
    compression : str
        Short name, or empty.
    note : str
        What a user should be told of how the files were understood (the order of the slices), or empty.
    array : object or None
        The stored array, where it is one that is worked on tile by tile and not of zarr; `view` says how it is seen.
    at_once : bool
        Whether `read` takes all slabs at once: where the file is mapped into memory, or its library is quicker so.
    url : str
        That of the array, where it lies in object storage.
    list_stored, fetch_box : callable or None
        Where the file is stored in chunks: the boxes that are stored, in parts that may be read alone, with the value
        of all other voxels; and how such a box is read.
    view : View or None
        How the stored array is seen as `shape`, where the file has axes.
    coding : Coding or None
        How the numbers that `fetch` and `fetch_box` give become values, of its dtype; None where they are the values.
    """

    name: str
    path: Path
    format: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fetch: Callable[[int, int], Array] = field(repr=False)
    geometry: Geometry = Geometry()  # noqa: RUF009 - it is frozen
    chunks: tuple[int, ...] | None = None
    compression: str = ""
    rows: int = 0
    note: str = ""
    list_stored: Callable[[], tuple[list[Box], Any]] | None = field(default=None, repr=False)
    fetch_box: Callable[[Box], Array] | None = field(default=None, repr=False)
    close: Callable[[], None] = field(default=lambda: None, repr=False)
    view: View | None = field(default=None, repr=False)
    array: Any = field(default=None, repr=False)
    at_once: bool = False
    url: str = ""
    _whole: Array | None = field(default=None, repr=False)
    coding: Coding | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.coding is not None:
            self.dtype = self.coding.dtype
            self.note = "; ".join(filter(None, (self.note, self.coding.note)))

    def __enter__(self) -> Volume:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def slabs(self) -> Iterator[tuple[int, int, Array]]:
        """Yield ``(lo, hi, array[lo:hi])`` along the first axis, in slabs that the file is quick to give."""
        length = self.shape[0]
        rows = self.rows or max(length, 1)
        for lo in range(0, length, rows):
            hi = min(lo + rows, length)
            yield lo, hi, self._fetch(lo, hi)

    def _fetch(self, lo: int, hi: int) -> Array:
        with reading(self.name):
            return self._decode(self.fetch(lo, hi), (lo, *(0,) * (len(self.shape) - 1)))

    def _decode(self, part: Array, start: Sequence[int]) -> Array:
        return part if self.coding is None else self.coding.decode(part, start)

    def parts(self) -> tuple[list[Box], Any]:
        """Return boxes that together hold all voxels that are stored, and the value of those that are not.

        Whole slabs of a file with large chunks may be too large for the memory; `read_box` reads a box.
        """
        if self.list_stored is not None:
            with reading(self.name):
                boxes, fill = self.list_stored()
                if self.coding is not None:
                    held = sum(math.prod(side.stop - side.start for side in box) for box in boxes)
                    if held < math.prod(self.shape):
                        fill = self.coding.decode(np.full((1,) * len(self.shape), fill)).flat[0]
                return boxes, fill
        length = self.shape[0]
        rows = self.rows or max(length, 1)
        whole = tuple(slice(0, size) for size in self.shape[1:])
        return [(slice(lo, min(lo + rows, length)), *whole) for lo in range(0, length, rows)], 0

    def read_box(self, box: Box) -> Array:
        """Return the voxels of a box.

        Parameters
        ----------
        box : tuple of slice
            One of `parts` is quick. A file that can only be read as a whole is kept for the next one.

        Returns
        -------
        ndarray
            Of the box's shape, and `dtype`.
        """
        with reading(self.name):
            if self.fetch_box is not None:
                return self._decode(self.fetch_box(box), [side.start for side in box])
        if self.rows:
            return self._fetch(box[0].start, box[0].stop)[(slice(None), *box[1:])]
        if self._whole is None:
            self._whole = self._fetch(0, self.shape[0])
        return self._whole[box]

    def read(self, progress: Progress | None = None) -> Array:
        """Return the whole array; a ``.npy`` or plain ``.nii`` file is mapped into memory, not copied.

        Parameters
        ----------
        progress : callable, optional
            Called as ``progress(fraction)`` after each slab.

        Returns
        -------
        ndarray
            Of `shape` and `dtype`.
        """
        if not self.rows or self.rows >= self.shape[0] or self.at_once:
            return self._fetch(0, self.shape[0])
        array = np.empty(self.shape, self.dtype)
        for lo, hi, slab in self.slabs():
            array[lo:hi] = slab
            if progress is not None:
                progress(hi / self.shape[0])
        return array

    def check_integers(self, role: str) -> None:
        """Refuse, before anything is read, a file that cannot hold labels.

        Parameters
        ----------
        role : str
            What it is for, in the message: "a class map", "seeds".

        Raises
        ------
        InputTypeError
            For complex numbers, text and the like.
        InputError
            For a compression that changes values, and for floats with fractions in the first slab. Whole numbers may be
            stored as floats, as ImageJ stores more than 65,535 labels: `read_integers` looks at all values.
        """
        if LOSSY.search(self.compression):
            raise InputError(
                f"{self.name} is stored as {self.compression}, which changes values, so that {role} would not be what "
                "they were; export it without that compression"
            )
        if self.dtype.kind not in "buif":
            raise InputTypeError(f"{self.name} holds {self.dtype}; {role} must be bool or integers")
        if self.dtype.kind == "f" and self.rows and self.shape[0]:
            # An image is not read as a whole to find that out.
            _, _, slab = next(self.slabs())
            if not np.array_equal(slab, np.rint(slab)):
                raise refuse_floats(self.dtype, self.name, role, "NaN" if np.isnan(slab).any() else "fractions")

    def read_integers(self, role: str, progress: Progress | None = None) -> Array:
        """Return the array as bool or integers; whole numbers that are stored as floats become integers.

        Such numbers become uint32, or int64 where uint32 cannot hold them.

        Parameters
        ----------
        role : str
            What it is for, in the message.
        progress : callable, optional
            Called as ``progress(fraction)`` after each slab.

        Returns
        -------
        ndarray of bool or integers
            Of `shape`.

        Raises
        ------
        InputTypeError
            As `check_integers`.
        InputError
            If a file of floats holds a fraction, NaN, or numbers so large that neighbouring ids coincide.
        """
        self.check_integers(role)
        array = self.read(progress)
        if array.dtype.kind != "f":
            return array
        low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
        return whole_numbers(array, np.uint32 if low >= 0 and high < 2**32 else np.int64, self.name, role)


@dataclass(frozen=True)
class Lazy:
    """A volume that is read, and worked on, when it is indexed by slices: what writers take besides arrays."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[Box], Array] = field(repr=False)

    @property
    def ndim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Return the number of voxels."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | Box) -> Array:
        given = index if isinstance(index, tuple) else (index,)
        given += (slice(None),) * (self.ndim - len(given))
        return self.read(tuple(slice(*side.indices(n)[:2]) for side, n in zip(given, self.shape, strict=True)))


# ---------------------------------------------------------------------------------------------------------- reading


def choose_rows(shape: tuple[int, ...], dtype: np.dtype[Any], chunk: int = 1) -> int:
    """Return how many rows of the first axis make a slab: whole chunks, near `SLAB_BYTES`."""
    row = max(math.prod(shape[1:]) * dtype.itemsize, 1)
    return max(SLAB_BYTES // row // chunk, 1) * chunk


def cut_slabs(array: Any, progress: Progress, chunk: int = 1) -> Iterator[tuple[int, int, Array]]:
    """Yield ``(lo, hi, array[lo:hi])`` of an array, or of what is read when it is indexed, and say how far this is."""
    rows = choose_rows(array.shape, array.dtype, chunk)
    length = array.shape[0]
    for lo in range(0, length, rows):
        progress(lo / length)
        hi = min(lo + rows, length)
        yield lo, hi, np.asarray(array[lo:hi])
    progress(1.0)


def cut_boxes(array: Any, chunk: int, progress: Progress) -> Iterator[tuple[Box, Array]]:
    """Yield ``(box, array[box])`` as `cut_slabs` does slabs, of boxes of whole chunks."""
    whole = tuple(slice(0, size) for size in array.shape)
    itemsize = np.dtype(array.dtype).itemsize
    boxes = list(cut_box(whole, (chunk,) * array.ndim, itemsize)) if 0 not in array.shape else []
    for k, box in enumerate(boxes):
        yield box, np.asarray(array[box])
        progress((k + 1) / len(boxes))


def find_bounds(array: Any) -> tuple[Any, Any]:
    """Return the smallest and the largest value, NaN if there is one; 0 and 0 of nothing."""
    bounds = [(part.min(), part.max()) for _, _, part in cut_slabs(array, lambda fraction: None) if part.size]
    lows, highs = zip(*bounds, strict=True) if bounds else ((0,), (0,))
    return np.min(lows).item(), np.max(highs).item()


def cut_box(box: Box, unit: Sequence[int], itemsize: int) -> Iterator[Box]:
    """Yield parts of a box that are made of whole chunks of the sides `unit`, of `SLAB_BYTES` at most if there are
    several."""
    sides = [part.stop - part.start for part in box]
    counts = [-(-side // size) for side, size in zip(sides, unit, strict=True)]
    # Along the first axis what is read stays in one piece where it is stored in one.
    axis = next((k for k, count in enumerate(counts) if count > 1), 0)
    if math.prod(sides) * itemsize <= SLAB_BYTES or counts[axis] < 2:
        yield box
        return
    middle = box[axis].start + counts[axis] // 2 * unit[axis]
    for part in (slice(box[axis].start, middle), slice(middle, box[axis].stop)):
        yield from cut_box((*box[:axis], part, *box[axis + 1 :]), unit, itemsize)
