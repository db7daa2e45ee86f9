"""OME-Zarr: what is written is what the specification's models and its reader take, and is read again as it was."""

from __future__ import annotations

import itertools
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lpa3d
from lpa3d import io
from lpa3d.errors import InputError, InputTypeError
from lpa3d.files import ngff
from lpa3d.files.geometry import Geometry
from lpa3d.files.readers import open_volume
from tests.results import open_result

zarr = pytest.importorskip("zarr")

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, (6, 9, 10)).astype(np.uint32)


def read_attributes(path: Path) -> dict[str, Any]:
    return dict(zarr.open_group(str(path), mode="r").attrs)


def make_image(path: Path, version: str = "0.5", **more: Any) -> np.ndarray[Any, Any]:
    """Write an image as other programs do: with levels under names of their own, and an offset."""
    image = RNG.integers(0, 2, (6, 9, 10)).astype(np.uint8)
    group = zarr.create_group(str(path), zarr_format={"0.5": 3, "0.4": 2}[version])
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    datasets = []
    for k in range(2):
        array = group.create_array(f"s{k}", shape=image[:, :: k + 1, :: k + 1].shape, dtype=image.dtype)
        array[...] = image[:, :: k + 1, :: k + 1]
        steps = [
            {"type": "scale", "scale": [30.0, 8.1 * (k + 1), 8.1 * (k + 1)]},
            {"type": "translation", "translation": [90.0, 7.3, 1.1]},
        ]
        datasets.append({"path": f"s{k}", "coordinateTransformations": steps})
    about: dict[str, Any] = {"multiscales": [{"axes": axes, "datasets": datasets, "name": "em"}]}
    if version == "0.5":
        group.attrs.update({"ome": {"version": "0.5", **about}, **more})
    else:
        about["multiscales"][0]["version"] = "0.4"
        group.attrs.update(about | more)
    return image


# ------------------------------------------------------------------------------------------------------------- levels


def naive_mode(fine: np.ndarray[Any, Any], step: tuple[int, ...]) -> np.ndarray[Any, Any]:
    out = np.empty([-(-n // s) for n, s in zip(fine.shape, step, strict=True)], fine.dtype)
    for at in np.ndindex(*out.shape):
        block = fine[tuple(slice(k * s, (k + 1) * s) for k, s in zip(at, step, strict=True))].ravel().tolist()
        unsigned = {value: value % 2 ** (8 * fine.dtype.itemsize) for value in block}
        out[at] = max(set(block), key=lambda value: (block.count(value), value != 0, -unsigned[value]))
    return out


def naive_mean(fine: np.ndarray[Any, Any], step: tuple[int, ...]) -> np.ndarray[Any, Any]:
    out = np.empty([-(-n // s) for n, s in zip(fine.shape, step, strict=True)], fine.dtype)
    for at in np.ndindex(*out.shape):
        block = fine[tuple(slice(k * s, (k + 1) * s) for k, s in zip(at, step, strict=True))]
        out[at] = block.mean(dtype=float) if fine.dtype.kind == "f" else int(block.mean(dtype=float) + 0.5)
    return out


@settings(max_examples=25)
@given(
    st.tuples(*[st.integers(1, 5)] * 3),
    st.tuples(*[st.sampled_from([1, 2])] * 3),
    st.sampled_from(["uint8", "uint64", "int16", "bool", "uint32"]),
    st.integers(0, 2**32),
)
def test_labels_get_the_mode(shape: tuple[int, ...], step: tuple[int, int, int], dtype: str, seed: int) -> None:
    values = {"uint64": [0, 2**63, 2**63 + 1, 2**64 - 1], "int16": [0, -1, -2, 300]}.get(dtype, [0, 1, 2, 3])
    fine = np.random.default_rng(seed).choice(np.array(values, dtype=dtype), shape)
    found = ngff.reduce_level(fine, step, image=False)
    assert found.dtype == fine.dtype
    np.testing.assert_array_equal(found, naive_mode(fine, step))


@settings(max_examples=15)
@given(
    st.tuples(*[st.integers(1, 5)] * 3),
    st.tuples(*[st.sampled_from([1, 2])] * 3),
    st.sampled_from(["uint16", "float32", "float64"]),
    st.integers(0, 2**32),
)
def test_images_get_the_mean(shape: tuple[int, ...], step: tuple[int, int, int], dtype: str, seed: int) -> None:
    fine = (np.random.default_rng(seed).random(shape) * 60000).astype(dtype)
    np.testing.assert_allclose(ngff.reduce_level(fine, step, image=True), naive_mean(fine, step), rtol=1e-6)


def test_sheets_stay_and_background_loses_ties() -> None:
    sheet = np.zeros((4, 4, 4), np.uint8)
    sheet[1] = 9
    assert (ngff.reduce_level(sheet, (2, 2, 2), image=False)[0] == 9).all()
    line = np.zeros((2, 2, 2), np.uint8)
    line[0, 0] = 9
    assert ngff.reduce_level(line, (2, 2, 2), image=False).item() == 0


@pytest.mark.parametrize(
    ("shape", "ndim", "spacing", "levels", "steps"),
    [
        ((64, 64, 64), 3, None, None, []),
        ((300, 300, 300), 3, None, None, [(2, 2, 2)]),
        ((8, 8, 8), 3, None, 9, [(2, 2, 2)] * 3),
        ((8, 8, 8), 3, None, 1, []),
        ((8, 64, 64), 3, (50, 8, 8), 5, [(1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2)]),
        ((1, 3000, 2000), 2, None, None, [(1, 2, 2), (1, 2, 2)]),
        ((1, 1, 7), 3, None, 3, [(1, 1, 2), (1, 1, 2)]),
        ((0, 4, 4), 3, None, 3, []),
        ((1, 1, 1), 3, None, 3, []),
        ((4, 4, 4), 3, (0, 0, 0), 2, [(2, 2, 2)]),
    ],
)
def test_finest_axes_are_halved(shape: Any, ndim: int, spacing: Any, levels: Any, steps: Any) -> None:
    assert list(ngff.plan_steps(shape, ndim, spacing, levels)) == steps


# ----------------------------------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("dtype", ["uint32", "float32"])
def test_models_of_the_specification_take_it(version: str, ndim: int, dtype: str, tmp_path: Path) -> None:
    models = pytest.importorskip("ome_zarr_models", reason="ome-zarr-models is not installed")
    array = (LABELS if ndim == 3 else LABELS[0]).astype(dtype)
    place = tmp_path / "x.zarr"
    io.write(place, array, spacing=(30.0, 8.1, 8.1), unit="µm", storage={"layout": version, "levels": 3})
    group = zarr.open_group(str(place), mode="r")
    found = models.open_ome_zarr(group, version=version)
    image = (found.ome_attributes if version == "0.5" else found.attributes).multiscales[0]
    assert [axis.name for axis in image.axes] == list("zyx"[3 - ndim :])
    assert {axis.unit for axis in image.axes} == {"micrometer"}
    assert [dataset.path for dataset in image.datasets] == ["0", "1", "2"]
    scale, place_of_first = image.datasets[1].coordinateTransformations
    assert scale.scale[-1] == 16.2
    assert place_of_first.translation[-1] == 4.05
    if dtype == "uint32":
        module = __import__(f"ome_zarr_models.v{version.replace('.', '')}.image_label", fromlist=["ImageLabel"])
        label = module.ImageLabel.from_zarr(group)
        assert label is not None
    about = read_attributes(place)
    assert ("image-label" in about.get("ome", about)) == (dtype == "uint32")


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_labels_of_an_image_are_found_by_its_reader(version: str, tmp_path: Path) -> None:
    reader = pytest.importorskip("ome_zarr.reader", reason="ome-zarr is not installed")
    from ome_zarr.io import parse_url

    make_image(tmp_path / "cell.zarr", version)
    for name in ("er", "mito"):
        io.write(tmp_path / f"cell.zarr/labels/{name}", LABELS, like=tmp_path / "cell.zarr", storage={"levels": 2})
    nodes = list(reader.Reader(parse_url(str(tmp_path / "cell.zarr")))())
    found = {node.metadata.get("name"): node for node in nodes if node.data}
    assert set(found) == {"em", "er", "mito"}
    mito = found["mito"]
    assert [level.shape for level in mito.data] == [(6, 9, 10), (6, 5, 5)]
    np.testing.assert_array_equal(np.asarray(mito.data[0]), LABELS)
    assert mito.metadata["color"][3][3] == 1.0
    steps = mito.metadata["coordinateTransformations"][0]
    assert steps == found["em"].metadata["coordinateTransformations"][0]


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_a_label_is_listed_and_says_where_it_belongs(version: str, tmp_path: Path) -> None:
    place = tmp_path / "cell.zarr"
    make_image(place, version, theirs={"kept": 1})
    before = read_attributes(place)
    io.write(place / "labels/mito", LABELS, like=f"{place}/s1")
    io.write(place / "labels/organelles/er", LABELS, like=place)
    assert read_attributes(place) == before
    listed = read_attributes(place / "labels")
    assert listed.get("ome", listed)["labels"] == ["mito", "organelles/er"]
    about = read_attributes(place / "labels/mito")
    about = about.get("ome", about)
    assert about["image-label"]["source"] == {"image": "../../"}
    datasets = before.get("ome", before)["multiscales"][0]["datasets"]
    # Scale and place of the level that was read.
    assert (
        about["multiscales"][0]["datasets"][0]["coordinateTransformations"] == datasets[1]["coordinateTransformations"]
    )
    about = read_attributes(place / "labels/organelles/er")
    assert about.get("ome", about)["image-label"]["source"] == {"image": "../../../"}
    with open_volume(place / "labels/mito") as volume:
        assert volume.geometry.spacing == (30.0, 16.2, 16.2)
        assert volume.geometry.offset == (90.0, 7.3, 1.1)
    assert open_result(place / "labels/mito").metadata.zarr_format == (3 if version == "0.5" else 2)


@settings(max_examples=20)
@given(st.tuples(*[st.floats(1e-3, 1e6)] * 3), st.tuples(*[st.floats(-1e6, 1e6)] * 3), st.sampled_from(["nm", "µm"]))
def test_sizes_are_exact(sizes: Any, place: Any, unit: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # An array whose own attributes say nothing.
        zarr.create_array(f"{folder}/x.zarr/0", shape=(1, 1, 1), dtype="u1")
        about = ngff.describe_image("x", ngff.Form("0.5"), 3, Geometry(sizes, unit, offset=place), None)
        ngff.write_group(Path(folder, "x.zarr"), 3, about)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # sizes that no microscope has
            with open_volume(f"{folder}/x.zarr") as volume:
                found = volume.geometry
    assert (found.spacing, found.offset) == (sizes, place)


@pytest.mark.parametrize(("largest", "count"), [(0, 0), (1, 2), (ngff.COLORED, 256), (ngff.COLORED + 1, 0), (None, 0)])
def test_colours_are_listed_for_all_ids_or_none(largest: int | None, count: int) -> None:
    about = ngff.describe_image("x", ngff.Form("0.5"), 3, Geometry(), largest)["ome"]["image-label"]
    colors = about.get("colors", [])
    assert len(colors) == count
    assert len({tuple(color["rgba"]) for color in colors}) == count


def test_unknown_sizes_stay_unknown(tmp_path: Path) -> None:
    io.write(tmp_path / "x.zarr", LABELS)
    with open_volume(tmp_path / "x.zarr") as volume:
        assert volume.geometry.spacing is None


# ------------------------------------------------------------------------------------------------------------- reading


def test_a_group_stands_for_its_finest_array(tmp_path: Path) -> None:
    image = make_image(tmp_path / "cell.zarr")
    np.testing.assert_array_equal(io.read(tmp_path / "cell.zarr"), image)
    io.write(tmp_path / "cell.zarr/labels/mito", LABELS)
    np.testing.assert_array_equal(io.read(tmp_path / "cell.zarr"), image)
    np.testing.assert_array_equal(io.read(tmp_path / "cell.zarr/labels"), LABELS)
    expected = lpa3d.label(image)
    for name in (tmp_path / "cell.zarr", f"file://{tmp_path}/cell.zarr", f"local://{tmp_path}/cell.zarr"):
        found = lpa3d.label(str(name), out=tmp_path / "out.zarr", overwrite=True)
        np.testing.assert_array_equal(found[:], expected)
    np.testing.assert_array_equal(
        lpa3d.label(tmp_path / "out.zarr", out=tmp_path / "again.zarr")[:], lpa3d.label(expected)
    )
    io.write(tmp_path / "cell.zarr/labels/er", LABELS)
    for name in (f"{tmp_path}/cell.zarr/labels", f"local://{tmp_path}/cell.zarr/labels"):
        with pytest.raises(InputError, match=r"labels holds 2 images; name one of them: .*labels/er.*labels/mito"):
            lpa3d.label(name, out=tmp_path / "no.zarr")


def test_images_of_bioformats2raw(tmp_path: Path) -> None:
    place = tmp_path / "cell.zarr"
    zarr.create_group(str(place)).attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    image = make_image(place / "0")
    np.testing.assert_array_equal(io.read(place), image)
    with pytest.raises(InputError, match=r"no image but holds several.*cell.zarr/0/labels/mito"):
        io.write(place / "labels/mito", LABELS)
    io.write(place / "0/labels/mito", LABELS)
    assert read_attributes(place / "0/labels")["ome"]["labels"] == ["mito"]
    np.testing.assert_array_equal(io.read(place), image)
    make_image(place / "1")
    with pytest.raises(InputError, match="holds 2 images; name one of them"):
        io.read(place)


def test_an_image_whose_array_is_missing(tmp_path: Path) -> None:
    group = zarr.create_group(str(tmp_path / "x.zarr"))
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": [], "datasets": [{"path": "0"}]}]}
    with pytest.raises(InputError, match="says that its voxels are in"):
        io.read(tmp_path / "x.zarr")


# -------------------------------------------------------------------------------------------------------------- places


def test_a_group_needs_no_suffix(tmp_path: Path) -> None:
    make_image(tmp_path / "cell")
    io.write(tmp_path / "cell/labels/mito", LABELS)
    np.testing.assert_array_equal(io.read(tmp_path / "cell/labels/mito"), LABELS)
    assert read_attributes(tmp_path / "cell/labels")["ome"]["labels"] == ["mito"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cell"]


def test_the_labels_themselves_are_no_image(tmp_path: Path) -> None:
    image = make_image(tmp_path / "cell.zarr")
    with pytest.raises(InputError, match="choose a name in it"):
        io.write(tmp_path / "cell.zarr/labels", LABELS)
    with pytest.raises(InputError, match="choose a name in it"):
        lpa3d.label(tmp_path / "cell.zarr", out=tmp_path / "cell.zarr/labels")
    np.testing.assert_array_equal(io.read(tmp_path / "cell.zarr"), image)


def test_only_the_label_image_is_replaced(tmp_path: Path) -> None:
    place = tmp_path / "cell.zarr"
    image = make_image(place)
    io.write(place / "labels/mito", LABELS, storage={"levels": 3})
    io.write(place / "labels/er", LABELS)
    with pytest.raises(InputError, match="exists"):
        io.write(place / "labels/mito", LABELS)
    io.write(place / "labels/mito", LABELS + 1, overwrite=True)
    np.testing.assert_array_equal(io.read(place / "labels/mito"), LABELS + 1)
    np.testing.assert_array_equal(io.read(place / "labels/er"), LABELS)
    np.testing.assert_array_equal(io.read(place), image)
    assert read_attributes(place / "labels")["ome"]["labels"] == ["mito", "er"]
    assert not (place / "labels/mito/1").exists()


@pytest.mark.parametrize("inner", ["", "/s0", "/s1", "/labels", "/s0/c"])
def test_nothing_else_of_an_image_is_replaced(inner: str, tmp_path: Path) -> None:
    image = make_image(tmp_path / "cell.zarr")
    io.write(tmp_path / "cell.zarr/labels/mito", LABELS)
    for function in (
        lambda name: io.write(name, LABELS, overwrite=True),
        lambda name: lpa3d.label(tmp_path / "in.zarr", out=name, overwrite=True),
    ):
        io.write(tmp_path / "in.zarr", LABELS, overwrite=True)
        with pytest.raises(InputError, match=r"never replaced|cannot write|choose a name in it"):
            function(f"{tmp_path}/cell.zarr{inner}")
    np.testing.assert_array_equal(io.read(tmp_path / "cell.zarr"), image)
    np.testing.assert_array_equal(io.read(tmp_path / "cell.zarr/labels/mito"), LABELS)


def test_an_input_is_no_output_but_its_image_gets_labels(tmp_path: Path) -> None:
    place = tmp_path / "cell.zarr"
    image = make_image(place)
    for k, name in enumerate((place, place / "s0")):
        lpa3d.label(name, out=place / f"labels/a{k}")
        np.testing.assert_array_equal(io.read(place / f"labels/a{k}"), lpa3d.label(image))
    with pytest.raises(InputError, match="also an input"):
        lpa3d.label(place / "labels/a0", out=place / "labels/a0", overwrite=True)
    with pytest.raises(InputError, match="also an input"):
        io.write(place / "labels/a0", LABELS, like=place / "labels/a0", overwrite=True)


def test_floats_and_confidences_are_images(tmp_path: Path) -> None:
    place = tmp_path / "cell.zarr"
    image = make_image(place)
    io.write(place / "labels/probability", image.astype(np.float32), storage={"levels": 2})
    seeds = np.zeros(image.shape, np.uint16)
    seeds[image > 0] = np.arange(int(image.sum())) % 2 + 1
    io.write(tmp_path / "seeds.zarr", seeds)
    out = place / "labels/mito", place / "confidence"
    labels, confidence = lpa3d.propagate(
        place, tmp_path / "seeds.zarr", return_confidence=True, out=out, storage={"levels": 2}, tile=4
    )
    assert labels.dtype == seeds.dtype
    assert read_attributes(place / "labels")["ome"]["labels"] == ["mito"]
    for name, kind in (("confidence", "mean"), ("labels/mito", "mode"), ("labels/probability", "mean")):
        about = read_attributes(place / name)["ome"]
        assert ("image-label" in about, about["multiscales"][0]["type"]) == (kind == "mode", kind)
    steps = ngff.plan_steps(confidence.shape, 3, (30, 8.1, 8.1), 2)
    np.testing.assert_array_equal(
        open_result(place / "confidence", level=1)[:], ngff.reduce_level(confidence[:], steps[0], image=True)
    )


@pytest.mark.parametrize("layout", ["array", "0.4", "0.5"])
@pytest.mark.parametrize("tiled", [True, False])
def test_layouts(layout: str, tiled: bool, tmp_path: Path) -> None:
    io.write(tmp_path / "in.zarr", LABELS, spacing=(3, 2, 1), unit="nm")
    expected = lpa3d.label(LABELS)
    if tiled:
        found = lpa3d.label(tmp_path / "in.zarr", out=tmp_path / "out.zarr", tile=4, storage={"layout": layout})
        np.testing.assert_array_equal(found[:], expected)
    else:
        io.write(tmp_path / "out.zarr", expected, like=tmp_path / "in.zarr", storage={"layout": layout})
    np.testing.assert_array_equal(io.read(tmp_path / "out.zarr"), expected)
    with open_volume(tmp_path / "out.zarr") as volume:
        assert (volume.geometry.spacing, volume.geometry.unit) == ((3, 2, 1), "nm")
        assert volume.path == tmp_path / ("out.zarr" if layout == "array" else "out.zarr/0")
    assert open_result(tmp_path / "out.zarr").metadata.zarr_format == (2 if layout == "0.4" else 3)


def test_bad_forms(tmp_path: Path) -> None:
    place = tmp_path / "cell.zarr"
    make_image(place)
    for storage in ({"layout": "0.6"}, {"levels": 0}, {"levels": True}, {"levels": 2, "layout": "array"}, {"x": 1}):
        with pytest.raises(InputError, match="storage"):
            io.write(tmp_path / "x.zarr", LABELS, storage=storage)
        with pytest.raises(InputError, match="storage"):
            lpa3d.label(place, out=tmp_path / "x.zarr", storage=storage)
    with pytest.raises(InputTypeError, match="storage"):
        io.write(tmp_path / "x.zarr", LABELS, storage=3)
    with pytest.raises(InputError, match="is for zarr, and"):
        io.write(tmp_path / "x.npy", LABELS, storage={"levels": 2})
    with pytest.raises(InputError, match=r"'0.4', but .* zarr format 3, in which OME-Zarr is of version 0.5"):
        io.write(place / "labels/mito", LABELS, storage={"layout": "0.4"})
    with pytest.raises(InputError, match="zarr format 2 has none"):
        lpa3d.label(place, out=tmp_path / "x.zarr", storage={"layout": "0.4", "shards": 128})
    with pytest.raises(InputError, match="results are plain arrays"):
        lpa3d.label(place, out=zarr.storage.MemoryStore(), storage={"levels": 2})
    zarr.open_group(str(place)).attrs["ome"] = {"version": "0.6", "multiscales": [{"datasets": [{"path": "s0"}]}]}
    with pytest.raises(InputError, match=r"OME-Zarr 0\.6"):
        io.write(place / "labels/mito", LABELS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cell.zarr"]


def test_labels_added_at_once_are_all_listed(tmp_path: Path) -> None:
    place = tmp_path / "cell.zarr"
    make_image(place)
    tiny = LABELS[:1, :1, :2]

    def write(number: int) -> None:
        io.write(place / f"labels/a{number}", tiny)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_attributes(place / "labels")["ome"]["labels"]) == [f"a{number}" for number in range(6)]
    assert not [path for path in place.rglob("*") if "lpa3d" in path.name]


def test_who_cannot_be_listed_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "cell.zarr"
    make_image(place)
    io.write(place / "labels/er", LABELS)
    monkeypatch.setattr(ngff, "PATIENCE", 0.01)
    import filelock

    with filelock.FileLock(place / "labels" / ngff.LOCK), pytest.raises(OSError, match="is held by another process"):
        io.write(place / "labels/mito", LABELS)
    assert not (place / "labels/mito").exists()
    assert read_attributes(place / "labels")["ome"]["labels"] == ["er"]


@pytest.mark.parametrize("shape", [(0, 3, 4), (1, 1, 1), (1, 7, 1), (5, 1, 3), (1, 9)])
@pytest.mark.parametrize("dtype", ["bool", "uint64", "int8"])
def test_odd_shapes(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    array = np.zeros(shape, dtype)
    array[..., -1:] = 1 if dtype == "bool" else np.iinfo(dtype.removeprefix("u")).max
    io.write(tmp_path / "x.zarr", array, storage={"levels": 3})
    found = io.read(tmp_path / "x.zarr")
    np.testing.assert_array_equal(found, array)
    if array.size:
        out = lpa3d.merge(tmp_path / "x.zarr", out=tmp_path / "y.zarr", storage={"levels": 3}, tile=2)
        for level in itertools.count():
            if not (tmp_path / f"y.zarr/{level}").exists():
                break
            np.testing.assert_array_equal(
                open_result(tmp_path / "y.zarr", level=level)[...], open_result(tmp_path / "x.zarr", level=level)[...]
            )
        assert out.shape == shape


@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_consolidated_metadata_tell_of_labels(version: str, tmp_path: Path) -> None:
    place = tmp_path / "cell.zarr"
    image = make_image(place, version)
    zarr.consolidate_metadata(str(place))
    for k in range(2):
        io.write(place / "labels/mito", LABELS + k, storage={"levels": 2 - k}, overwrite=True)
        lpa3d.label(place, out=place / "labels/er", overwrite=True)
        group = zarr.open_group(str(place), mode="r", use_consolidated=True)
        found = {name for name, _ in group.members(max_depth=None)}
        levels = {f"labels/mito/{level}" for level in range(2 - k)}
        assert found == {"s0", "s1", "labels", "labels/mito", "labels/er", "labels/er/0", *levels}
        np.testing.assert_array_equal(group["labels/mito/0"][:], LABELS + k)
        attributes = group["labels"].attrs.asdict()
        assert attributes.get("ome", attributes)["labels"] == ["mito", "er"]
    np.testing.assert_array_equal(io.read(place), image)
    assert not [path for path in place.rglob("*") if "lpa3d" in path.name]


@pytest.mark.parametrize("tiled", [True, False])
def test_labels_of_unknown_size_lie_where_their_image_does(tiled: bool, tmp_path: Path) -> None:
    place = tmp_path / "cell.zarr"
    make_image(place)
    io.write(tmp_path / "labels.zarr", LABELS)
    for name, array in (("fine", LABELS), ("coarse", LABELS[:, ::2, ::2]), ("other", LABELS[1:])):
        if tiled:
            io.write(tmp_path / "in.zarr", array, overwrite=True)
            lpa3d.label(tmp_path / "in.zarr", out=place / f"labels/{name}")
        else:
            io.write(place / f"labels/{name}", array)
    found = {}
    for name in ("fine", "coarse", "other"):
        with open_volume(place / f"labels/{name}") as volume:
            found[name] = volume.geometry.spacing, volume.geometry.offset
    offset = 90.0, 7.3, 1.1
    assert found == {"fine": ((30.0, 8.1, 8.1), offset), "coarse": ((30.0, 16.2, 16.2), offset), "other": (None, None)}


def test_labels_of_an_image_with_channels(tmp_path: Path) -> None:
    place = tmp_path / "cell.zarr"
    channels = np.stack([LABELS % 2, LABELS // 2]).astype(np.uint8)
    group = zarr.create_group(str(place))
    group.create_array("0", shape=channels.shape, dtype="u1")[...] = channels
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    steps = [
        {"type": "scale", "scale": [1, 30.0, 8.1, 8.0]},
        {"type": "translation", "translation": [0, 5.0, 6.0, 7.0]},
    ]
    image = {"axes": [{"name": "c", "type": "channel"}, *axes], "datasets": [{"path": "0"}]}
    image["datasets"][0]["coordinateTransformations"] = steps
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    lpa3d.label(f"{place}:c=1", out=place / "labels/tiled")
    io.write(place / "labels/whole", lpa3d.label(channels[1]))
    for name in ("tiled", "whole"):
        np.testing.assert_array_equal(io.read(place / f"labels/{name}"), lpa3d.label(channels[1]))
        with open_volume(place / f"labels/{name}") as volume:
            assert (volume.geometry.spacing, volume.geometry.offset) == ((30.0, 8.1, 8.0), (5.0, 6.0, 7.0))
