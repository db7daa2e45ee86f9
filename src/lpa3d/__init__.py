"""Connectivity-aware 3D label propagation for volume electron microscopy."""

from ._contacts import Contacts, contacts
from ._label import label
from ._merge import merge
from ._propagate import propagate

__all__ = ["Contacts", "contacts", "label", "merge", "propagate"]

__version__ = "0.1.0"
