"""Connectivity-aware 3D label propagation for volume electron microscopy."""

from ._contacts import Contacts, contacts
from ._label import label
from ._merge import merge

__all__ = ["Contacts", "contacts", "label", "merge"]

__version__ = "0.1.0"
