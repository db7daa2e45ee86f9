"""The command ``lpa3d propagate``."""

from __future__ import annotations

import argparse

from ..files.writers import plan
from .counts import summarize
from .inputs import (
    add_connectivity,
    add_spacing,
    check_same_place,
    check_same_shape,
    find_spacing,
    parse_slice_axis,
    parse_slices,
)
from .job import Job
from .tiling import add_device, add_storage, add_tiling, find_tiling

__all__ = ["add_propagate_arguments", "run_propagate"]


# ---------------------------------------------------------------------------------------------------------- propagate


def add_propagate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", metavar="VOLUME", help="class map: bool or integers, 0 is background")
    parser.add_argument("seeds", metavar="SEEDS", help="instance ids of the same shape, 0 is unlabelled")
    parser.add_argument("out", metavar="OUT", help="labels, of the seeds' dtype")
    add_connectivity(parser)
    add_spacing(parser)
    parser.add_argument(
        "--cost", metavar="FILE", help="image >= 0 that makes distances longer, e.g. membrane probability"
    )
    parser.add_argument("--max-distance", type=float, metavar="D", help="farthest from a seed, in units of the spacing")
    parser.add_argument("--sweeps", type=int, metavar="N", help="rounds of diffusion that smooth borders; 0 for none")
    parser.add_argument(
        "--slice-axis",
        type=parse_slice_axis,
        default="auto",
        metavar="{auto,none,z,y,x}",
        help="axis across which slices were annotated; 0, 1, 2 are z, y, x (default auto: found from the seeds)",
    )
    parser.add_argument(
        "--missing-slices",
        type=parse_slices,
        default=(),
        metavar="LIST",
        help="slices that are empty in the class map and are bridged, e.g. 3,7,10-12",
    )
    parser.add_argument(
        "--unseeded",
        choices=("drop", "label"),
        default="drop",
        help="components without a seed: leave them 0, or give each a new id (default drop)",
    )
    parser.add_argument(
        "--seed-conflicts",
        choices=("raise", "majority"),
        default="raise",
        help="an id on two classes: stop, or keep its larger class (default raise)",
    )
    parser.add_argument("--confidence", metavar="FILE", help="also write how sure each label is, uint16")
    add_device(parser)
    add_storage(parser)
    add_tiling(parser)


def run_propagate(job: Job) -> None:
    args = job.args
    volume, seeds = job.open(args.volume), job.open(args.seeds)
    cost = job.open(args.cost) if args.cost else None
    volume.check_integers("a class map")
    seeds.check_integers("seeds")
    inputs = [file for file in (volume, seeds, cost) if file is not None]
    for file in inputs[1:]:
        check_same_shape(volume, file)
        check_same_place(job, volume, file)
    spacing, geometry = find_spacing(job, volume)
    paths = [file.path for file in inputs]
    tiling = find_tiling(job, "propagate", inputs, [args.out, args.confidence])
    outputs = tiling.outputs if tiling else job.outputs
    target = plan(outputs, args.out, volume.shape, paths, storage=job.storage)
    sureness = (
        plan(outputs, args.confidence, volume.shape, paths, storage=job.storage, image=True)
        if args.confidence
        else None
    )
    keywords = {
        "connectivity": args.connectivity,
        "spacing": spacing,
        "max_distance": args.max_distance,
        "sweeps": args.sweeps,
        "slice_axis": args.slice_axis,
        "missing_slices": args.missing_slices,
        "unseeded": args.unseeded,
        "seed_conflicts": args.seed_conflicts,
        "return_confidence": sureness is not None,
        "device": args.device,
    }
    if tiling:
        places = (args.out, args.confidence) if sureness else args.out
        result = tiling.run(
            "propagating", "propagated", volume, seeds, geometry=geometry, cost=cost, out=places, **keywords
        )
        if result is not None:
            tiling.finish(lambda: tiling.summarize(result[0] if sureness else result))
        return
    from lpa3d import propagate

    classes = job.read(volume, "a class map")
    ids = job.read(seeds, "seeds")
    costs = None if cost is None else job.read(cost, "a cost", floats=True)
    job.terminal.step("propagating", "propagated")
    result = propagate(classes, ids, cost=costs, progress=job.stage, **keywords)
    labels = result[0] if sureness else result
    job.write(target, labels, geometry)
    if sureness:
        job.write(sureness, result[1], geometry)
    job.finish(summarize(labels))
