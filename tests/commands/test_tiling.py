"""Commands whose files are all zarr: tile by tile, resumed, refused, and told beforehand."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lpa3d
from lpa3d import cli, io

pytest.importorskip("zarr")

SHAPE = (20, 24, 28)


def make_classes() -> np.ndarray:
    """Two classes of bars that cross every tile."""
    z, y, x = np.indices(SHAPE)
    return (((z + x) // 5 % 2) * (1 + (y // 6) % 2)).astype("uint8")


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with the same volumes as zarr and as npy."""
    monkeypatch.chdir(tmp_path)
    classes = make_classes()
    labels = lpa3d.label(classes)
    seeds = labels.copy()
    seeds[np.arange(SHAPE[0]) % 6 != 0] = 0
    other = np.roll(labels, 1, 2)
    image = np.linspace(0, 1, classes.size, dtype="float32").reshape(SHAPE)
    arrays = {"classes": classes, "labels": labels, "seeds": seeds, "other": other, "image": image}
    for name, array in arrays.items():
        for suffix in ("zarr", "npy"):
            io.write(f"{name}.{suffix}", array, spacing=(40, 8, 8), unit="nm")
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def call(text: str, capsys, suffix: str = "zarr") -> tuple[str, str]:
    """Run a command and return what it said; S stands for the suffix."""
    assert cli.main(text.replace(".S", f".{suffix}").split()) == 0
    said = capsys.readouterr()
    return said.out, said.err


COMMANDS = [
    ("label classes.S out.S --connectivity 26", ["out"]),
    (
        "propagate classes.S seeds.S out.S --spacing 40 8 8 --cost image.S --max-distance 80 --confidence sure.S",
        ["out", "sure"],
    ),
    ("merge labels.S out.S --spacing 40 8 8 --min-contact 0.1 --classes classes.S", ["out"]),
    ("contacts labels.S --spacing 40 8 8 --image image.S", []),
    ("stitch labels.S out.S --classes classes.S --bad-slices 3 --axis y", ["out"]),
    (
        "fuse --classes classes.S --instances seeds.S --slices other.S --volume out.S --seeds s.S --complete-slices 0",
        ["out", "s"],
    ),
    ("fuse --slices other.S --volume out.S --seeds s.S --provenance p.S --conflicts a.csv", ["out", "s", "p"]),
    ("evaluate labels.S other.S --spacing 40 8 8 --json --ignore 3 --classes classes.S classes.S", []),
]


@pytest.mark.parametrize(("command", "outputs"), COMMANDS)
def test_tiles_are_as_the_whole(files, command, outputs, capsys):
    before = names(files)
    out, whole = call(command, capsys, "npy")
    tiles_out, tiles = call(f"{command} --tile 8,16,16 --memory 600MB --overwrite", capsys)
    assert tiles_out.replace(".zarr", ".npy").replace('"unit": "nm"', '"unit": null') == out
    # All but the times.
    count = re.compile(r"^lpa3d: (.*); [^;]* in [^;]*$", re.MULTILINE)
    assert count.search(tiles)[1] == count.search(whole)[1]
    for name in outputs:
        result = io.read(f"{name}.zarr")
        expected = io.read(f"{name}.npy")
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)
        with io.open_volume(f"{name}.zarr") as volume:
            assert volume.geometry.spacing == (40, 8, 8)
            assert volume.geometry.unit == ("" if "--spacing" in command else "nm")
    made = [f"{name}.{suffix}" for name in outputs for suffix in ("npy", "zarr")] + ["a.csv"] * ("a.csv" in command)
    assert names(files) == sorted(before + made)


@pytest.mark.parametrize(("command", "outputs"), COMMANDS)
def test_dry_run_says_what_it_takes_and_writes_nothing(files, command, outputs, capsys):
    before = {path: path.stat().st_mtime_ns for path in files.rglob("*")}
    out, _ = call(f"{command} --dry-run --tile 8,16,16 --memory 600MB", capsys)
    assert f"verb:    {command.split()[0]}\n" in out
    assert "volume:  20 x 24 x 28, 13,440 voxels\n" in out
    assert "tiles:   12 of 8 x 16 x 16, " in out
    assert ("output:" in out) == bool(outputs)
    assert {path: path.stat().st_mtime_ns for path in files.rglob("*")} == before


def test_array_in_a_group_and_a_folder_without_suffix(files, capsys):
    io.write("cell.zarr/raw/classes", make_classes(), spacing=(4, 3, 2))
    os.rename("classes.zarr", "plain")
    call("label cell.zarr/raw/classes out.zarr/labels", capsys)
    call("label plain plain.zarr --overwrite -q", capsys)
    for name in ("out.zarr/labels", "plain.zarr"):
        np.testing.assert_array_equal(io.read(name), lpa3d.label(make_classes()))
    with io.open_volume("out.zarr/labels") as volume:
        assert volume.geometry.spacing == (4, 3, 2)


def test_mixed_formats_are_read_whole(files, capsys):
    _, said = call("label classes.zarr out.npy", capsys)
    assert "read in" in said
    np.testing.assert_array_equal(np.load("out.npy"), lpa3d.label(make_classes()))


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("label classes.npy a.zarr --tile 8", "--tile is for work tile by tile, but classes.npy is no zarr; leave"),
        ("label classes.zarr a.tif --dry-run", "--dry-run is for work tile by tile, but a.tif is no zarr"),
        ("evaluate labels.zarr other.zarr --warping 3d --memory 4GB", "--memory is for .* but --warping 3d takes it"),
        ("label classes.zarr seeds.zarr", "seeds.zarr exists; pass --overwrite to replace it"),
        ("label classes.zarr classes.zarr --overwrite", "classes.zarr is also an input"),
        ("label classes.zarr none/a.zarr", "none does not exist; make it with: mkdir -p"),
        ("label classes.zarr a.zarr --memory 1MB", "--memory 1MB is too little: .* pass more memory, e.g. --memory"),
        ("label image.zarr a.zarr", "image.zarr holds float32; a class map must be bool or integers"),
    ],
)
def test_refused(files, command, message, capsys):
    before = names(files)
    assert cli.main([*command.split(), "-q"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("lpa3d: error: ")
    assert re.search(message, said.err), said.err
    assert said.err.count("\n") == 1
    assert names(files) == before


@pytest.mark.parametrize("words", ["--tile 0", "--tile 8,8,8,8", "--tile big", "--memory big", "--memory -1"])
def test_options_that_are_none(files, words, capsys):
    with pytest.raises(SystemExit) as refused:
        cli.main(f"label classes.zarr out.zarr {words}".split())
    assert refused.value.code == 2
    assert re.search(r"is no (tile|amount of memory), such as|expected one argument", capsys.readouterr().err)


def test_a_disk_that_is_too_small(files, monkeypatch, capsys):
    from lpa3d.tiled.driver import budget

    monkeypatch.setattr(budget.shutil, "disk_usage", lambda folder: Usage(100))
    assert cli.main(["label", "classes.zarr", "out.zarr"]) == 2
    said = capsys.readouterr().err
    assert re.search(r"label needs about .* for scratch and .* for the result on the disk of .*, where 100 B are", said)
    assert "choose a folder on another disk with --scratch FOLDER" in said
    assert "out.zarr.lpa3d" not in names(files)


class Usage:
    def __init__(self, free: int) -> None:
        self.free = free


# ------------------------------------------------------------------------------------------------ interrupted, resumed

SLOW = """
import sys, threading, time
import lpa3d.tiled.label as tiled
write, done = tiled._write, []
def slow(context, tile):
    # One tile after the other, so that the number of finished ones is known.
    with lock:
        if len(done) == 3:
            print("three", flush=True)
            time.sleep(TIME)
        write(context, tile)
        done.append(tile)
lock = threading.Lock()
tiled._write = slow
"""

COMMAND = "label classes.zarr out.zarr --tile 8,16,16"


def start(code: str, words: str) -> subprocess.Popen:
    # A shell starts its background jobs deaf to SIGINT, which children inherit: these tests may run in one.
    hear = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{hear}\n{code}\nimport sys\nfrom lpa3d.cli import main\nsys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def interrupt(code: str, words: str, number: int) -> tuple[int, str]:
    """Run until a word is printed, send the signal; return the exit code and the messages."""
    with start(code, words) as process:
        try:
            assert process.stdout.readline() == "three\n", process.stderr.read()
            process.send_signal(number)
            _, messages = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, messages


@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (signal.SIGINT, 130, "lpa3d: interrupted; run the same command again to go on\n"),
        (signal.SIGTERM, 143, "lpa3d: terminated; run the same command again to go on\n"),
        (signal.SIGKILL, -signal.SIGKILL, ""),
    ],
)
def test_an_interrupted_run_goes_on(files, number, code, message, capsys):
    before = names(files)
    assert interrupt(SLOW.replace("TIME", "0.5"), COMMAND, number) == (code, message)
    assert names(files) == sorted([*before, "out.zarr.lpa3d"])

    assert cli.main(COMMAND.replace("--tile", "--connectivity 18 --tile").split()) == 2
    said = capsys.readouterr().err
    assert "--connectivity was 6 and is 18" in said
    assert "pass the same to go on, or --no-resume to delete" in said.lower()
    assert cli.main([*COMMAND.split()[:-1], "8"]) == 2
    assert "tile was [8, 16, 16] and is [8, 8, 8]" in capsys.readouterr().err

    from lpa3d.tiled import label as tiled

    written = []
    write = tiled._write

    def count(context, tile):
        written.append(tile)
        write(context, tile)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiled, "_write", count)
        assert cli.main(COMMAND.split()) == 0
    # Of twelve three were written, and where there was time those that the threads had been given by then; what was
    # written right before a kill may not be in the journal yet.
    assert 6 <= len(written) <= 11
    assert names(files) == sorted([*before, "out.zarr"])
    np.testing.assert_array_equal(io.read("out.zarr"), lpa3d.label(make_classes()))


def test_no_resume_starts_anew(files):
    before = names(files)
    interrupt(SLOW.replace("TIME", "0.5"), COMMAND, signal.SIGINT)
    assert cli.main(f"{COMMAND} --connectivity 18 --no-resume -q".split()) == 0
    assert names(files) == sorted([*before, "out.zarr"])
    np.testing.assert_array_equal(io.read("out.zarr"), lpa3d.label(make_classes(), connectivity=18))


def test_a_tile_that_takes_long_is_not_waited_for(files):
    # Else the process would not end in the time that `interrupt` gives it.
    code, message = interrupt(
        "import lpa3d.commands.job\nlpa3d.commands.job.TILES_END = 0.3\n" + SLOW.replace("TIME", "600"),
        COMMAND,
        signal.SIGINT,
    )
    assert (code, message) == (130, "lpa3d: interrupted; run the same command again to go on\n")
    assert cli.main([*COMMAND.split(), "-q"]) == 0
    np.testing.assert_array_equal(io.read("out.zarr"), lpa3d.label(make_classes()))


def test_scratch_is_where_it_is_asked_for(files, tmp_path_factory):
    scratch = tmp_path_factory.mktemp("scratch")
    before = names(files)
    command = f"{COMMAND} --scratch {scratch}"
    code, _ = interrupt(SLOW.replace("TIME", "0.5"), command, signal.SIGINT)
    assert code == 130
    assert names(files) == before
    (name,) = names(scratch)
    assert re.fullmatch(r"out\.zarr-[0-9a-f]{8}\.lpa3d", name)
    assert json.loads((scratch / name / "run.json").read_text())["verb"] == "label"
    assert cli.main([*command.split(), "-q"]) == 0
    assert names(scratch) == []
    np.testing.assert_array_equal(io.read("out.zarr"), lpa3d.label(make_classes()))


def test_an_interrupted_table_leaves_nothing_without_scratch(files, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = names(files)
    code = SLOW.replace("TIME", "0.5").replace("_write", "_count_tile").replace("tiled.label", "tiled.contacts")
    words = "contacts labels.zarr --tile 8,16,16 -q"
    assert interrupt(code, words, signal.SIGINT) == (130, "lpa3d: interrupted\n")
    assert names(files) == before
    told = interrupt(code, f"{words} --scratch .", signal.SIGINT)
    assert told == (130, "lpa3d: interrupted; run the same command again to go on\n")
    (left,) = set(names(files)) - set(before)
    assert re.fullmatch(r"contacts-[0-9a-f]{8}\.lpa3d", left)


def test_a_failure_says_what_is_kept(files):
    code = SLOW.replace('print("three", flush=True)', "raise MemoryError('all of it')").replace(
        "time.sleep(TIME)", "pass"
    )
    with start("import lpa3d.tiled.driver.run\nlpa3d.tiled.driver.run.PAUSE = 0\n" + code, COMMAND) as process:
        _, messages = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.match(r"lpa3d: error: label: tile \d+ \(z .*\) failed 3 times in stage 'label write': Mem", messages)
    assert "Finished tiles are kept: mend the cause and run the same call again" in messages
    assert messages.count("\n") == 1
    assert cli.main([*COMMAND.split(), "-q"]) == 0
    np.testing.assert_array_equal(io.read("out.zarr"), lpa3d.label(make_classes()))


def test_two_at_once_are_refused(files, capsys):
    with start(SLOW.replace("TIME", "3"), COMMAND) as process:
        try:
            assert process.stdout.readline() == "three\n", process.stderr.read()
            assert cli.main(COMMAND.split()) == 2
            assert "another process is at work on this output" in capsys.readouterr().err
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    np.testing.assert_array_equal(io.read("out.zarr"), lpa3d.label(make_classes()))


@pytest.mark.parametrize("suffix", ["zarr", "npy"])
def test_levels_and_layout(suffix, files, capsys):
    call("label classes.S out.zarr --levels 3", capsys, suffix)
    call("label classes.S plain.zarr --layout array", capsys, suffix)
    call("label classes.S classes.zarr/labels/all --levels 2", capsys, suffix)
    assert names(files / "out.zarr") == ["0", "1", "2", "zarr.json"]
    assert "0" not in names(files / "plain.zarr")
    assert io.read("classes.zarr/labels").tolist() == io.read("out.zarr").tolist() == io.read("plain.zarr").tolist()
    assert cli.main(f"label classes.{suffix} no.zarr --levels 2 --layout array".split()) == 2
    assert "--levels is 2, but a plain array has one" in capsys.readouterr().err
    assert cli.main(f"label classes.{suffix} no.npy --levels 2".split()) == 2
    assert "--levels is for zarr, and no.npy is none; leave it out" in capsys.readouterr().err
