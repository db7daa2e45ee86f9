"""The commands ``lpa3d stitch`` and ``lpa3d fuse``: the verbs' results, what is said of them, mistakes found early."""

import csv
import io as textio
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lpa3d
from lpa3d import cli, io
from lpa3d.commands.fuse import KINDS, SOURCES, describe_conflicts
from lpa3d.files.writers import WRITERS
from lpa3d.verbs.dispatch import OPTIONS
from tests.test_cli import SUFFIXES, assert_refused_unread, interrupted, names

DEPTH = 8
BAD, EMPTY = 2, 5


def sections() -> np.ndarray:
    """Two bars and a blob that forks into two, ids anew on every slice; one slice is one blob, one is empty."""
    slices = np.zeros((DEPTH, 12, 14), "uint16")
    for z in range(DEPTH):
        slices[z, 1:4, 1:9] = 10 + z
        slices[z, 5:8, 1:9] = 20 - z
        if z < 3:
            slices[z, 9:12, 1:12] = 30
        else:
            slices[z, 9:12, 1:6], slices[z, 9:12, 7:12] = 31, 32
    slices[BAD] = 99
    slices[EMPTY] = 0
    return slices


def class_map() -> np.ndarray:
    """Class 1 for the first bar, 2 for all else."""
    classes = np.zeros((DEPTH, 12, 14), "uint8")
    classes[:, 1:4, 1:9] = 1
    classes[:, 5:8, 1:9] = 2
    classes[:, 9:12, 1:12] = 2
    return classes


def expert() -> np.ndarray:
    """Both bars on two slices, and a little more than there is."""
    ids = np.zeros((DEPTH, 12, 14), "int32")
    for z in (0, 4):
        ids[z, 1:4, 1:10] = 500
        ids[z, 5:8, 1:9] = 7
    return ids


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder to work in, with sections, their 3D labels, a class map and an expert's labels."""
    monkeypatch.chdir(tmp_path)
    arrays = {"slices": sections(), "classes": class_map(), "expert": expert()}
    arrays["stitched"] = lpa3d.stitch(sections(), bad_slices=[BAD])
    for name, array in arrays.items():
        io.write(f"{name}.npy", array)
    return tmp_path


def write_images(folder: str, kind: str) -> None:
    """Write the sections as images; the empty slice has none."""
    Path(folder).mkdir()
    for z, section in enumerate(sections()):
        if z != EMPTY:
            Image.fromarray(section).save(f"{folder}/slice_{z}.{kind}")


def done(words: str) -> bool:
    """Run the command line; return whether it succeeded."""
    return cli.main(words.split()) == 0


# -------------------------------------------------------------------------------------------------------------- stitch


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_stitch_is_lpa3d_stitch(files, suffix, capsys):
    io.write(f"in.{suffix}", sections(), spacing=(40, 8, 8), unit="nm")
    assert cli.main(["stitch", f"in.{suffix}", f"out.{suffix}", "--bad-slices", str(BAD)]) == 0
    expected = lpa3d.stitch(sections(), bad_slices=[BAD])
    found = io.read(f"out.{suffix}")
    assert found.dtype == expected.dtype == np.uint32
    np.testing.assert_array_equal(found, expected)
    with io.open_volume(f"in.{suffix}") as given, io.open_volume(f"out.{suffix}") as out:
        assert out.geometry.spacing == given.geometry.spacing
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(
        r"lpa3d: 22 sections on 6 of 8 slices \(1 empty, 1 bad\) became (\d+) objects by (\d+) links; "
        r"(read in .* s, stitched in .* s, wrote in .* s|stitched in .* s, counted in .* s)\n",
        said.err,
    )
    objects, links = map(int, re.search(r"became (\d+) objects by (\d+) links", said.err).groups())
    assert objects == expected.max()
    assert objects + links == 22


@pytest.mark.parametrize("kind", ["png", "tif"])
def test_stitch_of_a_folder(files, kind, capsys):
    write_images("images", kind)
    assert cli.main(["stitch", "images/", "out.npy"]) == 0
    np.testing.assert_array_equal(io.read("out.npy"), lpa3d.stitch(sections()))
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("lpa3d: warning: images/")
    assert re.match(r"lpa3d: images/: 7 \w+ images as slices 0 to 7: slice_0\.\w+ to slice_7\.\w+, by their", said[1])
    assert said[2].startswith("lpa3d: 23 sections on 7 of 8 slices (1 empty) became ")


def test_stitch_options_reach_the_verb(files, monkeypatch, capsys):
    seen = {}

    def stitch(slices, **keywords):
        seen.update(keywords)
        return np.zeros(slices.shape, "uint32")

    monkeypatch.setattr(lpa3d, "stitch", stitch)
    Path("apart.csv").write_text("why,slice_a,id_a,slice_b,id_b\n")
    Path("apart.csv").write_text("slice_a,id_a,slice_b,id_b\n3,31,3,32\n4,31,4,32\n")
    command = (
        "stitch slices.npy out.npy --classes classes.npy --axis y --max-gap 5 --no-branching --bad-slices 2,9-11 "
        "--must-link 0:10,1:11 --must-link 1:11,3:13 --cannot-link apart.csv"
    )
    assert cli.main(command.split()) == 0
    np.testing.assert_array_equal(seen.pop("classes"), class_map())
    assert seen == {
        "axis": 1,
        "max_gap": 5,
        "branching": False,
        "bad_slices": (2, 9, 10, 11),
        "must_link": [((0, 10), (1, 11)), ((1, 11), (3, 13))],
        "cannot_link": [((3, 31), (3, 32)), ((4, 31), (4, 32))],
    }


def test_stitch_defaults_are_those_of_the_verb(files, monkeypatch):
    import inspect

    seen = {}

    def stitch(slices, **keywords):
        seen.update(keywords)
        return np.zeros(slices.shape, "uint32")

    parameters = inspect.signature(lpa3d.stitch).parameters
    monkeypatch.setattr(lpa3d, "stitch", stitch)
    assert cli.main(["stitch", "slices.npy", "out.npy"]) == 0
    assert set(seen) == set(parameters) - {"slices", "out", *OPTIONS}
    assert {name: tuple(value) if isinstance(value, list) else value for name, value in seen.items()} == {
        name: parameters[name].default for name in seen
    }


def test_stitch_links_and_classes(files):
    assert done("stitch slices.npy a.npy --bad-slices 2 --must-link 0:10,0:20 -q")
    found = io.read("a.npy")
    assert found[0, 1, 1] == found[0, 5, 1] != 0
    assert done("stitch slices.npy b.npy --bad-slices 2 --classes classes.npy --cannot-link 0:10,1:11 -q")
    found = io.read("b.npy")
    assert found[0, 1, 1] != found[1, 1, 1]


def test_stitch_of_one_slice_and_of_nothing(files, capsys):
    io.write("flat.npy", sections()[0])
    io.write("nothing.npy", np.zeros_like(sections()))
    assert cli.main(["stitch", "flat.npy", "a.npy"]) == 0
    assert "lpa3d: 3 sections on 1 of 1 slice became 3 objects by 0 links" in capsys.readouterr().err
    assert cli.main(["stitch", "nothing.npy", "b.npy"]) == 0
    assert "lpa3d: 0 sections on 0 of 8 slices (8 empty) became 0 objects by 0 links" in capsys.readouterr().err
    assert not io.read("b.npy").any()


@pytest.mark.parametrize("axis", ["y", "2"])
def test_counts_across_other_axes(files, axis, capsys):
    number = "zyx".find(axis) if axis in "zyx" else int(axis)
    io.write("turned.npy", np.moveaxis(sections(), 0, number))
    assert cli.main(["stitch", "turned.npy", "out.npy", "--axis", axis, "--bad-slices", "2"]) == 0
    assert "lpa3d: 22 sections on 6 of 8 slices (1 empty, 1 bad)" in capsys.readouterr().err
    found = io.read("out.npy")
    np.testing.assert_array_equal(found, lpa3d.stitch(np.moveaxis(sections(), 0, number), axis=number, bad_slices=[2]))


# ---------------------------------------------------------------------------------------------------------------- fuse


def sources() -> dict[str, np.ndarray]:
    return {
        "classes": class_map(),
        "instances": expert(),
        "slices": lpa3d.stitch(sections(), bad_slices=[BAD]),
    }


FUSE = "fuse --classes classes.npy --instances expert.npy --slices stitched.npy --complete-slices 0,4"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_fuse_is_lpa3d_fuse(files, suffix, capsys):
    outputs = [f"--{name} {name}.{suffix}" for name in ("volume", "seeds", "provenance")]
    assert cli.main([*FUSE.split(), *" ".join(outputs).split(), "--conflicts", "conflicts.csv"]) == 0
    fused = lpa3d.fuse(**sources(), complete_slices=[0, 4])
    for name in ("volume", "seeds", "provenance"):
        found = io.read(f"{name}.{suffix}")
        np.testing.assert_array_equal(found, getattr(fused, name))
        assert found.dtype == getattr(fused, name).dtype
    rows = list(csv.DictReader(textio.StringIO(Path("conflicts.csv").read_text())))
    columns = fused.conflicts.columns()
    assert list(rows[0]) == list(columns)
    for name, column in columns.items():
        assert [column.dtype.type(row[name]) for row in rows] == column.tolist()
    said = capsys.readouterr()
    assert said.out == ""
    first, *lines = said.err.splitlines()
    found = re.findall(r"(\d+) (\w+)(?: \(|,|$)", first.partition("conflicts: ")[2])
    assert {kind: int(number) for number, kind in found} == {
        kind: int(np.count_nonzero(fused.conflicts.kind == kind)) for kind in KINDS
    }
    voxels = [int(number.replace(",", "")) for number in re.findall(r"\(([\d,]+) voxels?\)", first)]
    assert sum(voxels) == fused.conflicts.voxels.sum()
    assert lines[0].split() == ["kind", "won", "lost", "voxels", "box"]
    ids, labelled = len(np.unique(fused.seeds)) - 1, np.count_nonzero(fused.seeds)
    assert lines[-1].startswith(f"lpa3d: {ids} objects, {labelled:,} of 1,344 voxels (")
    assert f"labelled, {len(fused.conflicts)} conflict" in lines[-1]


def test_worst_conflicts_are_listed():
    instances, slices = np.zeros((2, 3, 40), "uint8"), np.zeros((2, 3, 40), "uint8")
    for k in range(7):
        instances[0, 0, 5 * k : 5 * k + 4 - k // 2] = 1
        slices[:, :, 5 * k : 5 * k + 4] = k + 1
    classes = np.zeros((2, 3, 40), "uint8")
    fused = lpa3d.fuse(
        classes=classes, instances=instances, slices=slices, complete_slices=[1], instance_classes={1: 1}
    )
    text = describe_conflicts(fused.conflicts)
    lines = text.splitlines()
    assert len(fused.conflicts) > 5
    assert len(lines) == 1 + 1 + 5 + 1
    assert lines[-1] == f"  ... {len(fused.conflicts) - 5} more"
    sizes = [int(re.search(r" (\d+) +\d+:", line)[1]) for line in lines[2:-1]]
    assert sizes == fused.conflicts.voxels[:5].tolist()


def test_no_conflicts(files, capsys):
    assert done("fuse --instances expert.npy --volume v.npy --seeds s.npy")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "lpa3d: no conflicts"
    assert re.match(r"lpa3d: 2 objects, 102 of 1,344 voxels \(7\.6 %\) labelled, 0 conflicts; read in", said[1])
    assert sorted(path.name for path in files.glob("[vs].npy")) == ["s.npy", "v.npy"]


def test_fuse_options_reach_the_verb(files, monkeypatch):
    seen = {}
    verb = lpa3d.fuse

    def fuse(**keywords):
        seen.update(keywords)
        return verb(instances=keywords["instances"])

    monkeypatch.setattr(lpa3d, "fuse", fuse)
    Path("kinds.csv").write_text("id,class\n7,2\n8,1\n")
    command = (
        f"{FUSE} --axis 2 --priority classes,slices instances --instance-classes 500=1 kinds.csv --slice-classes 1=2 "
        f"--slice-classes 2=2 --volume v.npy --seeds s.npy"
    )
    assert cli.main(command.split()) == 0
    for name, array in sources().items():
        np.testing.assert_array_equal(seen.pop(name), array)
    assert seen == {
        "complete_slices": (0, 4),
        "axis": 2,
        "priority": ("classes", "slices", "instances"),
        "instance_classes": {500: 1, 7: 2, 8: 1},
        "slice_classes": {1: 2, 2: 2},
    }


def test_fuse_defaults_are_those_of_the_verb(files, monkeypatch):
    import inspect

    seen = {}
    verb = lpa3d.fuse

    def fuse(**keywords):
        seen.update(keywords)
        return verb(instances=keywords["instances"])

    parameters = inspect.signature(verb).parameters
    monkeypatch.setattr(lpa3d, "fuse", fuse)
    assert done("fuse --instances expert.npy --volume v.npy --seeds s.npy -q")
    del seen["instances"]
    assert seen == {name: parameters[name].default for name in seen}
    assert set(parameters) - set(seen) == {*SOURCES, "out", *OPTIONS}


def test_fused_files_go_into_propagate(files):
    assert done(f"{FUSE} --volume v.npy --seeds s.npy -q")
    assert done("propagate v.npy s.npy out.npy -q")
    fused = lpa3d.fuse(**sources(), complete_slices=[0, 4])
    np.testing.assert_array_equal(io.read("out.npy"), lpa3d.propagate(fused.volume, fused.seeds))


def test_source_with_a_voxel_size_gives_it(files):
    io.write("sized.tif", expert(), spacing=(40, 8, 8), unit="nm")
    assert done("fuse --classes classes.npy --instances sized.tif --volume v.tif --seeds s.tif -q")
    with io.open_volume("v.tif") as out:
        assert out.geometry.spacing == (40, 8, 8)


# --------------------------------------------------------------------------------------------- mistakes and failures


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("stitch slices.npy", "arguments are required: OUT"),
        ("stitch slices.npy out.npy --axis w", "'w' is none of z, y, x, 0, 1, 2"),
        ("stitch slices.npy out.npy --bad-slices 9-3", "'9-3' is no list of slices"),
        ("stitch slices.npy out.npy --max-gap far", "invalid int value: 'far'"),
        ("fuse --classes classes.npy --volume v.npy", "arguments are required: --seeds"),
        ("fuse --classes classes.npy --volume v.npy --seeds s.npy --complete-slices x", "'x' is no list of slices"),
        ("stich slices.npy out.npy", "did you mean stitch?"),
    ],
)
def test_usage_errors(files, words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words.split())
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert message in said.err


WRITES = "--volume v.npy --seeds s.npy"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("stitch none.npy out.npy", "none.npy does not exist"),
        ("stitch slices.npy slices.npy --overwrite", "slices.npy is also an input"),
        ("stitch slices.npy classes.npy", "classes.npy exists; pass --overwrite"),
        ("stitch slices.npy out.npy --classes small.npy", "but small.npy has shape (2, 3, 4)"),
        ("stitch slices.npy out.npy --bad-slices 3,8", "--bad-slices holds 8; slices across z are 0 to 7"),
        ("stitch slices.npy out.npy --bad-slices 14 --axis x", "--bad-slices holds 14; slices across x are 0 to 13"),
        ("stitch flat.npy out.npy --axis y", "a single image (Y, X) is one slice"),
        ("stitch slices.npy out.npy --max-gap 0", "--max-gap is 0; a whole number of slices, at least 1"),
        ("stitch slices.npy out.npy --must-link 3:4", "--must-link: '3:4' is no pair of sections, such as"),
        ("stitch slices.npy out.npy --must-link none.csv", "cannot read none.csv: No such file"),
        ("stitch slices.npy out.npy --must-link bad.csv", "bad.csv, line 2: two slices with an id each are needed"),
        (f"fuse {WRITES}", "nothing to fuse; pass at least one of --instances, --slices and --classes"),
        (f"fuse --slices small.npy --classes classes.npy {WRITES}", "has shape (8, 12, 14) but small.npy"),
        (
            f"fuse --slices stitched.npy {WRITES} --priority slice",
            "--priority names slice, which is no source; did you",
        ),
        (f"fuse --slices stitched.npy {WRITES} --priority classes", "--priority is classes, without slices"),
        (f"fuse --slices stitched.npy {WRITES} --priority slices slices", "--priority names slices twice"),
        (f"fuse --slices stitched.npy {WRITES} --instance-classes 7=1", "is about --instances, which is not given"),
        (f"fuse --slices stitched.npy {WRITES} --slice-classes 7=x", "'7=x' is no id with its class, such as 7=1"),
        (f"fuse --slices stitched.npy {WRITES} --slice-classes 7=1 7=2", "gives id 7 two classes, 1 and 2"),
        (f"fuse --slices stitched.npy {WRITES} --slice-classes 7:1", "'7:1' is no id with its class, such as 7=1"),
        (
            f"fuse --slices stitched.npy {WRITES} --slice-classes 7=0",
            "--slice-classes gives id 7 the class 0, which is",
        ),
        (
            f"fuse --slices stitched.npy --classes classes.npy {WRITES} --slice-classes 7=300",
            "--slice-classes gives id 7 the class 300; classes from 0 to 255 are possible",
        ),
        (f"fuse --classes classes.npy {WRITES} --complete-slices 1", "pass --instances or --slices"),
        (f"fuse --slices stitched.npy {WRITES} --complete-slices 8", "--complete-slices holds 8; slices across z"),
        ("fuse --slices stitched.npy --volume v.npy --seeds v.npy", "v.npy and v.npy would be one new file"),
        ("fuse --slices stitched.npy --volume v.npy --seeds stitched.npy --overwrite", "is also an input"),
        (f"fuse --slices stitched.npy {WRITES} --conflicts c.zarr", "what --conflicts writes is text"),
    ],
)
def test_bad_input_before_any_work(files, words, message, capsys, monkeypatch):
    np.save("small.npy", np.zeros((2, 3, 4), "uint8"))
    np.save("flat.npy", sections()[0])
    Path("bad.csv").write_text("slice_a,id_a,slice_b,id_b\n1.5,3,2,1\n")
    assert_refused_unread(words.split(), message, files, capsys, monkeypatch)


@pytest.mark.parametrize("words", ["stitch float.npy out.npy", f"fuse --slices float.npy {WRITES}"])
def test_images_are_no_labels(files, words, capsys):
    np.save("float.npy", np.full((DEPTH, 12, 14), 0.5, "float32"))
    assert cli.main(words.split()) == 2
    assert "float.npy holds float32; slices must be bool or integers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("stitch slices.npy out.npy --must-link 0:10,1:77", "--must-link names 1 section"),
        ("stitch slices.npy out.npy --bad-slices 2 --cannot-link 0:10,2:99", "is one of --bad-slices"),
        (f"fuse --classes two.npy --instances expert.npy {WRITES}", "--instance-classes 7="),
    ],
)
def test_bad_values_in_terms_of_options(files, words, message, capsys):
    np.save("two.npy", np.where(expert() > 0, 0, 1 + (np.arange(14) % 2)).astype("uint8"))
    before = names(files)
    assert cli.main([*words.split(), "-q"]) == 2
    assert message in capsys.readouterr().err
    assert names(files) == before


@pytest.mark.parametrize("command", ["stitch", "fuse"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: lpa3d {command}")
    assert f"examples:\n  lpa3d {command} " in text
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize(
    ("verb", "words"),
    [("stitch", "slices.npy out.npy"), ("fuse", "--slices stitched.npy --volume v.npy --seeds s.npy")],
)
def test_interruption_leaves_nothing(files, verb, words):
    code = (
        f"import time, lpa3d\ndef {verb}(*_, **__):\n    print('half', flush=True)\n    time.sleep(600)\n"
        f"lpa3d.{verb} = {verb}"
    )
    before = names(files)
    assert interrupted(code, [verb, *words.split()], signal.SIGINT) == (130, "lpa3d: interrupted\n")
    assert names(files) == before


def test_outputs_of_fuse_appear_together(files, monkeypatch, capsys):
    writer = WRITERS["npy"]

    def full(target, array, geometry, progress):
        if target.location.name == "s.npy":
            raise OSError(28, "No space left on device")
        writer(target, array, geometry, progress)

    monkeypatch.setitem(WRITERS, "npy", full)
    before = names(files)
    assert cli.main(f"fuse --slices stitched.npy {WRITES} -q".split()) == 1
    assert capsys.readouterr().err == "lpa3d: error: cannot write s.npy: No space left on device\n"
    assert names(files) == before
