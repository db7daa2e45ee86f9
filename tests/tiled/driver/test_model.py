"""A model check of the driver: whatever stops a run, and whatever happens meanwhile, there are two outcomes.

A call ends with the bytes that the same call gives in memory, or with an error that names what to do; and what it
advises works. `tests.tiled.driver.world` says what a crash point is.

- *Sweeps* stop one run at each of its crash points, once, and go on from there.
- *The machine* draws sequences of calls, crashes, full disks, second processes, late workers and changes of inputs.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("zarr")

from lpa3d.errors import Lpa3dError  # noqa: E402
from tests.tiled.driver.world import PLACES, VERBS, Changes, Crash, State, World, full, watch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass
class Tally:
    """What was tried, and what is wrong."""

    points: int = 0
    states: set[bytes] = field(default_factory=set)
    outcomes: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def note(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1


def digest(state: State) -> bytes:
    """Return what differs where states differ, but for the names that are drawn anew for each run."""

    def plain(text: str) -> bytes:
        return re.sub(r"[0-9a-f]{8,32}|\d{15,}", "*", text).encode()

    code = hashlib.sha256()
    for path, data in sorted(state.files.items()):
        code.update(plain(path) + b"\0" + (b"/" if data is None else data) + b"\0")
    for store in state.stores:
        for key, value in sorted(store.items()):
            code.update(plain(key) + b"\0" + (value if isinstance(value, bytes) else value.to_bytes()) + b"\0")
    return code.digest()


def attempt(world: World, variant: int = 0, **options: Any) -> Exception | None:
    """Make a call; return the error that it ended in."""
    try:
        world.call(variant, **options)
    except (Lpa3dError, OSError) as error:
        return error
    return None


def check_end(world: World, variant: int = 0, **options: Any) -> str:
    """Make a call that is to succeed, or to say that its result is there; return what is wrong, "" if nothing is."""
    error = attempt(world, variant, **options)
    if error is not None and not (isinstance(error, Lpa3dError) and "exists" in str(error)):
        return f"the same call ends in {type(error).__name__}: {error}"
    if not world.holds(world.inputs, variant):
        return f"wrong bytes{' are taken for the result' if error else ''}"
    if litter := world.litter():
        return f"{'after the refusal' if error else 'after the end'} there is still {litter[:3]}"
    if world.list_others() != world.others:
        return "other things of the store changed"
    return ""


def sweep_crashes(world: World, tally: Tally, stride: int, first: int, variant: int = 0, **options: Any) -> None:
    """Kill a run at every `stride`-th of its crash points from `first` on, and make the same call again."""
    begin = world.save()
    states: list[tuple[str, State]] = []

    def keep(number: int, what: str, of: str) -> None:
        if number % stride == first % stride:
            states.append((f"{number}: {what} {of.replace(str(world.folder), '')}", world.save()))

    with world.watched(keep):
        world.call(variant, **options)
    if wrong := check_end(world, variant):
        tally.faults.append(f"undisturbed: {wrong}")
    for where, state in states:
        tally.points += 1
        tally.states.add(digest(state))
        world.restore(state)
        try:
            world.read()
            wrong = check_end(world, variant, **options)
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            tally.faults.append(f"killed before {where}: {wrong}")
    world.restore(begin)


@pytest.fixture
def changes(tmp_path: Path) -> Iterator[Changes]:
    with watch(tmp_path) as found:
        yield found


assert (PLACES, VERBS, Crash, full, threading, os, warnings)
