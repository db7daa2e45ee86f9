"""The verb `label`: connected components of a class map."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..arrays.backend import find_device
from ..arrays.call import Call, Options
from ..arrays.checks import canonical_connectivity, canonical_out, class_map
from ..arrays.components import find_components, number_dtype
from .dispatch import run

__all__ = ["label"]


def label(
    volume: Any,
    *,
    connectivity: int = 6,
    out: Any = None,
    tile: int | Sequence[int] | None = None,
    memory: str | int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    storage: Mapping[str, Any] | None = None,
    resume: bool | Literal["force"] = True,
    overwrite: bool = False,
    progress: Callable[[str, float], None] | None = None,
    device: Literal["cuda"] | None = None,
) -> Any:
    """Label the connected components of a class map.

    Two voxels are in one component when a path of neighbours of the same non-zero class joins them. Several classes are
    labelled in one pass; touching voxels of different classes are never joined.

    Parameters
    ----------
    volume : ndarray of bool or any integer dtype, shape (Z, Y, X) or (Y, X)
        Class map, 0 is background; negative values are classes too. Any memory order and byte order. Not modified. A
        CuPy array is labelled on its device; a zarr or dask array, or the path or URL of a zarr array, tile by tile.
    connectivity : {6, 18, 26}, default 6
        Which voxels are neighbours: those that share a face, also an edge, also a corner. 1, 2 and 3 name the same. In
        2D, 6 means 4 neighbours and both others mean 8.
    out : ndarray, optional
        Array for the result: `volume`'s shape, the result's dtype, C-contiguous, not sharing memory with `volume`. For
        a stored volume, where it is needed: the path of a new OME-Zarr or of labels in one, a URL or store.
    tile : int or sequence of int, optional
        Voxels of a tile along every axis, or ``(z, y, x)``, where zarr or dask arrays are worked on tile by tile. By
        default `memory` decides. It changes nothing in the result.
    memory : str or int, optional
        Budget of the work tile by tile, such as ``"8GB"``, or in bytes. By default half of the memory that is free.
    scratch : path, optional
        Folder for what a run over tiles keeps until it is done. By default it is beside the output, ``OUT.lpa3d``.
    storage : mapping, optional
        How a result that is zarr is stored: ``levels``, how many resolutions; ``layout``, the version of OME-Zarr,
        ``"0.5"`` or ``"0.4"``, or ``"array"`` for a plain array; ``chunks``, ``shards``, ``attributes``, and what else
        `zarr.create_array` takes.
    resume : bool or "force", default True
        Whether a run over tiles goes on with one that was interrupted at the same place. False deletes what that did;
        "force" goes on although inputs changed, or where nobody can tell.
    overwrite : bool, default False
        Whether a run over tiles may replace what is at the place of its output, when it is done.
    progress : callable, optional
        Called as ``progress(stage, fraction)`` while a run over tiles works.
    device : {"cuda", None}, default None
        ``"cuda"`` lets an NVIDIA GPU work on NumPy arrays, whole or in tiles, or on the tiles of stored ones, for the
        same result. By default the work is done where the arrays are.

    Returns
    -------
    labels : ndarray of uint32 or uint64, shape as `volume`
        0 on the background, 1..n in the components, in raster order of each component's first voxel. uint32 below
        2**32 voxels, else uint64, whatever the number of components. It is `out` where that is given; a CuPy array if
        `volume` is one.

    Raises
    ------
    InputError
        If `volume` has not 2 or 3 dimensions, `connectivity` is unknown, or `out` does not fit.
    InputTypeError
        If `volume` is no NumPy or CuPy array or has another dtype (floats: threshold them first).

    See Also
    --------
    scipy.ndimage.label : the same numbers for a binary volume.
    skimage.measure.label : several classes, numbered in the same order.

    Notes
    -----
    Runs of equal class along x, found 64 voxels at a time, are united over neighbouring rows in a union-find whose
    roots are the first voxels [1]_; the work is spread over slabs of slices, one thread per core (``LPA3D_NUM_THREADS``
    sets how many). The number of threads changes nothing in the result.

    Memory above the input: the result (4 bytes per voxel), 1/4 byte per voxel for the runs' places (at least 16 bytes a
    row) and 4 bytes per run: 4.5 bytes per voxel in all for a typical segmentation, 5.3 for binary noise, 12 to 13
    where every voxel is a component of its own. Input that is not C-ordered or not in native byte order is copied.

    On a CUDA device tiles are labelled in shared memory and joined; above the input 4.7 bytes of its memory per voxel
    are needed, 8.9 from 2**32 voxels on (rows count as multiples of 32 voxels).

    References
    ----------
    .. [1] L. He, Y. Chao, K. Suzuki, "A Run-Based Two-Scan Labeling Algorithm", IEEE Transactions on Image Processing
       17(5), 2008. doi:10.1109/TIP.2008.919369

    Examples
    --------
    >>> import numpy as np
    >>> import lpa3d
    >>> volume = np.array([[[1, 1, 0, 2], [0, 1, 2, 2]]], dtype=np.uint8)
    >>> lpa3d.label(volume)
    array([[[1, 1, 0, 2],
            [0, 1, 2, 2]]], dtype=uint32)
    """
    call = Call(
        "label",
        {"volume": volume},
        {
            "connectivity": connectivity,
        },
        {"out": out},
        Options(tile, memory, scratch, storage, resume, overwrite, progress, device),
    )
    return run(call, _label)


def _label(call: Call) -> Any:
    """Do what `label` does in memory, or for arrays on a device."""
    volume, out = call.arrays["volume"], call.place
    steps = canonical_connectivity(call.keywords["connectivity"])
    classes = class_map(volume)
    dtype = number_dtype(classes.size)
    target = canonical_out(out, volume.shape, dtype, (volume,))
    device = find_device(classes)
    if device is not None:
        from ..cuda import label as cuda

        labels = cuda.label(device, classes, steps, dtype, target)
    else:
        components = find_components(classes, steps)
        labels = np.zeros(classes.shape, dtype) if target is None else target
        components.write_labels(labels, clear=target is not None)
    return out if out is not None else labels.reshape(volume.shape)
