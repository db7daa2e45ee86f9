"""The command ``lpa3d label``."""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np

from ..files.volume import Volume
from ..files.writers import plan
from .inputs import add_connectivity, format_count, format_share
from .job import Job
from .tiling import Tiling, add_device, add_storage, add_tiling, find_tiling

__all__ = ["add_label_arguments", "run_label"]


# ------------------------------------------------------------------------------------------------------------- label


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("volume", metavar="IN", help="class map: bool or integers, 0 is background")
    parser.add_argument("out", metavar="OUT", help="labels: uint32, or uint64 from 2**32 voxels on")
    add_connectivity(parser)
    add_device(parser)
    add_storage(parser)
    add_tiling(parser)


def run_label(job: Job) -> None:
    source = job.open(job.args.volume)
    source.check_integers("a class map")
    keywords = {"connectivity": job.args.connectivity, "device": job.args.device}
    tiling = find_tiling(job, "label", [source], [job.args.out])
    outputs = tiling.outputs if tiling else job.outputs
    target = plan(outputs, job.args.out, source.shape, [source.path], storage=job.storage)
    if tiling:
        _label_tiles(job, tiling, source, keywords)
        return
    volume = job.read(source, "a class map")
    from lpa3d import label

    job.terminal.step("labelling", "labelled")
    labels = label(volume, **keywords)
    job.write(target, labels, source.geometry)
    count = int(labels.max()) if labels.size else 0
    voxels = int(np.count_nonzero(labels))
    job.finish(f"{format_count(count, 'component')}, {format_share(voxels, labels.size)} labelled")


def _label_tiles(job: Job, tiling: Tiling, source: Volume, keywords: dict[str, Any]) -> None:
    labels = tiling.run("labelling", "labelled", source, geometry=source.geometry, out=job.args.out, **keywords)

    def describe() -> str:
        count, voxels = tiling.count_numbered(labels)
        return f"{format_count(count, 'component')}, {format_share(voxels, math.prod(source.shape))} labelled"

    if labels is not None:
        tiling.finish(describe)
