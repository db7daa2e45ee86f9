"""A call of a verb: what its signature was given, as one object that memory, tiles and devices take."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

__all__ = ["Call", "Options", "Progress"]

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Options:
    """How a verb works; none of these changes the result. The verbs' docstrings describe them."""

    tile: int | Sequence[int] | None = None
    memory: str | int | None = None
    scratch: str | os.PathLike[str] | None = None
    storage: Mapping[str, Any] | None = None
    resume: bool | Literal["force"] = True
    overwrite: bool = False
    progress: Progress | None = None
    device: Literal["cuda"] | None = None


@dataclass(frozen=True)
class Call:
    """A call of a verb.

    Attributes
    ----------
    verb : str
    arrays : mapping of str to object
        Parameters that are, or hold, arrays; what else some of them may be (a mapping, a number, None) is not touched.
    keywords : mapping of str to object
        The other parameters that the result depends on.
    out : mapping of str to object
        ``{"out": out}``, empty for verbs without that parameter.
    options : Options
    """

    verb: str
    arrays: Mapping[str, Any]
    keywords: Mapping[str, Any]
    out: Mapping[str, Any] = field(default_factory=dict)
    options: Options = field(default_factory=Options)

    @property
    def place(self) -> Any:
        """Return where the result is to go; None if that was not said."""
        return self.out.get("out")

    def on(self, arrays: Mapping[str, Any], **out: Any) -> Call:
        """Return the same call of other arrays, and with another `out` where that is given."""
        return replace(self, arrays={**self.arrays, **arrays}, out={**self.out, **out})
