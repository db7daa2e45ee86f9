"""`device="cuda"`: arrays that a CUDA device works on, whole or tile by tile, with the answer of the CPU."""

from __future__ import annotations

import functools
import itertools
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lpa3d
from lpa3d import cli, io
from lpa3d.arrays import backend as _backend
from lpa3d.cuda.device import Device
from lpa3d.errors import DeviceError, InputError, InputTypeError, Keyword
from lpa3d.tiled.driver import schedulers
from lpa3d.tiled.driver.budget import SHARE, Room, choose_tile, weigh
from lpa3d.tiled.driver.stored import open_source
from tests.emulator import any_order
from tests.strategies import moving_blobs, tiled_volumes

zarr = pytest.importorskip("zarr")

pytestmark = pytest.mark.filterwarnings("ignore::lpa3d.errors.Lpa3dWarning")


def make_case() -> dict[str, np.ndarray]:
    """Blobs of two classes that cross tiles, annotated on every fourth slice, in noise that cuts some of them up."""
    volume, labels = moving_blobs(np.random.default_rng(3), classes=2, depth=13, side=18, gap=4)
    volume[np.random.default_rng(1).random(volume.shape) < 0.08] = 0
    labels[volume == 0] = 0
    seeds = np.where(np.arange(len(labels))[:, None, None] % 4 == 1, labels, 0)
    image = np.linspace(0, 1, volume.size, dtype=np.float32).reshape(volume.shape)
    return {"volume": volume, "labels": labels, "seeds": seeds, "other": np.roll(labels, 1, 2), "image": image}


CASE = make_case()

CALLS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "label": (("volume",), {"connectivity": 26}),
    "propagate": (("volume", "seeds"), {"unseeded": "label", "sweeps": 3}),
    "merge": (("labels",), {"classes": "volume", "min_contact": 0.1}),
    "contacts": (("labels",), {"image": "image", "spacing": (3, 1, 2), "connectivity": 18}),
    "evaluate": (("labels", "other"), {"ignore": 3}),
}
"""Arrays of the case for each verb, and keywords, of which some name arrays."""

WITH_OUT = ("label", "propagate", "merge")


def call(verb: str, change: Callable[[np.ndarray], Any], **options: Any) -> Any:
    """Call a verb on the arrays of the case, changed."""
    names, keywords = CALLS[verb]
    keywords = {key: change(CASE[value]) if value in CASE else value for key, value in keywords.items()}
    return getattr(lpa3d, verb)(*(change(CASE[name]) for name in names), **(keywords | options))


def as_arrays(result: Any) -> list[np.ndarray]:
    """Return what a verb returned as NumPy arrays."""
    if isinstance(result, lpa3d.Contacts):
        return list(result.columns().values())
    if isinstance(result, lpa3d.Evaluation):
        return [np.array([*result.values()]), *result.pairs.columns().values()]
    parts = result if isinstance(result, tuple) else (result,)
    return [part if isinstance(part, np.ndarray) else part[...] for part in parts]


def assert_same(result: Any, expected: Any) -> None:
    for one, other in zip(as_arrays(result), as_arrays(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def store(array: np.ndarray, chunks: int = 7) -> Any:
    """Return a zarr array in memory."""
    stored = zarr.create_array(
        zarr.storage.MemoryStore(), shape=array.shape, dtype=array.dtype, chunks=(chunks,) * array.ndim
    )
    stored[...] = array
    return stored


def place(verb: str, folder: Path) -> dict[str, Any]:
    return {"out": folder / "out.zarr"} if verb in WITH_OUT else {}


@functools.cache
def expect(verb: str) -> Any:
    """Return the CPU's answer."""
    return call(verb, np.copy)


@pytest.fixture
def used(device: Device, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the device was in use in each task of a tile that was to be done on it."""
    seen: list[bool] = []
    run = schedulers.OnDevice.__call__

    def record(task: schedulers.OnDevice, context: Any, *args: Any) -> Any:
        def watched(*inner: Any) -> Any:
            seen.append(_backend.find_device() is device)
            return task.task(*inner)

        return run(schedulers.OnDevice(watched), context, *args)

    monkeypatch.setattr(schedulers.OnDevice, "__call__", record)
    return seen


# ----------------------------------------------------------------------------------------------------- stored arrays


@pytest.mark.each_value
@pytest.mark.parametrize("verb", CALLS)
def test_tiles_on_the_device(verb, device, used, tmp_path):
    result = call(verb, store, device="cuda", tile=(5, 9, 12), **place(verb, tmp_path))
    assert_same(result, expect(verb))
    assert used
    assert all(used)


@any_order
@settings(max_examples=6)
@given(tiled_volumes, st.sampled_from([6, 18, 26]))
def test_any_tiles_on_the_device(device, tmp_path_factory, case, connectivity):
    volume, tile = case
    if np.prod([-(-n // t) for n, t in zip(volume.shape, tile, strict=True)]) > 8:
        tile = tuple(8 * t for t in tile)
    out = tmp_path_factory.mktemp("tiles") / "out.zarr"
    labels = lpa3d.label(store(volume), connectivity=connectivity, out=out, tile=tile, device="cuda")
    np.testing.assert_array_equal(labels[...], lpa3d.label(volume, connectivity=connectivity))


@any_order
@pytest.mark.parametrize(
    "options",
    [
        {"max_distance": 4, "unseeded": "label"},
        {"spacing": (2, 1, 1), "missing_slices": [5], "return_confidence": True, "sweeps": 2, "slice_axis": None},
        {"cost": CASE["image"], "sweeps": 0},
    ],
)
def test_propagate_in_tiles_on_the_device(device, tmp_path, options):
    answer = lpa3d.propagate(CASE["volume"], CASE["seeds"], **options)
    out = tmp_path / "out.zarr", tmp_path / "confidence.zarr"
    keywords = {key: store(value) if value is CASE["image"] else value for key, value in options.items()}
    keywords["out"] = out if "return_confidence" in options else out[0]
    result = lpa3d.propagate(store(CASE["volume"]), store(CASE["seeds"]), device="cuda", tile=(7, 9, 18), **keywords)
    assert_same(result, answer)


@any_order
@pytest.mark.parametrize(("first", "then"), [(None, "cuda"), ("cuda", None)])
def test_a_run_goes_on_elsewhere(device, used, tmp_path, first, then):
    class StopError(Exception):
        pass

    def run(device: str | None, last: str = "") -> Any:
        def stop(stage: str, fraction: float) -> None:
            if stage == last:
                raise StopError

        return call("merge", store_at(tmp_path), device=device, tile=8, progress=stop, **place("merge", tmp_path))

    with pytest.raises(StopError):
        run(first, "seams")
    assert bool(used) == (first == "cuda")
    used.clear()
    with pytest.raises(StopError):
        run(then, "relabel")
    assert bool(used) == (then == "cuda")
    assert_same(run(first), expect("merge"))


def store_at(folder: Path) -> Callable[[np.ndarray], Any]:
    """Return what stores arrays in a folder, each once."""

    def change(array: np.ndarray) -> str:
        name = next(name for name, value in CASE.items() if value is array)
        if not (folder / f"{name}.zarr").exists():
            zarr.create_array(folder / f"{name}.zarr", data=array, chunks=(7,) * 3)
        return str(folder / f"{name}.zarr")

    return change


def test_tiles_fit_on_the_device():
    shape, many = (1000,) * 3, {"memory": "100GB", "bytes_per_voxel": 10, "halo": 5, "workers": 8}
    free = choose_tile(shape, (100,) * 3, **many)
    assert choose_tile(shape, (100,) * 3, room=Room(10**11, 40), **many) == free
    last = free.tile
    for memory in (10**10, 10**9, 10**8):
        plan = choose_tile(shape, (100,) * 3, room=Room(memory, 40), **many)
        assert np.prod(plan.tile) < np.prod(last)
        assert plan.workers == 8
        assert 8 * 40 * np.prod([t + 10 for t in plan.tile]) <= SHARE * memory
        last = plan.tile
    # A tile that was asked for: fewer of them at once, then none.
    assert choose_tile(shape, (100,) * 3, tile=190, room=Room(10**9, 40), **many).workers == 2
    with pytest.raises(
        InputError, match=r"a tile of \(190, 190, 190\) with its halo of 5 needs about 320\.0 MB on the GPU"
    ):
        choose_tile(shape, (100,) * 3, tile=190, room=Room(10**8, 40), **many)


# ------------------------------------------------------------------------------------------------------ NumPy arrays


def leave_room(monkeypatch: pytest.MonkeyPatch, device: Device, verb: str, share: float) -> None:
    """Let the device have that share of the room that the case is said to need."""
    names, keywords = CALLS[verb]
    named = [*names, *(key for key, value in keywords.items() if value in CASE)]
    sources = {name: open_source(CASE[keywords.get(name, name)], name) for name in named}
    need = weigh(verb, sources, keywords)[1].device * CASE["volume"].size / SHARE
    monkeypatch.setattr(device, "free_bytes", lambda: int(share * need))


@any_order
@pytest.mark.parametrize("verb", CALLS)
def test_numpy_arrays(verb, device, used, monkeypatch):
    leave_room(monkeypatch, device, verb, 1.01)
    before = {name: array.copy() for name, array in CASE.items()}
    result = call(verb, lambda array: array, device="cuda")
    assert_same(result, expect(verb))
    assert not used
    for name, array in CASE.items():
        np.testing.assert_array_equal(array, before[name])


@any_order
@pytest.mark.parametrize("verb", CALLS)
def test_numpy_arrays_that_do_not_fit(verb, device, used, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    leave_room(monkeypatch, device, verb, 0.9)
    result = call(verb, lambda array: array, device="cuda")
    assert isinstance(result, (np.ndarray, lpa3d.Contacts, lpa3d.Evaluation))
    assert_same(result, expect(verb))
    assert used
    assert all(used)
    assert not list(tmp_path.iterdir())


@any_order
@pytest.mark.parametrize("share", [1.01, 0.8])
def test_options_of_propagate(device, monkeypatch, share):
    leave_room(monkeypatch, device, "propagate", share)
    options = {"missing_slices": [2, 3], "return_confidence": True, "cost": CASE["image"], "sweeps": 2}
    expected = lpa3d.propagate(CASE["volume"], CASE["seeds"], **options)
    stages: list[str] = []
    out = np.full_like(CASE["seeds"], 7)
    result = lpa3d.propagate(
        CASE["volume"], CASE["seeds"], out=out, device="cuda", progress=lambda stage, _: stages.append(stage), **options
    )
    assert result[0] is out
    assert_same(result, expected)
    assert "diffusion" in stages
    with pytest.raises(InputError, match=r"dtype int64; needed is out=numpy\.empty\(\(13, 18, 18\), 'uint16'"):
        lpa3d.propagate(CASE["volume"], CASE["seeds"].astype(np.uint8), unseeded="label", out=out, device="cuda")


@pytest.mark.each_value
@any_order
@pytest.mark.parametrize("share", [1.01, 0.9])
@pytest.mark.parametrize("instances", ["ids", "components"])
def test_what_evaluate_leaves_to_the_cpu(device, monkeypatch, instances, share):
    leave_room(monkeypatch, device, "evaluate", share)
    options = {"instances": instances, "surfaces": True, "warping": "2d"}
    result = lpa3d.evaluate(CASE["labels"], CASE["other"], device="cuda", **options)
    assert_same(result, lpa3d.evaluate(CASE["labels"], CASE["other"], **options))


@any_order
def test_a_device_is_in_use_only_while_it_works(device):
    arrays, options = (CASE["labels"], CASE["other"]), {"device": "cuda", "surfaces": True}
    lpa3d.evaluate(*arrays, **options)
    assert _backend.find_device() is None
    with pytest.raises(InputError, match="iou_thresholds"):
        lpa3d.evaluate(*arrays, iou_thresholds=-1, **options)
    assert _backend.find_device() is None
    with _backend.on_device(device):
        with _backend.on_device(None):
            assert _backend.find_device() is device
        assert _backend.find_device() is device
    assert _backend.find_device() is None


@any_order
@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0), (5, 0)])
def test_nothing_to_evaluate(device, shape):
    nothing, options = np.zeros(shape, np.uint8), {"instances": "components", "surfaces": True, "warping": "3d"}
    assert_same(lpa3d.evaluate(nothing, nothing, device="cuda", **options), lpa3d.evaluate(nothing, nothing, **options))


@any_order
@pytest.mark.parametrize("share", [1.01, 0.9])
@pytest.mark.parametrize("verb", ["label", "merge"])
def test_out(verb, share, device, monkeypatch):
    leave_room(monkeypatch, device, verb, share)
    out = np.full_like(expect(verb), 7)
    assert call(verb, np.copy, out=out, device="cuda") is out
    assert_same(out, expect(verb))
    wrong = np.zeros(out.shape, np.int16)
    with pytest.raises(InputError, match=r"dtype int16; needed is out=numpy\.empty\(\(13, 18, 18\), 'u?int"):
        call(verb, np.copy, out=wrong, device="cuda")
    with pytest.raises(InputTypeError, match="out is a str; a NumPy array is needed"):
        call(verb, np.copy, out="out.zarr", device="cuda")
    assert not wrong.any()


@any_order
def test_out_shares_no_memory(device):
    labels = CASE["labels"].copy()
    with pytest.raises(InputError, match="out shares memory with an input"):
        lpa3d.merge(labels, out=labels, device="cuda")
    np.testing.assert_array_equal(labels, CASE["labels"])


@any_order
@pytest.mark.parametrize("layout", [">i4", "F", "strided", "bool", "2D"])
def test_layouts(device, layout):
    labels = CASE["labels"].astype(np.int32)
    if layout == ">i4":
        labels = labels.astype(">i4")
    elif layout == "F":
        labels = np.asfortranarray(labels)
    elif layout == "strided":
        labels = labels[::2, ::-1, 1::3]
    elif layout == "bool":
        labels = labels > 0
    else:
        labels = labels[4]
    for verb in (lpa3d.merge, lpa3d.label):
        assert_same(verb(labels, device="cuda"), verb(labels))


# --------------------------------------------------------------------------------------------------- arrays on a device


@pytest.mark.parametrize("verb", CALLS)
def test_device_arrays(verb, device):
    # Whether that is said or not, they are worked on where they are.
    result = call(verb, device.bring, **({"device": "cuda"} if verb == "label" else {}))
    if verb in WITH_OUT:
        assert device.holds(result)
        result = device.fetch(result)
    assert_same(result, expect(verb))


@any_order
def test_kinds_are_not_mixed(device, tmp_path):
    memory = CASE["volume"]
    there = device.bring(memory)
    kind = f"{type(there).__module__}.{type(there).__qualname__}"
    with pytest.raises(InputTypeError, match=rf"volume is a {kind}, but seeds is a numpy\.ndarray; .*cupy\.asarray\("):
        lpa3d.propagate(there, CASE["seeds"])
    with pytest.raises(InputTypeError, match=rf"reference is a {kind}, but prediction is a numpy.*cupy\.asnumpy\("):
        lpa3d.evaluate(there, memory, device="cuda")
    with pytest.raises(InputTypeError, match=rf"seeds is a zarr.*, but volume is a {kind}; .* lpa3d\.io\.read"):
        lpa3d.propagate(there, store(CASE["seeds"]), out=tmp_path / "o.zarr")
    with pytest.raises(InputTypeError, match=rf"out is a {kind}, but volume is a numpy\.ndarray"):
        lpa3d.label(memory, out=there, device="cuda")
    with pytest.raises(InputTypeError, match="out is a ndarray; a CuPy array is needed"):
        lpa3d.label(there, out=memory)
    with pytest.raises(InputTypeError, match=rf"slices is a {kind}, and stitch cannot .* cupy\.asnumpy\("):
        lpa3d.stitch(there)
    with pytest.raises(InputTypeError, match=rf"classes is a {kind}, and fuse cannot .* cupy\.asnumpy\("):
        lpa3d.fuse(classes=there)
    with pytest.raises(InputError, match=rf"tile, resume are for zarr or dask arrays, and volume is a {kind}"):
        lpa3d.label(there, tile=8, resume=False)


# ------------------------------------------------------------------------------------------------------------- errors


class OutOfMemoryError(MemoryError):
    """As CuPy's is called."""


@any_order
@pytest.mark.parametrize("kind", ["memory", "cuda", "stored"])
def test_a_full_device(kind, device, tmp_path, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise OutOfMemoryError("Out of memory allocating 4,096 bytes")

    if kind == "stored":
        monkeypatch.setattr("lpa3d.tiled.label.scan_tile", fail)
        advice = "finished tiles are kept.*LPA3D_NUM_THREADS"
    else:
        monkeypatch.setattr("lpa3d.verbs.label.canonical_connectivity", fail)
        advice = "store the arrays as zarr and pass device='cuda' and a tile"
    change, where = {"memory": (np.copy, {}), "cuda": (device.bring, {}), "stored": (store, place("label", tmp_path))}[
        kind
    ]
    with pytest.raises(DeviceError, match=rf"the GPU's memory is full \(.* 4,096 bytes\); .*{advice}"):
        call("label", change, device="cuda", **where)


@pytest.fixture
def no_device(monkeypatch):
    def fail() -> None:
        raise DeviceError(Keyword("device", "cuda"), " needs an NVIDIA GPU, and there is none")

    monkeypatch.setattr(_backend, "open_device", fail)


@pytest.mark.parametrize("verb", CALLS)
def test_no_device(verb, no_device, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU"):
        call(verb, np.copy, device="cuda")
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU"):
        call(verb, store, device="cuda", **place(verb, tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_worker_of_a_cluster_without_a_device(no_device):
    payload = pickle.dumps((schedulers.OnDevice(print), "context"))
    ((args, value, error),) = schedulers._call_payload(payload, [(3,)])
    assert (args, value) == ((3,), None)
    assert isinstance(error, DeviceError)


def test_a_task_without_a_device_ends_the_run(no_device, monkeypatch, tmp_path):
    # As on a cluster whose driver has one.
    calls = itertools.count()
    missing = _backend.open_device

    class Driver:
        def free_bytes(self) -> int:
            return 10**9

    monkeypatch.setattr(_backend, "open_device", lambda: Driver() if next(calls) == 0 else missing())
    with pytest.raises(DeviceError, match="needs an NVIDIA GPU"):
        call("label", store, device="cuda", **place("label", tmp_path))


@any_order
def test_what_is_no_array_is_refused_by_the_verb(device):
    with pytest.raises(InputTypeError, match=r"seeds is a builtins\.list; a NumPy array is needed"):
        lpa3d.propagate(CASE["volume"], [[1]], device="cuda")
    with pytest.raises(InputTypeError, match="labels is a masked array"):
        lpa3d.merge(np.ma.masked_array(CASE["labels"]), device="cuda")
    with pytest.raises(InputTypeError, match="a class map is bool or integer"):
        lpa3d.label(CASE["image"], device="cuda")
    with pytest.raises(InputTypeError, match="ids are integers"):
        lpa3d.merge(CASE["image"] + 1, out=CASE["labels"].copy(), device="cuda")


@any_order
@pytest.mark.parametrize("dtype", [">f4", "longdouble"])
def test_floats_are_called_what_they_are(dtype, device):
    labels, floats = CASE["labels"], CASE["image"].astype(dtype)
    calls: list[Callable[[], Any]] = [
        lambda: lpa3d.label(floats, device="cuda"),
        lambda: lpa3d.propagate(labels, floats, unseeded="label", device="cuda"),
        lambda: lpa3d.merge(labels, classes=floats, device="cuda"),
        lambda: lpa3d.evaluate(labels, labels, ignore=floats, device="cuda"),
        lambda: lpa3d.evaluate(labels, labels, classes=(labels, floats), device="cuda"),
    ]
    for refused in calls:
        with pytest.raises(InputTypeError, match=f"has dtype {floats.dtype}\\b.*integer"):
            refused()


@any_order
def test_arrays_of_other_libraries(device):
    class Tensor:
        """As PyTorch's are on a device: its dtypes are not NumPy's."""

        __cuda_array_interface__ = None
        shape, ndim, dtype = CASE["labels"].shape, 3, "torch.uint8"

    labels, tensor = device.bring(CASE["labels"]), Tensor()
    calls: list[Callable[[], Any]] = [
        lambda: lpa3d.label(tensor),
        lambda: lpa3d.propagate(labels, labels, cost=tensor),
        lambda: lpa3d.merge(labels, classes=tensor),
        lambda: lpa3d.contacts(labels, image=tensor),
        lambda: lpa3d.evaluate(labels, labels, ignore=tensor),
        lambda: lpa3d.evaluate(labels, labels, classes=(labels, tensor)),
    ]
    for refused in calls:
        with pytest.raises(InputTypeError, match=r"an array is a .*Tensor; .*cupy\.asarray\(array\)"):
            refused()


# ---------------------------------------------------------------------------------------------------- the command line


@any_order
@pytest.mark.parametrize("suffix", ["zarr", "npy"])
def test_commands(suffix, device, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("labels", "volume", "other"):
        io.write(f"{name}.{suffix}", CASE[name])
    commands = (
        "label volume.S out.S --connectivity 26 --overwrite",
        "merge labels.S out.S --min-contact 0.1 --overwrite",
        "contacts labels.S",
        "evaluate labels.S other.S --json",
    )
    for command in commands:
        words = f"{command} -q".replace(".S", f".{suffix}").split()
        told = []
        for more in ([], ["--device", "cuda"]):
            assert cli.main([*words, *more]) == 0
            told.append((capsys.readouterr().out, io.read(f"out.{suffix}")))
        assert told[0][0] == told[1][0]
        np.testing.assert_array_equal(told[0][1], told[1][1])


@pytest.mark.parametrize("suffix", ["zarr", "npy"])
def test_commands_without_a_device(suffix, no_device, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    io.write(f"volume.{suffix}", CASE["volume"])
    assert cli.main(f"label volume.{suffix} out.{suffix} --device cuda".split()) == 1
    assert capsys.readouterr().err == "lpa3d: error: --device cuda needs an NVIDIA GPU, and there is none\n"
    assert not Path(f"out.{suffix}").exists()
    with pytest.raises(SystemExit, match="2"):
        cli.main(f"stitch volume.{suffix} out.{suffix} --device cuda".split())
