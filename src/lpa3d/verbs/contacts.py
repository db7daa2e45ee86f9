"""The verb `contacts`: which labels touch, and by how much."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from ..arrays.call import Call, Options
from ..arrays.checks import canonical_connectivity, instance_ids
from ..linking.contacts import Contacts, check_image, check_spacing, count_pairs, image_scale, tabulate
from .dispatch import run

__all__ = ["contacts"]


def contacts(
    labels: Any,
    *,
    image: Any = None,
    spacing: Any = None,
    connectivity: int = 6,
    tile: int | Sequence[int] | None = None,
    memory: str | int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    storage: Mapping[str, Any] | None = None,
    resume: bool | Literal["force"] = True,
    overwrite: bool = False,
    progress: Callable[[str, float], None] | None = None,
    device: Literal["cuda"] | None = None,
) -> Contacts:
    """List the pairs of labels that touch, with the size of their contact.

    Parameters
    ----------
    labels : ndarray of bool or any integer dtype, shape (Z, Y, X) or (Y, X)
        Instance ids, 0 = background, at most 2**63 - 1. Any memory order and byte order. Not modified. CuPy arrays are
        worked on by their device; zarr and dask arrays, and paths or URLs of zarr arrays, tile by tile.
    image : ndarray of bool, integers or floats, shape as `labels`, optional
        An image whose mean on each boundary is wanted: a membrane probability, the micrograph. Finite; integers below
        2**53 in magnitude, floats below 2**30.
    spacing : sequence of float, optional
        Voxel size (z, y, x), or (y, x) for a 2D array, in any unit; each between 1e-70 and 1e70. By default what the
        first array says that is stored in zarr and states it, else 1.
    connectivity : {6, 18, 26}, default 6
        Which voxels touch: those that share a face, also an edge, also a corner. 1, 2 and 3 name the same. In 2D, 6
        means 4 neighbours and both others mean 8.
    tile : int or sequence of int, optional
        Voxels of a tile along every axis, or ``(z, y, x)``, where zarr or dask arrays are worked on tile by tile. By
        default `memory` decides. It changes nothing in the result.
    memory : str or int, optional
        Budget of the work tile by tile, such as ``"8GB"``, or in bytes. By default half of the memory that is free.
    scratch : path, optional
        Folder for what a run over tiles keeps until it is done; a run that was killed goes on only where it is given.
        By default a temporary folder.
    storage : mapping, optional
        Of no use here, as no array is stored; verbs with an output take it.
    resume : bool or "force", default True
        Whether a run over tiles goes on with one that was interrupted at the same place. False deletes what that did;
        "force" goes on although inputs changed, or where nobody can tell.
    overwrite : bool, default False
        Of no use here, as no array is stored; verbs with an output take it.
    progress : callable, optional
        Called as ``progress(stage, fraction)`` while a run over tiles works.
    device : {"cuda", None}, default None
        ``"cuda"`` lets an NVIDIA GPU work on NumPy arrays, whole or in tiles, or on the tiles of stored ones, for the
        same result. By default the work is done where the arrays are.

    Returns
    -------
    Contacts
        One row for each pair of labels, sorted by ``(id_a, id_b)``, ``id_a < id_b``; pairs with the background are
        left out.

    Raises
    ------
    InputError
        If ids are negative or too large, `image` is not of `labels`' shape, not finite or too large, `labels` has not 2
        or 3 dimensions, or `connectivity` or `spacing` is unusable.
    InputTypeError
        If `labels` or `image` is no NumPy or CuPy array or has another dtype, or one is on a device and one is not.

    See Also
    --------
    merge : unites labels by their contacts.
    skimage.graph.RAG : the pairs as a graph.
    skimage.graph.rag_boundary : the same with a mean of an image along each boundary, in floating point.

    Notes
    -----
    All counts are integers, so the counts of two halves of a volume and of the seam between them add up to those of
    the whole; `area` and `share` are then one float64 expression of the final counts. Nothing depends on the number of
    threads.

    A face across z has the area ``y * x`` of `spacing`, and so on. The faces where the volume ends belong to no
    surface: nothing is known of what lies behind them.

    The mean of an image is exact for integers, and rounded once. Floats are first rounded to multiples of 2**-32, half
    to even (float32 values of at least 2**-9 in magnitude have no finer ones), and then summed exactly; multiply an
    image of tiny values by a constant first.

    Touching neighbours and fragments of one object differ in the image on their boundary rather than in `share`; see
    `merge`.

    Memory above the input is some 150 bytes per pair and label, and the input is copied where it is not C-ordered or
    not in native byte order. A CUDA device takes 75 MB of its memory, and 4 times as much, and a second pass, each time
    that this has no room for the pairs (from half a million on).

    Examples
    --------
    >>> import numpy as np
    >>> import lpa3d
    >>> labels = np.array([[[1, 1, 2, 2], [1, 1, 0, 2]]])
    >>> lpa3d.contacts(labels, spacing=(40, 8, 8), connectivity=18)
    Contacts: 1 touching pair
    id_a  id_b  faces_z  faces_y  faces_x  edges  corners  area  share
       1     2        0        0        1      1        0   320    0.5
    >>> membrane = np.array([[[0, 10, 30, 0], [0, 0, 0, 0]]])
    >>> lpa3d.contacts(labels, image=membrane).mean
    array([20.])
    """
    call = Call(
        "contacts",
        {"labels": labels, "image": image},
        {
            "spacing": spacing,
            "connectivity": connectivity,
        },
        {},
        Options(tile, memory, scratch, storage, resume, overwrite, progress, device),
    )
    found: Contacts = run(call, _contacts)
    return found


def _contacts(call: Call) -> Contacts:
    """Do what `contacts` does in memory, or for arrays on a device."""
    labels, image = call.arrays["labels"], call.arrays["image"]
    steps = canonical_connectivity(call.keywords["connectivity"])
    ids = instance_ids(labels, "labels")
    sizes = check_spacing(call.keywords["spacing"], labels.ndim)
    checked = None if image is None else check_image(image, labels)
    return tabulate(count_pairs(ids, checked, steps), sizes, None if checked is None else image_scale(checked.dtype))
