"""Connectivity-aware 3D label propagation for volume electron microscopy."""

__version__ = "0.1.0"
