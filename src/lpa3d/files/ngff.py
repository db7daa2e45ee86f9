"""OME-Zarr (NGFF 0.4 and 0.5): the form of outputs that are zarr, and which array of a group is read.

An output is a group with an image in it: its levels are the arrays ``0``, ``1``, ..., each half as large as the one
before, and the group's attributes say what the axes, the scale and the place of each are. An output inside the
``labels`` of an image's group is listed there, and is of the version of that group.

Levels of labels are made by the mode (`reduce_level`), as a mean of ids is another object's; levels of images by the
mean. Each level is made from the one before, by blocks that begin at its first voxel, so that no tile plays a part.
"""

from __future__ import annotations

import colorsys
import contextlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.text import list_some
from ..errors import InputError, InputTypeError, Keyword
from .geometry import Geometry, drop_unfilled, nanometres, zarr_geometry, zarr_view
from .outputs import ASIDE, TEMPORARY, Beside, flush, flush_folders, remove
from .places import LIBRARIES, Location, load_library, zarr_kind

__all__ = [
    "ARRAY",
    "COLORED",
    "FORMS",
    "LAYOUTS",
    "PLAIN",
    "Form",
    "Listing",
    "Placed",
    "adopt_geometry",
    "check_form",
    "check_storage",
    "check_target",
    "choose_array",
    "choose_form",
    "describe_array",
    "describe_geometry",
    "describe_image",
    "find_dataset",
    "find_top",
    "list_arrays",
    "name_group",
    "plan_steps",
    "read_attributes",
    "reduce_level",
    "unlist",
    "write_group",
]

Array = npt.NDArray[Any]
Sides = tuple[int, int, int]

ARRAY = "array"

LAYOUTS = ("0.5", "0.4", ARRAY)
"""Versions of OME-Zarr that are written, and the plain array without a group."""

FORMS = ("layout", "levels")
"""What is said of the form of an output."""

SMALL = {2: 2**20, 3: 2**24}
"""Voxels of the coarsest level in 2D and 3D, at most, where nobody says how many levels there are: 1024 or 256 along
each axis, what a viewer loads at once."""

COLORED = 255
"""Largest id of labels whose colours are listed. Viewers have colours of their own for what is not listed at all, but
some of them show nothing where an id is missing in a list; and a list of millions of ids is of no use."""


# --------------------------------------------------------------------------------------------------------------- forms


@dataclass(frozen=True)
class Listing:
    """Where a label image is listed.

    Attributes
    ----------
    labels : Path
        The group ``labels`` of an image's group.
    name : str
        The label image below it.
    """

    labels: Path
    name: str

    @property
    def source(self) -> str:
        """Return where the image is, as seen from the label image."""
        return "../" * (len(Path(self.name).parts) + 1)


@dataclass(frozen=True)
class Form:
    """The form of a zarr output.

    Attributes
    ----------
    layout : str
        One of `LAYOUTS`.
    zarr_format : int
        2 or 3.
    steps : tuple of tuple of int
        For each coarser level how many voxels of the one before it become one, along z, y and x: 1 or 2 each.
    image : bool
        Whether it is an image rather than labels.
    listing : Listing or None
        Where it is listed.
    """

    layout: str = ARRAY
    zarr_format: int = 3
    steps: tuple[Sides, ...] = ()
    image: bool = False
    listing: Listing | None = None

    @property
    def is_group(self) -> bool:
        """Return whether it is a group with an image in it, rather than an array."""
        return self.layout != ARRAY

    @property
    def paths(self) -> tuple[str, ...]:
        """Return the names of the arrays, the finest first; empty of a plain one, which is at the place itself."""
        return tuple(map(str, range(len(self.steps) + 1))) if self.is_group else ("",)

    def shapes(self, shape: Sequence[int]) -> list[Sides]:
        """Return the shapes of all levels, that of the finest first, ``(Z, Y, X)`` as that is."""
        return list(itertools.accumulate(self.steps, shrink, initial=shrink(shape, (1, 1, 1))))

    def describe(self) -> list[Any]:
        """Return what must be the same when a run goes on (JSON)."""
        return [self.layout, self.zarr_format, [list(step) for step in self.steps], self.image]


PLAIN = Form()


def shrink(shape: Sequence[int], step: Sequence[int]) -> Sides:
    """Return the shape of the level that one of `shape` becomes."""
    z, y, x = (-(-n // s) for n, s in zip(shape, step, strict=True))
    return z, y, x


def check_storage(storage: Any) -> Mapping[str, Any]:
    """Return what `lpa3d.io.write` was told of how zarr is stored."""
    if storage is None:
        return {}
    if not isinstance(storage, Mapping):
        raise InputTypeError(
            Keyword("storage"), f" is {storage!r}; a mapping is needed, e.g. ", Keyword("storage", {"levels": 3})
        )
    unknown = [key for key in storage if key not in FORMS]
    if unknown:
        raise InputError(Keyword("storage"), f" has {', '.join(map(repr, unknown))}; it may hold {', '.join(FORMS)}")
    return storage


def check_form(storage: Mapping[str, Any]) -> None:
    """Refuse a layout that is none of `LAYOUTS`, and levels that are no number of them."""
    layout, levels = storage.get("layout"), storage.get("levels")
    if layout is not None and layout not in LAYOUTS:
        raise InputError(
            Keyword("storage['layout']"), f" is {layout!r}; '0.5' or '0.4' (versions of OME-Zarr) or 'array' is needed"
        )
    if levels is None:
        return
    if isinstance(levels, bool) or not isinstance(levels, (int, np.integer)) or levels < 1:
        raise InputError(Keyword("storage['levels']"), f" is {levels!r}; a whole number of 1 or more is needed")
    if layout == ARRAY and levels > 1:
        raise InputError(
            Keyword("storage['levels']"), f" is {levels}, but a plain array has one; leave one of them out"
        )


def choose_form(
    path: Path,
    shape: Sequence[int],
    geometry: Geometry,
    storage: Mapping[str, Any],
    *,
    image: bool = False,
) -> Form:
    """Return the form of an output: as `storage` asks, and as the groups around its place demand.

    Parameters
    ----------
    path : Path
        Where it goes, without links.
    shape : sequence of int
        Of the array, 2D or 3D.
    geometry : Geometry
        The size of its voxels.
    storage : mapping
        ``layout`` and ``levels``, if they are given.
    image : bool
        Whether it is an image rather than labels.

    Raises
    ------
    InputError
        If the groups around it are of another version, or it would be listed nowhere although it seems to belong to an
        image.
    """
    check_form(storage)
    groups = [folder for folder in path.parents if zarr_kind(folder).startswith("group")]
    for folder in groups:
        check_version(folder)
    layout, group = storage.get("layout"), groups[0] if groups else None
    around = None if group is None else int(zarr_kind(group)[-1])
    if layout is None:
        layout = {None: "0.5", 3: "0.5", 2: "0.4"}[around]
    zarr_format = around or 3 if layout == ARRAY else {"0.5": 3, "0.4": 2}[layout]
    if around not in (None, zarr_format):
        raise InputError(
            Keyword("storage['layout']"),
            f" is {layout!r}, but {group} is a group of zarr format {around}, in which OME-Zarr is of version "
            f"{'0.5' if around == 3 else '0.4'}; leave it out",
        )
    if layout == ARRAY:
        return Form(ARRAY, zarr_format, (), image)
    sides: Sides = (1,) * (3 - len(shape)) + tuple(shape)  # type: ignore[assignment]
    steps = plan_steps(sides, len(shape), geometry.spacing, storage.get("levels"))
    return Form(layout, zarr_format, steps, image, None if image else find_listing(path))


def check_version(group: Path) -> None:
    """Refuse to write into a group of a version of OME-Zarr that is not known."""
    about = read_attributes(group)
    said = about["ome"].get("version") if isinstance(about.get("ome"), Mapping) else None
    if isinstance(said, str) and not said.startswith("0.5"):
        raise InputError(f"{group} is OME-Zarr {said}; labels are added to versions 0.4 and 0.5")


def plan_steps(
    shape: Sides, ndim: int, spacing: Sequence[float] | None, levels: int | None
) -> tuple[tuple[int, int, int], ...]:
    """Return how the voxels of each coarser level are made of those before.

    Axes whose voxels are the finest are halved, until voxels are as long as they are wide; then all are.
    """
    sides, sizes = list(shape), [float(size) for size in spacing or ()]
    if not sizes or not all(math.isfinite(size) and size > 0 for size in sizes):
        sizes = [1.0, 1.0, 1.0]
    steps: list[Sides] = []
    while math.prod(sides) and (
        math.prod(sides) > SMALL[ndim] if levels is None else len(steps) + 1 < levels and max(sides) > 1
    ):
        finest = min(size for size, n in zip(sizes, sides, strict=True) if n > 1)
        # What is nearest to a cube: longer than that by the root of 2 or less.
        z, y, x = (2 if n > 1 and size < math.sqrt(2) * finest else 1 for size, n in zip(sizes, sides, strict=True))
        steps.append((z, y, x))
        sides = list(shrink(sides, steps[-1]))
        sizes = [size * step for size, step in zip(sizes, steps[-1], strict=True)]
    return tuple(steps)


def find_listing(path: Path) -> Listing | None:
    """Return where a label image of this place is listed: in the ``labels`` of the nearest image's group around it."""
    for labels in path.parents:
        if labels.name != "labels":
            continue
        about = read_image(labels.parent)
        if about.get("multiscales") or isinstance(read_image(labels).get("labels"), list):
            return Listing(labels, path.relative_to(labels).as_posix())
        if "bioformats2raw.layout" in about:
            inner = path.relative_to(labels.parent).as_posix()
            raise InputError(
                f"{labels.parent} is no image but holds several, each in a group of its own; write into one of these: "
                f"{labels.parent / '0' / inner}"
            )
    return None


def adopt_geometry(path: Path, shape: Sequence[int], geometry: Geometry) -> Geometry:
    """Return the geometry of an output: where nothing is known of it, that of the level of the image, to whose labels
    it comes, that has its shape."""
    listing = find_listing(path) if geometry.spacing is None else None
    if listing is None:
        return geometry
    zarr, group = load_library(*LIBRARIES["zarr"]), listing.labels.parent
    for image in read_image(group).get("multiscales") or []:
        axes = [str(axis["name"] if isinstance(axis, Mapping) else axis) for axis in image.get("axes") or []]
        for dataset in image.get("datasets") or []:
            level = group / str(dataset.get("path"))
            if not zarr_kind(level).startswith("array"):
                continue
            array = zarr.open_array(str(level), mode="r")
            sides = dict(zip(axes, array.shape, strict=False))
            if tuple(sides[axis] for axis in "zyx" if axis in sides) == tuple(shape):
                # Of whatever channel and time, which lie in one place.
                others = tuple((axis, 0) for axis, n in sides.items() if axis not in "zyx" and n > 1)
                with contextlib.suppress(InputError):  # an image that cannot be read may get labels all the same
                    return drop_unfilled(zarr_geometry(array, zarr_view(array, str(level), others)))
    return geometry


def read_attributes(node: Path) -> dict[str, Any]:
    """Return the attributes of a zarr group or array in a folder; none where there is none."""
    for name in ("zarr.json", ".zattrs"):
        try:
            found = json.loads((node / name).read_bytes())
            found = found.get("attributes", {}) if name == "zarr.json" else found
        except (OSError, ValueError, AttributeError):
            continue
        return found if isinstance(found, dict) else {}
    return {}


def read_image(node: Path) -> dict[str, Any]:
    """Return the metadata of OME-Zarr in a group's attributes."""
    return _image_of(read_attributes(node))


def _image_of(attributes: Mapping[str, Any]) -> dict[str, Any]:
    about = attributes.get("ome", attributes)
    return dict(about) if isinstance(about, Mapping) else {}


def check_target(location: Location) -> Path:
    """Return the place of a zarr output without links; refuse places where something would be lost, or not be found.

    Raises
    ------
    InputError
        If it lies in what is no group, is a level of an image, or holds more than one array or image.
    """
    location.refuse_choice()
    path = Path(os.path.realpath(location.path))
    for i in range(find_top(path) + 1, len(path.parts)):
        group = Path(*path.parts[:i])
        kind = zarr_kind(group)
        if not group.exists():
            break
        if not kind.startswith("group"):
            what = "an array" if kind else "no zarr group"
            raise InputError(
                f"cannot write {location.name}: {group} is {what}, in which no zarr array can lie; choose another .zarr"
            )
        if path.relative_to(group).as_posix() in _list_datasets(read_image(group)):
            raise InputError(f"{location.name} is a level of the image in {group}, so it is never replaced")
    if path.name == "labels" and read_image(path.parent).get("multiscales"):
        raise InputError(
            f"{location.name} is where the labels of the image {path.parent} are listed; choose a name in it: "
            f"{path / 'NAME'}"
        )
    if path.exists() and not (zarr_kind(path) and _is_sole(path)):
        more = " that holds more than one image" if _list_datasets(read_image(path)) else ""
        what = f"a zarr group{more}" if zarr_kind(path) else "no zarr array"
        if zarr_kind(path).startswith("array"):
            what = "an array with other files in its folder"
        raise InputError(f"{location.name} exists and is {what}, so it is never replaced; choose another output")
    return path


def _list_datasets(about: Mapping[str, Any]) -> list[str]:
    """Return the names of all levels of the images that a group's metadata tell of."""
    images = about.get("multiscales") or []
    return [str(dataset.get("path")) for image in images for dataset in image.get("datasets") or []]


METADATA = {"zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata", ".DS_Store"}


def _is_sole(node: Path) -> bool:
    """Return whether a group holds nothing but one image, or an array nothing but chunks."""
    entries = {entry.name for entry in os.scandir(node)} - METADATA
    if zarr_kind(node).startswith("array"):
        return all(re.fullmatch(r"c|(c[/.])?[0-9.]+", name) for name in entries)
    about = read_image(node)
    levels = _list_datasets(about)
    return len(about.get("multiscales") or []) == 1 and bool(levels) and entries <= set(levels)


# -------------------------------------------------------------------------------------------------------------- levels


def reduce_level(fine: Array, step: Sides, *, image: bool) -> Array:
    """Return a box of the level above one of labels or of an image.

    Parameters
    ----------
    fine : ndarray, shape (Z, Y, X)
        A box that begins at a multiple of `step`, and ends at one or where the level ends.
    step : tuple of int
        Voxels along each axis that become one; fewer at the end of an axis.
    image : bool
        Whether the mean is taken, summed in float64 or as integers and then rounded half up, else the mode: the value
        of most voxels, of equally many not 0, and then the smallest (negative ids count as the largest).
    """
    out = np.empty(shrink(fine.shape, step), fine.dtype)
    if not image:
        from ..kernels.levels import reduce_labels

        # Bits are compared, so that there are as many kernels as sizes of ids.
        bits = f"u{fine.dtype.itemsize}"
        reduce_labels(np.ascontiguousarray(fine).view(bits), *step, out.view(bits))
        return out
    whole = fine.dtype.kind != "f"
    # Eight numbers of 64 bits need more: Python's integers, which are slow, but such images are rare.
    kind = np.float64 if not whole else np.int64 if fine.dtype.itemsize < 8 else np.object_
    total: Array = np.zeros(out.shape, kind)
    count = np.zeros(out.shape, np.int64)
    for first in itertools.product(*(range(s) for s in step)):
        part = fine[tuple(slice(lo, None, s) for lo, s in zip(first, step, strict=True))]
        index = tuple(slice(0, n) for n in part.shape)
        total[index] += part
        count[index] += 1
    out[...] = (2 * total + count) // (2 * count) if whole else total / count
    return out


# ------------------------------------------------------------------------------------------------------------ metadata


def describe_array(axes: Sequence[str], geometry: Geometry) -> dict[str, Any]:
    """Return the attributes of an array: what its group says too, exactly, and for those who open it alone."""
    return {"axes": list(axes), **describe_geometry(geometry)}


def describe_geometry(geometry: Geometry) -> dict[str, Any]:
    """Return the attributes that say how large voxels are; none if that is not known."""
    if geometry.spacing is None:
        return {}
    place = {} if geometry.offset is None else {"offset": list(geometry.offset)}
    return {"spacing": list(geometry.spacing), "unit": geometry.unit, **place}


def describe_image(name: str, form: Form, ndim: int, geometry: Geometry, largest: int | None) -> dict[str, Any]:
    """Return the attributes of an output's group.

    Parameters
    ----------
    name : str
        What viewers call it.
    largest : int or None
        The largest id of labels, or more than `COLORED`; None where it is not known, or some are negative.
    """
    unit = _spell_unit(geometry.unit)
    axes = [{"name": axis, "type": "space"} | ({"unit": unit} if unit else {}) for axis in "zyx"[3 - ndim :]]
    sizes, place = geometry.spacing or (1.0, 1.0, 1.0), geometry.offset or (0.0, 0.0, 0.0)
    factors = [
        (1, 1, 1),
        *itertools.accumulate(form.steps, lambda a, b: tuple(m * n for m, n in zip(a, b, strict=True))),
    ]
    datasets = []
    for path, factor in zip(form.paths, factors, strict=True):
        scale = [size * n for size, n in zip(sizes, factor, strict=True)]
        # That of the centre of the first voxel, as everywhere in OME-Zarr.
        first = [at + (n - 1) / 2 * size for at, n, size in zip(place, factor, sizes, strict=True)]
        steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale[3 - ndim :]}]
        if form.steps or geometry.offset is not None:
            steps.append({"type": "translation", "translation": first[3 - ndim :]})
        datasets.append({"path": path, "coordinateTransformations": steps})
    image: dict[str, Any] = {"name": name, "axes": axes, "datasets": datasets, "type": "mean" if form.image else "mode"}
    about: dict[str, Any] = {"multiscales": [image]}
    if not form.image:
        label: dict[str, Any] = {"version": form.layout}
        if largest is not None and 0 < largest <= COLORED:
            label["colors"] = [{"label-value": n, "rgba": _color(n)} for n in range(largest + 1)]
        if form.listing is not None:
            label["source"] = {"image": form.listing.source}
        about["image-label"] = label
    if form.layout == "0.4":
        image["version"] = form.layout
        return about
    return {"ome": {"version": form.layout, **about}}


UNITS = ("picometer", "angstrom", "nanometer", "micrometer", "millimeter", "centimeter", "meter")


def _spell_unit(unit: str) -> str:
    """Return a unit as OME-Zarr spells it; empty where it is not known."""
    size = nanometres(unit)
    return next((known for known in UNITS if size is not None and nanometres(known) == size), "")


def _color(label: int) -> list[int]:
    """Return a colour, the same for a label at all times; neighbouring ones differ."""
    if not label:
        return [0, 0, 0, 0]
    red, green, blue = colorsys.hsv_to_rgb(label * 0.61803398875 % 1, 0.55 + 0.15 * (label % 4), 1 - 0.12 * (label % 3))
    return [round(255 * red), round(255 * green), round(255 * blue), 255]


def write_group(folder: Path, zarr_format: int, attributes: Mapping[str, Any]) -> None:
    """Write the files of a group; one that is there gets these attributes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, document in _documents(zarr_format, attributes).items():
        (folder / name).write_text(json.dumps(document, indent=2), encoding="utf-8")


def _documents(zarr_format: int, attributes: Mapping[str, Any]) -> dict[str, Any]:
    if zarr_format == 2:
        return {".zgroup": {"zarr_format": 2}, ".zattrs": dict(attributes)}
    return {"zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}}


# ------------------------------------------------------------------------------------------------------------- listing

LOCK = ".lpa3d-lock"
PATIENCE = 60.0
"""Seconds after which something is wrong with who has the lock on a list: it is changed in milliseconds."""


@dataclass(frozen=True)
class Placed(Beside):
    """An output that is zarr: the groups that lead to its place are made when it gets there, and it is listed then.

    Attributes
    ----------
    form : Form
    """

    form: Form = field(default=PLAIN)

    def publish(self) -> None:
        """Put it into its place, and into the list of the image's labels."""
        anchor = next(folder for folder in self.target.parents if folder.is_dir())
        make_groups(self.target, name_group(self.temp), self.form.zarr_format)
        flush_folders(self.target.parent, anchor)
        super().publish()
        try:
            if self.form.listing is not None:
                change_list(self.form.listing, listed=True)
            update_consolidated(self.target)
        except BaseException:
            self.take_back()
            raise

    def take_back(self) -> None:
        """Undo `publish`."""
        super().take_back()
        unlist(self.target, self.form)


def unlist(target: Path, form: Form) -> None:
    """Take an output out of what tells of it, if it is not there any more."""
    with contextlib.suppress(OSError):
        if form.listing is not None and not os.path.lexists(target):
            change_list(form.listing, listed=False)
        update_consolidated(target)


def name_group(built: Path) -> Path:
    """Return where groups are made for what is built at a place."""
    return built.with_name(f"{built.name}-group")


def find_top(path: Path) -> int:
    """Return how many parts of a path lead to the folder in which its outermost group is, or is to be made.

    That is the one around all groups that are there, else the first that is called ``.zarr``, else the array itself.
    """
    parts = path.parts
    depth = next((i for i, part in enumerate(parts) if part.lower().endswith(".zarr")), len(parts) - 1)
    top = next(i for i in range(depth, -1, -1) if not i or Path(*parts[:i]).exists())
    while top and zarr_kind(Path(*parts[:top])).startswith("group"):
        top, depth = top - 1, top - 1
    return depth


def make_groups(final: Path, temp: Path, zarr_format: int) -> None:
    """Make the groups between the outermost one of a path and the array that comes there; others may do the same.

    Each appears whole: it is made as `temp`, on the same disk, and renamed.
    """
    parts, depth = final.parts, find_top(final)
    Path(*parts[:depth]).mkdir(parents=True, exist_ok=True)
    for i in range(depth + 1, len(parts)):
        group = Path(*parts[:i])
        if group.exists():
            continue
        remove(temp)
        write_group(temp, zarr_format, {})
        flush(temp)
        try:
            temp.rename(group)
        except OSError:
            if not zarr_kind(group):
                raise
    remove(temp)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep others from changing a list, of this process and of others."""
    import filelock

    lock = filelock.FileLock(folder / LOCK, timeout=PATIENCE, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise OSError(f"{folder / LOCK} is held by another process; if that ended, delete it") from None
    try:
        yield
    finally:
        # While it is held, as who waits for it looks whether it is still there. (Windows deletes it with the last
        # handle.)
        with contextlib.suppress(OSError):
            (folder / LOCK).unlink()
        lock.release()


def change_list(listing: Listing, *, listed: bool) -> None:
    """Put a label image into the list of its group, or take it out; what else is listed stays as it is."""
    if not zarr_kind(listing.labels).startswith("group"):
        return
    with _locked(listing.labels):
        # Read under the lock: another run may have added another one just now.
        three = zarr_kind(listing.labels) == "group3"
        file = listing.labels / ("zarr.json" if three else ".zattrs")
        document: dict[str, Any] = json.loads(file.read_bytes()) if file.exists() else {}
        about = document.setdefault("attributes", {}) if three else document
        if three and "labels" not in about:
            about = about.setdefault("ome", {"version": "0.5"})
        names = [name for name in about.get("labels", []) if listed or name != listing.name]
        if listed and listing.name not in names:
            names.append(listing.name)
        if names == about.get("labels"):
            return
        about["labels"] = names
        _replace(file, document)


def _replace(file: Path, document: Mapping[str, Any]) -> None:
    """Write a file anew in one step, under the lock of its folder."""
    # The same name each time: what a killed process left is replaced.
    temp = file.with_name(f"{TEMPORARY}{file.name}")
    temp.write_text(json.dumps(document, indent=2), encoding="utf-8")
    flush(temp)
    os.replace(temp, file)
    flush_folders(file.parent, file)


def update_consolidated(target: Path) -> None:
    """Let the groups around a place that keep the metadata of all that they hold tell of what is there now."""
    for group in target.parents:
        kind = zarr_kind(group)
        if not kind.startswith("group"):
            if group.exists():
                break
            continue
        file = group / {"group3": "zarr.json", "group2": ".zmetadata"}[kind]
        if _find_consolidated(file) is None:
            continue
        with _locked(group):
            found = _find_consolidated(file)
            if found is None:
                continue
            document, nodes = found
            inner = target.relative_to(group).as_posix()
            before = dict(nodes)
            for key in [key for key in nodes if f"{key}/".startswith(f"{inner}/")]:
                del nodes[key]
            for folder in (*_list_between(group, target), *_list_nodes(target)):
                for name in ("zarr.json",) if kind == "group3" else (".zgroup", ".zattrs", ".zarray"):
                    if (folder / name).is_file():
                        key = (folder if kind == "group3" else folder / name).relative_to(group).as_posix()
                        nodes[key] = json.loads((folder / name).read_bytes())
            if nodes != before:
                _replace(file, document)


def _find_consolidated(file: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return a document that holds consolidated metadata, and these in it; None if it holds none."""
    if not file.exists():
        return None
    try:
        document = json.loads(file.read_bytes())
    except ValueError:
        return None
    inner = document if file.name == ".zmetadata" else document.get("consolidated_metadata") or {}
    nodes = inner.get("metadata")
    return (document, nodes) if isinstance(nodes, dict) else None


def _list_between(group: Path, target: Path) -> list[Path]:
    """Return the groups inside of one that lead to a place."""
    return [folder for folder in target.parents if group in folder.parents]


def _list_nodes(target: Path) -> list[Path]:
    """Return an output, and the arrays in it."""
    return [target, *(entry for entry in sorted(target.iterdir()) if zarr_kind(entry))] if target.is_dir() else []


# ------------------------------------------------------------------------------------------------------------- reading


def find_dataset(name: str, attributes: Mapping[str, Any]) -> str | None:
    """Return the name of the finest array of the image that a group's attributes tell of; None if there is none.

    Raises
    ------
    InputError
        If there are several images.
    """
    found = []
    for image in _image_of(attributes).get("multiscales") or []:
        for dataset in (image.get("datasets") or [])[:1]:
            found.append(str(dataset.get("path")))
    if len(set(found)) > 1:
        raise InputError(
            f"{name} holds several images; name the array of one of them: {', '.join(dict.fromkeys(found))}"
        )
    return found[0] if found else None


def list_arrays(name: str, group: Any) -> dict[str, str]:
    """Return what a group of zarr holds, at any depth, and may be meant by its name: of each the name of its array.

    An image stands for all its levels, and for the labels inside of it; of it the finest array is named. Arrays that
    belong to no image stand for themselves.
    """
    dataset = find_dataset(name, group.attrs.asdict())
    if dataset is not None:
        return {dataset: dataset}
    members = {
        str(inner): node
        for inner, node in sorted(group.members(max_depth=None), key=lambda member: str(member[0]))
        # A run that was killed may have left an unfinished output in the group.
        if not any(part.startswith((TEMPORARY, ASIDE)) for part in str(inner).split("/"))
    }
    images = {
        inner: f"{inner}/{dataset}"
        for inner, node in members.items()
        if not hasattr(node, "shape") and (dataset := find_dataset(f"{name}/{inner}", node.attrs.asdict())) is not None
    }

    def is_inside(inner: str) -> bool:
        parts = inner.split("/")
        return any("/".join(parts[:k]) in images for k in range(1, len(parts)))

    found = images | {inner: inner for inner, node in members.items() if hasattr(node, "shape")}
    return {inner: array for inner, array in sorted(found.items()) if not is_inside(inner)}


def choose_array(name: str, group: Any) -> str:
    """Return the name of the array that the name of a group stands for, or say what must be named.

    Raises
    ------
    InputError
        If it holds none, or several.
    """
    arrays = list_arrays(name, group)
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    if not arrays:
        raise InputError(f"{name} holds no array")
    listed = list_some([f"{name.rstrip('/')}/{inner}" for inner in arrays], 8)
    what = "arrays" if all(inner == array for inner, array in arrays.items()) else "images"
    raise InputError(f"{name} holds {len(arrays)} {what}; name one of them: {listed}")
