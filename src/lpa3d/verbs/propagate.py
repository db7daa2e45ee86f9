"""The verb `propagate`: mixed, partial labels become complete instances.

Stages
------
1. *Census* of the seeds: ids become dense ranks in their order, so that all that follows works on uint32.
2. *Sections* between annotated slices, if seeds lie on such (`_sections`).
3. *Geodesic*: what is left takes the label that is nearest along links (`_geodesic`).
4. *Diffusion* of the labels' probabilities near their borders (`_diffuse`), and *reattachment* of what it cut off
   (`_reattach`).
5. Components without a seed get fresh ids or are counted; ranks become ids.
"""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import array_module, is_on_device
from ..arrays.checks import (
    MAX_ID,
    canonical_connectivity,
    canonical_out,
    canonical_spacing,
    check_array,
    class_map,
    instance_ids,
    max_id,
    same_shape,
)
from ..arrays.neighbors import UNIT, step_weights
from ..arrays.threads import run_all, split
from ..arrays.warn import warn
from ..errors import InputError, InputTypeError
from ..propagation.census import (
    annotated_slices,
    any_unlabelled,
    apply_ids,
    count_mask,
    count_seeds,
    list_beyond,
    rank_labels,
    rank_table,
    restrict_seeds,
    select,
    take_census,
)
from ..propagation.diffusion import conductances, diffuse
from ..propagation.geodesic import cut_links, link_voxels, spread
from ..propagation.reattachment import clear_unseeded, reattach
from ..propagation.sections import label_sections
from .dispatch import accepts_stored
from .label import find_components

__all__ = [
    "Rules",
    "check_cost",
    "check_rules",
    "fresh_ids",
    "lone_note",
    "missing_note",
    "propagate",
    "result_dtype",
    "steps_of_cost",
    "sweeps_of_labels",
]

SWEEPS_SECTIONS = 8
SWEEPS = 32
"""Sweeps of a class that the sections stage drew, and of one that it did not. Drawn borders are smooth: on vesicles
4, 8 and 16 sweeps give an adapted Rand error of .046, .044 and .044, on trees more is better."""

MOST_COST = 4095
MOST_SWEEPS = 10_000
COST_UNIT = 16
MOST_Q = 65535

DEVICE_VOXELS = 2**22
"""Voxels of a cost that a device works on at once, at 30 bytes each; fewer take longer to start than to do."""

logger = logging.getLogger("lpa3d")

Progress = Callable[[str, float], None]


def steps_of_cost(values: npt.NDArray[Any], steps: npt.NDArray[np.uint16]) -> tuple[float, float]:
    """Write a cost in fixed point, 16 for 1; return its smallest and largest value for `check_cost`."""
    if not values.size:
        return 1.0, 1.0
    xp = array_module(values)
    values = values.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if math.isfinite(low) and math.isfinite(high):
        steps[...] = xp.clip(xp.rint(values * COST_UNIT), 1, MOST_Q)
    return low, high


def check_cost(ranges: Iterable[tuple[float, float]]) -> None:
    """Refuse a cost whose parts have the smallest and largest values `ranges`."""
    low, high = 0.0, 0.0
    for smallest, largest in ranges:
        if not (math.isfinite(smallest) and math.isfinite(largest)):
            raise InputError("cost holds NaN or infinite values; pass numpy.nan_to_num(cost) or mend them")
        low, high = min(low, smallest), max(high, largest)
    if low < 0 or high > MOST_COST:
        raise InputError(
            f"cost holds values from {low:g} to {high:g}; 0 to {MOST_COST} are possible, and 1 leaves a step at its "
            "length"
        )


def _cost_steps(cost: Any, volume: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
    """Check `cost` and return it in fixed point, 16 for 1."""
    array = check_array(cost, "cost")
    if array.shape != shape:
        raise InputError(f"cost has shape {array.shape} but volume has shape {shape}; they must be the same")
    array = array.reshape(volume.shape)
    steps: npt.NDArray[np.uint16] = array_module(volume).empty(volume.shape, dtype=np.uint16)
    depth = volume.shape[0]
    if is_on_device(volume):
        # On this thread: another one has another stream, and perhaps another GPU.
        parts = split(depth, volume.size // DEVICE_VOXELS)
        check_cost([steps_of_cost(array[lo:hi], steps[lo:hi]) for lo, hi in parts])
    else:
        check_cost(run_all(lambda z: steps_of_cost(array[z], steps[z]), range(depth)))
    return steps


def _axes(slice_axis: Any, ndim: int) -> tuple[int, ...]:
    """Check `slice_axis` and return the axes of (Z, Y, X) that annotated slices may lie across."""
    if slice_axis is None:
        return ()
    if isinstance(slice_axis, str) and slice_axis == "auto":
        return (0, 1, 2)
    try:
        axis = operator.index(slice_axis)
    except TypeError:
        axis = ndim
    if not -ndim <= axis < ndim:
        raise InputError(f"slice_axis is {slice_axis!r}; 'auto', None or an axis from 0 to {ndim - 1} is needed")
    return (axis % ndim + 3 - ndim,)


def _missing(missing_slices: Any, depth: int, ndim: int) -> list[int]:
    """Check `missing_slices` and return the slices, ascending."""
    try:
        slices = sorted({operator.index(z) for z in missing_slices})
    except TypeError:
        raise InputTypeError(
            f"missing_slices is {missing_slices!r}; positions along z are needed, e.g. missing_slices=[7, 31]"
        ) from None
    if slices and ndim == 2:
        raise InputError("missing_slices needs a volume (Z, Y, X); this array is one slice")
    if slices and not 0 <= slices[0] <= slices[-1] < depth:
        raise InputError(f"missing_slices holds {slices[0]} to {slices[-1]}; the volume has slices 0 to {depth - 1}")
    return slices


def _choice(value: Any, name: str, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name} is {value!r}; one of {', '.join(map(repr, choices))} is needed")


@dataclass(frozen=True)
class Rules:
    """What a call asks for, checked: all its options but those that are arrays."""

    connectivity: int
    spacing: tuple[float, float, float]
    weights: npt.NDArray[np.int64]
    """The weight of each step to a neighbour."""
    axes: tuple[int, ...]
    """Those that annotated slices may lie across."""
    missing: list[int]
    """Missing slices, ascending."""
    sweeps: int | None
    limit: int | None
    """The largest path weight of `max_distance`."""
    fresh_ids: bool
    seed_conflicts: str
    return_confidence: bool


def check_rules(
    shape: tuple[int, ...],
    *,
    connectivity: Any,
    spacing: Any,
    max_distance: Any,
    sweeps: Any,
    slice_axis: Any,
    missing_slices: Any,
    unseeded: Any,
    seed_conflicts: Any,
    return_confidence: Any,
) -> Rules:
    """Check the options of `propagate` for a volume of `shape`, two or three sides."""
    neighbors = canonical_connectivity(connectivity)
    sides = canonical_spacing(spacing, len(shape))
    weights = step_weights(neighbors, sides)
    axes = _axes(slice_axis, len(shape))
    missing = _missing(missing_slices, shape[0], len(shape))
    _choice(unseeded, "unseeded", ("drop", "label"))
    _choice(seed_conflicts, "seed_conflicts", ("raise", "majority"))
    if sweeps is not None and not (_is_index(sweeps) and 0 <= sweeps <= MOST_SWEEPS):
        raise InputError(f"sweeps is {sweeps!r}; a whole number from 0 to {MOST_SWEEPS} is needed")
    if return_confidence and sweeps == 0:
        raise InputError("confidence comes from diffusion, but sweeps is 0; leave sweeps out, or return_confidence")
    limit = None
    if max_distance is not None:
        if not (isinstance(max_distance, int | float | np.number) and max_distance >= 0):
            raise InputError(f"max_distance is {max_distance!r}; a length >= 0 in the unit of spacing is needed")
        reach = float(max_distance) / min(sides) * UNIT
        limit = None if math.isinf(reach) else int(reach)
    return Rules(
        neighbors, sides, weights, axes, missing, None if sweeps is None else int(sweeps), limit, unseeded == "label",
        seed_conflicts, bool(return_confidence),
    )  # fmt: skip


def result_dtype(dtype: np.dtype[Any], most: int) -> np.dtype[Any]:
    """Return the narrowest dtype of the same signedness, at least `dtype`, that holds `most`."""
    for size in (1, 2, 4, 8):
        wider = np.dtype(f"{dtype.kind}{size}")
        if size >= dtype.itemsize and np.iinfo(wider).max >= most:
            return wider
    return np.dtype(f"{dtype.kind}8")


@accepts_stored("propagate", "volume", "seeds", "cost")
def propagate(
    volume: Any,
    seeds: Any,
    *,
    connectivity: int = 6,
    spacing: Iterable[float] = (1, 1, 1),
    cost: Any = None,
    max_distance: float | None = None,
    sweeps: int | None = None,
    slice_axis: int | str | None = "auto",
    missing_slices: Iterable[int] = (),
    unseeded: str = "drop",
    seed_conflicts: str = "raise",
    return_confidence: bool = False,
    out: npt.NDArray[Any] | None = None,
    progress: Progress | None = None,
) -> Any:
    """Propagate partial instance labels through a class map to complete 3D instances.

    Labels travel only along links: from a voxel to a neighbour of the same non-zero class. Where seeds lie on
    annotated slices, the sections between them are drawn first, from how each object's section moves from slice to
    slice; what is left takes the nearest label along links, and borders are smoothed by diffusion. Every labelled
    voxel is linked to a seed of its label through voxels of that label, and no voxel that a seed can reach stays 0.

    Parameters
    ----------
    volume : ndarray of bool or any integer dtype, shape (Z, Y, X) or (Y, X)
        Class map, 0 is background. CuPy arrays are worked on by their device.
    seeds : ndarray of any integer dtype, shape as `volume`
        Instance ids, 0 is unlabelled (not background), at most 2**63 - 1. Seeds on the background are dropped with a
        warning; seeds on the mask keep their label.
    connectivity : {6, 18, 26}, default 6
        Which voxels are neighbours; 1, 2 and 3 name the same. More than 6 leak through thin walls.
    spacing : (z, y, x), default (1, 1, 1)
        Voxel size, in any unit; two values do for a 2D array.
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
        Array for the result: `volume`'s shape, the result's dtype, C-contiguous, not sharing memory with an input.
    progress : callable, optional
        Called as ``progress(stage, fraction)`` before each stage.

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
    # 0. The door.
    shape = check_array(volume, "volume").shape
    class_dtype = volume.dtype
    same_shape(check_array(seeds, "seeds"), "seeds", check_array(volume, "volume"), "volume")
    rules = check_rules(
        shape, connectivity=connectivity, spacing=spacing, max_distance=max_distance, sweeps=sweeps,
        slice_axis=slice_axis, missing_slices=missing_slices, unseeded=unseeded, seed_conflicts=seed_conflicts,
        return_confidence=return_confidence,
    )  # fmt: skip
    classes = class_map(volume)
    given = instance_ids(seeds, "seeds")
    most = max_id(given)
    dtype = result_dtype(given.dtype, most + given.size) if rules.fresh_ids else given.dtype
    target = canonical_out(out, shape, dtype, (volume, seeds, cost))
    steps = None if cost is None else _cost_steps(cost, classes, shape)
    tell = progress if progress is not None else _say_nothing

    job = _Job(classes, given, steps, rules, most, dtype, class_dtype)
    if rules.missing:
        # Without the missing slices their neighbours are neighbours, in every stage.
        xp = array_module(classes)
        present = np.setdiff1d(np.arange(shape[0]), rules.missing)
        lost = sum(int(xp.count_nonzero(given[z])) for z in rules.missing)
        if lost:
            warn(missing_note(lost))
        slices, lead = _run(job.take(present), None, tell)
        result = xp.empty(shape, dtype) if target is None else target
        confidence = None if lead is None else xp.zeros(shape, np.uint16)
        for z in rules.missing:
            result[z] = 0
        for i, z in enumerate(present.tolist()):
            result[z] = slices[i]
            if lead is not None and confidence is not None:
                confidence[z] = lead[i]
    else:
        result, confidence = _run(job, target, tell)
    result = out if out is not None else result.reshape(shape)
    return result if confidence is None else (result, confidence.reshape(shape))


def missing_note(lost: int) -> str:
    """Return what the caller is told of seeds on missing slices."""
    return f"{lost} seed voxels lie on missing_slices and were dropped"


def _is_index(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _say_nothing(stage: str, fraction: float) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class _Job:
    """The checked arguments of one call."""

    volume: npt.NDArray[Any]
    seeds: npt.NDArray[Any]
    cost: npt.NDArray[np.uint16] | None
    rules: Rules
    most: int
    """The largest id of the seeds."""
    dtype: np.dtype[Any]
    class_dtype: np.dtype[Any]

    def take(self, slices: npt.NDArray[np.int64]) -> _Job:
        """Return the same job on some slices."""

        def cut(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
            part: npt.NDArray[Any] = array_module(array).empty((len(slices), *array.shape[1:]), dtype=array.dtype)
            for i, z in enumerate(slices.tolist()):
                part[i] = array[z]
            return part

        cost = None if self.cost is None else cut(self.cost)
        return replace(self, volume=cut(self.volume), seeds=cut(self.seeds), cost=cost)


def _run(
    job: _Job, target: npt.NDArray[Any] | None, tell: Progress
) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint16] | None]:
    """Run the stages; return the labels, in `target` if that is given, and the confidence if asked for."""
    volume, seeds, rules, xp = job.volume, job.seeds, job.rules, array_module(job.volume)
    tell("seeds", 0.0)
    census = take_census(volume, seeds, rules.seed_conflicts, job.class_dtype)
    for note in census.notes:
        warn(note)
    if target is None:
        target = xp.zeros(volume.shape, dtype=job.dtype)
    else:
        target[...] = 0
    # Ranks are worked on where the result will stand, if they fit there.
    labels = target.view(np.uint32) if job.dtype.itemsize == 4 else xp.zeros(volume.shape, dtype=np.uint32)
    ranks = rank_table(census.ids, census.classes, np.arange(1, len(census.ids) + 1))
    rank_labels(volume, seeds, ranks, labels)
    del ranks
    if census.dropped:
        seeds = seeds.copy()
        restrict_seeds(labels, seeds)

    links = link_voxels(volume, rules.connectivity)
    seeded = census.seeded
    beyond = None
    if rules.limit is not None:
        tell("reached set", 0.1)
        reached = labels.copy()
        spread(reached, links, rules.weights, rules.connectivity, cost=job.cost, limit=rules.limit)
        beyond = list_beyond(volume, reached, links, rules.connectivity)
        cut_links(links, reached, rules.connectivity)
        # From here on what was not reached is background.
        volume = select(volume, reached, labelled=True)
        del reached
        if census.dropped:
            # Seeds that a majority dropped may lie on what was not reached.
            seeded = count_seeds(volume, job.seeds).seeded
    drawn = np.zeros(len(census.ids) + 1, dtype=bool)
    planar = annotated_slices(seeded, count_mask(volume), rules.axes) if rules.axes else None
    if planar is not None:
        tell("sections", 0.1)
        axis, annotated = planar
        logger.info("%d annotated slices across axis %d", len(annotated), axis)
        class_of = census.class_of(volume.dtype)
        drawn = label_sections(volume, labels, class_of, axis, annotated, rules.spacing)
        if drawn.any():
            clear_unseeded(labels, seeds, rules.connectivity)
    tell("geodesic", 0.3)
    spread(labels, links, rules.weights, rules.connectivity, cost=job.cost)

    confidence = None
    if rules.sweeps != 0:
        tell("diffusion", 0.5)
        confidence = diffuse(
            labels, links, seeds, conductances(rules.weights), rules.connectivity, sweeps_of_labels(drawn, rules),
            cost=job.cost, return_confidence=rules.return_confidence,
        )  # fmt: skip
        tell("reattachment", 0.9)
        reattach(labels, links, seeds, rules.weights, rules.connectivity, cost=job.cost, confidence=confidence)
    del links

    tell("ids", 0.95)
    ids = census.ids
    if any_unlabelled(job.volume, labels):
        ids = np.concatenate([ids, _settle_unseeded(job, labels, len(ids), beyond)])
    if confidence is not None:
        confidence[labels == 0] = 0
        confidence[labels > len(census.ids)] = 65535
    apply_ids(labels, np.concatenate([[0], ids]).astype(job.dtype), target)
    return target, confidence


def sweeps_of_labels(drawn: npt.NDArray[np.bool_], rules: Rules) -> npt.NDArray[np.int64]:
    """Return the sweeps of diffusion for each label, given whether the sections of its class were drawn."""
    if rules.sweeps is not None:
        return np.full(len(drawn), rules.sweeps, dtype=np.int64)
    return np.where(drawn, SWEEPS_SECTIONS, SWEEPS).astype(np.int64)


def _settle_unseeded(
    job: _Job, labels: npt.NDArray[np.uint32], known: int, beyond: npt.NDArray[Any] | None
) -> npt.NDArray[np.int64]:
    """Label the components without a seed and return their ids, or warn of them and return none.

    What `beyond` marks is linked to a component with a seed, too far from it.
    """
    rest = select(job.volume, labels, labelled=False)
    components = find_components(rest, job.rules.connectivity)
    xp = array_module(labels)
    lone = xp.ones(components.count, dtype=np.bool_)
    if beyond is not None:
        lone &= ~components.hold_seed(rest, beyond)
    count = int(lone.sum())
    if not job.rules.fresh_ids:
        if count:
            components.clear(rest, lone)
            warn(lone_note(count, int(xp.count_nonzero(rest))))
        count = 0
    ids = fresh_ids(count, job.most)
    if count:
        numbers = xp.where(lone, known + xp.cumsum(lone, dtype=np.int64), 0).astype(np.uint32)
        # Runs are written beyond their ends, so not into what is labelled.
        fresh = xp.zeros(labels.shape, dtype=np.uint32)
        components.write_labels(fresh, clear=False, values=numbers)
        labels += fresh
    return np.arange(ids.start, ids.stop, dtype=np.int64)


def lone_note(count: int, voxels: int) -> str:
    """Return what the caller is told of components without a seed."""
    return (
        f"{count} components ({voxels} voxels) hold no seed and stay 0; pass unseeded='label' to give them ids of "
        "their own"
    )


def fresh_ids(count: int, most: int) -> range:
    """Return the ids of `count` components without a seed, after the largest id, `most`."""
    if count > MAX_ID - most:
        raise InputError(f"{count} fresh ids after the largest id, {most}, do not fit below 2**63")
    return range(most + 1, most + 1 + count)
