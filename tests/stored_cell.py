"""A small cell in zarr arrays, and a call of every verb on it; shared by tests of tiled runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import lpa3d

TILE = 16


def store_cell(folder: Path) -> dict[str, Path]:
    """Store a small cell below `folder`: class map, sparse instance labels, instances slice by slice."""
    rng = np.random.default_rng(4)
    coarse = rng.random((6, 8, 8)).repeat(6, 0).repeat(5, 1).repeat(5, 2)
    volume = (coarse > 0.35).astype(np.uint8) + (coarse > 0.8).astype(np.uint8)
    labels = lpa3d.label(volume, connectivity=6)
    blocks = np.add.outer(np.add.outer(np.arange(36) // 12 * 100, np.arange(40) // 20 * 10), np.arange(40) // 20)
    instances = np.where(labels > 0, labels.astype(np.int64) * 1000 + blocks, 0)
    seeds = np.zeros_like(instances)
    seeds[4::8] = instances[4::8]
    slices = np.zeros_like(instances)
    for z in range(36):
        ids = np.unique(instances[z])
        slices[z] = np.concatenate([[0], 1 + rng.permutation(len(ids) - 1)])[np.searchsorted(ids, instances[z])]
    found = {}
    for name, array in {"volume": volume, "seeds": seeds, "instances": instances, "slices": slices}.items():
        found[name] = folder / f"{name}.zarr"
        zarr.create_array(str(found[name]), shape=array.shape, dtype=array.dtype, chunks=(9, 16, 11))[:] = array
    return found


def label(inputs: dict[str, Path], out: Path) -> Any:
    lpa3d.label(inputs["volume"], connectivity=26, out=out / "labels.zarr", tile=TILE)


def propagate(inputs: dict[str, Path], out: Path) -> Any:
    lpa3d.propagate(inputs["volume"], inputs["seeds"], sweeps=3, out=out / "labels.zarr", tile=TILE)


def merge(inputs: dict[str, Path], out: Path) -> Any:
    lpa3d.merge(inputs["instances"], min_contact=0.2, out=out / "labels.zarr", tile=TILE)


def stitch(inputs: dict[str, Path], out: Path) -> Any:
    lpa3d.stitch(inputs["slices"], classes=inputs["volume"], out=out / "labels.zarr", tile=TILE)


def fuse(inputs: dict[str, Path], out: Path) -> Any:
    names = {name: out / f"{name}.zarr" for name in ("volume", "seeds", "provenance")}
    lpa3d.fuse(classes=inputs["volume"], instances=inputs["seeds"], slices=inputs["instances"], out=names, tile=TILE)


def evaluate(inputs: dict[str, Path], out: Path) -> Any:
    e = lpa3d.evaluate(inputs["instances"], inputs["seeds"], scratch=out / "run", tile=TILE)
    zarr.create_array(str(out / "f1.zarr"), shape=(1,), dtype="f8", overwrite=True)[:] = e["f1"]


VERBS: list[Callable[[dict[str, Path], Path], Any]] = [label, propagate, merge, stitch, fuse, evaluate]


def digest(folder: Path) -> dict[str, str]:
    """Return what a folder holds, file by file."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
