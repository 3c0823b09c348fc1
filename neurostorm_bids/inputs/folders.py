"""Pipelines that name folders in their own way: where their participants lie, and which of their runs are wanted."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

from neurostorm_bids.errors import DatasetMissing, NeurostormError, RunUnusable
from neurostorm_bids.inputs.datasets import Dataset, Scope
from neurostorm_bids.inputs.names import io_spec
from neurostorm_bids.inputs.presence import fault_of, is_folder
from neurostorm_bids.inputs.reader import Found, Reader, Request
from neurostorm_bids.inputs.runs import BoldRun, MotionFile, Source
from neurostorm_bids.inputs.sidecars import read_json, repetition_time

ENTITY_ORDER = ("sub", "ses", "task", "acq", "ce", "rec", "dir", "run")

Entities = Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """Where the runs of a participant lie, and what the path there says of them."""

    folder: Path
    participant: str
    session: str | None = None


@dataclass(frozen=True)
class Candidate:
    """A run as its folder shows it; ``build`` makes it or raises what stops it."""

    entities: Entities
    build: Callable[[Source, Request], BoldRun]
    concatenates: bool = False

    @property
    def name(self) -> str:
        """File name prefix of the run."""
        return "_".join(f"{key}-{value}" for key, value in self.entities.items())


@dataclass(frozen=True)
class Layout:
    """How a pipeline lays out its output.

    Attributes
    ----------
    pipeline : str
        Its name, for sidecars.
    parse : callable
        ``parse(name)``: participant and session that the name of a top folder stands for.
    places : tuple of str
        Where runs lie below such a folder, as patterns; ``ses-*`` in one gives the session.
    shown : str
        The layout in words, for errors.
    candidates : callable
        ``candidates(place)``: the runs of a place.
    """

    pipeline: str
    parse: Callable[[str], tuple[str, str | None]]
    places: tuple[str, ...]
    shown: str
    candidates: Callable[[Place], Iterable[Candidate]]

    def reader(self) -> Reader:
        """The layout as the inputs stage asks for it."""
        return Reader(self.locate, self.participants, self.folder, self.read)

    def locate(self, bids_dir: Path, named: tuple[tuple[str, Path], ...] = ()) -> Scope:
        """The datasets that are named, else ``bids_dir``, else what lies in its ``derivatives``.

        Raises
        ------
        DatasetMissing
            When none holds a participant in this layout.
        """
        roots = [root for root in (bids_dir, *(path for _, path in named)) if holds(root, self.places)]
        if not roots and (bids_dir / "derivatives").is_dir():
            beneath = sorted(path for path in (bids_dir / "derivatives").iterdir() if path.is_dir())
            roots = [root for root in beneath if holds(root, self.places)][:1]
        if not roots:
            raise self._missing(bids_dir)
        return Scope(tuple(Dataset(root, "derivative", self.pipeline) for root in dict.fromkeys(roots)))

    def _missing(self, root: Path) -> DatasetMissing:
        if root.is_dir() and any(_places(root, self.places)):
            label, _ = self.parse(root.name)
            return DatasetMissing(
                "is the folder of one participant",
                file=root,
                expected="the dataset",
                remedy=f"Give {root.parent} --participant-label {label}",
            )
        return DatasetMissing(
            f"holds no output of {self.pipeline}" if root.is_dir() else "is no folder",
            file=root,
            expected=self.shown,
            remedy="Check the path and --input-type; in a DataLad dataset run `datalad get` on it",
        )

    def participants(self, root: Path) -> list[str]:
        """Labels of all participants, sorted."""
        return sorted(label for label in self._listed(root) if any(self._at(root, label)))

    def folder(self, root: Path, participant: str) -> Path:
        """The (first) folder of a participant; one that does not exist where there is none."""
        return next((place.folder for place in self._at(root, participant)), root / f"sub-{participant}")

    def read(self, participant: str, request: Request) -> Found:
        """Runs of one participant in all datasets of the scope."""
        found = [
            (candidate, dataset.source)
            for dataset in request.scope.derivatives
            for place in self._at(dataset.root, participant)
            for candidate in self.candidates(place)
        ]
        if not found and not request.is_narrowed:
            root = request.scope.derivatives[0].root
            fault = RunUnusable(f"sub-{participant} has no functional runs", file=root, expected=self.shown)
            return Found(rejected=(fault,))
        return _sorted_out(found, request)

    def _listed(self, root: Path) -> Mapping[str, tuple[str, ...]]:
        return _top_folders(root, root.stat().st_mtime_ns, self.parse) if root.is_dir() else {}

    def _at(self, root: Path, participant: str) -> Iterator[Place]:
        """Places of a participant, who may be named as the label or as the folder."""
        names = self._listed(root).get(participant, ())
        if not names and (root / participant).is_dir():
            names = (participant,)
        for name in names:
            label, session = self.parse(name)
            for folder in _places(root / name, self.places):
                below = folder.relative_to(root / name).parts
                inner = next((part for part in below if part.startswith("ses-")), None)
                yield Place(folder, label, inner.removeprefix("ses-") if inner else session)


@lru_cache(maxsize=8)
def _top_folders(
    root: Path, _mtime_ns: int, parse: Callable[[str], tuple[str, str | None]]
) -> Mapping[str, tuple[str, ...]]:
    """Names of the folders of each participant: a dataset of 40,000 is listed once."""
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries if is_folder(entry) and not entry.name.startswith("."))
    listed: dict[str, tuple[str, ...]] = {}
    for name in names:
        label, _ = parse(name)
        listed[label] = (*listed.get(label, ()), name)
    return listed


def _places(folder: Path, patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(path for path in folder.glob(pattern) if path.is_dir())


def holds(root: Path, patterns: Iterable[str], peeked: int | None = None) -> bool:
    """Whether a folder of a dataset (one of the first ``peeked``) has what the patterns say."""
    patterns = tuple(patterns)
    if not root.is_dir():
        return False
    with os.scandir(root) as entries:
        folders = (Path(entry.path) for entry in entries if is_folder(entry))
        return any(any(_places(folder, patterns)) for folder in islice(folders, peeked))


# --- which runs -------------------------------------------------------------------------------------------------


def label_of(text: str) -> str:
    """A text as BIDS label: letters and digits.

    >>> label_of("S_001")
    'S001'
    """
    return re.sub(r"[^A-Za-z0-9]", "", text)


def ordered(entities: Mapping[str, str | None]) -> dict[str, str]:
    """Entities in BIDS order, without those that are None."""
    return {key: value for key in ENTITY_ORDER if (value := entities.get(key)) is not None}


def _sorted_out(found: list[tuple[Candidate, Source]], request: Request) -> Found:
    """Runs that are wanted and usable, the faults of the others, and what is left out."""
    runs: list[BoldRun] = []
    rejected: list[NeurostormError] = []
    unselected: list[str] = []
    warnings: list[str] = []
    names = Counter(candidate.name for candidate, _ in found if not candidate.concatenates)
    for candidate, source in found:
        if candidate.concatenates:
            warnings.append(f"{candidate.name}: a concatenation of other runs, left out")
        elif not _is_selected(candidate.entities, request):
            unselected.append(candidate.name)
        elif names[candidate.name] > 1:
            rejected.append(_twice(candidate.name, source))
            names[candidate.name] = 0  # told once
        elif names[candidate.name]:
            try:
                runs.append(candidate.build(source, request))
            except NeurostormError as fault:
                rejected.append(fault)
    return Found(tuple(runs), tuple(rejected), tuple(warnings), tuple(unselected))


def _twice(name: str, source: Source) -> RunUnusable:
    return RunUnusable(
        f"several folders stand for {name}", file=source.root, expected="one", remedy="Remove or rename the others"
    )


def _is_selected(entities: Entities, request: Request) -> bool:
    if request.sessions and entities.get("ses") not in request.sessions:
        return False
    if request.tasks and entities.get("task") not in request.tasks:
        return False
    spelled_out = {full: entities[short] for full, short in io_spec()["run_entities"].items() if short in entities}
    return request.queries.runs.matches(spelled_out)


# --- what belongs to a run --------------------------------------------------------------------------------------


def first_there(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of several files that is there, an unfetched one included."""
    return next((folder / name for name in names if os.path.lexists(folder / name)), None)


def checked(*files: Path | None) -> None:
    """Raise what stops the first of these files from being read.

    Raises
    ------
    FileNotFetched, FileEmpty, FileUnreadable
    """
    for file in files:
        if file is not None and (fault := fault_of(file)):
            raise fault


def motion_at(path: Path, convention: str) -> tuple[MotionFile | None, list[str]]:
    """Motion parameters where they can be read, and what is to be told where they cannot."""
    if not os.path.lexists(path):
        return None, [f"no {path.name}: head motion is not known"]
    if fault := fault_of(path):
        return None, [f"{fault} Head motion is not known."]
    return MotionFile(path, convention), []  # type: ignore[arg-type]


def stated_t_r_s(sidecar: Path, bold: Path) -> tuple[float | None, list[str]]:
    """Repetition time of a JSON file that may be there; the header is asked where it says none.

    Raises
    ------
    SidecarInvalid
        When it states one that makes no sense.
    """
    if not os.path.lexists(sidecar):
        return None, []
    try:
        metadata = read_json(sidecar)
    except NeurostormError as fault:
        return None, [f"{fault} Passed over."]
    return repetition_time(metadata, bold), []
