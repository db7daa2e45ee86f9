"""Which touching labels are united.

Stages
------
1. *Count* the contacts and surfaces of all labels (`linking.contacts`), and list the classes that each lies on.
2. *Evidence*: the caller's scores, or area over the smaller surface; pairs at or above `min_contact` are kept.
3. *Unite* them in a fixed order under the constraints (`arrays.unite`).
4. *Relabel* the volume (parallel over slabs).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays.checks import canonical_connectivity
from ..arrays.classes import group_ids
from ..arrays.pairs import flag_first, sort_pairs
from ..arrays.unite import check_links, check_pairs, find_positions, unite_ids
from ..errors import InputError, InputTypeError, Keyword
from .contacts import Contacts, Counts, check_spacing, tabulate

__all__ = ["Rules", "check_rules", "decide"]

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Rules:
    """What decides which labels are united, whatever the labels.

    Attributes
    ----------
    connectivity : int
    spacing : tuple of float
    scores : tuple of ndarray, or None
        Sorted pairs ``(n, 2)`` and the score of each; None takes the shares of the surface.
    threshold : float or None
        Least evidence; None where `must_link` alone unites.
    must_link, cannot_link : (n, 2) int64
        As `check_links` returns them.
    """

    connectivity: int
    spacing: tuple[float, float, float]
    scores: tuple[Ids, Floats] | None
    threshold: float | None
    must_link: Ids
    cannot_link: Ids


def check_rules(
    ndim: int,
    *,
    scores: Any,
    spacing: Any,
    connectivity: Any,
    min_contact: Any,
    must_link: Iterable[Any],
    cannot_link: Iterable[Any],
) -> Rules:
    """Check the arguments of `merge` that are no volumes, for labels of `ndim` dimensions."""
    steps = canonical_connectivity(connectivity)
    sizes = check_spacing(spacing, ndim)
    scored = None if scores is None else _check_scores(scores)
    threshold = None if min_contact is None else _check_threshold(min_contact, scored is not None)
    if threshold is None and scored is not None:
        raise InputError(
            Keyword("scores"),
            " are not used with ",
            Keyword("min_contact", None),
            ", by which pairs that must be linked are united alone; leave one of the two out",
        )
    must, apart = check_links(must_link, "must_link"), check_links(cannot_link, "cannot_link")
    return Rules(steps, sizes, scored, threshold, must, apart)


def decide(rules: Rules, counts: Counts, ids: Ids, classes: Any) -> tuple[Ids, Ids]:
    """Return the ids that change, ascending, and the new one of each.

    `ids` are all ids of the labels that `counts` is of, ascending; `classes` is what `group_ids` takes.
    """
    groups, names = group_ids(classes, "classes", ids, "labels")
    if rules.threshold is None:
        pairs, evidence = np.empty((0, 2), np.int64), np.empty(0)
    elif rules.scores is None:
        table = tabulate(counts, rules.spacing)
        pairs, evidence = np.stack([table.id_a, table.id_b], axis=1), table.share
    else:
        pairs, evidence = rules.scores
        find_positions(ids, pairs, "scores")
    strong = evidence >= (rules.threshold or 0.0)
    links = {"must_link": rules.must_link, "cannot_link": rules.cannot_link}
    merged = unite_ids(ids, pairs[strong], evidence[strong], groups, names, **links)
    changed = merged != ids
    return ids[changed], merged[changed]


def _check_threshold(min_contact: Any, scored: bool) -> float:
    """Return the least evidence that unites a pair."""
    parts, example = (Keyword("min_contact"), f" is {min_contact!r}; "), Keyword("min_contact", 0.5)
    try:
        if isinstance(min_contact, (bool, np.bool_, str, bytes)):
            raise TypeError
        value = float(min_contact)
    except (TypeError, ValueError):
        raise InputTypeError(*parts, "a number is needed, e.g. ", example) from None
    if scored and math.isfinite(value):
        return value
    if not scored and 0 <= value <= 1:
        return value
    need = "a finite number is needed" if scored else "a share of the surface, 0 to 1, is needed"
    raise InputError(*parts, f"{need}, e.g. ", example)


def _check_scores(scores: Any) -> tuple[Ids, Floats]:
    """Return the scored pairs, sorted and each once, and their scores."""
    need = "scores are {(3, 7): 0.9}, rows (id_a, id_b, score), or (table of contacts, one score per row)"
    given = Keyword("scores")
    rows: Any
    values: Any
    if isinstance(scores, tuple) and len(scores) == 2 and isinstance(scores[0], Contacts):
        rows, values = np.stack([scores[0].id_a, scores[0].id_b], axis=1), scores[1]
    elif isinstance(scores, Mapping):
        rows, values = scores.keys(), list(scores.values())
    elif isinstance(scores, np.ndarray):
        rows, values = _split_columns(scores, need)
    else:
        try:
            columns = [(a, b, score) for a, b, score in scores]
        except (TypeError, ValueError):
            raise InputTypeError(given, f" cannot be read; {need}") from None
        rows, values = [row[:2] for row in columns], [row[2] for row in columns]
    pairs = check_pairs(rows, "scores", need)
    try:
        values = np.asarray(values, np.float64)
    except (TypeError, ValueError):
        raise InputTypeError(given, f" holds a score that is no number; {need}") from None
    if values.shape != (len(pairs),):
        raise InputError(given, f" has scores of shape {values.shape} for {len(pairs)} pairs; {need}")
    bad = np.flatnonzero(~np.isfinite(values) | (pairs[:, 0] == pairs[:, 1]))
    if bad.size:
        a, b = pairs[bad[0]].tolist()
        raise InputError(
            given, f" has {values[bad[0]]} for the pair ({a}, {b}); finite scores of two different ids are needed"
        )
    order = sort_pairs(pairs)
    pairs, values = pairs[order], values[order]
    first = flag_first(pairs)
    differ = np.flatnonzero(~first[1:] & (values[1:] != values[:-1]))
    if differ.size:
        k = differ[0]
        raise InputError(
            given,
            f" has {values[k]} and {values[k + 1]} for the pair {tuple(pairs[k].tolist())}, whose order does not "
            "matter; one score per pair is needed",
        )
    return pairs[first], values[first]


def _split_columns(scores: npt.NDArray[Any], need: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the ids and the scores of an ``(n, 3)`` array."""
    if scores.dtype.kind not in "uif":
        raise InputTypeError(Keyword("scores"), f" has dtype {scores.dtype}; {need}")
    if scores.ndim != 2 or scores.shape[1] != 3:
        raise InputError(Keyword("scores"), f" has shape {scores.shape}; {need}")
    ids = scores[:, :2]
    if scores.dtype.kind == "f":
        exact = 2 ** (np.finfo(scores.dtype).nmant + 1)
        if not ((ids == np.rint(ids)) & (np.abs(ids) <= exact)).all():
            raise InputError(
                Keyword("scores"),
                f" holds ids that {scores.dtype} cannot hold exactly (whole numbers up to {exact}); pass a mapping "
                "{(id_a, id_b): score} or a list of rows",
            )
        ids = ids.astype(np.int64)
    return ids, scores[:, 2]
