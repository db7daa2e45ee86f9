"""COCO files: masks of images as run lengths or polygons, as Mask2Former, Detectron2, SAM and annotation tools write
them, as a stack of slices.

Of masks that overlap the one with the higher score is on top, of equal scores (or none) the smaller one, then the one
that comes first in the file. Pixels that several masks claim are counted.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.checks import MOST_SLICES
from ..arrays.text import list_some
from ..errors import InputError, Lpa3dWarning
from .places import Location
from .volume import Volume, choose_rows

__all__ = ["decode_mask", "open_coco"]

Array = npt.NDArray[Any]

OPTIONS = "classes, FIRST-LAST (slices), score=NUMBER, shift=NUMBER"
UPSAMPLED = 5
"""In how many steps a pixel the outline of a polygon is followed, as COCO's own code does."""


@dataclass(frozen=True)
class Options:
    """What is behind the colon of a name."""

    classes: bool = False
    score: float | None = None
    slices: tuple[int, int] | None = None
    shift: int = 0


@dataclass(frozen=True)
class Mask:
    """One annotation: where it is in the file, its value in the volume, its mask as it is stored."""

    place: int
    value: int
    score: float
    stored: Any


def open_coco(location: Location) -> Volume:
    """Open a COCO file as instances, or behind ``:classes`` as a class map."""
    options = _parse_options(location)
    path = location.path
    with open(path, encoding="utf-8") as file:
        found = json.load(file)
    annotations, images, categories = _list_tables(location, found)
    kept, remarks = _select(location, annotations, options)
    numbers = _number_slices(location, images, annotations)
    shape = _find_shape(location, images, kept)
    values = _find_values(location, kept, categories, options, remarks)
    used = sorted(set(numbers.values()))
    first, last = options.slices or ((used[0], used[-1]) if used else (0, -1))
    length = last - first + 1
    if not used or length < 1:
        raise InputError(f"{location.name} has no slices from {first} to {last}; its images have {list_some(used)}")
    if length > MOST_SLICES:
        raise InputError(f"{location.name} has images from {first} to {last}, more slices than any volume has")
    missing = sorted(set(range(first, last + 1)) - set(used))
    if missing:
        warnings.warn(
            f"{location.name}: {len(missing)} of {length} slices have no image and are read as empty (0): "
            f"{list_some(missing, 8)}; if no slice is missing, number the images without holes",
            Lpa3dWarning,
            3,
        )
    slices: dict[int, list[Mask]] = {}
    for (k, one), value in zip(kept, values, strict=True):
        at = numbers[_image_id(one)]
        score = one.get("score", one.get("predicted_iou"))
        slices.setdefault(at, []).append(Mask(k, value, -math.inf if score is None else float(score), _mask_of(one)))
    top = max(values, default=0)
    dtype = np.dtype(np.uint8 if options.classes and top < 2**8 else np.uint32 if top < 2**32 else np.uint64)
    shared: dict[int, int] = {}

    def fetch(lo: int, hi: int) -> Array:
        part = np.zeros((hi - lo, *shape), dtype)
        for z in range(lo, hi):
            shared[z] = _paint(location, slices.get(first + z, ()), part[z - lo])
        return part

    def close() -> None:
        pixels = sum(shared.values())
        planes = sum(1 for count in shared.values() if count)
        shared.clear()
        if pixels:
            warnings.warn(
                f"{location.name}: {pixels:,} pixels of {planes} slices are in several masks; they have the one with "
                "the highest score, of equal ones the smallest",
                Lpa3dWarning,
                3,
            )

    what = f"{len(kept)} masks of {len(used)} images as slices {first} to {last}"
    named = f", by the {_name_order(images)}"
    return Volume(
        location.name,
        path,
        "coco",
        (length, *shape),
        dtype,
        fetch,
        rows=choose_rows((length, *shape), dtype),
        note=f"{location.name}: {what}{named}{''.join('; ' + remark for remark in remarks)}",
        close=close,
    )


def _parse_options(location: Location) -> Options:
    """Return what is asked for behind the colon."""
    found = Options()
    said: dict[str, Any] = {}
    for part in location.inner.split(",") if location.inner else ():
        name, _, value = part.strip().partition("=")
        if name in said:
            raise InputError(f"{location.name}: {name} is given twice; give it once")
        try:
            if name == "classes" and not value:
                said["classes"] = True
            elif name == "score":
                said["score"] = float(value)
            elif name == "shift":
                said["shift"] = int(value)
            elif (ends := re.fullmatch(r"(\d+)-(\d+)", part.strip())) is not None:
                said["slices"] = (int(ends[1]), int(ends[2]))
            elif name != "instances" or value:
                raise ValueError
        except ValueError:
            raise InputError(
                f"{location.name}: {part!r} is none of what may stand behind a COCO file: {OPTIONS}"
            ) from None
    return Options(**{**found.__dict__, **said})


def _list_tables(
    location: Location, found: Any
) -> tuple[list[Mapping[str, Any]], dict[Any, Mapping[str, Any]], dict[int, str]]:
    """Return the annotations, the images by their id, and the names of the categories."""
    what = (
        f"{location.path} is no COCO file: a list of masks (each with image_id, category_id, segmentation), or an "
        "object with images and annotations is needed"
    )
    if isinstance(found, Mapping) and isinstance(found.get("annotations"), list):
        annotations = found["annotations"]
        images = found.get("images") or ([found["image"]] if isinstance(found.get("image"), Mapping) else [])
        categories = found.get("categories") or []
    elif isinstance(found, list):
        annotations, images, categories = found, [], []
    else:
        raise InputError(what)
    if not all(isinstance(one, Mapping) for one in (*annotations, *images, *categories)):
        raise InputError(what)
    if any("segmentation" not in one for one in annotations):
        boxes = " (it has boxes only)" if any("bbox" in one for one in annotations) else ""
        raise InputError(f"{location.path} holds annotations without a segmentation{boxes}; masks are needed")
    by_id = {image.get("id", image.get("image_id", 0)): image for image in images}
    if len(by_id) < len(images):
        raise InputError(f"{location.path} gives several images the same id; mend it")
    if images and isinstance(found, Mapping) and "image" in found:
        annotations = [{"image_id": next(iter(by_id)), **one} for one in annotations]
    return annotations, by_id, {int(one["id"]): str(one.get("name", one["id"])) for one in categories if "id" in one}


def _image_id(annotation: Mapping[str, Any]) -> Any:
    return annotation.get("image_id", 0)


def _select(
    location: Location, annotations: Sequence[Mapping[str, Any]], options: Options
) -> tuple[list[tuple[int, Mapping[str, Any]]], list[str]]:
    """Return the annotations that are used, with their places in the file, and what to say of the others."""
    kept, remarks = list(enumerate(annotations)), []
    crowds = [k for k, one in kept if one.get("iscrowd")] if not options.classes else []
    if crowds:
        kept = [(k, one) for k, one in kept if not one.get("iscrowd")]
        remarks.append(f"{len(crowds)} crowds, which are several objects, are left out")
    scored = [one for _, one in kept if one.get("score") is not None]
    if options.score is not None:
        if len(scored) < len(kept):
            raise InputError(
                f"{location.name}: {len(kept) - len(scored)} of {len(kept)} masks have no score; leave score= out"
            )
        few = [(k, one) for k, one in kept if float(one["score"]) >= options.score]
        remarks.append(f"{len(kept) - len(few)} masks with a score below {options.score:g} are left out")
        kept = few
    elif scored:
        scores = [float(one["score"]) for one in scored]
        remarks.append(
            f"scores from {min(scores):.3g} to {max(scores):.3g}, all are read ({location.path}:score=0.5 sets a limit)"
        )
    return kept, remarks


def _number_slices(
    location: Location, images: Mapping[Any, Mapping[str, Any]], annotations: Iterable[Mapping[str, Any]]
) -> dict[Any, int]:
    """Return the slice of each image: the number in its file's name, without names its id."""
    asked = list(dict.fromkeys(_image_id(one) for one in annotations))
    if not images:
        if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in asked):
            listed = list_some([repr(one) for one in asked])
            raise InputError(
                f"{location.path} names its images {listed} and has no list of them; pass the file with images and "
                "annotations, or use the numbers of the slices as image_id"
            )
        return {one: int(one) for one in asked}
    unknown = [one for one in asked if one not in images]
    if unknown:
        raise InputError(f"{location.path} has masks of the images {list_some(unknown)}, which it does not list")
    names = {key: str(image.get("file_name", "")) for key, image in images.items()}
    if not all(names.values()):
        numbers = {key: int(key) for key in images if isinstance(key, int)}
        if len(numbers) < len(images):
            raise InputError(f"{location.path} has images without file_name, whose slices nobody can tell")
        return numbers
    return dict(zip(names, number_names(location, list(names.values())), strict=True))


def number_names(location: Location, names: Sequence[str]) -> list[int]:
    """Return the number of the slice in each name of an image."""
    stems = [re.sub(r"\.\w+$", "", name.replace("\\", "/").rpartition("/")[2]) for name in names]
    parts = [re.split(r"([0-9]+)", stem) for stem in stems]
    if len(names) == 1:
        return [int(parts[0][-2]) if len(parts[0]) > 1 else 0]
    if len({tuple(part[::2]) for part in parts}) > 1 or len(parts[0]) == 1:
        raise InputError(
            f"{location.path} has images whose names differ in more than one number: {list_some(names, 3)}; name them "
            "alike, by the slice number"
        )
    columns = [column for column in zip(*([int(n) for n in part[1::2]] for part in parts), strict=True)]
    useful = [column for column in columns if len(set(column)) == len(names)]
    orders = {tuple(sorted(range(len(names)), key=column.__getitem__)) for column in useful}
    if len(orders) != 1:
        twice = "which give two images one slice" if not orders else "which give different orders"
        raise InputError(f"{location.path} has images with numbers in their names, {twice}: {list_some(names, 3)}")
    return list(min(useful, key=lambda column: max(column) - min(column)))


def _name_order(images: Mapping[Any, Mapping[str, Any]]) -> str:
    return "numbers in their names" if images and all(one.get("file_name") for one in images.values()) else "image_id"


def _find_shape(
    location: Location, images: Mapping[Any, Mapping[str, Any]], kept: Iterable[tuple[int, Mapping[str, Any]]]
) -> tuple[int, int]:
    """Return the size that all images have."""
    sizes: Counter[tuple[int, int]] = Counter()
    for image in images.values():
        if "height" in image and "width" in image:
            sizes[int(image["height"]), int(image["width"])] += 1
    for _, one in kept:
        stored = _mask_of(one)
        if isinstance(stored, Mapping):
            height, width = (int(side) for side in stored["size"])
            sizes[height, width] += 1
    if not sizes:
        raise InputError(
            f"{location.path} says nowhere how large its images are (height and width, or the size of a mask)"
        )
    if len(sizes) > 1:
        listed = ", ".join(f"{height} x {width}" for height, width in list(sizes)[:4])
        raise InputError(f"{location.path} has images and masks of different sizes: {listed}; all must be the same")
    return next(iter(sizes))


def _mask_of(annotation: Mapping[str, Any]) -> Any:
    return annotation["segmentation"]


def _find_values(
    location: Location,
    kept: Sequence[tuple[int, Mapping[str, Any]]],
    categories: Mapping[int, str],
    options: Options,
    remarks: list[str],
) -> list[int]:
    """Return the value of each mask in the volume: its category, or an id that no other mask has."""
    if options.classes:
        lacking = sum("category_id" not in one for _, one in kept)
        if lacking:
            raise InputError(f"{location.name}: {lacking} masks have no category_id, so that there are no classes")
        values = [int(one["category_id"]) + options.shift for _, one in kept]
        if min(values, default=1) < 1:
            raise InputError(
                f"{location.name} has the category {min(values) - options.shift}, which would be background; "
                f"{location.path}:classes,shift=1 adds 1 to all of them"
            )
        names = [f"{value} is {categories.get(value - options.shift, 'not named')}" for value in sorted(set(values))]
        remarks.append(f"classes: {list_some(names, 8)}")
        return values
    ids = [one.get("id") for _, one in kept]
    if all(isinstance(one, int) and not isinstance(one, bool) and 0 < one < 2**53 for one in ids) and len(
        set(ids)
    ) == len(ids):
        remarks.append("ids are those of the masks")
        return [int(one) for one in ids if one is not None]
    return list(range(1, len(kept) + 1))


def _paint(location: Location, masks: Sequence[Mask], plane: Array) -> int:
    """Write the masks of a slice, the ones below first, and return how many pixels are in several."""
    decoded = []
    for mask in masks:
        try:
            decoded.append((mask, decode_mask(mask.stored, plane.shape)))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise InputError(f"{location.path}: mask {mask.place} (from 0 on) cannot be read: {error}") from error
    claimed = np.zeros(plane.shape, np.uint32)
    for mask, inside in sorted(decoded, key=lambda one: (one[0].score, -int(one[1].sum()), -one[0].place)):
        plane[inside] = mask.value
        claimed += inside
    return int(np.count_nonzero(claimed > 1))


# ------------------------------------------------------------------------------------------------------------- masks


def decode_mask(stored: Any, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return a mask as an image.

    Parameters
    ----------
    stored : mapping or list
        Run lengths (``{"size": [height, width], "counts": ...}``; numbers, or text in which they are compressed), or
        polygons, each a list ``x, y, x, y ...``.
    shape : tuple of int
        Height and width.

    Returns
    -------
    ndarray of bool

    Raises
    ------
    ValueError
        If the runs are no such image.
    """
    height, width = shape
    if isinstance(stored, Mapping):
        if tuple(int(side) for side in stored["size"]) != (height, width):
            raise ValueError(f"its size {stored['size']} is not that of the image")
        counts = stored["counts"]
        runs = _unpack_runs(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts, np.int64)
        if runs.size and int(runs.min()) < 0:
            raise ValueError("a run has a negative length")
        if int(runs.sum()) != height * width:
            raise ValueError(f"its runs have {int(runs.sum()):,} pixels, and the image {height * width:,}")
        # From column to column, from outside to inside and back.
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return np.ascontiguousarray(flat.reshape(width, height).T)
    inside = np.zeros((height, width), np.bool_)
    if not isinstance(stored, list) or not stored:
        raise ValueError("it is neither run lengths nor polygons")
    for polygon in stored:
        corners = np.asarray(polygon, float)
        if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
            raise ValueError("a polygon has fewer than three corners, or an odd number of numbers")
        inside |= _fill(corners.reshape(-1, 2), height, width)
    return inside


def _unpack_runs(text: str | bytes) -> npt.NDArray[np.int64]:
    """Return the run lengths in COCO's text: 5 bits a character, differences to the last run but one."""
    codes = np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    if codes.size and (int(codes.min()) < 0 or int(codes.max()) > 63):
        raise ValueError("its run lengths hold characters that COCO does not use")
    ends = np.flatnonzero(codes & 32 == 0)
    if codes.size and (not ends.size or ends[-1] != codes.size - 1):
        raise ValueError("its run lengths are cut off")
    starts = np.concatenate(([0], ends[:-1] + 1)).astype(np.int64) if ends.size else ends
    digits = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    if digits.size and int(digits.max()) > 11:
        raise ValueError("its run lengths are no numbers")
    numbers = np.add.reduceat((codes & 31) << (5 * digits), starts) if ends.size else np.empty(0, np.int64)
    negative = codes[ends] & 16 > 0
    numbers[negative] -= np.int64(1) << (5 * (digits[ends][negative] + 1))
    # From the fourth run on each is what it has more than the last but one.
    runs = numbers.copy()
    for k in (1, 2):
        runs[k::2] = np.cumsum(numbers[k::2])
    return runs


def _fill(corners: Array, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return the pixels in a polygon, as COCO's code has it: of each column those between crossings of the outline.

    The outline is followed in steps of a fifth of a pixel, and counts where it goes from one column to the next.
    """
    points = np.trunc(UPSAMPLED * corners + 0.5).astype(np.int64)
    us, vs = [], []
    for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
        dx, dy = abs(int(x1 - x0)), abs(int(y1 - y0))
        flip = (dx >= dy and x0 > x1) or (dx < dy and y0 > y1)
        (xs, ys), (xe, ye) = ((x1, y1), (x0, y0)) if flip else ((x0, y0), (x1, y1))
        steps = np.arange(max(dx, dy) + 1)
        steps = steps[::-1] if flip else steps
        if dx >= dy:
            us.append(steps + xs)
            vs.append(np.trunc(ys + (int(ye - ys) / dx if dx else 0.0) * steps + 0.5).astype(np.int64))
        else:
            vs.append(steps + ys)
            us.append(np.trunc(xs + int(xe - xs) / dy * steps + 0.5).astype(np.int64))
    u, v = np.concatenate(us), np.concatenate(vs)
    crossed = u[1:] != u[:-1]
    a, b, c, d = u[:-1][crossed], u[1:][crossed], v[:-1][crossed], v[1:][crossed]
    x = (np.where(b < a, b, b - 1) + 0.5) / UPSAMPLED - 0.5
    y = np.ceil(np.clip((np.where(d < c, d, c) + 0.5) / UPSAMPLED - 0.5, 0, height)).astype(np.int64)
    kept = (np.floor(x) == x) & (x >= 0) & (x <= width - 1)
    crossings = np.bincount(x[kept].astype(np.int64) * height + y[kept], minlength=height * width + 1)
    flat = np.cumsum(crossings)[: height * width] % 2 == 1
    return np.ascontiguousarray(flat.reshape(width, height).T)
