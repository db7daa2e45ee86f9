"""What the stages of a run read and write in scratch, declared: so the driver knows what nobody reads any more.

An *area* is a key of scratch, or all keys below it: "census" is what "census/17" is part of. A verb declares its
stages in their order; modules that several verbs share contribute theirs under a name. A stage that turns out not to be
needed is passed over. An area is cleared when no stage that is still to come reads it. What the driver itself reads,
between the stages, it reads again when a run goes on: that is kept to the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Plan", "Stage", "is_in"]


@dataclass(frozen=True)
class Stage:
    """A stage of a run.

    Attributes
    ----------
    name : str
        Unique in the run.
    reads, writes : tuple of str
        Areas of scratch. A stage may read what it writes.
    keeps : tuple of str
        Areas that it writes and that the driver reads between stages.
    many : bool
        Whether it is any number of stages, called `name` and a blank and more, of which only the data tell how many.
    """

    name: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    many: bool = False


def is_in(key: str, area: str) -> bool:
    """Return whether a key of scratch belongs to an area."""
    return key == area or key.startswith(f"{area}/")


class Plan:
    """The stages of a run, and how far it is.

    Parameters
    ----------
    stages : sequence of Stage
        In their order. Where only the data tell which stages read an area, all that may are declared to, and `declare`
        says later which ones do.
    closing : sequence of Stage
        Those of the driver, which come after them.
    """

    def __init__(self, stages: Sequence[Stage], closing: Sequence[Stage] = ()) -> None:
        self._closing = tuple(closing)
        self.stages = (*stages, *self._closing)
        self._at = 0
        """The first stage that is still to come, or is in progress."""
        self._cleared: set[str] = set()

    def declare(self, stages: Sequence[Stage]) -> None:
        """Declare the stages anew, now that more is known: the same up to here."""
        self.stages = (*stages, *self._closing)

    def enter(self, name: str) -> list[str]:
        """Begin a stage; return the areas that are to be cleared, as those before it are over."""
        self._at = self._find(name)
        return self._list_unread()

    def leave(self, name: str) -> list[str]:
        """End a stage; return the areas that are to be cleared."""
        at = self._find(name)
        # After one of many there may be more.
        self._at = at if self.stages[at].many else at + 1
        return self._list_unread()

    def _find(self, name: str) -> int:
        for at, stage in enumerate(self.stages):
            if stage.name == name or (stage.many and name.startswith(f"{stage.name} ")):
                if at < self._at:
                    raise ValueError(f"stage {name!r} comes after {self.stages[self._at - 1].name!r}, which is over")
                return at
        raise ValueError(f"stage {name!r} is not declared")

    def _list_unread(self) -> list[str]:
        """Return areas that stages before wrote and that none reads any more, each once.

        What the last stage read goes with all the rest, once the outputs are on the disk.
        """
        if self._at == len(self.stages):
            return []
        kept = {area for stage in self.stages for area in stage.keeps}
        read = {area for stage in self.stages[self._at :] for area in (*stage.reads, *stage.writes)}
        over = [area for stage in self.stages[: self._at] for area in stage.writes]
        unread = [area for area in dict.fromkeys(over) if area not in kept | read | self._cleared]
        self._cleared.update(unread)
        return unread
