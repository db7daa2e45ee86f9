"""Run every peer beside lpa3d on the same arrays and print the ratios as Markdown tables.

    python benchmarks/compare.py                              everything, some 32 minutes on 2 cores
    python benchmarks/compare.py --size 256 --only '^label'   a part of it, on smaller volumes

1. *Arrays* are made once, as .npy files in a temporary folder (`ARRAYS`).
2. Each *measurement* is a fresh process of this script (`measure`): it reads its arrays, calls the tool once to warm it
   up and to see how far its memory grows, then times further calls. Ours and the peers alternate, twice, so that a
   drift of the machine hits both (`run_contest`).
3. *Tables* show medians, their ratios, and the floors that the project has set itself.

Conversions that a peer needs (an ITK image, a list of source points) are made beforehand and cost it neither time nor
memory. Peers and data that are not there are named, and their rows left out.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.metadata
import importlib.util
import itertools
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

VOLUMES = ("0-0-0", "3-2-1")
"""The two volumes of UroCell, fib1-0-0-0 and fib1-3-2-1."""

TILE = 256
"""Side of UroCell's volumes; larger ones are tiled."""

EVERY = 16
"""The annotated slices of the seeds are every 16th."""

VOXELS_PER_POINT = 2**14

ROUNDS = 2
"""Times that ours and the peer of the floor take turns. Other peers have one turn."""

SLOW = 3.0
"""A peer whose warm-up takes so many seconds is not called again: what a first call costs is lost in it."""

BUDGET = 5.0
"""Seconds of timed calls after which a process stops, whatever `--repeat`."""

LEAST, MOST_CALLS = 0.5, 20
"""Seconds of timed calls that a process makes at least, as short calls vary more, but not more than so many calls."""

CUT_EVERY = 8
"""Where a corrupted segmentation cuts instances: slices from one cut to the next."""

BLOCKS = 100
"""Blocks along each side of a volume of 512 cubed, a million in all; fewer in proportion along shorter ones."""

THRESHOLDS = (0.5, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9)
"""IoU thresholds; the first is the main one."""

MISSING = 0.1
"""Part of the slices that is missing where slices are missing."""

DRAWS = (0, 1, 2)
"""Seeds of the draws of missing slices."""

CROP = 64
"""Side of the crop on which a tool first runs: modules and kernels are loaded before memory is watched."""

TIMEOUT = 1200

MODULES = {
    "lpa3d": "lpa3d",
    "cc3d": "connected-components-3d",
    "scipy": "scipy",
    "skimage": "scikit-image",
    "SimpleITK": "SimpleITK",
    "dijkstra3d": "dijkstra3d",
    "higra": "higra",
    "mahotas": "mahotas",
    "sklearn": "scikit-learn",
    "stardist": "stardist",
}
"""Modules of the tools, and what the package indexes call them."""

HEAVY = ("cupy", "dask", "matplotlib", "zarr")
"""What ``import lpa3d`` must not load."""

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]


class NotThereError(Exception):
    """Data that a row needs is not there."""


# ---------------------------------------------------------------------------------------------------------- the arrays


def read_urocell(data: Path | None, kind: str, what: str, volume: str) -> Array:
    """Return ``'binary'`` or ``'instance'`` of ``'fv'`` or ``'mito'`` as (Z, Y, X)."""
    if data is None or not (file := data / "urocell" / kind / what / f"fib1-{volume}.nii.gz").is_file():
        raise NotThereError("no UroCell volumes")
    if importlib.util.find_spec("nibabel") is None:
        raise NotThereError("nibabel is not installed")
    import nibabel

    return np.ascontiguousarray(np.asanyarray(nibabel.load(file).dataobj).T)


def read_connectomics(data: Path | None, size: int) -> Array:
    """Return a corner of the connectomics segmentation, uint32."""
    if data is None or not (data / "connectomics.zarr").is_dir():
        raise NotThereError("no connectomics.zarr")
    if importlib.util.find_spec("zarr") is None:
        raise NotThereError("zarr is not installed")
    import zarr

    return np.asarray(zarr.open_array(data / "connectomics.zarr", mode="r")[:size, :size, :size])


def tile(array: Array, size: int) -> Array:
    """Repeat a volume along all axes, or crop it, to `size` cubed."""
    times = -(-size // array.shape[0])
    return np.tile(array, (times,) * 3)[:size, :size, :size]


def tile_instances(array: Array, size: int) -> Array:
    """Repeat instance labels; each copy has ids of its own."""
    side, step = array.shape[0], int(array.max())
    result = tile(array.astype(np.int32), size)
    for number, corner in enumerate(np.ndindex(*(-(-size // side),) * 3)):
        part = result[tuple(slice(at * side, (at + 1) * side) for at in corner)]
        part[part > 0] += number * step
    return result


def keep_slices(labels: Array, every: int, axis: int = 0) -> Array:
    """Return the labels of every k-th slice, 0 elsewhere: what an annotator has drawn."""
    seeds = np.zeros_like(labels)
    at = tuple(slice(None, None, every) if axis == a else slice(None) for a in range(labels.ndim))
    seeds[at] = labels[at]
    return seeds


def make_points(data: Path | None, size: int) -> Array:
    """Return distinct ids at random voxels of the connectomics segmentation."""
    volume = read_connectomics(data, size)
    rng = np.random.default_rng(0)
    inside = np.flatnonzero(volume)
    chosen = rng.choice(inside, min(inside.size, volume.size // VOXELS_PER_POINT + 1), replace=False)
    seeds = np.zeros(volume.shape, np.int32)
    seeds.ravel()[chosen] = np.arange(1, chosen.size + 1)
    return seeds


def make_cost(data: Path | None, size: int) -> Array:
    """Return 1 + 50 p for a synthetic membrane probability p, 0 to 1: bright sheets where smooth noise is 0."""
    if importlib.util.find_spec("scipy") is None:
        raise NotThereError("no cost: scipy is not installed")
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(0).standard_normal((min(size, TILE),) * 3, dtype=np.float32)
    smooth = gaussian_filter(noise, 4, mode="wrap")
    smooth /= smooth.std()
    return tile(1 + 50 * np.exp(-np.square(4 * smooth)), size).astype(np.float32)


def make_mask(kind: str, volume: str, data: Path | None, size: int) -> Array:
    return tile((read_urocell(data, kind, "binary", volume) > 0).astype(np.uint8), size)


def make_seeds(kind: str, volume: str, data: Path | None, size: int) -> Array:
    return keep_slices(tile_instances(read_urocell(data, kind, "instance", volume), size), EVERY)


def make_noise(data: Path | None, size: int) -> Array:
    return (np.random.default_rng(0).random((size,) * 3, np.float32) < 0.3).astype(np.uint8)


def renumber(labels: Array) -> Array:
    """Return the labels as 0, 1, ... in the same order: some peers' memory grows with the largest id."""
    known = np.zeros(int(labels.max()) + 1, np.bool_)
    known[0] = True
    known[labels] = True
    return (np.cumsum(known, dtype=labels.dtype) - labels.dtype.type(1))[labels]


def corrupt(labels: Array) -> Array:
    """Return labels 0, 1, ... with errors, renumbered.

    Of the ids, drawn at random, a fifth each is joined to the neighbour that it touches most, cut by planes across z,
    and eroded by a voxel; a tenth is removed.
    """
    import lpa3d

    count = int(labels.max())
    lot = np.random.default_rng(0).permutation(count) % 10
    joined, cut, eroded, removed = (
        np.concatenate(([False], (first <= lot) & (lot < first + many)))
        for first, many in ((0, 2), (2, 2), (4, 2), (6, 1))
    )
    touching = lpa3d.contacts(labels)
    # Of several values for one index the last one stays: that of the largest contact.
    order = np.argsort(np.tile(touching.area, 2), kind="stable")
    ids = np.concatenate([touching.id_a, touching.id_b])[order]
    neighbors = np.concatenate([touching.id_b, touching.id_a])[order]
    taken = joined[ids] & ~joined[neighbors]
    table = np.arange(count + 1, dtype=labels.dtype)
    table[ids[taken]] = neighbors[taken]
    result = table[labels]

    border = np.zeros(labels.shape, np.bool_)
    for axis in range(labels.ndim):
        moved, changed = np.moveaxis(result, axis, 0), np.moveaxis(border, axis, 0)
        differs = moved[1:] != moved[:-1]
        changed[1:] |= differs
        changed[:-1] |= differs
    border &= eroded[result]
    result[border | removed[result]] = 0
    for z, plane in enumerate(result):
        plane[cut[plane]] += labels.dtype.type(z // CUT_EVERY * count)
    return renumber(result)


def make_instances(data: Path | None, size: int) -> Array:
    return renumber(read_connectomics(data, size))


def make_corrupted(data: Path | None, size: int) -> Array:
    return corrupt(make_instances(data, size))


def make_blocks(shift: int, data: Path | None, size: int) -> Array:
    """Return a volume full of blocks, each with an id of its own, moved by some voxels along all axes."""
    many = max(1, round(BLOCKS * size / 512))
    along = np.minimum((np.arange(size, dtype=np.int32) + shift) * many // size, many - 1)
    return (along[:, None, None] * many + along[:, None]) * many + along + 1


def cut_slices(labels: Array) -> Array:
    """Return what a 2D tool finds on each slice: components with 8 neighbours, their ids from 1 and shuffled."""
    import lpa3d

    rng = np.random.default_rng(0)
    slices = np.zeros(labels.shape, np.uint32)
    for plane, section in zip(labels, slices, strict=True):
        found = lpa3d.label(plane, connectivity=26)
        section[...] = np.append(0, 1 + rng.permutation(int(found.max(initial=0))))[found]
    return slices


def draw_missing(depth: int, seed: int) -> Array:
    """Return the positions of missing slices."""
    return np.random.default_rng(seed).choice(depth, round(MISSING * depth), replace=False)


def make_slices(kind: str, volume: str, complete: bool, data: Path | None, size: int) -> Array:
    """Return per-slice labels of instances; some slices are empty if not `complete`."""
    if kind == "connectomics":
        labels = read_connectomics(data, size)
    else:
        labels = tile_instances(read_urocell(data, kind, "instance", volume), size)
    slices = cut_slices(labels)
    if not complete:
        slices[draw_missing(len(slices), DRAWS[0])] = 0
    return slices


def make_stitched(kind: str, volume: str, data: Path | None, size: int) -> Array:
    return stitch_lpa3d(make_slices(kind, volume, False, data, size))()


PAIRS = [(kind, volume) for kind in ("fv", "mito") for volume in VOLUMES]

ARRAYS: dict[str, Callable[[Path | None, int], Array]] = {
    **{f"{kind} {volume} mask": functools.partial(make_mask, kind, volume) for kind, volume in PAIRS},
    **{f"{kind} {volume} seeds": functools.partial(make_seeds, kind, volume) for kind, volume in PAIRS},
    **{
        f"{' '.join(pair).strip()} slices{'' if complete else ', 10 % missing'}": functools.partial(
            make_slices, *pair, complete
        )
        for pair in (*PAIRS, ("connectomics", ""))
        for complete in (True, False)
    },
    f"fv {VOLUMES[0]} stitched": functools.partial(make_stitched, "fv", VOLUMES[0]),
    "connectomics": read_connectomics,
    "connectomics points": make_points,
    "connectomics renumbered": make_instances,
    "connectomics corrupted": make_corrupted,
    "blocks": functools.partial(make_blocks, 0),
    "blocks shifted": functools.partial(make_blocks, 1),
    "noise": make_noise,
    "cost": make_cost,
}
"""What makes each array, from the folder of the real data and the side of the volume."""


# ----------------------------------------------------------------------------------------------------------- the calls
# Each function makes a tool ready for its arrays and returns the call that is timed.


def label_lpa3d(volume: Array, connectivity: int) -> Call:
    import lpa3d

    return lambda: lpa3d.label(volume, connectivity=connectivity)


def label_cc3d(volume: Array, connectivity: int) -> Call:
    import cc3d

    # What is faster: with 6 neighbours it takes the binary volumes as one class in two thirds of the time.
    binary = volume.dtype == np.uint8 and connectivity == 26
    return lambda: cc3d.connected_components(volume, connectivity=connectivity, binary_image=binary)


def label_scipy(volume: Array, connectivity: int) -> Call:
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(3, 1 if connectivity == 6 else 3)
    return lambda: ndimage.label(volume, structure)[0]


def label_skimage(volume: Array, connectivity: int) -> Call:
    from skimage.measure import label

    return lambda: label(volume, connectivity=1 if connectivity == 6 else 3)


def label_simpleitk(volume: Array, connectivity: int) -> Call:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(volume)
    return lambda: SimpleITK.ConnectedComponent(image, connectivity == 26)


def propagate_lpa3d(volume: Array, seeds: Array, **options: Any) -> Call:
    import lpa3d

    return lambda: lpa3d.propagate(volume, seeds, **options)


def propagate_skimage(volume: Array, seeds: Array) -> Call:
    from skimage.segmentation import watershed

    image, mask = np.zeros(volume.shape, np.uint8), volume > 0
    return lambda: watershed(image, seeds, mask=mask, connectivity=1)


def _flood_outside(volume: Array, seeds: Array) -> Array:
    """Return seeds with a marker on all of the background, for tools that have no mask; it takes unseeded parts too."""
    return np.where(volume > 0, seeds, seeds.max() + 1)


def propagate_simpleitk(volume: Array, seeds: Array) -> Call:
    import SimpleITK

    image = SimpleITK.GetImageFromArray(np.zeros(volume.shape, np.uint8))
    markers = SimpleITK.GetImageFromArray(_flood_outside(volume, seeds))
    return lambda: SimpleITK.MorphologicalWatershedFromMarkers(image, markers, False, False)


def propagate_mahotas(volume: Array, seeds: Array) -> Call:
    import mahotas

    image, markers = np.zeros(volume.shape, np.uint8), _flood_outside(volume, seeds)
    return lambda: mahotas.cwatershed(image, markers)


def propagate_dijkstra3d(volume: Array, seeds: Array) -> Call:
    import dijkstra3d

    # It takes (x, y, z) in Fortran order.
    mask, sources = (volume > 0).T, np.argwhere(seeds.T)
    ids = np.concatenate(([0], seeds.T[tuple(sources.T)]))

    def call() -> Array:
        _, nearest = dijkstra3d.euclidean_distance_field(mask, sources, return_feature_map=True)
        return ids[nearest].T

    return call


def propagate_higra(volume: Array, seeds: Array) -> Call:
    import higra

    def call() -> Array:
        inside = volume > 0
        vertices = np.zeros(volume.shape, np.int64)
        vertices[inside] = np.arange(np.count_nonzero(inside))
        graph = higra.UndirectedGraph(np.count_nonzero(inside))
        for axis in range(3):
            below, above = (
                tuple(part if a == axis else slice(None) for a in range(3)) for part in (slice(-1), slice(1, None))
            )
            linked = inside[below] & inside[above]
            graph.add_edges(vertices[below][linked], vertices[above][linked])
        labels = higra.labelisation_seeded_watershed(graph, np.zeros(graph.num_edges(), np.uint8), seeds[inside])
        result = np.zeros(volume.shape, seeds.dtype)
        result[inside] = labels
        return result

    return call


def propagate_scipy(volume: Array, seeds: Array) -> Call:
    from scipy import ndimage

    mask = volume > 0

    def call() -> Array:
        nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
        return seeds[tuple(nearest)] * mask

    return call


def contacts_lpa3d(labels: Array, connectivity: int) -> Call:
    import lpa3d

    return lambda: lpa3d.contacts(labels, connectivity=connectivity)


def contacts_cc3d(labels: Array, connectivity: int) -> Call:
    import cc3d

    return lambda: cc3d.contacts(labels, connectivity=connectivity, surface_area=True)


def evaluate_lpa3d(reference: Array, prediction: Array, errors: bool = False, **options: Any) -> Call:
    import lpa3d

    def call() -> Any:
        result = lpa3d.evaluate(reference, prediction, **options)
        if errors:
            # They are listed when they are first asked for.
            for name in ("splits", "merges", "missed", "spurious"):
                getattr(result, name)
        return result

    return call


def evaluate_skimage(reference: Array, prediction: Array) -> Call:
    from skimage.metrics import adapted_rand_error, variation_of_information

    def call() -> dict[str, float]:
        error = adapted_rand_error(reference, prediction)[0]
        split, merge = variation_of_information(reference, prediction)
        return {"arand": float(error), "voi_split": float(split), "voi_merge": float(merge)}

    return call


def evaluate_stardist(reference: Array, prediction: Array, thresholds: Sequence[float]) -> Call:
    from stardist.matching import matching

    def call() -> dict[str, float]:
        answer = {}
        for number, at in enumerate(matching(reference, prediction, thresh=tuple(thresholds))):
            suffix = f"@{at.thresh:g}" if number else ""
            answer |= {f"{key}{suffix}": int(getattr(at, key)) for key in ("tp", "fp", "fn")}
        return answer

    return call


def evaluate_sklearn(reference: Array, prediction: Array) -> Call:
    from sklearn.metrics import rand_score

    return lambda: {"rand_index": float(rand_score(reference.ravel(), prediction.ravel()))}


def stitch_lpa3d(slices: Array, **options: Any) -> Call:
    import lpa3d

    return lambda: lpa3d.stitch(slices, **options)


def fuse_lpa3d(**sources: Any) -> Call:
    import lpa3d

    return lambda: lpa3d.fuse(**sources)


def label_first(**arrays: Array) -> Call:
    """Label the first of the arrays: a measure of the machine for verbs that have no peer."""
    return label_lpa3d(next(iter(arrays.values())), 6)


CALLS: dict[str, dict[str, tuple[str, Callable[..., Call]]]] = {
    "label": {
        "lpa3d": ("lpa3d", label_lpa3d),
        "cc3d": ("cc3d", label_cc3d),
        "scipy": ("scipy", label_scipy),
        "scikit-image": ("skimage", label_skimage),
        "SimpleITK": ("SimpleITK", label_simpleitk),
    },
    "propagate": {
        "lpa3d": ("lpa3d", propagate_lpa3d),
        "scikit-image watershed": ("skimage", propagate_skimage),
        "SimpleITK morphological watershed": ("SimpleITK", propagate_simpleitk),
        "mahotas cwatershed": ("mahotas", propagate_mahotas),
        "dijkstra3d Euclidean field": ("dijkstra3d", propagate_dijkstra3d),
        "higra seeded watershed": ("higra", propagate_higra),
        "scipy nearest seed": ("scipy", propagate_scipy),
    },
    "contacts": {
        "lpa3d": ("lpa3d", contacts_lpa3d),
        "cc3d": ("cc3d", contacts_cc3d),
    },
    "evaluate": {
        "lpa3d": ("lpa3d", evaluate_lpa3d),
        "scikit-image ARE and VOI": ("skimage", evaluate_skimage),
        "stardist matching": ("stardist", evaluate_stardist),
        "scikit-learn rand_score": ("sklearn", evaluate_sklearn),
    },
    "stitch": {
        "lpa3d": ("lpa3d", stitch_lpa3d),
        "lpa3d label": ("lpa3d", label_first),
    },
    "fuse": {
        "lpa3d": ("lpa3d", fuse_lpa3d),
        "lpa3d label": ("lpa3d", label_first),
    },
}
"""For each verb, the tools that do it: their module, and what makes them ready."""


# -------------------------------------------------------------------------------------------------------- the contests


@dataclass(frozen=True)
class Ours:
    """One way to call lpa3d, and what is asked of it."""

    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, str] = field(default_factory=dict)
    floor: float | None = None
    aim: float | None = None
    bytes_per_voxel: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Contest:
    """Calls of lpa3d and of peers on the same arrays; floors are ratios to the first peer, or seconds."""

    section: str
    what: str
    verb: str
    size: int
    arrays: Mapping[str, str]
    ours: tuple[Ours, ...]
    peers: tuple[str, ...]
    peer_options: Mapping[str, Any] = field(default_factory=dict)

    def title(self, ours: Ours) -> str:
        """Return the name of a row."""
        return ", ".join(filter(None, (self.what, ours.name)))


def list_contests(size: int) -> list[Contest]:
    """Return all contests for volumes of `size` cubed."""
    return [
        *label_contests(size),
        *propagate_contests(size),
        *seeded_contests(),
        *contact_contests(size),
        *evaluate_contests(size),
        *stitch_contests(size),
        *fuse_contests(size),
    ]


def label_contests(size: int) -> Iterable[Contest]:
    binary = ("cc3d", "scipy", "SimpleITK", "scikit-image")
    arrays = {f"{kind} {volume}": f"{kind} {volume} mask" for kind, volume in PAIRS}
    arrays |= {"connectomics, multi-class": "connectomics", "noise p = 0.3": "noise"}
    for what, array in arrays.items():
        peers = binary
        if array == "connectomics":
            peers = ("cc3d", "scikit-image")
        elif VOLUMES[1] in array:
            peers = ("cc3d",)
        floor, aim = (1.0, 0.8) if array == "noise" else (0.6, 0.4)
        for connectivity in (6, 26):
            options = {"connectivity": connectivity}
            ours = Ours(f"{connectivity}", options, floor=floor, aim=aim, bytes_per_voxel=5)
            yield Contest("label", what, "label", size, {"volume": array}, (ours,), peers, options)


def propagate_contests(size: int) -> Iterable[Contest]:
    geodesic = {"slice_axis": None, "sweeps": 0}

    def list_geodesic(floor: float, memory: float) -> list[Ours]:
        plain = Ours("geodesic only, 6", geodesic, floor=floor, aim=floor / 2, bytes_per_voxel=memory)
        return [
            plain,
            Ours("geodesic only, 6, spacing 40 8 8", geodesic | {"spacing": (40, 8, 8)}, {}, 0.35, 0.175, memory),
            Ours("geodesic only, 26", geodesic | {"connectivity": 26}, {}, 0.35, 0.175, memory),
            Ours("geodesic only, 6, cost", geodesic, {"cost": "cost"}, 0.5, 0.25, memory),
        ]

    peers = ("scikit-image watershed",)
    free = Ours("without sections, 32 sweeps", {"slice_axis": None, "sweeps": 32}, bytes_per_voxel=14)
    for kind, volume in PAIRS:
        ours = list_geodesic(0.12, 14)
        if volume != VOLUMES[0]:
            del ours[1:]
        floors = (1.0, 0.5) if kind == "fv" else (None, None)
        ours.append(Ours("defaults", {}, {}, *floors, 14))
        if (kind, volume) == ("fv", VOLUMES[0]):
            ours.append(free)
        arrays = {"volume": f"{kind} {volume} mask", "seeds": f"{kind} {volume} seeds"}
        yield Contest("propagate", f"{kind} {volume}", "propagate", size, arrays, tuple(ours), peers)
    arrays = {"volume": "connectomics", "seeds": "connectomics points"}
    what = "connectomics, multi-class, points"
    yield Contest("propagate", what, "propagate", size, arrays, tuple(list_geodesic(0.2, 32)), peers)


def seeded_contests() -> Iterable[Contest]:
    ours = (Ours("geodesic only, 6", {"slice_axis": None, "sweeps": 0}), Ours("defaults"))
    peers = tuple(tool for tool in CALLS["propagate"] if tool != "lpa3d")
    for kind in ("fv", "mito"):
        arrays = {"volume": f"{kind} {VOLUMES[0]} mask", "seeds": f"{kind} {VOLUMES[0]} seeds"}
        yield Contest(
            "seeded, all peers, 256 cubed", f"{kind} {VOLUMES[0]}", "propagate", TILE, arrays, ours, peers
        )  # fmt: skip


def contact_contests(size: int) -> Iterable[Contest]:
    for connectivity in (6, 26):
        options = {"connectivity": connectivity}
        ours = Ours(f"{connectivity}", options)
        yield Contest(
            "contacts", "connectomics", "contacts", size, {"labels": "connectomics"}, (ours,), ("cc3d",), options
        )  # fmt: skip


def evaluate_contests(size: int) -> Iterable[Contest]:
    arrays = {"reference": "connectomics renumbered", "prediction": "connectomics corrupted"}
    many = {"iou_thresholds": THRESHOLDS}
    memory = 2.2  # 300 MB at 512 cubed

    def list_ours(floor: float | None, convention: str) -> tuple[Ours, ...]:
        style = {"convention": convention}
        return (
            Ours("all metrics", style, floor=floor, bytes_per_voxel=memory),
            Ours("all metrics, 9 thresholds", style | many, floor=floor, bytes_per_voxel=memory),
            Ours("all metrics and errors", style | {"errors": True}, floor=floor, bytes_per_voxel=memory),
        )

    what = "connectomics corrupted"
    yield Contest(
        "evaluate", what, "evaluate", size, arrays, list_ours(0.05, "skimage"), ("scikit-image ARE and VOI",)
    )  # fmt: skip
    one, nine, _ = list_ours(0.1, "stardist")
    like_stardist, peers = f"{what}, convention stardist", ("stardist matching",)
    for ours, thresholds in ((one, THRESHOLDS[:1]), (nine, THRESHOLDS)):
        options = {"thresholds": thresholds}
        yield Contest("evaluate", like_stardist, "evaluate", size, arrays, (ours,), peers, options)
    ours = list_ours(None, "sklearn")[0]
    yield Contest(
        "evaluate, 256 cubed", what, "evaluate", TILE, arrays, (ours,), ("scikit-learn rand_score",)
    )  # fmt: skip


def stitch_contests(size: int) -> Iterable[Contest]:
    peers = ("lpa3d label",)
    small = min(size, TILE)
    names = [f"{kind} {volume}" for kind, volume in (("fv", VOLUMES[0]), ("fv", VOLUMES[1]), ("mito", VOLUMES[1]))]
    for name in (*names, "connectomics"):
        for missing in ("", ", 10 % missing"):
            what, arrays = f"{name}{missing}, {small} cubed", {"slices": f"{name} slices{missing}"}
            ours = Ours(options={"max_gap": 3}, bytes_per_voxel=5, seconds=1)
            yield Contest("stitch", what, "stitch", small, arrays, (ours,), peers)
    if size > small:
        for missing in ("", ", 10 % missing"):
            what, arrays = f"{names[0]}{missing}, {size} cubed", {"slices": f"{names[0]} slices{missing}"}
            ours = Ours(options={"max_gap": 3}, bytes_per_voxel=5)
            yield Contest("stitch", what, "stitch", size, arrays, (ours,), peers)


def fuse_contests(size: int) -> Iterable[Contest]:
    name = f"fv {VOLUMES[0]}"
    arrays = {"classes": f"{name} mask", "slices": f"{name} stitched"}
    ours = (
        Ours("class map and slices"),
        Ours("class map, instances and slices", arrays={"instances": f"{name} seeds"}),
    )
    yield Contest("fuse", name, "fuse", size, arrays, ours, ("lpa3d label",))


# ------------------------------------------------------------------------------------------------- inside a process


def forget_peak() -> int | None:
    """Return the memory of this process in bytes and let the peak start from it; None where Linux does not do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return read_peak()


def read_peak() -> int:
    """Return the largest memory of this process in bytes since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0])


def clock_call(call: Call) -> tuple[Any, float]:
    started = time.perf_counter()
    result = call()
    return result, time.perf_counter() - started


def crop(array: Array) -> Array:
    """Return a crop at the centre; it starts on an annotated slice."""
    side = array.shape[0]
    start = max(0, side - CROP) // 2 // EVERY * EVERY
    return np.ascontiguousarray(array[(slice(start, start + CROP),) * 3])


def summarise(verb: str, result: Any) -> dict[str, float]:
    """Return numbers of the answer by name: components or objects, labelled voxels, touching pairs, or metrics."""
    if verb == "evaluate":
        return dict(result)
    if verb == "contacts":
        return {"touching pairs": len(result)}
    if hasattr(result, "GetPixelID"):
        import SimpleITK

        result = SimpleITK.GetArrayFromImage(result)
    if hasattr(result, "seeds"):
        result = result.seeds
    if verb in ("label", "stitch"):
        return {"components": int(result.max())}
    return {"labelled voxels": int(np.count_nonzero(result))}


def measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Warm a tool up, watch its memory, time it."""
    verb, tool = task["verb"], task["tool"]
    arrays = {name: np.load(file) for name, file in task["arrays"].items()}
    prepare = functools.partial(CALLS[verb][tool][1], **task["options"])
    prepare(**{name: crop(array) for name, array in arrays.items()})()
    call = prepare(**arrays)
    gc.collect()
    before = forget_peak()
    result, seconds = clock_call(call)
    growth = None if before is None else (read_peak() - before) / next(iter(arrays.values())).size
    answer = summarise(verb, result)
    samples = [seconds] if tool != "lpa3d" and seconds > SLOW else []
    while not samples or sum(samples) < (BUDGET if len(samples) < task["repeat"] else LEAST):
        del result
        result, seconds = clock_call(call)
        samples.append(seconds)
        if len(samples) >= max(task["repeat"], MOST_CALLS):
            break
    return {"seconds": samples, "bytes_per_voxel": growth, "answer": answer}


def make_arrays(task: Mapping[str, Any]) -> dict[str, Any]:
    """Make an array and save it."""
    data = None if task["data"] is None else Path(task["data"])
    try:
        np.save(task["file"], ARRAYS[task["name"]](data, task["size"]))
    except NotThereError as error:
        return {"missing": str(error)}
    return {}


def call_first(task: Mapping[str, Any]) -> dict[str, Any]:
    """Time the import and the first call of a verb in this process; NumPy is there already."""
    z, y, x = np.ogrid[:CROP, :CROP, :CROP]
    # Columns that lean, two of which touch.
    columns = [(y - 12 - z // 8) ** 2 + (x - 14 - 20 * k - z // 6) ** 2 < 110 for k in range(2)]
    instances = np.where(columns[0], 1, np.where(columns[1], 2, 0)).astype(np.uint32)
    volume = (instances > 0).astype(np.uint8)
    seeds = keep_slices(instances, EVERY)
    started = time.perf_counter()
    import lpa3d

    verb = getattr(lpa3d, task["verb"])
    imported = time.perf_counter()
    inputs: dict[str, dict[str, Array]] = {
        "label": {"volume": volume},
        "propagate": {"volume": volume, "seeds": seeds},
        "evaluate": {"reference": instances, "prediction": np.roll(instances, 1, axis=2)},
        "stitch": {"slices": np.where(np.arange(CROP)[:, None, None] % 5 == 3, 0, instances)},
        "fuse": {"classes": volume, "instances": seeds, "slices": instances},
    }
    verb(**inputs[task["verb"]])
    ended = time.perf_counter()
    return {"import": imported - started, "call": ended - imported, "both": ended - started}


STEPS = ((0, 8), (0, 16), (0, 32), (1, 16), (2, 16))
"""Axis across which the annotated slices lie, and how many slices apart they are."""

METHODS = ("lpa3d", "scikit-image watershed", "scipy nearest seed")


STITCHED: dict[tuple[str, str], tuple[tuple[float, float], tuple[float, float]]] = {
    ("fv", "0-0-0"): ((0.965, 0.985), (0.9, 0.96)),
    ("fv", "3-2-1"): ((0.955, 0.98), (0.91, 0.96)),
    ("mito", "3-2-1"): ((0.995, 1.0), (0.99, 1.0)),
}
"""Volumes that are stitched along z: floor and aim of the quality with all slices, and with missing ones."""

LOST = -0.03
"""How far the quality on all slices, finished by `fuse` and `propagate`, may be from that on the slices given."""

FURTHER = (
    *((*pair, axis) for pair in STITCHED for axis in (1, 2)),
    *(("mito", volume, axis) for volume in ("0-0-0", "1-0-3") for axis in (0, 1, 2)),
    *(("connectomics", "", axis) for axis in (0, 1, 2)),
    ("phantom", "", 0),
)
"""Kind, volume and axis of what is stitched without a floor."""

PHANTOM = (192, 320, 320)
"""Shape of the phantom cell."""

FINISHED = "lpa3d, fuse and propagate"


def compare_quality(task: Mapping[str, Any]) -> dict[str, Any]:
    """Recover the instances of a volume from their labels on some slices, with each method."""
    kind, name, size = task["kind"], task["volume"], task["size"]
    try:
        volume, truth = (read_urocell(Path(task["data"]), kind, what, name) for what in ("binary", "instance"))
    except NotThereError as error:
        return {"missing": str(error)}
    volume = (volume[:size, :size, :size] > 0).astype(np.uint8)
    truth = truth[:size, :size, :size].astype(np.int32) * volume
    import lpa3d

    rows = []
    for axis, every in STEPS:
        seeds = keep_slices(truth, every, axis)
        scores = {}
        for method in METHODS:
            metrics = lpa3d.evaluate(truth, CALLS["propagate"][method][1](volume=volume, seeds=seeds)())
            scores[method] = metrics["pq"], metrics["arand"]
        rows.append({"kind": kind, "volume": name, "axis": axis, "every": every, "scores": scores})
    return {"rows": rows}


def count_shared(below: Array, above: Array) -> tuple[Array, Array]:
    """Return the pairs of sections of two slices that overlap, sorted, and their common voxels."""
    both = (below > 0) & (above > 0)
    step = int(above.max(initial=0)) + 1
    keys, voxels = np.unique(below[both] * step + above[both], return_counts=True)
    return np.column_stack(np.divmod(keys, step)), voxels


def join_sections(sections: Array, links: Sequence[Array]) -> Array:
    """Return 3D ids: what is linked, directly or not, is one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.concatenate([np.empty((0, 2), np.int64), *links]).T
    sides = (int(sections.max(initial=0)) + 1,) * 2
    numbers = connected_components(coo_array((np.ones(ends.shape[1]), tuple(ends)), sides), directed=False)[1] + 1
    numbers[0] = 0
    labels: Array = numbers[sections]
    return labels


def stitch_greedy(sections: Array, classes: Array, threshold: float) -> Array:
    """Pair the sections of neighbouring slices one to one, in decreasing intersection over union."""
    areas = np.bincount(sections.ravel())
    links = []
    for below, above in itertools.pairwise(sections):
        pairs, shared = count_shared(below, above)
        iou = shared / (areas[pairs].sum(axis=1) - shared)
        taken: set[int] = set()
        chosen = []
        for k in np.argsort(-iou, kind="stable").tolist():
            ends = pairs[k].tolist()
            if iou[k] > threshold and taken.isdisjoint(ends) and classes[ends[0]] == classes[ends[1]]:
                taken.update(ends)
                chosen.append(k)
        links.append(pairs[chosen])
    return join_sections(sections, links)


def stitch_overlap(sections: Array, classes: Array) -> Array:
    """Unite what shares more than half of the smaller section; what has no partner is compared over 2 and 3 slices."""
    areas = np.bincount(sections.ravel())
    links = []
    # Whether a section has found any after it, and before it.
    found = np.zeros((2, len(areas)), np.bool_)
    for gap in (1, 2, 3):
        some = []
        for below, above in zip(sections[:-gap], sections[gap:], strict=True):
            pairs, shared = count_shared(below, above)
            ends = pairs.T
            keep = (2 * shared > areas[pairs].min(axis=1)) & (classes[ends[0]] == classes[ends[1]])
            some.append(pairs[keep & ~found[0, ends[0]] & ~found[1, ends[1]]])
        links += some
        for side, ends in enumerate(np.concatenate([np.empty((0, 2), np.int64), *some]).T):
            found[side, ends] = True
    return join_sections(sections, links)


STITCHERS: dict[str, Callable[[Array, Array], Array]] = {
    "greedy IoU > 0.25": functools.partial(stitch_greedy, threshold=0.25),
    "greedy IoU > 0.1": functools.partial(stitch_greedy, threshold=0.1),
    "overlap > 0.5": stitch_overlap,
}
"""What today's tools do, in plain NumPy: from sections with ids of their own, and the class of each, to 3D ids."""


def read_objects(kind: str, volume: str, data: Path | None, size: int) -> tuple[Array, Array, bool]:
    """Return a class map, its instances, and whether there are several classes."""
    import lpa3d

    if kind == "phantom":
        cell = lpa3d.phantom.cell(PHANTOM if size >= TILE else lpa3d.phantom.SMALLEST_SHAPE, seed=1)
        return cell.classes, cell.instances, True
    if kind == "connectomics":
        # A crop leaves pieces that only the tissue outside joins.
        labels = lpa3d.label(read_connectomics(data, size), connectivity=26)
        return (labels > 0).astype(np.uint8), labels, False
    mask, labels = (read_urocell(data, kind, what, volume)[:size, :size, :size] for what in ("binary", "instance"))
    return (mask > 0).astype(np.uint8), labels.astype(np.int32), False


def compare_stitching(task: Mapping[str, Any]) -> dict[str, Any]:
    """Recover instances from their sections, all of them and without some slices; score that on the slices given.

    With missing slices, `fuse` and `propagate` finish ours with the class map; that is scored on all slices.
    """
    import lpa3d

    data = None if task["data"] is None else Path(task["data"])
    try:
        volumes = read_objects(task["kind"], task["volume"], data, task["size"])
    except NotThereError as error:
        return {"missing": str(error)}
    classes, truth = (np.ascontiguousarray(np.moveaxis(part, task["axis"], 0)) for part in volumes[:2])
    options = {"classes": classes} if volumes[2] else {}
    complete = cut_slices(truth)

    def rate(labels: Array, given: Array) -> tuple[float, float]:
        metrics = lpa3d.evaluate(truth[given], labels[given])
        return metrics["pq"], metrics["arand"]

    rows = []
    for draw in (None, *DRAWS):
        given = np.ones(len(truth), np.bool_)
        if draw is not None:
            given[draw_missing(len(truth), draw)] = False
        slices = np.where(given[:, None, None], complete, 0)
        counts = slices.max(axis=(1, 2), initial=0).astype(np.int64)
        sections = np.where(slices > 0, slices + (np.cumsum(counts) - counts)[:, None, None], 0)
        class_of = np.zeros(int(sections.max(initial=0)) + 1, np.int64)
        class_of[sections] = classes
        scores = {name: rate(stitcher(sections, class_of), given) for name, stitcher in STITCHERS.items()}
        labels = stitch_lpa3d(slices, **options)()
        scores["lpa3d"] = rate(labels, given)
        if draw is not None:
            fused = lpa3d.fuse(classes=classes, slices=labels)
            scores[FINISHED] = rate(lpa3d.propagate(fused.volume, fused.seeds), np.ones(len(truth), np.bool_))
        rows.append({"what": task["what"], "draw": draw, "scores": scores})
    return {"rows": rows}


JOBS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "measure": measure,
    "make": make_arrays,
    "first": call_first,
    "quality": compare_quality,
    "stitching": compare_stitching,
}


# ------------------------------------------------------------------------------------------------- the processes


class FailedError(Exception):
    """A process ended without a result."""


def run_worker(job: str, task: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """Do one job in a fresh process of this script."""
    words = [sys.executable, "-W", "ignore", str(Path(__file__).resolve()), "--worker", job, json.dumps(task)]
    try:
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise FailedError(f"no result after {TIMEOUT} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise FailedError(lines[-1] if lines else f"exit code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@dataclass
class Session:
    """What all measurements share."""

    data: Path | None
    folder: Path
    environment: dict[str, str]
    repeat: int
    work: Callable[[str, Mapping[str, Any], Mapping[str, str]], dict[str, Any]] = run_worker
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def do(self, job: str, task: Mapping[str, Any], **environment: str) -> dict[str, Any]:
        return self.work(job, task, self.environment | environment)

    def array(self, name: str, size: int) -> str:
        """Return the file of an array; it is made when it is first asked for."""
        file = self.folder / f"{name.replace(' ', '_')}_{size}.npy"
        if not file.exists():
            say(f"making {name}, {size} cubed")
            data = None if self.data is None else str(self.data)
            made = self.do("make", {"name": name, "size": size, "file": str(file), "data": data})
            if "missing" in made:
                raise NotThereError(made["missing"])
        return str(file)

    def note(self, text: str) -> None:
        """Keep something that is told once, under the table."""
        if text not in self.notes:
            self.notes.append(text)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass
class Samples:
    """What the processes of one tool have measured."""

    seconds: list[float] = field(default_factory=list)
    bytes_per_voxel: float | None = None
    answer: dict[str, float] = field(default_factory=dict)

    def add(self, measured: Mapping[str, Any]) -> None:
        self.seconds += measured["seconds"]
        # Of the last turn: in the first one kernels may have been compiled.
        self.bytes_per_voxel = measured["bytes_per_voxel"]
        self.answer = measured["answer"]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass
class Row:
    """One line of a table: a call of lpa3d beside one peer."""

    section: str
    what: str
    ours: Samples
    peer: str
    theirs: Samples
    floor: float | None
    aim: float | None
    memory_floor: float | None
    seconds: float | None

    @property
    def ratio(self) -> float:
        return self.ours.median / self.theirs.median


def run_contest(contest: Contest, chosen: Sequence[Ours], session: Session) -> list[Row]:
    """Let lpa3d and the peers take turns; return a row for each pair of a call and a peer."""
    peers = []
    for tool in contest.peers:
        if is_installed(CALLS[contest.verb][tool][0]):
            peers.append(tool)
        else:
            session.note(f"{tool}: not installed.")
    turns: list[tuple[str, str, Mapping[str, str], Mapping[str, Any]]] = [
        (ours.name, "lpa3d", {**contest.arrays, **ours.arrays}, ours.options) for ours in chosen
    ]
    turns += [(tool, tool, contest.arrays, contest.peer_options) for tool in peers]
    measured = {key: Samples() for key, *_ in turns}
    for number in range(ROUNDS):
        # The peer of the floor first: its turns and ours alternate.
        for key, tool, arrays, options in sorted(turns, key=lambda turn: turn[1] != contest.peers[0]):
            if number and tool not in ("lpa3d", contest.peers[0]):
                continue
            try:
                files = {name: session.array(array, contest.size) for name, array in arrays.items()}
                task = {"verb": contest.verb, "tool": tool, "arrays": files, "options": options}
                measured[key].add(session.do("measure", task | {"repeat": session.repeat}))
            except NotThereError as error:
                session.note(f"{contest.what}: {error}.")
            except FailedError as error:
                session.failures.append(f"{contest.section}: {contest.what}, {key}: {error}")
                say(session.failures[-1])
            else:
                so_far = measured[key]
                who = tool if tool == key else f"lpa3d {key}"
                say(
                    f"{contest.section}: {contest.what}: {who}: {format_seconds(so_far.median)} s, "
                    f"median of {len(so_far.seconds)}"
                )
    rows = []
    for ours in chosen:
        for tool in peers:
            mine, theirs = measured[ours.name], measured[tool]
            if not (mine.seconds and theirs.seconds):
                continue
            first = tool == contest.peers[0]
            title = contest.title(ours)
            rows.append(
                Row(contest.section, title, mine, tool, theirs, *((ours.floor, ours.aim) if first else (None, None)),
                    *((ours.bytes_per_voxel, ours.seconds) if first else (None, None)))
            )  # fmt: skip
            # Of the other verbs the tools do not do the same.
            if contest.verb in ("label", "contacts", "evaluate"):
                for difference in list_differences(mine.answer, theirs.answer, tool):
                    session.note(f"{title}: {difference}.")
    return rows


def list_differences(ours: Mapping[str, float], theirs: Mapping[str, float], tool: str) -> list[str]:
    """Return in words which numbers of the answers differ."""
    return [
        f"{key}: lpa3d finds {ours[key]}, {tool} {value}"
        for key, value in theirs.items()
        if not math.isclose(ours[key], value, rel_tol=1e-9, abs_tol=1e-9)
    ]


# ---------------------------------------------------------------------------------------------------------- the tables


def format_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are set right."""
    cells = [list(columns), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    marks = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for first, *others in (cells[0], marks, *cells[1:]):
        padded = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(others, widths[1:], strict=True))]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def format_seconds(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


def format_ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def judge(value: float | None, floor: float | None, aim: float | None = None, *, more: bool = False) -> tuple[str, str]:
    """Return the columns "floor" and "met?"; `more` is better, or less."""
    if floor is None:
        return "", ""
    text = f"{floor:g}" if aim is None else f"{floor:g} (aim {aim:g})"
    if value is None:
        return text, ""
    sign = -1 if more else 1
    if sign * value > sign * floor:
        return text, "**no**"
    return text, "yes, and the aim" if aim is not None and sign * value <= sign * aim else "yes"


def speed_table(rows: Sequence[Row]) -> str:
    columns = ("what", "ours s", "peer", "peer s", "ratio", "floor", "met?")
    lines = []
    for row in rows:
        seconds = format_seconds(row.ours.median), format_seconds(row.theirs.median)
        verdict = judge(row.ratio, row.floor, row.aim)
        if row.seconds is not None:
            limit, met = judge(row.ours.median, row.seconds)
            verdict = f"{limit} s", met
        lines.append((row.what, seconds[0], row.peer, seconds[1], format_ratio(row.ratio), *verdict))
    return format_table(columns, lines)


def memory_table(rows: Sequence[Row]) -> str:
    """Return the growth of memory above the inputs, result included."""
    columns = ("what", "ours bytes/voxel", "floor", "met?", "peer", "peer bytes/voxel")
    lines = []
    for row in rows:
        mine, theirs = row.ours.bytes_per_voxel, row.theirs.bytes_per_voxel
        if mine is not None and theirs is not None:
            lines.append((row.what, f"{mine:.1f}", *judge(mine, row.memory_floor), row.peer, f"{theirs:.1f}"))
    return format_table(columns, lines)


def run_contests(session: Session, size: int, wanted: Callable[[str], object]) -> list[Row]:
    """Run the contests that are wanted, and print the tables of each section."""
    rows: list[Row] = []
    contests = list_contests(size)
    for section in dict.fromkeys(contest.section for contest in contests):
        part: list[Row] = []
        session.notes.clear()
        for contest in contests:
            chosen = [ours for ours in contest.ours if wanted(f"{section}: {contest.title(ours)}")]
            if contest.section != section or not chosen:
                continue
            part += run_contest(contest, chosen, session)
        if part or session.notes:
            print(f"\n## {section}\n")
        if part:
            print(speed_table(part), "\n\nMemory above the inputs, result included:\n", memory_table(part), sep="\n")
        print_notes(session.notes)
        rows += part
    return rows


def print_notes(notes: Sequence[str]) -> None:
    if notes:
        print("", *(f"- {note}" for note in notes), sep="\n", flush=True)


IMPORT = """
import sys, time
started = time.perf_counter()
{statement}
print(time.perf_counter() - started)
known = sys.stdlib_module_names | set(sys.builtin_module_names)
names = {{name.partition('.')[0] for name in sys.modules}} - known
print(*sorted(name for name in names if name[0] != '_'))
"""

IMPORTS = (
    "import lpa3d",
    "from lpa3d import propagate",
    "from lpa3d import evaluate",
    "import cc3d",
    "from scipy.ndimage import label",
    "from skimage.segmentation import watershed",
)


def clock_imports(session: Session) -> dict[str, dict[str, Any]]:
    """Time each import in fresh processes that take turns, and list the modules that it loads."""
    imports: dict[str, dict[str, Any]] = {}
    for statement in IMPORTS:
        if is_installed(statement.split()[1].partition(".")[0]):
            imports[statement] = {"seconds": [], "loads": []}
    for number in range(2 * session.repeat + 1):
        for statement, measured in imports.items():
            done = subprocess.run(
                [sys.executable, "-c", IMPORT.format(statement=statement)],
                env=session.environment, capture_output=True, text=True, check=True,
            )  # fmt: skip
            seconds, names = done.stdout.splitlines()
            if number:  # the first time fills the system's file cache
                measured["seconds"].append(float(seconds))
            measured["loads"] = [name for name in names.split() if not name.startswith("lpa3d")]
    return imports


def run_startup(session: Session) -> dict[str, Any]:
    """Measure imports and first calls, and print the table."""
    session.notes.clear()
    say("startup: imports")
    imports = clock_imports(session)
    lines = []
    for statement, measured in imports.items():
        value = statistics.median(measured["seconds"])
        lines.append((statement, f"{value:.2f}", *judge(value, 0.6 if "lpa3d" in statement else None)))
        if "lpa3d" in statement:
            loads = measured["loads"]
            heavy = [name for name in HEAVY if name in loads] or ["none"]
            session.note(
                f"`{statement}` loads {', '.join(loads) or 'nothing else'}; of {', '.join(HEAVY)}: {', '.join(heavy)}."
            )
    first: dict[str, Any] = {}
    for verb in ("label", "propagate", "evaluate", "stitch", "fuse"):
        with tempfile.TemporaryDirectory(dir=session.folder) as cache:
            for state, floor in (("cold", 15.0), ("warm kernel cache", 1.0)):
                say(f"startup: first {verb}, {state}")
                # A cold cache is cold once.
                times = range(1 if state == "cold" else session.repeat)
                try:
                    runs = [session.do("first", {"verb": verb}, NUMBA_CACHE_DIR=cache) for _ in times]
                except FailedError as error:
                    session.failures.append(f"first call of {verb}: {error}")
                    break
                value = statistics.median(run["both"] for run in runs)
                lines.append((f"import and first {verb}, {state}", f"{value:.2f}", *judge(value, floor)))
                first[f"{verb}, {state}"] = runs
    print("\n## startup\n", format_table(("what", "s", "floor", "met?"), lines), sep="\n")
    print_notes(session.notes)
    return {"imports": imports, "first": first}


def run_scaling(session: Session, size: int) -> list[dict[str, Any]]:
    """Evaluate blocks against shifted blocks at several sizes, instances in proportion, and print the table."""
    session.notes.clear()
    rows: list[dict[str, Any]] = []
    lines = []
    for side in sorted({min(size, one) for one in (128, 256, 512)}):
        say(f"scaling: {side} cubed")
        try:
            files = {"reference": session.array("blocks", side), "prediction": session.array("blocks shifted", side)}
            task = {"verb": "evaluate", "tool": "lpa3d", "arrays": files, "options": {}, "repeat": session.repeat}
            measured = session.do("measure", task)
        except FailedError as error:
            session.failures.append(f"scaling: {side} cubed: {error}")
            continue
        instances = int(measured["answer"]["tp"] + measured["answer"]["fn"])
        rows.append({"side": side, "instances": instances, **measured})
        seconds = statistics.median(measured["seconds"])
        growth = measured["bytes_per_voxel"]
        memory = "" if growth is None else f"{growth * side**3 / 1e6:,.0f}"
        lines.append(
            (f"{side} cubed", f"{instances:,}", format_seconds(seconds), f"{1e9 * seconds / side**3:.1f}", memory)
        )
    print("\n## scaling\n", format_table(("what", "instances a side", "s", "ns/voxel", "MB"), lines), sep="\n")
    return rows


def run_quality(session: Session, size: int, wanted: Callable[[str], object]) -> list[dict[str, Any]]:
    """Compare the recovered instances with the truth, and print the tables."""
    session.notes.clear()
    volumes = [(kind, name) for kind, name in PAIRS if wanted(f"quality: {kind} {name}")]
    if volumes and not (is_installed("skimage") and is_installed("scipy")):
        print("\n## quality\n\nscikit-image is not installed.")
        return []
    rows: list[dict[str, Any]] = []
    for kind, name in volumes:
        say(f"quality: {kind} {name}")
        if session.data is None:
            session.note("no UroCell volumes.")
            continue
        task = {"kind": kind, "volume": name, "data": str(session.data), "size": min(size, TILE)}
        try:
            done = session.do("quality", task)
        except FailedError as error:
            session.failures.append(f"quality: {kind} {name}: {error}")
            continue
        rows += done.get("rows", [])
        if "missing" in done:
            session.note(f"{kind} {name}: {done['missing']}.")
    if rows or session.notes:
        print("\n## quality\n")
    if rows:
        print(quality_table(rows), "\nAgainst the watershed:\n", quality_floors(rows), sep="\n")
    print_notes(session.notes)
    return rows


def mean_score(rows: Sequence[Mapping[str, Any]], method: str, which: int) -> float:
    return statistics.fmean(row["scores"][method][which] for row in rows)


def quality_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return panoptic quality / adapted Rand error for each volume and step, and the means over the volumes."""
    lines = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        for axis, every in STEPS:
            same = [row for row in rows if (row["kind"], row["axis"], row["every"]) == (kind, axis, every)]
            groups = [(row["volume"], [row]) for row in same] + ([("mean", same)] if len(same) > 1 else [])
            for name, group in groups:
                cells = (f"{mean_score(group, m, 0):.3f} / {mean_score(group, m, 1):.3f}" for m in METHODS)
                lines.append((f"{kind}, 1 slice in {every} along {'zyx'[axis]}, {name}", *cells))
    return format_table(("panoptic quality / adapted Rand error", *METHODS), lines)


def quality_floors(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what is asked of the quality: the gain over the watershed."""
    ours, theirs = METHODS[:2]

    def gain(group: Sequence[Mapping[str, Any]]) -> float:
        return mean_score(group, ours, 0) - mean_score(group, theirs, 0)

    def rand_ratio(group: Sequence[Mapping[str, Any]]) -> float:
        return mean_score(group, ours, 1) / mean_score(group, theirs, 1)

    lines: list[tuple[str, ...]] = []
    vesicles = [row for row in rows if row["kind"] == "fv"]
    for steps, floors in (((8, 16), (0.085, 0.12, 0.42, 0.25)), ((32,), (0.06, 0.15, 0.8, 0.6))):
        group = [row for row in vesicles if row["axis"] == 0 and row["every"] in steps]
        if group:
            what = f"fv, 1 slice in {' and '.join(map(str, steps))} along z"
            value = gain(group)
            lines.append((f"{what}: quality, difference", f"{value:+.3f}", *judge(value, *floors[:2], more=True)))
            value = rand_ratio(group)
            lines.append((f"{what}: Rand error, ratio", f"{value:.3f}", *judge(value, *floors[2:])))
    for axis in (1, 2):
        for row in vesicles:
            if row["axis"] == axis:
                value = gain([row])
                what = f"fv {row['volume']}, 1 slice in {row['every']} along {'zyx'[axis]}: quality, difference"
                lines.append((what, f"{value:+.3f}", *judge(value, 0.0, more=True)))
    mitochondria = [row for row in rows if row["kind"] == "mito"]
    if mitochondria:
        value = min(gain([row]) for row in mitochondria)
        lines.append(("mito, the worst: quality, difference", f"{value:+.4f}", *judge(value, 0.0, more=True)))
        value = max(row["scores"][ours][1] - row["scores"][theirs][1] for row in mitochondria)
        lines.append(("mito, the worst: Rand error, difference", f"{value:+.4f}", *judge(value, 0.0)))
    return format_table(("what", "value", "floor", "met?"), lines)


def name_stitched(kind: str, volume: str, axis: int) -> str:
    along = "" if axis == 0 and (kind, volume) in STITCHED else f"along {'zyx'[axis]}"
    return " ".join(filter(None, (kind, volume, along)))


def list_stitched() -> dict[str, tuple[str, str, int]]:
    """Return what is stitched, by name."""
    return {name_stitched(*case): case for case in (*((*pair, 0) for pair in STITCHED), *FURTHER)}


def run_stitching(session: Session, size: int, wanted: Callable[[str], object]) -> list[dict[str, Any]]:
    """Stitch sections of known instances, and print the tables."""
    session.notes.clear()
    rows: list[dict[str, Any]] = []
    data = None if session.data is None else str(session.data)
    for name, (kind, volume, axis) in list_stitched().items():
        if not wanted(f"stitching: {name}"):
            continue
        say(f"stitching: {name}")
        task = {"what": name, "kind": kind, "volume": volume, "axis": axis, "data": data}
        try:
            done = session.do("stitching", task | {"size": size if kind == "phantom" else min(size, TILE)})
        except FailedError as error:
            session.failures.append(f"stitching: {name}: {error}")
            continue
        rows += done.get("rows", [])
        if "missing" in done:
            session.note(f"{name}: {done['missing']}.")
    if rows or session.notes:
        print("\n## stitching")
    if rows:
        print("", *stitching_tables(rows), sep="\n")
    print_notes(session.notes)
    return rows


def stitching_tables(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Yield quality and error of all methods where there are floors, what finishing costs, and the further volumes."""
    methods = (*STITCHERS, "lpa3d")
    main = {" ".join(pair): floors for pair, floors in STITCHED.items()}

    def pick(name: str, missing: bool, method: str, which: int) -> list[float]:
        same = [row for row in rows if row["what"] == name and (row["draw"] is not None) == missing]
        return [row["scores"][method][which] for row in same]

    def show(values: Sequence[float]) -> str:
        text = f"{statistics.fmean(values):.3f}"
        return text if len(values) == 1 else f"{text} ({min(values):.3f} to {max(values):.3f})"

    names = list(dict.fromkeys(row["what"] for row in rows))
    cases = [(name, missing) for missing in (False, True) for name in names if name in main]
    if cases:
        lines, errors, finished = [], [], []
        for name, missing in cases:
            what = f"{name}, 10 % missing" if missing else name
            verdict = judge(statistics.fmean(pick(name, missing, "lpa3d", 0)), *main[name][missing], more=True)
            lines.append((what, *(show(pick(name, missing, method, 0)) for method in methods), *verdict))
            errors.append((what, *(show(pick(name, missing, method, 1)) for method in methods)))
            if missing:
                given, whole = (pick(name, missing, method, 0) for method in ("lpa3d", FINISHED))
                lost = statistics.fmean(whole) - statistics.fmean(given)
                finished.append((what, show(given), show(whole), f"{lost:+.3f}", *judge(lost, LOST, more=True)))
        yield format_table(("panoptic quality", *methods, "floor", "met?"), lines)
        yield ""
        yield format_table(("adapted Rand error", *methods), errors)
        yield "\nFinished by `fuse` and `propagate`:\n"
        columns = ("panoptic quality", "on the slices given", "on all slices", "difference", "floor", "met?")
        yield format_table(columns, finished)
    lines = []
    for name in names:
        if name not in main:
            cells = [
                " / ".join(f"{statistics.fmean(pick(name, missing, method, which)):.3f}" for which in (0, 1))
                for missing in (False, True)
                for method in ("overlap > 0.5", "lpa3d", FINISHED)[: 2 + missing]
            ]
            lines.append((name, *cells))
    if lines:
        yield "\nFurther volumes:\n" if cases else ""
        shown = ["panoptic quality / adapted Rand error", "overlap > 0.5", "lpa3d"]
        shown += [f"{column}, 10 % missing" for column in shown[1:]] + [f"{FINISHED}, all slices"]
        yield format_table(shown, lines)


# ----------------------------------------------------------------------------------------------------------- the script


def count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_machine(threads: int) -> dict[str, str]:
    """Return what a reader must know to read the figures."""
    facts = {"system": f"{platform.system()} {platform.machine()}", "cores": f"{count_cores()}, threads {threads}"}
    with contextlib.suppress(FileNotFoundError):
        models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        facts["processor"] = models[0] if models else platform.processor()
        memory = re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
        facts["memory"] = f"{int(memory[1]) / 2**20:.0f} GiB" if memory else "unknown"
    if hasattr(os, "getloadavg"):
        facts["load before the start"] = f"{os.getloadavg()[0]:.1f}"
    facts["Python"] = platform.python_version()
    for module, package in {"numpy": "numpy", "numba": "numba", **MODULES}.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[package] = importlib.metadata.version(package)
        if not is_installed(module):
            facts[package] = "not installed"
    with contextlib.suppress(FileNotFoundError):
        words = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        facts["commit"] = subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    return facts


def find_data() -> Path | None:
    """Return the folder of the real data: that of ``LPA3D_DATA``, or one beside the checkout."""
    for folder in (os.environ.get("LPA3D_DATA"), ROOT.parent / "shared" / "data", ROOT / "shared" / "data"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    return None


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", metavar="REGEX", help="rows whose 'section: what' matches")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="timed calls in each process (default 3)")
    parser.add_argument("--size", type=int, default=512, metavar="N", help="side of the volumes: 512 (default) or 256")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder that holds urocell/ and connectomics.zarr")
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: all cores)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to a file")
    parser.add_argument("--list", action="store_true", help="list the rows and end")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.repeat < 1 or args.size < 32 or (args.threads is not None and args.threads < 1):
        parser.error("--repeat and --threads are at least 1, --size is at least 32")
    if args.data is not None and not args.data.is_dir():
        parser.error(f"--data {args.data} is no folder")
    return args


def main(words: Sequence[str] | None = None, work: Callable[..., dict[str, Any]] = run_worker) -> int:
    """Run the script; `work` does a job, by default in a process of its own."""
    args = parse(words)
    if args.worker:
        warnings.simplefilter("ignore")
        print(json.dumps(JOBS[args.worker[0]](json.loads(args.worker[1]))))
        return 0
    wanted = re.compile(args.only).search
    if args.list:
        titles = [f"{c.section}: {c.title(ours)}" for c in list_contests(args.size) for ours in c.ours]
        titles += ["scaling", "startup", *(f"quality: {kind} {name}" for kind, name in PAIRS)]
        titles += [f"stitching: {name}" for name in list_stitched()]
        print(*filter(wanted, titles), sep="\n")
        return 0
    started = time.perf_counter()
    threads = args.threads or count_cores()
    facts = describe_machine(threads)
    print(f"# lpa3d and its peers, {args.size} cubed\n\n" + "; ".join(f"{k} {v}" for k, v in facts.items()), flush=True)
    report: dict[str, Any] = {"machine": facts, "size": args.size}
    with tempfile.TemporaryDirectory(prefix="lpa3d-bench-") as folder:
        environment = {
            **os.environ,
            "LPA3D_NUM_THREADS": str(threads),
            "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            # A cache of this run's own: a kernel that was cached before may be older than the file that it calls.
            "NUMBA_CACHE_DIR": str(Path(folder) / "kernels"),
            "LPA3D_KERNEL_CACHE": "1",
        }
        session = Session(args.data or find_data(), Path(folder), environment, args.repeat, work)
        rows = run_contests(session, args.size, wanted)
        report["rows"] = [asdict(row) | {"ratio": row.ratio} for row in rows]
        if wanted("scaling"):
            report["scaling"] = run_scaling(session, args.size)
        if wanted("startup"):
            report["startup"] = run_startup(session)
        report["quality"] = run_quality(session, args.size, wanted)
        report["stitching"] = run_stitching(session, args.size, wanted)
    report["failures"], report["minutes"] = session.failures, (time.perf_counter() - started) / 60
    print(f"\n{report['minutes']:.1f} minutes.")
    if session.failures:
        print("\n## failures\n", *(f"- {text}" for text in session.failures), sep="\n")
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return 1 if session.failures else 0


if __name__ == "__main__":
    sys.exit(main())
