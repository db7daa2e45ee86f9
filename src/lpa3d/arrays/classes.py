"""The class of each instance: from a mapping, or from the class map that it lies on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, Keyword
from .checks import class_map, same_shape
from .overlap import count_overlaps
from .pairs import flag_first
from .text import list_some

__all__ = ["ClassPairs", "check_classes", "find_classes", "group_ids", "list_pairs"]

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class ClassPairs:
    """Which labels lie on which classes of a class map; those of parts of a volume are united to those of all.

    Attributes
    ----------
    pairs : (n, 2) int64
        Label above 0, and class that is not 0 as the int64 that its bits make in a kernel; sorted, each once.
    dtype : dtype
        The class map's.
    """

    pairs: Ids
    dtype: np.dtype[Any]


def check_classes(classes: Any, name: str, labels: npt.NDArray[Any], labels_name: str) -> Any:
    """Return None, a mapping, or a canonical class map in its own dtype."""
    if classes is None or isinstance(classes, Mapping):
        return classes
    canonical = class_map(classes, name)
    same_shape(classes, name, labels, labels_name)
    return canonical.view(classes.dtype.newbyteorder("="))


def find_classes(classes: Any, labels: npt.NDArray[Any]) -> Any:
    """Return what `group_ids` takes, given what `check_classes` returns and the canonical labels."""
    if classes is None or isinstance(classes, Mapping):
        return classes
    return ClassPairs(list_pairs(labels, classes), classes.dtype)


def list_pairs(labels: npt.NDArray[Any], classes: npt.NDArray[Any]) -> Ids:
    """Return the pairs of a canonical label and a canonical class that share voxels, as in `ClassPairs`."""
    pairs = count_overlaps(labels, classes).pairs
    found: Ids = pairs[(pairs != 0).all(axis=1)]
    return found


def group_ids(classes: Any, name: str, ids: Ids, labels_name: str) -> tuple[npt.NDArray[np.int64], list[Any]]:
    """Return the class of each of `ids` as a position in a list of classes, and that list.

    Parameters
    ----------
    classes : None, Mapping or ClassPairs
        With None all ids are of one nameless class.
    ids : (n,) int64
        Sorted ids, without 0; not necessarily all.

    Raises
    ------
    InputError
        If a mapping lacks an id, or an id lies on two classes of a class map; class 0 is none.
    """
    if classes is None:
        return np.zeros(len(ids), np.int64), []
    if isinstance(classes, ClassPairs):
        return _name_classes(classes, name, ids, labels_name)
    missing = np.array([i for i in ids.tolist() if i not in classes], np.int64)
    if missing.size:
        raise InputError(
            Keyword(name),
            f" has no entry for {len(missing)} id(s) of ",
            Keyword(labels_name),
            f": {list_some(missing)}; add them, or pass a class map of the same shape",
        )
    values = [classes[i] for i in ids.tolist()]
    positions = {value: k for k, value in enumerate(dict.fromkeys(values))}
    return np.array([positions[value] for value in values], np.int64), list(positions)


def _name_classes(
    classes: ClassPairs, name: str, ids: Ids, labels_name: str
) -> tuple[npt.NDArray[np.int64], list[Any]]:
    """Return what `group_ids` does, for a class map: an id has the one class of its voxels, 0 where they have none."""
    found = classes.pairs[np.isin(classes.pairs[:, 0], ids)]
    values, positions = np.unique(found[:, 1], return_inverse=True)
    # Messages say what the caller wrote; the kernel saw the bits as numbers of another sign.
    bits = np.dtype(f"u{classes.dtype.itemsize}")
    names = [0, *values.astype(bits).view(classes.dtype).tolist()]
    several = np.flatnonzero(~flag_first(found[:, 0]))
    if several.size:
        k = several[0] - 1
        spread = np.unique(found[several, 0])
        raise InputError(
            f"{len(spread)} id(s) of ",
            Keyword(labels_name),
            f" lie on more than one class: {list_some(spread)}; id {found[k, 0]} is on {names[positions[k] + 1]} and "
            f"{names[positions[k + 1] + 1]}. Split them, or give each one class in ",
            Keyword(name),
        )
    groups = np.zeros(len(ids), np.int64)
    groups[np.searchsorted(ids, found[:, 0])] = positions + 1
    return groups, names
