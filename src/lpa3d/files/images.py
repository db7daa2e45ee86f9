"""Folders of images, one PNG or TIFF for each slice, as a volume."""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.checks import MOST_SLICES
from ..arrays.text import list_some
from ..arrays.threads import num_threads, run_all
from ..errors import InputError, Lpa3dWarning
from .coded import Coding, code_line, imagej_coding
from .places import LIBRARIES, Location, load_library, reading
from .volume import Volume, choose_rows

__all__ = ["check_palettes", "check_photometric", "open_images", "read_colormap", "tiff_coding"]

Array = npt.NDArray[Any]


# --------------------------------------------------------------------------------------------------- image folders


IMAGE_SUFFIXES = {".png": "png", ".tif": "tiff", ".tiff": "tiff"}
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
SPARSEST = 100
"""Slices for each image from which on the numbers in the names are taken for something else, such as times."""


@dataclass(frozen=True)
class Image:
    """What the header of one image says; in a palette image the index is the value.

    `palette` are the colours of a palette image, one after the other, as (red, green, blue).
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    palette: tuple[tuple[int, ...], ...] | None = None


def open_images(location: Location) -> Volume:
    kind, names, others = _list_images(location)
    scan, load = IMAGE_READERS[kind]
    load_library(*LIBRARIES[kind])
    numbered = dict(sorted(zip(_find_numbers(location, names), names, strict=True)))
    first, last = location.numbers or (min(numbered), max(numbered))
    if first > last:
        raise InputError(f"{location.name} asks for slices {first} to {last}; the first number must not be the larger")
    chosen = {number: location.path / name for number, name in numbered.items() if first <= number <= last}
    if not chosen:
        raise InputError(
            f"{location.name}: no image has a number from {first} to {last}; they have {min(numbered)} to "
            f"{max(numbered)}"
        )
    length = last - first + 1
    if length > MOST_SLICES:
        raise InputError(f"{location.name} asks for {length:,} slices, more than any volume has")
    if location.numbers is None and length > SPARSEST * len(chosen):
        raise InputError(
            f"{location.name} holds {_images(kind, len(names))} with numbers from {first} to {last}, of which hardly "
            f"any has an image; number the slices 0, 1, 2 ..., or say that they are meant: "
            f"'{location.name}:{first}-{last}'"
        )
    shape, dtype, remarks = _agree(location, list(chosen.values()), run_all(scan, chosen.values()))
    if len(chosen) < length:
        warnings.warn(
            _say_missing(location, [n for n in range(first, last + 1) if n not in chosen], length), Lpa3dWarning, 3
        )
    if len(chosen) < len(names):
        remarks.append(f"{len(names) - len(chosen)} images with other numbers are left out")
    if others:
        remarks.append(f"other files are ignored: {list_some(others)}")
    paths = list(chosen.values())
    ordered = f"{paths[0].name} to {paths[-1].name}, by their numbers" if len(paths) > 1 else paths[0].name
    # Options name slices by position, whatever the names begin with.
    numbers = f" (numbers {first} to {last}; options count slices from 0)" if first else ""
    note = f"{location.name}: {_images(kind, len(paths))} as slices 0 to {length - 1}{numbers}: {ordered}"

    def fetch(lo: int, hi: int) -> Array:
        slab = np.zeros((hi - lo, *shape), dtype)

        def fill(z: int) -> None:
            path = chosen[first + z]
            with reading(str(path)):
                image = load(path)
                if image.shape != shape:
                    raise InputError(f"{path} has changed since it was opened: its shape is now {image.shape}")
                slab[z - lo] = image

        run_all(fill, [z for z in range(lo, hi) if first + z in chosen])
        return slab

    return Volume(
        location.name,
        location.path,
        "images",
        (length, *shape),
        dtype,
        fetch,
        chunks=(1, *shape),
        # Slices too large for several in a slab are still decoded by all threads.
        rows=max(choose_rows((length, *shape), dtype), num_threads()),
        note="; ".join([note, *remarks]),
    )


def _images(kind: str, count: int) -> str:
    """Return a number of images in words."""
    return f"{count} {kind.upper()} image{'' if count == 1 else 's'}"


def _list_images(location: Location) -> tuple[str, list[str], list[str]]:
    """Return the kind and the names of the images in a folder, and the names of everything else."""
    groups: dict[str, list[str]] = {"png": [], "tiff": [], "": []}
    with os.scandir(location.path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            # Hidden files are nobody's slices; macOS leaves ._name.png beside name.png.
            if entry.name.startswith(".") or not fnmatch.fnmatch(entry.name, location.inner or "*"):
                continue
            kind = "" if entry.is_dir() else IMAGE_SUFFIXES.get(Path(entry.name).suffix.lower(), "")
            groups[kind].append(entry.name)
    others = groups.pop("")
    kinds = [kind for kind, names in groups.items() if names]
    if len(kinds) == 1:
        return kinds[0], groups[kinds[0]], others
    if kinds:
        raise InputError(
            f"{location.name} holds {_images('png', len(groups['png']))} and {_images('tiff', len(groups['tiff']))}; "
            f"choose one kind with a pattern in quotes: '{location.path / '*.png'}' or "
            f"'{location.path / ('*' + Path(groups['tiff'][0]).suffix)}'"
        )
    what = f"{location.path} holds no PNG or TIFF image" + (f" named {location.inner}" if location.inner else "")
    if not others:
        raise InputError(f"{what}{'' if location.inner else ': it is empty'}")
    advice = ""
    if any(name.lower().endswith(LOSSY_SUFFIXES) for name in others):
        advice = "; JPEG and WebP change the values of labels: export PNG or TIFF"
    elif len(others) == 1:
        advice = f"; if that is the volume, pass {location.path / others[0]}"
    raise InputError(f"{what}, but {list_some(others)}{advice}")


def _advise_pattern(location: Location, names: Sequence[str], series: Sequence[str]) -> str:
    """Return the advice to choose a series by a pattern, if there is one that matches its names and no others."""
    texts = re.split("[0-9]+", series[0])
    for pattern in ("*[0-9]".join(texts), "[0-9]*".join(texts)):
        if fnmatch.filter(names, pattern) == list(series):
            return f"choose one series with a pattern in quotes: '{location.path / pattern}', or "
    return ""


def _find_numbers(location: Location, names: Sequence[str]) -> list[int]:
    """Return the slice number of each name: the one place where all names differ, in names that are else the same."""
    parts = [re.split("([0-9]+)", Path(name).stem) for name in names]
    texts = Counter(tuple(part[::2]) for part in parts)
    if len(names) > 1 and all(len(text) == 1 for text in texts):
        raise InputError(
            f"{location.name} holds images without a number, such as {list_some(names, 2)}; name them by their slices: "
            f"0001{Path(names[0]).suffix}, 0002{Path(names[0]).suffix}, ..."
        )
    if len(texts) > 1:
        examples = [
            f"{next(name for name, part in zip(names, parts, strict=True) if tuple(part[::2]) == text)} ({count})"
            for text, count in texts.most_common()
        ]
        series = [
            name for name, part in zip(names, parts, strict=True) if tuple(part[::2]) == texts.most_common()[0][0]
        ]
        raise InputError(
            f"{location.name} holds images whose names differ in more than numbers: {list_some(examples)}; "
            f"{_advise_pattern(location, names, series)}name all images alike"
        )
    numbers = [[int(digits) for digits in part[1::2]] for part in parts]
    if len(names) == 1:
        return [numbers[0][-1] if numbers[0] else 0]
    columns = [column for column in zip(*numbers, strict=True) if len(set(column)) == len(names)]
    orders = {tuple(sorted(range(len(names)), key=column.__getitem__)) for column in columns}
    if not orders:
        best = max(zip(*numbers, strict=True), key=lambda column: len(set(column)))
        number = Counter(best).most_common()[0][0]
        again = [name for name, each in zip(names, best, strict=True) if each == number]
        raise InputError(
            f"{location.name} holds {len(again)} images for slice {number}: {list_some(again)}; choose one series with "
            f"a pattern in quotes, such as '{location.path}/*_labels{Path(again[0]).suffix}'"
        )
    if len(orders) > 1:
        raise InputError(
            f"{location.name} holds images with several numbers in their names, which give different orders, such as "
            f"{list_some(names, 2)}; name them by the slice number alone"
        )
    # Of several numbers that agree (slice_0001_z=0.0080um) the one that counts in the smallest steps is the slice's.
    return list(min(columns, key=lambda column: max(column) - min(column)))


def _agree(
    location: Location, paths: Sequence[Path], images: Sequence[Image]
) -> tuple[tuple[int, int], np.dtype[Any], list[str]]:
    """Return the shape and dtype that all slices have, and remarks; refuse slices that do not belong together."""

    def refuse(what: str, values: Sequence[object], advice: str) -> None:
        counts = Counter(values)
        if len(counts) > 1:
            most = counts.most_common()[0][0]
            usual = next(path for path, value in zip(paths, values, strict=True) if value == most)
            odd = [f"{p.name} ({value})" for p, value in zip(paths, values, strict=True) if value != most]
            raise InputError(
                f"{location.name} holds images of different {what}: {counts[most]} as {usual.name} ({most}), but "
                f"{list_some(odd)}; {advice}"
            )

    sizes = [f"{image.shape[0]} x {image.shape[1]}" for image in images]
    refuse("sizes", sizes, "all slices must have the same number of rows and columns")
    dtypes = {image.dtype for image in images}
    common = np.result_type(*dtypes)
    mixed = [
        "palette"
        if image.palette is not None
        else "integers"
        if image.dtype.kind in "iu" and common.kind in "iu"
        else image.dtype
        for image in images
    ]
    refuse("kinds", mixed, "what a value means could differ too; save all slices in the same way")
    remarks = []
    if images[0].palette is not None:
        check_palettes(
            location.name, [(path.name, image.palette or ()) for path, image in zip(paths, images, strict=True)]
        )
        remarks.append("palette images: the index of a colour is the value")
    if len(dtypes) > 1:
        remarks.append(f"{' and '.join(sorted(map(str, dtypes)))} are read as {common}")
    return images[0].shape, common, remarks


def check_palettes(name: str, palettes: Iterable[tuple[str, Sequence[tuple[int, ...]]]]) -> None:
    """Refuse slices in whose palettes an index is not always the same colour: it would not be the same object.

    A palette may end where its image needs no more colours.
    """
    longest: Sequence[tuple[int, ...]] = ()
    of = ""
    for slice_, palette in palettes:
        for index, (one, other) in enumerate(zip(palette, longest, strict=False)):
            if one != other:
                raise InputError(
                    f"{name} holds palette images with different palettes: {index} is the colour {other} in {of} and "
                    f"{one} in {slice_}, so it is no id that holds in all slices; save all slices with one palette, or "
                    f"as numbers: of RGB, rgb.astype('uint32') @ np.array([65536, 256, 1], 'uint32')"
                )
        if len(palette) > len(longest):
            longest, of = palette, slice_


def _say_missing(location: Location, missing: Sequence[int], length: int) -> str:
    """Return the warning about slices whose number no image has."""
    cuts = [0, *(i for i in range(1, len(missing)) if missing[i] != missing[i - 1] + 1), len(missing)]
    runs = [(missing[lo], missing[hi - 1]) for lo, hi in itertools.pairwise(cuts)]
    listed = list_some([f"{lo}" if lo == hi else f"{lo}-{hi}" for lo, hi in runs], 8)
    verbs = "has no image and is" if len(missing) == 1 else "have no image and are"
    return (
        f"{location.name}: {len(missing)} of {length} slices {verbs} read as empty (0): {listed}; if no slice is "
        f"missing, number the images without holes"
    )


def _colour_error(path: Path, channels: str) -> InputError:
    return InputError(
        f"{path} is a colour image ({channels}), but labels need one number for each pixel. If each colour is an id, "
        f"make numbers of them and save those as TIFF: ids = rgb[..., :3].astype('uint32') @ "
        f"np.array([65536, 256, 1], 'uint32'); tifffile.imwrite('name.tif', ids). If all channels are the same, save "
        f"one: rgb[..., 0]"
    )


def _scan_png(path: Path) -> Image:
    with reading(str(path)):
        with open(path, "rb") as file:
            start = file.read(26)
        if len(start) < 26 or start[:8] != b"\x89PNG\r\n\x1a\n" or start[12:16] != b"IHDR":
            raise InputError(f"{path} is no PNG image, whatever its suffix says")
        width, height, bits, colours = struct.unpack(">IIBB", start[16:])
        if colours not in (0, 3):
            raise _colour_error(path, {2: "RGB", 4: "gray and transparency", 6: "RGBA"}.get(colours, "unknown"))
        palette = _read_palette(path) if colours == 3 else None
        if palette is None and bits in (2, 4):
            # Some programs write the numbers themselves, most read them multiplied by 85 or 17.
            raise InputError(f"{path} has {bits} bits a pixel, whose values are ambiguous; save it with 8 or 16")
        return Image(
            (height, width), np.dtype("u1" if palette is not None else {1: "?", 8: "u1", 16: "u2"}[bits]), palette
        )


def _read_palette(path: Path) -> tuple[tuple[int, ...], ...]:
    """Return the colours of a PNG image."""
    with open(path, "rb") as file:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"PLTE":
                data = file.read(length)
                return tuple(zip(data[::3], data[1::3], data[2::3], strict=False))
            file.seek(length + 4, os.SEEK_CUR)
    raise InputError(f"{path} is a palette image without a palette")


def _load_png(path: Path) -> Array:
    # Not Image.open, which takes a slice of 200 megapixels for an attack.
    with load_library(*LIBRARIES["png"]).PngImageFile(path) as image:
        return np.asarray(image)


def _scan_tiff(path: Path) -> Image:
    tifffile = load_library(*LIBRARIES["tiff"])
    with reading(str(path)), tifffile.TiffFile(path) as tiff:
        # Pages, not series: a file that is part of an OME data set knows of the others and would open them.
        page, count = tiff.pages[0], len(tiff.pages)
        if tiff.is_imagej:
            # A stack of more than 4 GB has one page only.
            count = max(count, int((tiff.imagej_metadata or {}).get("images", 1)))
        if count > 1:
            raise InputError(
                f"{path} holds {count} images, but in a folder each file must be one slice; if it is the whole volume, "
                f"pass the file itself"
            )
        if page.samplesperpixel > 1:
            raise _colour_error(path, f"{page.samplesperpixel} channels")
        if len(page.shape) != 2:
            raise InputError(f"{path} has shape {page.shape}; a slice must be (Y, X)")
        check_photometric(path, tiff)
        coding = tiff_coding(str(path), tiff, page.dtype)
        dtype = np.dtype(page.dtype if coding is None else coding.dtype)
        return Image(page.shape, dtype.newbyteorder("="), read_colormap(page))


def read_colormap(page: Any) -> tuple[tuple[int, ...], ...] | None:
    """Return the colours of a page of a TIFF file, None if it has no palette.

    It has as many as there could be; those behind the last one that is meant are black.
    """
    if page.photometric.name != "PALETTE":
        return None
    colours = page.colormap.T
    return tuple(map(tuple, colours[: 1 + max(np.flatnonzero(colours.any(axis=1)), default=-1)].tolist()))


def check_photometric(path: Path, tiff: Any) -> None:
    """Refuse a TIFF file that says that 0 is white, so that its values may be meant the other way round.

    ImageJ says so of what it shows that way, tifffile of all that is bool, and both mean the values as they are.
    """
    page = tiff.pages[0]
    if page.photometric.name == "MINISWHITE" and not (tiff.is_imagej or page.software.startswith("tifffile")):
        raise InputError(
            f"{path} says that 0 is white (photometric MINISWHITE): programs differ in whether its values are to be "
            "turned round, so that it is not clear what is background; save it with photometric MINISBLACK "
            "(tifffile.imwrite(..., photometric='minisblack'))"
        )


def _load_tiff(path: Path) -> Array:
    with load_library(*LIBRARIES["tiff"]).TiffFile(path) as tiff:
        image = np.asarray(tiff.pages[0].asarray())
        coding = tiff_coding(str(path), tiff, image.dtype)
        return image if coding is None else coding.decode(image)


def tiff_coding(name: str, tiff: Any, dtype: npt.DTypeLike) -> Coding | None:
    """Return how ImageJ's calibration, or a number for pixels without data, codes the values of a TIFF file."""
    if tiff.is_imagej:
        return imagej_coding(name, tiff.imagej_metadata or {}, dtype)
    page = tiff.pages[0]
    return code_line(name, dtype, 1.0, 0.0, {"GDAL_NODATA": page.nodata} if "GDAL_NODATA" in page.tags else {})


IMAGE_READERS: dict[str, tuple[Callable[[Path], Image], Callable[[Path], Array]]] = {
    "png": (_scan_png, _load_png),
    "tiff": (_scan_tiff, _load_tiff),
}
