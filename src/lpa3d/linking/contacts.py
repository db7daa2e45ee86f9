"""Which labels touch, counted.

Stages
------
1. *Count* (parallel over boxes): one row of integers per pair of labels that touch with the first voxel of the voxel
   pair in the box; background is a label here.
2. *Add*: rows of the same pair are summed. Any partition of the volume into boxes gives the same table.
3. *Tabulate*: areas, shares and means are one float64 expression each of the final integers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import array_module, find_device
from ..arrays.checks import as_bits, as_numbers, as_raw, canonical_spacing, check_array, same_shape, seal
from ..arrays.neighbors import neighbor_offsets
from ..arrays.pairs import flag_first, sort_pairs
from ..arrays.tables import Table
from ..arrays.threads import num_threads, run_all, split
from ..errors import InputError, Keyword
from ..kernels.contacts import COLUMNS, LIMB, count_contacts

__all__ = [
    "Contacts",
    "Counts",
    "add_counts",
    "canonical_image",
    "check_image",
    "check_spacing",
    "count_box",
    "count_pairs",
    "image_scale",
    "list_ids",
    "tabulate",
]

BOX_ROWS = 2**10
"""Fewest rows of a box that is worth a thread of its own."""

FLOAT_SCALE = 2**32
"""Floating-point images are summed in whole multiples of 1 / FLOAT_SCALE."""

LARGEST_FLOAT = 2**30
LARGEST_INTEGER = 2**53


@dataclass(frozen=True, eq=False, repr=False)
class Contacts(Table):
    """Pairs of labels that touch, sorted by id; row i of every column belongs to one pair.

    Attributes
    ----------
    id_a, id_b : (n,) int64
        The two labels, ``0 < id_a < id_b``.
    faces_z, faces_y, faces_x : (n,) int64
        Shared voxel faces across each axis.
    edges, corners : (n,) int64
        Voxel pairs that share only an edge, or only a corner; 0 where the connectivity does not count them.
    area : (n,) float64
        Area of the shared faces, in squared units of `spacing`.
    share : (n,) float64
        Area over the surface of that label of the two whose surface is smaller, 0 to 1. A surface is all faces
        between a label and anything else, background included, but not the faces where the volume ends.
    mean : (n,) float64 or None
        Mean of the image over all voxel pairs that touch, each the mean of its two voxels; None without image.

    See Also
    --------
    contacts : makes it.

    Examples
    --------
    >>> import numpy as np
    >>> import lpa3d
    >>> table = lpa3d.contacts(np.array([[1, 1, 2], [0, 3, 2]]))
    >>> len(table)
    3
    >>> table.columns()["id_b"]
    array([2, 3, 3])
    """

    id_a: npt.NDArray[np.int64]
    id_b: npt.NDArray[np.int64]
    faces_z: npt.NDArray[np.int64]
    faces_y: npt.NDArray[np.int64]
    faces_x: npt.NDArray[np.int64]
    edges: npt.NDArray[np.int64]
    corners: npt.NDArray[np.int64]
    area: npt.NDArray[np.float64]
    share: npt.NDArray[np.float64]
    mean: npt.NDArray[np.float64] | None = None

    TITLE = "touching pair"


@dataclass(frozen=True, eq=False, slots=True)
class Counts:
    """Counts of touching voxel pairs; those of disjoint boxes add up (`add_counts`).

    Attributes
    ----------
    pairs : (n, 2) int64
        Pairs of labels, the smaller one first, each once; 0 is the background. `add_counts` sorts them.
    values : (n, COLUMNS) int64
        Faces across z, y and x, edges, corners, and the sum of the image in two limbs (see `kernels.contacts`).
    """

    pairs: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]


def add_counts(tables: Iterable[Counts]) -> Counts:
    """Return the sum of `tables`: what one count over all their boxes gives."""
    parts = list(tables)
    pairs = np.concatenate([np.empty((0, 2), np.int64), *(part.pairs for part in parts)])
    values = np.concatenate([np.empty((0, COLUMNS), np.int64), *(part.values for part in parts)])
    order = sort_pairs(pairs)
    pairs = pairs[order]
    starts = np.flatnonzero(flag_first(pairs))
    if starts.size:
        values = np.add.reduceat(values[order], starts, axis=0)
    carry = values[:, 6] >> LIMB
    values[:, 5] += carry
    values[:, 6] -= carry << LIMB
    return Counts(pairs[starts], values)


def count_pairs(labels: npt.NDArray[Any], image: npt.NDArray[Any] | None, connectivity: int) -> Counts:
    """Count the touching voxel pairs of canonical ``(Z, Y, X)`` labels, and sum a checked `image` on them."""
    offsets = neighbor_offsets(connectivity)
    forward = offsets[len(offsets) // 2 :]
    if find_device(labels) is not None:
        return add_counts([count_box(labels, image, forward, np.array([(0, 0, 0), labels.shape]))])
    return add_counts(run_all(lambda box: count_box(labels, image, forward, box), _boxes(labels.shape)))


def count_box(
    labels: npt.NDArray[Any],
    image: npt.NDArray[Any] | None,
    offsets: npt.NDArray[np.int64],
    box: npt.NDArray[np.int64],
) -> Counts:
    """Count the pairs of a voxel in `box` ``(start, stop)`` and the one at some forward `offsets`; rows not sorted."""
    scale = 1.0 if image is None else float(image_scale(image.dtype))
    values = array_module(labels).empty((0, 0, 0), np.uint8) if image is None else image
    device = find_device(labels)
    if device is not None:
        from ..cuda import contacts as cuda

        rows = cuda.count_contacts(device, as_bits(labels), values, scale, offsets, box)
    else:
        rows = count_contacts(as_raw(labels), as_numbers(values), labels.shape, scale, offsets, box)
    return Counts(rows[:, :2], rows[:, 2:])


def image_scale(dtype: np.dtype[Any]) -> int:
    """Return how many units of the exact sums of an image of `dtype` make 1."""
    return FLOAT_SCALE if dtype.kind == "f" else 1


def _boxes(shape: tuple[int, ...]) -> list[npt.NDArray[np.int64]]:
    """Cut a volume along z, or a single slice along y, into boxes ``(start, stop)`` for the threads."""
    axis = 0 if shape[0] > 1 else 1
    parts = min(2 * num_threads(), shape[0] * shape[1] // BOX_ROWS)
    boxes = []
    for start, stop in split(shape[axis], parts):
        box = np.array([(0, 0, 0), shape])
        box[:, axis] = start, stop
        boxes.append(box)
    return boxes


def list_ids(counts: Counts, corner: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the sorted ids of labels, given their counts and their first voxel ``(1,)`` (none of an empty volume).

    Every label touches another one or the background, unless it fills the volume.
    """
    ids = np.unique(counts.pairs)
    if not ids.size:
        ids = np.array(corner.tolist(), np.int64)
    return ids[ids > 0]


def tabulate(counts: Counts, spacing: tuple[float, float, float], scale: int | None = None) -> Contacts:
    """Return the table of the pairs without background; `scale` is the image's, if its mean is wanted."""
    depth, height, width = spacing
    sides = np.array([height * width, depth * width, depth * height])
    ids, places = np.unique(counts.pairs, return_inverse=True)
    places = places.reshape(-1, 2)
    exposed = np.zeros((len(ids), 3))
    for axis in range(3):
        for end in range(2):
            # Sums of integers, exact in float64 up to 2**53 faces.
            exposed[:, axis] += np.bincount(places[:, end], counts.values[:, axis], len(ids))
    inner = counts.pairs[:, 0] > 0
    (id_a, id_b), values = counts.pairs[inner].T, counts.values[inner]
    area = _sum_areas(values[:, :3], sides)
    surface = _sum_areas(exposed, sides)
    share = area / surface[places[inner]].min(axis=1)
    columns = [id_a, id_b, *values[:, :5].T, area, share]
    if scale is not None:
        columns.append(_means(values, scale))
    return Contacts(*(seal(np.ascontiguousarray(column)) for column in columns))


def _sum_areas(faces: npt.NDArray[Any], sides: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the area of the faces ``(n, 3)`` across z, y and x; an exchange of axes does not change its last bit."""
    terms = np.sort(faces * sides, axis=1)
    return (terms[:, 0] + terms[:, 1]) + terms[:, 2]


def _means(values: npt.NDArray[np.int64], scale: int) -> npt.NDArray[np.float64]:
    """Return the mean of the image over the voxels of all touching pairs, rounded once."""
    voxels = (2 * values[:, :5].sum(axis=1)).tolist()
    sums = ((high << LIMB) + low for high, low in values[:, 5:].tolist())
    return np.array([total / (n * scale) for total, n in zip(sums, voxels, strict=True)], np.float64)


def check_spacing(spacing: Any, ndim: int) -> tuple[float, float, float]:
    """Return `spacing` as `canonical_spacing` does; the faces of voxels must have areas that float64 can hold."""
    sizes = canonical_spacing(spacing, ndim)
    if not all(1e-70 < size < 1e70 for size in sizes):
        raise InputError(
            Keyword("spacing"), f" is {spacing!r}; every value must lie between 1e-70 and 1e70: choose another unit"
        )
    return sizes


def check_image(image: Any, labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return `image` as `canonical_image` does, 3D."""
    array = check_array(image, "image")
    same_shape(array, "image", labels, "labels")
    array = canonical_image(array)
    return array[np.newaxis] if array.ndim == 2 else array


def canonical_image(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an image, or a part of one, as canonical integers, float32 or float64 that can be summed exactly."""
    if array.dtype.kind == "b":
        array = array.view(np.uint8)
    dtype = array.dtype.newbyteorder("=")
    if dtype.kind == "f":
        # Half and extended precision have no kernels.
        dtype = np.dtype(np.float32 if dtype.itemsize <= 4 else np.float64)
    if array.size:
        low, high = (array.dtype.type(end().item()) for end in (array.min, array.max))
        if dtype.kind == "f" and not (np.isfinite(low) and np.isfinite(high)):
            raise InputError(
                Keyword("image"), " holds NaN or infinite values; pass numpy.nan_to_num(image), or fill them otherwise"
            )
        limit = LARGEST_FLOAT if dtype.kind == "f" else LARGEST_INTEGER
        if int(low) <= -limit or int(high) >= limit:
            raise InputError(
                Keyword("image"),
                f" holds values from {low} to {high}; they must be below {limit} in magnitude: divide the image",
            )
    canonical: npt.NDArray[Any] = array_module(array).ascontiguousarray(array, dtype)
    return canonical
