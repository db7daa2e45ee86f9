"""Values that a file codes: decoded where that is exact, refused where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpa3d import io
from lpa3d.errors import InputError

tifffile = pytest.importorskip("tifffile")
Image = pytest.importorskip("PIL.Image")

COLORS = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)


def draw() -> Any:
    labels = np.zeros((8, 20, 24), np.uint8)
    labels[:5, 2:9, 2:9], labels[3:, 11:18, 8:16], labels[2:7, 3:7, 15:22] = 1, 2, 3
    return labels


def save_png(path: Path, index: Any, colors: Any) -> None:
    image = Image.fromarray(index)
    image.putpalette(colors.ravel().tolist())
    image.save(path)


def save_tiff(path: Path, index: Any, colors: Any, *, append: bool = False) -> None:
    colormap = np.zeros((3, 256), np.uint16)
    colormap[:, : len(colors)] = 257 * colors.T.astype(np.uint16)
    with tifffile.TiffWriter(path, append=append) as file:
        file.write(index, photometric="palette", colormap=colormap, metadata=None, contiguous=False)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@given(seed=st.integers(0, 2**32 - 1))
def test_slices_with_palettes_of_their_own(suffix, seed, tmp_path_factory):
    """Where a colour has one index throughout, the index is the id; else the slices are refused."""
    folder = tmp_path_factory.mktemp("slices")
    labels, random = draw(), np.random.default_rng(seed)
    same = bool(seed % 2)  # else some permutation, but none that keeps the order
    for z, plane in enumerate(labels):
        used = np.unique(plane)
        # Palettes that end after the last colour of their slice, or are in any order.
        order = np.arange(used.max() + 1) if same else random.permutation(4)
        place = np.zeros(4, np.uint8)
        place[order] = np.arange(len(order))
        (save_png if suffix == "png" else save_tiff)(folder / f"{z}.{suffix}", place[plane], COLORS[order])
    if same:
        np.testing.assert_array_equal(io.read(folder), labels)
    else:
        with pytest.raises(InputError, match="different palettes"):
            io.read(folder)


def test_pages_of_one_file_with_palettes_of_their_own(tmp_path):
    for name, orders in (("same.tif", [[0, 1, 2, 3]] * 8), ("other.tif", [[0, 1, 2, 3]] * 7 + [[0, 2, 1, 3]])):
        for z, (plane, order) in enumerate(zip(draw(), orders, strict=True)):
            save_tiff(tmp_path / name, np.argsort(order).astype(np.uint8)[plane], COLORS[order], append=z > 0)
    np.testing.assert_array_equal(io.read(tmp_path / "same.tif"), draw())
    with pytest.raises(InputError, match="1 is the colour"):
        io.read(tmp_path / "other.tif")


def test_zero_that_is_white(tmp_path):
    plane = draw()[0]
    tifffile.imwrite(tmp_path / "a.tif", plane, photometric="miniswhite", software="scanner", metadata=None)
    with pytest.raises(InputError, match="0 is white"):
        io.read(tmp_path / "a.tif")
    (tmp_path / "slices").mkdir()
    (tmp_path / "a.tif").rename(tmp_path / "slices" / "0.tif")
    with pytest.raises(InputError, match="0 is white"):
        io.read(tmp_path / "slices")
    # tifffile and ImageJ say so of bilevel images and inverted tables, and mean the values.
    tifffile.imwrite(tmp_path / "bool.tif", plane > 0)
    np.testing.assert_array_equal(io.read(tmp_path / "bool.tif"), plane > 0)


@pytest.mark.filterwarnings("ignore:<tifffile.TiffWriter.write> data with shape:DeprecationWarning")
@pytest.mark.parametrize("count", [3, 4])
def test_few_slices_that_tifffile_stores_as_colours(count, tmp_path):
    labels = draw()[:count].astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", labels)  # as scikit-image and napari do
    with io.open_volume(tmp_path / "a.tif") as volume:
        assert f"its {count} planes, which are stored as colours, are taken for slices" in volume.note
        np.testing.assert_array_equal(volume.read(), labels)
    tifffile.imwrite(tmp_path / "photo.tif", np.zeros((10, 12, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match="colour image"):
        io.read(tmp_path / "photo.tif")


def test_objects_in_a_npy_file_are_not_loaded(tmp_path):
    np.save(tmp_path / "a_seg.npy", {"masks": draw()}, allow_pickle=True)
    with pytest.raises(InputError, match=r"pickled Python objects.*allow_pickle=True.*masks"):
        io.read(tmp_path / "a_seg.npy")


def test_the_pattern_that_is_proposed_matches_one_series(tmp_path):
    for number in range(-3, 6):
        Image.fromarray(draw()[0]).save(tmp_path / f"z{number}.png")
    with pytest.raises(InputError, match=r"pattern in quotes: '(.*)', or") as caught:
        io.read(tmp_path)
    assert io.read(str(caught.value).split("'")[1]).shape == (6, 20, 24)
