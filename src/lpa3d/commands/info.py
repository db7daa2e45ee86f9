"""The command ``lpa3d info``: what a file holds."""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.text import format_bytes
from ..files.volume import Volume
from .counts import count_values
from .inputs import format_count, format_share, format_sizes
from .job import Job

__all__ = ["add_info_arguments", "run_info"]

Array = npt.NDArray[Any]


# -------------------------------------------------------------------------------------------------------------- info


def add_info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="FILE", help="any file or zarr folder that lpa3d reads")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run_info(job: Job) -> None:
    source = job.open(job.args.input)
    job.terminal.step(f"reading {source.name}", "read")
    spacing = source.geometry.spacing
    facts: dict[str, Any] = {
        "file": source.name,
        "format": source.format,
        "shape": list(source.shape),
        "axes": "".join(source.view.named if source.view is not None else ()) or "zyx"[-len(source.shape) :],
        "stored": source.view.describe() if source.view is not None else "",
        "dtype": str(source.dtype),
        "spacing": list(spacing) if spacing else None,
        "unit": source.geometry.unit or None,
        "chunks": list(source.chunks) if source.chunks else None,
        "compression": source.compression or None,
        "bytes": math.prod(source.shape) * source.dtype.itemsize,
    }
    facts |= _info_values(job, source)
    job.results.append((json.dumps(facts) if job.args.json else _info_text(facts)) + "\n")


LISTED = 16
"""Most values of a class map that `info` lists one by one."""


def _info_values(job: Job, source: Volume) -> dict[str, Any]:
    """Return what the voxels hold: extremes of an image, ids of labels."""
    if source.dtype.kind not in "buif" or not math.prod(source.shape):
        return {}
    boxes, fill = source.parts()
    held = [math.prod(side.stop - side.start for side in box) for box in boxes]
    rest = math.prod(source.shape) - sum(held)
    one = np.full(1, fill, source.dtype)

    def slabs() -> Iterator[tuple[int, int, Array]]:
        for done, box in zip(itertools.accumulate(held), boxes, strict=True):
            part = source.read_box(box)
            yield 0, len(part), part
            job.progress(done / sum(held))

    if source.dtype.kind == "f":
        low, high, foreground, whole = math.inf, -math.inf, max(rest - 1, 0) * int(one[0] != 0), True
        for _, _, slab in itertools.chain([(0, 1, one)] if rest else [], slabs()):
            low, high = min(low, float(np.nanmin(slab))), max(high, float(np.nanmax(slab)))
            foreground += int(np.count_nonzero(slab))
            whole = whole and bool(np.array_equal(np.rint(slab), slab))
        return {"smallest": low, "largest": high, "foreground_voxels": foreground, "whole_numbers": whole}
    values, counts = count_values(slabs(), (one[: min(rest, 1)], rest))
    inside = values != 0
    facts: dict[str, Any] = {
        "smallest": int(values[0]),
        "largest": int(values[-1]),
        "foreground_voxels": int(counts[inside].sum()),
        "labels": int(np.count_nonzero(inside)),
    }
    if len(values) <= LISTED:
        facts["voxels"] = {str(int(value)): int(count) for value, count in zip(values, counts, strict=True)}
    return facts


def _info_text(facts: dict[str, Any]) -> str:
    """Return the facts as lines for a person."""
    total = math.prod(facts["shape"])
    size = f"{total:,} voxels, {format_bytes(facts['bytes'])} in memory"
    lines = {
        "file": facts["file"],
        "format": ", ".join(text for text in (facts["format"], facts["compression"]) if text),
        "shape": f"{' '.join(map(str, facts['shape']))} ({' '.join(facts['axes'])}), {size}",
        "axes": facts["stored"],
        "dtype": facts["dtype"] + (", whole numbers only" if facts.get("whole_numbers") else ""),
        "spacing": " ".join([format_sizes(facts["spacing"]), facts["unit"] or ""])
        if facts["spacing"]
        else "not in the file",
        "chunks": " ".join(map(str, facts["chunks"])) if facts["chunks"] else "none",
    }
    if "smallest" in facts:
        lines["values"] = f"{facts['smallest']:,} to {facts['largest']:,}"
        lines["not 0"] = format_share(facts["foreground_voxels"], total)
    if "labels" in facts:
        lines["labels"] = f"{format_count(facts['labels'], 'different id')} besides 0"
    for value, count in facts.get("voxels", {}).items():
        lines[f"  {value}"] = format_share(count, total)
    return "\n".join(f"{key + ':':<12} {text}".rstrip() for key, text in lines.items() if text)
