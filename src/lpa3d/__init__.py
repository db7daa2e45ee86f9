"""Connectivity-aware 3D label propagation for volume electron microscopy."""

from ._label import label

__all__ = ["label"]

__version__ = "0.1.0"
