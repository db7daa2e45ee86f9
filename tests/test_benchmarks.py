"""Every benchmark runs, on tiny volumes, and the tables say what they should."""

import functools
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import lpa3d
from tests import emulator as cuda_emulator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
try:
    from benchmarks import benchmarks as suite
    from benchmarks import benchmarks_tiled as stored_suite
    from benchmarks import compare, gpu, tiled
finally:
    sys.path.remove(str(ROOT))

# Not every object meets a slice with seeds.
pytestmark = pytest.mark.filterwarnings("ignore::lpa3d.errors.Lpa3dWarning")

BENCHMARK = re.compile("time_|timeraw_|peakmem_|mem_|track_")
SIDE = 64

METHODS = [
    (cls, name)
    for cls in vars(suite).values()
    if inspect.isclass(cls) and cls.__module__ == suite.__name__
    for name in dir(cls)
    if BENCHMARK.match(name)
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Folder in which the volumes of the asv suite have been made."""
    folder = tmp_path_factory.mktemp("asv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(suite.Verb, "params", [SIDE])
        suite.Verb().setup_cache()
    return folder


@pytest.mark.parametrize(("cls", "name"), [m for m in METHODS if issubclass(m[0], suite.Verb)])
def test_asv_verbs(cls, name, files, monkeypatch):
    """A smoke test: each benchmark runs. Only a tracked one has a result, which is a number."""
    monkeypatch.chdir(files)
    benchmark = cls()
    benchmark.setup(SIDE)
    result = getattr(benchmark, name)(SIDE)
    assert np.isfinite(result) if name.startswith("track_") else result is None


@pytest.mark.parametrize(("cls", "name"), [m for m in METHODS if not issubclass(m[0], suite.Verb)])
def test_asv_statements(cls, name, monkeypatch, tmp_path):
    """A smoke test: the statements run, here in this process where the kernels are compiled, and import lpa3d."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    verbs = cls.params[0] if hasattr(cls, "params") else [None]
    for verb in verbs:
        statement = getattr(cls(), name)(*([] if verb is None else [verb, "cold"]))
        code = statement if isinstance(statement, str) else "\n".join(reversed(statement))
        names = {}
        exec(compile(code, name, "exec"), names)
        assert names.get("lpa3d", lpa3d) is lpa3d
        assert "lpa3d" in names or names.keys() >= set(suite.CALLS)


def test_every_verb_is_in_the_suite():
    assert len(METHODS) >= 12
    assert set(suite.CALLS) == {"label", "propagate", "merge", "contacts", "evaluate", "stitch", "fuse"}


def test_asv_finds_no_benchmarks_in_the_script():
    assert not [name for name in vars(compare) if BENCHMARK.match(name)]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """Files of a small mask, seeds on two of its slices, and a segmentation of several classes."""
    folder = tmp_path_factory.mktemp("arrays")
    rng = np.random.default_rng(0)
    mask = (rng.random((20, 24, 28)) < 0.6).astype(np.uint8)
    seeds = compare.keep_slices((mask * rng.integers(1, 5, mask.shape)).astype(np.int32), 16)
    classes = rng.integers(0, 4, mask.shape, np.uint32)
    instances = compare.make_blocks(0, None, 32)[: mask.shape[0], : mask.shape[1], : mask.shape[2]].astype(np.uint32)
    instances = compare.renumber(np.where(instances % 7 == 0, np.uint32(0), instances))
    made = {"mask": mask, "seeds": seeds, "classes": classes, "instances": instances}
    made["corrupted"] = compare.corrupt(instances)
    for name, array in made.items():
        np.save(folder / f"{name}.npy", array)
    return {name: str(folder / f"{name}.npy") for name in made}


def test_all_tools_agree(one_call, arrays):
    inputs = {
        "label": {"volume": arrays["mask"]},
        "propagate": {"volume": arrays["mask"], "seeds": arrays["seeds"]},
        "contacts": {"labels": arrays["classes"]},
    }
    for verb in inputs:
        tools = compare.CALLS[verb]
        for connectivity in (6, 26) if verb != "propagate" else (6,):
            answers = {}
            for tool, (module, _) in tools.items():
                if not compare.is_installed(module):
                    continue
                options = {"connectivity": connectivity} if verb != "propagate" or tool == "lpa3d" else {}
                task = {"verb": verb, "tool": tool, "arrays": inputs[verb], "options": options, "repeat": 1}
                measured = compare.measure(task)
                assert all(seconds > 0 for seconds in measured["seconds"])
                answers[tool] = measured["answer"]
            # These know no mask, or have another connectivity.
            for tool in ("SimpleITK morphological watershed", "mahotas cwatershed", "dijkstra3d Euclidean field"):
                answers.pop(tool, None)
            if verb == "propagate":
                answers.pop("scipy nearest seed")
            for tool, answer in answers.items():
                assert compare.list_differences(answers["lpa3d"], answer, tool) == [], (verb, connectivity)


@pytest.mark.parametrize(
    "contest",
    [
        pytest.param(contest, marks=[pytest.mark.long] if number else [], id=contest.peers[0])
        for number, contest in enumerate(compare.evaluate_contests(32))
    ],
)
def test_metrics_agree(contest, arrays):
    (tool,) = contest.peers
    pytest.importorskip(compare.CALLS["evaluate"][tool][0], exc_type=ImportError)
    task = {"verb": "evaluate", "arrays": {"reference": arrays["instances"], "prediction": arrays["corrupted"]}}
    theirs = compare.measure(task | {"tool": tool, "options": contest.peer_options, "repeat": 1})["answer"]
    assert theirs
    for ours in contest.ours:
        mine = compare.measure(task | {"tool": "lpa3d", "options": ours.options, "repeat": 1})["answer"]
        assert compare.list_differences(mine, theirs, tool) == []
        assert compare.list_differences(mine, {key: value + 1 for key, value in theirs.items()}, tool)


@pytest.mark.parametrize("tool", [tool for tool in compare.CALLS["propagate"] if tool != "lpa3d"])
def test_seeded_peers_keep_seeds_and_mask(tool, arrays):
    module, prepare = compare.CALLS["propagate"][tool]
    pytest.importorskip(module, exc_type=ImportError)
    volume, seeds = np.load(arrays["mask"]), np.load(arrays["seeds"])
    labels = prepare(volume=volume, seeds=seeds)()
    if tool.startswith("SimpleITK"):
        import SimpleITK

        labels = SimpleITK.GetArrayFromImage(labels)
    outside = {seeds.max() + 1} if tool.startswith(("SimpleITK", "mahotas")) else set()
    np.testing.assert_array_equal(labels[seeds > 0], seeds[seeds > 0])
    assert set(np.unique(labels[volume > 0])) <= {0, *np.unique(seeds), *outside}


def test_a_worker_is_a_process_of_the_script(arrays):
    task = {"verb": "label", "tool": "scipy", "arrays": {"volume": arrays["mask"]}, "repeat": 2}
    done = compare.run_worker("measure", task | {"options": {"connectivity": 6}}, compare.os.environ)
    assert len(done["seconds"]) >= 2
    with pytest.raises(compare.FailedError, match="TypeError"):
        compare.run_worker("measure", task | {"options": {"connectivity": 6, "unknown": 1}}, compare.os.environ)


def work_here(job, task, environment):
    return compare.JOBS[job](task)


@pytest.fixture
def one_call(monkeypatch):
    """One call of each, in this process: what is measured is not the matter here, but that it is, and what is printed.

    All that the other tests of this process left is no garbage, but would be looked through before each call; and each
    real volume is unpacked once.
    """
    monkeypatch.setattr(compare, "LEAST", 0)
    monkeypatch.setattr(compare.gc, "collect", lambda: None)
    for module in (compare, tiled, gpu):
        monkeypatch.setattr(module, "read_urocell", read_once)


read_once = functools.cache(compare.read_urocell)


def test_the_script_without_data(one_call, tmp_path, capsys):
    report = tmp_path / "report.json"
    words = ["--size", "32", "--repeat", "1", "--data", str(tmp_path), "--json", str(report)]
    assert compare.main([*words, "--only", "^label: (noise|fv 0)|quality: fv 0"], work_here) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\| noise p = 0.3, 26 +\| +[\d.]+ \| +cc3d \| +[\d.]+ \| +[\d.]+ \| 1 \(aim 0.8\) \|", printed)
    assert "- fv 0-0-0: no UroCell volumes." in printed
    assert "lpa3d finds" not in printed
    read = json.loads(report.read_text())
    assert {row["peer"] for row in read["rows"]} >= {"cc3d", "scipy", "scikit-image"}
    assert all(row["ratio"] > 0 for row in read["rows"])
    assert read["failures"] == []


def test_the_script_measures_scaling(one_call, tmp_path, capsys):
    words = ["--size", "32", "--repeat", "1", "--data", str(tmp_path), "--only", "^scaling"]
    assert compare.main(words, work_here) == 0
    assert re.search(r"\| 32 cubed \| +216 \| +[\d.]+ \| +[\d.]+ \|", capsys.readouterr().out)


@pytest.mark.long
def test_the_script_on_data(one_call, data_dir, tmp_path, capsys):
    pytest.importorskip("nibabel")
    words = [
        "--size",
        "32",
        "--repeat",
        "1",
        "--data",
        str(data_dir),
        "--only",
        "propagate: fv 0|quality: fv 0|^evaluate: |^stitch: (fv 0|conn)|^fuse|^stitching: fv 0-0-0( along x)?$",
    ]
    assert compare.main(words, work_here) == 0
    printed = capsys.readouterr().out
    assert "| connectomics corrupted, all metrics " in printed
    assert "lpa3d finds" not in printed
    assert "| fv 0-0-0, geodesic only, 6, cost " in printed
    assert "| fv, 1 slice in 16 along z, 0-0-0 " in printed
    assert re.search(r"\| fv 0-0-0, 10 % missing, 32 cubed +\|.* lpa3d label .*\| +1 s \| +yes \|", printed)
    assert "| connectomics, 32 cubed " in printed
    assert "| fv 0-0-0, class map, instances and slices " in printed
    assert printed.count("| fv 0-0-0, 10 % missing ") == 3
    assert "Further volumes" in printed


def test_a_failure_is_told(one_call, tmp_path, capsys):
    def fail(job, task, environment):
        if job == "measure" and task["tool"] == "cc3d":
            raise compare.FailedError("killed")
        return work_here(job, task, environment)

    words = ["--size", "32", "--repeat", "1", "--data", str(tmp_path), "--only", "label: noise.* 6"]
    assert compare.main(words, fail) == 1
    assert "- label: noise p = 0.3, cc3d: killed" in capsys.readouterr().out


def test_tiles_have_their_own_ids():
    labels = np.zeros((4, 4, 4), np.uint8)
    labels[0, 0, :2] = 1
    labels[3] = 3
    tiled = compare.tile_instances(labels, 8)
    assert tiled.shape == (8, 8, 8)
    np.testing.assert_array_equal(np.unique(tiled), [0, *(k for c in range(8) for k in (3 * c + 1, 3 * c + 3))])
    np.testing.assert_array_equal(tiled > 0, compare.tile(labels > 0, 8))
    np.testing.assert_array_equal(compare.tile_instances(labels, 2), labels[:2, :2, :2])


def test_corrupt_makes_every_kind_of_error(arrays):
    reference, prediction = np.load(arrays["instances"]), np.load(arrays["corrupted"])
    np.testing.assert_array_equal(np.unique(reference), np.arange(reference.max() + 1))
    np.testing.assert_array_equal(np.unique(prediction), np.arange(prediction.max() + 1))
    np.testing.assert_array_equal(compare.corrupt(reference), prediction)
    assert not prediction[reference == 0].any()
    shared = np.zeros((reference.max() + 1, prediction.max() + 1), np.int64)
    np.add.at(shared, (reference, prediction), 1)
    shared = shared[1:]
    parts = np.count_nonzero(shared[:, 1:], axis=1)
    assert (parts == 0).any(), "removed"
    assert (parts > 1).any(), "cut"
    assert (np.count_nonzero(shared[:, 1:], axis=0) > 1).any(), "joined"
    assert ((parts == 1) & (shared[:, 0] > 0)).any(), "eroded"
    assert ((parts == 1) & (shared[:, 0] == 0)).any(), "kept"


def test_slices_are_cut_into_components():
    labels = np.zeros((3, 4, 6), np.int32)
    labels[0, 0, 0] = labels[0, 1, 1] = labels[0, 3, 4] = 7
    labels[1, :, :2], labels[1, :, 2:] = 7, 8
    slices = compare.cut_slices(labels)
    np.testing.assert_array_equal(slices > 0, labels > 0)
    assert slices[0, 0, 0] == slices[0, 1, 1] != slices[0, 3, 4]
    assert [np.unique(plane[plane > 0]).tolist() for plane in slices] == [[1, 2], [1, 2], []]
    np.testing.assert_array_equal(compare.cut_slices(labels), slices)


def test_missing_slices_are_drawn():
    missing = compare.draw_missing(256, 0)
    assert len(np.unique(missing)) == 26
    assert missing.min() >= 0
    assert missing.max() < 256
    assert set(missing) != set(compare.draw_missing(256, 1))


def test_plain_stitchers():
    """What they do to a branch, to an object that passes a gap, to one that leaps, and to classes."""
    sections = np.zeros((5, 1, 20), np.int64)
    sections[0, 0, :6] = 1
    sections[1, 0, :2], sections[1, 0, 3:6] = 2, 3
    sections[0, 0, 8:12] = 4
    sections[2, 0, 8:12] = 5
    sections[0, 0, 14:18] = 6
    sections[1, 0, 17:19] = 7
    classes = np.zeros(8, np.int64)

    def find(name, classes=classes):
        labels = compare.STITCHERS[name](sections, classes)
        np.testing.assert_array_equal(labels > 0, sections > 0)
        ids = [int(np.unique(labels[sections == k]).item()) for k in range(1, 8)]
        return sorted(tuple(k + 1 for k, i in enumerate(ids) if i == one) for one in set(ids))

    assert find("greedy IoU > 0.25") == [(1, 3), (2,), (4,), (5,), (6,), (7,)]
    assert find("greedy IoU > 0.1") == [(1, 3), (2,), (4,), (5,), (6, 7)]
    assert find("overlap > 0.5") == [(1, 2, 3), (4, 5), (6,), (7,)]
    classes[3] = 1
    assert find("greedy IoU > 0.1") == [(1, 2), (3,), (4,), (5,), (6, 7)]
    assert find("overlap > 0.5") == [(1, 2), (3,), (4, 5), (6,), (7,)]
    for stitcher in compare.STITCHERS.values():
        assert not stitcher(np.zeros((2, 3, 4), np.int64), np.zeros(1, np.int64)).any()


def test_the_script_stitches_without_data(one_call, tmp_path, capsys):
    report = tmp_path / "report.json"
    words = ["--size", "32", "--repeat", "1", "--data", str(tmp_path), "--json", str(report)]
    assert compare.main([*words, "--only", "^(stitching|stitch|fuse): (fv 0-0-0|phantom)"], work_here) == 0
    printed = capsys.readouterr().out
    assert "- fv 0-0-0: no UroCell volumes." in printed
    assert "Further volumes" not in printed
    assert re.search(r"\| phantom along z( +\| +[\d.]+ / [\d.]+){5} \|", printed)
    (name,) = {row["what"] for row in json.loads(report.read_text())["stitching"]}
    assert name == "phantom along z"


def test_blocks():
    blocks = compare.make_blocks(0, None, 32)
    np.testing.assert_array_equal(np.unique(blocks), np.arange(1, 6**3 + 1))
    shifted = compare.make_blocks(1, None, 32)
    np.testing.assert_array_equal(np.unique(shifted), np.unique(blocks))
    np.testing.assert_array_equal(shifted[:31, :31, :31], blocks[1:, 1:, 1:])


@pytest.mark.parametrize(
    ("value", "floor", "aim", "more", "met"),
    [
        (0.5, 0.6, 0.4, False, "yes"),
        (0.4, 0.6, 0.4, False, "yes, and the aim"),
        (0.61, 0.6, None, False, "**no**"),
        (0.1, 0.085, 0.12, True, "yes"),
        (0.05, 0.085, 0.12, True, "**no**"),
        (None, 5, None, False, ""),
    ],
)
def test_judge(value, floor, aim, more, met):
    assert compare.judge(value, floor, aim, more=more)[1] == met
    assert compare.judge(value, None) == ("", "")


def test_asv_settings():
    settings = json.loads((ROOT / "asv.conf.json").read_text())
    assert (ROOT / settings["benchmark_dir"] / "benchmarks.py").is_file()


@pytest.mark.skipif(importlib.util.find_spec("asv") is None, reason="asv is not installed")
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="asv needs a checkout")
def test_asv_check():
    words = [sys.executable, "-m", "asv", "check", "--python=same"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


STORED = [
    (cls, name)
    for cls in vars(stored_suite).values()
    if inspect.isclass(cls) and cls.__module__ == stored_suite.__name__
    for name in dir(cls)
    if BENCHMARK.match(name)
]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Folder in which the stores of the asv suite of tiled runs have been made."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(stored_suite.Stored, "params", [SIDE])
        patch.setattr(stored_suite, "CHUNK", 32)
        stored_suite.Stored().setup_cache()
    return folder


@pytest.mark.each_value
@pytest.mark.parametrize(("cls", "name"), [m for m in STORED if m[0] is not stored_suite.Stored])
def test_asv_tiled(cls, name, stores, monkeypatch):
    monkeypatch.chdir(stores)
    monkeypatch.setattr(stored_suite, "TILE", 32)
    benchmark = cls()
    parameter = SIDE if issubclass(cls, stored_suite.Stored) else 1000
    benchmark.setup(parameter)
    try:
        getattr(benchmark, name)(parameter)
    finally:
        benchmark.teardown(parameter)
    assert not [path for path in stores.iterdir() if path.name.startswith("results")]


def test_every_verb_is_in_the_tiled_suite():
    verbs = {cls.verb for cls, _ in STORED if hasattr(cls, "verb")}
    assert verbs == set(suite.CALLS)
    assert not [name for name in vars(tiled) if BENCHMARK.match(name)]


def work_on_stores(job, task, environment):
    return tiled.JOBS[job](json.loads(json.dumps(task)))


@pytest.fixture
def small_chunks(monkeypatch):
    """Tiles of volumes of 32 cubed, and no process but this one."""
    monkeypatch.setattr(tiled, "CHUNK", 16)
    monkeypatch.setattr(tiled, "CROP", 16)
    monkeypatch.setattr(tiled, "WARM", 8)


TINY = ["--size", "32", "--rounds", "1", "--tiles", "1000", "--threads", "2"]


def test_stores_are_copies_of_one(small_chunks, tmp_path, monkeypatch):
    """Each copy has its own ids; strips are not longer than a copy."""
    made = np.random.default_rng(0).integers(0, 5, (32, 32, 32)).astype(np.int32)
    monkeypatch.setitem(tiled.STORES, "seeds", (32, lambda data, side: made[:side, :side, :side]))
    session = tiled.Session(None, tmp_path, {}, 1, 2, work_on_stores)
    cubed = tiled.open_store(session.store("seeds", (64, 64, 64)))[...]
    np.testing.assert_array_equal(cubed, compare.tile_instances(made, 64))
    stack = tiled.open_store(session.store("seeds", (16, 96, 96)))[...]
    np.testing.assert_array_equal(stack > 0, compare.tile(made, 96)[:16] > 0)
    assert len(np.unique(stack)) == 1 + 9 * 4
    np.testing.assert_array_equal(tiled.open_store(session.store("seeds", (16, 16, 16)))[...], made[:16, :16, :16])


def test_eroded_voxels_touch_no_other_label(data_dir):
    mask = tiled.make_eroded(data_dir, 48)
    labels = compare.read_connectomics(data_dir, 48)
    inner = tuple(slice(1, -1) for _ in range(3))
    wanted = labels > 0
    for axis in range(3):
        for shift in (1, -1):
            wanted &= labels == np.roll(labels, shift, axis)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask[inner] > 0, wanted[inner])
    np.testing.assert_array_equal(mask > 0, wanted)


def test_tiled_script_without_data(one_call, small_chunks, tmp_path, capsys):
    """Rows that need no data run; the others are named."""
    report = tmp_path / "report.json"
    words = [*TINY, "--data", str(tmp_path), "--folder", str(tmp_path / "stores"), "--json", str(report)]
    assert tiled.main([*words, "--only", "noise|threads|^label: 32|^propagate"], work_on_stores) == 0
    printed = re.sub(" +", " ", capsys.readouterr().out)
    assert re.search(r"\| 32 cubed, 26 \| [\d.]+ \| [\d,]+ \|", printed)
    assert re.search(r"\| threads, 1,000 tiles \| [\d.]+ \| [\d.]+ \| 0.2 \| yes \|", printed)
    assert "- label: 32 cubed: no connectomics.zarr." in printed
    assert "- propagate: no UroCell volumes." in printed
    read = json.loads(report.read_text())
    assert [row["scheduler"] for row in read["driver"]] == ["threads"]
    assert read["failures"] == []


@pytest.mark.long
def test_tiled_script_on_data(one_call, small_chunks, data_dir, tmp_path, capsys, monkeypatch):
    """Here in this process: others would have to compile the kernels."""
    pytest.importorskip("nibabel")
    monkeypatch.setattr(tiled, "BACKENDS", [backend for backend in tiled.BACKENDS if "processes" not in backend[0]])
    monkeypatch.setattr(tiled, "is_installed", lambda name: name != "distributed" and compare.is_installed(name))
    words = [*TINY, "--data", str(data_dir), "--folder", str(tmp_path), "--slices", "16", "--image", "64"]
    assert tiled.main([*words, "--only", "propagate|evaluate|^label|^scaling"], work_on_stores) == 0
    printed = re.sub(" +", " ", capsys.readouterr().out)
    assert "lpa3d finds" not in printed
    assert "differ." not in printed
    assert re.search(r"\| 32 cubed \| [\d.]+ \| cc3d in memory \| [\d.]+ \| [\d.]+ \|", printed)
    assert "- lpa3d, distributed: not installed." in printed
    assert printed.count("in memory, with reading and writing, 16 cubed") == 2
    assert printed.count("in memory, with reading, 16 cubed") == 2
    assert re.search(r"\| propagate, mask, seeds, 16 slices of 64 x 64 ", printed)
    assert re.search(r"\| 1e\+12 voxels, evaluate ", printed)


def test_tiled_rows_are_listed(capsys):
    assert tiled.main(["--list", "--slices", "8"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[:3] == ["label: 512 cubed", "label: 1024 cubed", "propagate: 1024 cubed"]
    assert rows[-1] == "scaling: evaluate, 8 slices of 2048 x 2048"


def test_a_tiled_worker_is_watched(tmp_path):
    """The memory of the driver and of its processes is seen from outside."""
    pytest.importorskip("distributed")
    pytest.importorskip("psutil")
    task = {"tiles": 1000, "processes": True, "workers": 2, "folder": str(tmp_path / "work")}
    done = tiled.run_worker("drive", task, tiled.os.environ)
    assert done["tiles"] == 1000
    assert done["seconds"] > 0
    assert done["seen"]["memory"] > (done["peak"] or 0)
    with pytest.raises(compare.FailedError, match="KeyError"):
        tiled.run_worker("drive", {"folder": str(tmp_path / "more")}, tiled.os.environ)


def test_a_tiled_failure_is_told(small_chunks, tmp_path, capsys):
    def fail(job, task, environment):
        if job == "measure":
            raise compare.FailedError("killed")
        return work_on_stores(job, task, environment)

    words = [*TINY, "--data", str(tmp_path), "--folder", str(tmp_path)]
    assert tiled.main([*words, "--only", "noise"], fail) == 1
    assert "- noise, lpa3d, 26: killed" in capsys.readouterr().out


def clock_here(call):
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def rival_here(volume):
    """What stands in for CuPy's labelling, which needs a GPU."""
    return lambda: lpa3d.label(volume > 0, connectivity=26)


def test_gpu_script(emulator, tmp_path, capsys):
    """All rows run, on an emulated device and without data."""
    device = emulator("shuffled")
    words = ["--size", "64", "--repeat", "1", "--data", str(tmp_path)]
    with cuda_emulator.opened(device):
        assert gpu.main(words, lambda check: device, clock_here, rival_here) == 0
    printed = re.sub(" +", " ", capsys.readouterr().out)
    assert re.search(r"A copy moves [\d.]+ TB/s", printed)
    assert (
        len(re.findall(r"\| label, (binary|multi-class), 64 cubed, 26 \|.* \| 25 \|.* \(at most 0.1: ", printed)) == 2
    )
    assert re.search(r"\| propagate, geodesic only, 32 cubed, phantom tiled \|( [\d.]+ \|){3} 60 \|", printed)
    assert re.search(r"\| propagate, defaults, 32 cubed, phantom tiled \|( [\d.]+ \|){3} 250 \|", printed)
    assert re.search(r"\| overlap table, 64 cubed, 4,096 labels \|( [\d.]+ \|){3} 15 \|", printed)


@pytest.mark.long
def test_gpu_script_checks_bytes(emulator, data_dir, capsys, monkeypatch):
    """Each row has the bytes of the CPU, on data too; another answer is an error."""
    pytest.importorskip("nibabel")
    device = emulator("shuffled")
    words = ["--size", "48", "--check", "--data", str(data_dir)]
    with cuda_emulator.opened(device):
        assert gpu.main(words, lambda check: device) == 0
    printed = capsys.readouterr().out
    assert printed.count("the bytes of the CPU") == 7
    assert "propagate, defaults, 24 cubed, fv tiled" in printed
    right = gpu.count_pairs
    monkeypatch.setattr(gpu, "count_pairs", lambda *arrays: right(*arrays) + device.holds(arrays[0]))
    with cuda_emulator.opened(device):
        assert gpu.main([*words, "--only", "overlap"], lambda check: device) == 1
    assert re.search(r"overlap table, 48 cubed, .* values differ", capsys.readouterr().err)


def test_gpu_script_without_a_gpu(capsys):
    """It says what is missing."""

    def prepare(check):
        raise lpa3d.errors.DeviceError("device='cuda' needs an NVIDIA GPU")

    assert gpu.main([], prepare) == 2
    assert "needs an NVIDIA GPU" in capsys.readouterr().err
