"""Levels of results, made tile by tile: the same as of the whole result, for every verb that writes volumes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("zarr")

import lpa3d
from lpa3d.files.ngff import find_dataset, plan_steps, read_attributes, reduce_level
from tests import stored_cell
from tests.results import open_result
from tests.tiled.test_propagate import blobs

LEVELS = 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return stored_cell.store_cell(tmp_path_factory.mktemp("inputs"))


def call_label(inputs: dict[str, Path], out: Path, **options: Any) -> None:
    lpa3d.label(inputs["volume"], out=out / "labels.zarr", **options)


def call_propagate(inputs: dict[str, Path], out: Path, **options: Any) -> None:
    volume, seeds = blobs()
    for name, array in (("v", volume), ("s", seeds)):
        lpa3d.io.write(out / f"{name}.zarr", array, storage={"levels": 1})
    places = out / "labels.zarr", out / "confidence.zarr"
    rules = {"missing_slices": [3], "unseeded": "label", "spacing": (1, 2, 1), "return_confidence": True}
    lpa3d.propagate(out / "v.zarr", out / "s.zarr", out=places, **rules, **options)


def call_merge(inputs: dict[str, Path], out: Path, **options: Any) -> None:
    lpa3d.merge(inputs["instances"], min_contact=0.2, out=out / "labels.zarr", **options)


def call_stitch(inputs: dict[str, Path], out: Path, **options: Any) -> None:
    lpa3d.stitch(inputs["slices"], classes=inputs["volume"], out=out / "labels.zarr", **options)


def call_fuse(inputs: dict[str, Path], out: Path, **options: Any) -> None:
    lpa3d.fuse(classes=inputs["volume"], instances=inputs["seeds"], slices=inputs["instances"], out=out, **options)


CALLS: list[Callable[..., None]] = [call_label, call_propagate, call_merge, call_stitch, call_fuse]


@pytest.mark.each_other
@pytest.mark.parametrize(("tile", "layout"), [(16, "0.5"), ((9, 13, 16), "0.4")])
@pytest.mark.parametrize("call", CALLS, ids=[call.__name__[5:] for call in CALLS])
def test_levels_are_those_of_the_whole(
    call: Callable[..., None], tile: Any, layout: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    call(inputs, tmp_path, tile=tile, storage={"levels": LEVELS, "layout": layout})
    results = [place for place in tmp_path.glob("*.zarr") if place.stem not in "vs"]
    assert results
    for place in results:
        assert find_dataset("", read_attributes(place)) == "0"
        level = open_result(place)[:]
        spacing = (1, 2, 1) if call is call_propagate else None
        steps = plan_steps(level.shape, 3, spacing, LEVELS)
        assert len(steps) == LEVELS - 1
        for k, step in enumerate(steps):
            level = reduce_level(level, step, image=place.stem == "confidence")
            np.testing.assert_array_equal(open_result(place, level=k + 1)[:], level)


def test_colours_of_small_ids_are_found_over_all_tiles(tmp_path: Path) -> None:
    for largest, count in ((7, 8), (255, 256), (256, 0)):
        labels = np.zeros((4, 8, 8), np.uint16)
        labels[3, 7, 7], labels[0, 0, 0] = largest, 1
        lpa3d.io.write(tmp_path / "in.zarr", labels, overwrite=True)
        lpa3d.merge(tmp_path / "in.zarr", out=tmp_path / "out.zarr", tile=4, overwrite=True)
        found = read_attributes(tmp_path / "out.zarr")["ome"]["image-label"]
        assert len(found.get("colors", [])) == count
