"""Where the voxels of a result are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import zarr


def find_array(place: str | os.PathLike[str], level: int = 0) -> Path:
    """Return the folder of the array of a result, or of one of its levels."""
    path = Path(place)
    return path / str(level) if (path / str(level)).is_dir() else path


def open_result(place: Any, mode: str = "r", level: int = 0) -> Any:
    """Open the zarr array of a result, or one of its levels: a path, a ``file://`` URL, or a store."""
    if isinstance(place, str):
        place = place.removeprefix("file://")
    local = isinstance(place, os.PathLike) or (isinstance(place, str) and "://" not in place)
    return zarr.open_array(str(find_array(place, level)) if local else place, mode=mode)
