"""Measure a segmentation against a reference: the verb `evaluate`.

Stages
------
1. *Label* (only ``instances="components"``): the class maps of both sides, by the kernels of `label`.
2. *Count* (parallel over slabs): one table of overlaps (`_overlap`), additive over any partition of the volume.
3. *Select*: for each class the table in which all others are background (`_classified`).
4. *Score*: metrics are pure functions of such a table (`_semantic`, `_partition`, `_instances`).
5. *Go back to the voxels* for what no table holds: surface distances (`_surfaces`), the warping error (`_warping`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .._version import __version__
from ..arrays.backend import array_module, device_of, is_on_device
from ..arrays.checks import (
    MAX_ID,
    as_bits,
    canonical_connectivity,
    canonical_spacing,
    check_array,
    class_map,
    instance_ids,
    same_shape,
    seal,
)
from ..arrays.classes import check_classes
from ..arrays.neighbors import neighbor_offsets
from ..arrays.overlap import Overlaps, add_overlaps, find_boxes
from ..arrays.relabel import relabel
from ..arrays.threads import num_threads, run_all, split
from ..arrays.unite import list_some
from ..arrays.warn import warn
from ..errors import InputError, InputTypeError
from ..evaluation.classified import Classified, Sides, count_classes, count_components, count_ids, write_components
from ..evaluation.conventions import CONVENTIONS, Convention
from ..evaluation.instances import (
    list_matches,
    match,
    score_aggregated,
    score_matching,
    score_ranking,
    tabulate_instances,
)
from ..evaluation.metrics import DISTANCES, RANKING, SUMMED
from ..evaluation.partition import score_partition
from ..evaluation.result import Evaluation, Matches
from ..evaluation.semantic import score_semantic
from ..evaluation.surfaces import surface_distances
from ..evaluation.warping import count_unwarped
from ..kernels.overlap import VOID
from ..kernels.touching import separate_slab
from .dispatch import accepts_stored

__all__ = [
    "Foreground",
    "Request",
    "check_ignore",
    "check_mode",
    "check_request",
    "evaluate",
    "mark_value",
    "pair_classes",
    "report",
    "separate_masks",
]

ALL = None
"""Name of the one part where there are no classes."""

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
Scores = tuple[Ids, npt.NDArray[np.float64]]

Measure = Callable[[Ids, Ids], npt.NDArray[np.float64]]
"""Returns the surface distances ``(n, 3)`` of pairs of ids ``(n, 2)``, given a box for each id, ``(n, 2, 2, 3)``."""


@dataclass(frozen=True, eq=False, slots=True)
class Foreground:
    """What the warping error looks at: one class, or all.

    Attributes
    ----------
    value : int or None
        The class in class maps; None where there is none such.
    others : tuple of ndarray, or None
        The ids of other classes on both sides, of instance ids; None in class maps.
    """

    value: int | None
    others: tuple[Ids, Ids] | None


Unwarp = Callable[[Sequence[Foreground]], Sequence[tuple[int, int]]]
"""Returns what `count_unwarped` does for each foreground."""


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """What is measured, and how, whatever the volumes.

    Attributes
    ----------
    mode, warping, style : str or None
        The arguments `instances`, `warping`, and the name of the convention.
    convention : Convention
    connectivity : int
    spacing : tuple of float
    names : Mapping or None
        Name of each class to evaluate.
    thresholds : tuple of float
    scores : tuple of ndarray, or None
        Sorted ids and the score of each.
    strata : tuple of float, or None
    surfaces : bool
    """

    mode: str | None
    warping: str | None
    style: str
    convention: Convention
    connectivity: int
    spacing: tuple[float, float, float]
    names: Mapping[Any, Any] | None
    thresholds: tuple[float, ...]
    scores: Scores | None
    strata: tuple[float, float] | None
    surfaces: bool

    def describe(self) -> dict[str, Any]:
        """Return the parameters (JSON) that an evaluation tells."""
        decisions = asdict(self.convention)
        return {
            "version": __version__,
            "instances": self.mode,
            "connectivity": self.connectivity,
            "iou_thresholds": list(self.thresholds),
            "convention": self.style,
            "decisions": {key: list(value) if isinstance(value, tuple) else value for key, value in decisions.items()},
            "spacing": list(self.spacing),
            "size_strata": None if self.strata is None else list(self.strata),
            "warping": self.warping,
        }


@accepts_stored("evaluate", "reference", "prediction", "ignore", "classes")
def evaluate(
    reference: Any,
    prediction: Any,
    *,
    spacing: Any = (1, 1, 1),
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
) -> Evaluation:
    """Measure a segmentation against a reference, with the metrics of the field, from one pass over the voxels.

    Parameters
    ----------
    reference, prediction : ndarray of bool or any integer dtype, shape (Z, Y, X) or (Y, X)
        What is right, and what is to be measured: instance ids, or classes (see `instances`); 0 = background, at most
        2**63 - 1. Any memory order and byte order. Not modified. CuPy arrays are counted on their device.
    spacing : sequence of float, default (1, 1, 1)
        Voxel size (z, y, x), or (y, x) for 2D arrays, in any unit. Surface distances are in that unit; no other metric
        has one.
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
        "isbi", "panopticapi", "torchmetrics", "stardist", "panoptica", "hovernet", "coco" or "mitoem" for the numbers
        of those, or decisions of your own, e.g. ``Convention(strict=False)``.
    scores : mapping of predicted id to float, or rows (id, score), optional
        Confidence of each predicted instance, for `ap50`, `ap75` and `map`. By default the number of its voxels.
    size_strata : pair of float, optional
        Limits in voxels between small, medium and large objects: adds `map_small` and so on.
    surfaces : bool, default False
        Whether to measure how far apart the surfaces of matched pairs are. Not of CuPy arrays.
    warping : {"2d", "3d", None}, default None
        Whether to compute the warping error, in every z-slice or in the volume. Not of CuPy arrays.

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
    mode = check_mode(instances)
    if is_on_device(reference):
        _check_on_device(surfaces=surfaces or None, warping=warping)
    sides = _check_sides(reference, prediction, ignore, mode)
    request = check_request(
        reference.ndim,
        mode,
        spacing=spacing,
        iou_thresholds=iou_thresholds,
        classes=classes,
        class_names=class_names,
        connectivity=connectivity,
        convention=convention,
        scores=scores,
        size_strata=size_strata,
        surfaces=surfaces,
        warping=warping,
    )
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
        return surface_distances(first, second, pairs, boxes[:, 0], boxes[:, 1], request.spacing, sides.ignore)

    def unwarp(foregrounds: Sequence[Foreground]) -> list[tuple[int, int]]:
        steps, flat = request.connectivity, request.warping == "2d"
        found = []
        for foreground in foregrounds:
            first, second = separate_masks(sides, foreground, connectivity=steps, per_slice=flat)
            found.append(count_unwarped(first, second, sides.ignore, connectivity=steps, per_slice=flat))
        return found

    return report(request, table, reference.shape, sides.ignore is not None, measure, unwarp)


def check_request(
    ndim: int,
    mode: str | None,
    *,
    spacing: Any,
    iou_thresholds: Any,
    classes: Any,
    class_names: Any,
    connectivity: Any,
    convention: Any,
    scores: Any,
    size_strata: Any,
    surfaces: Any,
    warping: Any,
) -> Request:
    """Check the arguments of `evaluate` that are no volumes, for volumes of `ndim` dimensions."""
    topology = _check_choice(warping, "warping", ("2d", "3d", None))
    style, decisions = _check_convention(convention)
    if mode is None:
        _check_unused(scores=scores, size_strata=size_strata, surfaces=surfaces or None)
    return Request(
        mode,
        topology,
        style,
        decisions,
        canonical_connectivity(connectivity),
        canonical_spacing(spacing, ndim),
        _check_names(class_names, mode, classes),
        _check_thresholds(iou_thresholds),
        _check_scores(scores),
        _check_strata(decisions.size_strata if size_strata is None else size_strata),
        bool(surfaces),
    )


def report(
    request: Request,
    table: Classified,
    shape: tuple[int, ...],
    ignores: bool,
    measure: Measure,
    unwarp: Unwarp,
) -> Evaluation:
    """Return the evaluation that a table of overlaps gives; `measure` and `unwarp` go back to the voxels if asked to.

    `shape` is the volumes', as they were given; `ignores` says whether there are voxels to ignore.
    """
    _check_scored(request.scores, table.overlaps)
    numbers = _choose_classes(table, request.names)
    tables = {name: table.select(number) for name, number in numbers.items()} if numbers else {ALL: table.overlaps}
    values, columns = {}, {}
    for name, overlaps in tables.items():
        values[name], columns[name] = _score(overlaps, request)
    if request.surfaces:
        for name, distances in _measure_surfaces(measure, columns, tables).items():
            columns[name] |= distances
            values[name] |= {key: _mean(column.tolist()) for key, column in distances.items()}
    if request.warping is not None:
        wanted: list[int | None] = list(numbers.values()) if numbers else [None]
        foregrounds = [_find_foreground(table, request.mode, number) for number in wanted]
        for name, (wrong, counted) in zip(tables, unwarp(foregrounds), strict=True):
            values[name]["warping_error"] = wrong / counted if counted else 0.0

    void = table.overlaps.voxels[table.overlaps.pairs[:, 0] == VOID]
    parameters = request.describe() | {"shape": list(shape), "ignored": int(void.sum()) if ignores else None}

    def tell(name: Any, present: bool) -> Evaluation:
        """Return the evaluation of one class, or of all without classes."""
        return Evaluation(
            values[name],
            parameters=parameters,
            pairs=_seal_columns(columns[name]),
            overlaps=tables[name] if request.mode is not None else add_overlaps([]),
            ndim=len(shape),
            present=present,
            per_class={},
        )

    if not numbers:
        pairs = table.overlaps.pairs
        return tell(ALL, bool((pairs[pairs[:, 0] != VOID] > 0).any()))
    per_class = {name: tell(name, table.holds(number)) for name, number in numbers.items()}
    present = [name for name, one in per_class.items() if one.present]
    if not present:
        warn(
            f"none of the classes {list_some(list(request.names or ()))} is in reference or prediction, so there is "
            f"nothing to average; they have {list_some(table.classes) or 'none at all'}"
        )
    return Evaluation(
        _average([values[name] for name in present], list(values[next(iter(numbers))]), request.convention),
        parameters=parameters,
        pairs=_seal_columns(_join_columns(list(columns.values()))),
        overlaps=table.separate(numbers.values()) if request.mode is not None else add_overlaps([]),
        ndim=len(shape),
        present=bool(present),
        per_class=per_class,
    )


def _score(overlaps: Overlaps, request: Request) -> tuple[dict[str, float], dict[str, Array]]:
    """Return every metric of one table of overlaps, and the columns of the pairs that match at the first threshold."""
    convention = request.convention
    values = score_semantic(overlaps)
    if request.mode is None:
        nobody = tabulate_instances(add_overlaps([]))
        return values, list_matches(nobody, match(nobody, 1.0, convention))
    values |= score_partition(overlaps, convention)
    instances = tabulate_instances(overlaps)
    matches = [match(instances, threshold, convention) for threshold in request.thresholds]
    values |= score_matching(instances, matches[0], convention)
    for threshold, matched in zip(request.thresholds[1:], matches[1:], strict=True):
        at = score_matching(instances, matched, convention)
        values |= {f"{key}@{threshold:g}": value for key, value in at.items()}
    scores = None
    if request.scores is not None:
        ids, confidences = request.scores
        scores = confidences[np.searchsorted(ids, instances.predicted)]
    values |= score_ranking(instances, scores, convention, request.strata)
    values |= score_aggregated(instances, convention)
    return values, list_matches(instances, matches[0])


def _measure_surfaces(
    measure: Measure, columns: Mapping[Any, dict[str, Array]], tables: Mapping[Any, Overlaps]
) -> dict[Any, dict[str, Array]]:
    """Return the columns of surface distances of the matched pairs of each table, all measured at once."""
    pairs, boxes, counts = [], [], []
    for name, overlaps in tables.items():
        matched = columns[name]["reference"], columns[name]["prediction"]
        pairs.append(np.stack(matched, axis=1))
        boxes.append(np.stack([find_boxes(overlaps, side, ids) for side, ids in enumerate(matched)], axis=1))
        counts.append(len(pairs[-1]))
    distances = measure(np.concatenate(pairs), np.concatenate(boxes))
    parts = np.split(distances, np.cumsum(counts)[:-1])
    return {
        name: dict(zip(DISTANCES, np.ascontiguousarray(part.T), strict=True))
        for name, part in zip(tables, parts, strict=True)
    }


def _find_foreground(table: Classified, mode: str | None, number: int | None) -> Foreground:
    """Return the foreground of a class number (one that no class has included), or of all ids for None."""
    if mode != "ids":
        return Foreground(table.classes[number] if number is not None and number >= 0 else None, None)
    first, second = (
        np.unique(table.overlaps.pairs[(numbers != number) & (numbers >= 0), side])
        for side, numbers in enumerate((table.reference, table.prediction))
    )
    return Foreground(None, (first, second))


def separate_masks(
    sides: Sides, foreground: Foreground, *, connectivity: int, per_slice: bool
) -> list[npt.NDArray[np.bool_]]:
    """Return the foreground of both sides, in which instances do not touch."""
    masks = []
    for side, volume in enumerate((sides.reference, sides.prediction)):
        if foreground.others is None:
            # Components of one class never touch.
            masks.append(volume < 0 if foreground.value is None else volume == foreground.value)
            continue
        others = foreground.others[side]
        labels = relabel(volume, others, np.zeros_like(others), volume.dtype, None) if len(others) else volume
        masks.append(_separate_touching(labels, sides.ignore, connectivity, per_slice))
    return masks


def _separate_touching(
    labels: Array, ignore: npt.NDArray[np.bool_] | None, connectivity: int, per_slice: bool
) -> npt.NDArray[np.bool_]:
    """Return where labels are, but for a line one voxel wide between those that touch, of ignored voxels if it can."""
    offsets = neighbor_offsets(connectivity)
    if per_slice:
        offsets = offsets[offsets[:, 0] == 0]
    out = np.empty(labels.shape, np.bool_)
    source, ignored = seal(as_bits(labels)), seal(np.empty((0, 0, 0), np.bool_) if ignore is None else ignore)
    run_all(lambda bounds: separate_slab(source, ignored, offsets, *bounds, out), split(len(labels), 2 * num_threads()))
    return out


def _mean(values: list[float]) -> float:
    """Return the mean of what is not NaN; NaN of nothing."""
    known = [value for value in values if not math.isnan(value)]
    return math.fsum(known) / len(known) if known else math.nan


def _average(classes: list[dict[str, float]], keys: list[str], convention: Convention) -> dict[str, float]:
    """Return the sums of the counts, and the means of all else (NaN of nothing), over classes."""
    means: dict[str, float] = {}
    for key in keys:
        values = [one[key] for one in classes]
        if key.partition("@")[0] in SUMMED:
            means[key] = sum(values)
            continue
        # COCO's mark of a class without references is no precision.
        absent = convention.ap_absent if key.startswith(RANKING) else None
        known = [value for value in values if value != absent]
        means[key] = _mean(known or values)
    return means


def _join_columns(parts: list[dict[str, Array]]) -> dict[str, Array]:
    """Return the columns of matched pairs of several classes, sorted by reference id."""
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    order = np.argsort(joined["reference"], kind="stable")
    return {key: column[order] for key, column in joined.items()}


def _seal_columns(columns: dict[str, Array]) -> Matches:
    return Matches(**{key: seal(column) for key, column in columns.items()})


def _choose_classes(table: Classified, names: Mapping[Any, Any] | None) -> dict[Any, int]:
    """Return name and number of each class to evaluate; a class that nothing has gets a number that nothing has."""
    known = {value: number for number, value in enumerate(table.classes)}
    if names is None:
        return known
    return {name: known.get(value, -2 - k) for k, (value, name) in enumerate(names.items())}


def check_mode(instances: Any) -> str | None:
    """Return the argument `instances`."""
    mode: str | None = _check_choice(instances, "instances", ("ids", "components", None))
    return mode


def _check_choice(value: Any, name: str, choices: tuple[Any, ...]) -> Any:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise InputError(f"{name} is {value!r}; {', '.join(map(repr, choices[:-1]))} or {choices[-1]!r} is needed")
    return value


def _check_convention(convention: Any) -> tuple[str, Convention]:
    """Return the name of a convention ("custom" for one of the caller's making), and what it decides."""
    if isinstance(convention, Convention):
        return "custom", convention
    if not isinstance(convention, str) or convention not in CONVENTIONS:
        raise InputError(
            f"convention is {convention!r}; one of {', '.join(map(repr, CONVENTIONS))} is needed, or a lpa3d.Convention"
        )
    return convention, CONVENTIONS[convention]


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
                f"ignore has dtype {ignore.dtype}; an array of bool or integers is needed, or one value"
            )
        same_shape(ignore, "ignore", reference, "reference")
        mask = array_module(ignore).ascontiguousarray(ignore != 0)
    elif ignore is not None:
        reference, mask = mark_value(reference, check_ignore(ignore, reference.shape))
    ids = [instance_ids(reference, "reference"), instance_ids(prediction, "prediction")]
    return Sides(ids[0], ids[1], None if mask is None else mask.reshape(ids[0].shape))


def check_ignore(ignore: Any, shape: tuple[int, ...]) -> int:
    """Return the value of `reference` whose voxels are ignored."""
    try:
        if isinstance(ignore, bool):
            raise TypeError
        return operator.index(ignore)
    except TypeError:
        raise InputTypeError(
            f"ignore is {ignore!r}; an array of bool of the shape {shape} is needed, or one value of reference, e.g. "
            f"ignore=255"
        ) from None


def mark_value(reference: Array, value: int) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return a part of the reference, and where it has a value that is ignored."""
    xp, dtype = array_module(reference), reference.dtype
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not low <= value <= high:
        return reference, xp.zeros(reference.shape, np.bool_)
    mask = xp.ascontiguousarray(reference == dtype.type(value))
    if not 0 <= value <= MAX_ID:
        # Such as -1, or the 2**64 - 1 of CREMI, which are no ids.
        reference = xp.where(mask, dtype.type(0), reference)
    return reference, mask


def _check_classes(classes: Any, reference: Any, prediction: Any, mode: str | None) -> tuple[Any, Any] | None:
    """Return the classes of both sides as `_classes.check_classes` does."""
    pair = pair_classes(classes, mode)
    if pair is None:
        return None
    return (
        check_classes(pair[0], "classes[0]", reference, "reference"),
        check_classes(pair[1], "classes[1]", prediction, "prediction"),
    )


def pair_classes(classes: Any, mode: str | None) -> tuple[Any, Any] | None:
    """Return the classes of the reference and those of the prediction."""
    if classes is None:
        return None
    if mode != "ids":
        raise InputError(
            f'classes are those of instance ids, but instances={mode!r}; leave it out, or pass instances="ids"'
        )
    need = "a pair is needed: classes=(classes of reference, classes of prediction), each a class map or {id: class}"
    if isinstance(classes, (np.ndarray, Mapping, str)) or is_on_device(classes):
        raise InputTypeError(f"classes is a {type(classes).__qualname__}; {need}")
    try:
        first, second = classes
    except (TypeError, ValueError):
        raise InputTypeError(f"classes cannot be read as two; {need}") from None
    if first is None or second is None:
        raise InputTypeError(f"classes holds None; {need}")
    return first, second


def _check_names(names: Any, mode: str | None, classes: Any) -> Mapping[Any, Any] | None:
    if names is None:
        return None
    if not isinstance(names, Mapping) or not names:
        raise InputTypeError(f"class_names is {names!r}; a mapping is needed, e.g. class_names={{1: 'mitochondria'}}")
    if mode == "ids" and classes is None:
        raise InputError("class_names needs classes: pass classes=(classes of reference, classes of prediction)")
    if len({str(name) for name in names.values()}) < len(names):
        raise InputError(f"class_names gives one name to several classes: {list(names.values())}; names must differ")
    return names


def _check_unused(**arguments: Any) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise InputError(f'{given[0]} is about instances, but instances=None; pass instances="components" (or "ids")')


def _check_on_device(**arguments: Any) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise InputTypeError(
            f"{given[0]} goes back to the voxels, which only the CPU does, and the arrays are on a CUDA device; pass "
            f"cupy.asnumpy(...) of them and no device='cuda', or leave out {given[0]}"
        )


def _check_thresholds(thresholds: Any) -> tuple[float, ...]:
    need = "numbers from 0 to 1 are needed, e.g. iou_thresholds=(0.5, 0.75)"
    try:
        values = tuple(float(value) for value in np.atleast_1d(thresholds).tolist())
    except (TypeError, ValueError):
        raise InputTypeError(f"iou_thresholds is {thresholds!r}; {need}") from None
    if not values or not all(0 <= value <= 1 for value in values):
        raise InputError(f"iou_thresholds is {thresholds!r}; {need}")
    if len({f"{value:g}" for value in values}) < len(values):
        raise InputError(f"iou_thresholds is {thresholds!r}; each may be given once")
    return values


def _check_scores(scores: Any) -> Scores | None:
    """Return sorted ids and the score of each."""
    if scores is None:
        return None
    need = "scores are {id of prediction: score}, or rows (id, score)"
    try:
        pairs = scores.items() if isinstance(scores, Mapping) else scores
        # Ids may come as the whole numbers of a float array.
        rows = [(int(i) if float(i).is_integer() else operator.index(i), float(value)) for i, value in pairs]
    except (TypeError, ValueError):
        raise InputTypeError(f"scores cannot be read; {need}") from None
    if not all(0 < i <= MAX_ID and math.isfinite(value) for i, value in rows):
        i, value = next(row for row in rows if not (0 < row[0] <= MAX_ID and math.isfinite(row[1])))
        raise InputError(f"scores has {value} for the id {i}; finite scores of ids from 1 to 2**63 - 1 are needed")
    rows.sort()
    ids = np.array([i for i, _ in rows], np.int64)
    twice = ids[1:][ids[1:] == ids[:-1]]
    if twice.size:
        raise InputError(
            f"scores has more than one score for {len(twice)} id(s): {list_some(twice)}; one each is needed"
        )
    return ids, np.array([value for _, value in rows], np.float64)


def _check_scored(scores: Scores | None, overlaps: Overlaps) -> None:
    """Refuse scores that lack one of a predicted id."""
    if scores is None:
        return
    ids = np.unique(overlaps.pairs[:, 1])
    missing = np.setdiff1d(ids[ids > 0], scores[0], assume_unique=True)
    if missing.size:
        raise InputError(f"scores has none for {len(missing)} id(s) of prediction: {list_some(missing)}; add them")


def _check_strata(strata: Any) -> tuple[float, float] | None:
    if strata is None:
        return None
    need = "two sizes in voxels are needed, the smaller one first, e.g. size_strata=(5000, 15000)"
    try:
        small, large = (float(value) for value in strata)
    except (TypeError, ValueError):
        raise InputTypeError(f"size_strata is {strata!r}; {need}") from None
    if not 0 <= small <= large < math.inf:
        raise InputError(f"size_strata is {strata!r}; {need}")
    return small, large
