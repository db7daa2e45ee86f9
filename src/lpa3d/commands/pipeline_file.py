"""The file that says what ``lpa3d pipeline`` does: its sections and keys, and the checks of what they hold.

Everything that can be seen without a volume is checked here: unknown names, types and ranges of values, and steps that
lack what they work on.
"""

from __future__ import annotations

import argparse
import math
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError
from ..evaluation.conventions import CONVENTIONS
from .evaluate import parse_limit, read_class_names
from .fuse import ROLES, SOURCES, check_priority, read_classes
from .inputs import parse_axis, parse_slice_axis, parse_slices, read_table, suggest
from .stitch import read_links

__all__ = ["OUTPUTS", "STEPS", "SUFFIXES", "Config", "read_config"]

Parse = Callable[[Any], Any]
"""Turns what TOML gives into what a verb takes; anything else makes it raise one of `MISTAKES`."""

MISTAKES = (ValueError, TypeError, KeyError, AttributeError, argparse.ArgumentTypeError)


class Key(NamedTuple):
    """One key of a section: what makes a value of it, and what is needed, for the message where that fails."""

    parse: Parse
    need: str


class File(str):
    """The value of a key that names a file."""


@dataclass(frozen=True)
class Config:
    """What is to be done.

    Attributes
    ----------
    name : str
        The file.
    inputs, outputs : dict of str to str
        Files by their keys, seen from the working directory.
    spacing : tuple of float or None
        Voxel size, where the user gives it.
    steps : dict of str to dict
        Keywords of each step that runs, in their order.
    tables : tuple of Path
        This file and the tables that it names, which were read already.
    """

    name: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    spacing: tuple[float, ...] | None
    steps: dict[str, dict[str, Any]]
    tables: tuple[Path, ...]


# -------------------------------------------------------------------------------------------------------------- values


def _file(value: Any) -> File:
    if not isinstance(value, str) or not value:
        raise ValueError
    return File(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _whole(least: int, most: float = math.inf) -> Parse:
    def parse(value: Any) -> int:
        if not _is_whole(value) or not least <= value <= most:
            raise ValueError
        return int(value)

    return parse


def _is_number(value: Any) -> bool:
    return (_is_whole(value) or isinstance(value, float)) and math.isfinite(value)


def _number(least: float, most: float = math.inf) -> Parse:
    def parse(value: Any) -> float:
        if not _is_number(value) or not least <= value <= most:
            raise ValueError
        return value  # type: ignore[no-any-return]

    return parse


def _number_or_none(value: Any) -> float | None:
    return None if value == "none" else _number(-math.inf)(value)


def _numbers(count: int) -> Parse:
    def parse(value: Any) -> tuple[float, ...]:
        if not isinstance(value, list) or len(value) != count or not all(map(_is_number, value)):
            raise ValueError
        return tuple(value)

    return parse


def _spacing(value: Any) -> tuple[float, ...]:
    sizes = _numbers(3)(value)
    if min(sizes) <= 0:
        raise ValueError
    return tuple(map(float, sizes))


def _thresholds(value: Any) -> list[float]:
    thresholds = value if isinstance(value, list) else [value]
    if not thresholds or len(set(thresholds)) < len(thresholds):
        raise ValueError
    return [_number(0, 1)(one) for one in thresholds]


def _strata(value: Any) -> tuple[float, ...]:
    small, large = _numbers(2)(value)
    if not 0 <= small <= large:
        raise ValueError
    return small, large


def _choice(*choices: Any) -> Parse:
    def parse(value: Any) -> Any:
        # Not only equal: 6.0 is no whole number to a verb.
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise ValueError
        return value

    return parse


def _axis(parse: Callable[[str], Any]) -> Parse:
    """Return what takes text, as `parse` does, and whole numbers. TOML has no null, so that "none" is text, too."""
    return lambda value: parse(str(_whole(0)(value)) if not isinstance(value, str) else value)


def _slices(value: Any) -> tuple[int, ...]:
    if isinstance(value, str):
        return parse_slices(value)
    if not isinstance(value, list):
        raise ValueError
    return tuple(sorted({_whole(0)(z) for z in value}))


def _texts(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError
    return value


def _pairs(value: Any) -> Any:
    """Parse ``[[3, 7]]``, or the name of a file."""
    if isinstance(value, str):
        return _file(value)
    return [(_whole(1)(a), _whole(1)(b)) for a, b in value]


def _sections(value: Any) -> Any:
    """Parse ``[[[3, 17], [4, 9]]]``: pairs of sections, each a slice and an id; or the name of a file."""
    if isinstance(value, str):
        return _file(value)
    return [((_whole(0)(a), _whole(1)(i)), (_whole(0)(b), _whole(1)(j))) for (a, i), (b, j) in value]


def _classes(value: Any) -> Any:
    """Parse ``{7 = 1}``, whose keys are text in TOML, or the name of a file."""
    if isinstance(value, str):
        return _file(value)
    return {int(key): _whole(-math.inf)(one) for key, one in value.items()}  # type: ignore[arg-type]


def _names(value: Any) -> Any:
    """Parse ``{1 = "mitochondria"}``, or the name of a file."""
    if isinstance(value, str):
        return _file(value)
    names = {int(key): str(_file(name)) for key, name in value.items()}
    if not names or len(set(names.values())) < len(names):
        raise ValueError
    return names


def _mark(value: Any) -> Any:
    return value if _is_whole(value) else _file(value)


def _limits(value: Any) -> list[Any]:
    return [parse_limit(text) for text in _texts(value)]


# ------------------------------------------------------------------------------------------------------------ sections

_FILE = Key(_file, "the name of a file")
_FLAG = Key(_flag, "true or false")
_CONNECTIVITY = Key(_choice(6, 18, 26, 1, 2, 3), "6, 18 or 26")
_AXIS = Key(_axis(parse_axis), '"z", "y" or "x" (or 0, 1, 2)')
_SLICES = Key(_slices, 'a list of slices such as [17, 203], or text such as "17,203-205",')
_LINKS = Key(_pairs, "a list of pairs of ids such as [[3, 7]], or a CSV file with columns id_a,id_b,")
_SECTIONS = Key(
    _sections,
    "a list of pairs of sections, each [slice, id], such as [[[3, 17], [4, 9]]], or a CSV file with columns "
    "slice_a,id_a,slice_b,id_b,",
)
_CLASSES = Key(_classes, "a table of ids and their classes such as {7 = 1}, or a CSV file with columns id,class,")
_LIMITS = Key(_limits, 'a list of limits such as ["pq=0.8"]')

INPUTS = {
    **dict.fromkeys(("classes", "instances", "slices", "reference", "reference_classes", "cost"), _FILE),
    "spacing": Key(_spacing, "three sizes z, y, x, all above 0, such as [40, 8, 8],"),
}

STEPS: dict[str, dict[str, Key]] = {
    "stitch": {
        "classes": _FLAG,
        "axis": _AXIS,
        "max_gap": Key(_whole(1), "a whole number of slices, at least 1,"),
        "branching": _FLAG,
        "bad_slices": _SLICES,
        "must_link": _SECTIONS,
        "cannot_link": _SECTIONS,
    },
    "fuse": {
        "priority": Key(_texts, f"a list such as {list(SOURCES)}"),
        "complete_slices": _SLICES,
        "axis": _AXIS,
        "instance_classes": _CLASSES,
        "slice_classes": _CLASSES,
    },
    "propagate": {
        "connectivity": _CONNECTIVITY,
        "max_distance": Key(_number(0), "a length, at least 0, in the unit of the spacing"),
        "sweeps": Key(_whole(0, 10_000), "a whole number from 0 to 10000"),
        "slice_axis": Key(_axis(parse_slice_axis), '"auto", "none", "z", "y" or "x" (or 0, 1, 2)'),
        "missing_slices": _SLICES,
        "unseeded": Key(_choice("drop", "label"), '"drop" or "label"'),
        "seed_conflicts": Key(_choice("raise", "majority"), '"raise" or "majority"'),
    },
    "merge": {
        "classes": _FLAG,
        "connectivity": _CONNECTIVITY,
        "min_contact": Key(_number_or_none, 'a number, or "none",'),
        "scores": Key(_file, "a CSV file with columns id_a,id_b,score"),
        "must_link": _LINKS,
        "cannot_link": _LINKS,
    },
    "evaluate": {
        "connectivity": _CONNECTIVITY,
        "iou_thresholds": Key(_thresholds, "one or several numbers from 0 to 1, each once,"),
        "convention": Key(_choice(*CONVENTIONS), f"one of {', '.join(CONVENTIONS)}"),
        "class_names": Key(
            _names, 'a table of classes and their names such as {1 = "ER"}, or a CSV file with columns class,name,'
        ),
        "ignore": Key(_mark, "a value of the reference, or the name of a file,"),
        "size_strata": Key(_strata, "two sizes in voxels, the smaller one first, such as [5000, 15000],"),
        "surfaces": _FLAG,
        "warping": Key(_choice("2d", "3d"), '"2d" or "3d"'),
        "per_class": _FLAG,
        "show_errors": Key(_whole(0), "a whole number, at least 0,"),
        "fail_under": _LIMITS,
        "fail_over": _LIMITS,
    },
}
"""Sections that switch steps on, in the order of the work."""

OUTPUTS = {
    "stitched": "stitch",
    "volume": "fuse",
    "seeds": "fuse",
    "provenance": "fuse",
    "conflicts": "fuse",
    "confidence": "propagate",
    "errors": "evaluate",
    "pairs": "evaluate",
    "labels": "",
    "report": "",
}
"""Keys of files that are written, and the step that makes each; the last two are of no step."""

SUFFIXES = {"conflicts": (".csv", ".txt"), "errors": (".csv", ".txt"), "pairs": (".csv", ".txt"), "report": (".json",)}
"""Of outputs that are text."""

SECTIONS: dict[str, Mapping[str, Key]] = {"inputs": INPUTS, **STEPS, "outputs": dict.fromkeys(OUTPUTS, _FILE)}


# ------------------------------------------------------------------------------------------------------------- reading


def read_config(name: str) -> Config:
    """Read a configuration and check all that can be checked without a volume.

    Raises
    ------
    InputError
        For the first thing that cannot be used; the message names the file, the section and the key.
    """
    try:
        with open(name, "rb") as file:
            # Some editors begin a file with a mark, which is no TOML.
            given = tomllib.loads(file.read().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no TOML file: it is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{name} is no TOML file: {error}") from error
    sections = {section: _check_section(name, section, values) for section, values in given.items()}
    for keys in sections.values():
        for key, value in keys.items():
            if isinstance(value, File):
                keys[key] = File(os.path.join(os.path.dirname(name), value))
    inputs = sections.pop("inputs", {})
    outputs = sections.pop("outputs", {})
    spacing = inputs.pop("spacing", None)
    steps = {step: sections[step] for step in STEPS if step in sections}
    if isinstance(steps.get("evaluate", {}).get("ignore"), File):
        inputs["ignore"] = steps["evaluate"].pop("ignore")
    try:
        _check_steps(steps, inputs, outputs)
        tables = list(_read_tables(steps))
    except InputError as error:
        raise InputError(f"{name}: ", *error.args) from error
    return Config(name, inputs, outputs, spacing, steps, (Path(name), *tables))


def _check_section(name: str, section: str, values: Any) -> dict[str, Any]:
    """Return the values of a section as verbs take them."""
    if section not in SECTIONS:
        what = f"a section [{section}]" if isinstance(values, dict) else f"{section} outside of all sections"
        homes = [home for home, keys in SECTIONS.items() if section in keys]
        place = f"; it belongs below [{homes[0]}]" if len(homes) == 1 and not isinstance(values, dict) else ""
        raise InputError(f"{name} has {what}, which is not known; {_hint(section, SECTIONS)}{place}")
    if not isinstance(values, dict):
        raise InputError(f"{name}: {section} is a value, but a section is needed: [{section}]")
    keys = SECTIONS[section]
    found = {}
    for key, value in values.items():
        if key not in keys:
            raise InputError(f"{name}: [{section}] has a key {key}, which is not known; {_explain(section, key)}")
        try:
            found[key] = keys[key].parse(value)
        except MISTAKES as error:
            raise InputError(f"{name}: [{section}] {key} is {value!r}; {keys[key].need} is needed") from error
    return found


def _explain(section: str, key: str) -> str:
    """Return what a user may have meant with a key that is not known."""
    if suggest(key, SECTIONS[section]):
        return suggest(key, SECTIONS[section])
    homes = [f"[{home}]" for home, keys in SECTIONS.items() if key in keys]
    return f"it belongs below {' or '.join(homes)}" if homes else _hint(key, SECTIONS[section])


def _hint(word: str, known: Iterable[str]) -> str:
    return suggest(word, known) or f"there are {', '.join(known)}"


def _check_steps(steps: Mapping[str, Any], inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Refuse steps that lack what they work on, and files that no step takes or makes."""
    if not steps:
        raise InputError(f"no step is switched on; add a section: {', '.join(f'[{step}]' for step in STEPS)}")
    needs = {"stitch": ("slices", "ids slice by slice"), "evaluate": ("reference", "what is right")}
    for step, (key, what) in needs.items():
        if step in steps and key not in inputs:
            raise InputError(f"[{step}] needs [inputs] {key}, {what}")
    labels = [key for key in ("instances", "slices") if key in inputs]
    if "fuse" in steps:
        if not any(key in inputs for key in ROLES):
            raise InputError(f"[fuse] needs at least one of [inputs] {', '.join(ROLES)}")
    elif len(labels) == 2:
        raise InputError("[inputs] has instances and slices, which [fuse] unites; add that section, or leave one out")
    elif not labels:
        raise InputError("there are no labels to start from; give [inputs] slices or instances")
    elif "propagate" in steps and "classes" not in inputs:
        raise InputError("[propagate] needs a class map: give [inputs] classes, or add [fuse]")
    takers = {
        "classes": ("stitch", "fuse", "propagate", "merge"),
        "reference": ("evaluate",),
        "reference_classes": ("evaluate",),
        "cost": ("propagate",),
    }
    for key, users in takers.items():
        needed = key == "classes" and "reference_classes" in inputs
        if key in inputs and not needed and not any(step in steps for step in users):
            raise InputError(f"[inputs] {key} is for [{users[0]}], which is not there; add it, or leave {key} out")
    if "reference_classes" in inputs and "classes" not in inputs and "fuse" not in steps:
        raise InputError("[inputs] reference_classes needs classes of the result too: give classes, or add [fuse]")
    for key in outputs:
        step = OUTPUTS[key]
        if step and step not in steps:
            raise InputError(f"[outputs] {key} is made by [{step}], which is not there; add it, or leave {key} out")
        if key in SUFFIXES and Path(outputs[key]).suffix.lower() not in SUFFIXES[key]:
            raise InputError(
                f"[outputs] {key} is {outputs[key]!r}; it is text, whose name must end in {' or '.join(SUFFIXES[key])}"
            )
    if not outputs and "evaluate" not in steps:
        raise InputError("nothing of the result would be kept; add [outputs] labels")
    _check_keywords(steps, inputs, outputs)


def _check_keywords(steps: Mapping[str, Any], inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
    """Refuse keywords that do not go together."""
    fuse, merge = steps.get("fuse", {}), steps.get("merge", {})
    if "priority" in fuse:
        fuse["priority"] = check_priority(fuse["priority"], [key for key in ROLES if key in inputs], "[fuse] ")
    if fuse.get("complete_slices") and not {"instances", "slices"} & set(inputs):
        raise InputError(
            "[fuse] complete_slices is about labels, but there are none; give [inputs] instances or slices"
        )
    for key in ("instance", "slice"):
        if f"{key}_classes" in fuse and f"{key}s" not in inputs:
            raise InputError(f"[fuse] {key}_classes is about [inputs] {key}s, which is not there")
    if "scores" not in merge and not 0 <= (merge.get("min_contact") or 0) <= 1:
        raise InputError(
            f"[merge] min_contact is {merge['min_contact']!r}; a share of the surface from 0 to 1 is needed where "
            f"there are no scores"
        )
    if "confidence" in outputs and steps["propagate"].get("sweeps") == 0:
        raise InputError(
            "[outputs] confidence comes from diffusion, but [propagate] sweeps is 0; leave one of them out"
        )
    for step in ("stitch", "merge"):
        known = "classes" in inputs or (step == "merge" and "fuse" in steps)
        if steps.get(step, {}).get("classes") and not known:
            raise InputError(f"[{step}] classes is true, but there is no class map: give [inputs] classes")
    for key in ("class_names", "per_class"):
        if steps.get("evaluate", {}).get(key) and "reference_classes" not in inputs:
            raise InputError(f"[evaluate] {key} needs [inputs] reference_classes")


def _read_sections(key: str) -> Callable[[str], Any]:
    return lambda name: read_links([name], key)


def _read_pairs(name: str) -> Any:
    return read_table(name, {"id_a": int, "id_b": int}, "two ids are needed, such as 3,7")


def _read_scores(name: str) -> Any:
    columns = {"id_a": int, "id_b": int, "score": float}
    return read_table(name, columns, "two ids and a score are needed, such as 3,7,0.9")


TABLES: dict[tuple[str, str], Callable[[str], Any]] = {
    ("stitch", "must_link"): _read_sections("must_link"),
    ("stitch", "cannot_link"): _read_sections("cannot_link"),
    ("fuse", "instance_classes"): lambda name: read_classes([name], "instance_classes"),
    ("fuse", "slice_classes"): lambda name: read_classes([name], "slice_classes"),
    ("merge", "must_link"): _read_pairs,
    ("merge", "cannot_link"): _read_pairs,
    ("merge", "scores"): _read_scores,
    ("evaluate", "class_names"): lambda name: read_class_names([name]),
}
"""Keywords that may be the name of a CSV file, and what reads it."""


def _read_tables(steps: dict[str, dict[str, Any]]) -> Iterator[Path]:
    """Put the contents of CSV files into the place of their names, which are yielded."""
    for step, keywords in steps.items():
        for key, value in keywords.items():
            if isinstance(value, File):
                keywords[key] = TABLES[step, key](value)
                yield Path(value)
