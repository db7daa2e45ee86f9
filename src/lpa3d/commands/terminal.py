"""What the command line says besides its results: messages, and on a terminal a line that shows the progress."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time

__all__ = ["Terminal", "open_streams"]

BAR = 24


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


class Terminal:
    """Messages to standard error; the progress line only where that is a terminal.

    The line is drawn by `tick`, which one thread calls while another one works. Messages may come from any thread.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self.animated = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.times: list[tuple[str, float]] = []
        self._lock = threading.Lock()
        self._step = self._verb = self._stage = ""
        self._started = time.perf_counter()
        self._fraction: float | None = None
        self._shown = ""
        self._notes: list[str] = []

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
        """Draw the line anew if it would look different."""
        if not self.animated:
            return
        with self._lock:
            if not self._step:
                return
            elapsed = f"{time.perf_counter() - self._started:.0f} s"
            name = f"{self._step}: {self._stage}" if self._stage else self._step
            line = f"{name}  {elapsed}"
            if self._fraction is not None:
                done = min(max(self._fraction, 0.0), 1.0)
                filled = int(done * BAR)
                line = f"{name}  [{'#' * filled}{'.' * (BAR - filled)}] {100 * done:3.0f} %  {elapsed}"
            line = line[: max(shutil.get_terminal_size().columns - 1, 1)]
            if line != self._shown:
                self._write(f"\r{line}{' ' * (len(self._shown) - len(line))}")
                self._shown = line

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
