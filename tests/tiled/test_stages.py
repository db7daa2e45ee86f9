"""Stages: they read and write in scratch what they declare, what nobody reads is cleared, and each runs alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lpa3d
from lpa3d.errors import Lpa3dWarning
from lpa3d.tiled import label as tiled_label
from lpa3d.tiled import merge as tiled_merge
from lpa3d.tiled import propagate as tiled_propagate
from lpa3d.tiled.driver import run as driver
from lpa3d.tiled.driver.grid import Grid
from lpa3d.tiled.driver.scratch import Blobs, Folder, Scratch, ScratchError
from lpa3d.tiled.driver.stages import Plan, Stage, is_in
from lpa3d.tiled.driver.stored import open_source

zarr = pytest.importorskip("zarr")

from tests import stored_cell  # noqa: E402
from tests.stored_cell import TILE  # noqa: E402
from tests.tiled.test_propagate import blobs  # noqa: E402

# --------------------------------------------------------------------------------------------------------------- plan

PLAN = [
    Stage("scan", writes=("scan",)),
    Stage("maybe", reads=("scan",), writes=("more",)),
    Stage("many", reads=("more",), writes=("own",), many=True),
    Stage("write", reads=("scan",)),
    Stage("end", keeps=("result",)),
]


def test_areas_are_cleared_behind_their_last_reader() -> None:
    plan = Plan(PLAN)
    assert plan.enter("scan") == []
    assert plan.leave("scan") == []
    assert plan.enter("maybe") == []
    assert plan.leave("maybe") == []
    for k in range(3):
        assert plan.enter(f"many {k}") == []
        assert plan.leave(f"many {k}") == []
    assert plan.enter("write") == ["more", "own"]
    assert plan.leave("write") == ["scan"]
    assert plan.enter("end") == plan.leave("end") == []


def test_stages_that_are_passed_over() -> None:
    plan = Plan(PLAN)
    plan.enter("scan")
    plan.leave("scan")
    assert plan.enter("write") == ["more", "own"]
    assert plan.enter("end") == ["scan"]


def test_a_plan_is_made_more_precise() -> None:
    plan = Plan(PLAN)
    plan.enter("scan")
    plan.leave("scan")
    plan.enter("maybe")
    plan.leave("maybe")
    plan.declare([*PLAN[:3], Stage("write"), Stage("end")])
    assert plan.enter("many 1") == ["scan"]


def test_stages_that_are_not_declared_or_over_are_refused() -> None:
    plan = Plan(PLAN)
    for name in ("other", "scan 1"):
        with pytest.raises(ValueError, match="is not declared"):
            plan.enter(name)
    plan.enter("write")
    with pytest.raises(ValueError, match="which is over"):
        plan.enter("maybe")


# ---------------------------------------------------------------------------------------------------- what is declared


@dataclass
class Watch:
    """What a run did in scratch without having declared it; which stages began; which keys were left at the end."""

    plan: Plan | None = None
    stage: Stage | None = None
    wrong: list[str] = field(default_factory=list)
    begun: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)

    def note(self, doing: str, key: str) -> None:
        """Judge that a key is read or written now."""
        if self.plan is None:
            return
        if self.stage is not None:
            own = (*self.stage.writes, *self.stage.keeps)
            allowed = (*self.stage.reads, *own) if doing == "reads" else own
        else:
            # Between the stages the driver reads what is kept to the end, of the stages that there were.
            allowed = tuple(a for s in self.plan.stages for a in s.keeps) if doing == "reads" else ()
        if not any(is_in(key, area) for area in allowed):
            name = "the driver" if self.stage is None else f"stage {self.stage.name!r}"
            self.wrong.append(f"{name} {doing} {key}")


@dataclass(frozen=True)
class Watched:
    """Blobs that tell what is done with them."""

    blobs: Blobs
    watch: Watch

    def put(self, key: str, parts: list[bytes], *, durable: bool = False) -> None:
        self.watch.note("writes", key)
        self.blobs.put(key, parts, durable=durable)

    def name(self, key: str) -> str:
        return self.blobs.name(key)

    def get(self, key: str, start: int, length: int) -> bytes:
        self.watch.note("reads", key)
        return self.blobs.get(key, start, length)

    def has(self, key: str) -> bool:
        return self.blobs.has(key)

    def delete(self, key: str) -> None:
        self.blobs.delete(key)

    def clear(self, prefix: str) -> None:
        self.blobs.clear(prefix)

    def keys(self, prefix: str) -> Iterator[str]:
        return self.blobs.keys(prefix)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Watch all runs of a test."""
    seen = Watch()

    class WatchedPlan(Plan):
        def __init__(self, *stages: Any) -> None:
            super().__init__(*stages)
            seen.plan, seen.stage = self, None

        def enter(self, name: str) -> list[str]:
            areas = super().enter(name)
            seen.stage = self.stages[self._at]
            seen.begun.add(seen.stage.name)
            return areas

        def leave(self, name: str) -> list[str]:
            seen.stage = None
            return super().leave(name)

    scratches: list[Scratch] = []

    def make(blobs: Blobs) -> Scratch:
        scratches.append(Scratch(Watched(blobs, seen)))
        return scratches[-1]

    def look(blobs: Blobs, home: Path | None, before: Any) -> None:
        if before is not None and seen.plan is not None and scratches:
            seen.left.update(scratches[-1].keys(""))
        sweep(blobs, home, before)

    sweep = driver.sweep
    monkeypatch.setattr(driver, "Plan", WatchedPlan)
    monkeypatch.setattr(driver, "Scratch", make)
    monkeypatch.setattr(driver, "sweep", look)
    return seen


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return stored_cell.store_cell(tmp_path_factory.mktemp("inputs"))


def propagate_all(inputs: dict[str, Path], out: Path) -> None:
    volume, seeds = (zarr.array(array, chunks=(7, 9, 30), store=zarr.storage.MemoryStore()) for array in blobs())
    lpa3d.propagate(
        volume, seeds, unseeded="label", max_distance=6, spacing=(1, 2, 1), missing_slices=[3], return_confidence=True,
        out=(out / "a.zarr", out / "b.zarr"), tile=(6, 8, 15),
    )  # fmt: skip


def propagate_without_sweeps(inputs: dict[str, Path], out: Path) -> None:
    lpa3d.propagate(inputs["volume"], inputs["seeds"], sweeps=0, slice_axis=None, out=out / "labels.zarr", tile=TILE)


def propagate_nothing(inputs: dict[str, Path], out: Path) -> None:
    """Without a seed."""
    seeds = zarr.zeros(shape=(36, 40, 40), chunks=(9, 16, 11), dtype="u1", store=zarr.storage.MemoryStore())
    places = out / "a.zarr", out / "b.zarr"
    lpa3d.propagate(zarr.open_array(str(inputs["volume"])), seeds, return_confidence=True, out=places, tile=TILE)


def evaluate_all(inputs: dict[str, Path], out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lpa3d.tiled.surfaces.BUCKET", 1)
        patch.setattr("lpa3d.tiled.surfaces.LARGE", 3000)
        lpa3d.evaluate(
            inputs["volume"], inputs["volume"], instances="components", surfaces=True, warping="2d", tile=TILE
        )


def contacts(inputs: dict[str, Path], out: Path) -> None:
    lpa3d.contacts(inputs["instances"], tile=TILE)


DRAWING = {"drawing", "drawn join", "drawn pairs", "sections/items", "sections/lone", "sections/motions"}
LOOKED_AT = {f"sections/{name}" for name in ("classes", "planes", "pieces", "pairs", "switch")}
REFILLING = {"reattachment", "refilling"}
DIFFUSION = {"sweeps", "diffusion", "smoothed join", "smoothed pairs", *REFILLING}
WARPING = {"foregrounds", "slice", "warp"}
SURFACES = {f"surfaces: {name}" for name in ("pairs", "list", "measure", "large")}

VERBS: list[tuple[Any, set[str]]] = [
    (stored_cell.label, set()),
    (stored_cell.propagate, DRAWING | REFILLING),
    (stored_cell.merge, set()),
    (stored_cell.stitch, set()),
    (stored_cell.fuse, set()),
    (stored_cell.evaluate, SURFACES | WARPING),
    (propagate_all, set()),
    (propagate_without_sweeps, DIFFUSION),
    (propagate_nothing, DRAWING | LOOKED_AT | DIFFUSION),
    (evaluate_all, set()),
    (contacts, set()),
]
"""Calls, and the stages of each that it passes over."""


def call(verb: Any, inputs: dict[str, Path], out: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Lpa3dWarning)
        verb(inputs, out)


@pytest.mark.parametrize(("verb", "passed"), VERBS, ids=[verb.__name__ for verb, _ in VERBS])
def test_stages_do_what_they_declare(
    verb: Any, passed: set[str], inputs: dict[str, Path], tmp_path: Path, watch: Watch
) -> None:
    call(verb, inputs, tmp_path)
    assert not watch.wrong
    assert watch.plan is not None
    assert {stage.name for stage in watch.plan.stages} - watch.begun == passed
    # In the end there is nothing but what is kept to the end, and what the last stage read.
    keeps = [*(area for stage in watch.plan.stages for area in stage.keeps), *watch.plan.stages[-1].reads]
    assert {key for key in watch.left if not any(is_in(key, area) for area in keeps)} == set()
    assert watch.left


def test_a_read_that_is_not_declared_is_caught(
    inputs: dict[str, Path], tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    relabel = tiled_merge._relabel_tile

    def peep(context: Any, tile: int) -> None:
        context.scratch.has(f"seams/{tile}")
        with pytest.raises(ScratchError, match="it is missing"):  # it is gone
            context.scratch.get(f"seams/{tile}")
        relabel(context, tile)

    monkeypatch.setattr(tiled_merge, "_relabel_tile", peep)
    call(stored_cell.merge, inputs, tmp_path)
    assert watch.wrong[0].startswith("stage 'relabel' reads seams/")


def test_a_write_that_is_not_declared_is_caught(
    inputs: dict[str, Path], tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled_label, "STAGES", (Stage("label scan"), *tiled_label.STAGES[1:]))
    call(stored_cell.label, inputs, tmp_path)
    assert watch.wrong[0].startswith("stage 'label scan' writes label/scan/")
    assert any(key.startswith("label/scan/") for key in watch.left)


# --------------------------------------------------------------------------------------------------------------- alone


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(Folder(tmp_path / "scratch"))


def store(path: Path, array: Any) -> Any:
    zarr.create_array(str(path), shape=array.shape, dtype=array.dtype, chunks=(3, 4, 5))[:] = array
    return open_source(str(path), path.name)


def test_the_scan_of_a_tile(tmp_path: Path, scratch: Scratch) -> None:
    volume = np.zeros((4, 4, 8), np.uint8)
    volume[0, 0, 0] = volume[3, 3, 2:6] = 1
    grid = Grid(volume.shape, (4, 4, 4))
    tiled_label._scan(tiled_label._Scan(store(tmp_path / "v.zarr", volume), grid, scratch, 6), 0)
    assert list(scratch.keys("")) == ["label/scan/0"]
    found = scratch.get("label/scan/0")
    # Two components, of which the second goes on in the next tile.
    assert found["counts"].tolist() == [2, 1, 1]
    assert found["border"].tolist() == [1]
    assert found["x_high"].nonzero() == ([3], [3])


def test_the_census_of_a_tile(tmp_path: Path, scratch: Scratch) -> None:
    volume, seeds = np.ones((4, 4, 8), np.uint8), np.zeros((4, 4, 8), np.int32)
    seeds[1, :2, 5], seeds[3, 3, 7], seeds[2, 0, 4] = 7, 9, 7
    grid = Grid(volume.shape, (4, 4, 4))
    sources = store(tmp_path / "v.zarr", volume), store(tmp_path / "s.zarr", seeds)
    context = tiled_propagate._Census(grid, scratch, *sources, None, missing=(2,))
    tiled_propagate._count(context, 1)
    assert list(scratch.keys("")) == ["census/1"]
    found = scratch.get("census/1")
    assert found["rows"].tolist() == [[7, 1, 2], [9, 1, 1]]
    assert found["lost"].tolist() == [1]
    assert found["seeded0"].tolist() == [0, 2, 0, 1]
    assert found["masked0"].tolist() == [16, 16, 0, 16]


def test_the_diffusion_of_a_tile(scratch: Scratch) -> None:
    """A lone voxel of label 2 in a row of label 1 is outvoted; as a seed it stays."""
    grid = Grid((1, 1, 12), (1, 1, 6))
    tables = tiled_propagate._Tables(scratch)
    tables.put(ids=np.arange(3), classes=np.array([0, 1, 1], np.uint8))
    volume = tiled_propagate._Volume(grid, scratch, tables, 6, classes=None, cost=None)  # type: ignore[arg-type]
    filled, out = (scratch.volume(f"volumes/{name}", grid, np.uint32, cut=1) for name in ("filled", "smoothed"))
    for seed, expected in ((0, 1), (int(tiled_propagate.SEED), 2)):
        labels = np.ones((1, 1, 12), np.uint32)
        labels[..., 3] = 2 + seed
        for tile in range(2):
            filled.write(tile, labels[grid.box(tile).slices])
        context = tiled_propagate._Diffuse(volume, filled, (1, 1, 1, 1, 1, 1), 1, False, out, None)
        tiled_propagate._diffuse(context, 0)
        assert out.read(grid.box(0)).ravel().tolist() == [1, 1, 1, expected, 1, 1]
    assert sorted(scratch.keys("volumes/smoothed")) == ["volumes/smoothed/0"]
    assert sorted(scratch.keys("smoothed")) == ["smoothed/scan/0"]
