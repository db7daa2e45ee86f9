"""The verb `propagate`: mixed, partial labels become complete instances."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..arrays.backend import array_module
from ..arrays.call import Call, Options
from ..arrays.checks import canonical_out, check_array, class_map, instance_ids, max_id, result_dtype, same_shape
from ..arrays.warn import warn
from ..propagation.rules import check_rules, missing_note
from ..propagation.whole import Job, cost_steps, run_stages, say_nothing
from .dispatch import run

__all__ = ["propagate"]


def propagate(
    volume: Any,
    seeds: Any,
    *,
    connectivity: int = 6,
    spacing: Iterable[float] | None = None,
    cost: Any = None,
    max_distance: float | None = None,
    sweeps: int | None = None,
    slice_axis: int | str | None = "auto",
    missing_slices: Iterable[int] = (),
    unseeded: str = "drop",
    seed_conflicts: str = "raise",
    return_confidence: bool = False,
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
    """Propagate partial instance labels through a class map to complete 3D instances.

    Labels travel only along links: from a voxel to a neighbour of the same non-zero class. Where seeds lie on
    annotated slices, the sections between them are drawn first, from how each object's section moves from slice to
    slice; what is left takes the nearest label along links, and borders are smoothed by diffusion. Every labelled
    voxel is linked to a seed of its label through voxels of that label, and no voxel that a seed can reach stays 0.

    Parameters
    ----------
    volume : ndarray of bool or any integer dtype, shape (Z, Y, X) or (Y, X)
        Class map, 0 is background. CuPy arrays are worked on by their device; zarr and dask arrays, and paths or URLs
        of zarr arrays, tile by tile: then all arrays are such.
    seeds : ndarray of any integer dtype, shape as `volume`
        Instance ids, 0 is unlabelled (not background), at most 2**63 - 1. Seeds on the background are dropped with a
        warning; seeds on the mask keep their label.
    connectivity : {6, 18, 26}, default 6
        Which voxels are neighbours; 1, 2 and 3 name the same. More than 6 leak through thin walls.
    spacing : (z, y, x), optional
        Voxel size, in any unit; two values do for a 2D array. By default what the first array says that is stored in
        zarr and states it, else 1.
    cost : ndarray, shape as `volume`, optional
        How hard each voxel is to cross, 0 to 4095, such as ``1 + 50 * membrane_probability``. A step weighs its
        length times the mean cost of its two voxels (in steps of 1/16, at least 1/16), so 1 changes nothing;
        diffusion is lowered alike.
    max_distance : float, optional
        Only voxels within this path length of a seed (in the unit of `spacing`, times cost) are labelled.
    sweeps : int, optional
        Sweeps of diffusion; by default 8 for the classes whose sections were drawn and 32 for the others. 0 leaves
        borders as they are.
    slice_axis : {'auto', 0, 1, 2} or None, default 'auto'
        The axis that annotated slices lie across. 'auto' finds it: at least two slices, with slices between, hold
        nearly all seeds. None does not draw sections.
    missing_slices : iterable of int, optional
        Positions along z of slices without content. Their neighbours are linked across them as if they were not
        there, and they stay 0. Seeds on them are dropped with a warning.
    unseeded : {'drop', 'label'}, default 'drop'
        What becomes of components without a seed: 0, with one warning that counts them, or fresh ids after the
        largest of `seeds`, in raster order.
    seed_conflicts : {'raise', 'majority'}, default 'raise'
        What becomes of an id on two classes: an error, or its seeds on the class where it has most voxels (a tie:
        the smaller class) are kept.
    return_confidence : bool, default False
        Also return how far each voxel's label leads its rival after diffusion.
    out : ndarray, optional
        Array for the result: `volume`'s shape, the result's dtype, C-contiguous, not sharing memory with an input. For
        stored arrays, where it is needed: the path of a new OME-Zarr or of labels in one, a URL or store; with
        `return_confidence` a pair of them.
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
        Called as ``progress(stage, fraction)``: before each stage in memory, and while a run over tiles works.
    device : {"cuda", None}, default None
        ``"cuda"`` lets an NVIDIA GPU work on NumPy arrays, whole or in tiles, or on the tiles of stored ones, for the
        same result. By default the work is done where the arrays are.

    Returns
    -------
    labels : ndarray, shape as `volume`
        Of the dtype of `seeds` (uint8 for bool); with ``unseeded='label'`` of the next wider one of the same
        signedness if it could not hold one id more per voxel. It is `out` where that is given; a CuPy array if `volume`
        is one.
    confidence : ndarray of uint16, shape as `volume`
        With `return_confidence` only: probability of the label less that of its rival, of 65535. 65535 for seeds and
        where there is no rival, 0 for voxels that diffusion cut off and a geodesic filled, and for those without a
        label.

    Raises
    ------
    InputError
        For shapes that differ, negative or too large ids, an id on two classes, a cost that is negative, NaN or above
        4095, a spacing that is not positive, unknown options; all before any work.
    InputTypeError
        For arrays of the wrong kind or dtype, such as a volume of floats.
    RangeError
        Without `max_distance`, if paths are longer than 2**32 / 64 of the smallest voxel side (times cost).

    Warns
    -----
    Lpa3dWarning
        If seeds are dropped, or components stay 0.

    See Also
    --------
    label : components of a class map, without seeds.
    skimage.segmentation.watershed : the geodesic stage alone, when its image is constant; ties differ.
    skimage.segmentation.random_walker : what diffusion converges to.

    Notes
    -----
    The stages and every constant are described in ``docs/algorithm.md``. All of them work in integers and are defined
    without an order of work: ties go to the smaller id, and the number of threads (``LPA3D_NUM_THREADS``) changes
    nothing. Flips and transposes of the input, with `spacing`, flip and transpose the result.

    Memory above the input, for ids of up to 32 bits: with 6 neighbours and unit spacing about 6 bytes per voxel, plus
    what diffusion needs near borders; with other spacing or a cost about 4 bytes more, with 18 or 26 neighbours 3
    bytes more.

    References
    ----------
    .. [1] X. Zhu, Z. Ghahramani, "Learning from Labeled and Unlabeled Data with Label Propagation", Carnegie Mellon
       University, CMU-CALD-02-107, 2002.
    .. [2] L. Grady, "Random Walks for Image Segmentation", IEEE Transactions on Pattern Analysis and Machine
       Intelligence 28(11), 2006. doi:10.1109/TPAMI.2006.233

    Examples
    --------
    >>> import numpy as np
    >>> import lpa3d
    >>> volume = np.array([[1, 1, 1, 1, 0, 1]], dtype=np.uint8)
    >>> seeds = np.array([[7, 0, 0, 4, 0, 9]])
    >>> lpa3d.propagate(volume, seeds)
    array([[7, 7, 4, 4, 0, 9]])
    """
    call = Call(
        "propagate",
        {"volume": volume, "seeds": seeds, "cost": cost},
        {
            "connectivity": connectivity,
            "spacing": spacing,
            "max_distance": max_distance,
            "sweeps": sweeps,
            "slice_axis": slice_axis,
            "missing_slices": missing_slices,
            "unseeded": unseeded,
            "seed_conflicts": seed_conflicts,
            "return_confidence": return_confidence,
        },
        {"out": out},
        Options(tile, memory, scratch, storage, resume, overwrite, progress, device),
    )
    return run(call, _propagate, takes=("progress",))


def _propagate(call: Call) -> Any:
    """Do what `propagate` does in memory, or for arrays on a device."""
    volume, seeds, cost = (call.arrays[name] for name in ("volume", "seeds", "cost"))
    out = call.place
    shape = check_array(volume, "volume").shape
    class_dtype = volume.dtype.newbyteorder("=")
    same_shape(check_array(seeds, "seeds"), "seeds", check_array(volume, "volume"), "volume")
    rules = check_rules(shape, **call.keywords)
    classes = class_map(volume)
    given = instance_ids(seeds, "seeds")
    most = max_id(given)
    dtype = result_dtype(given.dtype, most + given.size) if rules.fresh_ids else given.dtype
    target = canonical_out(out, shape, dtype, (volume, seeds, cost))
    steps = None if cost is None else cost_steps(cost, classes, shape)
    tell = call.options.progress or say_nothing

    job = Job(classes, given, steps, rules, most, dtype, class_dtype)
    if rules.missing:
        # Without the missing slices their neighbours are neighbours, in every stage.
        xp = array_module(classes)
        present = np.setdiff1d(np.arange(shape[0]), rules.missing)
        lost = sum(int(xp.count_nonzero(given[z])) for z in rules.missing)
        if lost:
            warn(*missing_note(lost))
        slices, lead = run_stages(job.take(present), None, tell)
        result = xp.empty(shape, dtype) if target is None else target
        confidence = None if lead is None else xp.zeros(shape, np.uint16)
        for z in rules.missing:
            result[z] = 0
        for i, z in enumerate(present.tolist()):
            result[z] = slices[i]
            if lead is not None and confidence is not None:
                confidence[z] = lead[i]
    else:
        result, confidence = run_stages(job, target, tell)
    result = out if out is not None else result.reshape(shape)
    return result if confidence is None else (result, confidence.reshape(shape))
