"""Unfinished runs: found in folders, described and deleted, without going on with them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InputError
from ...files.outputs import remove
from ...files.places import zarr_kind
from .grid import Grid
from .journal import Journal
from .locks import lock
from .outputs import list_aside, name_group
from .run import BUILT, FORMAT, RUN, WHOLE, read_run, remove_empty, sweep
from .scratch import Folder, ScratchError
from .stored import canonical_shape

__all__ = ["Found", "delete_run", "describe_run", "find_runs"]

SUFFIX = ".lpa3d"


@dataclass(frozen=True)
class Found:
    """An unfinished run.

    Attributes
    ----------
    home : Path
        Its folder.
    damage : str
        Why nothing else is known of it, "" if it is.
    about : dict
        What `run.json` says: the verb, its inputs, parameters (`shown`), places of outputs and tile; empty if damaged.
    stages : list of str
        Those that are done.
    stage : str
        The one in which tiles are done, "" if there is none.
    tiles, total : int
        How many tiles of it are done, and how many there are.
    whole : bool
        Whether all is done but to put the outputs into their places.
    size : int
        Bytes on the disk.
    started, worked : float
        When it was begun, and when it last wrote something.
    busy : bool or None
        Whether a process is at work on it; None if that cannot be seen.
    """

    home: Path
    damage: str
    about: dict[str, Any]
    stages: list[str]
    stage: str
    tiles: int
    total: int
    whole: bool
    size: int
    started: float
    worked: float
    busy: bool | None


def find_runs(folder: Path) -> Iterator[Path]:
    """Yield the folders of unfinished runs in `folder` and below, which may be one itself; links are not followed."""
    for path, folders, files in os.walk(folder):
        if _is_run(Path(path)):
            yield Path(path)
            folders.clear()
        elif ("zarr.json" in files or ".zarray" in files) and zarr_kind(Path(path)).startswith("array"):
            folders.clear()  # there may be millions of chunks
        folders.sort()


def _is_run(home: Path) -> bool:
    return home.name.endswith(SUFFIX) and (home / RUN).is_file()


def describe_run(home: Path) -> Found:
    """Return what can be known of an unfinished run; it is left as it is.

    Raises
    ------
    FileNotFoundError
        If it ended meanwhile.
    """
    started, damage = (home / RUN).stat().st_mtime, ""
    about: dict[str, Any] | None = {}
    stages: list[str] = []
    begun, tiles, total = "", 0, 0
    try:
        about = _read(home)
        if about is None:
            raise FileNotFoundError(home / RUN)
        journal = Journal(Folder(home / about["id"]))
        stages, others = journal.list_stages()
        first = next(iter(about["inputs"].values()))
        z, y, x = about["tile"]
        total = len(Grid(canonical_shape(first["shape"]), (z, y, x)))
        if others:
            begun = others[-1]
            done = np.zeros(total, np.bool_)
            for rows in journal.rows(begun, 2):
                done[rows[(rows[:, 0] >= 0) & (rows[:, 0] < total), 0]] = True
            tiles = int(np.count_nonzero(done))
    except (InputError, ScratchError) as error:
        damage = str(error)
    # Before it is seen whether anybody is at work there, which touches the lock.
    sizes, times = [0], [started]
    for place in [home, *_list_beside(home, about or {})]:
        for path, _, files in os.walk(place):
            for name in files:
                try:
                    stat = os.stat(os.path.join(path, name), follow_symlinks=False)
                except FileNotFoundError:
                    continue  # it is at work
                sizes.append(stat.st_size)
                times.append(stat.st_mtime if name != "lock" else 0.0)
    return Found(
        home, damage, about or {}, [one for one in stages if one not in (BUILT, WHOLE)], begun, tiles, total,
        WHOLE in stages, sum(sizes), started, max(times), _is_busy(home),
    )  # fmt: skip


def _read(home: Path) -> dict[str, Any] | None:
    """Return what `run.json` says, None if it is not there any more."""
    about = read_run(Folder(home), home)
    if about is not None and about["format"] != FORMAT:
        raise InputError(f"it was begun by lpa3d {about['version']}, which kept it in another form")
    return about


def _list_beside(home: Path, about: dict[str, Any]) -> list[Path]:
    """Return what a run builds outside its folder, on the disks of its outputs."""
    built = [Path(place) for place in about.get("built", {}).values() if place is not None]
    return [place for place in built if Path(os.path.realpath(home)) not in place.parents]


def _is_busy(home: Path) -> bool | None:
    try:
        with lock(home):
            return False
    except InputError:
        return True
    except OSError:
        return None
    finally:
        remove_empty(home)


def delete_run(home: Path) -> None:
    """Delete an unfinished run, and the unfinished outputs that it built.

    Raises
    ------
    InputError
        If there is none, if a process is at work on it, if it is damaged, or if it was killed while it put its outputs
        into their places.
    """
    if not _is_run(home):
        raise InputError(f"{home} is no unfinished run: it is no folder OUT{SUFFIX} that holds {RUN}")
    with lock(home):
        about = _read(home)
        if about is None:
            raise InputError(f"{home} is no unfinished run any more: it ended just now")
        built = [Path(place) for place in about["built"].values() if place is not None]
        whole = Journal(Folder(home / about["id"])).finished(WHOLE)
        if any(os.path.lexists(aside) for _, aside in list_aside(about)) or (
            whole and not all(map(os.path.lexists, built))
        ):
            raise InputError(
                f"{home} was killed while it put its outputs into their places, some of which are there already: make "
                "the same call again, which does the rest"
            )
        for place in built:
            remove(place)
            remove(name_group(place))
        sweep(Folder(home), home, about)
    remove_empty(home)
