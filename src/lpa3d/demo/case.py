"""What the demo is given: a phantom that it makes and writes, or the files of a folder of the user's own."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import io, phantom
from ..errors import InputError
from .parts import find_ids

__all__ = ["Case", "describe", "find_case", "keep_every", "make_case", "make_grey", "write_like"]

Array = npt.NDArray[Any]

SUFFIXES = (".zarr", ".npy", ".nii", ".nii.gz", ".tif", ".tiff", ".h5", ".hdf5")
LAYOUT = (
    "needed are classes.* (or volume.*), the class map, with instances.* (the truth, from which seeds are made), "
    "seeds.*, or both, and if you like raw.*, the image"
)


@dataclass(frozen=True)
class Case:
    """What is given: arrays, and the files that the command line reads."""

    name: str
    classes_file: Path
    seeds_file: Path
    truth_file: Path | None
    classes: Array
    seeds: Array
    truth: Array | None
    raw: Array
    raw_title: str
    spacing: tuple[float, float, float]
    unit: str
    class_names: dict[int, str]

    def annotated(self) -> list[int]:
        """Return the slices that hold seeds."""
        return np.flatnonzero(self.seeds.any(axis=(1, 2))).tolist()

    @cached_property
    def class_ranks(self) -> npt.NDArray[np.int64]:
        """Return 1, 2, ... for the classes in rising order, 0 for background."""
        kinds, places = find_ids(self.classes)
        ranks: npt.NDArray[np.int64] = np.searchsorted(sorted(self.class_names), kinds) + 1
        ranks[kinds == 0] = 0
        return ranks[places]


def make_case(args: argparse.Namespace, output: Path) -> Case:
    """Make the phantom and write its files."""
    started = time.perf_counter()
    cell = phantom.cell(tuple(args.shape), args.seed)
    # 16 bits are read by every viewer.
    truth = cell.instances.astype(np.uint16 if cell.instances.max() < 2**16 else np.uint32)
    seeds = keep_every(truth, args.every)
    output.mkdir(parents=True, exist_ok=True)
    files = {"raw": cell.image, "classes": cell.classes, "instances": truth, "seeds": seeds}
    for name, array in files.items():
        io.write(output / f"{name}.tif", array, spacing=cell.spacing, unit="nm", overwrite=True)
    print(f"Made a phantom cell in {time.perf_counter() - started:.0f} s: {output}/{{{','.join(files)}}}.tif")
    return Case(
        "phantom cell",
        output / "classes.tif",
        output / "seeds.tif",
        output / "instances.tif",
        cell.classes,
        seeds,
        truth,
        cell.image,
        "synthetic",
        cell.spacing,
        "nm",
        cell.class_names,
    )


def find_case(folder: Path, output: Path, every: int) -> Case:
    """Find and read the user's files, and make the seeds if only the truth is there."""
    if not folder.is_dir():
        raise InputError(f"--data {folder} is no folder; {LAYOUT}")
    if output.resolve() == folder.resolve():
        raise InputError(f"--output {output} is the folder of --data; choose another, so that no file of yours changes")
    classes_file = _find(folder, "classes", "volume")
    truth_file, seeds_file, raw_file = (_find(folder, name) for name in ("instances", "seeds", "raw"))
    if classes_file is None or (truth_file is None and seeds_file is None):
        found = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        lacking = "class map" if classes_file is None else "instances or seeds"
        raise InputError(f"{folder} has no {lacking}; {LAYOUT}; found: {found}")
    with io.open_volume(classes_file) as volume:
        classes, geometry = volume.read_integers("a class map"), volume.geometry
    if classes.ndim != 3:
        raise InputError(
            f"{classes_file} has shape {classes.shape}; the demo needs a volume of several slices (Z, Y, X)"
        )
    truth = None if truth_file is None else _read(truth_file, "instance ids", classes, classes_file)
    raw = None if raw_file is None else _read(raw_file, "", classes, classes_file)
    output.mkdir(parents=True, exist_ok=True)
    if seeds_file is not None:
        seeds = _read(seeds_file, "seeds", classes, classes_file)
    else:
        assert truth is not None
        assert truth_file is not None
        seeds = keep_every(truth, every)
        seeds_file = write_like(truth_file, seeds, output, "seeds")
    names = {int(kind): f"class {int(kind)}" for kind in np.unique(classes) if kind}
    return Case(
        folder.resolve().name,
        classes_file,
        seeds_file,
        truth_file,
        classes,
        seeds,
        truth,
        make_grey(raw, classes),
        "no image given" if raw is None else "",
        geometry.spacing or (1.0, 1.0, 1.0),
        geometry.unit if geometry.spacing else "",
        names if len(names) > 1 else dict.fromkeys(names, "mask"),
    )


def _find(folder: Path, *names: str) -> Path | None:
    """Return the one file of these names with a suffix that is known."""
    found = sorted(
        path
        for path in folder.iterdir()
        if any(path.name.lower() == name + suffix for name in names for suffix in SUFFIXES)
    )
    if len(found) > 1:
        listed = ", ".join(path.name for path in found)
        raise InputError(f"{folder} has {listed}, of which only one can be used; move the others away")
    return found[0] if found else None


def _read(file: Path, role: str, classes: Array, classes_file: Path) -> Array:
    """Read labels, or with no role an image, of the class map's shape."""
    with io.open_volume(file) as volume:
        if volume.shape != classes.shape:
            raise InputError(
                f"{file} has shape {volume.shape} but {classes_file} has shape {classes.shape}; they must be the same"
            )
        return volume.read_integers(role) if role else volume.read()


def keep_every(truth: Array, every: int) -> Array:
    """Return the labels of slices 0, k, 2k, ...; 0 elsewhere."""
    seeds = np.zeros_like(truth)
    seeds[::every] = truth[::every]
    return seeds


def write_like(file: Path, labels: Array, folder: Path, name: str) -> Path:
    """Write labels in the format and the place of those in `file`, and return the new file."""
    suffix = next(suffix for suffix in reversed(SUFFIXES) if str(file).lower().endswith(suffix))
    io.write(folder / f"{name}{suffix}", labels, like=file, overwrite=True)
    return folder / f"{name}{suffix}"


def make_grey(raw: Array | None, classes: Array) -> npt.NDArray[np.uint8]:
    """Return the image as 8 bits between its 0.5th and 99.5th percentile; without one a mask in two greys."""
    if raw is None:
        return np.where(classes > 0, np.uint8(170), np.uint8(225))
    if raw.dtype == np.uint8:
        return raw
    sample = raw.reshape(-1)[:: max(1, raw.size // 1_000_000)].astype(np.float64)
    low, high = np.nanpercentile(sample, [0.5, 99.5]) if sample.size else (0.0, 1.0)
    scaled = (raw.astype(np.float32) - np.float32(low)) * np.float32(255 / max(high - low, 1e-12))
    grey: npt.NDArray[np.uint8] = np.nan_to_num(scaled).clip(0, 255).astype(np.uint8)
    return grey


def describe(case: Case) -> None:
    """Say what is given."""
    z, y, x = case.classes.shape
    size = " x ".join(f"{value:g}" for value in case.spacing)
    print(f"{case.name}: {z} x {y} x {x} voxels of {size} {case.unit}".rstrip())
