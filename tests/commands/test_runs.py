"""``lpa3d runs``: unfinished runs are listed as they are, and one is deleted if it may be."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zarr")

from lpa3d import cli
from tests.tiled.driver.world import State, World, watch

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)
    with watch(tmp_path) as changes:
        yield World("label", "folder", tmp_path, changes)


def run(*argv: Any) -> int:
    return cli.main(["runs", *map(str, argv)])


def test_none(world: World, capsys: Any) -> None:
    world.call()
    assert run() == 0
    assert capsys.readouterr() == ("", "lpa3d: no unfinished run in . or below\n")
    assert run("--json") == 0
    assert json.loads(capsys.readouterr().out) == {"runs": []}
    assert run("nowhere") == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_a_run_is_listed_and_left_as_it_is(world: World, capsys: Any) -> None:
    stages = set()
    for at in (60, 200, 350):
        begin = world.save()
        assert world.crash(at)
        before = world.save()
        assert run("--json") == 0
        (one,) = json.loads(capsys.readouterr().out)["runs"]
        assert one["run"] == str(world.root / "out.zarr.lpa3d")
        assert one["outputs"] == {"out": str(world.root / "out.zarr")}
        assert one["verb"] == "label"
        assert one["parameters"] == {"connectivity": "26"}
        assert one["tile"] == [4, 4, 4]
        assert one["tiles"] == 4
        assert 0 <= one["tiles_done"] <= 4
        assert one["bytes"] == sum(len(data) for path, data in before.files.items() if data and ".lpa3d" in path)
        assert one["at_work"] is False
        assert one["damage"] is None
        assert one["started"] <= one["last_worked"]
        stages.add((len(one["stages_done"]), one["stage"]))
        assert run(world.root) == 0
        text = capsys.readouterr().out
        for line in (
            f"output:   {world.root}/out.zarr\n",
            "label of",
            "connectivity 26",
            "go on",
            "lpa3d runs --delete",
        ):
            assert line in text
        after = world.save()
        assert {path: data for path, data in after.files.items() if not path.endswith("lock")} == {
            path: data for path, data in before.files.items() if not path.endswith("lock")
        }
        world.call()
        assert world.holds(0, 0)
        world.restore(begin)
    assert len(stages) >= 2


def test_a_run_at_work_is_said_to_be_and_not_deleted(world: World, capsys: Any) -> None:
    codes = []

    def look(number: int, what: str, of: str) -> None:
        if number == 150:
            codes.append(run("--json"))
            codes.append(run("--delete", "world/out.zarr.lpa3d"))

    with world.watched(look):
        world.call()
    assert codes == [0, 2]
    said = capsys.readouterr()
    assert json.loads(said.out)["runs"][0]["at_work"] is True
    assert "another process is at work" in said.err
    assert world.holds(0, 0)


@pytest.mark.parametrize("place", ["folder", "scratch"])
def test_a_run_is_deleted_and_nothing_else(place: str, tmp_path: Path, capsys: Any) -> None:
    with watch(tmp_path) as changes:
        world = World("fuse", place, tmp_path, changes)
        before = world.save()
        assert world.crash(330)
        (home,) = world.root.rglob("*.lpa3d")
        (tmp_path / "other.zarr.lpa3d").mkdir()
        (tmp_path / "other.zarr.lpa3d" / "mine").write_text("mine")
        assert run(tmp_path, "--json") == 0
        assert [one["run"] for one in json.loads(capsys.readouterr().out)["runs"]] == [str(home)]
        for none in (home / "..", tmp_path / "inputs" / "volume.zarr", tmp_path / "other.zarr.lpa3d", "nowhere.lpa3d"):
            assert run("--delete", none) == 2
            assert "is no unfinished run" in capsys.readouterr().err
        assert run(tmp_path, "--delete", home) == 2
        capsys.readouterr()
        assert run("--delete", home) == 0
        assert capsys.readouterr() == ("", f"lpa3d: {home} is deleted\n")
        assert not world.litter()
        assert not any(data for path, data in world.save().files.items() if path not in before.files)
        assert (tmp_path / "other.zarr.lpa3d" / "mine").exists()
        world.call(1)
        assert world.holds(0, 1)


def test_a_run_that_was_putting_its_outputs_into_place_is_not_deleted(tmp_path: Path, capsys: Any) -> None:
    with watch(tmp_path) as changes:
        world = World("fuse", "folder", tmp_path, changes)
        world.call(1)
        states: list[State] = []

        def keep(number: int, what: str, of: str) -> None:
            if what in ("rename", "replace") and "/.lpa3d" not in of and of.endswith((".zarr", "/seeds")):
                states.append(world.save())

        with world.watched(keep):
            world.call(overwrite=True)
        refused = 0
        for state in states:
            world.restore(state)
            (home,) = world.root.rglob("*.lpa3d")
            if run("--delete", home) == 0:
                assert world.holds(0, 1)  # none of the former outputs was touched
                continue
            assert "make the same call again, which does the rest" in capsys.readouterr().err
            refused += 1
            world.call()
            assert world.holds(0, 0)
        assert refused
        assert not world.litter()


def test_a_damaged_run_is_listed_as_such(world: World, capsys: Any) -> None:
    assert world.crash(150)
    (world.root / "out.zarr.lpa3d" / "run.json").write_text("{")
    assert run("--json") == 0
    (one,) = json.loads(capsys.readouterr().out)["runs"]
    assert "is damaged" in one["damage"]
    assert run() == 0
    assert "damage:" in capsys.readouterr().out
    assert run("--delete", "world/out.zarr.lpa3d") == 2
    assert os.path.isdir("world/out.zarr.lpa3d")
