"""Measure a segmentation against a reference: the verb `evaluate`.

Stages
------
1. *Label* (only ``instances="components"``): the class maps of both sides, by the kernels of `label`.
2. *Count* (parallel over slabs): one table of overlaps (`arrays.overlap`), additive over any partition of the volume.
3. *Select*: for each class the table in which all others are background (`evaluation.classified`).
4. *Score*: metrics are pure functions of such a table (`evaluation.semantic`, `.partition`, `.instances`).
5. *Go back to the voxels* for what no table holds: surface distances (`evaluation.surfaces`), the warping error
   (`evaluation.warping`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..arrays.backend import array_module, device_of, is_on_device
from ..arrays.call import Call, Options
from ..arrays.checks import check_array, class_map, instance_ids, same_shape
from ..arrays.classes import check_classes
from ..errors import InputTypeError, Keyword
from ..evaluation.classified import Sides, count_classes, count_components, count_ids, write_components
from ..evaluation.conventions import Convention
from ..evaluation.report import Foreground, report, separate_masks
from ..evaluation.request import check_ignore, check_mode, check_request, mark_value, pair_classes
from ..evaluation.result import Evaluation
from ..evaluation.surfaces import surface_distances
from ..evaluation.warping import count_unwarped
from .dispatch import run

__all__ = ["evaluate"]
Ids = npt.NDArray[np.int64]


def evaluate(
    reference: Any,
    prediction: Any,
    *,
    spacing: Any = None,
    ignore: Any = None,
    iou_thresholds: Any = 0.5,
    instances: Literal["ids", "components"] | None = "ids",
    classes: Any = None,
    class_names: Mapping[Any, Any] | None = None,
    connectivity: int = 6,
    convention: str | Convention = "lpa3d",
    scores: Any = None,
    size_strata: Any = None,
    surfaces: bool = False,
    warping: Literal["2d", "3d"] | None = None,
    tile: int | Sequence[int] | None = None,
    memory: str | int | None = None,
    scratch: str | os.PathLike[str] | None = None,
    storage: Mapping[str, Any] | None = None,
    resume: bool | Literal["force"] = True,
    overwrite: bool = False,
    progress: Callable[[str, float], None] | None = None,
    device: Literal["cuda"] | None = None,
) -> Evaluation:
    """Measure a segmentation against a reference, with the metrics of the field, from one pass over the voxels.

    Parameters
    ----------
    reference, prediction : ndarray of bool or any integer dtype, shape (Z, Y, X) or (Y, X)
        What is right, and what is to be measured: instance ids, or classes (see `instances`); 0 = background, at most
        2**63 - 1. Any memory order and byte order. Not modified. CuPy arrays are counted on their device; zarr and
        dask arrays, and paths or URLs of zarr arrays, tile by tile.
    spacing : sequence of float, optional
        Voxel size (z, y, x), or (y, x) for 2D arrays, in any unit. Surface distances are in that unit; no other metric
        has one. By default what the first array says that is stored in zarr and states it, else 1.
    ignore : ndarray of bool or integers of the same shape, or int, optional
        Voxels that count nowhere: those where the array is not 0, or where `reference` has this value. A prediction
        that has more than half of its voxels there is no false positive.
    iou_thresholds : float or sequence of float, default 0.5
        Intersection over union from which on instances match, 0 to 1. ``e["pq"]``, ``e["f1"]`` and so on are at the
        first, ``e["f1@0.75"]`` at a further one.
    instances : {"ids", "components", None}, default "ids"
        What the values are. ``"ids"``: instance ids. ``"components"``: classes, whose connected components are the
        instances; ids are then the numbers that `label` gives them. None: classes, without instances.
    classes : pair (reference's, prediction's), optional
        The classes of instance ids, each a mapping of id to class (any hashable) or a class map of the same shape, on
        which every id lies on one class besides 0, ignored voxels included.
    class_names : mapping of class to name, optional
        The classes to evaluate, in this order, and what to call them. By default all, as they are.
    connectivity : {6, 18, 26}, default 6
        What joins the voxels of a component and, for `warping`, of the foreground. 1, 2 and 3 name the same.
    convention : str or Convention, default "lpa3d"
        How to decide where implementations disagree: "skimage", "sklearn", "snemi3d", "cremi", "gala", "funlib",
        "isbi", "panopticapi", "torchmetrics", "stardist", "panoptica", "hovernet", "cellmap", "coco" or "mitoem" for
        the numbers of those, or decisions of your own, e.g. ``Convention(strict=False)``.
    scores : mapping of predicted id to float, or rows (id, score), optional
        Confidence of each predicted instance, for `ap50`, `ap75` and `map`. By default the number of its voxels.
    size_strata : pair of float, optional
        Limits in voxels between small, medium and large objects: adds `map_small` and so on.
    surfaces : bool, default False
        Whether to measure how far apart the surfaces of matched pairs are. Not of CuPy arrays.
    warping : {"2d", "3d", None}, default None
        Whether to compute the warping error, in every z-slice or in the volume. Not of CuPy arrays.
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
    Evaluation
        A read-only mapping of metric to float (tp, fp and fn: int), with `per_class`, `pairs`, `splits`, `merges`,
        `missed`, `spurious`, `to_dict()` and `to_pandas()`.

    Raises
    ------
    InputError
        If shapes differ, ids are negative or too large, an id has no class or two, a score is missing, or another
        argument has an unusable value.
    InputTypeError
        If an argument has an unusable type or dtype.

    See Also
    --------
    label : numbers the components that ``instances="components"`` compares.
    lpa3d.plot.heatmap : draws metrics by class.
    skimage.metrics.adapted_rand_error, skimage.metrics.variation_of_information : two of the metrics.

    Notes
    -----
    ``docs/metrics.md`` defines every metric, says what 0/0 gives, and shows by example where conventions differ. Keys:

    - of foreground against background: accuracy, precision, recall, specificity, dice, iou, conformity, pixel_error;
    - of the partition, ids aside: rand_index, rand_error, arand (adapted Rand error), rand_split, rand_merge,
      voi_split, voi_merge and voi (variation of information, bits), nvi, v_rand, v_info, cremi. By default voxels that
      are background in the reference do not count in these, and predicted background is one segment more;
    - of instances: pq, sq, rq (panoptic quality), f1, precision_instance, recall_instance, tp, fp, fn, ap50, ap75, map
      (average precision as in COCO), aji, aji_plus (aggregated Jaccard index);
    - on request: hausdorff, hd95, assd (means over matched pairs; NaN without one), warping_error (an upper bound,
      since the deformation is found greedily; touching ids are parted by a line one voxel wide first).

    Instances match if their IoU is above the threshold (``>``; at least it under some conventions), one to one:
    uniquely above 0.5, by the optimal assignment elsewhere. With classes, a metric is the mean over the classes that
    are present in either volume; tp, fp and fn are sums.

    The voxels are read once, by all cores (``LPA3D_NUM_THREADS``), into a table with one row for each pair of ids that
    overlap. The tables of two parts of a volume add up to that of the whole, sums are exact or rounded once, and ties
    are settled by id, so the result depends on neither threads nor order.

    Memory above the input: some 250 bytes per row of the table and 50 per row of each slab's (of 2 million voxels),
    whatever the number of voxels; ``"components"`` adds half a byte per voxel and the labels of both sides of one slab
    per thread (3 bytes per voxel on 2 cores), a value for `ignore` 1 byte per voxel, `surfaces` some 120 bytes per
    surface voxel of the largest object and for components 8 bytes per voxel, `warping` 6 to 8 bytes per voxel. Input
    that is not C-ordered or not in native byte order is copied. A CUDA device takes 75 MB of its memory, and 4 times as
    much, and a second pass, each time that this has no room for the table (from half a million rows on);
    ``"components"`` adds the labels of both sides, 4.5 bytes per voxel each.

    Time is nearly linear in the voxels and in the rows of the table. Below a threshold of some 0.1, the optimal
    assignment of two unrelated segmentations is not: 10**5 objects against as many take seconds to minutes at 0.

    References
    ----------
    .. [1] A. Kirillov et al., "Panoptic Segmentation", CVPR 2019. doi:10.1109/CVPR.2019.00963
    .. [2] I. Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation algorithms for connectomics",
       Frontiers in Neuroanatomy 9, 2015. doi:10.3389/fnana.2015.00142
    .. [3] M. Meila, "Comparing clusterings - an information based distance", Journal of Multivariate Analysis 98(5),
       2007. doi:10.1016/j.jmva.2006.11.013
    .. [4] D. Wei et al., "MitoEM Dataset: Large-Scale 3D Mitochondria Instance Segmentation from EM Images", MICCAI
       2020. doi:10.1007/978-3-030-59722-1_7

    Examples
    --------
    One object is right, one was cut in two:

    >>> import numpy as np
    >>> import lpa3d
    >>> reference = np.array([[1, 1, 1, 0, 2, 2, 2, 2]])
    >>> prediction = np.array([[5, 5, 5, 0, 6, 6, 7, 7]])
    >>> e = lpa3d.evaluate(reference, prediction)
    >>> e["f1"], e["tp"], e["fp"], e["fn"]
    (0.4, 1, 2, 1)
    >>> e.splits
    Splits: 1 reference object cut into several predictions
    id  size  cost       box  parts (overlap)
     2     4     2  0:1, 4:8     6 (2), 7 (2)
    >>> reference[e.splits[0].box]
    array([[2, 2, 2, 2]])

    Class maps of several organelles, whose components are the instances:

    >>> names = {1: "mitochondria", 2: "ER"}
    >>> e = lpa3d.evaluate(reference, reference, instances="components", class_names=names)
    >>> e.per_class["ER"]["dice"]
    1.0
    """
    call = Call(
        "evaluate",
        {"reference": reference, "prediction": prediction, "ignore": ignore, "classes": classes},
        {
            "spacing": spacing,
            "iou_thresholds": iou_thresholds,
            "instances": instances,
            "class_names": class_names,
            "connectivity": connectivity,
            "convention": convention,
            "scores": scores,
            "size_strata": size_strata,
            "surfaces": surfaces,
            "warping": warping,
        },
        {},
        Options(tile, memory, scratch, storage, resume, overwrite, progress, device),
    )
    found: Evaluation = run(call, _evaluate)
    return found


def _evaluate(call: Call) -> Evaluation:
    """Do what `evaluate` does in memory, or for arrays on a device."""
    reference, prediction, ignore, classes = (
        call.arrays[name] for name in ("reference", "prediction", "ignore", "classes")
    )
    surfaces = call.keywords["surfaces"]
    mode = check_mode(call.keywords["instances"])
    if is_on_device(reference):
        _check_on_device(surfaces=surfaces or None, warping=call.keywords["warping"])
    sides = _check_sides(reference, prediction, ignore, mode)
    request = check_request(reference.ndim, classes=classes, **call.keywords)
    sources = _check_classes(classes, reference, prediction, mode)

    labels = sides.reference, sides.prediction
    if mode == "components":
        table, components = count_components(sides, request.connectivity)
        if surfaces:
            first, second = components
            labels = write_components(first, labels[0].shape), write_components(second, labels[1].shape)
    else:
        table = count_ids(sides, sources) if mode == "ids" else count_classes(sides)

    def measure(pairs: Ids, boxes: Ids) -> npt.NDArray[np.float64]:
        first, second = labels
        pooled = request.convention.assd == "pooled"
        return surface_distances(
            first, second, pairs, boxes[:, 0], boxes[:, 1], request.spacing, sides.ignore, pooled=pooled
        )

    def unwarp(foregrounds: Sequence[Foreground]) -> list[tuple[int, int]]:
        steps, flat = request.connectivity, request.warping == "2d"
        found = []
        for foreground in foregrounds:
            first, second = separate_masks(sides, foreground, connectivity=steps, per_slice=flat)
            found.append(count_unwarped(first, second, sides.ignore, connectivity=steps, per_slice=flat))
        return found

    return report(request, table, reference.shape, sides.ignore is not None, measure, unwarp)


def _check_sides(reference: Any, prediction: Any, ignore: Any, mode: str | None) -> Sides:
    """Return both volumes and the mask of what is ignored as canonical arrays."""
    for array, name in ((reference, "reference"), (prediction, "prediction")):
        if mode == "ids":
            check_array(array, name)
        else:
            class_map(array, name)
    same_shape(prediction, "prediction", reference, "reference")
    mask = None
    device_of(ignore)  # refuses arrays there that are not CuPy's
    if (isinstance(ignore, np.ndarray) or is_on_device(ignore)) and ignore.ndim:
        if ignore.dtype.kind not in "bui":
            raise InputTypeError(
                Keyword("ignore"), f" has dtype {ignore.dtype}; an array of bool or integers is needed, or one value"
            )
        same_shape(ignore, "ignore", reference, "reference")
        mask = array_module(ignore).ascontiguousarray(ignore != 0)
    elif ignore is not None:
        reference, mask = mark_value(reference, check_ignore(ignore, reference.shape))
    ids = [instance_ids(reference, "reference", spare="ignore"), instance_ids(prediction, "prediction")]
    return Sides(ids[0], ids[1], None if mask is None else mask.reshape(ids[0].shape))


def _check_classes(classes: Any, reference: Any, prediction: Any, mode: str | None) -> tuple[Any, Any] | None:
    """Return the classes of both sides as `arrays.classes.check_classes` does."""
    pair = pair_classes(classes, mode)
    if pair is None:
        return None
    return (
        check_classes(pair[0], "classes[0]", reference, "reference"),
        check_classes(pair[1], "classes[1]", prediction, "prediction"),
    )


def _check_on_device(**arguments: Any) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise InputTypeError(
            Keyword(given[0]),
            " goes back to the voxels, which only the CPU does, and the arrays are on a CUDA device; pass "
            "cupy.asnumpy(...) of them and no ",
            Keyword("device", "cuda"),
            ", or leave out ",
            Keyword(given[0]),
        )
