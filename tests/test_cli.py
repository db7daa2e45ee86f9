"""The command line as its users and their scripts meet it: files, messages, exit codes, signals."""

import argparse
import csv
import datetime
import inspect
import io as textio
import json
import logging
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
import zarr

import lpa3d
from lpa3d import cli, io
from lpa3d.commands import counts as _counts
from lpa3d.commands import terminal as _terminal
from lpa3d.commands.terminal import Terminal
from lpa3d.errors import Lpa3dWarning
from lpa3d.files.geometry import NANOMETRES
from lpa3d.files.places import locate
from lpa3d.files.volume import Volume
from lpa3d.files.writers import WRITERS

SUFFIXES = ["zarr", "npy", "nii.gz", "tif", "h5"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def two_cells() -> tuple[np.ndarray, np.ndarray]:
    """A mask of two bars, and seeds on every second slice."""
    volume = np.zeros((9, 8, 10), "uint8")
    volume[:, 1:4, 1:9] = 1
    volume[:, 4:7, 1:9] = 2
    seeds = np.zeros(volume.shape, "uint16")
    seeds[::2][volume[::2] == 1] = 7
    seeds[::2][volume[::2] == 2] = 300
    return volume, seeds


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder to work in, with a class map and seeds of each format."""
    monkeypatch.chdir(tmp_path)
    volume, seeds = two_cells()
    for suffix in SUFFIXES:
        io.write(f"volume.{suffix}", volume, spacing=(40, 8, 8), unit="nm")
        io.write(f"seeds.{suffix}", seeds, spacing=(40, 8, 8), unit="nm")
    return tmp_path


def run(*args: object, code: str | None = None, **kwargs: object) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own; `code` runs before it, to prepare a fault."""
    start = (
        ["-m", "lpa3d"] if code is None else ["-c", f"{code}\nimport sys\nfrom lpa3d.cli import main\nsys.exit(main())"]
    )
    return subprocess.run(
        [sys.executable, *start, *map(str, args)], capture_output=True, text=True, timeout=60, check=False, **kwargs
    )


def assert_refused_unread(words, message, files, capsys, monkeypatch):
    """A command ends with exit code 2 and one line, before a volume is read; what is in `files` stays as it is."""
    before = {path: path.stat().st_mtime_ns for path in files.rglob("*")}
    monkeypatch.setattr(io.Volume, "read", None)
    assert cli.main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lpa3d: error: ")
    assert message in said.err
    assert said.err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in files.rglob("*")} == before


def assert_refused(done: subprocess.CompletedProcess, message: str, code: int = 2) -> None:
    assert done.returncode == code, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.startswith("lpa3d: error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


# -------------------------------------------------------------------------------------------------------- the commands


@pytest.mark.each_value
@pytest.mark.parametrize("source", SUFFIXES)
@pytest.mark.parametrize("target", SUFFIXES)
def test_label_is_lpa3d_label(files, source, target, capsys):
    assert cli.main(["label", f"volume.{source}", f"out.{target}", "--connectivity", "26"]) == 0
    expected = lpa3d.label(two_cells()[0], connectivity=26)
    result = io.read(f"out.{target}")
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)
    said = capsys.readouterr()
    assert said.out == ""
    step = "labelled" if (source, target) == ("zarr", "zarr") else "read"
    assert re.fullmatch(rf"lpa3d: 2 components, 432 of 720 voxels \(60\.0 %\) labelled; {step} in .* s\n", said.err)


def test_label_in_a_process(files):
    done = run("label", "volume.npy", "out.npy", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_array_equal(np.load("out.npy"), lpa3d.label(two_cells()[0]))


def test_label_of_two_dimensions(files):
    io.write("flat.tif", two_cells()[0][0])
    assert cli.main(["label", "flat.tif", "out.tif"]) == 0
    np.testing.assert_array_equal(io.read("out.tif"), lpa3d.label(two_cells()[0][0]))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_propagate_is_lpa3d_propagate(files, suffix, capsys):
    volume, seeds = two_cells()
    command = ["propagate", f"volume.{suffix}", f"seeds.{suffix}", f"out.{suffix}"]
    assert cli.main(command) == 0
    spacing = (1, 1, 1) if suffix == "npy" else (40, 8, 8)
    expected = lpa3d.propagate(volume, seeds, spacing=spacing)
    result = io.read(f"out.{suffix}")
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result, expected)
    said = capsys.readouterr().err
    assert ("(z y x), from volume." in said) == (suffix != "npy")
    step = "propagated" if suffix == "zarr" else "read"
    assert f"lpa3d: 2 instances, 432 of 720 voxels (60.0 %) labelled; {step} in " in said
    with io.open_volume(f"out.{suffix}") as out, io.open_volume(f"volume.{suffix}") as given:
        assert out.geometry.spacing == given.geometry.spacing


def test_propagate_options_reach_the_verb(files, monkeypatch, capsys):
    volume, seeds = two_cells()
    io.write("cost.npy", np.ones(volume.shape, "float32"))
    seen = {}

    def propagate(*args, **keywords):
        seen.update(keywords, args=args)
        return args[1], args[1].astype("uint16")

    monkeypatch.setattr(lpa3d, "propagate", propagate)
    options = (
        "--connectivity 18 --spacing 4 2 1 --cost cost.npy --max-distance 90 --sweeps 3 --slice-axis y "
        "--missing-slices 3,7,1-2 --unseeded label --seed-conflicts majority --confidence sure.tif"
    )
    assert cli.main(["propagate", "volume.tif", "seeds.tif", "out.npy", *options.split()]) == 0
    np.testing.assert_array_equal(seen.pop("args")[0], volume)
    np.testing.assert_array_equal(seen.pop("cost"), np.ones(volume.shape, "float32"))
    seen.pop("progress")
    assert seen == {
        "connectivity": 18,
        "device": None,
        "spacing": (4.0, 2.0, 1.0),
        "max_distance": 90.0,
        "sweeps": 3,
        "slice_axis": 1,
        "missing_slices": (1, 2, 3, 7),
        "unseeded": "label",
        "seed_conflicts": "majority",
        "return_confidence": True,
    }
    np.testing.assert_array_equal(io.read("sure.tif"), seeds)
    with io.open_volume("sure.tif") as sure:
        assert sure.geometry.spacing == (4.0, 2.0, 1.0)
    assert "from volume" not in capsys.readouterr().err


def test_propagate_defaults_are_those_of_the_verb(files, monkeypatch):
    seen = {}

    def propagate(volume, seeds, **keywords):
        seen.update(keywords)
        return seeds

    signature = inspect.signature(lpa3d.propagate)
    monkeypatch.setattr(lpa3d, "propagate", propagate)
    assert cli.main(["propagate", "volume.npy", "seeds.npy", "out.npy"]) == 0
    del seen["progress"]
    # None is 1 1 1 where no file says otherwise.
    assert seen.pop("spacing") == (1, 1, 1)
    assert signature.parameters["spacing"].default is None
    assert seen == {name: signature.parameters[name].default for name in seen}


def test_64_bit_nifti_is_remarked_on(files, capsys, monkeypatch):
    monkeypatch.setattr(lpa3d, "label", lambda volume, **_: volume.astype("int64"))
    assert cli.main(["label", "volume.npy", "out.nii"]) == 0
    assert "lpa3d: out.nii holds int64, which some NIfTI viewers cannot open" in capsys.readouterr().err
    assert io.read("out.nii").dtype == np.int64


def test_merge_is_lpa3d_merge(files):
    labels = two_cells()[1].astype("int32")
    labels[1::2] = labels[::2][:-1] + 1
    labels[two_cells()[0] == 0] = 0
    io.write("labels.tif", labels)
    Path("cannot.csv").write_text("id_a,id_b,why\n7,300,neighbours\n")
    command = "merge labels.tif out.tif --classes volume.tif --min-contact 0.1 --must-link 7:8 --cannot-link cannot.csv"
    assert cli.main(command.split()) == 0
    expected = lpa3d.merge(
        labels,
        classes=two_cells()[0],
        min_contact=0.1,
        must_link=[(7, 8)],
        cannot_link=[(7, 300)],
    )
    np.testing.assert_array_equal(io.read("out.tif"), expected)
    assert io.read("out.tif").dtype == expected.dtype
    Path("scores.csv").write_text("7,8,0.9\n300,301,0.1\n")
    assert cli.main(["merge", "labels.tif", "scored.tif", "--scores", "scores.csv", "--min-contact", "0.5"]) == 0
    np.testing.assert_array_equal(np.unique(io.read("scored.tif")), [0, 7, 300, 301])


def test_contacts_prints_csv(files, capsys):
    labels = two_cells()[1]
    io.write("labels.tif", labels, spacing=(40, 8, 8), unit="nm")
    io.write("image.npy", labels.astype("float32"))
    command = ["contacts", "labels.tif", "--image", "image.npy", "--connectivity", "18"]
    assert cli.main(command) == 0
    said = capsys.readouterr()
    rows = list(csv.DictReader(textio.StringIO(said.out)))
    table = lpa3d.contacts(labels, image=labels.astype("float32"), spacing=(40, 8, 8), connectivity=18).columns()
    assert list(rows[0]) == list(table)
    for name, column in table.items():
        assert [column.dtype.type(row[name]) for row in rows] == column.tolist()
    assert "lpa3d: 1 touching pair; read in" in said.err
    assert cli.main([*command, "-o", "out.csv"]) == 0
    assert Path("out.csv").read_text() == said.out
    assert capsys.readouterr().out == ""
    assert cli.main([*command, "-o", "out.csv"]) == 2
    assert cli.main([*command, "-o", "out.csv", "--overwrite"]) == 0


def test_contacts_of_nothing_has_a_header(files, capsys):
    io.write("labels.npy", np.zeros((2, 3, 4), "uint8"))
    assert cli.main(["contacts", "labels.npy", "-q"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("id_a,id_b,faces_z,")
    assert said.out.count("\n") == 1
    assert said.err == ""


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_info(files, suffix, capsys):
    assert cli.main(["info", f"seeds.{suffix}"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^shape: +9 8 10 \(z y x\), 720 voxels, 1\.4 kB in memory$", text, re.MULTILINE)
    assert re.search(r"^dtype: +uint16$", text, re.MULTILINE)
    assert re.search(r"^values: +0 to 300$", text, re.MULTILINE)
    assert re.search(r"^not 0: +240 of 720 voxels \(33\.3 %\)$", text, re.MULTILINE)
    assert re.search(r"^labels: +2 different ids besides 0$", text, re.MULTILINE)
    assert re.search(r"^  7: +120 of 720 voxels", text, re.MULTILINE)
    assert cli.main(["info", f"seeds.{suffix}", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["shape"] == [9, 8, 10]
    assert facts["voxels"] == {"0": 480, "7": 120, "300": 120}
    if suffix != "npy":
        np.testing.assert_allclose(np.multiply(facts["spacing"], NANOMETRES[facts["unit"]]), (40, 8, 8))


def test_info_counts_in_slabs(files, monkeypatch, capsys):
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2**63, (6, 20, 20), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    labels[rng.random(labels.shape) < 0.5] = 0
    labels[3] = labels[0]
    io.write("many.npy", labels)
    monkeypatch.setattr("lpa3d.files.volume.SLAB_BYTES", 2 * 400 * 8)
    monkeypatch.setattr(_counts, "_pieces", lambda slab: (part.reshape(-1) for part in slab))
    assert cli.main(["info", "many.npy", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["labels"] == len(np.unique(labels)) - 1
    assert facts["foreground_voxels"] == np.count_nonzero(labels)
    assert facts["largest"] == int(labels.max())


@pytest.mark.parametrize(("dtype", "fill"), [(">u8", 9), ("f4", 0)])
@pytest.mark.parametrize("kind", ["chunks", "shards", "zarr2", "hdf5", "contiguous"])
def test_info_reads_what_is_stored(files, kind, fill, dtype, monkeypatch, capsys):
    """Slabs of whole planes may be larger than the memory, and most of a volume may be stored nowhere."""
    shape, chunks = (20, 300, 300), (7, 13, 11)
    values = np.full(shape, fill, dtype)
    values[6:9, 280:, :15] = np.arange(3 * 20 * 15).reshape(3, 20, 15) // 40
    if kind in ("hdf5", "contiguous"):
        with h5py.File("a.h5", "w") as file:
            how = {"chunks": chunks} if kind == "hdf5" else {}
            node = file.create_dataset("a", shape, dtype, fillvalue=fill, **how)
            node[6:9, 280:, :15] = values[6:9, 280:, :15]
    else:
        how = {"shards": {"shards": (14, 26, 22)}, "zarr2": {"zarr_format": 2}}.get(kind, {})
        array = zarr.create_array("a.zarr", shape=shape, dtype=dtype, chunks=chunks, fill_value=fill, **how)
        array[6:9, 280:, :15] = values[6:9, 280:, :15]
    largest = []
    read_box = Volume.read_box
    monkeypatch.setattr(Volume, "read_box", lambda self, box: largest.append(read_box(self, box)) or largest[-1])
    monkeypatch.setattr("lpa3d.files.volume.SLAB_BYTES", 10**5)
    assert cli.main(["info", "a.h5" if kind in ("hdf5", "contiguous") else "a.zarr", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert max(part.nbytes for part in largest) <= 10**5
    assert len(largest) <= (256 if kind == "contiguous" else 32)
    assert (facts["smallest"], facts["largest"]) == (values.min(), values.max())
    assert facts["foreground_voxels"] == np.count_nonzero(values)
    if dtype != "f4":
        assert facts["labels"] == len(np.unique(values[values != 0]))


def test_info_of_nothing_that_is_stored(files, capsys):
    zarr.create_array("a.zarr", shape=(10**5,) * 3, dtype="u8", chunks=(64,) * 3, fill_value=2**64 - 1)
    assert cli.main(["info", "a.zarr", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["voxels"] == {str(2**64 - 1): 10**15}


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0.0, 2.5], [np.nan, -1]], "float32"), {"smallest": -1.0, "largest": 2.5, "whole_numbers": False}),
        (np.array([[0.0, 2], [7, 7]], "float64"), {"smallest": 0.0, "largest": 7.0, "whole_numbers": True}),
        (np.array([[-3, 2], [7, 7]], "int8"), {"smallest": -3, "largest": 7, "labels": 3}),
        (np.array([[True, False]]), {"smallest": 0, "largest": 1, "labels": 1}),
        (np.zeros((0, 3), "uint8"), {"shape": [0, 3]}),
        (np.array([[1j]]), {"dtype": "complex128"}),
    ],
)
def test_info_of_other_arrays(files, array, expected, capsys):
    np.save("a.npy", array)
    assert cli.main(["info", "a.npy", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {key: facts[key] for key in expected} == expected
    assert cli.main(["info", "a.npy"]) == 0


def test_nifti_of_whole_floats_works_and_says_so(files, capsys):
    volume = two_cells()[0]
    nibabel.save(nibabel.Nifti1Image(volume.T.astype("float64"), np.diag([16.0, 16, 15, 1])), "float.nii.gz")
    assert cli.main(["label", "float.nii.gz", "out.nii.gz"]) == 0
    assert "float.nii.gz stores whole numbers as float64; they are read as uint32" in capsys.readouterr().err
    np.testing.assert_array_equal(io.read("out.nii.gz"), lpa3d.label(volume))
    np.testing.assert_array_equal(nibabel.load("out.nii.gz").affine, np.diag([16.0, 16, 15, 1]))


def test_real_files(data_dir, tmp_path):
    name = data_dir / "urocell/fv/binary/fib1-0-0-0.nii.gz"
    assert cli.main(["label", str(name), str(tmp_path / "out.nii.gz"), "--connectivity", "26", "-q"]) == 0
    mask = np.asarray(nibabel.load(name).dataobj).T != 0
    np.testing.assert_array_equal(io.read(tmp_path / "out.nii.gz"), lpa3d.label(mask, connectivity=26))


# ----------------------------------------------------------------------------------------------------- help and usage


@pytest.mark.parametrize("command", ["", "label", "propagate", "merge", "contacts", "info", "demo"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: lpa3d {command}".rstrip())
    if command in ("label", "propagate", "merge", "contacts", "info"):
        assert f"examples:\n  lpa3d {command} " in text
        assert "--quiet" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_version(capsys):
    for words in (["--version"], ["label", "--version"]):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0
        assert capsys.readouterr().out == f"lpa3d {lpa3d.__version__}\n"


def test_no_command_prints_help_and_fails():
    done = run()
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("usage: lpa3d")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("labell a b", "invalid choice: 'labell'"),
        ("label volume.npy", "arguments are required: OUT"),
        ("label volume.npy out.npy --connectivity 7", "--connectivity: invalid choice: 7"),
        ("label volume.npy out.npy --connect 6", "unrecognized arguments: --connect"),
        ("propagate volume.npy seeds.npy out.npy --spacing 1 2", "--spacing: expected 3 arguments"),
        ("propagate volume.npy seeds.npy out.npy --slice-axis w", "'w' is none of auto, none, z"),
        (
            "propagate volume.npy seeds.npy out.npy --missing-slices 3,x",
            "'3,x' is no list of slices, such as 3,7,10-12",
        ),
        ("propagate volume.npy seeds.npy out.npy --missing-slices 9-3", "'9-3' is no list of slices"),
        ("propagate volume.npy seeds.npy out.npy --unseeded keep", "invalid choice: 'keep'"),
        ("propagate volume.npy seeds.npy out.npy --sweeps many", "invalid int value: 'many'"),
    ],
)
def test_usage_errors(files, words, message, capsys):
    before = names(files)
    with pytest.raises(SystemExit) as stop:
        cli.main(words.split())
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lpa3d: error: ")
    assert message in said.err
    assert re.search(r"\nTry 'lpa3d( \w+)? --help'\.\n$", said.err)
    assert names(files) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("label missing.npy out.npy", "missing.npy does not exist"),
        ("label volume.npy out.png", "'out.png' has no suffix that is known; known are .zarr, .npy"),
        ("label volume.npy no/out.npy", "no does not exist; make it with: mkdir -p"),
        ("label volume.npy seeds.npy", "seeds.npy exists; pass --overwrite"),
        ("label volume.npy volume.npy --overwrite", "volume.npy is also an input"),
        ("label volume.npy ./volume.npy --overwrite", "volume.npy is also an input"),
        ("label complex.npy out.npy", "complex.npy holds complex128"),
        ("propagate volume.npy small.npy out.npy", "volume.npy has shape (9, 8, 10) but small.npy has shape (2, 3, 4)"),
        ("propagate volume.npy seeds.npy out.npy --cost small.npy", "but small.npy has shape (2, 3, 4)"),
        ("propagate volume.npy seeds.npy out.npy --confidence out.npy", "out.npy and out.npy would be one"),
        ("propagate volume.npy seeds.npy out.npy --confidence seeds.npy", "seeds.npy is also an input"),
        ("propagate volume.npy seeds.npy out.npy --spacing 1 0 1", "every value must be finite and > 0"),
        ("propagate volume.npy seeds.npy out.npy --spacing 1 nan 1", "every value must be finite and > 0"),
        ("merge seeds.npy out.npy --must-link 3", "cannot read 3: No such file"),
        ("merge seeds.npy out.npy --must-link bad.csv", "bad.csv, line 2: two ids are needed, such as 3,7"),
        ("merge seeds.npy out.npy --scores bad.csv", "bad.csv has columns id_a, id_b; needed are id_a, id_b, score"),
        ("merge seeds.npy out.npy --scores half.csv", "half.csv, line 1: two ids and a score are needed"),
        ("merge seeds.npy bad.csv", "'bad.csv' has no suffix"),
        ("contacts seeds.npy --image small.npy", "but small.npy has shape (2, 3, 4)"),
        ("contacts seeds.npy -o volume.npy", "volume.npy exists; pass --overwrite"),
        ("contacts seeds.npy -o seeds.npy --overwrite", "seeds.npy is also an input"),
        ("info volume.txt", "'volume.txt' has no suffix"),
    ],
)
def test_bad_input_before_any_work(files, words, message, capsys, monkeypatch):
    np.save("complex.npy", np.zeros((9, 8, 10), complex))
    np.save("small.npy", np.zeros((2, 3, 4), "uint8"))
    Path("bad.csv").write_text("id_a,id_b\n1.5,3\n")
    Path("half.csv").write_text("3,7\n")
    assert_refused_unread(words.split(), message, files, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("values", "dtype", "told"),
    [
        ([0, 1, 2**64 - 1], "uint64", ["18446744073709551615"]),
        ([1, 2**64 - 1], "uint64", ["18446744073709551615"]),
        ([0, 1, -1], "int16", ["-1"]),
        ([0, 1, -1, 2**15 - 1], "int16", ["-1", "32767"]),
        ([0, 2**16 - 1], "uint16", []),  # a mask
        ([0, 1, 255], "uint8", []),
        ([0, 1, 2], "uint64", []),
    ],
)
def test_numbers_that_often_mark_no_data(files, values, dtype, told, capsys):
    np.save("marked.npy", np.resize(np.array(values, dtype), (2, 3, 4)))
    assert cli.main(["label", "marked.npy", "out.npy", "-q"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("warning: ")[2].split()[0] for line in said] == told


@pytest.mark.parametrize("words", ["label float.npy out.npy", "propagate volume.npy float.npy out.npy"])
def test_images_are_no_labels(files, words, capsys):
    image = np.zeros((9, 8, 10), "float32")
    image[0, 0, 0] = 0.5
    np.save("float.npy", image)
    assert cli.main(words.split()) == 2
    assert "float.npy holds float32" in capsys.readouterr().err
    assert not Path("out.npy").exists()


def test_errors_of_the_verb_are_bad_input(files):
    _, seeds = two_cells()
    np.save("negative.npy", -seeds.astype("int16"))
    assert_refused(run("propagate", "volume.npy", "negative.npy", "out.npy", "-q"), "holds negative ids")
    assert not Path("out.npy").exists()


def test_missing_library(files, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for words in (["label", "volume.tif", "out.npy"], ["label", "volume.npy", "out.tif"]):
        assert cli.main(words) == 1
        said = capsys.readouterr().err
        assert said.startswith("lpa3d: error: tifffile is needed")
        assert "pip install 'lpa3d[tiff]'" in said
    assert not list(files.glob("out*"))


def test_files_that_lie_elsewhere_are_warned_about(files, monkeypatch, capsys):
    _, seeds = two_cells()
    monkeypatch.setattr(lpa3d, "propagate", lambda volume, seeds, **_: seeds)
    io.write("moved.nii", seeds, spacing=(40, 9, 8), unit="nm")
    assert cli.main(["propagate", "volume.nii.gz", "moved.nii", "a.npy", "-q"]) == 0
    assert capsys.readouterr().err == (
        "lpa3d: warning: volume.nii.gz and moved.nii have different affines; voxels are matched by index\n"
    )
    io.write("moved.tif", seeds, spacing=(40, 9, 8), unit="nm")
    assert cli.main(["propagate", "volume.tif", "moved.tif", "b.npy", "-q"]) == 0
    assert "volume.tif has spacing 40 8 8 but moved.tif 40 9 8" in capsys.readouterr().err
    assert cli.main(["propagate", "volume.tif", "seeds.tif", "c.npy", "-q"]) == 0
    assert capsys.readouterr().err == ""


# -------------------------------------------------------------------------------------------- warnings and failures


def stub(body: str) -> str:
    """Code that puts a function of one's own in the place of `lpa3d.label`."""
    return f"import time, lpa3d, lpa3d.errors\ndef label(volume, **_):\n    {body}\nlpa3d.label = label"


def test_warnings_of_the_library_are_messages(files, monkeypatch, capsys):
    import warnings

    def label(volume, **_):
        warnings.warn("3 seeds lie on background", Lpa3dWarning, stacklevel=2)
        warnings.warn("the API will change", DeprecationWarning, stacklevel=2)
        return volume

    monkeypatch.setattr(lpa3d, "label", label)
    assert cli.main(["label", "volume.npy", "out.npy", "--quiet"]) == 0
    assert capsys.readouterr().err == "lpa3d: warning: 3 seeds lie on background\n"


def test_advice_names_options(files, capsys):
    volume, seeds = two_cells()
    volume[:, :, -1], seeds[0, 1, 1] = 3, 300
    io.write("third.npy", volume)
    io.write("mixed.npy", seeds)
    assert cli.main(["propagate", "third.npy", "seeds.npy", "out.npy", "-q"]) == 0
    assert "pass --unseeded label to give them ids of their own" in capsys.readouterr().err
    assert cli.main(["propagate", "third.npy", "mixed.npy", "none.npy", "-q"]) == 2
    assert "--seed-conflicts majority" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise lpa3d.errors.InputError('the seeds are bad')", 2, "error: the seeds are bad"),
        ("raise lpa3d.errors.InputTypeError('the seeds are worse')", 2, "error: the seeds are worse"),
        ("raise lpa3d.errors.RangeError('too far')", 1, "error: too far"),
        ("raise MemoryError('Unable to allocate 9 TiB')", 1, r"error: not enough memory \(Unable to allocate 9 TiB\)"),
        ("raise OSError(5, 'Input/output error', 'a.npy')", 1, "error: a.npy: Input/output error"),
        ("raise KeyError('x')", 1, r"error: unexpected KeyError: 'x' \(LPA3D_DEBUG=1 shows where"),
        ("raise RuntimeError('a\\nlong\\nstory')", 1, r"error: unexpected RuntimeError: a \(LPA3D_DEBUG=1"),
    ],
)
def test_failures(files, body, code, message):
    before = names(files)
    done = run("label", "volume.npy", "out.npy", code=stub(body))
    assert_refused(done, message, code)
    assert names(files) == before
    done = run("label", "volume.npy", "out.npy", code=stub(body), env=os.environ | {"LPA3D_DEBUG": "1"})
    assert done.returncode == code
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_failed_write_leaves_nothing(files, suffix, monkeypatch, capsys):
    kind = locate(f"out.{suffix}").format
    writer = WRITERS[kind]

    def full(target, array, geometry, progress):
        writer(target, array, geometry, progress)
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(WRITERS, kind, full)
    before = names(files)
    assert cli.main(["label", "volume.npy", f"out.{suffix}"]) == 1
    assert f"lpa3d: error: cannot write out.{suffix}: No space left on device\n" in capsys.readouterr().err
    assert cli.main(["label", "volume.npy", f"seeds.{suffix}", "--overwrite"]) == 1
    assert names(files) == before
    np.testing.assert_array_equal(io.read(f"seeds.{suffix}"), two_cells()[1])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_overwrite(files, suffix):
    assert cli.main(["label", "volume.npy", f"seeds.{suffix}", "--overwrite"]) == 0
    np.testing.assert_array_equal(io.read(f"seeds.{suffix}"), lpa3d.label(two_cells()[0]))
    assert not list(files.glob(".lpa3d*"))


def test_confidence_is_not_left_without_labels(files, monkeypatch):
    monkeypatch.setattr(lpa3d, "propagate", lambda volume, seeds, **_: (seeds, seeds.astype("uint16")))

    def full(target, array, geometry, progress):
        raise OSError(28, "No space left on device")

    monkeypatch.setitem(WRITERS, "tiff", full)
    before = names(files)
    assert cli.main(["propagate", "volume.npy", "seeds.npy", "out.npy", "--confidence", "sure.tif"]) == 1
    assert names(files) == before


# ---------------------------------------------------------------------------------------------------- killed and piped

SLOW_WRITER = """
import time, lpa3d
from lpa3d.files.writers import WRITERS
lpa3d.label = lambda volume, **_: volume
def slow(target, array, geometry, progress, writers=dict(WRITERS)):
    writers[target.location.format](target, array, geometry, progress)
    print("half", flush=True)
    while True:
        time.sleep(0.05)
        progress(0.5)
for name in WRITERS:
    WRITERS[name] = slow
"""

STUCK_WORK = """
import threading, time, lpa3d
from concurrent.futures import ThreadPoolExecutor
def label(volume, **_):
    print("half", flush=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(time.sleep, [600, 600]))
lpa3d.label = label
"""

STUCK_WRITER = SLOW_WRITER.replace("progress(0.5)", "pass")


def interrupted(code: str, words: list[str], number: int) -> tuple[int, str]:
    """Run until "half" is printed, send the signal; return the exit code and the messages.

    What the process works on takes 600 seconds: if it waited for that, it would not end in time.
    """
    # A shell starts its background jobs deaf to SIGINT, which children inherit: these tests may run in one.
    hear = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    hear += "\nif hasattr(signal, 'SIGHUP'): signal.signal(signal.SIGHUP, signal.SIG_DFL)"
    code = f"{hear}\n{code}\nimport sys\nfrom lpa3d.cli import main\nsys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "half\n", process.stderr.read()
            process.send_signal(number)
            _, messages = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, messages


@pytest.mark.parametrize(
    ("suffix", "number", "expected", "message"),
    [
        ("zarr", signal.SIGINT, 130, "lpa3d: interrupted\n"),
        ("nii.gz", signal.SIGINT, 130, "lpa3d: interrupted\n"),
        ("h5", signal.SIGTERM, 143, "lpa3d: terminated\n"),
        (
            "tif",
            getattr(signal, "SIGHUP", signal.SIGTERM),
            129 if hasattr(signal, "SIGHUP") else 143,
            "lpa3d: terminated\n",
        ),
    ],
)
def test_interrupted_write_leaves_nothing(files, suffix, number, expected, message):
    before = names(files)
    code, messages = interrupted(SLOW_WRITER, ["label", "volume.npy", f"out.{suffix}"], number)
    assert (code, messages) == (expected, message)
    assert names(files) == before


@pytest.mark.parametrize("work", [STUCK_WORK, STUCK_WRITER])
def test_interruption_does_not_wait_for_the_work(files, work):
    before = names(files)
    told = interrupted(work, ["label", "volume.npy", "seeds.zarr", "--overwrite"], signal.SIGINT)
    assert told == (130, "lpa3d: interrupted\n")
    assert names(files) == before
    np.testing.assert_array_equal(io.read("seeds.zarr"), two_cells()[1])


@pytest.mark.parametrize("suffix", ["zarr", "tif"])
def test_killed_write_leaves_the_output_as_it_was(files, suffix):
    before = names(files)
    for words in (["out"], ["seeds", "--overwrite"]):
        code, _ = interrupted(SLOW_WRITER, ["label", "volume.npy", f"{words[0]}.{suffix}", *words[1:]], signal.SIGKILL)
        assert code == -signal.SIGKILL
    assert not Path(f"out.{suffix}").exists()
    np.testing.assert_array_equal(io.read(f"seeds.{suffix}"), two_cells()[1])
    assert all(name.startswith(".lpa3d-tmp-") for name in set(names(files)) - set(before))
    assert cli.main(["label", "volume.npy", f"out.{suffix}", "-q"]) == 0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_what_is_ignored_stays_so(monkeypatch):
    from lpa3d.commands import job

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with job._signals():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("words", "closed", "code"),
    [
        (["label", "volume.npy", "out.npy"], (0, 1, 2), 0),
        (["label", "volume.npy", "missing/out.npy"], (2,), 2),
        (["info", "volume.npy"], (1,), 1),  # the result cannot be written
    ],
)
@pytest.mark.skipif(os.name != "posix", reason="needs file descriptors")
def test_streams_that_are_closed(files, words, closed, code):
    closing = "".join(f"import os; os.close({number})\n" for number in closed)
    start = f"{closing}os.execv({sys.executable!r}, [{sys.executable!r}, '-m', 'lpa3d', *{words!r}])"
    assert subprocess.run([sys.executable, "-c", start], capture_output=True, timeout=60).returncode == code
    if code == 0:
        assert Path("out.npy").exists()


def test_closed_pipe_is_quiet(files):
    process = subprocess.Popen(
        [sys.executable, "-m", "lpa3d", "info", "volume.npy"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(30) == 141
    process.stderr.close()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_standard_output(files):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lpa3d", "info", "volume.npy"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == "lpa3d: error: cannot write to standard output: No space left on device\n"


def test_no_bar_in_a_pipe(files):
    done = run("label", "volume.npy", "out.npy", code=stub("time.sleep(0.5); return volume"))
    assert done.returncode == 0
    assert "\r" not in done.stderr
    assert done.stderr.count("\n") == 1


def on_terminal(words: list[str], **environment: str) -> str:
    """Run with standard error on a pseudo-terminal and return what it showed."""
    code = stub("time.sleep(0.5); return volume") + "\nimport sys\nfrom lpa3d.cli import main\nsys.exit(main())"
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stderr=slave, stdout=subprocess.PIPE, env=os.environ | environment
    )
    os.close(slave)
    shown = b""
    while select.select([master], [], [], 30)[0]:
        try:
            part = os.read(master, 4096)
        except OSError:  # Linux says so when the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(master)
    assert process.wait(30) == 0
    process.stdout.close()
    return shown.decode()


def test_progress_on_a_terminal(files):
    shown = on_terminal(["label", "volume.npy", "out.npy"])
    assert "\rlabelling  0 s" in shown
    *_, last = shown.replace("\r\n", "\n").rpartition("\r")
    assert last.startswith("lpa3d: 2 components")
    assert last.count("\n") == 1


def test_bar(monkeypatch):
    class Screen(textio.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    terminal.tick()
    assert screen.getvalue() == ""
    terminal.step("reading " + "a" * 20, "read")
    terminal.progress(0.5)
    terminal.tick()
    line = "\r" + f"reading {'a' * 20}  [{'#' * 12}{'.' * 12}]  50 %  0 s"[:59]
    assert screen.getvalue() == line
    terminal.tick()
    assert screen.getvalue() == line
    terminal.step("working", "worked")
    terminal.progress(0.0, "hard")
    terminal.tick()
    terminal.message("warning: a pause")
    shown = screen.getvalue()[len(line) :]
    line = f"working: hard  [{'.' * 24}]   0 %  0 s"
    assert shown == f"\r{line:<59}\r{' ' * len(line)}\rlpa3d: warning: a pause\n"
    terminal.finish()
    assert [verb for verb, _ in terminal.times] == ["read", "worked"]


def test_lines_of_progress(monkeypatch):
    screen = textio.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(_terminal, "INTERVALS", {"plain": 0.0, "json": 0.0})
    for mode in ("auto", "plain", "json", "none"):
        with Terminal(progress=mode) as terminal:
            terminal.step("working", "worked")
            terminal.progress(0.25, "hard")
            terminal.tick()
    plain, same, told = screen.getvalue().splitlines()
    assert re.fullmatch(r"lpa3d: \d\d:\d\d:\d\d working: hard 25 %, 0 s", plain)
    assert plain[16:] == same[16:]
    about = json.loads(told)
    assert datetime.datetime.fromisoformat(about.pop("time")).tzinfo
    assert about == {"step": "working", "stage": "hard", "fraction": 0.25, "seconds": 0.0}


def test_nothing_is_printed_in_the_first_minute(monkeypatch):
    screen = textio.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    terminal = Terminal()
    terminal.step("working", "worked")
    terminal.tick()
    assert screen.getvalue() == ""


def test_compiling_is_said(monkeypatch, caplog):
    log = logging.getLogger("lpa3d.kernels")
    screen = textio.StringIO()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(_terminal, "INTERVALS", {"plain": 0.0})
    with Terminal() as terminal:
        terminal.step("working", "worked")
        log.debug("compiling kernels")
        log.warning("compiling kernels")
        terminal.tick()
        log.debug("compiled")
        log.debug("compiled")
        terminal.tick()
    busy, idle = screen.getvalue().splitlines()
    assert "working: compiling kernels (once) 0 s" in busy
    assert "compiling" not in idle
    assert not caplog.records
    assert log.propagate


def test_no_progress_if_quiet_or_dumb(files):
    assert on_terminal(["label", "volume.npy", "a.npy", "--quiet"]) == ""
    assert on_terminal(["label", "volume.npy", "b.npy"], TERM="dumb").count("\r") == 1  # of the one line's end


SUBS = next(one for one in cli._parser([])._actions if isinstance(one, argparse._SubParsersAction)).choices


@pytest.mark.parametrize("command", SUBS)
def test_empty_values_are_not_taken_for_none(command, capsys):
    for option in SUBS[command]._actions:
        count = option.nargs if isinstance(option.nargs, int) else 1
        for empty in ("", " ") if count else ():
            with pytest.raises(SystemExit) as caught:
                SUBS[command].parse_args([*option.option_strings[-1:], *[empty] * count])
            assert caught.value.code == 2
            assert "it is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", ["propagate a b c --missing-slices", "stitch a b --bad-slices", "fuse --seeds s --complete-slices"]
)
def test_long_lists_of_slices_are_refused_before_they_are_made(words, capsys):
    for end in (10**11, 10**30):
        with pytest.raises(SystemExit) as caught:
            cli.main([*words.split(), f"3-{end}"])
        assert caught.value.code == 2
        assert f"lists {end - 2:,} slices, more than any volume has" in capsys.readouterr().err
