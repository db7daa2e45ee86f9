"""How messages name parameters on the command line: as the option or the argument that the user typed, or can type.

Options and arguments are stored under the names of the verbs' parameters, so that the parser of a command knows almost
all of them; the exceptions stand here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import NOTHING, Keyword

__all__ = ["Word", "word_options"]

Word = Callable[[Keyword], str]

OTHERS = {
    "resume=False": "--no-resume",
    "resume='force'": "--force-resume",
    "return_confidence": "--confidence",
    "storage['layout']": "--layout",
    "storage['levels']": "--levels",
}
"""Parameters, as Python has them, that are options of other names."""


def word_options(parser: argparse.ArgumentParser, *, keys: bool = False) -> Word:
    """Return what words the parameters of messages for the user of a command.

    Parameters
    ----------
    parser : ArgumentParser
        The command's.
    keys : bool
        Whether the user gives parameters as keys of a file. Then what is no option of the command reads as in Python;
        else it is an option of another command.
    """
    actions = {action.dest: action for action in parser._actions}

    def word(keyword: Keyword) -> str:
        name, _, index = keyword.name.rstrip("]").partition("[")
        action = actions.get(name)
        if action is None and keys:
            return str(keyword)
        if str(keyword) in OTHERS:
            return OTHERS[str(keyword)]
        if index and action is not None and isinstance(action.metavar, tuple):
            return action.metavar[int(index)]
        if action is not None and not action.option_strings:
            return str(action.metavar)
        option = action.option_strings[-1] if action is not None else f"--{name.replace('_', '-')}"
        flag = keyword.value is NOTHING or (action is not None and action.nargs == 0)
        return option if flag else f"{option} {_show(keyword.value)}"

    return word


def _show(value: Any) -> str:
    """Return a value as it is typed behind an option."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_show(one)}" for key, one in value.items())
    if isinstance(value, tuple | list | range):
        return " ".join(map(_show, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
