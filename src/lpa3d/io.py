"""Reading and writing volumes: files told apart by their suffix, folders of images, and URLs of zarr arrays.

Arrays are ``(Z, Y, X)`` in memory whatever the file's own order is. Each file library is imported when a file of its
kind is opened, never before. What a file says of its voxel size travels with it as a `Geometry`. docs/files.md says
for each format where axes, voxel size and place come from, and what is refused.

==============================  ============================================================================"""

from __future__ import annotations

from .errors import LibraryError
from .files.geometry import Geometry
from .files.places import FileError
from .files.readers import open_volume, read
from .files.volume import Volume
from .files.writers import Target, plan, write

__all__ = ["FileError", "Geometry", "LibraryError", "Target", "Volume", "open_volume", "plan", "read", "write"]
