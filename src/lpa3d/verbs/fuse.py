"""The verb `fuse`: a class map, partial instances and stitched slices become one class map with seeds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from ..arrays.call import Call, Options
from ..arrays.checks import check_array, class_map, instance_ids, same_shape
from ..errors import InputError, Keyword
from ..linking.fuse import check_rules, count_rows, flag_slices, make_inputs, mark_slices, settle, write_tables
from ..linking.fused import CLASSES, INSTANCES, SLICES, Fused, Source
from .dispatch import run

__all__ = ["fuse"]


def fuse(
    *,
    classes: Any = None,
    instances: Any = None,
    slices: Any = None,
    complete_slices: Iterable[int] = (),
    axis: int = 0,
    priority: Sequence[Source] = ("instances", "slices", "classes"),
    instance_classes: Mapping[int, int] | None = None,
    slice_classes: Mapping[int, int] | None = None,
    out: Any = None,
    tile: int | Sequence[int] | None = None,
    memory: str | int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    storage: Mapping[str, Any] | None = None,
    resume: bool | Literal["force"] = True,
    overwrite: bool = False,
    progress: Callable[[str, float], None] | None = None,
    device: Literal["cuda"] | None = None,
) -> Fused:
    """Unite a class map, partial instances and labels made slice by slice into one class map with seeds.

    The result is what `propagate` needs. Where sources contradict each other the more trusted one wins, voxel by voxel,
    and what it overrules is listed: nothing is resolved in silence.

    Parameters
    ----------
    classes : ndarray of bool or any integer dtype, shape (Z, Y, X) or (Y, X), optional
        Class map, 0 is background: a network's semantic segmentation, with its errors. Zarr and dask arrays, and paths
        or URLs of zarr arrays, are worked on tile by tile: then all three are such.
    instances : ndarray of bool or any integer dtype, same shape, optional
        Ids of 3D objects, 0 is unlabelled, at most 2**63 - 1: an expert's, on some slices or anywhere.
    slices : ndarray of bool or any integer dtype, same shape, optional
        Ids of 3D objects, 0 is unlabelled: 2D predictions of every slice, after `stitch`; without it, every section
        that meets no object of `instances` would become an object. At least one of the three is needed.
    complete_slices : iterable of int, optional
        Positions across `axis`, from 0. There the more trusted label source that is given has annotated everything:
        what it leaves unlabelled is background, whatever the other sources and `priority` say.
    axis : {0, 1, 2}, default 0
        The axis that slices lie across; 0 for a 2D array, which is one slice.
    priority : sequence of str, default ("instances", "slices", "classes")
        The sources, the most trusted first; all that are given.
    instance_classes, slice_classes : mapping of id to class, optional
        The classes of objects of `instances` and of `slices`, not 0; not necessarily of all.
    out : str, path or mapping, optional
        Only where sources are zarr or dask arrays, and then needed: a folder, in which `volume.zarr`, `seeds.zarr` and
        `provenance.zarr` are made, or the place of each, ``{"volume": ..., "seeds": ..., "provenance": ...}``. Without
        a place the provenance is None.
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
    device : None
        No GPU works on this verb; others take ``"cuda"``.

    Returns
    -------
    Fused
        A named tuple of arrays of the shape of the input, and a table:

        volume
            Class map of the dtype of `classes`; without them, of the narrowest unsigned one that holds the classes
            of the mappings, at least uint8.
        seeds
            Ids in the dtype of the more trusted label source (uint8 for bool). Beside another label source it is made
            wider, of the same signedness, if its largest id and one id more for each voxel or each id up to the
            largest of the other would not fit. Without label sources uint8 zeros.
        provenance
            uint8, the `Provenance` of each voxel: 0 nothing, 1 classes, 2 instances, 3 slices, 4 complete slice.
        conflicts
            `Conflicts`, sorted by voxels, falling; ties by kind in the order of the Notes, then by the sources
            (classes, instances, slices), ids and classes.

    Raises
    ------
    InputError
        For shapes that differ, negative or too large ids, unusable options, classes that the dtype of `classes` does
        not hold, objects whose class cannot be known, and if there is no room for fresh ids below 2**63. All before
        any result is made.
    InputTypeError
        If an argument has an unusable type or dtype.

    See Also
    --------
    stitch : makes 3D ids of labels made slice by slice.
    propagate : fills what is still unlabelled inside the class map.
    evaluate : measures the result.

    Notes
    -----
    *Which objects are one.* With two label sources, the less trusted one's objects are compared with those of the more
    trusted one, on the slices on which both have labels. Two objects agree if they share at least half of the smaller
    of the two there. An object that agrees with one object takes its id; several may take the same, as fragments of it.
    An object that agrees with none gets a fresh id, after the largest of the more trusted source, in the order of first
    voxels; but if at least half of it is labelled on those slices, it agrees with all that it overlaps. One that agrees
    with several gets no id: its voxels that the other source leaves unlabelled get its class and no seed, and
    `propagate` divides them. A single label source keeps its ids.

    *Which class an object has.* The first that is known of: what the more trusted mapping gives it; what the other
    mapping gives to the objects that took its id (most voxels); the class, not background, on which most of its voxels
    lie in `classes`; the only class that there is in `classes` and mappings, which is 1 if they name none. Ties: the
    smaller class. It is no error if none is known and the class map overrules the object everywhere.

    *What a voxel is.* The sources speak in the order of `priority`. A label source speaks of the voxels that it labels,
    and says an id and its class; `classes` speaks of all voxels. What contradicts a more trusted source is overruled.
    So a more trusted class map leaves no seeds on its background or on other classes, and a less trusted one is changed
    to what objects say. Trust `classes` more than `slices` if these are of a tool that segments everything, not only
    what is looked for: ``priority=("instances", "classes", "slices")``.

    *Conflicts.* Each voxel of each overruled source is in exactly one row; a voxel on which two sources are overruled
    is in two.

    ============  ====================================================================================================
    kind          what was overruled
    ============  ====================================================================================================
    "joins"       an object that agrees with several: one row with each of them, on their common voxels, and one with
                  id 0, where it is left without a seed
    "labels"      an object, by another one
    "class"       a class, by another one
    "background"  background, by an object, or an object, by background
    "unlabelled"  an object or a class, by a complete slice
    ============  ====================================================================================================

    Everything is decided in integers on an additive table of combinations, so neither the number of threads nor the
    order of work changes anything. Memory above the input: the results, that is the dtypes of volume and seeds and one
    byte per voxel; up to 40 MB for each thread; and some 500 bytes for each combination of two ids and a class that
    share a voxel. Inputs are copied where they are not C-ordered or not in native byte order. Of stored arrays only
    tiles are held; each is read once, two label sources twice.

    Examples
    --------
    An expert labelled one slice. On the next ones predictions call the second object 5, and nobody saw the third:

    >>> import numpy as np
    >>> import lpa3d
    >>> classes = np.array([[[1, 1, 0, 2, 2, 0, 1]], [[1, 1, 0, 2, 0, 0, 1]]])
    >>> instances = np.array([[[7, 7, 0, 3, 3, 0, 0]], [[0, 0, 0, 0, 0, 0, 0]]])
    >>> slices = np.array([[[4, 4, 0, 5, 0, 0, 0]], [[4, 4, 4, 5, 5, 0, 0]]])
    >>> fused = lpa3d.fuse(classes=classes, instances=instances, slices=slices)
    >>> fused.seeds
    array([[[7, 7, 0, 3, 3, 0, 0]],
    <BLANKLINE>
           [[7, 7, 7, 3, 3, 0, 0]]])
    >>> fused.volume[1]
    array([[1, 1, 1, 2, 2, 0, 1]])
    >>> fused.provenance[1]
    array([[3, 3, 3, 3, 3, 0, 1]], dtype=uint8)
    >>> fused.conflicts.columns()["kind"]
    array(['background', 'background'], dtype='<U10')
    >>> fused.conflicts.box(1)
    (slice(1, 2, None), slice(0, 1, None), slice(4, 5, None))
    """
    call = Call(
        "fuse",
        {CLASSES: classes, INSTANCES: instances, SLICES: slices},
        {
            "complete_slices": complete_slices,
            "axis": axis,
            "priority": priority,
            "instance_classes": instance_classes,
            "slice_classes": slice_classes,
        },
        {"out": out},
        Options(tile, memory, scratch, storage, resume, overwrite, progress, device),
    )
    fused: Fused = run(call, _fuse)
    return fused


def _fuse(call: Call) -> Fused:
    """Do what `fuse` does in memory, or for arrays on a device."""
    if call.place is not None:
        raise InputError(
            Keyword("out"), " is for zarr or dask arrays; of arrays in memory the result is always new: leave it out"
        )
    given = {name: array for name, array in call.arrays.items() if array is not None}
    if not given:
        raise InputError(
            "fuse got no source; pass at least one of ",
            Keyword(CLASSES),
            ", ",
            Keyword(INSTANCES),
            " and ",
            Keyword(SLICES),
        )
    for name, array in given.items():
        check_array(array, name)
        same_shape(array, name, next(iter(given.values())), next(iter(given)))
    shape = next(iter(given.values())).shape
    canonical = {name: class_map(a, name) if name == CLASSES else instance_ids(a, name) for name, a in given.items()}
    rules = check_rules(
        {name: array.dtype for name, array in given.items()},
        shape,
        **call.keywords,
    )
    whole = next(iter(canonical.values())).shape
    both = [mark_slices(canonical[name], rules.axis) for name in rules.labels] if len(rules.labels) == 2 else []
    inputs = make_inputs(rules, canonical, whole, flag_slices(rules, whole[rules.axis], both))
    rows = count_rows(inputs)
    tables, conflicts = settle(rules, rows)
    volume, seeds, provenance = (array.reshape(shape) for array in write_tables(inputs, rows.keys, tables))
    return Fused(volume, seeds, provenance, conflicts)
