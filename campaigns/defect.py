"""One defect: how it is planted and what the program must make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from campaigns.bad_tree import TEMPLATE, Case


class End(Enum):
    """What becomes of the spoilt run; the good runs are done in all of them but STOP."""

    REFUSED = "the run is refused, all others are done"
    WARNED = "a warning, and all runs are done"
    OTHERS = "the other runs are done"
    SAME = "all runs are done, to the same bytes"
    STOP = "refused before anything is computed"
    GROUP = "refused before anything is learnt"
    POOLED = "the result is refused, all others are pooled"


@dataclass(frozen=True)
class Defect:
    """A defect of the input.

    ``file``, ``fault`` and ``remedy`` are patterns that the message must hold, {} standing for the case's folder;
    ``words`` are added to the command line, ``base`` replaces it; ``other`` is the pattern of what may differ: sidecars
    tell of the dataset as a whole.
    """

    name: str
    plant: Callable[[Case], object]
    file: str = ""
    fault: str = ""
    remedy: str = ""
    end: End = End.REFUSED
    code: int = 1
    words: tuple[str, ...] = ()
    base: tuple[str, ...] | None = None
    space: str = TEMPLATE
    other: str = ""
    unprivileged: bool = False  # as somebody who must obey permissions: as a program, without root's power over files
