"""One run of a command: its inputs and outputs, its messages and progress, how it ends.

The work runs in a thread of its own, so that the main thread can draw the progress line and answer Ctrl-C at once, even
while compiled code runs.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import Lpa3dError, Lpa3dWarning
from ..files.geometry import Geometry
from ..files.ngff import FORMS
from ..files.outputs import Beside, Outputs
from ..files.places import FileError
from ..files.readers import open_volume
from ..files.volume import Volume
from ..files.writers import Target
from .terminal import Terminal
from .wording import Word

__all__ = ["BROKEN_PIPE", "FAILED", "INTERRUPTED", "UNUSABLE", "Job", "attend", "report"]

OK, FAILED, UNUSABLE, MISSED, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 130, 141
SIGNALS = ("SIGTERM", "SIGHUP")
"""What ends a run as Ctrl-C does; the exit code is 128 and the signal's number. Windows has no SIGHUP."""

TILES_END = 10.0
"""Seconds that tiles in flight have to end after an interruption. What they leave unfinished is done again."""

Array = npt.NDArray[Any]


def _find_no_data(classes: Array) -> list[int]:
    """Return which of -1 and the largest number of the dtype, which often mean "not labelled", are classes.

    Masks of one class are often stored with the largest number; in uint8 it is a number like others.
    """
    if (
        classes.dtype.kind not in "ui"
        or (classes.dtype.itemsize == 1 and classes.dtype.kind == "u")
        or not classes.size
    ):
        return []
    low, high = int(classes.min()), int(classes.max())
    found = [-1] if low == -1 else []
    if high == np.iinfo(classes.dtype).max:
        found.append(high)
    marks = np.array([0, *found]).astype(classes.dtype)
    if found and all(np.isin(part, marks).all() for part in classes):
        return []
    return found


@dataclass
class Job:
    """One run: what was asked, where messages go, the outputs in the making, what standard output will get, and which
    of the user's limits the results miss. `word` is how messages name parameters.

    While a verb works tile by tile `tiled` is set, and `advice` says how to go on with what it leaves, if it does.
    """

    args: argparse.Namespace
    terminal: Terminal
    outputs: Outputs
    files: ExitStack
    word: Word
    results: list[str] = field(default_factory=list)
    misses: list[str] = field(default_factory=list)
    tiled: bool = False
    advice: str = ""

    @property
    def storage(self) -> dict[str, Any]:
        """Return what the user says of outputs that are zarr."""
        said = {key: getattr(self.args, key, None) for key in FORMS}
        return {key: value for key, value in said.items() if value is not None}

    def open(self, name: str) -> Volume:
        """Open an input; it is closed at the end."""
        volume = self.files.enter_context(open_volume(name))
        if volume.note:
            self.terminal.say(volume.note)
        return volume

    def read(self, volume: Volume, role: str, *, floats: bool = False) -> Array:
        """Read a whole input as one step: labels, or with `floats` an image of any kind."""
        self.terminal.step(f"reading {volume.name}", "read")
        if floats:
            return volume.read(self.progress)
        array = volume.read_integers(role, self.progress)
        if array.dtype != volume.dtype:
            self.terminal.say(f"{volume.name} stores whole numbers as {volume.dtype}; they are read as {array.dtype}")
        if role == "a class map":
            for value in _find_no_data(array):
                self.terminal.message(
                    f"warning: {value} is a class of {volume.name} like others; if it marks voxels that do not count, "
                    "set them to 0"
                )
        return array

    def write(self, target: Target, array: Array, geometry: Geometry) -> None:
        """Write a result as one step."""
        self.terminal.step(f"writing {target.location.name}", "wrote")
        target.write(array, geometry, self.progress)
        if target.location.format == "nifti" and array.dtype.itemsize == 8:
            self.terminal.say(f"{target.location.name} holds {array.dtype}, which some NIfTI viewers cannot open")

    def add_text(self, name: str, inputs: Sequence[Path]) -> Beside:
        """Plan an output that is text."""
        return self.outputs.add(name, Path(name), Path(name).suffix, inputs)

    def write_text(self, output: Beside, text: str) -> None:
        """Write a whole output that is text."""
        try:
            output.temp.write_text(text, encoding="utf-8")
        except OSError as error:
            raise FileError(f"cannot write {output.name}: {error.strerror}") from error

    def progress(self, fraction: float) -> None:
        """Show how far a step is; the place where an interrupted run stops."""
        self.outputs.check()
        self.terminal.progress(fraction)

    def stage(self, name: str, fraction: float) -> None:
        """Show which stage of a verb runs."""
        self.outputs.check()
        self.terminal.progress(fraction, name)

    def finish(self, text: str) -> None:
        """Put the outputs into place and say what was done."""
        self.outputs.commit()
        self.terminal.finish()
        times: dict[str, float] = {}
        for verb, seconds in self.terminal.times:
            times[verb] = times.get(verb, 0.0) + seconds
        self.terminal.say(f"{text}; {', '.join(f'{verb} in {seconds:.1f} s' for verb, seconds in times.items())}")


class _Terminated(BaseException):
    """One of `SIGNALS` arrived: its number."""


def _catchable() -> list[int]:
    """Return the numbers of `SIGNALS` that are not ignored (as nohup has it)."""
    numbers = [int(getattr(signal, name)) for name in SIGNALS if hasattr(signal, name)]
    return [number for number in numbers if signal.getsignal(number) not in (signal.SIG_IGN, None)]


@contextmanager
def _signals() -> Iterator[None]:
    """Turn signals into an exception, so that they clean up as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated(number)

    before = {number: signal.signal(number, terminate) for number in _catchable()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _warnings_to(terminal: Terminal, word: Word) -> Iterator[None]:
    """Print the library's own warnings as messages; other libraries' remarks are for developers."""

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if isinstance(message, Lpa3dWarning):
            terminal.message(f"warning: {message.word(word)}")
        elif _debugging():
            terminal.message(f"warning: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield


def _debugging() -> bool:
    return os.environ.get("LPA3D_DEBUG", "") not in ("", "0")


def attend(run: Callable[[Job], None], args: argparse.Namespace, word: Word) -> int:
    """Run a command in a thread, draw its progress, and clean up whatever ends it."""
    terminal = Terminal(quiet=args.quiet, progress=args.progress)
    outputs = Outputs(overwrite=getattr(args, "overwrite", False))
    jobs: list[Job] = []
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with terminal, _warnings_to(terminal, word), outputs, ExitStack() as files:
                jobs.append(Job(args, terminal, outputs, files, word))
                run(jobs[0])
        except BaseException as error:
            failures.append(error)
        finally:
            done.set()

    # Not Thread.join: interrupted by a signal, it takes the thread for finished (Python 3.11 and 3.12).
    done = threading.Event()
    try:
        with _signals():
            threading.Thread(target=work, daemon=True).start()
            while not done.wait(0.1):
                terminal.tick()
    except (KeyboardInterrupt, _Terminated) as interruption:
        # Once is enough: the cleaning up is not to be interrupted.
        before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, *_catchable())}
        # A writer stops by itself at the next slab, a run over tiles when those in flight are done; one that does not
        # is cut off.
        outputs.cancel()
        advice = f"; {jobs[0].advice}" if jobs and jobs[0].advice else ""
        done.wait(TILES_END if jobs and jobs[0].tiled else 2.0 if outputs.writing else 0.0)
        outputs.discard()
        terminal.finish()
        stopped = isinstance(interruption, _Terminated)
        terminal.message(("terminated" if stopped else "interrupted") + advice)
        code = 128 + interruption.args[0] if isinstance(interruption, _Terminated) else INTERRUPTED
        if not done.is_set():
            # Compiled code cannot be stopped, and leaving in the usual way would wait for it.
            os._exit(code)
        for number, handler in before.items():
            signal.signal(number, handler)
        return code
    terminal.finish()
    if failures:
        code = report(failures[0], terminal, word)
        if jobs and jobs[0].advice and not isinstance(failures[0], Lpa3dError):
            terminal.message(f"finished tiles are kept; mend the cause and {jobs[0].advice}")
        return code
    (job,) = jobs
    for text in job.results:
        sys.stdout.write(text)
    # Where both streams are one log, the verdict stands below what it is about.
    sys.stdout.flush()
    for text in job.misses:
        terminal.message(text)
    return MISSED if job.misses else OK


def report(error: BaseException, terminal: Terminal, word: Word) -> int:
    """Print what went wrong and return the exit code."""
    if _debugging():
        traceback.print_exception(error)
    if isinstance(error, Lpa3dError):
        terminal.message(f"error: {error.word(word)}")
        return UNUSABLE if isinstance(error, (ValueError, TypeError)) else FAILED
    if isinstance(error, MemoryError):
        terminal.message(f"error: not enough memory{f' ({error})' if str(error) else ''}")
    elif isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        terminal.message(f"error: {place}{error.strerror}")
    else:
        text = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        terminal.message(f"error: unexpected {text} (LPA3D_DEBUG=1 shows where; please report it)")
    return FAILED
