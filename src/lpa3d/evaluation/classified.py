"""Tables of overlaps whose ids have classes: counted from ids, from classes, or from the components of classes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.backend import is_on_device
from ..arrays.classes import find_classes, group_ids
from ..arrays.components import WIDE, Components, Slab, find_components
from ..arrays.overlap import Overlaps, add_overlaps, count_overlaps, count_rows
from ..arrays.text import list_some
from ..arrays.threads import run_all
from ..errors import InputError, Keyword
from ..kernels.overlap import VOID

__all__ = [
    "Classified",
    "Sides",
    "classify_classes",
    "classify_components",
    "classify_ids",
    "count_classes",
    "count_components",
    "count_ids",
    "write_components",
]

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sides:
    """The two volumes that are compared, canonical and ``(Z, Y, X)``.

    Attributes
    ----------
    reference, prediction : ndarray of uint8, int16, ..., uint64
        Ids or classes, none negative.
    ignore : ndarray of bool, or None
        True where voxels are left out.
    """

    reference: Array
    prediction: Array
    ignore: npt.NDArray[np.bool_] | None


@dataclass(frozen=True)
class Classified:
    """A table of overlaps, and the classes of the ids in it.

    Attributes
    ----------
    overlaps : Overlaps
    classes : list
        What the caller calls class number 0, 1, ...; empty where ids have no classes.
    reference, prediction : (n,) int64
        Class number of both ids in each row of `overlaps`; -1 for background and void.
    """

    overlaps: Overlaps
    classes: list[Any]
    reference: Ints
    prediction: Ints

    @cached_property
    def _by_class(self) -> tuple[Ints, Ints]:
        """The rows that have a class on either side, class by class, and where each class starts."""
        differ = np.flatnonzero(self.prediction != self.reference)
        numbers = np.concatenate([self.reference, self.prediction[differ]])
        rows = np.concatenate([np.arange(len(self.reference)), differ])
        order = np.lexsort((rows, numbers))
        return rows[order], np.searchsorted(numbers[order], np.arange(len(self.classes) + 1))

    @cached_property
    def _counted(self) -> int:
        """Voxels that are not void."""
        return int(self.overlaps.voxels[self.overlaps.pairs[:, 0] != VOID].sum())

    def find_rows(self, number: int) -> Ints:
        """Return the rows that have a class on either side; none for a number that no class has."""
        if not 0 <= number < len(self.classes):
            return np.empty(0, np.int64)
        rows, starts = self._by_class
        return rows[starts[number] : starts[number + 1]]

    def holds(self, number: int) -> bool:
        """Return whether a class has a voxel on either side that is not void."""
        return bool((self.overlaps.pairs[self.find_rows(number), 0] != VOID).any())

    def select(self, number: int) -> Overlaps:
        """Return the table of one class, in which all others are background (whose box is left empty)."""
        table = self.overlaps
        rows = self.find_rows(number)
        pairs, voxels = table.pairs[rows], table.voxels[rows]
        elsewhere = self._counted - int(voxels[pairs[:, 0] != VOID].sum())
        pairs[(self.reference[rows] != number) & (pairs[:, 0] != VOID), 0] = 0
        pairs[self.prediction[rows] != number, 1] = 0
        parts = [Overlaps(pairs, voxels, table.boxes[rows])]
        if elsewhere:
            parts.append(Overlaps(np.zeros((1, 2), np.int64), np.array([elsewhere]), np.zeros((1, 2, 3), np.int32)))
        return add_overlaps(parts)

    def separate(self, numbers: Iterable[int]) -> Overlaps:
        """Return the table of some classes, in which ids of different ones lie on background instead of each other."""
        pairs, voxels, boxes = self.overlaps.pairs.copy(), self.overlaps.voxels, self.overlaps.boxes
        chosen = list(numbers)
        pairs[~np.isin(self.reference, chosen) & (pairs[:, 0] != VOID), 0] = 0
        pairs[~np.isin(self.prediction, chosen), 1] = 0
        apart = (pairs > 0).all(axis=1) & (self.reference != self.prediction)
        others = pairs[apart]
        others[:, 0] = 0
        pairs[apart, 1] = 0
        return add_overlaps([Overlaps(pairs, voxels, boxes), Overlaps(others, voxels[apart], boxes[apart])])


def _classify(overlaps: Overlaps, sides: list[tuple[Ints, list[Any]]]) -> Classified:
    """Return the table with its classes, given for both sides those of its sorted ids above 0."""
    classes = list(dict.fromkeys(names[number] for of, names in sides for number in np.unique(of).tolist()))
    if all(isinstance(name, int) for name in classes):
        classes.sort()
    numbers = {name: number for number, name in enumerate(classes)}
    columns = []
    for ids, (of, names) in zip(overlaps.pairs.T, sides, strict=True):
        column = np.full(len(ids), -1)
        inside = ids > 0
        places = np.unique(ids[inside], return_inverse=True)[1]
        column[inside] = np.array([numbers.get(name, -1) for name in names], np.int64)[of][places]
        columns.append(column)
    return Classified(overlaps, classes, *columns)


def count_ids(sides: Sides, classes: tuple[Any, Any] | None) -> Classified:
    """Count instance ids; `classes` holds for both sides what `arrays.classes.check_classes` returns.

    Raises
    ------
    InputError
        If an id has no class, or two.
    """
    overlaps = count_overlaps(sides.reference, sides.prediction, sides.ignore)
    if classes is not None:
        classes = find_classes(classes[0], sides.reference), find_classes(classes[1], sides.prediction)
    return classify_ids(overlaps, classes)


def classify_ids(overlaps: Overlaps, classes: tuple[Any, Any] | None) -> Classified:
    """Classify the table of instance ids; `classes` holds for both sides what `arrays.classes.group_ids` takes.

    Raises
    ------
    InputError
        If an id has no class, or two.
    """
    if classes is None:
        none = np.full(len(overlaps.pairs), -1)
        return Classified(overlaps, [], none, none)
    found = []
    for which, name in enumerate(("reference", "prediction")):
        ids = np.unique(overlaps.pairs[:, which])
        ids = ids[ids > 0]
        source = f"classes[{which}]"
        of, names = group_ids(classes[which], source, ids, name)
        nowhere = ids[[names[number] == 0 for number in of.tolist()]]
        if nowhere.size:
            raise InputError(
                f"{len(nowhere)} id(s) of ",
                Keyword(name),
                " have class 0 in ",
                Keyword(source),
                f": {list_some(nowhere)}; give them a class, or set them to 0",
            )
        found.append((of, names))
    return _classify(overlaps, found)


def count_classes(sides: Sides) -> Classified:
    """Count classes: no instances."""
    return classify_classes(count_overlaps(sides.reference, sides.prediction, sides.ignore))


def classify_classes(overlaps: Overlaps) -> Classified:
    """Classify the table of classes."""
    values = [np.unique(ids[ids > 0]) for ids in overlaps.pairs.T]
    return _classify(overlaps, [(np.arange(len(ids)), ids.tolist()) for ids in values])


def count_components(sides: Sides, connectivity: int) -> tuple[Classified, tuple[Components, Components]]:
    """Count the components of classes; ids are their numbers in raster order, as `label` gives them.

    A slab's numbers are written only while it is counted, so no volume of them is held, but for arrays on a device.
    """
    volumes = sides.reference, sides.prediction
    components = tuple(find_components(_bits(volume), connectivity) for volume in volumes)
    flat = [volume.reshape(-1) for volume in volumes]
    mask = None if sides.ignore is None else sides.ignore.reshape(-1)
    shape = sides.reference.shape
    of = [np.zeros(one.count + 1, np.int64) for one in components]

    if is_on_device(sides.reference):
        for one, values, classes in zip(components, volumes, of, strict=True):
            number, value = count_overlaps(one.numbers, values).pairs.T
            classes[number] = value
        overlaps = count_overlaps(components[0].numbers, components[1].numbers, sides.ignore)
        return classify_components(overlaps, (of[0], of[1])), (components[0], components[1])

    def count(pair: tuple[Slab, Slab]) -> Overlaps:
        # Volumes of one shape are cut into the same slabs, whole rows each.
        _, height, width = components[0].shape
        at = slice(pair[0].z_lo * height * width, pair[0].z_hi * height * width)
        first = at.start // shape[2]
        numbers = []
        for one, slab, values, classes in zip(components, pair, flat, of, strict=True):
            part = np.empty((slab.z_hi - slab.z_lo, height, width), one.numbers.dtype)
            one.write_slab(slab, part, clear=True)
            numbers.append(part.reshape(-1))
            number, value = count_rows(numbers[-1], values[at], None, shape, first).pairs.T
            classes[number] = value
        return count_rows(numbers[0], numbers[1], None if mask is None else mask[at], shape, first)

    overlaps = add_overlaps(run_all(count, zip(*(one.slabs for one in components), strict=True)))
    return classify_components(overlaps, (of[0], of[1])), (components[0], components[1])


def classify_components(overlaps: Overlaps, classes: tuple[Ints, Ints]) -> Classified:
    """Classify the table of components; `classes` holds for both sides the class of each number, from 0 on."""
    found = []
    for ids, of in zip(overlaps.pairs.T, classes, strict=True):
        names, places = np.unique(of[np.unique(ids[ids > 0])], return_inverse=True)
        found.append((places, names.tolist()))
    return _classify(overlaps, found)


def _bits(volume: Array) -> Array:
    return volume.view(np.dtype(f"u{volume.dtype.itemsize}"))


def write_components(components: Components, shape: tuple[int, ...]) -> Array:
    """Return the numbers of the components as a volume, 4 bytes per voxel (8 from 2**32 voxels on)."""
    labels = np.zeros(shape, np.uint32 if components.count < WIDE else np.uint64)
    components.write_labels(labels, clear=False)
    return labels
