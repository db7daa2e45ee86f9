"""URLs on the command line, and options that are given twice."""

from __future__ import annotations

import argparse
import uuid

import numpy as np
import pytest

import lpa3d
from lpa3d import cli, io
from lpa3d.errors import InputError, LibraryError

zarr = pytest.importorskip("zarr")
pytest.importorskip("fsspec")

CLASSES = (np.random.default_rng(0).random((6, 9, 7)) < 0.5).astype(np.uint8)


@pytest.fixture
def bucket():
    """A place in memory that no other test has, with an array alone and one in a group."""
    url = f"memory://{uuid.uuid4().hex}"
    attributes = {"spacing": [40, 8, 4], "unit": "nm"}
    zarr.create_array(f"{url}/a.zarr", data=CLASSES, chunks=(4, 4, 4), attributes=attributes)
    zarr.create_group(f"{url}/g.zarr").create_array("s0", data=CLASSES, chunks=(4, 4, 4))
    return url


@pytest.mark.parametrize("name", ["a.zarr", "g.zarr", "g.zarr/s0"])
def test_inputs(tmp_path, bucket, name, capsys):
    assert cli.main(["info", f"{bucket}/{name}"]) == 0
    assert "6 9 7 (z y x)" in capsys.readouterr().out
    for number, out in enumerate(("o.zarr", "o.npy")):  # tile by tile, and in memory
        assert cli.main(["label", "-q", f"{bucket}/{name}", f"{tmp_path}/{number}{out}"]) == 0
        np.testing.assert_array_equal(io.read(tmp_path / f"{number}{out}"), lpa3d.label(CLASSES))
    if name == "a.zarr":
        assert io.open_volume(f"{bucket}/{name}").geometry.spacing == (40, 8, 4)
        assert cli.main(["convert", "-q", f"{bucket}/{name}", f"file://{tmp_path}/c.nii"]) == 0
        np.testing.assert_array_equal(io.read(f"file://{tmp_path}/c.nii"), CLASSES)


def test_outputs(tmp_path, bucket, capsys):
    label = ["label", "-q", f"{bucket}/a.zarr", f"{bucket}/o.zarr", "--scratch", str(tmp_path), "--tile", "4"]
    assert cli.main(label) == 0
    np.testing.assert_array_equal(io.read(f"{bucket}/o.zarr"), lpa3d.label(CLASSES))
    assert cli.main(label) == 2
    assert "exists" in capsys.readouterr().err
    np.save(tmp_path / "a.npy", CLASSES)
    for command in ("label", "convert"):
        assert cli.main([command, f"{tmp_path}/a.npy", f"{bucket}/p.zarr"]) == 2
        assert "only work tile by tile writes to a URL" in capsys.readouterr().err


def test_what_cannot_be_reached(bucket):
    with pytest.raises(InputError, match="is no zarr array that can be opened"):
        io.read(f"{bucket}/none.zarr")
    with pytest.raises(InputError, match=r"foo://, which is no known place; known are s3"):
        io.read("foo://a/b.zarr")
    with pytest.raises(InputError, match="is a URL of a file that is read whole"):
        io.read("https://example.org/labels.nii.gz")


def test_a_missing_library_is_named(monkeypatch):
    import fsspec

    def refuse(*args, **keywords):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", refuse)
    monkeypatch.setattr(fsspec.core, "get_filesystem_class", refuse)
    with pytest.raises(LibraryError, match=r"Install s3fs to access S3.*pip install 'lpa3d\[cloud\]' s3fs"):
        io.read("s3://bucket/a.zarr")
    with pytest.raises(LibraryError, match="s3fs"):
        lpa3d.label("s3://bucket/a.zarr", out="s3://bucket/b.zarr")


def list_options():
    """Return each option that takes one value (or a fixed number of them), of each command, with values for it."""
    parser = cli._parser(["demo"])
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, sub in commands.choices.items():
        for action in sub._actions:
            if action.option_strings and isinstance(action, argparse._StoreAction):
                value = str(action.choices[0]) if action.choices else "1"
                yield name, action.option_strings[-1], [value] * (action.nargs if isinstance(action.nargs, int) else 1)


def test_options_given_twice_are_refused(capsys):
    seen = set()
    for command, option, values in list_options():
        with pytest.raises(SystemExit) as exit:
            cli.main([command, option, *values, option, *values])
        said = capsys.readouterr().err
        if "it is given twice; give it once" in said:
            assert exit.value.code == 2
            seen.add(option)
        else:
            assert f"argument {option}" in said or "argument -" in said, (command, option, said)
    assert {"--classes", "--spacing", "--connectivity", "--tile", "--memory", "--out-classes"} <= seen


def test_options_that_add_up_may_be_given_again(tmp_path):
    np.save(tmp_path / "a.npy", CLASSES)
    more = ["--must-link", "0:1,1:1", "--must-link", "1:1,2:1"]
    assert cli.main(["stitch", "-q", f"{tmp_path}/a.npy", f"{tmp_path}/b.npy", *more]) == 0
