"""What the command line says besides its results: messages, and how far the work is.

Progress is a line that is drawn anew on a terminal ("bar"); else a line a minute with the time of day ("plain"), or a
JSON object a second at most ("json"), for a log.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import threading
import time
from types import TracebackType

__all__ = ["PROGRESS", "Terminal", "open_streams"]

BAR = 24

PROGRESS = ("auto", "bar", "plain", "json", "none")
"""How progress is shown; "auto": as "bar" on a terminal, else as "plain"."""

INTERVALS = {"plain": 60.0, "json": 1.0}
"""Seconds between two lines of progress, and before the first one."""


def open_streams() -> None:
    """Put something in the place of standard streams that are closed (``2>&-``).

    Else the next file that is opened would take their number, and messages of libraries would be written into it.
    Messages are lost; results that cannot be written are an error.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR if number == 2 else os.O_RDONLY)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


class _Compiling(logging.Handler):
    """Counts the kernels that are being compiled, by what is logged of them."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1 if record.msg.startswith("compiling") else -1


class Terminal:
    """Messages and progress to standard error.

    Progress is shown by `tick`, which one thread calls while another one works. Messages may come from any thread. In a
    ``with`` block progress also says when kernels are compiled.
    """

    def __init__(self, *, quiet: bool = False, progress: str = "auto") -> None:
        self.quiet = quiet
        if progress == "auto":
            drawn = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
            progress = "none" if quiet else "bar" if drawn else "plain"
        self.mode = progress
        self._compiling = _Compiling()
        self._told = time.perf_counter()
        self.times: list[tuple[str, float]] = []
        self._lock = threading.Lock()
        self._step = self._verb = self._stage = ""
        self._started = time.perf_counter()
        self._fraction: float | None = None
        self._shown = ""
        self._notes: list[str] = []

    def __enter__(self) -> Terminal:
        log = logging.getLogger("lpa3d.kernels")
        self._log = log.level, log.propagate
        log.addHandler(self._compiling)
        log.propagate = False
        log.setLevel(logging.DEBUG)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        log = logging.getLogger("lpa3d.kernels")
        log.removeHandler(self._compiling)
        level, log.propagate = self._log
        log.setLevel(level)

    def step(self, name: str, verb: str) -> None:
        """Begin a step: `name` is shown while it runs ("reading a.npy"), `verb` in the summary ("read")."""
        notes, self._notes = self._notes, []
        for note in notes:
            self.say(note)
        with self._lock:
            self._end_step()
            self._step, self._verb = name, verb
            self._started, self._fraction, self._stage = time.perf_counter(), None, ""

    def _end_step(self) -> None:
        if self._step:
            self.times.append((self._verb, time.perf_counter() - self._started))
            self._step = ""

    def finish(self) -> None:
        """End the last step and remove the line."""
        with self._lock:
            self._end_step()
            self._clear()

    def progress(self, fraction: float, stage: str = "") -> None:
        """Say how much of the step is done, 0 to 1, and what it is busy with."""
        self._fraction, self._stage = fraction, stage

    def tick(self) -> None:
        """Show the progress: draw the line anew if it would look different, or print one if it is time."""
        if self.mode == "none":
            return
        with self._lock:
            if not self._step:
                return
            now = time.perf_counter()
            if self.mode == "bar":
                self._draw(now - self._started)
            elif now - self._told >= INTERVALS[self.mode]:
                self._told = now
                self._print(now - self._started)

    def _name(self) -> str:
        stage = "compiling kernels (once)" if self._compiling.count > 0 else self._stage
        return f"{self._step}: {stage}" if stage else self._step

    def _draw(self, seconds: float) -> None:
        line = f"{self._name()}  {seconds:.0f} s"
        if self._fraction is not None:
            done = min(max(self._fraction, 0.0), 1.0)
            filled = int(done * BAR)
            line = f"{self._name()}  [{'#' * filled}{'.' * (BAR - filled)}] {100 * done:3.0f} %  {seconds:.0f} s"
        line = line[: max(shutil.get_terminal_size().columns - 1, 1)]
        if line != self._shown:
            self._write(f"\r{line}{' ' * (len(self._shown) - len(line))}")
            self._shown = line

    def _print(self, seconds: float) -> None:
        fraction = None if self._fraction is None else min(max(self._fraction, 0.0), 1.0)
        if self.mode == "plain":
            done = "" if fraction is None else f" {100 * fraction:.0f} %,"
            self._write(f"lpa3d: {time.strftime('%H:%M:%S')} {self._name()}{done} {seconds:.0f} s\n")
            return
        told = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "step": self._step,
            "stage": "compiling kernels" if self._compiling.count > 0 else self._stage,
            "fraction": fraction,
            "seconds": round(seconds, 1),
        }
        self._write(f"{json.dumps(told)}\n")

    def _clear(self) -> None:
        if self._shown:
            self._write(f"\r{' ' * len(self._shown)}\r")
            self._shown = ""

    def _write(self, text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError):
            pass  # nobody listens, or it is closed; the work goes on

    def say(self, text: str) -> None:
        """Print a note, unless the user wants quiet."""
        if not self.quiet:
            self.message(text)

    def note(self, text: str) -> None:
        """Say something when the work begins: not beside an error about what the user typed."""
        self._notes.append(text)

    def message(self, text: str) -> None:
        """Print an error or a warning, which quiet does not silence."""
        with self._lock:
            self._clear()
            self._write(f"lpa3d: {text}\n")
