"""All stages of `propagate` on a volume in memory, or on a device.

Stages
------
1. *Census* of the seeds: ids become dense ranks in their order, so that all that follows works on uint32.
2. *Sections* between annotated slices, if seeds lie on such (`propagation.sections`).
3. *Geodesic*: what is left takes the label that is nearest along links (`propagation.geodesic`).
4. *Diffusion* of the labels' probabilities near their borders (`propagation.diffusion`), and *reattachment* of what it
   cut off (`propagation.reattachment`).
5. Components without a seed get fresh ids or are counted; ranks become ids.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import array_module, is_on_device
from ..arrays.checks import check_array
from ..arrays.components import find_components
from ..arrays.threads import run_all, split
from ..arrays.warn import warn
from ..errors import InputError, Keyword
from .census import (
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
from .diffusion import conductances, diffuse
from .geodesic import cut_links, link_voxels, spread
from .reattachment import clear_unseeded, reattach
from .rules import Rules, check_cost, fresh_ids, lone_note, steps_of_cost, sweeps_of_labels
from .sections import label_sections

__all__ = ["Job", "cost_steps", "run_stages", "say_nothing"]

logger = logging.getLogger("lpa3d")

Progress = Callable[[str, float], None]

DEVICE_VOXELS = 2**22
"""Voxels of a cost that a device works on at once, at 30 bytes each; fewer take longer to start than to do."""


def cost_steps(cost: Any, volume: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[np.uint16]:
    """Check `cost` and return it in fixed point, 16 for 1."""
    array = check_array(cost, "cost")
    if array.shape != shape:
        raise InputError(
            Keyword("cost"),
            f" has shape {array.shape} but ",
            Keyword("volume"),
            f" has shape {shape}; they must be the same",
        )
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


def say_nothing(stage: str, fraction: float) -> None:
    """Report no progress."""


@dataclass(frozen=True)
class Job:
    """The checked arguments of one call."""

    volume: npt.NDArray[Any]
    seeds: npt.NDArray[Any]
    cost: npt.NDArray[np.uint16] | None
    rules: Rules
    most: int
    """The largest id of the seeds."""
    dtype: np.dtype[Any]
    class_dtype: np.dtype[Any]

    def take(self, slices: npt.NDArray[np.int64]) -> Job:
        """Return the same job on some slices."""

        def cut(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
            part: npt.NDArray[Any] = array_module(array).empty((len(slices), *array.shape[1:]), dtype=array.dtype)
            for i, z in enumerate(slices.tolist()):
                part[i] = array[z]
            return part

        cost = None if self.cost is None else cut(self.cost)
        return replace(self, volume=cut(self.volume), seeds=cut(self.seeds), cost=cost)


def run_stages(
    job: Job, target: npt.NDArray[Any] | None, tell: Progress
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


def _settle_unseeded(
    job: Job, labels: npt.NDArray[np.uint32], known: int, beyond: npt.NDArray[Any] | None
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
            warn(*lone_note(count, int(xp.count_nonzero(rest))))
        count = 0
    ids = fresh_ids(count, job.most)
    if count:
        numbers = xp.where(lone, known + xp.cumsum(lone, dtype=np.int64), 0).astype(np.uint32)
        # Runs are written beyond their ends, so not into what is labelled.
        fresh = xp.zeros(labels.shape, dtype=np.uint32)
        components.write_labels(fresh, clear=False, values=numbers)
        labels += fresh
    return np.arange(ids.start, ids.stop, dtype=np.int64)
