"""Connectivity-aware 3D label propagation for volume electron microscopy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._contacts import Contacts, contacts
    from ._conventions import Convention
    from ._evaluate import evaluate
    from ._evaluation import Evaluation
    from ._fuse import Conflicts, Fused, Provenance, fuse
    from ._label import label
    from ._merge import merge
    from ._propagate import propagate
    from ._stitch import stitch
    from .tiled.estimate import Estimate, estimate

__all__ = [
    "Conflicts",
    "Contacts",
    "Convention",
    "Estimate",
    "Evaluation",
    "Fused",
    "Provenance",
    "contacts",
    "estimate",
    "evaluate",
    "fuse",
    "label",
    "merge",
    "propagate",
    "stitch",
]

__version__ = "0.1.0"

# Verbs are loaded when first asked for: Numba takes longer to import than `lpa3d --help` may take to answer.
_HOMES = {
    "Conflicts": "_fuse",
    "Contacts": "_contacts",
    "Convention": "_conventions",
    "Estimate": "tiled.estimate",
    "Evaluation": "_evaluation",
    "Fused": "_fuse",
    "Provenance": "_fuse",
    "contacts": "_contacts",
    "estimate": "tiled.estimate",
    "evaluate": "_evaluate",
    "fuse": "_fuse",
    "label": "_label",
    "merge": "_merge",
    "propagate": "_propagate",
    "stitch": "_stitch",
}


_MODULES = ("errors", "io", "phantom", "plot")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'lpa3d' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
