"""Files that lack a part: each is refused, and never read as a smaller or an emptier volume."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpa3d import io
from lpa3d.errors import InputError

tifffile = pytest.importorskip("tifffile")
nibabel = pytest.importorskip("nibabel")
h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")

# Noise, so that compression leaves every slice some bytes, and no value is 0.
STACK = np.random.default_rng(0).integers(1, 500, (8, 16, 12)).astype(np.uint16)


def write_pages(path: Path) -> None:
    with tifffile.TiffWriter(path) as file:
        for plane in STACK:
            file.write(plane, photometric="minisblack", contiguous=False, metadata=None, compression="zlib")


def write_npy(path: Path) -> None:
    np.save(path, STACK)


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("labels", data=STACK, chunks=(2, 8, 12), compression="gzip")


PLAIN = {"photometric": "minisblack"}
WRITERS = {
    "pages.tif": write_pages,
    "shaped.tif": lambda path: tifffile.imwrite(path, STACK, **PLAIN),
    "packed.tif": lambda path: tifffile.imwrite(path, STACK, compression="zlib", **PLAIN),
    "tiles.tif": lambda path: tifffile.imwrite(path, STACK, tile=(16, 16), compression="zlib", **PLAIN),
    "big.tif": lambda path: tifffile.imwrite(path, STACK, bigtiff=True, metadata=None, **PLAIN),
    "stack.ome.tif": lambda path: tifffile.imwrite(path, STACK, metadata={"axes": "ZYX"}, compression="zlib", **PLAIN),
    "imagej.tif": lambda path: tifffile.imwrite(path, STACK, imagej=True, metadata={"axes": "ZYX"}),
    "labels.npy": write_npy,
    "labels.nii": lambda path: nibabel.save(nibabel.Nifti1Image(STACK.T, np.eye(4)), path),
    "labels.nii.gz": lambda path: nibabel.save(nibabel.Nifti1Image(STACK.T, np.eye(4)), path),
    "labels.h5": write_hdf5,
}


@pytest.mark.filterwarnings("ignore")  # what libraries say besides
@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=30)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_was_cut_off_is_refused_or_whole(name, share, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    WRITERS[name](folder / name)
    np.testing.assert_array_equal(io.read(folder / name), STACK)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    found = None
    with contextlib.suppress(InputError):
        found = np.array(io.read(folder / name))
    # Behind the last voxel there may be what nobody needs.
    if found is not None:
        np.testing.assert_array_equal(found, STACK)


def test_the_error_says_what_is_missing(tmp_path):
    write_pages(tmp_path / "a.tif")
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        ends = [page.offset for page in file.pages]
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[: ends[5]])
    with pytest.raises(InputError, match=r"a\.tif is incomplete or damaged \(invalid page offset .*export it again"):
        io.read(tmp_path / "a.tif")
    WRITERS["imagej.tif"](tmp_path / "b.tif")
    data = (tmp_path / "b.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(data[:2000])
    with pytest.raises(InputError, match=r"b\.tif is incomplete: it says that it holds 8 images, but has 1"):
        io.read(tmp_path / "b.tif")


@pytest.mark.filterwarnings("ignore")
def test_a_missing_file_of_an_ome_data_set(tmp_path):
    """Two files of four slices each; with both it is read, without the second refused by its name."""
    ids = [f"urn:uuid:00000000-0000-0000-0000-00000000000{k}" for k in range(2)]

    def describe(number: int) -> str:
        planes = "".join(
            f'<TiffData FirstC="0" FirstT="0" FirstZ="{z}" IFD="{z % 4}" PlaneCount="1">'
            f'<UUID FileName="part{z // 4}.ome.tif">{ids[z // 4]}</UUID></TiffData>'
            for z in range(8)
        )
        return (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="{ids[number]}"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" '
            f'SizeX="12" SizeY="16" SizeZ="8" SizeC="1" SizeT="1"><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
            f"{planes}</Pixels></Image></OME>"
        )

    for number in range(2):
        with tifffile.TiffWriter(tmp_path / f"part{number}.ome.tif") as file:
            for z in range(4):
                text = None if z else describe(number)
                file.write(STACK[4 * number + z], metadata=None, description=text, contiguous=False, **PLAIN)
    np.testing.assert_array_equal(io.read(tmp_path / "part0.ome.tif"), STACK)
    whole = (tmp_path / "part1.ome.tif").read_bytes()
    (tmp_path / "part1.ome.tif").unlink()
    with pytest.raises(InputError, match=r"lacks 4 of the 8 images .*: part1\.ome\.tif cannot be read"):
        io.read(tmp_path / "part0.ome.tif")
    (tmp_path / "part1.ome.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"incomplete|lacks|cannot read"):
        io.read(tmp_path / "part0.ome.tif")


def test_virtual_datasets_whose_files_are_gone(tmp_path):
    """HDF5 reads the fill value where a file that a virtual dataset is made of is missing."""
    layout = h5py.VirtualLayout(STACK.shape, STACK.dtype)
    for number in range(2):
        with h5py.File(tmp_path / f"part{number}.h5", "w") as file:
            file["data"] = STACK[4 * number : 4 * number + 4]
        layout[4 * number : 4 * number + 4] = h5py.VirtualSource(f"part{number}.h5", "data", (4, 16, 12))
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("labels", layout)
    np.testing.assert_array_equal(io.read(tmp_path / "all.h5"), STACK)
    (tmp_path / "part1.h5").unlink()
    with pytest.raises(InputError, match=r"all\.h5:?.* is made of other files, of which .*part1\.h5:data is missing"):
        io.read(tmp_path / "all.h5")
    with h5py.File(tmp_path / "part1.h5", "w") as file:
        file["other"] = STACK
    with pytest.raises(InputError, match=r"part1\.h5:/?data is missing"):
        io.read(tmp_path / "all.h5")


def test_an_output_that_is_not_finished(tmp_path):
    array = zarr.create_array(tmp_path / "a.zarr", shape=STACK.shape, dtype=STACK.dtype, chunks=(4, 16, 12))
    array[:4] = STACK[:4]
    array.attrs["lpa3d"] = {"verb": "label", "complete": False}
    with pytest.raises(InputError, match=r"a\.zarr is an unfinished result of lpa3d label"):
        io.read(tmp_path / "a.zarr")
    array.attrs["lpa3d"] = {"verb": "label", "complete": True}
    assert io.read(tmp_path / "a.zarr").any()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_slices_that_were_cut_off(tmp_path, share):
    image = pytest.importorskip("PIL.Image")
    for suffix in ("png", "tif"):
        folder = tmp_path / suffix
        folder.mkdir()
        for z, plane in enumerate(STACK):
            if suffix == "png":
                image.fromarray(plane).save(folder / f"{z}.png")
            else:
                tifffile.imwrite(folder / f"{z}.tif", plane, compression="zlib", metadata=None)
        np.testing.assert_array_equal(io.read(folder), STACK)
        data = (folder / f"5.{suffix}").read_bytes()
        (folder / f"5.{suffix}").write_bytes(data[: int(share * len(data))])
        with pytest.raises(InputError, match=rf"5\.{suffix}"):
            io.read(folder)
