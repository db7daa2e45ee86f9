"""The size of voxels where the call does not give it: that which the files state, as on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lpa3d
from lpa3d import cli, io
from tests.results import open_result

zarr = pytest.importorskip("zarr")

SIZE = (40.0, 4.0, 8.0)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two instances that touch; two seeds of which the nearer one depends on the size of voxels."""
    monkeypatch.chdir(tmp_path)
    labels = np.zeros((6, 10, 12), np.uint16)
    labels[:3, 1:5, 1:5], labels[3:, 1:5, 1:5] = 1, 2
    io.write("labels.zarr", labels, spacing=SIZE, unit="nm")
    seeds = np.zeros((9, 1, 40), np.uint16)
    seeds[0, 0, 0], seeds[8, 0, 30] = 1, 2
    io.write("classes.zarr", np.ones(seeds.shape, np.uint8), spacing=SIZE, unit="nm")
    io.write("seeds.zarr", seeds)
    return tmp_path


@pytest.mark.parametrize("kind", ["path", "array"])
def test_it_is_that_of_the_file(files: Path, kind: str) -> None:
    def given(name: str) -> Any:
        return f"{name}.zarr" if kind == "path" else open_result(f"{name}.zarr")

    labels = io.read("labels.zarr")
    area = lpa3d.contacts(given("labels")).area
    np.testing.assert_array_equal(area, lpa3d.contacts(labels, spacing=SIZE).area)
    assert area[0] == 16 * SIZE[1] * SIZE[2]
    np.testing.assert_array_equal(lpa3d.contacts(given("labels"), spacing=(1, 1, 1)).area, [16])
    surfaces = [
        lpa3d.evaluate(*sides, surfaces=True, **options)["hd95"]
        for sides, options in (
            ([given("labels")] * 2, {}),
            ([labels] * 2, {"spacing": SIZE}),
        )
    ]
    assert surfaces[0] == surfaces[1]
    found = lpa3d.propagate(given("classes"), given("seeds"), out="out.zarr")
    volume, seeds = io.read("classes.zarr"), io.read("seeds.zarr")
    np.testing.assert_array_equal(found, lpa3d.propagate(volume, seeds, spacing=SIZE))
    assert (found[...] != lpa3d.propagate(volume, seeds)).any()


def test_outputs_state_it_too(files: Path) -> None:
    """That of the first input that does, also where the verb does not use it; what is given counts more."""
    lpa3d.label("classes.zarr", out="a.zarr")
    lpa3d.propagate("classes.zarr", "seeds.zarr", out="b.zarr")
    lpa3d.propagate("classes.zarr", "seeds.zarr", out="c.zarr", spacing=(3, 2, 1))
    lpa3d.label("seeds.zarr", out="d.zarr")
    found = {}
    for name in "abcd":
        with io.open_volume(f"{name}.zarr") as volume:
            found[name] = volume.geometry.spacing, volume.geometry.unit
    assert found == {"a": (SIZE, "nm"), "b": (SIZE, "nm"), "c": ((3, 2, 1), ""), "d": (None, "")}


def test_the_command_line_does_the_same(files: Path) -> None:
    assert cli.main(["propagate", "classes.zarr", "seeds.zarr", "shell.zarr", "-q"]) == 0
    lpa3d.propagate("classes.zarr", "seeds.zarr", out="python.zarr")
    np.testing.assert_array_equal(io.read("shell.zarr"), io.read("python.zarr"))


@pytest.mark.parametrize("tile", [[], ["--tile", "4"]])
def test_the_command_line_says_where_none_is_known(
    files: Path, capsys: pytest.CaptureFixture[str], tile: list[str]
) -> None:
    """Once, and where the verb uses it."""
    note = "seeds.zarr does not say how large voxels are; --spacing 1 1 1 is used"
    for words, count in (
        ("propagate seeds.zarr seeds.zarr a.zarr", 1),
        ("contacts seeds.zarr", 1),
        ("contacts labels.zarr", 0),
        ("contacts seeds.zarr --spacing 2 1 1", 0),
        ("label seeds.zarr b.zarr", 0),
        ("evaluate seeds.zarr seeds.zarr", 0),
        ("propagate seeds.zarr missing.zarr c.zarr", 0),
    ):
        cli.main([*words.split(), *tile])
        assert capsys.readouterr().err.count(note) == count, words
