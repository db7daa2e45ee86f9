"""Threads that work in rounds: all of them on one round, then one of them alone, until that one says stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["run_rounds"]


def run_rounds(work: Callable[[int], None], advance: Callable[[], bool], workers: int) -> None:
    """Call ``work(0)`` to ``work(workers - 1)`` at once, then `advance` alone, again and again until it returns False.

    The threads live through all rounds: a round costs a barrier, not a thread. The first error is raised.
    """
    if workers == 1:
        work(0)
        while advance():
            work(0)
        return
    going = True

    def turn() -> None:
        nonlocal going
        going = advance()

    barrier = threading.Barrier(workers, action=turn)

    def loop(worker: int) -> None:
        try:
            while going:
                work(worker)
                barrier.wait()
        except threading.BrokenBarrierError:
            pass  # another worker failed, and its error is the one to raise
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(workers) as pool:
        try:
            for future in [pool.submit(loop, worker) for worker in range(workers)]:
                future.result()
        except BaseException:
            barrier.abort()  # an interrupt comes to this thread: the others stop at the end of the round
            raise
