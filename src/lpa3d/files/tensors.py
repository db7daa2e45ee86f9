"""N5 containers and neuroglancer precomputed volumes, read and written box by box through tensorstore."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.text import list_some
from ..errors import InputError, Lpa3dWarning
from .axes import View, read_axes, read_transform
from .geometry import Geometry, attribute_geometry, convert_unit, drop_unfilled, named_geometry
from .places import LIBRARIES, Location, load_library
from .volume import Box, Volume, choose_rows, cut_box, cut_boxes, find_bounds

__all__ = ["TensorArray", "open_n5", "open_precomputed", "tensor_target", "write_n5", "write_precomputed"]

Array = npt.NDArray[Any]

CHUNK = 64
"""Side of a chunk of what is written: what neuroglancer and Fiji load at once."""

LEAVES = 8
"""Groups in groups that an N5 container is searched for arrays."""


@dataclass(frozen=True)
class TensorArray:
    """A stored array that is read box by box. Picklable: a worker in another process opens it anew.

    Attributes
    ----------
    spec : mapping
        What tensorstore opens.
    shape, dtype, chunks
        Of the array as it is stored.
    folder : Path
        Where it lies.
    axes : tuple of (str or None)
        The names of its axes.
    geometry : Geometry
    """

    spec: Mapping[str, Any]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]
    folder: Path
    axes: tuple[str | None, ...]
    geometry: Geometry
    _opened: list[Any] = field(default_factory=list, repr=False, compare=False)

    @property
    def ndim(self) -> int:
        """Return the number of axes."""
        return len(self.shape)

    def __getitem__(self, index: Any) -> Array:
        if not self._opened:
            self._opened.append(_open(self.spec))
        return np.asarray(self._opened[0][index].read().result())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": []}


def _open(spec: Mapping[str, Any], **how: Any) -> Any:
    """Open an array, with a domain that begins at 0."""
    tensorstore = load_library("tensorstore", "tensorstore")
    try:
        array = tensorstore.open(dict(spec), **(how or {"read": True})).result()
    except ValueError as error:
        raise ValueError(re.sub(r" \[[a-z_]+=.*", "", str(error), flags=re.DOTALL)) from error
    return array[tensorstore.d[:].translate_to[0]]


def _kvstore(folder: Path) -> dict[str, str]:
    return {"driver": "file", "path": f"{os.path.abspath(folder)}/"}


def _read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file says; nothing if there is none."""
    if not path.is_file():
        return {}
    found = json.loads(path.read_bytes())
    if not isinstance(found, dict):
        raise InputError(f"{path} is no JSON object; it is damaged, export it again")
    return found


def _open_array(
    location: Location,
    spec: Mapping[str, Any],
    axes: Sequence[str | None],
    describe: Callable[[View], Geometry],
    folder: Path,
    note: str = "",
) -> Volume:
    """Return an array as a volume."""
    opened = _open(spec)
    dtype = np.dtype(opened.dtype.numpy_dtype)
    chunks = opened.chunk_layout.read_chunk.shape or opened.shape
    view = location.choose(axes, opened.shape)
    sides = tuple(max(int(n), 1) for n in chunks)
    array = TensorArray(
        spec, tuple(opened.shape), dtype, sides, folder, tuple(axes), drop_unfilled(describe(view)), [opened]
    )
    seen = tuple(int(size) for size in view.pick(sides))

    def list_stored() -> tuple[list[Box], Any]:
        whole = tuple(slice(0, size) for size in view.shape)
        return list(cut_box(whole, seen, dtype.itemsize)), 0

    return Volume(
        location.name,
        folder,
        location.format,
        view.shape,
        dtype,
        lambda lo, hi: np.asarray(view.read(array, view.cut_rows(lo, hi))),
        array.geometry,
        seen,
        _name_codec(opened.codec),
        choose_rows(view.shape, dtype, seen[0]),
        note,
        list_stored=list_stored,
        fetch_box=lambda box: np.asarray(view.read(array, box)),
        view=view,
        array=array,
    )


def _name_codec(codec: Any) -> str:
    said = codec.to_json() if codec is not None else {}
    inner = said.get("compression") or {}
    return str(said.get("encoding") or inner.get("cname") or inner.get("type") or "")


# ---------------------------------------------------------------------------------------------------------------- N5


def _list_arrays(folder: Path, depth: int = LEAVES) -> Iterator[Path]:
    """Yield the folders of the arrays in an N5 container; the folders of chunks are not looked through."""
    if "dimensions" in _read_json(folder / "attributes.json"):
        yield folder
    elif depth:
        for child in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
            yield from _list_arrays(child, depth - 1)


def open_n5(location: Location) -> Volume:
    """Open an array of an N5 container."""
    folder = location.path / location.inner
    if not folder.is_dir():
        inside = [path.relative_to(location.path).as_posix() for path in _list_arrays(location.path)]
        raise InputError(f"{folder} does not exist; {location.path} holds {list_some(inside, 8) or 'no array'}")
    load_library(*LIBRARIES["n5"])
    arrays = list(_list_arrays(folder))
    if len(arrays) != 1:
        listed = list_some([str(path) for path in arrays], 8)
        what = f"{len(arrays)} arrays; name one of them: {listed}" if arrays else "no array of N5"
        raise InputError(f"{location.name} holds {what}")
    folder = arrays[0]
    attributes = _read_json(folder / "attributes.json")
    ndim = len(attributes["dimensions"])
    around = [(parent, _read_json(parent / "attributes.json")) for parent in list(folder.parents)[:LEAVES]]
    layer = _find_layer(folder)
    axes = _name_n5_axes(location, folder, attributes, around, layer, ndim)
    # Only what says how the array is stored: of other attributes tensorstore expects that they are of its own form.
    metadata = {
        key: attributes[key] for key in ("dimensions", "blockSize", "dataType", "compression") if key in attributes
    }
    if "compression" not in metadata and "compressionType" in attributes:
        metadata["compression"] = {"type": attributes["compressionType"]}
    spec = {"driver": "n5", "kvstore": _kvstore(folder), "metadata": metadata, "assume_metadata": True}
    return _open_array(
        location, spec, axes, lambda view: _n5_geometry(location, folder, attributes, around, layer, view), folder
    )


def _name_n5_axes(
    location: Location,
    folder: Path,
    attributes: Mapping[str, Any],
    around: Sequence[tuple[Path, Mapping[str, Any]]],
    layer: Mapping[str, Any] | None,
    ndim: int,
) -> list[str | None]:
    """Return the names of the axes, in the order in which they are stored, which is x, y, z where nothing is said."""
    order = (layer or {}).get("axisOrder")
    if isinstance(order, Mapping) and sorted(order.values()) == list(range(ndim)):
        return [next(name for name, k in order.items() if k == at) for at in range(ndim)]
    if layer is not None and ndim == 4:
        return ["c", "x", "y", "z"]  # what WEBKNOSSOS writes
    named = read_axes({key: value for key, value in attributes.items() if key != "transform"}, ndim)
    if named is not None and _in_numpy_order(attributes):
        named = named[::-1]
    if named is None:
        transform = attributes.get("transform")
        if isinstance(transform, Mapping) and len(transform.get("axes", ())) == ndim:
            # Its axes are listed the other way round, as NumPy has them, unless it says otherwise.
            listed: list[str | None] = [str(axis) for axis in transform["axes"]]
            named = listed if transform.get("ordering", transform.get("order")) == "F" else listed[::-1]
    for _, about in around if named is None else ():
        if isinstance(about.get("axes"), list) and len(about["axes"]) == ndim and "dimensions" not in about:
            named = read_axes({"axes": about["axes"]}, ndim)
            break
    if named is not None:
        return list(named)
    if ndim <= 3:
        return list("xyz"[:ndim])
    # Of more axes those that are longer than 1 must be those of space.
    sizes = [int(size) for size in attributes["dimensions"]]
    kept = [k for k, size in enumerate(sizes) if size > 1]
    if len(kept) == 3:
        return ["xyz"[kept.index(k)] if k in kept else "c^" for k in range(ndim)]
    return [None] * ndim


def _find_layer(folder: Path) -> dict[str, Any] | None:
    """Return what WEBKNOSSOS says of an array: its layer's magnification, with the voxel size of the data set."""
    for parent in list(folder.parents)[:4]:
        said = _read_json(parent / "datasource-properties.json")
        for layer in said.get("dataLayers", ()):
            for mag in layer.get("mags") or layer.get("wkwResolutions") or ():
                steps = mag.get("mag", mag.get("resolution", 1))
                steps = [steps] * 3 if isinstance(steps, int) else list(steps)
                path = (
                    mag.get("path")
                    or f"{layer['name']}/{'-'.join(map(str, steps)) if len(set(steps)) > 1 else steps[0]}"
                )
                if (parent / path).resolve() == folder.resolve():
                    return {"scale": said.get("scale"), "mag": steps, "axisOrder": mag.get("axisOrder")}
    return None


def _n5_geometry(
    location: Location,
    folder: Path,
    attributes: Mapping[str, Any],
    around: Sequence[tuple[Path, Mapping[str, Any]]],
    layer: Mapping[str, Any] | None,
    view: View,
) -> Geometry:
    """Read the voxel size of an array of N5: of its own attributes, else of a group around it, or of WEBKNOSSOS.

    ``resolution`` without ``axes`` is (x, y, z) in the files of Paintera and (z, y, x) in those of daisy.
    """
    factors = attributes.get("downsamplingFactors")
    for inner, about in [("", attributes), *((folder.relative_to(at).as_posix(), one) for at, one in around)]:
        own = inner == ""
        if not own and "dimensions" in about:
            continue
        steps = factors
        scales = about.get("scales", about.get("downsamplingFactors"))
        level = re.fullmatch(r"s(\d+)", folder.name)
        if not own and steps is None and level and isinstance(scales, list) and int(level[1]) < len(scales):
            steps = scales[int(level[1])]
        found = _read_sizes(location, about, view)
        if found.spacing is not None:
            # An array's own transform is that of the level.
            return found if own and read_transform(about).get("scale") else _times(found, steps)
    if layer is not None and layer["scale"] is not None:
        said = layer["scale"]
        of = said if isinstance(said, Mapping) else {"factor": said}
        sizes, unit = list(of["factor"]), str(of.get("unit", "nm"))
        return named_geometry("xyz", [a * b for a, b in zip(sizes, layer["mag"], strict=True)], [unit] * 3, None)
    return Geometry()


def _in_numpy_order(about: Mapping[str, Any]) -> bool:
    """Return whether attributes are by a library that lists axes the other way round than N5, as NumPy has them."""
    return "axes" not in about and any(key in about for key in ("axis_names", "_ARRAY_DIMENSIONS", "voxel_size"))


def _read_sizes(location: Location, about: Mapping[str, Any], view: View) -> Geometry:
    """Read the voxel size of one set of attributes, in the order of the stored axes."""
    if _in_numpy_order(about):
        lists = ("spacing", "voxel_size", "resolution", "element_size_um", "offset", "units")
        about = {
            key: value[::-1] if key in lists and isinstance(value, list) else value for key, value in about.items()
        }
    elif "axes" not in about:
        listed = {key: about[key] for key in ("spacing", "resolution") if isinstance(about.get(key), list)}
        unequal = {key: value for key, value in listed.items() if len(set(value)) > 1}
        if unequal and "pixelResolution" not in about and "transform" not in about:
            key, value = next(iter(unequal.items()))
            warnings.warn(
                f"{location.name} says that its {key} is {' '.join(map(str, value))}, but not along which axes: "
                "programs that write N5 differ in that; it is not used, pass the true spacing",
                Lpa3dWarning,
                3,
            )
        # Neither can it be told which number of an offset belongs to which axis.
        about = {key: value for key, value in about.items() if key not in unequal and not (listed and key == "offset")}
    return attribute_geometry(about, view)


def _times(geometry: Geometry, steps: Any) -> Geometry:
    """Return the geometry of a smaller copy of an image, by how many of its voxels (x, y, z) are one."""
    if not isinstance(steps, list) or len(steps) != 3 or geometry.spacing is None:
        return geometry
    z, y, x = (size * float(step) for size, step in zip(geometry.spacing, steps[::-1], strict=True))
    return Geometry((z, y, x), geometry.unit, offset=geometry.offset)


# -------------------------------------------------------------------------------------------------------- precomputed


def open_precomputed(location: Location) -> Volume:
    """Open a scale of a neuroglancer precomputed volume, the first one unless its key is named."""
    info = location.path / "info"
    if not info.is_file():
        raise InputError(f"{location.path} is no precomputed volume: it has no file info")
    load_library(*LIBRARIES["precomputed"])
    about = _read_json(info)
    kind = about.get("@type", "neuroglancer_multiscale_volume")
    scales = about.get("scales")
    if kind != "neuroglancer_multiscale_volume" or not isinstance(scales, list) or not scales:
        raise InputError(f"{location.path} is a {kind}, not a precomputed volume with scales")
    keys = [str(scale.get("key")) for scale in scales]
    if location.inner and location.inner not in keys:
        raise InputError(f"{location.path} has no scale {location.inner}; it has {list_some(keys, 8)}")
    number = keys.index(location.inner) if location.inner else 0
    scale = scales[number]
    spec = {"driver": "neuroglancer_precomputed", "kvstore": _kvstore(location.path), "scale_index": number}
    sizes = [float(size) for size in scale["resolution"]]
    offset = [int(at) * size for at, size in zip(scale.get("voxel_offset", (0, 0, 0)), sizes, strict=True)]
    notes = [f"scale {keys[number]} of {', '.join(keys)}"] if len(keys) > 1 and not location.inner else []
    if str(scale.get("encoding")).lower() in ("jpeg", "jpg"):
        notes.append("stored as JPEG, which changes values; good for images, not for labels")
    notes += _count_chunks(location, scale)
    note = f"{location.name}: {'; '.join(notes)}" if notes else ""
    return _open_array(
        location,
        spec,
        ["x", "y", "z", "channel"],
        lambda view: named_geometry("xyz", sizes, ["nm"] * 3, offset),
        location.path,
        note,
    )


def _count_chunks(location: Location, scale: Mapping[str, Any]) -> list[str]:
    """Return a note if not all chunks of a scale are stored; refuse files that tensorstore would take for missing."""
    if scale.get("sharding"):
        return []
    folder = location.path / str(scale["key"])
    names = [entry.name for entry in os.scandir(folder)] if folder.is_dir() else []
    packed = next((name for name in names if name.endswith((".gz", ".br", ".zstd"))), None)
    if packed is not None:
        raise InputError(
            f"{location.name} has packed chunks ({packed}), as CloudVolume writes them on a disk, which would be taken "
            f"for missing: unpack them (gunzip '{folder}'/*.gz), or write it with CloudVolume(..., compress=False)"
        )
    sides = (scale.get("chunk_sizes") or [scale.get("chunk_size")])[0]
    wanted = math.prod(-(-int(size) // int(side)) for size, side in zip(scale["size"], sides, strict=True))
    stored = sum(re.fullmatch(r"-?\d+--?\d+_-?\d+--?\d+_-?\d+--?\d+", name) is not None for name in names)
    return [f"{stored} of {wanted} chunks are stored, the others are read as 0"] if stored < wanted else []


# ----------------------------------------------------------------------------------------------------------- writing


def tensor_target(location: Location) -> Path:
    """Return the folder that a new array makes appear: itself, or the first missing group around it."""
    location.refuse_choice()
    if location.format == "precomputed":
        if location.inner:
            raise InputError(f"cannot write {location.name}: a precomputed volume is written whole; name its folder")
        target = Path(os.path.realpath(location.path))
        if target.exists():
            _check_loss(location, target)
        return target
    top = Path(os.path.realpath(location.path))
    path = Path(os.path.realpath(location.path / location.inner))
    for folder in reversed([path, *path.parents]):
        if not folder.is_relative_to(top):
            continue
        if not folder.exists():
            return folder
        is_array = "dimensions" in _read_json(folder / "attributes.json")
        if folder != path and is_array:
            raise InputError(f"cannot write {location.name}: {folder} is an array; choose another .n5")
        inside = [child.name for child in folder.iterdir() if (child / "attributes.json").is_file()]
        if folder == path and (inside or not is_array):
            what = f"also holds {list_some(sorted(inside))}" if is_array else "is no array of N5"
            raise InputError(f"{location.name} exists and {what}, so it is never replaced; choose another output")
    return path


def _check_loss(location: Location, folder: Path) -> None:
    """Refuse to replace a folder that is no precomputed volume, or holds more than one scale (meshes, more scales)."""
    scales = _read_json(folder / "info").get("scales")
    if not scales:
        raise InputError(f"{location.name} exists and is no precomputed volume, so it is never replaced")
    own = {"info", "provenance", str(scales[0].get("key")).partition("/")[0]}
    others = sorted({path.name for path in folder.iterdir()} - own)
    if others or len(scales) > 1:
        what = list_some(others) if others else f"{len(scales)} scales"
        raise InputError(
            f"{location.name} also holds {what}, and a precomputed volume is replaced as a whole; choose another output"
        )


def _write(spec: Mapping[str, Any], array: Any, chunk: int, progress: Callable[[float], None]) -> None:
    """Make the array, and write it box by box; chunks that are 0 throughout are not stored."""
    stored = _open(spec, create=True, open=False, read=True, write=True)
    if stored.rank == 4:
        stored = stored[..., 0]
    seen = stored.T if array.ndim == 3 or stored.rank == 2 else stored.T[0]
    for box, part in cut_boxes(array, chunk, progress):
        seen[box].write(np.ascontiguousarray(part, dtype=stored.dtype.numpy_dtype)).result()


def write_n5(
    root: Path,
    inner: str,
    array: Any,
    geometry: Geometry,
    progress: Callable[[float], None],
    more: Mapping[str, Any],
) -> None:
    """Write an array into the folder `root`, which becomes a container, or a group of one, or the array itself; with
    `more` attributes."""
    folder = root / inner
    folder.mkdir(parents=True)
    names = list("xyz"[: array.ndim])
    metadata = {
        "dimensions": list(array.shape[::-1]),
        "blockSize": [CHUNK] * array.ndim,
        "dataType": np.dtype(array.dtype).name,
        "compression": {"type": "gzip", "level": 5, "useZlib": False},
    }
    _write({"driver": "n5", "kvstore": _kvstore(folder), "metadata": metadata}, array, CHUNK, progress)
    about: dict[str, Any] = {"n5": "2.5.1", "axes": names, **more}
    if geometry.spacing is not None:
        sizes = list(geometry.spacing[::-1])[: array.ndim]
        about |= {
            "pixelResolution": {"dimensions": sizes, "unit": geometry.unit or "pixel"},
            "resolution": sizes,
            "units": [geometry.unit] * array.ndim,
        }
        if geometry.offset is not None and array.ndim == 3:
            about["offset"] = list(geometry.offset[::-1])
    path = folder / "attributes.json"
    path.write_text(json.dumps(_read_json(path) | about))
    if inner:
        (root / "attributes.json").write_text(json.dumps({"n5": "2.5.1"}))


def write_precomputed(root: Path, array: Any, geometry: Geometry, progress: Callable[[float], None]) -> None:
    """Write a volume of one scale: integers as a segmentation, floats as an image."""
    dtype = np.dtype(array.dtype)
    if dtype == np.int64 and find_bounds(array)[0] >= 0:
        dtype = np.dtype(np.uint64)
    if dtype.str[1:] not in ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "f4"):
        raise InputError(f"a precomputed volume cannot hold {dtype}; write it as uint64, int32 or float32")
    size, offset = convert_unit(geometry, "nm", "a precomputed volume")
    if size is None:
        warnings.warn("a precomputed volume needs a voxel size, and none is known: 1 nm is written", Lpa3dWarning, 2)
        size = (1.0, 1.0, 1.0)
    begins = [0, 0, 0]
    if offset is not None:
        exact = [at / step for at, step in zip(offset, size, strict=True)]
        begins = [round(at) for at in exact]
        if not np.allclose(exact, begins, atol=1e-3):
            warnings.warn(
                "a precomputed volume begins at a whole number of voxels, so that its place is rounded", Lpa3dWarning, 2
            )
    shape = array.shape if array.ndim == 3 else (1, *array.shape)
    labels = dtype.kind in "ui"
    packed = dtype.str[1:] in ("u4", "u8")
    scale: dict[str, Any] = {
        "key": "_".join(f"{step:g}" for step in size[::-1]),
        "size": list(shape[::-1]),
        "resolution": list(size[::-1]),
        "voxel_offset": begins[::-1],
        "chunk_size": [CHUNK] * 3,
        "encoding": "compressed_segmentation" if packed else "raw",
    }
    if packed:
        scale["compressed_segmentation_block_size"] = [8, 8, 8]
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": _kvstore(root),
        "multiscale_metadata": {
            "type": "segmentation" if labels else "image",
            "data_type": dtype.name,
            "num_channels": 1,
        },
        "scale_metadata": scale,
    }
    _write(spec, array, CHUNK, progress)
