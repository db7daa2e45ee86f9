"""Connectivity-aware 3D label propagation for volume electron microscopy."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .evaluation.conventions import Convention
    from .evaluation.result import Evaluation
    from .linking.contacts import Contacts
    from .linking.fused import Conflicts, Fused, Provenance
    from .verbs.contacts import contacts
    from .verbs.estimate import Estimate, estimate
    from .verbs.evaluate import evaluate
    from .verbs.fuse import fuse
    from .verbs.label import label
    from .verbs.merge import merge
    from .verbs.propagate import propagate
    from .verbs.stitch import stitch

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

from ._version import __version__ as __version__

# Verbs are loaded when first asked for: Numba takes longer to import than `lpa3d --help` may take to answer.
_HOMES = {
    "Conflicts": "linking.fused",
    "Contacts": "linking.contacts",
    "Convention": "evaluation.conventions",
    "Estimate": "verbs.estimate",
    "Evaluation": "evaluation.result",
    "Fused": "linking.fused",
    "Provenance": "linking.fused",
    "contacts": "verbs.contacts",
    "estimate": "verbs.estimate",
    "evaluate": "verbs.evaluate",
    "fuse": "verbs.fuse",
    "label": "verbs.label",
    "merge": "verbs.merge",
    "propagate": "verbs.propagate",
    "stitch": "verbs.stitch",
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
    return sorted([*__all__, *_MODULES, "__version__"])
