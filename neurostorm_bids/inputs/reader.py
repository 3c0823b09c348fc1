"""The seam between pipelines: what a reader is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from neurostorm_bids.errors import NeurostormError
from neurostorm_bids.inputs.datasets import Scope
from neurostorm_bids.inputs.queries import Queries
from neurostorm_bids.inputs.runs import BoldRun
from neurostorm_bids.inputs.sidecars import Shared


@dataclass(frozen=True)
class Request:
    """What to look for, and where. Empty tuples mean "all"."""

    scope: Scope
    queries: Queries
    desc: str = "preproc"
    sessions: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    database_dir: Path | None = None
    sidecars: tuple[Shared, ...] = ()  # one a derivative dataset
    raw_sidecars: Shared | None = None
    raw_events: Shared | None = None

    @property
    def is_narrowed(self) -> bool:
        """Whether labels or filters leave something out on purpose."""
        return bool(self.sessions or self.tasks or self.queries.is_filtered)


@dataclass(frozen=True)
class Found:
    """Runs of one participant, the faults of those that cannot be used, and how many were not asked for."""

    runs: tuple[BoldRun, ...] = ()
    rejected: tuple[NeurostormError, ...] = ()
    warnings: tuple[str, ...] = ()
    unselected: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reader:
    """One pipeline's way of laying out participants.

    Attributes
    ----------
    locate : callable
        ``locate(bids_dir, derivatives)``: the datasets to search.
    participants : callable
        ``participants(root)``: all labels of a dataset, sorted.
    folder : callable
        ``folder(root, participant)``: where a participant lies, so that one can be asked for without listing all.
    read : callable
        ``read(participant, request)``: the runs of one participant.
    """

    locate: Callable[[Path, tuple[tuple[str, Path], ...]], Scope]
    participants: Callable[[Path], list[str]]
    folder: Callable[[Path, str], Path]
    read: Callable[[str, Request], Found]
