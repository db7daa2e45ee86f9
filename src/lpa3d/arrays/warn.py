"""Warnings that point at the caller's own line, however deep in the package they arise."""

from __future__ import annotations

import sys
import warnings

from ..errors import Lpa3dWarning, Part

__all__ = ["warn"]


def warn(*parts: Part) -> None:
    """Warn with the line that called into the package."""
    level = 1
    frame = sys._getframe(0)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "lpa3d":
        frame = frame.f_back
        level += 1
    warnings.warn(Lpa3dWarning(*parts), stacklevel=level)
