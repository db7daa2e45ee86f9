"""The asv suite: time and peak memory of each verb at three sizes, and what the import and the first call cost.

Volumes are copies of one phantom cell of 128 cubed, side by side, so they differ in size alone; seeds are the instances
of every 16th slice, predictions are the instances with errors, slices are their components on each slice with shuffled
ids, a tenth of them missing in gaps. Neither data nor a peer is needed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import lpa3d
from lpa3d import phantom

from .compare import (
    EVERY,
    THRESHOLDS,
    corrupt,
    cut_slices,
    draw_missing,
    keep_slices,
    renumber,
    tile,
    tile_instances,
)

SIDES = [128, 256, 512]
TILE = 128

Array = np.ndarray[Any, Any]


class Verb:
    """What the benchmarks of all verbs share: files that are made once, and that each process reads before its call."""

    params = SIDES
    param_names = ("side",)
    timeout = 600
    number = 1
    repeat = (2, 5, 20.0)
    # One call before the timed ones: it loads the kernels, or compiles them.
    warmup_time = 1e-9

    needs: tuple[str, ...]

    def setup_cache(self) -> None:
        for side in self.params:
            cell = phantom.cell((min(side, TILE),) * 3)
            instances = tile_instances(cell.instances, side)
            np.save(f"classes{side}.npy", tile(cell.classes, side))
            np.save(f"instances{side}.npy", instances)
            np.save(f"seeds{side}.npy", keep_slices(instances, EVERY))
            predictions = corrupt(renumber(instances))
            np.save(f"predictions{side}.npy", predictions)
            np.save(f"found{side}.npy", tile(cell.classes, side) * (predictions > 0))
            slices = cut_slices(instances)
            np.save(f"slices{side}.npy", slices)
            slices[draw_missing(side, 0)] = 0
            np.save(f"gaps{side}.npy", slices)

    def setup(self, side: int) -> None:
        self.arrays = [np.load(f"{name}{side}.npy") for name in self.needs]


class Label(Verb):
    needs = ("classes",)

    def time_label_6(self, side: int) -> None:
        lpa3d.label(*self.arrays)

    def time_label_26(self, side: int) -> None:
        lpa3d.label(*self.arrays, connectivity=26)

    def peakmem_label_6(self, side: int) -> None:
        lpa3d.label(*self.arrays)


class Propagate(Verb):
    needs = ("classes", "seeds")

    def time_defaults(self, side: int) -> None:
        lpa3d.propagate(*self.arrays)

    def time_geodesic(self, side: int) -> None:
        lpa3d.propagate(*self.arrays, slice_axis=None, sweeps=0)

    def peakmem_defaults(self, side: int) -> None:
        lpa3d.propagate(*self.arrays)

    def peakmem_geodesic(self, side: int) -> None:
        lpa3d.propagate(*self.arrays, slice_axis=None, sweeps=0)


class Merge(Verb):
    needs = ("instances",)

    def time_merge(self, side: int) -> None:
        lpa3d.merge(*self.arrays, min_contact=0.1)

    def peakmem_merge(self, side: int) -> None:
        lpa3d.merge(*self.arrays, min_contact=0.1)


class Contacts(Verb):
    needs = ("instances",)

    def time_contacts_6(self, side: int) -> None:
        lpa3d.contacts(*self.arrays)

    def time_contacts_26(self, side: int) -> None:
        lpa3d.contacts(*self.arrays, connectivity=26)

    def peakmem_contacts_6(self, side: int) -> None:
        lpa3d.contacts(*self.arrays)


class Evaluate(Verb):
    needs = ("instances", "predictions")

    def time_evaluate(self, side: int) -> None:
        lpa3d.evaluate(*self.arrays)

    def time_evaluate_thresholds(self, side: int) -> None:
        lpa3d.evaluate(*self.arrays, iou_thresholds=THRESHOLDS)

    def peakmem_evaluate(self, side: int) -> None:
        lpa3d.evaluate(*self.arrays)


class EvaluateComponents(Verb):
    needs = ("classes", "found")

    def time_evaluate_components(self, side: int) -> None:
        lpa3d.evaluate(*self.arrays, instances="components")

    def peakmem_evaluate_components(self, side: int) -> None:
        lpa3d.evaluate(*self.arrays, instances="components")


class Stitch(Verb):
    needs = ("slices", "gaps", "classes")

    def time_stitch(self, side: int) -> None:
        lpa3d.stitch(self.arrays[0])

    def time_stitch_gaps(self, side: int) -> None:
        lpa3d.stitch(self.arrays[1])

    def time_stitch_classes(self, side: int) -> None:
        lpa3d.stitch(self.arrays[1], classes=self.arrays[2])

    def peakmem_stitch(self, side: int) -> None:
        lpa3d.stitch(self.arrays[0])

    def peakmem_stitch_gaps(self, side: int) -> None:
        lpa3d.stitch(self.arrays[1])


class Fuse(Verb):
    needs = ("classes", "seeds", "predictions")

    def time_fuse(self, side: int) -> None:
        lpa3d.fuse(classes=self.arrays[0], instances=self.arrays[1], slices=self.arrays[2])

    def peakmem_fuse(self, side: int) -> None:
        lpa3d.fuse(classes=self.arrays[0], instances=self.arrays[1], slices=self.arrays[2])


class Import:
    number = 1
    repeat = 5

    def timeraw_import(self) -> str:
        return "import lpa3d"

    def timeraw_import_verbs(self) -> str:
        return "from lpa3d import contacts, evaluate, fuse, label, merge, propagate, stitch"


VOLUMES = f"""
import os, tempfile
{{cache}}
import numpy as np
from lpa3d import phantom
cell = phantom.cell((32, 64, 64))
classes, instances, seeds = cell.classes, cell.instances, np.zeros_like(cell.instances)
seeds[::{EVERY}] = instances[::{EVERY}]
"""
FRESH = """
import atexit
folder = tempfile.TemporaryDirectory()
atexit.register(folder.cleanup)
os.environ["NUMBA_CACHE_DIR"] = folder.name
"""
CALLS = {
    "label": "lpa3d.label(classes)",
    "propagate": "lpa3d.propagate(classes, seeds)",
    "merge": "lpa3d.merge(instances)",
    "contacts": "lpa3d.contacts(instances)",
    "evaluate": "lpa3d.evaluate(instances, seeds)",
    "stitch": "lpa3d.stitch(instances)",
    "fuse": "lpa3d.fuse(classes=classes, instances=seeds, slices=instances)",
}


class FirstCall:
    """A verb's first call in a fresh process, import included: kernels are compiled, or come from the cache."""

    params = (list(CALLS), ["cold", "warm"])
    param_names = ("verb", "kernel cache")
    timeout = 300
    number = 1
    repeat = 2
    warmup_time = 0

    def setup(self, verb: str, cache: str) -> None:
        self.folder = Path("kernels").resolve()
        if cache == "warm":
            environment = os.environ | {"NUMBA_CACHE_DIR": str(self.folder)}
            code = VOLUMES.format(cache="") + f"import lpa3d; {CALLS[verb]}"
            subprocess.run([sys.executable, "-c", code], env=environment, check=True)

    def timeraw_first_call(self, verb: str, cache: str) -> tuple[str, str]:
        chosen = FRESH if cache == "cold" else f"os.environ['NUMBA_CACHE_DIR'] = {str(self.folder)!r}"
        return f"import lpa3d; {CALLS[verb]}", VOLUMES.format(cache=chosen)
