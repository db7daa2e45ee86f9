"""The asv suite of tiled runs: time and peak memory of each verb on zarr arrays, and what the driver itself costs.

Volumes are those of `benchmarks.py`, in chunks of 64 cubed; tiles are 128 cubed. They need zarr.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import lpa3d
from lpa3d import phantom

from .compare import EVERY, corrupt, cut_slices, draw_missing, keep_slices, renumber, tile, tile_instances
from .tiled import create_store, pass_by

SIDES = [128, 256, 512]
COPY = 128
CHUNK = 64
TILE = 128


class Stored:
    """What the benchmarks of all verbs share: stores that are made once, and a place for the result."""

    params = SIDES
    param_names = ("side",)
    timeout = 600
    number = 1
    repeat = (2, 5, 20.0)
    # One call before the timed ones: it loads the kernels, or compiles them.
    warmup_time = 1e-9

    verb: str
    needs: dict[str, str]
    options: ClassVar[Mapping[str, Any]] = {}
    place: str | None = "result{}.zarr"

    def setup_cache(self) -> None:
        for side in self.params:
            cell = phantom.cell((min(side, COPY),) * 3)
            classes, instances = tile(cell.classes, side), tile_instances(cell.instances, side)
            predictions = corrupt(renumber(instances))
            slices = cut_slices(instances)
            slices[draw_missing(side, 0)] = 0
            arrays = {
                "classes": classes,
                "instances": instances,
                "seeds": keep_slices(instances, EVERY),
                "predictions": predictions,
                "slices": slices,
            }
            for name, array in arrays.items():
                create_store(f"{name}{side}.zarr", array.shape, array.dtype, CHUNK)[...] = array

    def setup(self, side: int) -> None:
        try:
            import zarr  # noqa: F401
        except ImportError:
            raise NotImplementedError("zarr is not installed") from None
        self.stores = {role: f"{name}{side}.zarr" for role, name in self.needs.items()}
        self.folder = Path("results").resolve()
        self.calls = 0

    def teardown(self, side: int) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self) -> None:
        self.calls += 1
        place = {} if self.place is None else {"out": str(self.folder / self.place.format(self.calls))}
        getattr(lpa3d, self.verb)(**self.stores, **self.options, **place, tile=TILE)

    def time_tiled(self, side: int) -> None:
        self.call()

    def peakmem_tiled(self, side: int) -> None:
        self.call()


class TiledLabel(Stored):
    verb, needs, options = "label", {"volume": "classes"}, {"connectivity": 26}


class TiledPropagate(Stored):
    verb, needs = "propagate", {"volume": "classes", "seeds": "seeds"}


class TiledGeodesic(TiledPropagate):
    needs, options = TiledPropagate.needs, {"slice_axis": None, "sweeps": 0}


class TiledMerge(Stored):
    verb, needs, options = "merge", {"labels": "instances"}, {"min_contact": 0.1}


class TiledContacts(Stored):
    verb, needs, place = "contacts", {"labels": "instances"}, None


class TiledEvaluate(Stored):
    verb, needs, place = "evaluate", {"reference": "instances", "prediction": "predictions"}, None


class TiledStitch(Stored):
    verb, needs = "stitch", {"slices": "slices", "classes": "classes"}


class TiledFuse(Stored):
    verb, needs = "fuse", {"classes": "classes", "instances": "seeds", "slices": "predictions"}
    # A folder: there are three results.
    place = "result{}"


class Driver:
    """A stub for each of many tiles, by threads."""

    params = (10**3, 10**5)
    param_names = ("tiles",)
    timeout = 600
    number = 1
    repeat = 3

    def setup(self, tiles: int) -> None:
        try:
            import zarr  # noqa: F401
        except ImportError:
            raise NotImplementedError("zarr is not installed") from None
        from lpa3d.tiled.driver.stored import open_source

        create_store("empty.zarr", (10, 10, tiles // 100), np.uint8, tiles)
        self.source = open_source("empty.zarr", "volume")

    def teardown(self, tiles: int) -> None:
        shutil.rmtree("empty.zarr")

    def map_stub(self) -> None:
        from lpa3d.tiled.driver.run import Options, open_run
        from lpa3d.tiled.driver.stages import Stage

        how = {"stages": [Stage("stub")], "bytes_per_voxel": 1}
        with open_run("stub", {"volume": self.source}, {}, {}, Options(tile=1), **how) as run:
            run.map("stub", pass_by, None)

    def time_map(self, tiles: int) -> None:
        self.map_stub()

    def peakmem_map(self, tiles: int) -> None:
        self.map_stub()
