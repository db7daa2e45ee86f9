"""The errors and warnings that lpa3d raises by intention.

Each error also inherits the built-in one that a caller would expect, so that ``except ValueError`` keeps working.

A message is made of parts: text, and the parameters that it names as `Keyword`. In Python a keyword reads as it is
typed there (``unseeded='label'``); the command line words it as its own option (`Worded.word`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "DeviceError",
    "Example",
    "InputError",
    "InputTypeError",
    "Keyword",
    "LibraryError",
    "Lpa3dError",
    "Lpa3dWarning",
    "Part",
    "RangeError",
]

NOTHING: Any = type("Nothing", (), {"__repr__": lambda self: "NOTHING", "__reduce__": lambda self: "NOTHING"})()
"""The value of a keyword that is named without one."""


class Example(str):
    """A value that stands for what the caller puts there, shown as it is: the FOLDER of ``scratch=FOLDER``."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Keyword:
    """A parameter in a message, with the value to give it where the message says that.

    Parameters
    ----------
    name : str
        As the verb's signature has it.
    value : optional
        Shown as Python writes it.
    """

    name: str
    value: Any = NOTHING

    def __str__(self) -> str:
        return self.name if self.value is NOTHING else f"{self.name}={self.value!r}"


Part = str | Keyword
"""Of a message."""


class Worded:
    """A message of parts; base of the package's errors and warnings.

    Parameters
    ----------
    *parts : str or Keyword
        Put together in this order.
    """

    args: tuple[Any, ...]

    def __str__(self) -> str:
        return "".join(map(str, self.args))

    @property
    def parameter(self) -> str | None:
        """Return the name of the parameter that the message is about, the first that it names; or None."""
        return next((part.name for part in self.args if isinstance(part, Keyword)), None)

    def word(self, keyword: Callable[[Keyword], str]) -> str:
        """Return the message, with each parameter as `keyword` words it."""
        return "".join(keyword(part) if isinstance(part, Keyword) else str(part) for part in self.args)


class Lpa3dError(Worded, Exception):
    """Base of every error that lpa3d raises by intention."""


class InputError(Lpa3dError, ValueError):
    """An argument has a value that cannot be used; the message says what is needed."""


class InputTypeError(Lpa3dError, TypeError):
    """An argument has a type or dtype that cannot be used; the message says what is needed."""


class DeviceError(Lpa3dError, RuntimeError):
    """No CUDA device can be used; the message says what is missing."""


class LibraryError(Lpa3dError, ImportError):
    """An optional library is not installed; the message says how to install it."""


class RangeError(Lpa3dError, OverflowError):
    """The work left the range of the integers that it is defined on."""


class Lpa3dWarning(Worded, UserWarning):
    """The call went through, but something in the input was dropped or left unlabelled."""
