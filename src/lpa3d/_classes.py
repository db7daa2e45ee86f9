"""The class of each instance: from a mapping, or from the class map that it lies on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ._checks import class_map, same_shape
from ._overlap import count_overlaps
from ._unite import list_some
from .errors import InputError

__all__ = ["check_classes", "group_ids"]

Ids = npt.NDArray[np.int64]


def check_classes(classes: Any, name: str, labels: npt.NDArray[Any], labels_name: str) -> Any:
    """Return None, a mapping, or a canonical class map in its own dtype."""
    if classes is None or isinstance(classes, Mapping):
        return classes
    canonical = class_map(classes, name)
    same_shape(classes, name, labels, labels_name)
    return canonical.view(classes.dtype.newbyteorder("="))


def group_ids(
    classes: Any, name: str, ids: Ids, labels: npt.NDArray[Any], labels_name: str
) -> tuple[npt.NDArray[np.int64], list[Any]]:
    """Return the class of each of `ids` as a position in a list of classes, and that list.

    Parameters
    ----------
    classes
        As `check_classes` returns it; with None all ids are of one nameless class.
    ids : (n,) int64
        Sorted ids of `labels`, without 0; not necessarily all.
    labels
        Canonical.

    Raises
    ------
    InputError
        If a mapping lacks an id, or an id lies on two classes of a class map; class 0 is none.
    """
    if classes is None:
        return np.zeros(len(ids), np.int64), []
    if not isinstance(classes, Mapping):
        return _find_classes(classes, name, ids, labels, labels_name)
    missing = np.array([i for i in ids.tolist() if i not in classes], np.int64)
    if missing.size:
        raise InputError(
            f"{name} has no entry for {len(missing)} id(s) of {labels_name}: {list_some(missing)}; add them, or pass a "
            f"class map of the same shape"
        )
    values = [classes[i] for i in ids.tolist()]
    positions = {value: k for k, value in enumerate(dict.fromkeys(values))}
    return np.array([positions[value] for value in values], np.int64), list(positions)


def _find_classes(
    classes: npt.NDArray[Any], name: str, ids: Ids, labels: npt.NDArray[Any], labels_name: str
) -> tuple[npt.NDArray[np.int64], list[Any]]:
    """Return what `group_ids` does, for a class map: an id has the one class of its voxels, 0 where they have none."""
    pairs = count_overlaps(labels, classes).pairs
    # `ids` may be some of those of `labels`.
    found = pairs[np.isin(pairs[:, 0], ids) & (pairs[:, 1] != 0)]
    values, positions = np.unique(found[:, 1], return_inverse=True)
    # Messages say what the caller wrote; the kernel saw the bits as numbers of another sign.
    bits = np.dtype(f"u{classes.dtype.itemsize}")
    names = [0, *values.astype(bits).view(classes.dtype).tolist()]
    several = np.flatnonzero(found[1:, 0] == found[:-1, 0])
    if several.size:
        k = several[0]
        spread = np.unique(found[several, 0])
        raise InputError(
            f"{len(spread)} id(s) of {labels_name} lie on more than one class: {list_some(spread)}; id {found[k, 0]} "
            f"is on {names[positions[k] + 1]} and {names[positions[k + 1] + 1]}. Split them, or pass "
            f"{name}={{id: class}}"
        )
    groups = np.zeros(len(ids), np.int64)
    groups[np.searchsorted(ids, found[:, 0])] = positions + 1
    return groups, names
