"""Unite ids over evidence, under must-link, cannot-link and class constraints: the core of `merge`.

Stages
------
1. The ends of every must-link are united; a cannot-link inside a component, or a must-link between classes, is an error
   that names the chain.
2. The other pairs are taken in the order (-evidence, id_a, id_b) and united where neither a cannot-link nor a class
   stands between the two components as they are then.
3. The smallest id of a component represents it.
"""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError, InputTypeError, Keyword, Part
from ..kernels.unite import find_smallest, unite_all, unite_allowed
from .checks import MAX_ID
from .pairs import flag_first, sort_pairs
from .text import list_some

__all__ = ["check_links", "check_pairs", "find_positions", "unite_ids", "unite_musts"]

Ids = npt.NDArray[np.int64]


def check_pairs(rows: Iterable[Any], name: str, *need: Part) -> Ids:
    """Return pairs of ids as a new ``(n, 2)`` int64 array in the given order, the smaller id of each first.

    Raises
    ------
    InputTypeError, InputError
        If `rows` holds anything but pairs of ids from 1 to 2**63 - 1; the message ends in `need`.
    """
    if isinstance(rows, np.ndarray):
        if rows.size and rows.dtype.kind not in "ui":
            raise InputTypeError(Keyword(name), f" has dtype {rows.dtype}, but ids are integers; ", *need)
        if rows.size and (rows.ndim != 2 or rows.shape[1] != 2):
            raise InputError(Keyword(name), f" has shape {rows.shape}; ", *need)
    else:
        try:
            # Element by element: NumPy would make floats of a uint64 beside an int64.
            rows = np.array([(operator.index(a), operator.index(b)) for a, b in rows], dtype=object)
        except (TypeError, ValueError):
            raise InputTypeError(Keyword(name), " cannot be read as pairs of integers; ", *need) from None
    if not rows.size:
        return np.empty((0, 2), np.int64)
    if int(rows.min()) < 1 or int(rows.max()) > MAX_ID:
        raise InputError(Keyword(name), f" holds ids from {rows.min()} to {rows.max()}; ids are from 1 to 2**63 - 1")
    return np.sort(rows.astype(np.int64), axis=1)


def check_links(links: Iterable[Any], name: str) -> Ids:
    """Return pairs of ids as a sorted ``(n, 2)`` int64 array, each pair once and its smaller id first.

    Raises
    ------
    InputTypeError, InputError
        If `links` holds anything but pairs of ids from 1 to 2**63 - 1.
    """
    pairs = check_pairs(links, name, "pairs of ids are needed, e.g. ", Keyword(name, [(3, 7), (7, 12)]))
    pairs = pairs[sort_pairs(pairs)]
    return pairs[flag_first(pairs)]


def find_positions(ids: Ids, wanted: Ids, name: str) -> npt.NDArray[np.int64]:
    """Return where each of `wanted` stands in the sorted `ids`; an id that is not there is an `InputError`."""
    places = np.searchsorted(ids, wanted)
    missing = places == len(ids)
    missing[~missing] = ids[places[~missing]] != wanted[~missing]
    if missing.any():
        absent = np.unique(wanted[missing])
        raise InputError(
            Keyword(name),
            f" names {len(absent)} id(s) that ",
            Keyword("labels"),
            f" does not hold: {list_some(absent)}; remove their pairs, or pass the labels that the pairs were made for",
        )
    return places


def unite_ids(
    ids: Ids,
    pairs: Ids,
    evidence: npt.NDArray[np.float64],
    groups: Ids,
    names: Sequence[Any],
    *,
    must_link: Ids,
    cannot_link: Ids,
) -> Ids:
    """Unite `ids` over `pairs` in the order (-evidence, id_a, id_b), under constraints.

    Parameters
    ----------
    ids : (n,) int64
        All ids, sorted, each once.
    pairs : (m, 2) int64
        Pairs that may be united, the smaller id first, sorted; every one of `ids`.
    evidence : (m,) float64
        Their evidence, finite.
    groups : (n,) int64
        Class of each of `ids`, as a position in `names`; different classes never join.
    names : sequence
        What messages call the classes.
    must_link, cannot_link : (k, 2) int64
        From `check_links`. The ends of the first are always in one component, those of the second never.

    Returns
    -------
    (n,) int64
        The representative of each of `ids`: the smallest id of its component.

    Raises
    ------
    InputError
        If constraints contradict each other or name ids that are not in `ids`.

    Notes
    -----
    Time is O(m log m) for the sort; each of the c cannot-links is looked at O(log c) times at most. Memory is 70 bytes
    per pair and 50 per id.
    """
    must = find_positions(ids, must_link, "must_link")
    apart = find_positions(ids, cannot_link, "cannot_link")
    parents = unite_musts(must, apart, groups, names, lambda position: str(ids[position]))
    # Pairs come sorted by id, so a stable sort leaves ties in that order.
    order = np.argsort(-evidence, kind="stable")
    unite_allowed(find_positions(ids, pairs, "pairs"), order, groups, apart, parents)
    roots = np.empty_like(parents)
    find_smallest(parents, roots)
    return ids[roots]


def unite_musts(
    must: Ids, apart: Ids, groups: npt.NDArray[np.int64], names: Sequence[Any], show: Callable[[int], str]
) -> npt.NDArray[np.int64]:
    """Unite the ends of every must-link and return the union-find's parents.

    Parameters
    ----------
    must, apart : (m, 2) int64
        Positions ``0..n-1`` that must, and that must not, be in one component.
    groups : (n,) int64
        Positions of different groups never join; `names` names the groups.
    show
        What a message calls a position.

    Raises
    ------
    InputError
        If constraints contradict each other.
    """
    split = np.flatnonzero(groups[must[:, 0]] != groups[must[:, 1]])
    if split.size:
        a, b = must[split[0]].tolist()
        raise InputError(
            Keyword("must_link"),
            f" joins {show(a)} (class {names[groups[a]]}) and {show(b)} (class {names[groups[b]]}), but different "
            f"classes never join; {split.size} pair(s) do so: remove them or correct ",
            Keyword("classes"),
        )
    parents = np.arange(len(groups))
    unite_all(must, parents)
    roots = np.empty_like(parents)
    find_smallest(parents, roots)
    broken = np.flatnonzero(roots[apart[:, 0]] == roots[apart[:, 1]])
    if broken.size:
        a, b = apart[broken[0]].tolist()
        chain = " - ".join(map(show, _find_chain(must, a, b)))
        must_link, cannot_link = Keyword("must_link"), Keyword("cannot_link")
        if a == b:
            raise InputError(cannot_link, f" keeps {show(a)} apart from itself; remove the pair ({show(a)}, {show(a)})")
        raise InputError(
            cannot_link,
            f" keeps {show(a)} and {show(b)} apart, but ",
            must_link,
            f" joins them: {chain}; {broken.size} pair(s) of ",
            cannot_link,
            " contradict ",
            must_link,
            ": remove one side",
        )
    return parents


def _find_chain(links: Ids, start: int, end: int) -> list[int]:
    """Return a shortest path of `links` from `start` to `end`, which are connected."""
    neighbors: dict[int, list[int]] = {}
    for a, b in links.tolist():
        neighbors.setdefault(a, []).append(b)
        neighbors.setdefault(b, []).append(a)
    came_from = {start: start}
    queue = deque([start])
    while end not in came_from:
        here = queue.popleft()
        for there in neighbors[here]:
            if there not in came_from:
                came_from[there] = here
                queue.append(there)
    chain = [end]
    while chain[-1] != start:
        chain.append(came_from[chain[-1]])
    return chain[::-1]
