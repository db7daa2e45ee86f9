"""Who does the work: threads of this process, or the workers of a `dask.distributed` client.

Both take calls and give back what finished first. Inside a call everything is serial: tiles are the parallelism, so
that neither cores nor memory are asked for twice.
"""

from __future__ import annotations

import contextlib
import functools
import math
import pickle
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from ...arrays import backend as _backend
from ...arrays.threads import num_threads, serial
from ...arrays.warn import warn

__all__ = ["Cluster", "OnDevice", "Scheduler", "Task", "Threads", "choose_scheduler"]

Task = Callable[..., Any]

Outcome = tuple[tuple[Any, ...], Any, BaseException | None]
"""Arguments of a call, what it returned, and the error that it ended in."""


Note = Callable[[Any, Any], None]
"""Takes the first argument of a call that is done, and its value."""


class Scheduler(Protocol):
    """Runs ``task(context, *args)`` somewhere, some time."""

    name: str
    batch_seconds: float
    """How long a batch of calls should take, so that handing it out costs little."""

    @property
    def slots(self) -> int:
        """Return how many calls may be in flight."""

    def prepare(self, task: Task, context: Any) -> Any:
        """Return what `start` needs to call `task` with `context`."""

    def start(self, prepared: Any, batch: list[tuple[Any, ...]], note: Note | None) -> None:
        """Start a batch of calls; `note` is called for each that is done, on any thread."""

    def wait(self, timeout: float) -> list[Outcome] | None:
        """Return what the next finished batch did, None if none finishes in `timeout` seconds."""

    def close(self) -> None:
        """Wait for what is in flight and end."""


def _call(task: Task, context: Any, batch: list[tuple[Any, ...]], note: Note | None) -> list[Outcome]:
    """Make the calls of a batch one after the other; an error ends one call, not the batch."""
    outcomes: list[Outcome] = []
    with serial():
        for args in batch:
            try:
                value = task(context, *args)
                if note is not None:
                    note(args[0], value)
                outcomes.append((args, value, None))
            except BaseException as error:  # SystemExit, too: a thread that ended by it would be waited for
                outcomes.append((args, None, error))
    return outcomes


@dataclass(frozen=True)
class OnDevice:
    """A task that works on the CUDA device of whatever process runs it. Picklable."""

    task: Task

    def __call__(self, context: Any, *args: Any) -> Any:
        """Do the task."""
        advice = (
            "finished tiles are kept: end what else uses it, or set LPA3D_NUM_THREADS to have fewer tiles there at "
            "once, and run the same again; or start anew with a smaller tile"
        )
        with _backend.explain_memory(advice), _backend.on_device(_backend.open_device()):
            return self.task(context, *args)


class Threads:
    """Threads of this process, which begin with the first call."""

    name = "threads"
    batch_seconds = 0.02

    def __init__(self, workers: int) -> None:
        self.slots = workers
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[list[Outcome]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._done.put(_call(*job))

    def prepare(self, task: Task, context: Any) -> Any:
        """Return task and context as they are."""
        return task, context

    def start(self, prepared: Any, batch: list[tuple[Any, ...]], note: Note | None) -> None:
        """Start a batch of calls."""
        while len(self._threads) < self.slots:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()
        self._jobs.put((*prepared, batch, note))

    def wait(self, timeout: float) -> list[Outcome] | None:
        """Return what the next finished batch did, None if none finishes in time."""
        try:
            return self._done.get(timeout=timeout)
        except queue.Empty:
            return None

    def close(self) -> None:
        """Wait for what is in flight and end."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()


@functools.lru_cache(maxsize=4)
def _load(payload: bytes) -> tuple[Task, Any]:
    """Return task and context; a worker gets the same for all tiles of a stage."""
    task, context = pickle.loads(payload)
    return task, context


def _call_payload(payload: bytes, batch: list[tuple[Any, ...]]) -> list[Outcome]:
    """Make the calls of a batch in a worker's process."""
    return _call(*_load(payload), batch, None)


class Cluster:
    """The workers of a `dask.distributed` client; they share nothing with the driver but the stores."""

    name = "distributed"
    batch_seconds = 0.5

    def __init__(self, client: Any) -> None:
        self._client = client
        self._done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._running: dict[str, tuple[Any, list[tuple[Any, ...]]]] = {}
        self._slots, self._asked = 0, -math.inf
        self._lonely: float | None = None
        """Since when there have been no workers."""
        self._told = 0.0

    @property
    def slots(self) -> int:
        """Return the number of the workers' threads, which may change while the run goes on."""
        now = time.monotonic()
        if now - self._asked > 1.0:
            self._slots, self._asked = sum(self._client.nthreads().values()), now
            if self._slots:
                self._lonely = None
            elif self._lonely is None:
                self._lonely = self._told = now
        return max(1, self._slots)

    def _warn_lonely(self) -> None:
        """Warn now and then that there are no workers, for which a run waits without an end: they may still come."""
        now = time.monotonic()
        patience = 10.0 if self._told == self._lonely else 60.0
        if not self._slots and self._lonely is not None and now - self._told > patience:
            self._told = now
            warn(
                f"the dask cluster has had no workers for {now - self._lonely:.0f} s, so nothing is done: start some "
                "(cluster.scale, or dask worker), or close the client to work on the threads of this process. "
                "Ctrl-C ends the run; what is finished is kept"
            )

    def prepare(self, task: Task, context: Any) -> Any:
        """Return task and context as bytes."""
        return pickle.dumps((task, context))

    def start(self, prepared: Any, batch: list[tuple[Any, ...]], note: Note | None) -> None:
        """Start a batch of calls."""
        future = self._client.submit(_call_payload, prepared, batch, pure=False)
        self._running[future.key] = future, batch
        future.add_done_callback(self._done.put)

    def wait(self, timeout: float) -> list[Outcome] | None:
        """Return what the next finished batch did, None if none finishes in time."""
        try:
            future = self._done.get(timeout=timeout)
        except queue.Empty:
            if self.slots:  # asks for them
                self._warn_lonely()
            return None
        _, batch = self._running.pop(future.key)
        try:
            outcomes: list[Outcome] = future.result()
        except Exception as error:
            # A worker that died takes all calls of its batch with it; each is tried again.
            return [(args, None, error) for args in batch]
        return outcomes

    def close(self) -> None:
        """Give up what is in flight: every task may be done twice."""
        for future, _ in self._running.values():
            future.cancel()
        self._running.clear()
        # A scheduler that is gone has no workers that would keep anything.
        with contextlib.suppress(Exception):
            self._client.run(_load.cache_clear, wait=False)


def choose_scheduler(workers: int | None) -> Scheduler:
    """Return the active `dask.distributed` client's workers, else threads."""
    distributed = sys.modules.get("distributed")
    if distributed is not None:
        try:
            distributed.get_worker()
            # Called in a task: it has this worker's thread, and would wait for ever for others that do the same.
            return Threads(1)
        except ValueError:
            pass  # no task of a worker
        try:
            return Cluster(distributed.get_client())
        except ValueError:
            pass  # no client is active
    return Threads(workers or num_threads())
