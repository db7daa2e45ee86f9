"""N5 containers and neuroglancer precomputed volumes, written by tensorstore, in memory and tile by tile."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lpa3d
from lpa3d import io
from lpa3d.errors import InputError, InputTypeError, Lpa3dWarning
from lpa3d.tiled.driver.grid import Box
from lpa3d.tiled.driver.stored import open_source

tensorstore = pytest.importorskip("tensorstore")

SPACING = {"z": 40.0, "y": 8.0, "x": 4.0}
ORDERS = ["".join(order) for order in itertools.permutations("zyx")]


def write_n5(path: Path, array: Any, attributes: dict[str, Any] | None = None, chunks: Any = None) -> Path:
    """Write an array whose axes are in the order of the file, the one that varies fastest first."""
    store = tensorstore.open(
        {
            "driver": "n5",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "metadata": {
                "dimensions": array.shape,
                "blockSize": chunks or array.shape,
                "dataType": array.dtype.name,
                "compression": {"type": "raw"},
            },
        },
        create=True,
    ).result()
    store.write(array).result()
    about = json.loads((path / "attributes.json").read_text())
    (path / "attributes.json").write_text(json.dumps(about | (attributes or {})))
    return path


def check(place: Any, meant: Any, spacing: Any = None, unit: str | None = None, offset: Any = None) -> None:
    with io.open_volume(place) as volume:
        np.testing.assert_array_equal(volume.read(), meant)
        assert volume.dtype == meant.dtype
        assert volume.geometry.spacing == (None if spacing is None else pytest.approx(spacing))
        assert unit is None or volume.geometry.unit == unit
        assert volume.geometry.offset == (None if offset is None else pytest.approx(offset))
        for box in volume.parts()[0]:
            np.testing.assert_array_equal(volume.read_box(box), meant[box])


@given(data=st.data())
def test_n5(data, tmp_path_factory):
    draw = data.draw
    dtype = draw(st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4"]))
    axes = "".join(draw(st.permutations("zyx" + draw(st.sampled_from(["", "c"])))))
    shape = [draw(st.integers(1, 4)) for _ in axes]
    random = np.random.default_rng(draw(st.integers(0, 99)))
    array = random.integers(0, 100, shape).astype(dtype)
    chunks = [draw(st.integers(1, n)) for n in shape]
    sizes = [SPACING.get(axis, 1.0) for axis in axes]
    form = draw(st.sampled_from(["axes", "funlib", "transform", "Saalfeld"]))
    reverse = axes[::-1]
    attributes = {
        "axes": {"axes": list(axes), "resolution": sizes, "units": ["nm"] * len(axes), "offset": sizes},
        "funlib": {
            "axis_names": [f"{axis}^" if axis == "c" else axis for axis in reverse],
            "voxel_size": [SPACING[axis] for axis in reverse if axis in SPACING],
            "offset": [SPACING[axis] for axis in reverse if axis in SPACING],
            "units": ["nm"] * 3,
        },
        "transform": {
            "transform": {
                "axes": list(reverse), "scale": sizes[::-1], "translate": sizes[::-1], "units": ["nm"] * len(axes)
            }
        },
        "Saalfeld": {"axes": list(axes), "pixelResolution": {"dimensions": [4.0, 8.0, 40.0], "unit": "nm"}},
    }[form]  # fmt: skip
    path = write_n5(tmp_path_factory.mktemp("n5") / "a.n5" / "raw", array, attributes, chunks)
    kept = [axis for axis in axes if axis in "zyx"]
    at = {axis: 0 for axis in axes if axis == "c"}
    meant = array[tuple(at.get(axis, slice(None)) for axis in axes)].transpose([kept.index(axis) for axis in "zyx"])
    choice = ":c=0" if at and shape[axes.index("c")] > 1 else ""
    offset = (40.0, 8.0, 4.0) if form != "Saalfeld" else None
    for place in (path, path.parent):
        check(f"{place}{choice}", meant, (40.0, 8.0, 4.0), "nm", offset)
    source = open_source(f"{path}{choice}", "volume")
    ends = [sorted(draw(st.tuples(st.integers(0, n - 1), st.integers(1, n)))) for n in source.shape]
    box = Box(tuple(lo for lo, _ in ends), tuple(max(lo + 1, hi) for lo, hi in ends))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).read(box), meant[box.slices])


def test_n5_pyramids(tmp_path):
    """The size of a smaller copy is that of the group, times its factors, however these are noted."""
    array = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    meant = array.T
    for number, (group, own) in enumerate(
        [
            ({"pixelResolution": {"dimensions": [4, 8, 40], "unit": "nm"}}, {"downsamplingFactors": [2, 2, 1]}),
            ({"pixelResolution": [4, 8, 40], "scales": [[1, 1, 1], [2, 2, 1]]}, {}),
            (
                {"axes": ["x", "y", "z"], "units": ["nm"] * 3, "resolution": [4, 8, 40]},
                {"downsamplingFactors": [2, 2, 1]},
            ),
            ({}, {"pixelResolution": {"dimensions": [4, 8, 40], "unit": "nm"}, "downsamplingFactors": [2, 2, 1]}),
        ]
    ):
        root = tmp_path / f"{number}.n5"
        write_n5(root / "em" / "s0", array, own and {**own, "downsamplingFactors": [1, 1, 1]})
        write_n5(root / "em" / "s1", array, own)
        (root / "em" / "attributes.json").write_text(json.dumps(group))
        check(root / "em" / "s1", meant, (40, 16, 8))
        check(root / "em" / "s0", meant, (40, 8, 4))
        with pytest.raises(InputError, match=r"holds 2 arrays; name one of them: .*em/s0, .*em/s1"):
            io.read(root)


def test_n5_sizes_of_unknown_order(tmp_path):
    """Paintera's ``resolution`` is (x, y, z), daisy's (z, y, x): only where all are the same it is used."""
    array = np.ones((4, 3, 2), np.uint8)
    with pytest.warns(Lpa3dWarning, match="programs that write N5 differ"):
        check(write_n5(tmp_path / "a.n5", array, {"resolution": [4, 4, 40], "offset": [1, 2, 3]}), array.T)
    check(write_n5(tmp_path / "b.n5", array, {"resolution": [4, 4, 4], "offset": [1, 2, 3]}), array.T, (4, 4, 4))


def test_n5_names(tmp_path):
    array = np.ones((4, 3, 2), np.uint8)
    write_n5(tmp_path / "cell" / "raw", array)
    check(tmp_path / "cell" / "raw", array.T)  # in a folder without a suffix
    write_n5(tmp_path / "a.n5" / "raw", array)
    with pytest.raises(InputError, match=r"labels does not exist; .*a\.n5 holds raw"):
        io.read(tmp_path / "a.n5" / "labels")
    (tmp_path / "b.n5").mkdir()
    with pytest.raises(InputError, match="no array of N5"):
        io.read(tmp_path / "b.n5")
    with pytest.raises(InputError, match=r"no axis c"):
        io.read(f"{tmp_path}/a.n5/raw:c=1")
    write_n5(tmp_path / "c.n5", np.ones((2, 4, 3, 2), np.uint8))
    with pytest.raises(InputError, match=r"choose a place"):
        io.read(tmp_path / "c.n5")


def test_n5_that_is_damaged(tmp_path):
    path = write_n5(tmp_path / "a.n5", np.ones((4, 3, 2), np.uint16))
    chunk = path / "0" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"cannot read .*a\.n5"):
        io.read(path)
    (path / "attributes.json").write_text('{"dimensions": [4, ')
    with pytest.raises(InputError, match=r"a\.n5"):
        io.read(path)


def write_precomputed(path: Path, array: Any, **scale: Any) -> Path:
    store = tensorstore.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "multiscale_metadata": {"type": "image", "data_type": array.dtype.name, "num_channels": array.shape[3]},
            "scale_metadata": {"size": array.shape[:3], "encoding": "raw", "chunk_size": [2, 3, 2], **scale},
        },
        create=True,
    ).result()
    store[...] = array
    return path


@given(data=st.data())
def test_precomputed(data, tmp_path_factory):
    draw = data.draw
    dtype = draw(st.sampled_from(["u1", "i1", "u2", "i2", "u4", "i4", "u8", "f4"]))
    shape = [draw(st.integers(1, 5)) for _ in "xyz"] + [draw(st.integers(1, 2))]
    array = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 100, shape).astype(dtype)
    more: dict[str, Any] = {}
    if dtype in ("u4", "u8") and draw(st.booleans()):
        more = {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 8]}
    begin = [draw(st.integers(-3, 3)) for _ in "xyz"]
    path = tmp_path_factory.mktemp("ng") / draw(st.sampled_from(["a.precomputed", "layer"]))
    write_precomputed(path, array, resolution=[4, 8, 40], voxel_offset=begin, key="4_8_40", **more)
    channel = f":channel={shape[3] - 1}" if shape[3] > 1 else ""
    offset = [at * size for at, size in zip(begin, (4, 8, 40), strict=True)][::-1]
    for place in (path, path / "4_8_40"):
        check(f"{place}{channel}", array[..., -1].T, (40, 8, 4), "nm", offset)
    if channel:
        with pytest.raises(InputError, match="channel is a channel axis"):
            io.read(path)


def test_precomputed_scales(tmp_path):
    path = write_precomputed(tmp_path / "a", np.full((4, 3, 2, 1), 1, np.uint8), resolution=[4, 8, 40], key="fine")
    write_precomputed(path, np.full((2, 2, 2, 1), 2, np.uint8), resolution=[8, 16, 40], key="coarse")
    check(path, np.full((2, 3, 4), 1, np.uint8), (40, 8, 4), offset=(0, 0, 0))
    check(path / "coarse", np.full((2, 2, 2), 2, np.uint8), (40, 16, 8), offset=(0, 0, 0))
    with pytest.raises(InputError, match="has no scale finer; it has fine, coarse"):
        io.read(path / "finer")
    (tmp_path / "b.precomputed").mkdir()
    with pytest.raises(InputError, match="it has no file info"):
        io.read(tmp_path / "b.precomputed")
    (tmp_path / "b.precomputed" / "info").write_text(json.dumps({"@type": "neuroglancer_legacy_mesh"}))
    with pytest.raises(InputError, match="is a neuroglancer_legacy_mesh"):
        io.read(tmp_path / "b.precomputed")


@pytest.mark.parametrize("place", ["a.n5", "a.n5/labels/mito", "a.precomputed"])
def test_what_is_written(tmp_path, place):
    """Again read, by tensorstore too; nothing else of a container is touched, and nothing is left of what fails."""
    array = np.random.default_rng(0).integers(0, 9, (3, 70, 5)).astype(np.uint32)
    io.write(tmp_path / place, array, spacing=(40, 8, 4), unit="nm")
    offset = (0, 0, 0) if "precomputed" in place else None
    check(tmp_path / place, array, (40, 8, 4), "nm", offset)
    with pytest.raises(InputError, match="exists"):
        io.write(tmp_path / place, array)
    io.write(tmp_path / place, array[:2], spacing=(40, 8, 4), unit="nm", overwrite=True)
    check(tmp_path / place, array[:2], (40, 8, 4), "nm", offset)
    if "/" in place:
        io.write(tmp_path / "a.n5" / "labels" / "er", array)
        check(tmp_path / place, array[:2], (40, 8, 4), "nm")
        with pytest.raises(InputError, match="is no array of N5, so it is never replaced"):
            io.write(tmp_path / "a.n5" / "labels", array, overwrite=True)
        with pytest.raises(InputError, match="is an array; choose another"):
            io.write(tmp_path / place / "more", array)
    assert [path.name for path in tmp_path.rglob(".*")] == []


def test_chunks_that_are_not_there(tmp_path):
    """What CloudVolume packs would be read as nothing; what is missing is told of."""
    path = write_precomputed(tmp_path / "a", np.ones((4, 3, 2, 1), np.uint8), resolution=[4, 8, 40], key="fine")
    chunks = sorted((path / "fine").iterdir())
    assert len(chunks) == 2
    chunks[0].rename(path / "kept")
    assert "1 of 2 chunks are stored, the others are read as 0" in io.open_volume(path).note
    (path / "kept").rename(f"{chunks[0]}.gz")
    with pytest.raises(InputError, match=r"has packed chunks \(0-2_0-3_0-2\.gz\)"):
        io.read(path)


def test_nothing_beside_an_output_is_lost(tmp_path):
    array = np.ones((2, 3, 4), np.uint8)
    path = write_precomputed(tmp_path / "a", np.ones((4, 3, 2, 1), np.uint8), resolution=[4, 8, 40], key="fine")
    (path / "mesh").mkdir()
    with pytest.raises(InputError, match="also holds mesh"):
        io.write(path, array, spacing=(1, 1, 1), unit="nm", overwrite=True)
    (tmp_path / "slices.precomputed").mkdir()
    with pytest.raises(InputError, match="is no precomputed volume"):
        io.write(tmp_path / "slices.precomputed", array, spacing=(1, 1, 1), unit="nm", overwrite=True)
    io.write(tmp_path / "a.n5", array)
    write_n5(tmp_path / "a.n5" / "more", array)
    with pytest.raises(InputError, match="also holds more"):
        io.write(tmp_path / "a.n5", array, overwrite=True)


def test_folders_of_images_in_a_precomputed_volume(tmp_path):
    imageio = pytest.importorskip("imageio.v3")
    path = write_precomputed(tmp_path / "a", np.ones((4, 3, 2, 1), np.uint8), resolution=[4, 8, 40], key="fine")
    (path / "slices").mkdir()
    imageio.imwrite(path / "slices" / "s0.png", np.full((3, 4), 7, np.uint8))
    assert io.read(path / "slices").max() == 7


def test_precomputed_says_what_it_assumes(tmp_path):
    with pytest.warns(Lpa3dWarning, match="1 nm is written"):
        io.write(tmp_path / "a.precomputed", np.ones((2, 3, 4), np.uint8))
    with pytest.raises(InputError, match="cannot hold float64"):
        io.write(tmp_path / "b.precomputed", np.ones((2, 3, 4)))
    with pytest.raises(InputError, match="cannot hold int64"):
        io.write(tmp_path / "b.precomputed", np.full((2, 3, 4), -1), spacing=(1, 1, 1), unit="nm")
    io.write(tmp_path / "c.precomputed", np.full((2, 3, 4), 2**40), spacing=(1, 1, 1), unit="nm")
    check(tmp_path / "c.precomputed", np.full((2, 3, 4), 2**40, np.uint64), (1, 1, 1), offset=(0, 0, 0))
    assert not (tmp_path / "b.precomputed").exists()


def test_verbs_on_paths(tmp_path):
    """Tile by tile, with the bytes of memory; the size of the voxels comes along, and what changes is seen."""
    classes = (np.random.default_rng(0).random((6, 9, 7)) < 0.5).astype(np.uint8)
    want = lpa3d.label(classes)
    for number, place in enumerate(("a.n5", "b.n5/in", "c.precomputed")):
        io.write(tmp_path / place, classes, spacing=(40, 8, 4), unit="nm")
        found = lpa3d.label(str(tmp_path / place), out=tmp_path / f"{number}.zarr", tile=4)
        np.testing.assert_array_equal(found[...], want)
        assert found.attrs["spacing"] == [40.0, 8.0, 4.0]
        digest = open_source(tmp_path / place, "volume").describe()
        io.write(tmp_path / place, classes[::-1], spacing=(40, 8, 4), unit="nm", overwrite=True)
        assert open_source(tmp_path / place, "volume").describe() != digest
    with pytest.raises(InputError, match="also an input"):
        lpa3d.label(str(tmp_path / "a.n5"), out=tmp_path / "a.n5" / "out.zarr", tile=4)
    with pytest.raises((InputError, InputTypeError), match=r"results of this size are zarr arrays"):
        lpa3d.label(str(tmp_path / "a.n5"), out=tmp_path / "out.n5", tile=4)


def test_what_webknossos_writes(data_dir):
    """The same image in each of its formats."""
    folder = data_dir / "formats"
    if not folder.is_dir():
        pytest.skip("no samples of formats")
    red = io.read(f"{folder}/simple_zarr_dataset/color/1-1-1:c=1")
    assert red.shape == (24, 24, 24)
    for name in (
        "simple_zarr_dataset/color/1-1-1:c=1",
        "simple_zarr3_dataset/color/1:c=1",
        "simple_n5_dataset/color/1:c=1",
        "simple_ng_dataset/color:channel=1",
    ):
        with io.open_volume(f"{folder}/{name}") as volume:
            np.testing.assert_array_equal(volume.read(), red)
            assert volume.geometry.spacing == (1.0, 1.0, 1.0)
            assert volume.geometry.unit in ("nm", "nanometer")
    with pytest.raises(InputError, match="c is a channel axis"):
        io.read(folder / "simple_n5_dataset" / "color" / "1")
