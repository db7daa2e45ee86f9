"""Which axes of a stored array are those of space, and how it is seen as (z, y, x).

What a file says of its axes is believed: they are turned to (z, y, x), or (y, x), where they are stored, so that only
what is asked for is read. An axis that is none of space (channels, times) goes if its length is 1; of a longer one the
caller chooses an index, as in ``cell.zarr:c=2`` (`places.split_choice`), so that it is never taken for z.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, Keyword

__all__ = ["SPACE", "Choice", "View", "choose_view", "read_axes", "read_axistags", "read_transform", "split_names"]

Array = npt.NDArray[Any]
Choice = tuple[tuple[str, int], ...]
"""What the caller chose: names of axes, and an index along each."""

SPACE = {
    "z": "z", "depth": "z", "plane": "z", "pln": "z", "section": "z", "slice": "z",
    "y": "y", "height": "y", "row": "y",
    "x": "x", "width": "x", "col": "x", "column": "x",
}  # fmt: skip
"""Names of axes of space."""

KINDS = {
    "c": "channel", "ch": "channel", "channel": "channel", "channels": "channel",
    "s": "colour", "t": "time", "time": "time",
}  # fmt: skip
"""Names of axes that are none of space, wherever no others say what z, y and x are: what messages call them."""


@dataclass(frozen=True)
class View:
    """How a stored array is seen as ``(z, y, x)``, or ``(y, x)``. Picklable.

    Attributes
    ----------
    names : tuple of str
        What the stored axes are called by the caller: their names in lower case, or their numbers.
    sizes : tuple of int
        The stored shape.
    index : tuple of (int or None)
        What is taken of each stored axis; None where all of it is.
    order : tuple of int
        The stored axes that are seen, in the order in which they are seen.
    named : tuple of str
        What the file calls those axes, as z, y and x; empty where it does not say.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    index: tuple[int | None, ...]
    order: tuple[int, ...]
    named: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape that is seen."""
        return tuple(self.pick(self.sizes))

    @property
    def is_plain(self) -> bool:
        """Return whether the axes are seen in the order in which they are stored."""
        return list(self.order) == sorted(self.order)

    @property
    def beside(self) -> tuple[int, ...]:
        """Return the stored axes that are not seen."""
        return tuple(k for k in range(len(self.sizes)) if k not in self.order)

    def pick(self, values: Sequence[Any]) -> list[Any]:
        """Return those values, of one for each stored axis, that belong to the axes that are seen, in their order."""
        return [values[k] for k in self.order]

    def match(self, values: Sequence[Any]) -> list[Any] | None:
        """Return the values of the axes that are seen, of one for each stored axis, or each of space (and time).

        None where there are others, so that nobody can say which is of which.
        """
        times = [k for k, name in enumerate(self.names) if KINDS.get(name) == "time"]
        for axes in (range(len(self.sizes)), sorted(self.order), sorted({*self.order, *times})):
            if len(axes) == len(values):
                of = dict(zip(axes, values, strict=True))
                return [of[k] for k in self.order]
        return None

    def read(self, array: Any, box: Sequence[slice] | None = None) -> Any:
        """Return the voxels of a box of what is seen, of all without one; the array is asked for nothing else."""
        part = array[self.locate(box)]
        if self.is_plain:
            return part
        kept = sorted(self.order)
        return part.transpose([kept.index(k) for k in self.order])

    def locate(self, box: Sequence[slice] | None = None) -> tuple[int | slice, ...]:
        """Return the index of the stored array at which a box lies; axes that are kept come in the stored order."""
        sides = dict(zip(self.order, box or (slice(None),) * len(self.order), strict=True))
        return tuple(sides[k] if at is None else at for k, at in enumerate(self.index))

    def cut_rows(self, lo: int, hi: int) -> tuple[slice, ...]:
        """Return the box of some rows of the first axis that is seen."""
        return (slice(lo, hi), *(slice(0, side) for side in self.shape[1:]))

    def holds(self, starts: Sequence[int], chunks: Sequence[int]) -> bool:
        """Return whether a stored chunk holds anything of what is seen."""
        return all(
            at is None or start <= at < start + size for at, start, size in zip(self.index, starts, chunks, strict=True)
        )

    def count_beside(self, chunks: Sequence[int]) -> int:
        """Return how many times more is decoded of a stored chunk than is seen of it."""
        return math.prod(int(chunks[k]) for k in self.beside)

    def describe(self) -> str:
        """Return how the axes are seen, in words; empty where the file says that they are as they are seen."""
        seen = " ".join(self.named) or "z y x"[-2 * len(self.order) + 1 :]
        taken = "".join(f", {self.names[k]}={self.index[k]}" for k in self.beside if self.sizes[k] > 1)
        if not self.named:
            return f"not in the file, taken for {seen}{taken}"
        if self.is_plain and not self.beside:
            return ""
        stored = ", ".join(f"{name} ({size})" for name, size in zip(self.names, self.sizes, strict=True))
        return f"{stored} in the file, read as {seen}{taken}"


def choose_view(
    name: str | Keyword, axes: Sequence[str | None] | None, shape: Sequence[int], chosen: Choice = ()
) -> View:
    """Return how an array is seen, by what its file calls the axes and what the caller chose.

    Parameters
    ----------
    name : str or Keyword
        What the caller calls the array, without what was chosen: for messages.
    axes : sequence of (str or None), optional
        A name for each axis, as the file spells it; empty or None for one without. One that ends in ``^`` is none of
        space, whatever its name. Where the file names no axes, or names of which it cannot be told which is which,
        those of space are the last three.
    shape : sequence of int
        Of the stored array.
    chosen : sequence of (str, int)
        Axes that are none of space, by their names or where they have none by their numbers, and an index for each.

    Returns
    -------
    View

    Raises
    ------
    InputError
        If an axis that is none of space is longer than 1 and nothing of it was chosen, if what was chosen is not there,
        or if there are not 2 or 3 axes of space.
    """
    sizes = tuple(int(size) for size in shape)
    said = _align(name, [axis or "" for axis in axes or ()], sizes)
    plain = [axis.strip().lower().rstrip("^") for axis in said]
    marked = [axis.endswith("^") for axis in said]
    space = ["" if mark else SPACE.get(axis, "") for axis, mark in zip(plain, marked, strict=True)]
    found = [axis for axis in space if axis]
    named = len(set(found)) == len(found) >= 2
    labels = tuple(axis if axis and plain.count(axis) == 1 else str(k) for k, axis in enumerate(plain))
    index = _place_chosen(name, labels, sizes, chosen, [k for k, axis in enumerate(space) if axis and named])
    if named:
        order = sorted((k for k, axis in enumerate(space) if axis), key=lambda k: "zyx".index(space[k]))
    else:
        order = [
            k
            for k, (axis, mark) in enumerate(zip(plain, marked, strict=True))
            if not (mark or axis in KINDS or k in index)
        ]
        while len(order) > 3 and sizes[order[0]] == 1:
            del order[0]
    more = [k for k in range(len(sizes)) if k not in order and k not in index and sizes[k] != 1]
    if not more and len(order) > 3:
        # Axes of length 1 among others may be the ones that are too many.
        more = sorted(sorted(order, key=lambda k: sizes[k] != 1)[: len(order) - 3])
    if more:
        raise _ask(name, labels, sizes, index, more, [KINDS.get(axis, "") for axis in plain])
    if len(order) < 2:
        left = _list_axes(labels, sizes) if index else ""
        raise InputError(name, f" has shape {sizes}{left}; (Z, Y, X) or (Y, X) is needed")
    taken = tuple(None if k in order else index.get(k, 0) for k in range(len(sizes)))
    return View(labels, sizes, taken, tuple(order), tuple(space[k] for k in order) if named else ())


def _align(name: str | Keyword, axes: list[str], sizes: Sequence[int]) -> list[str]:
    """Return a name for each axis; of fewer names than axes, those of the last ones, if the others have length 1."""
    if not axes or len(axes) == len(sizes):
        return axes or [""] * len(sizes)
    more = len(sizes) - len(axes)
    if more > 0 and all(size == 1 for size in sizes[:more]):
        return ["^"] * more + axes
    raise InputError(
        name, f" names {len(axes)} axes ({', '.join(axes)}), but has {len(sizes)}, shape {tuple(sizes)}; mend the file"
    )


def _place_chosen(
    name: str | Keyword, labels: Sequence[str], sizes: Sequence[int], chosen: Choice, space: Sequence[int]
) -> dict[int, int]:
    """Return the index along each axis of which one was chosen."""
    index: dict[int, int] = {}
    listed = _list_axes(labels, sizes)
    for axis, at in chosen:
        same = [k for k, label in enumerate(labels) if label == axis.lower()]
        # What one program calls c is a channel to another.
        kind = KINDS.get(axis.lower())
        same = same or [k for k, label in enumerate(labels) if kind and KINDS.get(label) == kind]
        k = same[0] if len(same) == 1 else None
        if k is None or k in index:
            raise InputError(name, f" has no axis {axis}{listed}; leave {axis}={at} out")
        if k in space:
            raise InputError(name, f": {axis} is an axis of space and read whole{listed}; leave {axis}={at} out")
        if at >= sizes[k]:
            raise InputError(name, f" has no {axis}={at}: {axis} is 0 to {sizes[k] - 1}{listed}")
        index[k] = at
    return index


def _list_axes(labels: Sequence[str], sizes: Sequence[int]) -> str:
    """Return the axes and their lengths, behind what a message says of them."""
    listed = ", ".join(f"{label} ({size})" for label, size in zip(labels, sizes, strict=True))
    numbers = ", which have no names" if all(label.isdecimal() for label in labels) else ""
    return f"; its axes are {listed}{numbers}"


def _ask(
    name: str | Keyword,
    labels: Sequence[str],
    sizes: Sequence[int],
    index: Mapping[int, int],
    more: Sequence[int],
    kinds: Sequence[str],
) -> InputError:
    """Return the error that asks for an index along the axes `more`."""
    if any(not sizes[k] for k in more):
        return InputError(name, f" has shape {tuple(sizes)}{_list_axes(labels, sizes)}: there is nothing in it")
    text = ",".join(f"{labels[k]}={index.get(k, 0)}" for k in sorted({*more, *index}))
    each = ", ".join(f"{labels[k]} from 0 to {sizes[k] - 1}" for k in more)
    if all(label.isdecimal() for label in labels):
        what = (
            f" has shape {tuple(sizes)} and no names for its axes, and (Z, Y, X) or (Y, X) is needed: choose a place "
        )
        what += "along each that is too many, by its number from 0 on"
    else:
        kinds = [f"{labels[k]} is {'a ' + kinds[k] + ' axis' if kinds[k] else 'none of space'}" for k in more]
        what = f" has shape {tuple(sizes)}{_list_axes(labels, sizes)}: {' and '.join(kinds)}, so that a place along it "
        what += "has to be chosen"
    if isinstance(name, Keyword):
        return InputError(
            name,
            f"{what}: pass the path or URL of a zarr array with :{text} behind it ({each}), or index it, as in dask",
        )
    return InputError(name, f"{what}: {name}:{text} ({each})")


def read_axes(
    attributes: Mapping[str, Any],
    ndim: int,
    dimensions: Sequence[str | None] | None = None,
    first: Sequence[str] | None = None,
) -> list[str | None] | None:
    """Return what a file calls the axes of an array; None where it does not say.

    Parameters
    ----------
    attributes : mapping
        Of the array, as writers of this field use them.
    ndim : int
        How many axes the array has.
    dimensions : sequence of (str or None), optional
        The names that the format itself has for dimensions.
    first : sequence of str, optional
        What counts more: the names in OME-NGFF metadata.

    Raises
    ------
    InputError
        If the file names the same axes in different orders.
    """
    found: dict[str, list[str | None]] = {"OME-NGFF": list(first or []), "dimensions": list(dimensions or [])}
    with contextlib.suppress(ValueError, KeyError, TypeError):
        found["axistags"] = [str(axis["key"]) for axis in read_axistags(attributes)]
    for key, said in (
        *((key, attributes.get(key)) for key in ("_ARRAY_DIMENSIONS", "axis_names", "axes")),
        ("transform", read_transform(attributes).get("axes")),
    ):
        found[key] = _mark_types(split_names(said), attributes.get("types"))
    useful = {key: names for key, names in found.items() if len(_known(names)) >= 2}
    for key, names in useful.items():
        of, other = next(iter(useful.items()))
        same = (
            _place_known(names) == _place_known(other) if len(names) == len(other) else _known(names) == _known(other)
        )
        if not same:
            raise InputError(
                f"the file contradicts itself: its axes are {_join(other)} by {of}, but "
                f"{_join(names)} by {key}; mend one of them"
            )
    # Names of as many axes as there are count more, and names that tell nothing only where they fit.
    fitting = [names for names in (*useful.values(), *found.values()) if len(names) == ndim and any(names)]
    return next(iter([*fitting, *useful.values()]), None)


def _place_known(names: Iterable[str | None]) -> list[str]:
    """Return of each name the axis of space that it means, else an empty one."""
    return [SPACE.get((name or "").strip().lower(), "") for name in names]


def _join(names: Iterable[str | None]) -> str:
    return ", ".join((name or "?").rstrip("^") for name in names)


def _known(names: Iterable[str | None]) -> list[str]:
    """Return the axes of space among names, in their order."""
    return [axis for axis in _place_known(names) if axis]


def split_names(said: Any) -> list[str | None]:
    """Return the names of axes in a list, of OME-NGFF's too, or in a text such as ``zyx`` or ``z,y,x``; else none."""
    if isinstance(said, bytes):
        said = said.decode(errors="replace")
    if isinstance(said, str):
        parts = said.replace(",", " ").replace(":", " ").split()
        return list(parts[0] if len(parts) == 1 and set(parts[0].lower()) <= set("zyxct") else parts)
    if not isinstance(said, (list, tuple, np.ndarray)):
        return []
    names: list[str | None] = []
    for one in said:
        if isinstance(one, Mapping):
            names.append(f"{one.get('name', '')}{'^' if one.get('type') in ('channel', 'time') else ''}")
        elif isinstance(one, (str, bytes)):
            names.append(one.decode(errors="replace") if isinstance(one, bytes) else str(one))
        else:
            return []
    return names


def _mark_types(names: list[str | None], types: Any) -> list[str | None]:
    """Return the names, with a mark on those whose types, as funlib writes them, say that they are none of space."""
    if not isinstance(types, (list, tuple, np.ndarray)) or len(types) != len(names):
        return names
    return [f"{name}^" if str(one) in ("channel", "time") else name for name, one in zip(names, types, strict=True)]


def read_transform(attributes: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the lists of CellMap's ``transform``, in the order of the array's axes."""
    said = attributes.get("transform")
    if not isinstance(said, Mapping):
        return {}
    step = -1 if str(said.get("ordering", "C")).upper() == "F" else 1
    return {key: list(value)[::step] for key, value in said.items() if isinstance(value, (list, tuple, np.ndarray))}


def read_axistags(attributes: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what vigra and ilastik say of each axis; empty where they say nothing."""
    tags = attributes.get("axistags")
    return list(json.loads(tags)["axes"]) if isinstance(tags, (str, bytes)) else []
