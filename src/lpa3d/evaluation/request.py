"""What is to be evaluated: the arguments of `evaluate`, checked."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._version import __version__
from ..arrays.backend import array_module, is_on_device
from ..arrays.checks import MAX_ID, canonical_connectivity, canonical_spacing, check_flag
from ..arrays.text import list_some
from ..errors import Example, InputError, InputTypeError, Keyword, Part
from .conventions import CONVENTIONS, Convention

__all__ = ["Request", "check_ignore", "check_mode", "check_request", "mark_value", "pair_classes"]

Array = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]
Scores = tuple[Ids, npt.NDArray[np.float64]]

PAIR = Keyword("classes", Example("(classes of reference, classes of prediction)"))


@dataclass(frozen=True, eq=False, slots=True)
class Request:
    """What is measured, and how, whatever the volumes.

    Attributes
    ----------
    mode, warping, style : str or None
        The arguments `instances`, `warping`, and the name of the convention.
    convention : Convention
    connectivity : int
    spacing : tuple of float
    names : Mapping or None
        Name of each class to evaluate.
    thresholds : tuple of float
    scores : tuple of ndarray, or None
        Sorted ids and the score of each.
    strata : tuple of float, or None
    surfaces : bool
    """

    mode: str | None
    warping: str | None
    style: str
    convention: Convention
    connectivity: int
    spacing: tuple[float, float, float]
    names: Mapping[Any, Any] | None
    thresholds: tuple[float, ...]
    scores: Scores | None
    strata: tuple[float, float] | None
    surfaces: bool

    def describe(self) -> dict[str, Any]:
        """Return the parameters (JSON) that an evaluation tells."""
        decisions = asdict(self.convention)
        return {
            "version": __version__,
            "instances": self.mode,
            "connectivity": self.connectivity,
            "iou_thresholds": list(self.thresholds),
            "convention": self.style,
            "decisions": {key: list(value) if isinstance(value, tuple) else value for key, value in decisions.items()},
            "spacing": list(self.spacing),
            "size_strata": None if self.strata is None else list(self.strata),
            "warping": self.warping,
        }


def check_request(
    ndim: int,
    *,
    instances: Any,
    spacing: Any,
    iou_thresholds: Any,
    classes: Any,
    class_names: Any,
    connectivity: Any,
    convention: Any,
    scores: Any,
    size_strata: Any,
    surfaces: Any,
    warping: Any,
) -> Request:
    """Check the arguments of `evaluate` that are no volumes, for volumes of `ndim` dimensions."""
    mode = check_mode(instances)
    topology = _check_choice(warping, "warping", ("2d", "3d", None))
    style, decisions = _check_convention(convention)
    if mode is None:
        _check_unused(scores=scores, size_strata=size_strata, surfaces=surfaces or None)
    return Request(
        mode,
        topology,
        style,
        decisions,
        canonical_connectivity(connectivity),
        canonical_spacing(spacing, ndim),
        _check_names(class_names, mode, classes),
        _check_thresholds(iou_thresholds),
        _check_scores(scores),
        _check_strata(decisions.size_strata if size_strata is None else size_strata),
        check_flag(surfaces, "surfaces"),
    )


def check_mode(instances: Any) -> str | None:
    """Return the argument `instances`."""
    mode: str | None = _check_choice(instances, "instances", ("ids", "components", None))
    return mode


def _check_choice(value: Any, name: str, choices: tuple[Any, ...]) -> Any:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        needed = f"{', '.join(map(repr, choices[:-1]))} or {choices[-1]!r}"
        raise InputError(Keyword(name), f" is {value!r}; {needed} is needed")
    return value


def _check_convention(convention: Any) -> tuple[str, Convention]:
    """Return the name of a convention ("custom" for one of the caller's making), and what it decides."""
    if isinstance(convention, Convention):
        return "custom", convention
    if not isinstance(convention, str) or convention not in CONVENTIONS:
        raise InputError(
            Keyword("convention"),
            f" is {convention!r}; one of {', '.join(map(repr, CONVENTIONS))} is needed, or a lpa3d.Convention",
        )
    return convention, CONVENTIONS[convention]


def check_ignore(ignore: Any, shape: tuple[int, ...]) -> int:
    """Return the value of `reference` whose voxels are ignored."""
    try:
        if isinstance(ignore, bool):
            raise TypeError
        return operator.index(ignore)
    except TypeError:
        raise InputTypeError(
            Keyword("ignore"),
            f" is {ignore!r}; an array of bool of the shape {shape} is needed, or one value of ",
            Keyword("reference"),
            ", e.g. ",
            Keyword("ignore", 255),
        ) from None


def mark_value(reference: Array, value: int) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Return a part of the reference, and where it has a value that is ignored."""
    xp, dtype = array_module(reference), reference.dtype
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    if not low <= value <= high:
        return reference, xp.zeros(reference.shape, np.bool_)
    mask = xp.ascontiguousarray(reference == dtype.type(value))
    if not 0 <= value <= MAX_ID:
        # Such as -1, or the 2**64 - 1 of CREMI, which are no ids.
        reference = xp.where(mask, dtype.type(0), reference)
    return reference, mask


def pair_classes(classes: Any, mode: str | None) -> tuple[Any, Any] | None:
    """Return the classes of the reference and those of the prediction."""
    if classes is None:
        return None
    if mode != "ids":
        raise InputError(
            Keyword("classes"),
            " are those of instance ids, but ",
            Keyword("instances", mode),
            "; leave it out, or pass ",
            Keyword("instances", "ids"),
        )
    need = "; a pair is needed: ", PAIR, ", each a class map or {id: class}"
    given = Keyword("classes")
    if isinstance(classes, (np.ndarray, Mapping, str)) or is_on_device(classes):
        raise InputTypeError(given, f" is a {type(classes).__qualname__}", *need)
    try:
        first, second = classes
    except (TypeError, ValueError):
        raise InputTypeError(given, " cannot be read as two", *need) from None
    if first is None or second is None:
        raise InputTypeError(given, " holds None", *need)
    return first, second


def _check_names(names: Any, mode: str | None, classes: Any) -> Mapping[Any, Any] | None:
    if names is None:
        return None
    given = Keyword("class_names")
    if not isinstance(names, Mapping) or not names:
        raise InputTypeError(
            given, f" is {names!r}; a mapping is needed, e.g. ", Keyword("class_names", {1: "mitochondria"})
        )
    if mode == "ids" and classes is None:
        raise InputError(given, " needs classes: pass ", PAIR)
    if len({str(name) for name in names.values()}) < len(names):
        raise InputError(given, f" gives one name to several classes: {list(names.values())}; names must differ")
    return names


def _check_unused(**arguments: Any) -> None:
    given = [name for name, value in arguments.items() if value is not None]
    if given:
        raise InputError(
            Keyword(given[0]),
            " is about instances, but ",
            Keyword("instances", None),
            "; pass ",
            Keyword("instances", "components"),
            " (or 'ids')",
        )


def _check_thresholds(thresholds: Any) -> tuple[float, ...]:
    need = f" is {thresholds!r}; numbers from 0 to 1 are needed, e.g. ", Keyword("iou_thresholds", (0.5, 0.75))
    given = Keyword("iou_thresholds")
    try:
        values = tuple(float(value) for value in np.atleast_1d(thresholds).tolist())
    except (TypeError, ValueError):
        raise InputTypeError(given, *need) from None
    if not values or not all(0 <= value <= 1 for value in values):
        raise InputError(given, *need)
    if len({f"{value:g}" for value in values}) < len(values):
        raise InputError(given, f" is {thresholds!r}; each may be given once")
    return values


def _check_scores(scores: Any) -> Scores | None:
    """Return sorted ids and the score of each."""
    if scores is None:
        return None
    given = Keyword("scores")
    try:
        pairs = scores.items() if isinstance(scores, Mapping) else scores
        # Ids may come as the whole numbers of a float array.
        rows = [(int(i) if float(i).is_integer() else operator.index(i), float(value)) for i, value in pairs]
    except (TypeError, ValueError):
        raise InputTypeError(
            given, " cannot be read; scores are {id of prediction: score}, or rows (id, score)"
        ) from None
    if not all(0 < i <= MAX_ID and math.isfinite(value) for i, value in rows):
        i, value = next(row for row in rows if not (0 < row[0] <= MAX_ID and math.isfinite(row[1])))
        raise InputError(given, f" has {value} for the id {i}; finite scores of ids from 1 to 2**63 - 1 are needed")
    rows.sort()
    ids = np.array([i for i, _ in rows], np.int64)
    twice = ids[1:][ids[1:] == ids[:-1]]
    if twice.size:
        raise InputError(
            given, f" has more than one score for {len(twice)} id(s): {list_some(twice)}; one each is needed"
        )
    return ids, np.array([value for _, value in rows], np.float64)


def _check_strata(strata: Any) -> tuple[float, float] | None:
    if strata is None:
        return None
    need: tuple[Part, ...] = (
        Keyword("size_strata"),
        f" is {strata!r}; two sizes in voxels are needed, the smaller one first, e.g. ",
        Keyword("size_strata", (5000, 15000)),
    )
    try:
        small, large = (float(value) for value in strata)
    except (TypeError, ValueError):
        raise InputTypeError(*need) from None
    if not 0 <= small <= large < math.inf:
        raise InputError(*need)
    return small, large
