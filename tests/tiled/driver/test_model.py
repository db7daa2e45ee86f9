"""A model check of the driver: whatever stops a run, and whatever happens meanwhile, there are two outcomes.

A call ends with the bytes that the same call gives in memory, or with an error that names what to do; and what it
advises works. `tests.tiled.driver.world` says what a crash point is.

- *Sweeps* stop one run at each of its crash points, once, and go on from there.
- *The machine* draws sequences of calls, crashes, full disks, second processes, late workers and changes of inputs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

pytest.importorskip("zarr")

from zarr.core.sync import sync

from lpa3d.errors import Lpa3dError
from lpa3d.tiled.driver import run
from tests.tiled.driver.world import PLACES, VERBS, Changes, Crash, Hook, State, World, die, full, once, watch

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
    if error is not None and world.litter() and options.get("resume") is False:
        # It would not delete the result that it made itself, which the same call without that takes as its own.
        error = attempt(world, variant)
    if litter := world.litter():
        return f"{'after the refusal' if error else 'after the end'} there is still {litter[:3]}"
    if world.list_others() != world.others:
        return "other things of the store changed"
    return ""


def sweep_crashes(world: World, tally: Tally, numbers: set[int], variant: int = 0, **options: Any) -> None:
    """Kill a run at some of its changes, and make the same call again."""
    begin = world.save()
    states: list[tuple[str, State]] = []

    def keep(number: int, what: str, of: str) -> None:
        if number in numbers:
            states.append((f"{number}: {what} {of.replace(str(world.folder), '')}", world.save()))

    with world.watched(keep):
        world.call(variant, **options)
    if not world.holds(world.inputs, variant):
        tally.faults.append("undisturbed it is wrong")
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


def clear(world: World) -> None:
    """Delete all results, as a message advises of those in stores."""
    for out in world.outs:
        if isinstance(out, Path):
            shutil.rmtree(out, ignore_errors=True)
            continue
        for key in [key for key in sync(list_keys(out)) if not key.startswith("mine/")]:
            sync(out.delete(key))


async def list_keys(store: Any) -> list[str]:
    return [key async for key in store.list()]


def follow(world: World, variant: int = 0, **options: Any) -> str:
    """Make a call, and what the errors in which it ends advise, until it succeeds; return what is wrong."""
    said: list[str] = []
    for _ in range(4):
        error = attempt(world, variant, **options)
        if error is None:
            return "" if world.holds(world.inputs, variant) else f"wrong bytes, after {said}"
        said.append(f"{type(error).__name__}: {error}")
        text = str(error) if isinstance(error, Lpa3dError) else ""
        if "delete it first" in text:
            clear(world)
        elif "overwrite=True" in text and "overwrite" not in options:
            options["overwrite"] = True
        elif "resume=False" in text and "resume" not in options:
            options["resume"] = False
        else:
            break
    return f"no way out: {said}"


def sweep(world: World, tally: Tally, numbers: Iterable[int], what: Callable[[int], str]) -> None:
    """Try something at each of some changes of a run, each time from the state that is there now."""
    begin = world.save()
    version = world.inputs
    for number in numbers:
        tally.points += 1
        try:
            wrong = what(number)
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            tally.faults.append(f"at {number}: {wrong}")
        tally.states.add(digest(world.save()))
        if world.inputs != version:
            world.write_inputs(version)
        world.restore(begin)


def fill_disk(world: World, number: int, count: int, **options: Any) -> str:
    """Let the disk be full from a change on, then make room."""
    with world.watched(full(number, count)):
        error = attempt(world, **options)
    if error is not None and not isinstance(error, Lpa3dError) and getattr(error, "errno", 0) != errno.ENOSPC:
        return f"raw {type(error).__name__}: {error}"
    return check_end(world, **options)


def lose_workers(world: World, number: int, times: int) -> str:
    """Let a worker die at a change of its task, and the ones that try that again."""
    with world.watched(die(world.changes, number, times)):
        error = attempt(world)
    if error is not None and not (isinstance(error, Lpa3dError) and "run the same call again" in str(error)):
        return f"{type(error).__name__}: {error}"
    return check_end(world)


def do_meanwhile(action: Callable[[], None]) -> None:
    """Do something in a thread of its own, as another process does, and wait for it."""
    thread = threading.Thread(target=action)
    thread.start()
    thread.join(120)
    assert not thread.is_alive(), "the other waits for ever"


def meet(world: World, number: int, variant: int = 0, **options: Any) -> str:
    """Make a second call while the first is about to make a change."""
    errors: list[Exception | None] = []

    def second() -> None:
        try:
            errors.append(attempt(world, variant, **options))
        except Exception as error:
            errors.append(AssertionError(f"raw {type(error).__name__}: {error}"))

    with world.watched(once(number, lambda: do_meanwhile(second))):
        try:
            errors.append(attempt(world))
        except Exception as error:
            errors.append(AssertionError(f"raw {type(error).__name__}: {error}"))
    for error in errors:
        if error is not None and not isinstance(error, Lpa3dError):
            return f"{type(error).__name__}: {error}"
    if not (world.holds(world.inputs, 0) or world.holds(world.inputs, variant)):
        if None in errors:
            return f"a call ended without an error and with wrong bytes; {errors}"
        return follow(world, variant)
    return "" if None in errors else f"both calls failed: {errors}"


def change_inputs(world: World, number: int, replace: bool) -> str:
    """Change the inputs of a run that was killed, then make the same call again."""
    done = not world.crash(number)
    world.write_inputs(1, replace=replace)
    error = attempt(world)
    if error is None:
        return "" if world.holds(1, 0) else "inputs that changed are not seen"
    if "exists" in str(error):
        return "" if world.holds(0, 0) else "a result is neither that of the former inputs nor that of the new ones"
    assert not done
    return follow(world)


def come_late(world: World, number: int, **options: Any) -> str:
    """Let the tasks of a run that was killed write when a newer one is over."""
    with world.noted() as tasks:
        world.crash(number)
    if wrong := follow(world, 1, **options):
        return wrong
    for task in tasks:
        with contextlib.suppress(Exception):
            task()
    return "" if world.holds(world.inputs, 1) else f"a late one of {len(tasks)} tasks changed the result of a newer run"


def start_anew(world: World, number: int) -> str:
    """Forget a run that was killed while it replaced a result, for another one."""
    world.crash(number, overwrite=True)
    error = attempt(world, 1, resume=False, overwrite=True)
    if error is None and world.holds(world.inputs, 1) and not world.litter():
        return ""
    return f"the new run ended in {error!r}, and there is {world.litter()[:3]}"


def lag(world: World, number: int) -> str:
    """Let one change of a run that died arrive when a newer run is over."""
    asleep, awake = threading.Event(), threading.Event()

    def sleep() -> None:
        asleep.set()
        awake.wait(120)

    hook = once(number, sleep)

    def pause(at: int, what: str, of: str) -> None:
        if awake.is_set():
            raise Crash
        if not asleep.is_set():
            hook(at, what, of)

    def first() -> None:
        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(BaseException):
            # The system lets go of the lock of a process that dies.
            patch.setattr(run, "lock", lambda *_: contextlib.nullcontext())
            world.call(0)
        asleep.set()

    with world.watched(pause):
        thread = threading.Thread(target=first)
        thread.start()
        asleep.wait(120)
        wrong = follow(world, 1)
        awake.set()
        thread.join(120)
    if wrong or (not thread.is_alive() and world.holds(world.inputs, 1)):
        return wrong
    return "what a run that died wrote late changed the result of a newer one"


# ------------------------------------------------------------------------------------------------------ the machine

WAYS = "resume=False|overwrite=True|delete it first|the same|wait for it|choose another"
"""What an error may advise."""

VARIANTS = st.sampled_from([0, 1])
AT = st.one_of(st.integers(1, 40), st.integers(1, 900))


class Machine(RuleBasedStateMachine):
    """Calls of one verb on one place, and what may happen to them."""

    def __init__(self, verb: str, place: str, folder: Path, changes: Changes, tally: Tally) -> None:
        super().__init__()
        self.tally = tally
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.world = World(verb, place, self.folder, changes)
        self.asked: set[tuple[int, int]] = set()
        """Version of the inputs and variant of each call so far: the results that there may be."""
        self.late: list[Callable[[], Any]] = []

    def begin(self, fresh: bool) -> None:
        """Delete the results where a run is to have something to do."""
        if fresh:
            clear(self.world)

    def try_call(self, variant: int, options: dict[str, Any], hook: Hook | None = None) -> Exception | None:
        version = self.world.inputs
        self.asked.add((version, variant))
        with self.world.watched(hook):
            error = attempt(self.world, variant, **options)
        if error is None:
            assert self.world.holds(self.world.inputs, variant) or self.world.holds(version, variant)
        elif isinstance(error, Lpa3dError):
            assert re.search(WAYS, str(error)), str(error)
        else:
            assert getattr(error, "errno", 0) == errno.ENOSPC, repr(error)
        return error

    def note(self, what: str) -> None:
        self.tally.note(what)
        self.tally.states.add(digest(self.world.save()))

    @rule(fresh=st.booleans(), variant=VARIANTS, resume=st.booleans(), overwrite=st.booleans())
    def call(self, fresh: bool, variant: int, resume: bool, overwrite: bool) -> None:
        self.begin(fresh)
        self.note(f"call: {type(self.try_call(variant, {'resume': resume, 'overwrite': overwrite})).__name__}")

    @rule(variant=VARIANTS)
    def go_on(self, variant: int) -> None:
        self.asked.add((self.world.inputs, variant))
        wrong = follow(self.world, variant)
        assert not wrong, wrong
        assert self.world.list_others() == self.world.others
        self.note("advice followed")

    @rule(fresh=st.booleans(), variant=VARIANTS, at=AT, resume=st.booleans(), overwrite=st.booleans())
    def crash(self, fresh: bool, variant: int, at: int, resume: bool, overwrite: bool) -> None:
        self.begin(fresh)
        self.asked.add((self.world.inputs, variant))
        dead = False
        with self.world.noted() as tasks, contextlib.suppress(Lpa3dError):
            dead = self.world.crash(at, variant, resume=resume, overwrite=overwrite)
        self.late = [*self.late, *tasks][-30:]
        self.tally.points += dead
        self.note("crash" if dead else "call: ended before")

    @rule(fresh=st.booleans(), variant=VARIANTS, at=AT, count=st.sampled_from([1, 4, 10**9]))
    def fill_disk(self, fresh: bool, variant: int, at: int, count: int) -> None:
        self.begin(fresh)
        self.note(f"disk full: {type(self.try_call(variant, {}, full(at, count))).__name__}")

    @rule(fresh=st.booleans(), variant=VARIANTS, at=AT, times=st.sampled_from([1, 2, 3]))
    def lose_workers(self, fresh: bool, variant: int, at: int, times: int) -> None:
        self.begin(fresh)
        self.note(f"workers die: {type(self.try_call(variant, {}, die(self.world.changes, at, times))).__name__}")

    @rule(fresh=st.booleans(), variant=VARIANTS, other=VARIANTS, at=AT, resume=st.booleans())
    def meet(self, fresh: bool, variant: int, other: int, at: int, resume: bool) -> None:
        self.begin(fresh)
        errors: list[BaseException | None] = []

        def second() -> None:
            try:
                errors.append(attempt(self.world, other, resume=resume))
            except BaseException as error:
                errors.append(error)

        self.asked |= {(self.world.inputs, other), (self.world.inputs, variant)}
        with self.world.watched(once(at, lambda: do_meanwhile(second))):
            errors.append(attempt(self.world, variant))
        for error in errors:
            assert error is None or isinstance(error, Lpa3dError), repr(error)
            assert error is None or re.search(WAYS, str(error)), str(error)
        if None in errors:
            assert any(self.world.holds(self.world.inputs, one) for one in (variant, other))
        self.note(f"meet: {', '.join(type(error).__name__ for error in errors)}")

    @rule(version=st.sampled_from([0, 1, 2]), replace=st.booleans())
    def change_inputs(self, version: int, replace: bool) -> None:
        self.world.write_inputs(version, replace=replace)
        self.note("inputs changed")

    @rule(fresh=st.booleans(), variant=VARIANTS, at=AT, version=st.sampled_from([0, 1, 2]))
    def change_inputs_meanwhile(self, fresh: bool, variant: int, at: int, version: int) -> None:
        self.begin(fresh)
        before = self.world.inputs
        error = self.try_call(variant, {}, once(at, lambda: self.world.write_inputs(version, replace=False)))
        self.asked.add((self.world.inputs, variant))
        self.note(f"inputs changed meanwhile: {type(error).__name__}")
        assert before == version or error is not None or self.world.holds(before, variant)

    @precondition(lambda self: self.late)
    @rule()
    def come_late(self) -> None:
        for task in self.late:
            with contextlib.suppress(Exception):
                task()
        self.late = []
        self.note("late workers")

    @invariant()
    def what_is_complete_is_right(self) -> None:
        for number, found in enumerate(self.world.read()):
            if found is not None:
                known = [self.world.expected(*one)[number] for one in self.asked]
                assert any(found.dtype == one.dtype and np.array_equal(found, one) for one in known)

    def teardown(self) -> None:
        try:
            wrong = follow(self.world, 0)
            assert not wrong, wrong
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)


def run_machine(verb: str, place: str, folder: Path, changes: Changes, examples: int, steps: int) -> Tally:
    """Try sequences of steps; return what was tried."""
    tally = Tally()
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    how = settings(
        max_examples=examples,
        stateful_step_count=steps,
        suppress_health_check=checks,
        deadline=None,
        phases=[Phase.generate],
    )
    run_state_machine_as_test(lambda: Machine(verb, place, folder, changes, tally), settings=how)
    return tally


# -------------------------------------------------------------------------------------------------------- the tests

SCENARIOS: dict[str, Callable[[World, int], str] | None] = {
    "killed": None,
    "killed while it replaces": None,
    "killed while it starts anew": None,
    "killed while it replaces, then forgotten": start_anew,
    "disk full": lambda world, at: fill_disk(world, at, 10**9),
    "one write fails": lambda world, at: fill_disk(world, at, 1),
    "a worker dies": lambda world, at: lose_workers(world, at, 1),
    "workers die": lambda world, at: lose_workers(world, at, 3),
    "a second call": meet,
    "inputs replaced": lambda world, at: change_inputs(world, at, True),
    "inputs changed in place": lambda world, at: change_inputs(world, at, False),
    "late tasks": come_late,
    "a late change": lag,
}
LOCAL = ("folder", "scratch", "group")


def try_changes(scenario: str, world: World, points: int, tally: Tally, since: float = 0.0) -> None:
    """Try what may happen to a run at some of its changes, from a part of them on."""
    begin = world.save()
    world.expected(0, 1)
    with world.watched(None):
        world.call()
        last = world.changes.count
    world.restore(begin)
    options: dict[str, Any] = {}
    if "replaces" in scenario:
        # Another result, which is neither that of the one call nor of the other.
        world.write_inputs(1)
        world.call(1)
        world.write_inputs(0)
        options = {"overwrite": True}
    elif scenario == "killed while it starts anew":
        world.crash(last // 2, 1)
        options = {"resume": False}
    numbers = sorted({1 + round((since + (1 - since) * (k + 0.5) / points) * last) for k in range(points)})
    what = SCENARIOS[scenario]
    if what is None:
        sweep_crashes(world, tally, set(numbers), **options)
    else:
        sweep(world, tally, numbers, lambda number: what(world, number))


def report(tally: Tally, *of: object) -> None:
    print(f"MODEL {' | '.join(map(str, of))}: {tally.points} points, {len(tally.states)} states, {tally.outcomes}")
    assert not tally.faults, "\n".join(tally.faults)


@pytest.mark.parametrize(
    ("scenario", "verb", "place", "points"),
    [
        ("killed", "label", "folder", 5),
        ("killed", "fuse", "scratch", 4),
        ("killed", "fuse", "group", 3),
        ("killed", "merge", "memory", 4),
        ("killed", "propagate", "folder", 2),
        ("killed", "label", "obstore-memory", 2),
        ("killed while it replaces", "fuse", "folder", 3),
        ("killed while it replaces, then forgotten", "fuse", "scratch", 3),
        ("killed while it starts anew", "merge", "folder", 3),
        ("disk full", "label", "scratch", 2),
        ("one write fails", "merge", "folder", 2),
        ("a worker dies", "merge", "scratch", 2),
        ("workers die", "merge", "memory", 1),
        ("a second call", "label", "folder", 2),
        ("inputs replaced", "merge", "memory", 2),
        ("inputs changed in place", "label", "folder", 1),
        ("late tasks", "merge", "folder", 2),
        ("a late change", "label", "folder", 1),
    ],
)
def test_some_changes(scenario: str, verb: str, place: str, points: int, tmp_path: Path) -> None:
    tally = Tally()
    with watch(tmp_path) as changes:
        # Outputs are put into place in the last tenth of a run.
        since = 0.85 if "replaces" in scenario else 0.0
        try_changes(scenario, World(verb, place, tmp_path, changes), points, tally, since)
    report(tally, scenario, verb, place)


@pytest.mark.long
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("place", PLACES)
def test_many_changes(scenario: str, verb: str, place: str, tmp_path: Path) -> None:
    if place not in LOCAL and ("replaces" in scenario or scenario == "a late change"):
        pytest.skip("nothing is replaced in a store, nor kept from whoever writes late")
    # A run makes 70 to 1,900 changes; one of propagate takes long.
    points = 12 if scenario != "killed" else 40 if verb == "propagate" else 1000
    points = int(os.environ.get("LPA3D_MODEL_POINTS", points))
    tally = Tally()
    with watch(tmp_path) as changes:
        try_changes(scenario, World(verb, place, tmp_path, changes), points, tally)
    report(tally, scenario, verb, place)


@pytest.mark.parametrize(("verb", "place"), [("label", "folder"), ("merge", "memory")])
def test_sequences(verb: str, place: str, tmp_path: Path) -> None:
    with watch(tmp_path) as changes:
        run_machine(verb, place, tmp_path, changes, 2, 4)


@pytest.mark.long
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("place", PLACES)
def test_many_sequences(verb: str, place: str, tmp_path: Path) -> None:
    examples = int(os.environ.get("LPA3D_MODEL_EXAMPLES", 10))
    with watch(tmp_path) as changes:
        report(run_machine(verb, place, tmp_path, changes, examples, 8), "sequences", verb, place)


def list_changes(world: World) -> list[tuple[int, str]]:
    """Return the changes of a call, each with what it is of; the world is as before."""
    begin, seen = world.save(), []
    with world.watched(lambda number, what, of: seen.append((number, of))):
        world.call()
    world.restore(begin)
    return seen


@pytest.mark.parametrize("few", [8, pytest.param(None, marks=pytest.mark.long)])
def test_killed_while_labels_are_listed(few: int | None, tmp_path: Path) -> None:
    with watch(tmp_path) as changes:
        world = World("fuse", "group", tmp_path, changes)
        numbers = [number for number, of in list_changes(world) if of.startswith(str(world.root / "cell.zarr"))]
        tally = Tally()
        # The list is written last.
        sweep_crashes(world, tally, set(numbers if few is None else numbers[-few:]))
    report(tally, few)


@pytest.mark.parametrize("at", ["group.zarr", ".run.json"])
def test_killed_where_something_new_is_made(at: str, tmp_path: Path) -> None:
    with watch(tmp_path) as changes:
        world = World("fuse", "folder", tmp_path, changes)
        numbers = [number for number, of in list_changes(world) if at in of or "-group" in of]
        tally = Tally()
        sweep_crashes(world, tally, set(numbers[:8]))
    report(tally, at)


@pytest.mark.parametrize("count", [1, 3])
def test_half_a_row_of_the_journal_is_cut_off(count: int, tmp_path: Path) -> None:
    with watch(tmp_path) as changes:
        world = World("merge", "folder", tmp_path, changes)
        begin, rows = world.save(), []
        with world.watched(lambda number, what, of: rows.append(number) if what == "torn" and "/rows" in of else None):
            world.call()
        tally = Tally()
        world.restore(begin)
        sweep(world, tally, rows[1::5], lambda number: fill_disk(world, number, count))
    report(tally)
